"""``plane issue``: issue or order a certificate, and wait for it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from certctrl.cli.plane.connection import OperatorApi, Yes, call_plane, note_duplicates, show
from certctrl.cli.plane.documents import joined
from certctrl.cli.plane.from_file import issue_from_file
from certctrl.cli.plane.orders import NoWait, wait_for_order
from certctrl.errors import ExitStatus, UsageError

Devices = Annotated[
    list[str] | None, typer.Option("--device", metavar="ID|NAME", help="Assign it to this device; may be repeated.")
]


Domains = Annotated[
    list[str] | None,
    typer.Argument(metavar="DOMAIN...", help="DNS names or addresses; the first one is the primary name."),
]
IssuerName = Annotated[
    str, typer.Option("--issuer", metavar="NAME", help="The issuer; default: by rule, otherwise builtin.")
]
KeyType = Annotated[
    str,
    typer.Option("--key-type", metavar="TYPE", help="ecdsa-p256, ecdsa-p384, rsa-2048, rsa-3072, rsa-4096 or ed25519."),
]
Validity = Annotated[
    int | None,
    typer.Option("--validity-seconds", metavar="N", help="Validity; default: the control plane's setting, 90 days."),
]
Profile = Annotated[str, typer.Option("--profile", metavar="NAME", help="Profile of the CA.")]
MustStaple = Annotated[bool, typer.Option("--must-staple", help="Make clients require a stapled OCSP response.")]
Key = Annotated[
    str,
    typer.Option(
        "--key",
        metavar="WHERE",
        help="Where the private key is made: device (on the hosts, which keep it), plane, or auto: on the hosts if all of "
        "them can.",
    ),
]
FromFile = Annotated[
    Path | None,
    typer.Option(
        "--from-file", metavar="FILE", help="Issue the certificates of a CSV or JSON file that are not there yet."
    ),
]
ReuseKey = Annotated[bool, typer.Option("--reuse-key", help="Keep the key when the certificate is renewed.")]


def issue(
    ctx: typer.Context,
    domains: Domains = None,
    device: Devices = None,
    issuer: IssuerName = "",
    key_type: KeyType = "ecdsa-p256",
    validity: Validity = None,
    profile: Profile = "",
    must_staple: MustStaple = False,
    reuse_key: ReuseKey = False,
    key: Key = "auto",
    no_wait: NoWait = False,
    from_file: FromFile = None,
    yes: Yes = False,
) -> int:
    """Issue a certificate and assign it to devices.

    Waits until its issuer has issued it, and prints the CA's error if an attempt fails. An interrupt ends the wait, not
    the order. With --from-file, checks the whole file first and asks for confirmation on a terminal; repeating it
    issues nothing twice. Exit status: 0 issued, 1 refused by the CA, 69 the order takes long, but continues.

    \b
    cert-ctrl plane issue --data /var/lib/plane www.example.com --device web-1
    cert-ctrl plane issue --data /var/lib/plane www.example.com example.com \\
        --issuer le --device web-1
    cert-ctrl plane issue --data /var/lib/plane --from-file certificates.csv
    """
    options: dict[str, Any] = {"key_type": key_type, "issuer": issuer, "profile": profile}
    options |= {"must_staple": must_staple, "reuse_key": reuse_key, "key_origin": key} | (
        {"validity_seconds": validity} if validity else {}
    )
    if from_file is not None:
        if domains or device:
            raise UsageError(
                "--from-file cannot be combined with DOMAIN or --device", fix="leave DOMAIN and --device out"
            )
        return issue_from_file(ctx, from_file, options, yes=yes)
    if not domains:
        raise UsageError("no domain given", fix="cert-ctrl plane issue DOMAIN, or --from-file FILE")
    body: dict[str, Any] = {"domain_name": domains[0], "sans": domains[1:], **options}

    async def request(api: OperatorApi) -> Any:
        return await api.call("POST", "certificates", body | {"device_ids": await api.receivers(device or ())})

    note_duplicates(domains)
    row = call_plane(ctx, request)
    if row["status"] == "pending" and not no_wait and row["order_id"] is not None:
        row = _issued(ctx, row)
    show(ctx, row, _description(row))
    return ExitStatus.DONE


def _issued(ctx: typer.Context, row: dict[str, Any]) -> dict[str, Any]:
    """Wait for an ordered certificate and return it."""
    wait_for_order(ctx, row["order_id"])
    issued: dict[str, Any] = call_plane(ctx, lambda api: api.call("GET", f"certificates/{row['id']}"))
    return issued


def _description(row: dict[str, Any]) -> str:
    what = f"certificate {row['id']} for {row['domain_name']}"
    if row["status"] == "pending" and row["key_origin"] == "device" and not row["device_ids"]:
        assign = f"cert-ctrl plane assign {row['id']} --device ID"
        return f"recorded {what}; it is ordered once it is assigned to a device, which makes its key: {assign}"
    if row["status"] == "pending":
        order = "" if row["order_id"] is None else f": order {row['order_id']}"
        return f"ordered {what} from issuer {row['issuer']}{order}"
    given = f", assigned to device {joined(row['device_ids'])}"
    if not row["device_ids"]:
        given = "; assign it with cert-ctrl plane assign"
    if row["made_for_others"]:
        given += f"; its other devices have certificates of their own: {joined(row['made_for_others'])}"
    return f"issued {what}, serial {row['serial_number']}{given}"
