"""Send outcomes to the plane: oldest first, in batches, before the next poll (``docs/protocol.md``).

Outcomes that arrive during a long-poll or between two polls are sent without waiting for the next one, unless the plane
requested a pause.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import trio

import certctrl
from certctrl.agent.context import Agent
from certctrl.agent.features import features_of
from certctrl.agent.log_lines import Line, log_line
from certctrl.errors import CertctrlError, PlaneError
from certctrl.model.features import SERVING_REPORTS
from certctrl.net.control_plane import UnsupportedByPlane
from certctrl.protocol.events import AcksFailed, AcksSent, Event

BATCH = 100
NOT_ACCEPTED = frozenset({400, 413, 422})
"""Statuses with which a plane refuses a report itself."""
PAUSE = 0.2
"""Seconds that an outcome waits for others before they are sent together."""


async def flush_acks(agent: Agent) -> Event:
    """Send all pending acks, then what endpoints serve; each leaves memory once the plane accepts it, acks the disk later."""
    if dropped := agent.inbox.acks_dropped - agent.counters.acks_dropped:
        agent.counters.acks_dropped += dropped
        log_line(agent.log, Line.ACKS_DROPPED, count=dropped)
    while True:
        events, sent = agent.inbox.next_acks(BATCH), agent.inbox.sent
        if not events and SERVING_REPORTS in agent.plane.features:
            events, sent = agent.serving.next(BATCH), agent.serving.sent
        if not events:
            return AcksSent()
        try:
            await agent.authorized(partial(_post, agent, events))
        except UnsupportedByPlane as error:
            if agent.first_time("acks-unsupported"):
                log_line(agent.log, Line.ACKS_UNSUPPORTED, status=error.status)
        except CertctrlError as error:
            if sent == agent.serving.sent and isinstance(error, PlaneError) and error.status in NOT_ACCEPTED:
                sent(events)  # repeated once a day; nothing else may wait for them
                continue
            log_line(agent.log, Line.ACKS_FAILED, count=agent.inbox.acks_pending, why=error)
            return AcksFailed(str(error), error.retry_after if isinstance(error, PlaneError) else None)
        else:
            agent.counters.acks_sent += len(events)
            log_line(agent.log, Line.ACKS_SENT, count=len(events))
        sent(events)


async def send_meanwhile(agent: Agent) -> None:
    """Send new acks until cancelled or until the plane does not accept one; the next poll sends the rest."""
    while True:
        await agent.inbox.wait_for_ack()
        await trio.sleep(PAUSE)
        if isinstance(await flush_acks(agent), AcksFailed):
            return


async def _post(agent: Agent, notices: list[dict[str, Any]], token: str) -> None:
    if agent.push is None or not await agent.push.post(notices):
        await agent.plane.post_notify(token, notices)


async def announce(agent: Agent) -> None:
    """Queue the event that reports the version and features of this agent: at start, and when the features change."""
    await agent.inbox.report(
        {
            "type": "agent_version",
            "agent": "cert-ctrl",
            "version": certctrl.__version__,
            "device_public_id": agent.device_id,
            "features": list(features_of(agent.policy, agent.config)),
        }
    )
