"""``adopt``: find certificates in use on this host, and propose items that take them over in place."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from certctrl.cli.daemon_or_local import answered_yes, confirmed
from certctrl.cli.invocation import Invocation, invocation
from certctrl.cli.output import write_json, write_line
from certctrl.errors import ExitStatus

if TYPE_CHECKING:
    from certctrl.cli.adopting import Found, Installation
    from certctrl.install.adopt.proposal import Proposal

Paths = Annotated[
    list[str] | None,
    typer.Argument(metavar="[PATH]...", help="Further PEM files and directories, to take over without a reload."),
]
Configs = Annotated[
    list[str] | None,
    typer.Option(
        "--config",
        metavar="SERVICE=PATH",
        help="Read only the given configurations, of nginx, apache, haproxy, postfix, dovecot and certbot (its "
        "directory); may be repeated. Default: the usual ones on this host.",
    ),
]
Reloads = Annotated[
    list[str] | None,
    typer.Option(
        "--reload",
        metavar="SERVICE=COMMAND",
        help="Command that reloads a service; may be repeated. Default: by systemctl.",
    ),
]


def adopt(
    ctx: typer.Context,
    paths: Paths = None,
    config: Configs = None,
    reload: Reloads = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the proposal; write and ask nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> int:
    """Find certificates in use on this host, and propose items that take them over.

    Reads the configuration of nginx, Apache, HAProxy, Postfix and Dovecot with its includes, and certbot's. Shows each
    certificate, which services read it, and the items that would replace its files, check, reload and probe. After
    confirmation, adds them to installs.local.json and their commands to policy.json, and changes nothing else: files
    are replaced once a daemon is reloaded, and the control plane has a certificate for this host. Running it again
    adds only what is new.

    Run it as root: configuration and keys are read with the operator's rights, only to compare a key with its
    certificate. Whether the agent may write a file is judged with its rights.

    Exit status: 0 written, or nothing to add, 1 not confirmed, or no certificate can be taken over, 2 confirmation is
    needed, but stdin is not a terminal.

    \b
    cert-ctrl adopt --dry-run
    cert-ctrl -c /etc/cert-ctrl adopt /srv/tls
    cert-ctrl adopt --config nginx=/opt/nginx/conf/nginx.conf \\
        --reload 'nginx=/opt/nginx/sbin/nginx -s reload'
    """
    from certctrl.cli import adopting

    invoked = invocation(ctx)
    configs, reloads = adopting.configs_of(config or ()), adopting.reloads_of(reload or ())
    found = adopting.search([os.path.abspath(path) for path in paths or ()], configs)
    place = adopting.installation(invoked.layout(), found, reloads)
    return _propose(invoked, found, place, yes=yes, dry_run=dry_run, as_json=as_json)


def _propose(invoked: Invocation, found: Found, place: Installation, *, yes: bool, dry_run: bool, as_json: bool) -> int:
    """Show the proposal, ask, and write it; return the exit status."""
    from certctrl.agent.clock import wall_now
    from certctrl.cli import adopt_view, adopting
    from certctrl.install.adopt.proposal import propose

    proposal = propose(found.certificates, place.facts)
    adopting.checked_policy(place, proposal)  # before a question is asked
    steps = adopt_view.following(found, place, proposal, adopting.device_name(place.layout))
    if not as_json:
        adopt_view.show(found, place, proposal, wall_now())
    is_confirmed = bool(proposal.added) and not dry_run and (yes or _confirmed(place, as_json))
    written = adopting.write(place, proposal) if is_confirmed else []
    if as_json:
        write_json(adopt_view.as_json(found, place, proposal, written, steps))
    else:
        _show_end(place, proposal, written, steps)
    if proposal.added and not (is_confirmed or dry_run):
        if not (yes or sys.stdin.isatty()):
            confirmed("")  # raises the error for a missing terminal
        return ExitStatus.FAILED
    return ExitStatus.FAILED if proposal.left and not proposal.takeovers else ExitStatus.DONE


def _confirmed(place: Installation, as_json: bool) -> bool:
    if not sys.stdin.isatty():
        return False
    return answered_yes(f"Write this to {place.layout.root}? Nothing else is changed.")


def _show_end(place: Installation, proposal: Proposal, written: list[str], steps: list[str]) -> None:
    write_line()
    if not proposal.added:
        write_line("Nothing to add.")
    for path in written:
        write_line(f"Wrote {path}")
    if steps:
        write_line("Next:" if written else "Afterwards:")
    for number, step in enumerate(steps, start=1):
        write_line(f"  {number}. {step}")
