"""``policy show`` and ``policy allow``: what the control plane may do here; every addition is asked for first."""

from typing import Annotated, Any

import typer

from certctrl.cli import policy_changes
from certctrl.cli.app import GROUP
from certctrl.cli.daemon_or_local import confirmed
from certctrl.cli.invocation import Invocation, invocation
from certctrl.cli.output import write_json, write_line
from certctrl.errors import ExitStatus

policy = typer.Typer(help="Show or extend what the control plane may do on this host.", **GROUP)


@policy.command("show")
def show(
    ctx: typer.Context, as_json: Annotated[bool, typer.Option("--json", help="Print policy.json as it counts.")] = False
) -> None:
    """Show what the control plane may write and run on this host.

    \b
    cert-ctrl -c /etc/cert-ctrl policy show
    """
    from certctrl.store.config.files import load_policy

    layout = invocation(ctx).layout()
    found = load_policy(layout, require_root_owned=False)
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
    words: Annotated[list[str] | None, typer.Argument(metavar="[WORD]...", help="What to allow.")] = None,
    name: Annotated[str | None, typer.Option("--name", help="Name of the command in policy.json.")] = None,
    run_as: Annotated[str | None, typer.Option("--run-as", metavar="USER", help="User the command runs as.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> int:
    """Allow something to the control plane, after asking.

    Without arguments: goes through everything that the present plan is refused and asks for each. With a KIND:
    adds that one thing to policy.json. A running daemon reads it at SIGHUP (systemctl reload cert-ctrl).

    Exit status: 0 policy.json says it (now), 1 nothing was added.

    \b
    cert-ctrl -c /etc/cert-ctrl policy allow
    cert-ctrl -c /etc/cert-ctrl policy allow path /etc/nginx/tls
    cert-ctrl -c /etc/cert-ctrl policy allow command --name nginx-reload -- /usr/sbin/nginx -s reload
    cert-ctrl -c /etc/cert-ctrl policy allow run-as www-data
    cert-ctrl -c /etc/cert-ctrl policy allow trust-store /etc/pki/ca-trust/source/anchors /usr/bin/update-ca-trust
    """
    invoked = invocation(ctx)
    if kind is None:
        return _allow_refused(invoked, yes=yes)
    change = policy_changes.change_for(kind, list(words or ()), name=name, run_as=run_as)
    return _add(invoked, [change], yes=yes)


def _allow_refused(invoked: Invocation, *, yes: bool) -> int:
    """Go through the refusals of the plan, and through those that stood behind them, until nothing is new."""
    asked: list[Any] = []
    allowed = False
    while fresh := [change for change in _refused(invoked, quietly=bool(asked)) if change not in asked]:
        asked += fresh
        allowed |= _add(invoked, fresh, yes=yes) == ExitStatus.DONE
    if not asked:
        write_line("The policy refuses nothing that it could allow.")
    return ExitStatus.DONE if allowed or not asked else ExitStatus.FAILED


def _refused(invoked: Invocation, *, quietly: bool) -> list[Any]:
    """Return the changes that would end what the plan is refused now; each once."""
    from certctrl.cli.commands.plan import fetch_plan

    changes: list[Any] = []
    for refusal in fetch_plan(invoked)["refusals"]:
        if refusal.get("setting"):
            changes.append(policy_changes.change_for_refusal(refusal))
        elif not quietly:
            write_line(f"Refused whatever policy.json says: {refusal['what']}: {refusal['why']}")
    return [change for number, change in enumerate(changes) if change not in changes[:number]]


def _add(invoked: Invocation, changes: list[Any], *, yes: bool) -> int:
    """Ask for each change, write policy.json once, and say what is now in force."""
    from certctrl.store.config.files import load_policy, save_policy
    from certctrl.store.disk.fs import RealFs

    layout = invoked.layout()
    before = policy_now = load_policy(layout, require_root_owned=False)
    allowed = 0
    for change in changes:
        changed = policy_changes.apply_change(policy_now, change)
        if changed == policy_now:
            write_line(f"Allowed already: {change.allows}")
            allowed += 1
            continue
        write_line(f"Asked for: {change.allows}")
        write_line(f"Adds to policy.json: {change.line}")
        if yes or confirmed("Allow this?"):
            policy_now = changed
            allowed += 1
    if policy_now != before:
        save_policy(RealFs(), layout, policy_now)
        write_line(f"{layout.policy} is written; a running daemon reads it at SIGHUP (systemctl reload cert-ctrl)")
    return ExitStatus.DONE if allowed else ExitStatus.FAILED
