"""``plane device``: the life of devices: another name, new hardware, another key, the end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import typer

from certctrl import lean
from certctrl.cli.output import write_error, write_line
from certctrl.cli.plane.connection import (
    GROUP,
    OperatorApi,
    OperatorCommand,
    Yes,
    agreed,
    call_plane,
    shared_options,
    show,
)
from certctrl.cli.plane.listing import validity
from certctrl.cli.plane.tags import require_known
from certctrl.errors import CertctrlError, ExitStatus, PlaneError, UsageError
from certctrl.text import counted, one_line

device = typer.Typer(help="Rename, replace, re-key, retry and decommission devices.", **GROUP)

_NAMED = 5
"""Devices that a question names."""
Device = Annotated[str, typer.Argument(metavar="ID|NAME", help="The device.")]
Devices = Annotated[list[str] | None, typer.Argument(metavar="[ID|NAME...]", help="The devices.")]
Tagged = Annotated[
    list[str] | None,
    typer.Option("--tag", metavar="TAG", help="All devices with this tag; if repeated, with all of the tags."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would change; change nothing.")]


@device.command(cls=OperatorCommand)
def rename(
    ctx: typer.Context,
    device: Device,
    name: Annotated[str, typer.Argument(metavar="NEW", help="The new name.")],
    dry_run: DryRun = False,
) -> None:
    """Give a device another name.

    It keeps the name even if it registers again. Items of profiles that contain the name change with it.

    \b
    cert-ctrl plane device rename --data /var/lib/plane web-1 shop-1
    """

    async def request(api: OperatorApi) -> Any:
        path = f"devices/{await api.device(device)}/name"
        return await api.call("POST", path, {"name": name}, query=_query(dry_run))

    done = call_plane(ctx, request)
    would = "would be" if done["dry_run"] else "is"
    items = "; its install items change" if done["config_changed"] else ""
    text = f"device {done['id']} ({done['former_name']}) {would} named {done['name']}{items}"
    show(ctx, done, text if done["changed"] else f"device {done['id']} is named {done['name']} already")


@device.command(cls=OperatorCommand)
def replace(
    ctx: typer.Context,
    device: Device,
    expires_in: Annotated[
        str, typer.Option("--expires-in", metavar="TIME", help="Validity of the token: 12h, 30d, 4w, or seconds.")
    ] = "24h",
    cancel: Annotated[bool, typer.Option("--cancel", help="Void the token; the device stays as it is.")] = False,
    dry_run: DryRun = False,
) -> None:
    """Let new hardware take the place of a device.

    Prints a token. The new host that registers with it becomes the device, with its name, tags, certificates and
    install items; keys that hosts make are made again. Until then nothing changes; then the former hardware stops.
    A second token replaces the first. The token cannot be shown again.

    \b
    cert-ctrl plane device replace --data /var/lib/plane web-1 > token
    cert-ctrl register --enrolment-token-file token
    """
    seconds = validity(expires_in)

    async def request(api: OperatorApi) -> Any:
        path = f"devices/{await api.device(device)}/replacement"
        if cancel:
            return await api.call("DELETE", path, query=_query(dry_run))
        return await api.call("POST", path, {"expires_in": seconds}, query=_query(dry_run))

    done = call_plane(ctx, request)
    if cancel:
        ended = "would be void" if dry_run else "is void"
        text = f"the replacement token of device {done['id']} ({done['name']}) {ended}"
        show(ctx, done, text if done["changed"] else f"device {done['id']} ({done['name']}) has no replacement token")
        return
    held = counted(len(done["certificates"]), "certificate")
    keys = f", {len(done['new_keys'])} of them with new keys" if done["new_keys"] else ""
    would = f"the new host would be device {done['id']} ({done['name']}) and get {held}{keys}"
    show(ctx, done, would if dry_run else done["token"])
    if not dry_run and not shared_options(ctx).as_json:
        write_error(f"note: the host that registers with it becomes device {done['id']} ({done['name']}): {held}{keys}")


@device.command(cls=OperatorCommand)
def decommission(
    ctx: typer.Context,
    devices: Devices = None,
    tag: Tagged = None,
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Reason, sent to the devices.")] = "",
    revoke: Annotated[
        bool, typer.Option("--revoke-certificates", help="Also revoke certificates that no other device has.")
    ] = False,
    reason_code: Annotated[
        str, typer.Option("--reason-code", metavar="CODE", help="Reason of the revocations (RFC 5280).")
    ] = "",
    dry_run: DryRun = False,
    yes: Yes = False,
) -> int:
    """Decommission devices.

    Their tokens are void immediately, and their certificates and CAs are withdrawn from their lists. What is on their
    disks stays until you remove it. One device after the other: run it again to continue after an interruption.
    Asks for confirmation on a terminal. Exit status: 0 done, 1 not confirmed, or some devices failed.

    \b
    cert-ctrl plane device decommission --data /var/lib/plane web-1
    cert-ctrl plane device decommission --data /var/lib/plane \\
        --tag rack=7 --dry-run
    """
    if bool(devices) == bool(tag):
        raise UsageError("name devices or give --tag, not both", fix="cert-ctrl plane device decommission ID|NAME...")
    if reason_code and not revoke:
        raise UsageError("--reason-code is for revocations", fix="add --revoke-certificates")
    ending = ", and revoke the certificates that only they have?" if revoke else "?"
    body = {"reason": reason, "revoke": revoke, "reason_code": reason_code}
    work = _Bulk("decommission", body, _decommissioned, "decommissioned")
    question = f"Decommission {{}}, whose agents then stop{ending}"
    return _run(ctx, work, devices or (), tag or (), question=question, dry_run=dry_run, yes=yes)


@device.command("rotate-key", cls=OperatorCommand)
def rotate_key(ctx: typer.Context, devices: Devices = None, tag: Tagged = None, dry_run: DryRun = False) -> int:
    """Have devices replace their keys.

    Private keys are sealed to a device's key. Each device makes a new one when it refreshes its token; plane devices --json
    shows which have not yet (key_rotation_wanted_at). Certificates and their keys stay as they are. Exit status: 0 done, 1
    some devices failed.

    \b
    cert-ctrl plane device rotate-key --data /var/lib/plane web-1
    cert-ctrl plane device rotate-key --data /var/lib/plane --tag env=prod
    """
    if bool(devices) == bool(tag):
        raise UsageError("name devices or give --tag, not both", fix="cert-ctrl plane device rotate-key ID|NAME...")
    work = _Bulk("key-rotation", {}, _rotating, "told to rotate their keys")
    return _run(ctx, work, devices or (), tag or (), dry_run=dry_run, yes=True)


@device.command(cls=OperatorCommand)
def retry(ctx: typer.Context, devices: Devices = None, tag: Tagged = None, dry_run: DryRun = False) -> int:
    """Have devices try again what has failed.

    Each compares everything as soon as it is heard from. What it has stays; nothing is renewed. Exit status: 0 done, 1
    some devices failed.

    \b
    cert-ctrl plane device retry --data /var/lib/plane web-1
    cert-ctrl plane device retry --data /var/lib/plane --tag env=prod
    """
    if bool(devices) == bool(tag):
        raise UsageError("name devices or give --tag, not both", fix="cert-ctrl plane device retry ID|NAME...")
    work = _Bulk("resync", {}, _retrying, "asked to try again")
    return _run(ctx, work, devices or (), tag or (), dry_run=dry_run, yes=True)


@lean.frozen
class _Bulk:
    """A change of many devices, one request for each."""

    path: str
    body: Mapping[str, Any]
    line: Callable[[Mapping[str, Any]], str]
    """Returns the text about one device."""
    done: str
    """What the devices are afterwards."""


def _run(
    ctx: typer.Context,
    work: _Bulk,
    named: Sequence[str],
    tags: Sequence[str],
    *,
    question: str = "",
    dry_run: bool,
    yes: bool,
) -> int:
    """Change one device after the other, and print each result as it comes; a refusal does not stop the others."""
    chosen = call_plane(ctx, lambda api: _chosen(api, named, tags))
    if chosen and not dry_run and not agreed(ctx, question.format(_listed(chosen)), yes=yes):
        return ExitStatus.FAILED
    quiet = shared_options(ctx).as_json

    async def request(api: OperatorApi) -> list[dict[str, Any]]:
        return [await _change(api, row, work, dry_run=dry_run, quiet=quiet) for row in chosen]

    done = call_plane(ctx, request)
    failed = sum("error" in row for row in done)
    show(ctx, done, lambda: _summary(done, failed, work, dry_run=dry_run))
    if failed:
        write_error(f"{counted(failed, 'device')} failed; run the command again: what is done stays done")
    return ExitStatus.FAILED if failed else ExitStatus.DONE


async def _chosen(api: OperatorApi, named: Sequence[str], tags: Sequence[str]) -> list[dict[str, Any]]:
    """Return id and name of the devices; of those with the tags, the ones that are not decommissioned."""
    if tags:
        await require_known(api, tags)
        rows = await api.operator.fetch_list(api.user, "devices", tags)
        return [row for row in rows if row["decommissioned_at"] is None]
    return [await api.call("GET", f"devices/{device_id}") for device_id in await api.devices(named)]


def _listed(chosen: Sequence[Mapping[str, Any]]) -> str:
    names = ", ".join(f"{row['name']} ({row['id']})" for row in chosen[:_NAMED])
    more = f" and {len(chosen) - _NAMED} more" if len(chosen) > _NAMED else ""
    return f"{counted(len(chosen), 'device')}: {names}{more}"


async def _change(
    api: OperatorApi, row: Mapping[str, Any], work: _Bulk, *, dry_run: bool, quiet: bool
) -> dict[str, Any]:
    """Change one device and print the result; a refusal is its result, a lost connection ends the command."""
    try:
        path = f"devices/{row['id']}/{work.path}"
        answer = await api.call("POST", path, dict(work.body), query=_query(dry_run))
    except PlaneError as error:
        if error.status in (400, 401) or error.key == "ROLE_REQUIRED" or error.status >= 500:
            raise
        write_error(f"device {row['id']} ({row['name']}): {_cause(error)}")
        return {"id": row["id"], "name": row["name"], "error": _cause(error)}
    done = {"id": row["id"], "name": row["name"], "dry_run": dry_run} | (answer or {})
    if not quiet:
        write_line(work.line(done))
    return done


def _cause(error: CertctrlError) -> str:
    return one_line(getattr(error, "what", "") or str(error), 200)


def _rotating(done: Mapping[str, Any]) -> str:
    """Return the text about a device that is to rotate its key."""
    what = f"device {done['id']} ({done['name']})"
    if not done["changed"]:
        return f"{what} has been told already, and has not replaced its key yet"
    return f"{what} {'would replace' if done['dry_run'] else 'replaces'} its key when it refreshes its token"


def _retrying(done: Mapping[str, Any]) -> str:
    would = "would be" if done["dry_run"] else "is"
    return f"device {done['id']} ({done['name']}) {would} asked to try again"


def _decommissioned(done: Mapping[str, Any]) -> str:
    what = f"device {done['id']} ({done['name']})"
    if not done["changed"]:
        return f"{what} was decommissioned at {done['decommissioned_at']}"
    revoked = [one["name"] for one in done["certificates"] if one["action"] == "revoke"]
    alone = [one["name"] for one in done["certificates"] if one["action"] != "revoke" and not one["other_devices"]]
    parts = [counted(len(done["certificates"]), "certificate") + " withdrawn"]
    parts += [f"revoked: {', '.join(revoked)}"] if revoked else []
    parts += [f"no other device has {', '.join(alone)}"] if alone else []
    return f"{what} {'would be' if done['dry_run'] else 'is'} decommissioned; {'; '.join(parts)}"


def _summary(done: Sequence[Mapping[str, Any]], failed: int, work: _Bulk, *, dry_run: bool) -> None:
    if not done:
        write_line("no such device is left")
    elif len(done) > 1:
        would = "would be" if dry_run else "are"
        write_line(f"{len(done) - failed} of {counted(len(done), 'device')} {would} {work.done}")


def _query(dry_run: bool) -> dict[str, str] | None:
    return {"dry_run": "1"} if dry_run else None
