"""``plane issue``: issue or order a certificate, and wait for it."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from certctrl.cli.plane.connection import OperatorApi, call_plane, note_duplicates, show
from certctrl.cli.plane.documents import joined
from certctrl.cli.plane.orders import NoWait, wait_for_order

Devices = Annotated[
    list[str] | None, typer.Option("--device", metavar="ID|NAME", help="Assign it to this device; may be repeated.")
]


def issue(
    ctx: typer.Context,
    domains: Annotated[
        list[str],
        typer.Argument(metavar="DOMAIN...", help="DNS names or addresses; the first one is the primary name."),
    ],
    device: Devices = None,
    issuer: Annotated[
        str, typer.Option("--issuer", metavar="NAME", help="The issuer; default: by rule, otherwise builtin.")
    ] = "",
    key_type: Annotated[
        str,
        typer.Option(
            "--key-type", metavar="TYPE", help="ecdsa-p256, ecdsa-p384, rsa-2048, rsa-3072, rsa-4096 or ed25519."
        ),
    ] = "ecdsa-p256",
    validity: Annotated[
        int | None,
        typer.Option(
            "--validity-seconds", metavar="N", help="Validity; default: the control plane's setting, 90 days."
        ),
    ] = None,
    profile: Annotated[str, typer.Option("--profile", metavar="NAME", help="Profile of the CA.")] = "",
    must_staple: Annotated[
        bool, typer.Option("--must-staple", help="Have clients insist on a stapled OCSP response.")
    ] = False,
    reuse_key: Annotated[
        bool, typer.Option("--reuse-key", help="Keep the key when the certificate is renewed.")
    ] = False,
    no_wait: NoWait = False,
) -> None:
    """Issue a certificate and assign it to devices.

    Waits until its issuer has issued it, and notes what the CA says if an attempt fails. An interrupt ends the wait, not
    the order. Exit status: 0 issued, 1 the CA refuses it, 69 the order continues, but takes long.

    \b
    cert-ctrl plane issue --data /var/lib/plane www.example.com example.com --device web-1
    cert-ctrl plane issue --data /var/lib/plane www.example.com --issuer le --device web-1
    """

    async def request(api: OperatorApi) -> Any:
        body: dict[str, Any] = {"domain_name": domains[0], "sans": domains[1:], "key_type": key_type}
        body |= {"issuer": issuer, "profile": profile, "must_staple": must_staple, "reuse_key": reuse_key}
        body["device_ids"] = await api.devices(device or ())
        return await api.call("POST", "certificates", body | ({"validity_seconds": validity} if validity else {}))

    note_duplicates(domains)
    row = call_plane(ctx, request)
    if row["status"] == "pending":
        if no_wait or row["order_id"] is None:
            show(
                ctx,
                row,
                f"ordered certificate {row['id']} for {row['domain_name']} from issuer {row['issuer']}{_order(row)}",
            )
            return
        wait_for_order(ctx, row["order_id"])
        cert_id = row["id"]
        row = call_plane(ctx, lambda api: api.call("GET", f"certificates/{cert_id}"))
    given = (
        f", assigned to device {joined(row['device_ids'])}"
        if row["device_ids"]
        else "; assign it with cert-ctrl plane assign"
    )
    show(ctx, row, f"issued certificate {row['id']} for {row['domain_name']}, serial {row['serial_number']}{given}")


def _order(row: dict[str, Any]) -> str:
    return "" if row["order_id"] is None else f": order {row['order_id']}"
