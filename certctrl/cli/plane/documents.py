"""``plane install-config`` and ``plane ca``: install configs and CAs of devices."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from certctrl.cli.output import short_serial, write_error
from certctrl.cli.plane.connection import (
    GROUP,
    OneDevice,
    OperatorApi,
    OperatorCommand,
    SomeDevices,
    Yes,
    agreed,
    call_plane,
    show,
)
from certctrl.cli.plane.paging import ListCommand, show_list
from certctrl.errors import ExitStatus, PlanError, UsageError

_MAX_FILE_BYTES = 1024 * 1024

install_config = typer.Typer(help="Show or replace the install config of a device.", **GROUP)
ca = typer.Typer(help="Manage private CAs of devices and the plane's own CA.", **GROUP)

Ca = Annotated[str, typer.Argument(metavar="ID|NAME", help="The CA.")]


@install_config.command("put", cls=OperatorCommand)
def put(
    ctx: typer.Context,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help='JSON: a list of items, or {"installs": [...]}; -: stdin.')
    ],
    device: SomeDevices,
) -> None:
    """Replace the own items of devices and notify them.

    Items that they have from profiles stay. Checks all items first, including spelling; docs/items.md describes
    them. With several devices, --json prints a list.

    \b
    cert-ctrl plane install-config put --data /var/lib/plane nginx.json \\
        --device web-1
    """
    items = _checked_items(file, json_file(file))

    async def request(api: OperatorApi) -> Any:
        ids = await api.receivers(device)
        return [await api.operator.put_install_config(api.user, device_id, items) for device_id in ids]

    done = call_plane(ctx, request)
    lines = [f"device {one['user_device_id']} has install config version {one['version']}" for one in done]
    show(ctx, done[0] if len(done) == 1 else done, "; ".join(lines))


def _checked_items(file: Path, body: object) -> list[Any]:
    """Return the items, checked as the control plane will, before it is asked to store them. Raises UsageError."""
    from certctrl.protocol.wire.install_config import listed_items, new_items_from_operator
    from certctrl.protocol.wire.install_items import unknown_keys
    from certctrl.protocol.wire.reader import Misfit

    try:
        items = listed_items(body)
    except Misfit:
        what, fix = f"{file} does not contain a list of items", 'write [{"id": …, "type": "copy", …}, …]'
        raise UsageError(what, fix=fix) from None
    try:
        new_items_from_operator(items)
    except (Misfit, PlanError) as error:
        raise UsageError(f"{file}: {error}", fix=f"correct {file}; docs/items.md describes the items") from None
    for path in unknown_keys(items):
        write_error(f"note: {path} is unknown to this version; it is stored for newer agents")
    return items


@install_config.command("show", cls=OperatorCommand)
def show_config(
    ctx: typer.Context,
    device: OneDevice,
    own: Annotated[bool, typer.Option("--own", help="Only its own items, which put replaces.")] = False,
) -> None:
    """Print the install config of a device.

    It contains the items of its profiles and its own ones.

    \b
    cert-ctrl plane install-config show --data /var/lib/plane --device web-1
    """

    async def request(api: OperatorApi) -> Any:
        device_id = await api.device(device)
        if own:
            return await api.call("GET", f"devices/{device_id}/install-config", query={"own": "1"})
        return await api.operator.fetch_install_config(api.user, device_id)

    done = call_plane(ctx, request)
    show(ctx, done, json.dumps(done["installs"], ensure_ascii=True))


@ca.command("add", cls=OperatorCommand)
def add_ca(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the CA.")],
    file: Annotated[
        Path | None,
        typer.Argument(metavar="[FILE]", help="Its certificate (PEM); default: the control plane's root CA."),
    ] = None,
) -> None:
    """Add a CA certificate that devices can trust.

    \b
    cert-ctrl plane ca add --data /var/lib/plane lab lab-root.pem
    """
    pem = {} if file is None else {"ca_certificate_pem": _read(file).decode("utf-8", "replace")}

    async def request(api: OperatorApi) -> Any:
        return await api.call("POST", "cas", {"name": name} | pem)

    row = call_plane(ctx, request)
    show(ctx, row, f"added CA {row['id']} ({row['name']}), serial {row['serial_number']}")


@ca.command("list", cls=ListCommand)
def list_cas(ctx: typer.Context) -> None:
    """List the CAs and the devices that trust them.

    \b
    cert-ctrl plane ca list --data /var/lib/plane
    cert-ctrl plane ca list --data /var/lib/plane --match lab
    """

    async def request(api: OperatorApi) -> Any:
        return await api.call("GET", "cas")

    def cells(row: Mapping[str, Any]) -> tuple[str, ...]:
        serial, devices = short_serial(row["serial_number"]), ", ".join(map(str, row["device_ids"]))
        return str(row["id"]), row["name"], row["not_after"], serial, devices

    heads = ("id", "name", "not after", "serial", "devices")
    show_list(ctx, call_plane(ctx, request), heads, cells, key="id", none="no CAs")


@ca.command("assign", cls=OperatorCommand)
def assign_ca(ctx: typer.Context, authority: Ca, device: SomeDevices) -> None:
    """Make devices trust a CA.

    \b
    cert-ctrl plane ca assign --data /var/lib/plane lab --device web-1
    """

    async def request(api: OperatorApi) -> Any:
        ca_id, row = await api.authority(authority), {}
        for device_id in await api.receivers(device):
            row = await api.call("POST", f"devices/{device_id}/cas", {"ca_id": ca_id})
        return row

    row = call_plane(ctx, request)
    show(ctx, row, f"CA {row['id']} ({row['name']}) is assigned to device {joined(row['device_ids'])}")


@ca.command("unassign", cls=OperatorCommand)
def unassign_ca(ctx: typer.Context, authority: Ca, device: SomeDevices, yes: Yes = False) -> int:
    """Make devices stop trusting a CA.

    Asks for confirmation on a terminal. Exit status: 0 removed, 1 not confirmed. With several devices, --json prints
    a list.

    \b
    cert-ctrl plane ca unassign --data /var/lib/plane lab --device web-1
    """

    async def question(api: OperatorApi) -> str:
        ca_id, ids = await api.authority(authority), await api.devices(device)
        return f"Remove CA {ca_id} from the trust store of device {await api.shown_devices(ids)}?"

    async def request(api: OperatorApi) -> Any:
        ca_id, ids = await api.authority(authority), await api.devices(device)
        for device_id in ids:
            await api.call("DELETE", f"devices/{device_id}/cas/{ca_id}")
        return [{"ca_id": ca_id, "device_id": device_id} for device_id in ids]

    if not agreed(ctx, question, yes=yes):
        return ExitStatus.FAILED
    done = call_plane(ctx, request)
    ids = joined(one["device_id"] for one in done)
    show(ctx, done[0] if len(done) == 1 else done, f"CA {done[0]['ca_id']} is no longer assigned to device {ids}")
    return ExitStatus.DONE


def joined(ids: Iterable[int]) -> str:
    """Return ids as text."""
    return ", ".join(map(str, ids))


def parsed_json(text: bytes | str) -> Any:
    """Return a value that can be sent as JSON again: without NaN and infinity. Raises ValueError."""
    try:
        found = json.loads(text)
        json.dumps(found, allow_nan=False)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return found


def json_file(path: Path, *, example: str = "docs/getting-started.md") -> Any:
    """Return the value in a JSON file; ``-``: standard input. Raises UsageError."""
    try:
        return parsed_json(_read(path))
    except ValueError as error:
        raise UsageError(f"{path} is not JSON: {error}", fix=f"correct the file; {example} has an example") from None


def _read(path: Path) -> bytes:
    try:
        with open(0 if str(path) == "-" else path, "rb", closefd=str(path) != "-") as file:
            data = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}", fix="give a readable file") from None
    if len(data) > _MAX_FILE_BYTES:
        raise UsageError(f"{path} is larger than {_MAX_FILE_BYTES} bytes", fix="give a smaller file")
    return data
