"""``plane revoke``: revoke a certificate, here and at the CA that issued it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import typer

from certctrl.cli.output import short_serial, write_error
from certctrl.cli.plane.connection import OperatorApi, Yes, agreed, call_plane, show
from certctrl.errors import ExitStatus, UsageError

_CODES = ("unspecified", "keyCompromise", "affiliationChanged", "superseded", "cessationOfOperation")

ReasonCode = Annotated[
    str,
    typer.Option(
        "--reason-code", metavar="CODE", help=f"Reason for the CA and its clients (RFC 5280): {', '.join(_CODES)}."
    ),
]
Replace = Annotated[
    bool,
    typer.Option(
        "--replace",
        help="Issue a replacement with a new key first; devices keep the certificate until then. With keyCompromise it is "
        "revoked at its CA immediately.",
    ),
]
Serial = Annotated[
    str,
    typer.Option(
        "--serial", metavar="SERIAL", help="Revoke only an earlier certificate; devices keep the current one."
    ),
]

Confirmed = Annotated[
    bool,
    typer.Option("--confirmed", help="Stop retrying at the CA: you have revoked it there by other means."),
]


def revoke(
    ctx: typer.Context,
    certificate: Annotated[str, typer.Argument(metavar="ID|DOMAIN", help="The certificate.")],
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Reason, stored with the certificate.")] = "",
    reason_code: ReasonCode = "",
    replace: Replace = False,
    serial: Serial = "",
    confirmed: Confirmed = False,
    yes: Yes = False,
) -> int:
    """Revoke a certificate here and at its CA.

    Also destroys its key and notifies its devices. An unreachable CA is retried for days; repeat the command to retry
    now. plane certificates --json shows what the CA has confirmed. Asks for confirmation on a terminal. Exit status: 0
    revoked here, 1 not confirmed.

    \b
    cert-ctrl plane revoke --data /var/lib/plane www.example.com \\
        --reason-code keyCompromise --replace
    """
    if reason_code and reason_code not in _CODES:
        raise UsageError(f"--reason-code {reason_code!r} is unknown", fix=f"use one of {', '.join(_CODES)}")
    if serial and replace:
        raise UsageError(
            "--serial and --replace exclude each other", fix="replace the certificate, then revoke the serial"
        )

    if confirmed and (replace or reason or reason_code):
        raise UsageError("--confirmed can be combined with --serial only", fix="revoke first, then confirm")

    async def question(api: OperatorApi) -> str:
        cert_id = await api.certificate(certificate)
        return _question(await api.call("GET", f"certificates/{cert_id}"), serial, replace=replace)

    if not confirmed and not agreed(ctx, question, yes=yes):
        return ExitStatus.FAILED
    body: dict[str, Any] = {"reason": reason, "reason_code": reason_code, "serial_number": serial, "replace": replace}
    body["confirmed"] = confirmed

    async def request(api: OperatorApi) -> Any:
        path = f"certificates/{await api.certificate(certificate)}/revoke"
        return await api.call("POST", path, {name: value for name, value in body.items() if value})

    row = call_plane(ctx, request)
    for line in unfinished(row):
        write_error(f"note: {line}")
    text = f"certificate {row['id']} is revoked at its CA" if confirmed else _done(row, serial, replace=replace)
    show(ctx, row, text)
    return ExitStatus.DONE


def unfinished(row: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for each revocation of a certificate that its CA has not confirmed."""
    for one in row["revocations"]:
        serial, issuer = short_serial(one["serial_number"]), one["issuer"]
        why = "; ".join(part for part in (one["problem"], one["fix"]) if part)
        if one["state"] == "waiting":
            yield f"certificate {row['id']}, serial {serial}: not revoked until its replacement is issued"
        elif one["state"] == "manual":
            yield f"certificate {row['id']}, serial {serial}: {why}"
        elif one["state"] == "due":
            yield f"certificate {row['id']}, serial {serial}: not revoked at issuer {issuer} yet{f': {why}' if why else ''}"


def _question(row: Mapping[str, Any], serial: str, *, replace: bool) -> str:
    named = f"certificate {row['id']} ({row['domain_name']})"
    if serial:
        return f"Revoke the earlier serial number {serial} of {named}?"
    devices = ", ".join(map(str, row["device_ids"]))
    used = f"used by device {devices}" if devices else "used by no device"
    return f"Replace and revoke {named}, {used}?" if replace else f"Revoke {named}, {used}, and destroy its key?"


def _done(row: Mapping[str, Any], serial: str, *, replace: bool) -> str:
    named = f"certificate {row['id']} ({row['domain_name']})"
    states = {one["state"]: one for one in row["revocations"]}
    at_ca = f"; issuer {states['due']['issuer']} is asked to revoke it" if "due" in states else ""
    if serial:
        return f"revoked serial number {serial} of {named}{at_ca}"
    if not replace:
        return f"revoked {named}{at_ca}"
    if row["order_id"] is None:
        return f"replaced {named}, serial {row['serial_number']}, and revoked the previous one"
    later = "; the current one is revoked " + ("once it is issued" if "waiting" in states else "already")
    return f"ordered a replacement of {named}: order {row['order_id']}{at_ca or later}"
