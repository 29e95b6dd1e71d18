"""Check every step of every history from outside the agent.

The auditor uses no report of the agent: it reads the durable half of the disk, the requests that are sent, and what
the services serve.
"""

from __future__ import annotations

import json
from collections import defaultdict, deque
from typing import Any

import trio
from simulation.disk import file_in
from simulation.diskauditor import DiskAuditor
from simulation.host import Host
from simulation.network import MATERIALS_PATH, NOTIFY_PATH, REFRESH_PATH, Exchange

from certctrl.model.signals import identity
from certctrl.protocol.wire.answer import retry_after
from certctrl.protocol.wire.signals import signal_from_wire
from certctrl.store.layout import ConfigDir

STORM_SECONDS = 10.0
MOST_POLLS = 3
MOST_REFRESHES = 10
"""In `STORM_SECONDS`, retries included: backoff starts at half a second, each broken exchange is repeated once."""
LEAST_BETWEEN_LOOKS = 0.99
MOST_REQUESTS = 400
MOST_OF_ONE = 16
"""In a minute, for any other resource: retries that grow from 2.5 s, and operators' requests."""
NO_SUCH_THING = (404, 405, 501)
SERVER_CAP = 3600.0


def resources_of(exchange: Exchange) -> list[str]:
    """Return what a request is for: its path; if it is for the material of many certificates, that of each."""
    if exchange.method == "POST" and exchange.path.endswith(MATERIALS_PATH):
        certificates = exchange.path.removesuffix(MATERIALS_PATH) + "/certificates"
        return [f"{certificates}/{cert_id}{MATERIALS_PATH}" for cert_id in exchange.json["cert_ids"]]
    return [exchange.path]


