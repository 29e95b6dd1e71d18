"""``plane profile``: install items for all devices with certain tags."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer

from certctrl.cli.output import write_line
from certctrl.cli.plane.connection import GROUP, OperatorApi, OperatorCommand, Yes, agreed, call_plane, show
from certctrl.cli.plane.documents import json_file
from certctrl.cli.plane.paging import ListCommand, show_list
from certctrl.cli.plane.tags import announce_unknown
from certctrl.errors import ExitStatus, UsageError
from certctrl.model.change_texts import by_change, profile_summary
from certctrl.text import counted, one_line

_SHOWN_DEVICES = 5
_SHOWN_GROUPS = 20

profile = typer.Typer(help="Manage install items for all devices with certain tags.", **GROUP)

Name = Annotated[str, typer.Argument(metavar="NAME", help="The profile.")]
File = Annotated[
    str,
    typer.Argument(
        metavar="[FILE]",
        help='JSON: a list of items, or {"devices": ..., "installs": [...]} as show --json prints it; -: stdin.',
    ),
]
Devices = Annotated[
    str,
    typer.Option(
        "--devices",
        metavar="TAGS",
        help="Which devices: tags with and, or, not, parentheses; *: all. Default: as before.",
    ),
]
Order = Annotated[
    int | None,
    typer.Option("--order", metavar="N", min=0, max=9999, help="Place among profiles; default: as before, first 100."),
]
Earlier = Annotated[
    int | None, typer.Option("--version", metavar="N", min=1, help="Take this earlier version instead of a FILE.")
]
Note = Annotated[str, typer.Option("--note", metavar="TEXT", help="Note for the history.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would change, and change nothing.")]


@profile.command("list", cls=ListCommand)
def list_profiles(ctx: typer.Context) -> None:
    """List the profiles in their order.

    Counts the devices that have each, and those whose config could not be made: plane profile show names them.

    \b
    cert-ctrl plane profile list --data /var/lib/plane
    cert-ctrl plane profile list --data /var/lib/plane --match env=prod
    """

    async def request(api: OperatorApi) -> Any:
        return await api.call("GET", "profiles")

    heads = ("order", "name", "version", "devices with", "devices", "items", "problems", "updated")
    show_list(ctx, call_plane(ctx, request), heads, _cells, none="no profiles")


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        str(row["order"]),
        row["name"],
        str(row["version"]),
        row["devices"],
        _device_count(row),
        str(row["items"]),
        str(row["problem_count"] or ""),
        row["updated_at"],
    )


def _device_count(row: Mapping[str, Any]) -> str:
    other = row["pinned_count"]
    return f"{row['device_count']}{f', {other} with another version' if other else ''}"


@profile.command("show", cls=OperatorCommand)
def show_profile(
    ctx: typer.Context,
    name: Name,
    version: Annotated[
        int | None, typer.Option("--version", metavar="N", min=1, help="An earlier version; default: the present one.")
    ] = None,
) -> None:
    """Print a profile, and the devices whose config could not be made.

    The output of --json can be edited and put again.

    \b
    cert-ctrl plane profile show --data /var/lib/plane nginx --json > nginx.json
    """

    async def request(api: OperatorApi) -> Any:
        return await _profile(api, name, version)

    found = call_plane(ctx, request)
    show(ctx, found, lambda: _print_one(found))


def _print_one(found: Mapping[str, Any]) -> None:
    devices = found["devices"] or "none: it was deleted"
    write_line(f"profile {found['name']}, version {found['version']}, order {found['order']}, devices: {devices}")
    if found["note"]:
        write_line(f"note: {found['note']}")
    for item in found["installs"]:
        write_line(json.dumps(item, ensure_ascii=True))
    for row in found["problems"]:
        write_line(f"device {row['id']} keeps its former config: {row['problem']}")


@profile.command("history", cls=ListCommand)
def history(ctx: typer.Context, name: Name) -> None:
    """List the versions of a profile, newest first.

    put --version makes an earlier one the present one again.

    \b
    cert-ctrl plane profile history --data /var/lib/plane nginx
    cert-ctrl plane profile history --data /var/lib/plane nginx --limit 10
    """

    async def request(api: OperatorApi) -> Any:
        return await api.call("GET", f"{_path(name)}/history")

    def cells(row: Mapping[str, Any]) -> tuple[str, ...]:
        return (
            f"{row['version']}{' *' if row['current'] else ''}",
            row["created_at"],
            row["devices"] or "deleted",
            str(row["order"]),
            str(row["items"]),
            row["note"],
        )

    heads = ("version", "at", "devices with", "order", "items", "note")
    show_list(ctx, call_plane(ctx, request), heads, cells, key="version", none="no versions")


@profile.command("put", cls=OperatorCommand)
def put(
    ctx: typer.Context,
    name: Name,
    file: File = "",
    devices: Devices = "",
    order: Order = None,
    version: Earlier = None,
    note: Note = "",
    dry_run: DryRun = False,
) -> None:
    """Create or change a profile, and notify its devices.

    Only devices whose config changes are notified. What is not given stays as it is. All items are checked first, for
    each device: if one of them would get a config that is not valid, nothing is stored. docs/profiles.md describes
    placeholders such as {device.name}.

    \b
    cert-ctrl plane profile put --data /var/lib/plane nginx nginx.json \\
        --devices 'web and not env=test'
    cert-ctrl plane profile put --data /var/lib/plane nginx --version 3
    """
    done = _send(ctx, name, file, devices, order, version, note, dry_run=dry_run)
    show(ctx, done, lambda: _print_change(done))


@profile.command("diff", cls=OperatorCommand)
def diff(
    ctx: typer.Context,
    name: Name,
    file: File = "",
    devices: Devices = "",
    order: Order = None,
    version: Earlier = None,
) -> None:
    """Show which items of which devices put would change.

    The same as put --dry-run. Devices for which the same changes are grouped; --json lists each.

    \b
    cert-ctrl plane profile diff --data /var/lib/plane nginx nginx.json
    """
    done = _send(ctx, name, file, devices, order, version, "", dry_run=True)
    show(ctx, done, lambda: _print_change(done))


@profile.command("delete", cls=OperatorCommand)
def delete(ctx: typer.Context, name: Name, dry_run: DryRun = False, yes: Yes = False) -> int:
    """Delete a profile, and take its items from its devices.

    Its history stays. Asks for confirmation on a terminal. Exit status: 0 deleted, 1 not confirmed.

    \b
    cert-ctrl plane profile delete --data /var/lib/plane nginx --dry-run
    """

    async def question(api: OperatorApi) -> str:
        planned = await api.call("DELETE", _path(name), query={"dry_run": "1"})
        return f"Delete profile {name}, whose items {counted(len(planned['changes']['devices']), 'device')} lose?"

    if not dry_run and not agreed(ctx, question, yes=yes):
        return ExitStatus.FAILED

    async def request(api: OperatorApi) -> Any:
        return await api.call("DELETE", _path(name), query={"dry_run": "1"} if dry_run else None)

    done = call_plane(ctx, request)
    show(ctx, done, lambda: _print_change(done))
    return ExitStatus.DONE


def _path(name: str) -> str:
    if "/" in name or name in ("", ".", ".."):
        fix = "a name has 1 to 64 lower-case letters, digits, '-', '_' and '.'"
        raise UsageError(f"{one_line(name, 80)!r} is not the name of a profile", fix=fix)
    return f"profiles/{quote(name, safe='')}"


async def _profile(api: OperatorApi, name: str, version: int | None) -> Any:
    query = None if version is None else {"version": str(version)}
    return await api.call("GET", _path(name), query=query)


def _send(
    ctx: typer.Context,
    name: str,
    file: str,
    devices: str,
    order: int | None,
    version: int | None,
    note: str,
    *,
    dry_run: bool,
) -> Any:
    if not file and version is None and not devices and order is None:
        raise UsageError("nothing to change", fix="give a FILE, --version, --devices or --order")

    async def request(api: OperatorApi) -> Any:
        body = await request_body(api, name, file, devices, order, version, note)
        return await api.call("PUT", _path(name), body, query={"dry_run": "1"} if dry_run else None)

    return call_plane(ctx, request)


async def request_body(
    api: OperatorApi, name: str, file: str, devices: str, order: int | None, version: int | None, note: str
) -> dict[str, Any]:
    """Return the request for a version of a profile; tags that no device has are announced. Raises UsageError."""
    if file and version is not None:
        raise UsageError("both a FILE and --version are given", fix="leave one of them out")
    fields = _body(file) if file else {}
    if version is not None:
        found = await _profile(api, name, version)
        fields = {key: found[key] for key in ("devices", "order", "installs") if found[key] != ""}
    given = {"devices": devices, "order": order, "note": note}
    body = fields | {key: value for key, value in given.items() if value not in ("", None)}
    if version is None:
        await announce_unknown(api, str(body.get("devices", "")))
    return body


def _body(file: str) -> dict[str, Any]:
    """Return the request that a file describes. Raises UsageError."""
    read = json_file(Path(file), example="docs/profiles.md")
    if isinstance(read, list):
        return {"installs": read}
    if not isinstance(read, dict) or "installs" not in read:
        fix = 'write [{"id": …, "type": "copy", …}, …], or {"devices": "web", "installs": […]}'
        raise UsageError(f"{file} does not contain a list of items", fix=fix)
    return {key: read[key] for key in ("devices", "order", "installs") if key in read}


def _print_change(done: Mapping[str, Any]) -> None:
    print_change(done["changes"])
    write_line(profile_summary(done))


def print_change(changes: Mapping[str, Any]) -> None:
    """Print what changes, for devices with the same changes together."""
    groups = by_change(changes)
    for change, devices in groups[:_SHOWN_GROUPS]:
        named = ", ".join(f"{row['name'] or row['id']}" for row in devices[:_SHOWN_DEVICES])
        more = f" and {len(devices) - _SHOWN_DEVICES} more" if len(devices) > _SHOWN_DEVICES else ""
        write_line(f"{counted(len(devices), 'device')} ({one_line(named)}{more}): {change}")
    if len(groups) > _SHOWN_GROUPS:
        write_line(f"… and {len(groups) - _SHOWN_GROUPS} other kinds of changes; --json lists all")
