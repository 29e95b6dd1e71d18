"""``plane import``: store a certificate from elsewhere, with its key."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from certctrl.cli.output import write_error
from certctrl.cli.plane.connection import OperatorApi, call_plane, show
from certctrl.cli.plane.documents import joined
from certctrl.cli.plane.issue import Devices
from certctrl.cli.plane.rollouts import (
    Canary,
    InWaves,
    MaxFailures,
    Pause,
    Serial,
    Windows,
    print_started,
    refuse_rules,
    rules_of,
)
from certctrl.cli.plane.secrets import refuse_readable
from certctrl.errors import MaterialError, UsageError

MAX_BYTES = 512 * 1024
_MAX_PASSWORD = 4096

Cert = Annotated[str, typer.Option("--cert", metavar="FILE", help="The certificate in PEM, with or without its chain.")]
Key = Annotated[str, typer.Option("--key", metavar="FILE", help="Its private key, in PEM or DER; mode 0600.")]
Chains = Annotated[
    list[str] | None,
    typer.Option("--chain", metavar="FILE", help="CA certificates in PEM, any order; may be repeated."),
]
Pkcs12 = Annotated[
    str, typer.Option("--pkcs12", metavar="FILE", help="Certificate, key and chain in one PKCS#12 file, mode 0600.")
]
PasswordFile = Annotated[
    str,
    typer.Option(
        "--password-file",
        metavar="FILE",
        help="Password of the key or of the PKCS#12 file, in a file of mode 0600; -: stdin.",
    ),
]
Replaced = Annotated[
    str, typer.Option("--renews", metavar="ID|DOMAIN", help="The certificate that it renews, of any issuer.")
]


def import_certificate(
    ctx: typer.Context,
    cert: Cert = "",
    key: Key = "",
    chain: Chains = None,
    pkcs12: Pkcs12 = "",
    password_file: PasswordFile = "",
    device: Devices = None,
    renews: Replaced = "",
    rollout: InWaves = "",
    canary: Canary = "",
    max_failures: MaxFailures = 0,
    pause: Pause = "0s",
    window: Windows = None,
    serial: Serial = "",
) -> None:
    """Import a certificate with its key.

    Assigns it to devices, too. The chain is sorted, completed and checked. A certificate for the same names as an
    imported one renews it: its id and its devices stay. The control plane cannot renew an imported certificate; it
    warns a month before its expiry. With --rollout, the devices of the certificate that it renews get it in waves, each
    released by the proof of the one before: see plane rollout status.

    \b
    cert-ctrl plane import --data /var/lib/plane --cert www.pem --key www.key \\
        --chain ca.pem --device web-1
    cert-ctrl plane import --data /var/lib/plane --pkcs12 www.p12 \\
        --password-file password
    cert-ctrl plane import --data /var/lib/plane --cert www.pem --key www.key \\
        --rollout 1,10%,50% --pause 1h
    """
    rules = rules_of(rollout, canary, max_failures, pause, window, serial)
    _check(rules, is_rollout=bool(rollout))
    if bool(pkcs12) == bool(cert or key) or (not pkcs12 and not (cert and key)):
        raise UsageError("nothing to import", fix="give --cert FILE --key FILE, or --pkcs12 FILE")
    body = _body(cert, key, chain or (), pkcs12, _password(password_file))

    async def request(api: OperatorApi) -> Any:
        sent = body | {"device_ids": await api.receivers(device or ())}
        if renews:
            sent["cert_id"] = await api.certificate(renews)
        if rollout:
            return await api.call("POST", "rollouts", {"imported": sent} | rules)
        return await api.call("POST", "certificate-imports", sent)

    done = call_plane(ctx, request)
    row = done["certificate"] if rollout else done
    for note in row["notes"]:
        write_error(f"note: {note}")
    if rollout and done["waves"]:
        show(ctx, done, lambda: print_started(done, f"certificate {row['id']} ({row['domain_name']})"))
        return
    show(ctx, done, _imported(row))


def _imported(row: Mapping[str, Any]) -> str:
    devices = row["device_ids"]
    given = f", assigned to device {joined(devices)}" if devices else "; assign it with cert-ctrl plane assign"
    return f"imported certificate {row['id']} for {row['domain_name']}, valid until {row['not_after']}{given}"


def _check(rules: Mapping[str, Any], *, is_rollout: bool) -> None:
    """Raise UsageError for rules of a rollout that do not go together."""
    if not is_rollout:
        refuse_rules(rules, "add --rollout 1,10%")
    elif not rules["waves"]:
        raise UsageError("--rollout names no size of a wave", fix="--rollout 1,10%")


def _body(cert: str, key: str, chains: Sequence[str], pkcs12: str, password: bytes) -> dict[str, Any]:
    """Return the request with the contents of the files."""
    from certctrl.plane.ca.x509 import key_pem
    from certctrl.plane.certificates.imports import from_pkcs12, private_key

    extra = "\n".join(_read(file).decode("utf-8", "replace") for file in chains)
    try:
        if pkcs12:
            given = from_pkcs12(_read(pkcs12, secret=True), password)
            certificate, chain, private = given.certificate_pem, given.chain_pem + extra, given.private_key_pem
        else:
            private = key_pem(private_key(_read(key, secret=True), password)).decode()
            certificate, chain = _read(cert).decode("utf-8", "replace"), extra
    except MaterialError as error:
        raise UsageError(f"{pkcs12 or key}: {error}", fix=error.fix) from None
    return {"certificate_pem": certificate, "private_key_pem": private} | ({"chain_pem": chain} if chain else {})


def _read(file: str, *, secret: bool = False) -> bytes:
    """Return a file's content. Raises UsageError, also for a secret that other users can read."""
    try:
        with Path(file).open("rb") as opened:
            mode = stat.S_IMODE(os.fstat(opened.fileno()).st_mode)
            data = opened.read(MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror}", fix="give the right file") from None
    if secret:
        refuse_readable(mode, file, file)
    if len(data) > MAX_BYTES:
        raise UsageError(f"{file} has more than {MAX_BYTES} bytes", fix="give the file of one certificate")
    return data


def _password(file: str) -> bytes:
    """Return the first line of a file or of standard input; empty without one."""
    if not file:
        return b""
    data = sys.stdin.buffer.read(_MAX_PASSWORD) if file == "-" else _read(file, secret=True)[:_MAX_PASSWORD]
    line = data.split(b"\n", 1)[0].removesuffix(b"\r")
    if not line:
        raise UsageError(
            f"{'standard input' if file == '-' else file} has no password", fix="write it to the first line"
        )
    return line
