"""Check the durable half of a simulated host's disk: signals, cursors, certificates."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any, NoReturn

import trio
from simulation.authority import leaf_facts, public_half
from simulation.disk import SimulatedDisk, file_in, link_text, names_in
from simulation.host import Host
from simulation.journal import Violation

from certctrl.model.signals import identity
from certctrl.protocol.wire.signals import signal_from_wire
from certctrl.store.layout import ConfigDir


class DiskAuditor:
    """The disk checks of the auditor."""

    def __init__(self, layout: ConfigDir, host: Host) -> None:
        self.layout, self.host = layout, host
        self._live, self._state = str(layout.live), str(layout.state)  # joining paths took much of the time
        self.committed: set[str] = set()
        """Identities of pages whose cursor the agent has used: it must never lose them."""
        self.disk_was_ill = False
        self._looked_at: tuple[SimulatedDisk, int] | None = None
        self.needs: dict[str | None, set[str]] = defaultdict(set)
        """Cursor -> identities delivered before it and not yet seen durable."""
        self.received: set[str] = set()
        self.waiting: set[str] = set()
        """Identities in the durable inbox or among the durable retries, as of the last check."""
        self.finished: set[str] = set()
        self.reported: set[str] = set()
        """Identities whose outcome was durable or sent."""
        self.delivered: set[str] = set()
        """Identities whose outcome the plane accepted, or whose endpoint it does not have."""
        self.live: dict[str, list[tuple[str, frozenset[str]]]] = defaultdict(list)
        """Name -> (fingerprint, file names) after each change; the fingerprint is empty if nothing is live."""
        self.counts: dict[str, int] = defaultdict(int)
        self.violation: Violation | None = None
        self.over = trio.CancelScope()
        """Cancelled at the first violation."""
        self._parsed: dict[str, tuple[bytes | None, Any]] = {}

    def inspect(self, disk: SimulatedDisk) -> None:
        """Check what a power cut would leave now."""
        if (disk, disk.synced) == self._looked_at:
            return
        self._looked_at = (disk, disk.synced)
        done = set(self._json(disk, "pending_acks.json", "done"))
        rows = [*self._json(disk, "inbox.json", "entries"), *self._json(disk, "retries.json", "retries")]
        signals = [signal_from_wire(row["signal"]) for row in rows if row["signal"] is not None]
        inbox = {identity(signal) for signal in signals} - done  # completed signals do not wait
        for ack in self._json(disk, "pending_acks.json", "acks"):
            if ack.get("type") == "signal.ack":
                self.reported.add(identity(signal_from_wire(ack["signal"])))
        if silent := done - self.reported:
            self.fail(f"signals are completed without an outcome: {sorted(silent)}")
        if inbox != self.waiting:
            lost = self.waiting - inbox - done
            if self.disk_was_ill:  # a write whose last sync failed may be on the disk without being promised
                lost &= self.committed
            if lost:
                self.fail(f"signals left the inbox without being completed: {sorted(lost)}")
            self.finished |= self.waiting & done
            self.waiting = inbox
        for name in names_in(disk.base, self._live):
            if not name.startswith("."):
                self._require_pair(disk.base, name, "after a power cut now")

    def _json(self, disk: SimulatedDisk, name: str, key: str) -> Any:
        data = file_in(disk.base, f"{self._state}/{name}")
        known = self._parsed.get(name)
        if known is None or known[0] is not data:
            known = self._parsed[name] = (data, json.loads(data) if data else {})
        return known[1].get(key, [])

    def restarted(self, disk: SimulatedDisk) -> None:
        """Check the disk that a new process finds."""
        self.inspect(disk)
        cursor = file_in(disk.now, self.layout.last_cursor)
        self.require_safe(cursor.decode() if cursor else None, "a process finds it on the disk")
        for name in {*names_in(disk.now, self._live), *self.live}:
            if not name.startswith("."):
                self._note_live(disk, name, crash=True)

    def require_safe(self, cursor: str | None, why: str) -> None:
        wanted = self.needs.get(cursor)
        if not wanted:
            return
        done = set(self._json(self.host.disk, "pending_acks.json", "done"))
        if lost := wanted - self.waiting - done - self.finished:
            self.fail(f"the cursor {cursor} covers signals that are not durable ({why}): {sorted(lost)}")
        self.committed |= wanted
        wanted.clear()

    def switched(self, disk: SimulatedDisk, name: str) -> None:
        """Check a certificate's link that was just set or removed."""
        self._note_live(disk, name, crash=False)

    def _note_live(self, disk: SimulatedDisk, name: str, *, crash: bool) -> None:
        generation = f"{self._live}/{name}"
        fingerprint = self._require_pair(disk.now, name, "in use")
        target = link_text(disk.now, generation)
        files = (
            frozenset(names_in(disk.now, self.layout.generations / name / target.rpartition("/")[2])) if target else ()
        )
        entry, log = (fingerprint, frozenset(files)), self.live[name]
        if log and log[-1] == entry:
            if not crash and fingerprint:
                self.fail(f"{name}: the live generation was installed again")
            return
        log.append(entry)
        self.counts["switches"] += not crash

    def _require_pair(self, nodes: Any, name: str, when: str) -> str:
        """Return the fingerprint of the live certificate of a name; empty without one."""
        pem, key = (file_in(nodes, f"{self._live}/{name}/{one}") for one in ("fullchain.pem", "private.key"))
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

    def require_deployed(self, event: dict[str, Any]) -> None:
        """Check that a generation reported as deployed is durable: live now, or live before a newer one."""
        if event["outcome"] not in ("applied", "unchanged"):
            return
        for one in event.get("deployed", []):
            name = next((path for path in one["targets"] if path.endswith(".crt")), "").rpartition("/")[2][:-4]
            if not name or not one["fingerprint_sha256"]:
                continue
            prints = [entry[0] for entry in self.live[name]]
            durable = self._require_pair(self.host.disk.base, name, "after a power cut now")
            reported = one["fingerprint_sha256"]
            if reported not in prints:
                self.fail(f"{name}: reported as deployed but never live: {reported[:16]}")
            if durable not in prints[prints.index(reported) :]:
                self.fail(f"{name}: reported as deployed, but a power cut now would undo it")

    def fail(self, what: str) -> NoReturn:
        """Raise a Violation and keep it, because the agent may survive the exception."""
        self.violation = self.violation or Violation(what)
        self.over.cancel()
        raise self.violation
