"""Check the health of the daemon, and the refused items of the plan, with or without a daemon."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import trio

from certctrl.cli.control import ask
from certctrl.cli.doctor.finding import CheckContext, Finding, Report, fail, failed, ok, warn
from certctrl.cli.facts import gather
from certctrl.errors import CertctrlError
from certctrl.model.plan import LOCAL_PREFIX
from certctrl.model.status import Health

PLAN_SECONDS = 30.0


def daemon_findings(context: CheckContext) -> Iterator[Finding]:
    """Yield the health of the daemon; a warning if it is not running."""
    facts = gather(context.layout)
    if not facts["running"]:
        what = f"not running ({facts['stopped']})" if facts.get("stopped") else "not running"
        yield warn("daemon", what, "systemctl start cert-ctrl, or cert-ctrl -c DIR --keep-running")
        return
    yield from _health(facts)
    yield from _push(facts)


async def check_plan(context: CheckContext, report: Report) -> None:
    """Report the refused items of the plan, from the daemon or computed here without its lock."""
    try:
        reply = await trio.to_thread.run_sync(lambda: ask(context.layout, "plan", seconds=PLAN_SECONDS))
        refusals = reply.data["refusals"] if reply is not None else await _refusals(context)
    except CertctrlError as error:
        report(failed("plan", error))
        return
    for refusal in refusals:
        report(warn("plan", f"refused: {refusal['what']}: {refusal['why']}", _refusal_fix(refusal)))


async def _refusals(context: CheckContext) -> list[dict[str, Any]]:
    from certctrl.agent.install_config import active_items
    from certctrl.agent.setup import root_helper
    from certctrl.install.installer import Installer
    from certctrl.install.plan.render import plan_json
    from certctrl.model.config import AgentConfig
    from certctrl.store.config.files import load_policy

    config = context.config or AgentConfig()
    plan = await Installer.preview(
        active_items(context.layout, context.store.installed),
        layout=context.layout,
        fs=context.fs,
        state=context.store.installed,
        policy=load_policy(context.layout),
        config=config,
        wall_now=context.now,
        offload=trio.to_thread.run_sync,
        helper=root_helper(config),
    )
    return list(plan_json(plan)["refusals"])


def _refusal_fix(refusal: dict[str, Any]) -> str:
    """Return the fix of a refusal: the policy line that allows it, or a change of the host or item."""
    if refusal.get("setting"):
        return f"cert-ctrl -c DIR policy allow (adds {refusal.get('line') or refusal['setting']})"
    if refusal.get("fix"):
        return str(refusal["fix"])
    local = str(refusal.get("item", "")).startswith(LOCAL_PREFIX)
    where = "in installs.local.json" if local else "in the install config on the control plane"
    return f"fix the reason on this host, or change the item {where}"


def _push(facts: dict[str, Any]) -> Iterator[Finding]:
    """Yield a finding about the transport in use, if the daemon is configured for push."""
    transport = (facts.get("poll") or {}).get("transport")
    if not transport:
        return
    if transport.get("uses") == "push":
        yield ok("push", "signals arrive on a push socket")
        return
    fix = "let proxies and load balancers pass WebSocket upgrades, or set poll_mode to long-poll"
    yield warn("push", f"no push, signals arrive by long polls: {transport.get('why')}", fix)


def _health(facts: dict[str, Any]) -> Iterator[Finding]:
    if facts.get("unresponsive"):
        yield fail("daemon", facts["unresponsive"], "check its log and the load of this host")
        return
    for problem in facts.get("problems", ()):
        yield fail("daemon", problem["what"], problem.get("fix") or "check the log")
    for item in facts.get("stuck", ()):
        yield fail(
            "daemon",
            f"stuck: {item['item']}: {item['reason']}",
            "fix the reason, then run cert-ctrl -c DIR apply --now",
        )
    if facts.get("health") == Health.STALE:
        yield fail(
            "daemon", "the control plane has not answered for too long", "fix the findings of dns, tls and clock"
        )
    elif facts.get("health") == Health.HEALTHY:
        yield ok("daemon", f"running, {facts.get('state')}, last poll: {facts['poll'].get('last_text') or 'none yet'}")
