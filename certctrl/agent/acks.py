"""Acks: outcomes go to the plane oldest first, in batches, right before the next poll.

What is done while the plane holds a long poll does not wait for its end: it is sent beside it.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import trio

import certctrl
from certctrl.agent.context import Agent
from certctrl.agent.log_lines import Line, log_line
from certctrl.errors import CertctrlError, PlaneError
from certctrl.net.control_plane import UnsupportedByPlane
from certctrl.protocol.events import AcksFailed, AcksSent, Event

BATCH = 100
PAUSE = 0.2
"""Seconds that an outcome beside a long poll waits for others."""


async def flush_acks(agent: Agent) -> Event:
    """Send every pending ack; each batch leaves memory only after the plane took it, and the disk later still."""
    if dropped := agent.inbox.acks_dropped - agent.counters.acks_dropped:
        agent.counters.acks_dropped += dropped
        log_line(agent.log, Line.ACKS_DROPPED, count=dropped)
    while events := agent.inbox.next_acks(BATCH):
        try:
            await agent.authorized(partial(_post, agent, events))
        except UnsupportedByPlane as error:
            if agent.first_time("acks-unsupported"):
                log_line(agent.log, Line.ACKS_UNSUPPORTED, status=error.status)
        except CertctrlError as error:
            log_line(agent.log, Line.ACKS_FAILED, count=agent.inbox.acks_pending, why=error)
            return AcksFailed(str(error), error.retry_after if isinstance(error, PlaneError) else None)
        else:
            agent.counters.acks_sent += len(events)
            log_line(agent.log, Line.ACKS_SENT, count=len(events))
        agent.inbox.sent(events)
    return AcksSent()


async def send_during_poll(agent: Agent) -> None:
    """Send what comes to be done from now on; what the plane does not take is left to the next poll."""
    while True:
        await agent.inbox.wait_for_ack()
        await trio.sleep(PAUSE)
        if isinstance(await flush_acks(agent), AcksFailed):
            return


async def _post(agent: Agent, notices: list[dict[str, Any]], token: str) -> None:
    await agent.plane.post_notify(token, notices)


async def announce(agent: Agent) -> None:
    """Queue the once-per-start event that tells the plane which version runs here."""
    await agent.inbox.report(
        {
            "type": "agent_version",
            "agent": "cert-ctrl",
            "version": certctrl.__version__,
            "device_public_id": agent.device_id,
        }
    )
