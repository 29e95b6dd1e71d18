"""AlertRunner: compare periodically, and send the messages that are due; of several planes, one sends each."""

from __future__ import annotations

import logging
import secrets
from collections import Counter
from collections.abc import Callable
from math import inf
from typing import Any

import trio

from certctrl.errors import CertctrlError
from certctrl.plane.alerts.channels import Channels
from certctrl.plane.alerts.comparison import Comparison
from certctrl.plane.alerts.outbox import Delivery, Outbox
from certctrl.plane.alerts.senders import Senders
from certctrl.plane.alerts.texts import test_message
from certctrl.plane.health.problems import ProblemName, Problems
from certctrl.plane.jobs import Job
from certctrl.plane.storage.database import Database
from certctrl.text import one_line

MAX_CONCURRENT = 20
"""Messages that one plane sends at a time."""
SWEEP_SECONDS = 5.0
"""Interval of the search for messages that are due, and for a round that is."""
TEST_SECONDS = 20.0
"""Time limit for a test; shorter than that of the client of operators."""
IDLE_SECONDS = 30.0
"""Without channels; one that another plane adds is noticed then."""

log = logging.getLogger("certctrl.Alerts")


class AlertRunner:
    """The work of one plane."""

    def __init__(
        self,
        database: Database,
        channels: Channels,
        comparison: Comparison,
        outbox: Outbox,
        senders: Senders,
        problems: Problems,
        silence_seconds: float,
        wall_now: Callable[[], float],
    ) -> None:
        """``silence_seconds``: how long this plane must have run to know which devices are silent."""
        self._db = database
        self._channels = channels
        self._comparison = comparison
        self._outbox = outbox
        self._senders = senders
        self._problems = problems
        self._silence_seconds = silence_seconds
        self._wall_now = wall_now
        self._due = trio.Event()
        self._sending = Counter[int]()
        """Id of a channel -> messages that are being sent to it."""
        self.begun = inf
        """When this plane began to hear devices (Trio clock)."""

    def wake(self) -> None:
        """Search for messages that are due now."""
        self._due.set()

    async def run(self) -> None:
        """Compare and send, until cancelled; messages that are being sent then are sent again by another plane."""
        self.begun = trio.current_time()
        async with trio.open_nursery() as nursery:
            while True:
                self._due, pause = trio.Event(), SWEEP_SECONDS
                try:
                    if await self._db.work(self._comparison.has_channels):
                        await self.round(nursery)
                    else:
                        self._problems.clear(ProblemName.ALERTS)
                        pause = IDLE_SECONDS
                except CertctrlError as error:  # the next round retries
                    self._note_failure(str(error))
                except Exception as error:  # a bug in a text must not end the plane
                    self._note_failure(f"unexpected {type(error).__name__}", error)
                with trio.move_on_after(pause):
                    await self._due.wait()

    def _note_failure(self, what: str, error: Exception | None = None) -> None:
        log.error("alerts cannot be decided: %s", what, exc_info=error)
        self._problems.report(ProblemName.ALERTS, f"alerts cannot be decided: {what}")

    async def run_once(self) -> int:
        """Compare if it is due, and send what is due; return the number of messages that were sent or tried."""
        async with trio.open_nursery() as nursery:
            return await self.round(nursery)

    async def round(self, nursery: trio.Nursery) -> int:
        """Compare if it is due, and begin to send what is due; return the number of messages."""
        may_judge_silence = trio.current_time() >= self.begun + self._silence_seconds
        await self._db.work(self._comparison.plan)
        await self._db.work_long(lambda: self._comparison.run(may_judge_silence=may_judge_silence))
        claimed = []
        if (free := MAX_CONCURRENT - self._sending.total()) > 0:
            claimed = await self._db.work(self._outbox.claim, free, dict(self._sending))
        for job, delivery in claimed:
            self._sending[delivery.channel_id] += 1
            nursery.start_soon(self._send, job, delivery, name=f"alert {delivery.id}")
        await self._report()
        return len(claimed)

    async def _send(self, job: Job, delivery: Delivery) -> None:
        try:
            await self._attempt(job, delivery)
        except CertctrlError as error:  # retried once the lease has expired
            log.error("alert %d cannot be stored: %s", delivery.id, error)
        finally:
            self._sending[delivery.channel_id] -= 1
            self.wake()

    async def _attempt(self, job: Job, delivery: Delivery) -> None:
        try:
            channel = await self._db.work(self._channels.of_id, delivery.channel_id)
            if channel is None:
                return
            note = await self._senders.deliver(channel, delivery.body, delivery.id, delivery.created_at)
        except CertctrlError as error:
            problem = str(error)
        except Exception as error:  # a bug in one form must not end the others
            log.error("alert %d: unexpected %s", delivery.id, type(error).__name__, exc_info=error)
            problem = f"unexpected {type(error).__name__}"
        else:
            await self._db.work(self._outbox.succeed, job, one_line(note, 500))
            log.info("alert %d was sent to channel %s", delivery.id, channel.name)
            return
        due = await self._db.work(self._outbox.fail, job, one_line(problem, 500))
        again = "no further attempt" if due is None else "it is retried"
        log.warning("alert %d was not sent: %s; %s", delivery.id, problem, again)

    async def test(self, name: str) -> dict[str, Any]:
        """Send a test message to a channel now; return ``ok`` and the problem. ErrorResponse 404."""
        channel, now = await self._db.work(self._channels.named, name), self._wall_now()
        shown: dict[str, Any] = {"name": channel.name, "kind": channel.kind, "to": channel.to}
        sent, note = test_message(channel.name, now), ""
        try:
            with trio.fail_after(TEST_SECONDS):
                note = await self._senders.deliver(channel, sent, f"test-{secrets.token_hex(8)}", now)
        except trio.TooSlowError:
            return shown | {"ok": False, "problem": f"no answer within {TEST_SECONDS:g} s", "fix": ""}
        except CertctrlError as error:
            return shown | {"ok": False, "problem": str(error), "fix": error.fix or ""}
        return shown | {"ok": True, "problem": note, "fix": ""}

    async def _report(self) -> None:
        count, oldest = await self._db.work(self._outbox.failing)
        if self._channels.unreadable:
            self._problems.report(ProblemName.ALERTS, self._channels.unreadable)
            return
        if oldest is None:
            self._problems.clear(ProblemName.ALERTS)
            return
        what = f"message {oldest['id']} to channel {oldest['channel']}: {oldest['problem']}"
        self._problems.report(ProblemName.ALERTS, f"{count} alerts fail; {what}" if count > 1 else what)
