"""Retry what failed or is staged without a signal: through the installer, with what is on disk.

Signals that failed are retried by the dispatcher. Both read the same table, `RetryTable`.
"""

from __future__ import annotations

from collections.abc import Collection

import trio

from certctrl.agent.alerts import clear_alerts, write_or_report
from certctrl.agent.context import Agent, wait_for_poll
from certctrl.agent.install_config import converge_active_items
from certctrl.agent.log_lines import Line, log_line
from certctrl.agent.lost import check_disk, remove_old_generations
from certctrl.install.deploy.retry_table import cert_resource
from certctrl.model.plan import OutcomeKind
from certctrl.model.signals import CaAssigned, CertRenewed, InstallUpdated
from certctrl.protocol.wire.signals import ack_event
from certctrl.text import one_line

CHECK_INTERVAL = 300.0
"""Seconds between two checks while nothing is known to be due earlier: records and windows change without a retry."""
LEAVE_TO_SIGNAL = 30.0
"""Seconds that a certificate is left to its signal in the inbox."""
CLOCK_INTERVAL = 30.0, 60.0
"""Least and most seconds between two checks of the wall clock."""
CLOCK_STEP = 2.0
"""Seconds by which a wall clock that was set differs from the expected time, at least; a slewed one differs by less."""


async def retry_forever(agent: Agent) -> None:
    """Retry each certificate when it is due, or when its window opens, until cancelled."""
    while True:
        began, turns = trio.current_time(), _retry_times(agent)
        pause = min([CHECK_INTERVAL, *(max(1.0, left) for left in turns.values())])
        with trio.move_on_after(pause) as waited:
            await agent.installer.retries.changed.wait()
        passed = trio.current_time() - began
        if waited.cancelled_caught:
            await check_disk(agent, contents=False)  # often, if something fails
            await _retry_all(agent, [one for one, left in turns.items() if left <= passed])


async def retry_due(agent: Agent) -> list[str]:
    """Retry everything that is due now, once; return why it still fails, one line each."""
    turns, retries = _retry_times(agent), agent.installer.retries
    await _retry_all(agent, [one for one, left in turns.items() if left <= 0])
    left = [retries.of(cert_resource(cert_id)) for cert_id in turns if cert_id != 0] + [*retries.of_items().values()]
    return [retry.last_error for retry in left if retry is not None and retry.signal is None]


async def _retry_all(agent: Agent, due: Collection[int]) -> None:
    if certificates := [cert_id for cert_id in due if cert_id != 0]:
        await _retry(agent, certificates)
    if 0 in due:
        await _retry_items(agent)


async def watch_clock(agent: Agent) -> None:
    """Detect that the wall clock was set or the host was suspended, until cancelled.

    Everything waits on clocks that cannot be set. But certificates expire and windows open by the wall clock, and the
    next run reads from disk when retries are due by it.
    """
    course = agent.wall_now() - trio.current_time()
    while True:
        await wait_for_poll(agent.polled, *CLOCK_INTERVAL)
        before, course = course, agent.wall_now() - trio.current_time()
        if abs(course - before) < CLOCK_STEP:
            continue
        log_line(agent.log, Line.CLOCK_SET, seconds=f"{course - before:+.0f}")
        agent.installer.retries.clock_was_set()
        agent.work_changed.value = agent.lifetimes_changed.value = agent.status_changed.value = True
        await write_or_report(agent, agent.installer.save_retries())


def _retry_times(agent: Agent) -> dict[int, float]:
    """Return the seconds until each certificate is retried here; id 0 stands for items without a certificate."""
    now, arriving = agent.wall_now(), {entry.signal.resource for entry in agent.inbox.entries()}
    failed = {
        cert_id: max(at, now + LEAVE_TO_SIGNAL) if cert_resource(cert_id) in arriving else at
        for cert_id, at in agent.installer.retry_times().items()
    }
    return {cert_id: at - now for cert_id, at in (agent.installer.window_times() | failed).items()}


async def _retry_items(agent: Agent) -> None:
    """Retry the items without a certificate; signals that failed because of them are due afterwards."""
    retries, before = agent.installer.retries, agent.installer.retries.of_items()
    await agent.installer.converge_all(agent.items)
    for item, retry in retries.of_items().items():
        if retry is not before.get(item):
            delay = round(agent.installer.next_try_at(retry) - agent.wall_now())
            log_line(agent.log, Line.STILL_FAILS, name=f"item {one_line(item)}", why=retry.last_error, delay=delay)
    if not retries.of_items():
        signals = [retry.signal for retry in retries.signals()]
        for resource in {one.resource for one in signals if isinstance(one, CaAssigned | InstallUpdated)}:
            agent.retry_now(resource)


async def _retry(agent: Agent, due: Collection[int]) -> None:
    began, retries = trio.current_time(), agent.installer.retries
    records = agent.installer.records
    batches = {records[cert_id].batch for cert_id in due} - {""}  # they are switched as a whole
    tried = [cert_id for cert_id, record in records.items() if cert_id in due or record.batch in batches]
    before = {cert_id: (records[cert_id], retries.of(cert_resource(cert_id))) for cert_id in tried}
    outcomes = await converge_active_items(agent, (), due)
    milliseconds = round((trio.current_time() - began) * 1000)
    agent.lifetimes_changed.value = True
    for cert_id, (known, retry_before) in before.items():
        if cert_id not in outcomes:  # another call has taken it out of the batch
            continue
        record, outcome, retry = agent.installer.records[cert_id], outcomes[cert_id], retries.of(cert_resource(cert_id))
        switched = record.generation != known.generation
        if retry is not None and retry is not retry_before:
            line = Line.ROLLED_BACK if outcome.kind is OutcomeKind.ROLLED_BACK else Line.STILL_FAILS
            delay = round(agent.installer.next_try_at(retry) - agent.wall_now())
            log_line(agent.log, line, name=record.name, why=outcome.detail, delay=delay)
        if outcome.ok and (switched or (known.failing and not record.failing)):
            clear_alerts(agent, cert_id)
            log_line(agent.log, Line.CERT_UPDATED, cert_id=cert_id, name=record.name, serial=record.facts.serial)
        errors = [one.last_error if one is not None else "" for one in (retry_before, retry)]
        if switched or errors[0] != errors[1]:  # the same failure is reported once
            # its signal was answered when it was staged, or failed first
            signal = CertRenewed(ts_ms=agent.plane.own_signal_ms(), cert_id=cert_id)
            await write_or_report(agent, agent.inbox.report(ack_event(signal, outcome, milliseconds)))
    await remove_old_generations(agent)
