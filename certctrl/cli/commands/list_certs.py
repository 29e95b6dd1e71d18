"""``list-certs``: list the certificates on this host."""

from typing import Annotated

import typer

from certctrl.cli.certs_view import show_certificates
from certctrl.cli.invocation import invocation


def list_certs(
    ctx: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print all recorded facts as JSON.")] = False,
) -> None:
    """List the certificates on this host.

    Shows domain, serial, remaining lifetime, destinations and the last result, as recorded at deployment. Takes no
    lock and uses no network.

    \b
    cert-ctrl -c /etc/cert-ctrl list-certs
    cert-ctrl -c /etc/cert-ctrl list-certs --json
    """
    show_certificates(invocation(ctx), as_json=as_json)
