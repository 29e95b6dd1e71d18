"""``plane``: run the reference control plane and operate it: issue, renew, revoke, assign, approve, …"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from certctrl.cli.output import table
from certctrl.cli.plane.alerts import alerts
from certctrl.cli.plane.approval import approve, deny
from certctrl.cli.plane.asking import ask
from certctrl.cli.plane.audit import audit
from certctrl.cli.plane.connection import (
    GROUP,
    OperatorApi,
    OperatorCommand,
    SomeDevices,
    Yes,
    agreed,
    call_plane,
    show,
)
from certctrl.cli.plane.database import backup, migrate_to, restore
from certctrl.cli.plane.documents import ca, install_config, joined
from certctrl.cli.plane.enrolment import enrolment_token
from certctrl.cli.plane.fleet import (
    After,
    Csv,
    Limit,
    OfReason,
    Search,
    Sort,
    States,
    causes,
    show_rows,
    wanted_rows,
)
from certctrl.cli.plane.importing import import_certificate
from certctrl.cli.plane.issue import issue
from certctrl.cli.plane.issuers import issuers
from certctrl.cli.plane.issuing_ca import constrain, show_ca
from certctrl.cli.plane.life import device as device_group
from certctrl.cli.plane.listing import certificates
from certctrl.cli.plane.operator_key import operator_key, rotate
from certctrl.cli.plane.operators import operator, token, whoami
from certctrl.cli.plane.orders import orders
from certctrl.cli.plane.paging import ListCommand
from certctrl.cli.plane.profiles import profile
from certctrl.cli.plane.renewing import renew
from certctrl.cli.plane.revocation import revoke
from certctrl.cli.plane.rollouts import rollout
from certctrl.cli.plane.serve import serve
from certctrl.cli.plane.setup import setup
from certctrl.cli.plane.status import status
from certctrl.cli.plane.tags import OfTag, tag_devices, tagged
from certctrl.cli.plane.tls import tls
from certctrl.cli.plane.together import together
from certctrl.errors import ExitStatus, UsageError
from certctrl.text import one_line

plane = typer.Typer(help="Run and operate the reference control plane.", **GROUP)
plane.command("setup")(setup)
plane.command("serve")(serve)
plane.command("migrate-to")(migrate_to)
plane.command("backup")(backup)
plane.command("restore")(restore)
plane.command(cls=OperatorCommand)(status)

Certificate = Annotated[str, typer.Argument(metavar="ID|DOMAIN", help="The certificate.")]


plane.command(cls=OperatorCommand)(issue)


plane.command(cls=OperatorCommand)(renew)
plane.command(cls=ListCommand)(together)
plane.command("import", cls=OperatorCommand)(import_certificate)


@plane.command("set-issuer", cls=OperatorCommand)
def set_issuer(
    ctx: typer.Context,
    certificate: Certificate,
    issuer: Annotated[str, typer.Argument(metavar="NAME", help="The issuer.")],
) -> None:
    """Change the issuer of a certificate.

    Its next renewal comes from the new issuer; its id and devices stay. A certificate that is not issued yet is ordered
    from the new issuer immediately.

    \b
    cert-ctrl plane set-issuer --data /var/lib/plane www.example.com le
    cert-ctrl plane renew --data /var/lib/plane www.example.com
    """

    async def request(api: OperatorApi) -> Any:
        return await api.call("PATCH", f"certificates/{await api.certificate(certificate)}", {"issuer": issuer})

    row = call_plane(ctx, request)
    ordered = f"is ordered from issuer {row['issuer']}: order {row['order_id']}"
    when = ordered if row["status"] == "pending" and row["order_id"] else f"is renewed by issuer {row['issuer']}"
    show(ctx, row, f"certificate {row['id']} ({row['domain_name']}) {when}")


plane.command(cls=OperatorCommand)(revoke)


@plane.command(cls=OperatorCommand)
def assign(ctx: typer.Context, certificate: Certificate, device: SomeDevices) -> None:
    """Assign a certificate to devices.

    \b
    cert-ctrl plane assign --data /var/lib/plane www.example.com --device web-1
    """

    async def request(api: OperatorApi) -> Any:
        cert_id, row = await api.certificate(certificate), {}
        for device_id in await api.receivers(device):
            row = await api.call("POST", f"devices/{device_id}/certificates", {"cert_id": cert_id})
        return row

    row = call_plane(ctx, request)
    show(ctx, row, f"certificate {row['id']} ({row['domain_name']}) is assigned to device {_ids(row)}")


@plane.command(cls=OperatorCommand)
def unassign(ctx: typer.Context, certificate: Certificate, device: SomeDevices, yes: Yes = False) -> int:
    """Remove a certificate from devices without revoking it.

    Asks for confirmation on a terminal. Exit status: 0 removed, 1 not confirmed. With several devices, --json prints
    a list.

    \b
    cert-ctrl plane unassign --data /var/lib/plane www.example.com --device web-1
    """

    async def question(api: OperatorApi) -> str:
        cert_id, ids = await api.certificate(certificate), await api.devices(device)
        name = one_line(str((await api.call("GET", f"certificates/{cert_id}"))["domain_name"]), 80)
        shown = await api.shown_devices(ids)
        return f"Unassign certificate {cert_id} ({name}) from device {shown}, whose agent then removes it?"

    async def request(api: OperatorApi) -> Any:
        cert_id, ids = await api.certificate(certificate), await api.devices(device)
        for device_id in ids:
            await api.operator.unassign(api.user, device_id, cert_id)
        return [{"cert_id": cert_id, "device_id": device_id} for device_id in ids]

    if not agreed(ctx, question, yes=yes):
        return ExitStatus.FAILED
    done = call_plane(ctx, request)
    ids = joined(one["device_id"] for one in done)
    text = f"certificate {done[0]['cert_id']} is no longer assigned to device {ids}"
    show(ctx, done[0] if len(done) == 1 else done, text)
    return ExitStatus.DONE


plane.command(cls=ListCommand)(causes)
plane.command(cls=OperatorCommand)(certificates)


@plane.command(cls=OperatorCommand)
def devices(
    ctx: typer.Context,
    outcomes: Annotated[
        str | None, typer.Option("--outcomes", metavar="ID|NAME", help="Show the outcomes that this device reported.")
    ] = None,
    tag: OfTag = None,
    agent_version: Annotated[
        str | None,
        typer.Option("--agent-version", metavar="VERSION", help="Only devices whose agent has this version."),
    ] = None,
    state: States = None,
    reason: OfReason = "",
    search: Search = "",
    sort: Sort = "",
    limit: Limit = None,
    after: After = "",
    csv: Csv = False,
) -> None:
    """List the devices, or the outcomes of one device.

    Shows who is online (a push socket is open now, or the last poll was within its wait), the version that the agent had
    at its last start, tags, last contact, waiting signals and the outcomes of the last day. plane status counts the
    versions. With --state, --reason, --search, --sort, --limit, --after or --csv it shows the state of each device, and
    why, instead.

    \b
    cert-ctrl plane devices --data /var/lib/plane
    cert-ctrl plane devices --data /var/lib/plane --state degraded --state stale
    cert-ctrl plane devices --data /var/lib/plane --tag web --tag env=prod
    cert-ctrl plane devices --data /var/lib/plane --agent-version 0.1.0
    cert-ctrl plane devices --data /var/lib/plane --agent-version 0.1.0 --csv
    cert-ctrl plane devices --data /var/lib/plane --outcomes web-1
    """
    if (wanted := wanted_rows(state, reason, search, sort, limit, after, csv=csv)) is not None:
        if outcomes is not None:
            raise UsageError(
                "--outcomes does not go with --state, --reason, --search, --sort, --limit, --after and --csv"
            )
        of_version = None if agent_version is None else lambda row, _: agent_version == (row["agent"] or "unknown")
        show_rows(ctx, "devices", wanted, tag, of_version)
        return
    if outcomes is not None and (tag or agent_version is not None):
        several = "--tag lists" if tag else "--agent-version lists"
        raise UsageError(f"--outcomes shows one device, {several} several", fix="leave one of them out")

    async def request(api: OperatorApi) -> Any:
        if outcomes is not None:
            return await api.call("GET", f"devices/{await api.device(outcomes)}/outcomes")
        found = await tagged(api, "devices", tag)
        return [row for row in found if agent_version in (None, row["app_version"] or "unknown")]

    rows = call_plane(ctx, request)
    show(ctx, rows, lambda: _outcomes(rows) if outcomes is not None else _devices(rows))


@plane.command("revoke-device", cls=OperatorCommand)
def revoke_device(
    ctx: typer.Context,
    device: Annotated[str, typer.Argument(metavar="ID|NAME", help="The device.")],
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Reason, sent to the device.")] = "",
    yes: Yes = False,
) -> int:
    """Revoke a device.

    Its agent stops until it is registered again. Asks for confirmation on a terminal. Exit status: 0 revoked, 1 not
    confirmed.

    \b
    cert-ctrl plane revoke-device --data /var/lib/plane web-1 --reason stolen
    """

    async def question(api: OperatorApi) -> str:
        return f"Revoke device {await api.shown_devices([await api.device(device)])}, whose agent then stops?"

    if not agreed(ctx, question, yes=yes):
        return ExitStatus.FAILED

    async def request(api: OperatorApi) -> Any:
        return await api.call("DELETE", f"devices/{await api.device(device)}", {"reason": reason})

    row = call_plane(ctx, request)
    show(ctx, row, f"device {row['id']} ({row['name']}) is revoked")
    return ExitStatus.DONE


plane.command("enrolment-token", cls=ListCommand)(enrolment_token)
plane.command(cls=OperatorCommand)(audit)
plane.command(cls=OperatorCommand)(ask)
plane.command("tag", cls=OperatorCommand)(tag_devices)
plane.command(cls=OperatorCommand)(approve)
plane.command(cls=OperatorCommand)(deny)
plane.command(cls=OperatorCommand)(whoami)
plane.add_typer(device_group, name="device")
plane.add_typer(operator, name="operator")
plane.add_typer(token, name="token")
plane.add_typer(operator_key, name="operator-key")
plane.add_typer(rotate, name="rotate")
plane.add_typer(issuers, name="issuers")
plane.add_typer(orders, name="orders")
plane.add_typer(install_config, name="install-config")
plane.add_typer(profile, name="profile")
plane.add_typer(rollout, name="rollout")
plane.add_typer(alerts, name="alerts")
ca.command("show", cls=OperatorCommand)(show_ca)
ca.command(cls=OperatorCommand)(constrain)
plane.add_typer(ca, name="ca")
plane.add_typer(tls, name="tls")


def _devices(rows: Sequence[dict[str, Any]]) -> None:
    heads = ["id", "name", "status", "online", "platform", "version", "last seen", "address", "waiting", "last day"]
    cells = [
        [
            str(row["id"]),
            row["name"],
            _status(row),
            _online(row),
            row["platform"],
            row["app_version"],
            row["last_seen_at"] or "never",
            row["last_address"],
            str(row["signals_waiting"]),
            ", ".join(f"{count} {kind}" for kind, count in sorted(row["outcomes"].items())),
        ]
        for row in rows
    ]
    if any(row.get("tags") for row in rows):  # which an older control plane does not know
        heads.append("tags")
        for cell, row in zip(cells, rows, strict=True):
            cell.append(", ".join(row["tags"]))
    table(heads, cells)


def _status(row: dict[str, Any]) -> str:
    """Return the status of a device; an older control plane knows less about it."""
    if row.get("decommissioned_at"):
        return "decommissioned"
    if row.get("replaced_hardware_seen_at"):
        return f"{row['status']}, replaced hardware runs"
    return f"{row['status']}, copied" if row["copies_suspected"] else str(row["status"])


def _online(row: dict[str, Any]) -> str:
    """Return whether a device is reachable now: since when by push, or by polls."""
    if row.get("connected_at"):
        return f"push since {row['connected_at']}"
    return "polls" if row.get("online") else "no"


def _outcomes(rows: Sequence[dict[str, Any]]) -> None:
    heads = ("at", "signal", "about", "outcome", "ms", "detail")
    cells = [
        (
            row["at"],
            row["signal"]["type"],
            " ".join(f"{name} {value}" for name, value in row["signal"]["ref"].items()),
            row["outcome"],
            str(row["duration_ms"]),
            row["detail"],
        )
        for row in rows
    ]
    table(heads, cells)


def _ids(row: dict[str, Any]) -> str:
    return joined(row["device_ids"])
