"""What must hold at every step of every history, observed where the agent touches the world.

The auditor believes nothing that the agent says of itself: it reads the disk's durable half, the requests that go
out and what services serve.
"""

from __future__ import annotations

import json
from collections import defaultdict, deque
from typing import Any

import trio
from simulation.authority import leaf_facts, public_half
from simulation.disk import SimulatedDisk, file_in, link_text, names_in
from simulation.journal import Violation
from simulation.machine import Machine
from simulation.network import NOTIFY_PATH, REFRESH_PATH, Exchange

from certctrl.model.signals import identity
from certctrl.protocol.wire import signal_from_wire
from certctrl.store.layout import ConfigDir

STORM_SECONDS = 10.0
MOST_POLLS = 3
MOST_REFRESHES = 10
"""In `STORM_SECONDS`, tries included: backoff from half a second, and each broken exchange is repeated once."""
MOST_REQUESTS = 400
MOST_OF_ONE = 16
"""In a minute, of any other resource: retries that grow from 2.5 s, and whatever operators do meanwhile."""
NO_SUCH_THING = (404, 405, 501)
SERVER_CAP = 3600.0


class Auditor:
    """Fails with a Violation the moment a promise is broken."""

    def __init__(self, layout: ConfigDir, machine: Machine, *, page: int, rotates: bool) -> None:
        self.layout, self.machine = layout, machine
        self.page, self.rotates = page, rotates
        self.needs: dict[str | None, set[str]] = defaultdict(set)
        """Cursor -> identities delivered on the way to it and not yet seen safe."""
        self.received: set[str] = set()
        self.waiting: set[str] = set()
        """What the durable inbox held last."""
        self.finished: set[str] = set()
        self.reported: set[str] = set()
        """Identities whose outcome was durable, or on its way to the plane."""
        self.delivered: set[str] = set()
        """Identities whose outcome the plane took, or said that it takes none."""
        self.live: dict[str, list[tuple[str, frozenset[str]]]] = defaultdict(list)
        """Name -> (fingerprint, names of files), each change; an empty fingerprint: nothing."""
        self.polls: deque[float] = deque(maxlen=MOST_POLLS + 1)
        self.refreshes: deque[float] = deque(maxlen=MOST_REFRESHES + 1)
        self.requests: deque[float] = deque(maxlen=MOST_REQUESTS)
        self.asked: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=MOST_OF_ONE))
        self.excused = True
        """The next poll may come early: a person, a restart, a full page, news, a fresh token."""
        self.not_before: dict[str, float] = {}
        self.refreshing = 0
        self.spent: set[str] = set()
        self.newest_refresh_token: str | None = None
        self.disk_was_ill = False
        self.device_revoked = False
        self.lost_session = ""
        """Why the plane may refuse this host's refresh token; empty: it may not."""
        self.counts: dict[str, int] = defaultdict(int)
        self.violation: Violation | None = None
        self.over = trio.CancelScope()
        """Cancelled at the first violation."""
        self._parsed: dict[str, tuple[bytes | None, Any]] = {}

    # --- the network ------------------------------------------------------------------------------------------

    def before(self, exchange: Exchange) -> None:
        """Look at a request that goes out."""
        now = trio.current_time()
        self.counts["requests"] += 1
        self.inspect(self.machine.disk)
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
        """Outside of polls: nothing is asked for over and over."""
        if exchange.is_poll or exchange.path == NOTIFY_PATH:
            return
        times = self.asked[exchange.path]
        times.append(now)
        if len(times) == MOST_OF_ONE and now - times[0] < 60.0:
            self.fail(f"{exchange.path} was asked for {len(times)} times within {now - times[0]:.1f} s")

    def _poll(self, exchange: Exchange, now: float) -> None:
        self.counts["polls"] += 1
        cursor = exchange.query.get("cursor")
        self._require_safe(cursor, "it was sent to the plane")
        if self.excused:
            self.polls.clear()
        elif now < self.not_before.get("poll", 0.0) - 1e-6:
            self.fail(f"a poll {self.not_before['poll'] - now:.1f} s before the plane's Retry-After is over")
        self.polls.append(now)
        if len(self.polls) > MOST_POLLS and now - self.polls[0] < STORM_SECONDS:
            self.fail(f"{len(self.polls)} polls within {now - self.polls[0]:.1f} s")
        self.excused = False
        self.not_before.pop("poll", None)

    def _refresh(self, exchange: Exchange, now: float) -> None:
        self.counts["refreshes"] += 1
        self.refreshing += 1
        if self.refreshing > 1:
            self.fail("two refreshes at the same time")
        self.refreshes.append(now)
        if len(self.refreshes) > MOST_REFRESHES and now - self.refreshes[0] < STORM_SECONDS:
            self.fail(f"{len(self.refreshes)} refreshes within {STORM_SECONDS:g} s")
        if exchange.json["refresh_token"] in self.spent and not self.lost_session:
            self.fail("a refresh token is spent a second time although its successor had arrived")

    def _notify(self, exchange: Exchange) -> None:
        for event in exchange.json["events"]:
            if event.get("type") == "signal.ack":
                self.reported.add(identity(signal_from_wire(event["signal"])))
                self._require_deployed(event)

    def after(self, exchange: Exchange) -> None:
        """Look at what came back."""
        answer, now, weather = exchange.answer, trio.current_time(), exchange.weather
        self._journal(exchange)
        if exchange.path == REFRESH_PATH:
            self.refreshing = 0
            if exchange.done == 200 and (answer is None or answer.status != 200) and self.rotates:
                self.session_lost("the plane's answer with the next refresh token was lost")
            if weather is not None and answer is not None and answer.status in (401, 403) and answer.is_json:
                self.session_lost("somebody refused the refresh token in the plane's own words")
        if answer is None:
            return
        if weather is not None and weather.asks is not None and exchange.is_poll:
            self.not_before["poll"] = now + min(max(weather.asks, 0.0), SERVER_CAP)
        if exchange.path == REFRESH_PATH and answer.status == 200:
            self._refreshed(exchange, answer.body)
        if exchange.path == NOTIFY_PATH and (200 <= answer.status <= 299 or answer.status in NO_SUCH_THING):
            acks = [one for one in exchange.json["events"] if one.get("type") == "signal.ack"]
            self.delivered |= {identity(signal_from_wire(ack["signal"])) for ack in acks}
        if not exchange.is_poll:
            return
        if answer.status == 401:
            self.excused = True  # one refresh, one retry
        if answer.status == 429 and weather is None and self.machine.lives < 2:
            self.fail("the plane's rate limit was hit")
        if answer.status in (200, 204):
            self._page(exchange, answer.status, answer.body, answer.headers)

    def _journal(self, exchange: Exchange) -> None:
        said = exchange.failure or (str(exchange.answer.status) if exchange.answer else "?")
        weather = f" ({exchange.weather.kind})" if exchange.weather else ""
        if exchange.is_poll:
            said += f" after {exchange.query.get('cursor')} wait={exchange.query.get('wait')}"
        self.machine.journal.note(
            "net", f"{exchange.method} {exchange.path.rpartition('/apiv1')[2]} -> {said}{weather}"
        )

    def _refreshed(self, exchange: Exchange, body: bytes) -> None:
        try:
            token = json.loads(body)["data"].get("refresh_token")
        except (ValueError, TypeError, AttributeError, KeyError):
            return
        if token is not None:
            self.spent.add(exchange.json["refresh_token"])
            self.newest_refresh_token = token

    def undelivered(self) -> list[str]:
        """Return the outcomes that the plane was never given."""
        return [f"outcomes the plane never got: {sorted(lost)}"] if (lost := self.finished - self.delivered) else []

    def session_lost(self, why: str) -> None:
        """Note that the session may end, and that nobody is to blame."""
        self.lost_session = self.lost_session or why

    def enrolled(self) -> None:
        """Note a new session."""
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
        self.needs[after] = self.needs[before] | found  # when it comes again, what counts is how it came last
        if after != before and (len(raws) >= self.page or exchange.query.get("wait") not in ("0", None)):
            self.excused = True

    # --- the disk -----------------------------------------------------------------------------------------------

    def inspect(self, disk: SimulatedDisk) -> None:
        """Look at what a power cut would leave now."""
        inbox = {identity(signal_from_wire(row["signal"])) for row in self._json(disk, "inbox.json", "entries")}
        if inbox != self.waiting:
            done = set(self._json(disk, "processed_signals.json", "identities"))
            for ack in self._json(disk, "pending_acks.json", "acks"):
                if ack.get("type") == "signal.ack":
                    self.reported.add(identity(signal_from_wire(ack["signal"])))
            if lost := self.waiting - inbox - done:
                self.fail(f"signals left the inbox without being done: {sorted(lost)}")
            if silent := self.waiting - inbox - self.reported:
                self.fail(f"signals are done and their outcome is nowhere: {sorted(silent)}")
            self.finished |= self.waiting - inbox
            self.waiting = inbox
        for name in names_in(disk.base, self.layout.live):
            if not name.startswith("."):
                self._require_pair(disk.base, name, "after a power cut now")

    def _json(self, disk: SimulatedDisk, name: str, key: str) -> Any:
        data = file_in(disk.base, self.layout.state / name)
        known = self._parsed.get(name)
        if known is None or known[0] is not data:
            known = self._parsed[name] = (data, json.loads(data)[key] if data else [])
        return known[1]

    def started(self) -> None:
        """Look at the disk that a new process finds."""
        disk = self.machine.disk
        self.inspect(disk)
        token = file_in(disk.now, self.layout.refresh_token)
        if self.refreshing or (self.newest_refresh_token and token != self.newest_refresh_token.encode()):
            self.session_lost("killed between spending a refresh token and storing the next")
        self.disk_was_ill = bool(disk.trouble or disk.rotten)
        cursor = file_in(disk.now, self.layout.last_cursor)
        self._require_safe(cursor.decode() if cursor else None, "a process finds it on the disk")
        self.excused = True
        self.refreshing = 0
        self.not_before.clear()
        self.asked.clear()  # a restarted process begins with short delays again
        for name in {*names_in(disk.now, self.layout.live), *self.live}:
            if not name.startswith("."):
                self._note_live(disk, name, crash=True)

    def _require_safe(self, cursor: str | None, why: str) -> None:
        wanted = self.needs.get(cursor)
        if not wanted:
            return
        done = set(self._json(self.machine.disk, "processed_signals.json", "identities"))
        if lost := wanted - self.waiting - done - self.finished:
            self.fail(f"the cursor {cursor} stands for signals that are not durable ({why}): {sorted(lost)}")
        wanted.clear()

    def switched(self, disk: SimulatedDisk, name: str) -> None:
        """Look at a certificate's link that was just set or removed."""
        self._note_live(disk, name, crash=False)

    def _note_live(self, disk: SimulatedDisk, name: str, *, crash: bool) -> None:
        generation = self.layout.live / name
        fingerprint = self._require_pair(disk.now, name, "in use")
        target = link_text(disk.now, generation)
        files = (
            frozenset(names_in(disk.now, self.layout.generations / name / target.rpartition("/")[2])) if target else ()
        )
        entry, log = (fingerprint, frozenset(files)), self.live[name]
        if log and log[-1] == entry:
            if not crash and fingerprint:
                self.fail(f"{name}: what is in use was installed again")
            return
        log.append(entry)
        self.counts["switches"] += not crash

    def _require_pair(self, nodes: Any, name: str, when: str) -> str:
        """Return the fingerprint of what a name leads to; empty: nothing."""
        pem, key = (file_in(nodes, self.layout.live / name / one) for one in ("fullchain.pem", "private.key"))
        if pem is None and key is None:
            return ""
        if pem is None or key is None:
            self.fail(f"{name}: half a certificate {when}")
        try:
            fingerprint, public = leaf_facts(pem)
            if public_half(key) != public:
                self.fail(f"{name}: key and certificate do not match {when}")
        except ValueError:
            self.fail(f"{name}: unreadable {when}")
        return fingerprint

    def _require_deployed(self, event: dict[str, Any]) -> None:
        """What is reported as deployed must be durable: in use now, or in use before something newer."""
        if event["outcome"] not in ("applied", "unchanged"):
            return
        for one in event.get("deployed", []):
            name = next((path for path in one["targets"] if path.endswith(".crt")), "").rpartition("/")[2][:-4]
            if not name or not one["fingerprint_sha256"]:
                continue
            prints = [entry[0] for entry in self.live[name]]
            durable = self._require_pair(self.machine.disk.base, name, "after a power cut now")
            told = one["fingerprint_sha256"]
            if told not in prints:
                self.fail(f"{name}: reported as deployed and never was: {told[:16]}")
            if durable not in prints[prints.index(told) :]:
                self.fail(f"{name}: reported as deployed, and a power cut now would take it back")

    # --- the service ----------------------------------------------------------------------------------------------

    def services(self) -> None:
        """Look at what the reloads found."""
        if self.machine.services.mismatches:
            self.fail(self.machine.services.mismatches[0])

    def fail(self, what: str) -> Any:
        """Raise the Violation, and keep it: whoever it is raised in may be built to survive anything."""
        self.violation = self.violation or Violation(what)
        self.over.cancel()
        raise self.violation
