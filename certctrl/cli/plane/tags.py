"""``plane tag``, and the option ``--tag`` that selects devices by their tags."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Annotated, Any

import typer

from certctrl.cli.output import write_error, write_line
from certctrl.cli.plane.connection import OperatorApi, call_plane, show
from certctrl.errors import UsageError
from certctrl.text import nearest, one_line

_SHOWN = 20
_TAGS = re.compile(r"[^\s()]+")
OfTag = Annotated[
    list[str] | None,
    typer.Option("--tag", metavar="TAG", help="Only devices with this tag; if repeated, with all of the tags."),
]
NewTags = Annotated[
    list[str] | None,
    typer.Option("--tag", metavar="TAG", help="Give this tag to the devices that it registers; may be repeated."),
]
OnTagged = Annotated[
    list[str] | None,
    typer.Option(
        "--tag", metavar="TAG", help="Only certificates of devices with this tag; if repeated, with all of the tags."
    ),
]


def tag_devices(
    ctx: typer.Context,
    devices: Annotated[list[str], typer.Argument(metavar="ID|NAME...", help="The devices.")],
    add: Annotated[
        list[str] | None, typer.Option("--add", metavar="TAG", help="A tag such as web or env=prod; may be repeated.")
    ] = None,
    remove: Annotated[
        list[str] | None, typer.Option("--remove", metavar="TAG", help="A tag to remove; may be repeated.")
    ] = None,
) -> None:
    """Add tags to devices, or remove them.

    All of the devices are changed or none. A device has one value for each KEY=VALUE tag: another one replaces it. plane
    devices shows the tags.

    \b
    cert-ctrl plane tag --data /var/lib/plane web-1 web-2 --add web --add env=prod
    cert-ctrl plane tag --data /var/lib/plane web-2 --remove web
    """
    if not add and not remove:
        raise UsageError("no tag given", fix="add --add TAG or --remove TAG")

    async def request(api: OperatorApi) -> Any:
        body = {"device_ids": await api.receivers(devices), "add": add or [], "remove": remove or []}
        return await api.call("POST", "device-tags", body)

    rows = call_plane(ctx, request)
    for row in rows:
        for missing in sorted(set(remove or ()) - set(row["removed"])):
            write_error(f"note: device {row['id']} ({row['name']}) has no tag {one_line(missing)}")
    show(ctx, rows, lambda: _print(rows))


def _print(rows: Sequence[dict[str, Any]]) -> None:
    for row in rows:
        write_line(f"device {row['id']} ({row['name']}): {', '.join(row['tags']) or 'no tags'}")


async def tagged(api: OperatorApi, kind: str, tags: Sequence[str] | None) -> list[dict[str, Any]]:
    """Return a list, of devices with all of the tags if any are given; tags that no device has are announced.

    An older control plane, which would ignore them, does not know its tags either: PlaneError 404.
    """
    for what, fix in await _unknown(api, tags or ()):
        write_error(f"note: {what}; {fix}")
    return await api.operator.fetch_list(api.user, kind, tags)


async def announce_unknown(api: OperatorApi, expression: str) -> None:
    """Print a note for each tag of an expression that no device has; it may be meant for later devices."""
    words = dict.fromkeys(_TAGS.findall(expression))
    tags = [word for word in words if word.lower() not in ("and", "or", "not") and not word.endswith("*")]
    for what, fix in await _unknown(api, tags):
        write_error(f"note: {what}; {fix}")


async def require_known(api: OperatorApi, tags: Collection[str]) -> None:
    """Raise UsageError unless each tag is on some device."""
    for what, fix in await _unknown(api, tags):
        raise UsageError(what, fix=fix)


async def _unknown(api: OperatorApi, tags: Collection[str]) -> list[tuple[str, str]]:
    """Return for each tag that no device has what is wrong, and what to do."""
    known = [row["tag"] for row in await api.call("GET", "device-tags")] if tags else []
    listed = ", ".join(known[:_SHOWN]) + (", …" if len(known) > _SHOWN else "")
    found = []
    for one in tags:
        if one not in known:
            meant = nearest(one, known)
            fix = f"tags in use: {listed}" if known else "give devices tags: cert-ctrl plane tag DEVICE --add TAG"
            found.append((f"no device has the tag {one_line(one)!r}", f"did you mean {meant}? {fix}" if meant else fix))
    return found
