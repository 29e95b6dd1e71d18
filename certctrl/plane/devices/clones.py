"""Detect two live agents that share one device, as a cloned disk or directory causes.

Each agent process polls under a new random name. A restart moves from one name to the next and never returns to an
earlier one; two live agents alternate. The names are in the device's row, so that it does not matter which plane of a
database an agent polls. A poll that comes under the name of the last one writes nothing.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable
from functools import partial

from certctrl.errors import CertctrlError
from certctrl.plane.devices.sessions import DeviceSession
from certctrl.plane.storage.database import Database

WINDOW_SECONDS = 900.0
"""How long a replaced name is remembered, and how long a suspicion lasts."""
_CONFIRM_SECONDS = 60.0
"""Seconds before polls confirm a suspicion again, so that two busy clones do not write with each poll."""
_MAX_NAMES = 8
"""Names remembered per device; more within the window mean a restart loop, so the oldest are dropped."""

log = logging.getLogger("certctrl.Plane")


class CloneDetector:
    """Remembers which agents poll for each device."""

    def __init__(self, database: Database, wall_now: Callable[[], float]) -> None:
        self._db = database
        self._wall_now = wall_now

    async def note(self, session: DeviceSession, instance: str) -> bool:
        """Record a poll, and return whether clones are suspected; an empty name (an older agent) is ignored.

        A new name is stored in a separate unit of work: the poll must succeed even if the database is read-only.
        """
        known = instance in ("", session.instance)
        if not known and not self._is_recent(session.copies_at, _CONFIRM_SECONDS):
            try:
                return await self._db.work(self._replace, session, instance)
            except CertctrlError:
                pass  # the next poll retries
        return self.suspected(session.copies_at)

    def suspected(self, copies_at: float | None) -> bool:
        """Return whether clones noticed at this time are still suspected."""
        return self._is_recent(copies_at, WINDOW_SECONDS)

    async def note_former(self, device_id: int, address: str) -> None:
        """Record that hardware that was replaced has been heard from, which counts as a clone; its session is void."""
        with contextlib.suppress(CertctrlError):  # a full disk changes nothing for the caller
            await self._db.work(self._note_former, device_id, address)

    def _note_former(self, device_id: int, address: str) -> None:
        now = self._wall_now()
        noted = self._db.run(
            "UPDATE devices SET former_seen_at = ?, former_address = ?, copies_at = ? WHERE id = ?"
            " AND (former_seen_at IS NULL OR abs(former_seen_at - ?) > ?)",
            *(now, address, now, device_id, now, _CONFIRM_SECONDS),
        )
        if noted:
            warn = partial(log.warning, "hardware of device %d that was replaced still runs, at %s", device_id, address)
            self._db.after_commit(warn)

    def _replace(self, session: DeviceSession, instance: str) -> bool:
        """Store the name of the agent that polls now; return whether it had been replaced before."""
        row = self._db.one_locked("SELECT * FROM devices WHERE id = ?", session.device_id)
        if row is None or row["session"] != session.number:
            return False  # registered again since, which ended the sessions of all clones
        now, copies_at, latest = self._wall_now(), row["copies_at"], row["instance"]
        if latest != instance:
            earlier: dict[str, float] = json.loads(row["earlier_instances"])
            earlier = {name: at for name, at in earlier.items() if self._is_recent(at, WINDOW_SECONDS)}
            if earlier.pop(instance, None) is not None:
                copies_at = now
            if latest:
                earlier[latest] = now
            self._db.run(
                "UPDATE devices SET instance = ?, earlier_instances = ?, copies_at = ? WHERE id = ?",
                instance,
                json.dumps(dict(list(earlier.items())[1 - _MAX_NAMES :])),
                copies_at,
                session.device_id,
            )
        return self.suspected(copies_at)

    def _is_recent(self, at: float | None, seconds: float) -> bool:
        return at is not None and abs(self._wall_now() - at) < seconds
