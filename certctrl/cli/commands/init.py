"""``init``: create a config directory for a control plane."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from certctrl.cli.first_contact import ca_with_fingerprint, check_ca_file, check_fingerprint
from certctrl.cli.invocation import invocation, is_present
from certctrl.cli.output import write_error, write_json, write_line
from certctrl.errors import ConfigError, UsageError

if TYPE_CHECKING:
    from certctrl.store.layout import ConfigDir

MAX_CA_BYTES = 1 << 20
CA_FINGERPRINT = typer.Option(
    "--ca-fingerprint",
    metavar="SHA256",
    help="Fetch the CA from the control plane and use it if this is its fingerprint, or the start of it: 8 to 64 "
    "digits, better 16 or more. `plane serve` prints it.",
)


def init(
    ctx: typer.Context,
    server: Annotated[
        str | None,
        typer.Option(
            "--server", metavar="URL", help="URL of the control plane, https://…; default: the configured one."
        ),
    ] = None,
    ca: Annotated[
        Path | None,
        typer.Option("--ca", metavar="FILE", help="PEM file with the CA of the control plane's certificate; -: stdin."),
    ] = None,
    ca_fingerprint: Annotated[str | None, CA_FINGERPRINT] = None,
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="Name of this device; default: the host name.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print directory and URL as JSON.")] = False,
) -> None:
    """Create a config directory for a control plane.

    Creates DIR (0700) with the four configuration files, policy.json, and the directories for state, keys,
    certificates and logs. Running it again with the same options changes nothing; with --ca or --name, it adds
    them to a configuration without. It never overwrites a different configuration.

    Without --ca and --ca-fingerprint, the control plane's certificate must be from a CA that this host trusts.

    \b
    cert-ctrl -c /etc/cert-ctrl init --server https://plane.example.com \\
        --name web-1
    cert-ctrl -c /etc/cert-ctrl init --server https://10.0.0.5:8443 \\
        --ca plane-ca.pem
    cert-ctrl -c /etc/cert-ctrl init --server https://10.0.0.5:8443 \\
        --ca-fingerprint 9f86d081884c7d65
    cert-ctrl -c /etc/cert-ctrl init --ca plane-ca.pem
    """
    from certctrl.store.config.files import init_config_dir
    from certctrl.store.disk.fs import RealFs

    digits = None if ca_fingerprint is None else check_fingerprint(ca_fingerprint)
    ca_pem = None if ca is None else read_ca(ca)  # before root becomes the owner of the directory
    layout = invocation(ctx).layout(must_exist=False)
    url = _configured(layout) if server is None else server.rstrip("/")
    if digits is not None and ca_pem is not None:
        check_ca_file(ca_pem, digits, ca)
    elif digits is not None:
        ca_pem = ca_with_fingerprint(layout, url, digits)
    init_config_dir(RealFs(), layout, server_url=url, ca_pem=ca_pem, name=name)
    registered = layout.device_secret_key.exists()
    following = "restart a running daemon to use it" if registered else f"next: cert-ctrl -c {layout.root} register"
    if as_json:
        write_json({"directory": str(layout.root), "server_url": url, "registered": registered})
    else:
        write_line(f"{layout.root} is ready for {url}")
        write_line(following)
    if url.startswith("http:"):
        write_error("warning: plain http is for tests: the control plane must serve http on loopback, without TLS")


def _configured(layout: ConfigDir) -> str:
    """Return the configured URL of the control plane. Raises UsageError if there is none."""
    from certctrl.store.config.files import load_config

    if not is_present(layout.application):
        raise UsageError("no control plane given", fix="add --server URL")
    return load_config(layout, os.environ).config.application.server_url


def read_ca(path: Path) -> bytes:
    """Return the content of a PEM file. Raises ConfigError if it contains no certificate, or a private key.

    The file gets copied to one that others may read.
    """
    import ssl

    try:
        with open(0 if str(path) == "-" else path, "rb", closefd=str(path) != "-") as file:
            pem = file.read(MAX_CA_BYTES)
    except OSError as error:
        raise UsageError(f"cannot read --ca {path}: {error.strerror}", fix="give a readable PEM file") from None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(cadata=pem.decode("ascii"))
    except (ssl.SSLError, UnicodeDecodeError, ValueError):
        found = 0
    else:
        found = context.cert_store_stats()["x509"]
    if not found:
        fix = "export the CA certificate in PEM format (-----BEGIN CERTIFICATE-----)"
        raise ConfigError("contains no certificate in PEM format", file=str(path), fix=fix)
    if b"PRIVATE KEY-----" in pem:
        raise ConfigError("contains a private key", file=str(path), fix="give a file with the CA certificate only")
    return pem
