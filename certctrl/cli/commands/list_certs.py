"""``list-certs``: what is deployed on this host, from facts recorded at deploy time; nothing is parsed."""

from typing import Annotated

import typer

from certctrl.cli.certs_view import show_certificates
from certctrl.cli.invocation import invocation


def list_certs(
    ctx: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print all recorded facts as JSON.")] = False,
) -> None:
    """List the certificates on this host.

    Domain, serial, remaining life, where it is deployed, and what became of the last attempt. Reads only what was
    recorded when it was deployed: no lock, no network.

    \b
    cert-ctrl -c /etc/cert-ctrl list-certs
    cert-ctrl -c /etc/cert-ctrl list-certs --json
    """
    show_certificates(invocation(ctx), as_json=as_json)
