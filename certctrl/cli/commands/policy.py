"""``policy show`` and ``policy allow``: show and extend what the control plane may do on this host."""

from typing import Annotated, Any

import typer

from certctrl.cli import policy_changes
from certctrl.cli.app import GROUP
from certctrl.cli.daemon_or_local import confirmed
from certctrl.cli.invocation import Invocation, invocation
from certctrl.cli.output import write_error, write_json, write_line
from certctrl.errors import ExitStatus, UsageError

policy = typer.Typer(help="Show or extend what the control plane may do on this host.", **GROUP)


@policy.command("show")
def show(
    ctx: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print policy.json with all defaults.")] = False,
) -> None:
    """Show what the control plane may write and run on this host.

    \b
    cert-ctrl -c /etc/cert-ctrl policy show
    """
    from certctrl.store.config.files import load_policy

    layout = invocation(ctx).layout()
    found = load_policy(layout)
    if as_json:
        write_json(policy_changes.as_json(found))
        return
    for line in policy_changes.sentences(found, layout):
        write_line(line)


@policy.command("allow")
def allow(
    ctx: typer.Context,
    kind: Annotated[
        str | None, typer.Argument(metavar="[KIND]", help=f"One of: {', '.join(policy_changes.Kind)}.")
    ] = None,
    words: Annotated[list[str] | None, typer.Argument(metavar="[VALUE]...", help="The value to allow.")] = None,
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="Name of the command in policy.json.")
    ] = None,
    run_as: Annotated[str | None, typer.Option("--run-as", metavar="USER", help="User the command runs as.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print what is allowed now as JSON; changes go to standard error.")
    ] = False,
) -> int:
    """Extend what the control plane may do, after confirmation.

    Without arguments, asks about each item of the current plan that the policy refuses. With a KIND, adds that entry
    to policy.json. To apply it, reload a running daemon: systemctl reload cert-ctrl (SIGHUP).

    Exit status: 0 allowed, now or already, or nothing is refused, 1 nothing was added.

    \b
    cert-ctrl -c /etc/cert-ctrl policy allow
    cert-ctrl -c /etc/cert-ctrl policy allow path /etc/nginx/tls
    cert-ctrl -c /etc/cert-ctrl policy allow command --name nginx-reload -- \\
        /usr/sbin/nginx -s reload
    cert-ctrl -c /etc/cert-ctrl policy allow run-as www-data
    cert-ctrl -c /etc/cert-ctrl policy allow probe www.example.com:443
    cert-ctrl -c /etc/cert-ctrl policy allow trust-store \\
        /etc/pki/ca-trust/source/anchors /usr/bin/update-ca-trust
    """
    invoked = invocation(ctx)
    session = _Session(yes, as_json)
    if kind is None:
        status = _allow_refused(invoked, session)
    else:
        change = policy_changes.change_for(kind, list(words or ()), name=name, run_as=run_as)
        if absent := policy_changes.absent_account(change):
            raise UsageError(absent, fix="correct the name, or create the account first")
        status = _add(invoked, [change], session)
    if as_json:
        write_json({"file": str(invoked.layout().policy), "written": session.written, "allowed": session.allowed})
    return status


class _Session:
    """How to ask, and the confirmed changes."""

    def __init__(self, yes: bool, as_json: bool) -> None:
        self.yes = yes
        self.as_json = as_json
        self.allowed: list[str] = []
        """Lines of policy.json, including existing ones."""
        self.written = False

    def say(self, text: str) -> None:
        """Print a line; with --json on standard error."""
        (write_error if self.as_json else write_line)(text)


def _allow_refused(invoked: Invocation, session: _Session) -> int:
    """Ask about each refusal of the plan, and about those that appear once it is allowed."""
    from certctrl.cli.commands.plan import fetch_plan

    asked: list[Any] = []
    shown: list[str] = []
    allowed = False
    while True:
        refusals = fetch_plan(invoked)["refusals"]
        for line in _beyond_a_question(invoked, refusals):
            if line not in shown:
                shown.append(line)
                session.say(line)
        fresh = [change for change in _changes(refusals) if change not in asked]
        if not fresh:
            break
        asked += fresh
        allowed |= _add(invoked, fresh, session) == ExitStatus.DONE
    if not asked and not shown:
        session.say("The plan has no refusals.")
    return ExitStatus.DONE if allowed or not (asked or shown) else ExitStatus.FAILED


def _beyond_a_question(invoked: Invocation, refusals: list[dict[str, Any]]) -> list[str]:
    """Print the refusals that a confirmation cannot lift: they need a longer command, or another item."""
    lines = []
    for refusal in refusals:
        what = f"{refusal['what']}: {refusal['why']}"
        if refusal.get("fix"):
            lines += [f"Refused: {what}", f"To allow it: {invoked.with_directory(refusal['fix'])}"]
        elif not refusal.get("setting"):
            lines.append(f"Refused regardless of policy.json: {what}")
        elif absent := policy_changes.absent_account(policy_changes.change_for_refusal(refusal)):
            lines += [f"Refused: {what}", f"Cannot be allowed: {absent}"]
    return lines


def _changes(refusals: list[dict[str, Any]]) -> list[Any]:
    """Return the changes that would allow refused items, without duplicates."""
    changes = [policy_changes.change_for_refusal(refusal) for refusal in refusals if refusal.get("setting")]
    changes = [change for change in changes if not policy_changes.absent_account(change)]
    return [change for number, change in enumerate(changes) if change not in changes[:number]]


def _add(invoked: Invocation, changes: list[Any], session: _Session) -> int:
    """Ask about each change, then write policy.json once."""
    from certctrl.store.config.files import load_policy, save_policy
    from certctrl.store.disk.fs import RealFs

    layout = invoked.layout()
    before = policy_now = load_policy(layout)
    allowed: list[str] = []
    for change in changes:
        changed = policy_changes.apply_change(policy_now, change)
        if changed == policy_now:
            session.say(f"Already allowed: {change.allows}")
            allowed.append(change.line)
            continue
        session.say(f"Requested: {change.allows}")
        session.say(f"Adds to policy.json: {change.line}")
        if absent := policy_changes.absent_program(change):
            write_error(f"note: {absent}")
        if session.yes or confirmed("Allow this?"):
            policy_now = changed
            allowed.append(change.line)
    session.allowed += allowed
    if policy_now != before:
        save_policy(RealFs(), layout, policy_now)
        session.written = True
        session.say(f"Wrote {layout.policy}; reload a running daemon to apply it: systemctl reload cert-ctrl")
    return ExitStatus.DONE if allowed else ExitStatus.FAILED
