"""Retry what failed or is staged without a signal."""

from __future__ import annotations

from collections.abc import Collection

import trio

from certctrl.agent.alerts import forget_alerts
from certctrl.agent.context import Agent
from certctrl.agent.disk_health import tried
from certctrl.agent.install_config import converge_in_force
from certctrl.agent.log_lines import Line, say
from certctrl.model.plan import OutcomeKind
from certctrl.model.signals import CertRenewed
from certctrl.protocol.wire.signals import ack_event

LOOK_EVERY = 300.0
"""Longest time between two looks for something that has its turn by itself; when one is known, until then."""

LEAVE_TO_SIGNAL = 30.0
"""Seconds after a signal's own try at which it is looked whether it is done."""


async def keep_trying(agent: Agent) -> None:
    """Try again, each in its turn, what waits for the window or failed and no signal brings any more, until cancelled."""
    while True:
        now = agent.wall_now()
        pause = min([LOOK_EVERY, *(max(1.0, at - now) for at in _turns(agent).values())])
        with trio.move_on_after(pause):
            await agent.installer.owing()
        if due := [cert_id for cert_id, at in _turns(agent).items() if at <= agent.wall_now()]:
            await _try(agent, due)


def _turns(agent: Agent) -> dict[int, float]:
    """Return when each certificate is to be tried here; what has a signal is left to that for as long."""
    now, failed = agent.wall_now(), agent.installer.retry_turns()
    theirs = {entry.signal.resource: max(now, entry.next_try_at) + LEAVE_TO_SIGNAL for entry in agent.inbox.entries()}
    mine = {cert_id: max(at, theirs.get(f"cert:{cert_id}", at)) for cert_id, at in failed.items()}
    return agent.installer.window_turns() | mine


async def _try(agent: Agent, due: Collection[int]) -> None:
    began = trio.current_time()
    before = {cert_id: agent.installer.records[cert_id] for cert_id in due}
    outcomes = await converge_in_force(agent, (), due)
    milliseconds = round((trio.current_time() - began) * 1000)
    agent.lifetimes_changed.value = True
    for cert_id, known in before.items():
        record, outcome = agent.installer.records[cert_id], outcomes[cert_id]
        switched = record.generation != known.generation
        if record.attempts > known.attempts:
            line = Line.ROLLED_BACK if outcome.kind is OutcomeKind.ROLLED_BACK else Line.STILL_FAILS
            delay = round(record.next_try_at - agent.wall_now())
            say(agent.log, line, name=record.name, why=outcome.detail, delay=delay)
        if outcome.ok and (switched or (known.attempts and not record.attempts)):
            forget_alerts(agent, cert_id)
            say(agent.log, Line.CERT_UPDATED, cert_id=cert_id, name=record.name, serial=record.facts.serial)
        if switched or record.last_error != known.last_error:  # the same failure again is no news
            # its signal was answered when it was staged, or failed first
            signal = CertRenewed(ts_ms=int(agent.wall_now() * 1000), cert_id=cert_id)
            await tried(agent, agent.inbox.report(ack_event(signal, outcome, milliseconds)))
