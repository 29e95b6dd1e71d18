"""``forget``: remove a certificate or CA from this host, even if the control plane assigns it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from certctrl.cli.commands.apply import APPLY_SECONDS, show_outcome
from certctrl.cli.daemon_or_local import confirmed, daemon_or_local
from certctrl.cli.invocation import invocation
from certctrl.cli.output import write_error
from certctrl.errors import ExitStatus, UsageError


def forget(
    ctx: typer.Context,
    domain: Annotated[
        str | None, typer.Option("--domain", metavar="NAME", help="A domain name of the certificate.")
    ] = None,
    ca: Annotated[int | None, typer.Option("--ca", metavar="ID", help="The id of a CA.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> int:
    """Remove a certificate or CA from this host, even if the control plane assigns it.

    A certificate that the control plane does not list stays in use until it is forgotten here. Its files, keys and
    unchanged copies are removed, and the commands of its items run. Asks for confirmation. Works without the control
    plane.

    Exit status: 0 removed, 1 not confirmed, or something of it is left.

    \b
    cert-ctrl -c /etc/cert-ctrl forget --domain old.example.com
    cert-ctrl -c /etc/cert-ctrl forget --ca 3 --yes
    """
    if (domain is None) == (ca is None):
        raise UsageError("name one certificate or one CA", fix="give either --domain or --ca")
    invoked = invocation(ctx)
    if not (yes or confirmed(f"Remove {domain or f'CA {ca}'} from this host?")):
        return ExitStatus.FAILED

    async def local(root: Path) -> dict[str, Any]:
        from certctrl.agent import oneshot

        return await oneshot.forget(root, domain=domain or "", ca_id=ca)

    fields: dict[str, Any] = {"domain": domain} if ca is None else {"ca_id": ca}
    result: dict[str, Any] = daemon_or_local(invoked, "forget", local, seconds=APPLY_SECONDS, **fields)
    if result.get("assigned"):
        write_error("warning: the control plane assigns it to this device: the next comparison fetches it again")
    return show_outcome(result, as_json=as_json)
