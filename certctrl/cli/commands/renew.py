"""``renew``: ask the plane for a new certificate; it arrives as a signal."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from certctrl.cli.daemon_or_local import daemon_or_local
from certctrl.cli.invocation import invocation
from certctrl.cli.output import write_json, write_line
from certctrl.errors import ExitStatus, TransportError

if TYPE_CHECKING:
    from certctrl.cli.invocation import Invocation

ASK_SECONDS = 60.0
LOOK_SECONDS = 1.5  # each look is a poll, and the plane allows one a second
POLL_SECONDS = 75.0


def renew(
    ctx: typer.Context,
    domain: Annotated[str, typer.Option("--domain", metavar="NAME", help="A domain of the certificate.")],
    wait: Annotated[
        float, typer.Option("--wait", metavar="SECONDS", help="Wait this long for the new one to be deployed.")
    ] = 0.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> int:
    """Ask the control plane for a new certificate.

    The plane answers at once and issues when it can; the new material then arrives as a signal, by the daemon's
    next poll or `poll-now`. With --wait this command stays until it is deployed here.

    Exit status: 0 asked for (with --wait: deployed), 1 not deployed in time.

    \b
    cert-ctrl -c /etc/cert-ctrl renew --domain www.example.com
    cert-ctrl -c /etc/cert-ctrl renew --domain www.example.com --wait 120
    """

    async def local(root: Path) -> dict[str, Any]:
        from certctrl.agent import oneshot

        return await oneshot.renew(root, domain)

    invoked = invocation(ctx)
    before = _serial(invoked, domain)
    result: dict[str, Any] = daemon_or_local(invoked, "renew", local, seconds=ASK_SECONDS, domain=domain)
    serial = _await_new(invoked, result["cert_id"], before, wait) if wait > 0 else None
    if as_json:
        write_json(result | ({"serial": serial} if wait > 0 else {}))
    elif serial:
        write_line(f"Renewed {result['name']}: serial {serial}")
    elif wait > 0:
        write_line(f"Renewal of {result['name']} was asked for; nothing new was deployed within {wait:g} s")
    else:
        write_line(f"Renewal of {result['name']} asked for; the new certificate comes with a signal")
    return ExitStatus.FAILED if wait > 0 and not serial else ExitStatus.DONE


def _serial(invoked: Invocation, domain: str) -> str:
    """Return the serial that is deployed for a domain now; empty when there is none."""
    from certctrl.cli.facts import certificates, covers

    return next((row["serial"] for row in certificates(invoked.layout()) if covers(row, domain)), "")


def _await_new(invoked: Invocation, cert_id: int, before: str, seconds: float) -> str | None:
    """Return the serial that took the place of ``before``, None when none did in time."""
    from certctrl.cli.facts import certificates

    deadline = time.monotonic() + seconds
    while True:
        for row in certificates(invoked.layout()):
            if row["cert_id"] == cert_id and row["serial"] != before:
                return str(row["serial"])
        if time.monotonic() >= deadline:
            return None
        _poll_quietly(invoked)
        time.sleep(LOOK_SECONDS)


def _poll_quietly(invoked: Invocation) -> None:
    """Poll once more; the plane being away for a moment is what waiting is for."""

    async def local(root: Path) -> dict[str, Any]:
        from certctrl.agent import oneshot

        return await oneshot.poll_once(root)

    try:
        daemon_or_local(invoked, "poll-now", local, seconds=POLL_SECONDS)
    except TransportError:
        return
