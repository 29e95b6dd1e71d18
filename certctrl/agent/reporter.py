"""Report the agent's status as one plain dict, for `status`, systemd and the disk.

Health is derived here only: *stale* if the plane has not answered for a while, *degraded* if an operator is needed,
otherwise *healthy*. The file is written on changes and every five minutes, without fsync.
"""

from __future__ import annotations

import os
from typing import Any

import trio

import certctrl
from certctrl.agent.context import Agent
from certctrl.agent.expiry import Urgency, find_expiring
from certctrl.agent.host_keys import awaited
from certctrl.agent.log_lines import Line, log_line
from certctrl.agent.lost import report_lost
from certctrl.agent.memory import release_memory
from certctrl.agent.systemd import Notifier
from certctrl.errors import DiskError
from certctrl.install.deploy.retry_table import ITEM
from certctrl.install.plan.retries import is_quarantined
from certctrl.model.records import RetryKind
from certctrl.model.signals import to_wire
from certctrl.model.status import Health
from certctrl.protocol.state import State
from certctrl.text import one_line

WRITE_EVERY = 300.0
"""Seconds after which the status file is written again even without a relevant change."""
REPORT_INTERVAL = 1.0
STALE_INTERVALS = 10
NOTHING_NEW = 204
"""Status of a poll without signals."""
BURST = 50
"""Pending signals above which memory is returned to the system afterwards."""
MIN_STALE = 120.0


def stale_after(agent: Agent) -> float:
    """Return the seconds without an answer of the plane after which health is stale."""
    settings = agent.config.application
    return max(MIN_STALE, STALE_INTERVALS * (settings.poll_interval_ms / 1000 + settings.long_poll_wait_seconds))


def is_stale(agent: Agent) -> bool:
    """Return whether the plane has not answered for too long."""
    answered_at = agent.session.last_answer_at
    since = answered_at if answered_at is not None else agent.started_mono
    return trio.current_time() - since > stale_after(agent)


def current_problems(agent: Agent) -> list[dict[str, Any]]:
    """Return the problems for the operator: reported ones, the breaker, expiry."""
    now = agent.wall_now()
    problems = [problem.shown() for problem in agent.problems.values()]
    if agent.session.breaker_open:
        problems.append(
            {
                "what": f"circuit breaker open after {agent.session.failures} failures",
                "since": now,
                "fix": "fix plane connectivity, then `cert-ctrl poll-now`",
            }
        )
    for finding in find_expiring(agent.installer.records.values(), agent.config.application, now):
        days = finding.remaining / 86_400
        what = "has expired" if finding.urgency is Urgency.EXPIRED else f"expires in {days:.1f} days"
        record = finding.record
        problems.append(
            {
                "what": f"{record.facts} {what}",
                "since": now,
                "fix": f"cert-ctrl renew --domain {record.facts.domains[0] if record.facts.domains else record.name}",
            }
        )
    return problems


def stuck_items(agent: Agent) -> list[dict[str, Any]]:
    """Return each certificate and signal that fails or waits: what, why, when it is retried.

    ``waits``: it needs no operator, only the plane or time.
    """
    records, found = agent.installer.records, dict[str, dict[str, Any]]()
    retries = agent.installer.retries.rows().values()
    for retry in sorted(retries, key=lambda one: one.key != one.resource):
        record = records.get(int(retry.resource[5:])) if retry.resource.startswith("cert:") else None
        failing = record is not None and record.failing
        if retry.resource in found:  # a revocation of a certificate that fails
            found[retry.resource]["next_try_at"] = agent.installer.next_try_at(retry)
            continue
        if record is not None and failing:
            item = str(record.facts)
        elif retry.resource.startswith(ITEM):
            item = f"item {one_line(retry.resource.removeprefix(ITEM), 80)}"
        else:
            item = f"signal {retry.signal.type if retry.signal is not None else ''} {retry.resource}"
        found[retry.resource] = {
            "item": item,
            "reason": retry.last_error,
            "attempts": max(retry.failures, 1),
            "waits": not (failing or retry.attempts or retry.kind is RetryKind.DISK),
            "next_try_at": agent.installer.next_try_at(retry),
        }
    return list(found.values())


def held_certificates(agent: Agent) -> list[dict[str, Any]]:
    """Return the certificates that a rollback holds, and the renewal that waits, if there is one."""
    return [
        {"cert_id": one.cert_id, "name": one.name, "generation": one.generation, "staged": one.staged}
        for one in agent.installer.records.values()
        if one.held
    ]


