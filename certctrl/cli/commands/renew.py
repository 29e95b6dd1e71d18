"""``renew``: request a new certificate; a signal announces it."""

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
PAUSE_SECONDS = 1.5  # the plane allows one poll per second
POLL_SECONDS = 75.0


def renew(
    ctx: typer.Context,
    domain: Annotated[str, typer.Option("--domain", metavar="NAME", help="A domain name of the certificate.")],
    wait: Annotated[
        float, typer.Option("--wait", metavar="SECONDS", help="Wait this long until it is deployed; 0: do not wait.")
    ] = 0.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> int:
    """Request a new certificate from the control plane.

    The control plane may issue it later. The daemon's next poll, or `poll-now`, then fetches and deploys it. With
    --wait, this command polls and waits until it is deployed on this host.

    Exit status: 0 requested (with --wait: deployed), 1 not deployed in time.

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
        write_line(f"Renewal of {result['name']} requested; not deployed within {wait:g} s")
    else:
        write_line(f"Renewal of {result['name']} requested; the next poll after it is issued fetches it")
    return ExitStatus.FAILED if wait > 0 and not serial else ExitStatus.DONE


def _serial(invoked: Invocation, domain: str) -> str:
    """Return the deployed serial of a domain; empty if there is none."""
    from certctrl.cli.facts import certificates, covers

    return next((row["serial"] for row in certificates(invoked.layout()) if covers(row, domain)), "")


def _await_new(invoked: Invocation, cert_id: int, before: str, seconds: float) -> str | None:
    """Return the serial that replaced ``before``, or None after ``seconds``."""
    from certctrl.cli.facts import certificates

    deadline = time.monotonic() + seconds
    while True:
        for row in certificates(invoked.layout()):
            if row["cert_id"] == cert_id and row["serial"] != before:
                return str(row["serial"])
        if time.monotonic() >= deadline:
            return None
        _poll_quietly(invoked)
        time.sleep(PAUSE_SECONDS)


def _poll_quietly(invoked: Invocation) -> None:
    """Poll once; ignore an unreachable plane."""

    async def local(root: Path) -> dict[str, Any]:
        from certctrl.agent import oneshot

        return await oneshot.poll_once(root)

    try:
        daemon_or_local(invoked, "poll-now", local, seconds=POLL_SECONDS)
    except TransportError:
        return