class Auditor(DiskAuditor):
    """Raises a Violation as soon as a guarantee is broken."""

    def __init__(self, layout: ConfigDir, host: Host, *, page: int, rotates: bool) -> None:
        super().__init__(layout, host)
        self.page, self.rotates = page, rotates
        self.polls: deque[float] = deque(maxlen=MOST_POLLS + 1)
        self.refreshes: deque[float] = deque(maxlen=MOST_REFRESHES + 1)
        self.requests: deque[float] = deque(maxlen=MOST_REQUESTS)
        self.requested: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=MOST_OF_ONE))
        self.looked_at = float("-inf")
        self.excused = True
        """The next poll may come early: an operator's request, a restart, a full page, a new token."""
        self.not_before: dict[str, float] = {}
        self.refreshing = 0
        self.spent: set[str] = set()
        self.newest_refresh_token: str | None = None
        self.device_revoked = False
        self.lost_session = ""
        """Why the plane may refuse this host's refresh token; empty if it may not."""

    # --- the network ------------------------------------------------------------------------------------------

    def before(self, exchange: Exchange) -> None:
        """Check a request before it is sent."""
        now = trio.current_time()
        self.counts["requests"] += 1
        self.inspect(self.host.disk)
        self.requests.append(now)
        if len(self.requests) == MOST_REQUESTS and now - self.requests[0] < STORM_SECONDS:
            self.fail(f"{MOST_REQUESTS} requests of all kinds within {STORM_SECONDS:g} s")
        self._no_storm(exchange, now)
        if exchange.is_poll:
            self._poll(exchange, now)
        elif exchange.path == REFRESH_PATH:
            self._refresh(exchange, now)
        elif exchange.path == NOTIFY_PATH:
            self._notify(exchange)

    def _no_storm(self, exchange: Exchange, now: float) -> None:
        """Check that no resource except polls is requested again and again."""
        if exchange.is_look:
            self._look(exchange, now)
        if exchange.is_poll or exchange.is_look or exchange.path == NOTIFY_PATH:
            return
        for what in resources_of(exchange):
            times = self.requested[what]
            times.append(now)
            if len(times) == MOST_OF_ONE and now - times[0] < 60.0:
                self.fail(f"{what} was requested {len(times)} times within {now - times[0]:.1f} s")

    def _look(self, exchange: Exchange, now: float) -> None:
        """Check that the agent looks ahead from a safe cursor, at most once a second."""
        self.counts["looks"] += 1
        self.require_safe(exchange.query.get("cursor"), "it was sent to the plane")
        if now - self.looked_at < LEAST_BETWEEN_LOOKS:
            self.fail(f"two looks ahead within {now - self.looked_at:.2f} s")
        self.looked_at = now

    def _poll(self, exchange: Exchange, now: float) -> None:
        self.counts["polls"] += 1
        cursor = exchange.query.get("cursor")
        self.require_safe(cursor, "it was sent to the plane")
        if self.excused:
            self.polls.clear()
        elif now < self.not_before.get("poll", 0.0) - 1e-6:
            self.fail(f"a poll {self.not_before['poll'] - now:.1f} s before the plane's Retry-After is over")
        self.polls.append(now)
        if len(self.polls) > MOST_POLLS and now - self.polls[0] < STORM_SECONDS:
            self.fail(f"{len(self.polls)} polls within {now - self.polls[0]:.1f} s")
        self.excused = False
        self.not_before.pop("poll", None)

    def told(self, cursor: str | None) -> None:
        """Check a cursor that is said on a push socket."""
        self.counts["said"] += 1
        self.inspect(self.host.disk)
        self.require_safe(cursor, "it was said on a socket")

    def _refresh(self, exchange: Exchange, now: float) -> None:
        self.counts["refreshes"] += 1
        self.refreshing += 1
        if self.refreshing > 1:
            self.fail("two refreshes at the same time")
        self.refreshes.append(now)
        if len(self.refreshes) > MOST_REFRESHES and now - self.refreshes[0] < STORM_SECONDS:
            self.fail(f"{len(self.refreshes)} refreshes within {STORM_SECONDS:g} s")
        if exchange.json["refresh_token"] in self.spent and not self.lost_session:
            self.fail("a refresh token is used twice although its successor had arrived")

    def _notify(self, exchange: Exchange) -> None:
        for event in exchange.json["events"]:
            if event.get("type") == "signal.ack":
                self.reported.add(identity(signal_from_wire(event["signal"])))
                self.require_deployed(event)

    def after(self, exchange: Exchange) -> None:
        """Check the answer to a request."""
        answer, now, fault = exchange.answer, trio.current_time(), exchange.fault
        self._journal(exchange)
        if exchange.path == REFRESH_PATH:
            self.refreshing = 0
            if exchange.done == 200 and (answer is None or answer.status != 200) and self.rotates:
                self.session_lost("the plane's answer with the next refresh token was lost")
            if fault is not None and answer is not None and answer.status in (401, 403) and answer.is_json:
                self.session_lost("a gateway refused the refresh token like the plane")
        if answer is None:
            return
        asks = fault.asks if fault is not None else None
        if fault is None and answer.status in (200, 204) and "retry-after" in answer.headers:  # of a plane that stops
            asks = retry_after(answer)
        if asks is not None and exchange.is_poll:
            self.not_before["poll"] = now + min(max(asks, 0.0), SERVER_CAP)
        if exchange.path == REFRESH_PATH and answer.status == 200:
            self._refreshed(exchange, answer.body)
        if exchange.path == NOTIFY_PATH and (200 <= answer.status <= 299 or answer.status in NO_SUCH_THING):
            acks = [one for one in exchange.json["events"] if one.get("type") == "signal.ack"]
            self.delivered |= {identity(signal_from_wire(ack["signal"])) for ack in acks}
        if not exchange.is_poll:
            return
        if answer.status == 401:
            self.excused = True  # one refresh, one retry
        if answer.status == 429 and fault is None and self.host.starts < 2:
            self.fail("the plane's rate limit was hit")
        if answer.status in (200, 204):
            self._page(exchange, answer.status, answer.body, answer.headers)

    def _journal(self, exchange: Exchange) -> None:
        said = exchange.failure or (str(exchange.answer.status) if exchange.answer else "?")
        fault = f" ({exchange.fault.kind})" if exchange.fault else ""
        if exchange.is_poll:
            said += f" after {exchange.query.get('cursor')} wait={exchange.query.get('wait')}"
        self.host.journal.note("net", f"{exchange.method} {exchange.path.rpartition('/apiv1')[2]} -> {said}{fault}")

    def _refreshed(self, exchange: Exchange, body: bytes) -> None:
        try:
            token = json.loads(body)["data"].get("refresh_token")
        except (ValueError, TypeError, AttributeError, KeyError):
            return
        if token is not None:
            self.spent.add(exchange.json["refresh_token"])
            self.newest_refresh_token = token

    def undelivered(self) -> list[str]:
        """Return the outcomes that never reached the plane."""
        return (
            [f"outcomes that never reached the plane: {sorted(lost)}"]
            if (lost := self.finished - self.delivered)
            else []
        )

    def session_lost(self, why: str) -> None:
        """Record that the session may end without a fault of the agent."""
        self.lost_session = self.lost_session or why

    def enrolled(self) -> None:
        """Record a new session."""
        self.device_revoked, self.lost_session, self.newest_refresh_token = False, "", None
        self.spent.clear()

    def _page(self, exchange: Exchange, status: int, body: bytes, headers: Any) -> None:
        before = exchange.query.get("cursor")
        if status == 204:
            after = headers.get("etag", "").removeprefix("W/").strip('"')
            self.needs[after or before] = set(self.needs[before])
            return
        try:
            data = json.loads(body)["data"]
            after, raws = data["cursor"], data["signals"]
        except (ValueError, TypeError, KeyError):
            return
        found = {identity(signal_from_wire(raw)) for raw in raws}
        self.received |= found
        self.counts["signals"] += len(found)
        self.needs[after] = self.needs[before] | found  # for a page that comes again the last one counts
        if after != before and (len(raws) >= self.page or exchange.query.get("wait") not in ("0", None)):
            self.excused = True

    # --- the host ----------------------------------------------------------------------------------------------

    def started(self) -> None:
        """Check the state that a new process finds."""
        disk = self.host.disk
        token = file_in(disk.now, self.layout.refresh_token)
        if self.refreshing or (self.newest_refresh_token and token != self.newest_refresh_token.encode()):
            self.session_lost("killed between using a refresh token and storing the next")
        self.disk_was_ill = bool(disk.trouble or disk.rotten)
        self.excused = True
        self.refreshing = 0
        self.not_before.clear()
        self.looked_at = float("-inf")
        self.requested.clear()  # a restarted process starts with short delays again
        self.restarted(disk)

    def services(self) -> None:
        """Check what the reloads found."""
        if self.host.services.mismatches:
            self.fail(self.host.services.mismatches[0])