def not_served(agent: Agent) -> list[dict[str, Any]]:
    """Return the certificates that an endpoint did not serve at the last look, and what it did instead."""
    records, wrong = agent.installer.records, agent.serving.wrong
    return [{"cert_id": i, "name": records[i].name, "what": what} for i, what in wrong.items() if i in records]


def health(agent: Agent, problems: list[dict[str, Any]], stuck: list[dict[str, Any]]) -> Health:
    """Return the health of this agent."""
    if is_stale(agent):
        return Health.STALE
    failing = any(not one["waits"] for one in stuck)
    return Health.DEGRADED if problems or failing else Health.HEALTHY


def snapshot(agent: Agent) -> dict[str, Any]:
    """Return the whole status as plain JSON."""
    session, settings = agent.session, agent.config.application
    report_lost(agent)
    problems, stuck = current_problems(agent), stuck_items(agent)
    return {
        "running": True,
        "pid": os.getpid(),
        "version": certctrl.__version__,
        "started_at": agent.started_at,
        "now": agent.wall_now(),
        "state": session.state.value,
        "server_url": settings.server_url,
        "device_id": agent.device_id,
        "poll": _poll(agent),
        "cursor": session.seen_cursor,
        "cursor_at": _wall(agent, session.cursor_at),
        "queue_depth": agent.inbox.depth,
        "token": {"expires_at": agent.tokens.expires_at()},
        "last_signal": agent.last_signal,
        "acks_pending": agent.inbox.acks_pending,
        "health": health(agent, problems, stuck).value,
        "problems": problems,
        "stuck": stuck,
        "held": held_certificates(agent),
        "not_served": not_served(agent),
        "awaited": awaited(agent),
        "idle_items": [{"item": item, "reason": why} for item, why in agent.idle_items.items()],
        "quarantined": [
            to_wire(retry.signal) | {"reason": retry.last_error, "attempts": retry.attempts}
            for retry in agent.installer.retries.signals()
            if retry.signal is not None and is_quarantined(retry, settings)
        ],
        "counters": {
            "polls": dict(agent.counters.polls),
            "signals": {f"{kind} {outcome}": count for (kind, outcome), count in agent.counters.signals.items()},
            "token_refreshes": dict(agent.counters.token_refreshes),
            "acks_sent": agent.counters.acks_sent,
        },
    }


def _wall(agent: Agent, moment: float | None) -> float | None:
    return None if moment is None else agent.wall_now() + (moment - trio.current_time())


def _poll(agent: Agent) -> dict[str, Any]:
    session, settings = agent.session, agent.config.application
    return {
        "mode": settings.poll_mode,
        "interval_ms": settings.poll_interval_ms,
        "last_at": _wall(agent, session.last_poll_at),
        "last_code": session.last_poll_code,
        "last_text": session.last_poll_text,
        "next_at": _wall(agent, session.next_poll_at),
        "last_retry_after": session.last_retry_after,
        "failures": session.failures,
        "breaker_open": session.breaker_open,
        **({} if agent.push is None else {"transport": agent.push.view()}),
    }


async def report_forever(agent: Agent, notifier: Notifier) -> None:
    """Write the status on changes and log each change of health, until cancelled."""
    was, written, last = Health.HEALTHY.value, -WRITE_EVERY, ""
    deepest = BURST  # a start leaves as much free memory behind as a burst
    while True:
        status = snapshot(agent)
        if status["health"] != was:
            if status["health"] == Health.HEALTHY:
                log_line(agent.log, Line.HEALTH_BACK, was=was)
            else:
                what = "; ".join(problem["what"] for problem in status["problems"]) or "see stuck items"
                log_line(agent.log, Line.HEALTH_CHANGED, health=status["health"], was=was, problems=what)
            was = status["health"]
            notifier.status(f"{was}; {status['poll']['last_text'] or 'not polled yet'}")
        essence = f"{was}{status['state'] == State.ERROR.value}{status['poll']['last_text']}{status['stuck']}"
        if essence != last or trio.current_time() - written >= WRITE_EVERY:
            last, written = essence, trio.current_time()
            await save_status(agent, status)
        deepest = max(deepest, agent.inbox.depth)
        if deepest >= BURST and agent.inbox.depth == 0 and agent.session.last_poll_code == NOTHING_NEW:
            deepest = 0
            release_memory()
        await agent.wait_for_status_change(REPORT_INTERVAL, WRITE_EVERY)


async def save_status(agent: Agent, status: dict[str, Any]) -> None:
    """Write ``state/status.json``; a failed write is ignored."""
    try:
        await agent.offload(agent.store.installed.save_status, status)
    except DiskError:
        return
