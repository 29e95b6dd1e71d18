"""Retry what failed or is staged without a signal: through the installer, with what is on disk.

Signals that failed are retried by the dispatcher. Both read the same table, `RetryTable`.
"""

from __future__ import annotations

from collections.abc import Collection

import trio

from certctrl.agent.alerts import clear_alerts, write_or_report
from certctrl.agent.context import Agent
from certctrl.agent.install_config import converge_active_items
from certctrl.agent.log_lines import Line, log_line
from certctrl.install.deploy.retry_table import cert_resource
from certctrl.model.plan import OutcomeKind
from certctrl.model.signals import CertRenewed
from certctrl.protocol.wire.signals import ack_event

CHECK_INTERVAL = 300.0
"""Seconds between two checks while nothing is known to be due earlier: wall clocks jump."""
LEAVE_TO_SIGNAL = 30.0
"""Seconds that a certificate is left to its signal in the inbox."""


async def retry_forever(agent: Agent) -> None:
    """Retry each certificate when it is due, or when its window opens, until cancelled."""
    while True:
        times, now = _retry_times(agent), agent.wall_now()
        pause = min([CHECK_INTERVAL, *(max(1.0, at - now) for at in times.values())])
        with trio.move_on_after(pause) as waited:
            await agent.installer.retries.changed.wait()
        if waited.cancelled_caught and (due := [one for one, at in times.items() if at <= agent.wall_now()]):
            await _retry(agent, due)


def _retry_times(agent: Agent) -> dict[int, float]:
    """Return when each certificate is to be retried here (wall-clock seconds)."""
    now, arriving = agent.wall_now(), {entry.signal.resource for entry in agent.inbox.entries()}
    failed = {
        cert_id: max(at, now + LEAVE_TO_SIGNAL) if cert_resource(cert_id) in arriving else at
        for cert_id, at in agent.installer.retry_times().items()
    }
    return agent.installer.window_times() | failed


async def _retry(agent: Agent, due: Collection[int]) -> None:
    began, retries = trio.current_time(), agent.installer.retries
    before = {cert_id: (agent.installer.records[cert_id], retries.of(cert_resource(cert_id))) for cert_id in due}
    outcomes = await converge_active_items(agent, (), due)
    milliseconds = round((trio.current_time() - began) * 1000)
    agent.lifetimes_changed.value = True
    for cert_id, (known, retry_before) in before.items():
        record, outcome, retry = agent.installer.records[cert_id], outcomes[cert_id], retries.of(cert_resource(cert_id))
        switched = record.generation != known.generation
        if retry is not None and retry is not retry_before:
            line = Line.ROLLED_BACK if outcome.kind is OutcomeKind.ROLLED_BACK else Line.STILL_FAILS
            delay = round(retry.next_try_at - agent.wall_now())
            log_line(agent.log, line, name=record.name, why=outcome.detail, delay=delay)
        if outcome.ok and (switched or (known.failing and not record.failing)):
            clear_alerts(agent, cert_id)
            log_line(agent.log, Line.CERT_UPDATED, cert_id=cert_id, name=record.name, serial=record.facts.serial)
        errors = [one.last_error if one is not None else "" for one in (retry_before, retry)]
        if switched or errors[0] != errors[1]:  # the same failure is reported once
            # its signal was answered when it was staged, or failed first
            signal = CertRenewed(ts_ms=int(agent.wall_now() * 1000), cert_id=cert_id)
            await write_or_report(agent, agent.inbox.report(ack_event(signal, outcome, milliseconds)))
