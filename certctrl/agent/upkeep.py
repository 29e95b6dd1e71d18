"""Small services of the daemon: the access token kept fresh, metrics while they are switched on."""

from __future__ import annotations

from collections.abc import Collection

import trio

from certctrl.agent.alerts import forget_alerts
from certctrl.agent.context import Agent
from certctrl.agent.disk import tried
from certctrl.agent.installs import converge_in_force
from certctrl.agent.messages import Line, say
from certctrl.errors import NotRegisteredError
from certctrl.model.plan import OutcomeKind
from certctrl.model.signals import CertRenewed
from certctrl.model.status import Stop, StopReason
from certctrl.protocol.wire import ack_event

LOOK_EVERY = 300.0
"""Longest time between two looks for something that waits for the window; when one is known, until its turn."""


async def keep_tokens(agent: Agent) -> None:
    """Keep the access token fresh until cancelled; a refused refresh ends the session."""
    try:
        await agent.tokens.keep_token_fresh()
    except NotRegisteredError as error:
        agent.figures.token_refreshes["refused"] += 1
        agent.stop_with(Stop(StopReason.REFRESH_REFUSED, str(error)))


async def keep_window(agent: Agent) -> None:
    """Switch what waits for the maintenance window in its turn, and tell the plane how it went, until cancelled."""
    while True:
        turns, now = agent.installer.window_turns(), agent.wall_now()
        pause = min([LOOK_EVERY, *(max(1.0, at - now) for at in turns.values())])
        await trio.sleep(pause)
        if due := [cert_id for cert_id, at in agent.installer.window_turns().items() if at <= agent.wall_now()]:
            await _switch(agent, due)


async def _switch(agent: Agent, due: Collection[int]) -> None:
    began = trio.current_time()
    outcomes = await converge_in_force(agent, (), due)
    milliseconds = round((trio.current_time() - began) * 1000)
    agent.lives_changed.set()
    for cert_id in due:
        record, outcome = agent.installer.records[cert_id], outcomes[cert_id]
        if outcome.kind is OutcomeKind.UNCHANGED or (outcome.ok and record.staged):
            continue  # there is news of it only when it was tried
        if outcome.ok:
            forget_alerts(agent, cert_id)
            say(agent.log, Line.CERT_UPDATED, cert_id=cert_id, name=record.name, serial=record.serial)
        else:
            delay = round(record.next_try_at - agent.wall_now())
            say(agent.log, Line.ROLLED_BACK, name=record.name, why=outcome.detail, delay=delay)
        # its signal was answered when it was staged
        signal = CertRenewed(ts_ms=int(agent.wall_now() * 1000), cert_id=cert_id)
        await tried(agent, agent.inbox.report(ack_event(signal, outcome, milliseconds)))


async def serve_metrics_while_on(agent: Agent) -> None:
    """Serve or write metrics if the configuration says so; trouble switches them off and nothing else."""
    settings = agent.config.application
    if not settings.metrics_listen and not settings.metrics_textfile:
        return
    from certctrl.agent.metrics import publish_metrics  # imports prometheus_client: only when switched on

    try:
        await publish_metrics(agent)
    except (OSError, ImportError) as error:
        say(agent.log, Line.METRICS_FAILED, why=error)
        agent.trouble("metrics", f"metrics are off: {error}", "correct metrics_listen or metrics_textfile")
