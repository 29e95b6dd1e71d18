"""Housekeeping: save sightings, delete expired rows, and note in the database that this plane is running."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import trio

from certctrl.errors import CertctrlError
from certctrl.plane.anchor import Anchor
from certctrl.plane.devices.devices import Devices
from certctrl.plane.health.counters import PlaneCounters
from certctrl.plane.health.storage_check import StorageCheck
from certctrl.plane.jobs import Jobs
from certctrl.plane.planes import Planes
from certctrl.plane.reserved_names import ReservedNames
from certctrl.plane.storage.database import Database
from certctrl.plane.storage.signal_stream import SignalStream

SECONDS = 30.0
"""Between two rounds."""
_JOB = "housekeeping"
_MAX_SIGHTINGS = 200

log = logging.getLogger("certctrl.Plane")


class Housekeeping:
    """The regular work of one plane; of several on a database, one deletes expired rows."""

    def __init__(
        self,
        database: Database,
        parts: tuple[Jobs, Devices, SignalStream, Planes, ReservedNames, Anchor],
        health: tuple[PlaneCounters, StorageCheck],
        expiring: Sequence[Callable[[], object]],
        wall_now: Callable[[], float],
    ) -> None:
        """``expiring``: the functions that each delete the expired rows of a part, or do a part of some longer work."""
        self._database = database
        self._jobs, self._devices, self._stream, self._planes, self._reserved, self._anchor = parts
        self._counters, self._storage_check = health
        self._expiring = expiring
        self._wall_now = wall_now

    def plan(self) -> None:
        """Schedule the first round, or the next one if the clock was set back since."""
        planned = self._database.one("SELECT due FROM jobs WHERE kind = ?", _JOB)
        if self._database.is_read_only():
            return
        if planned is None or planned["due"] > self._wall_now() + SECONDS:
            self._jobs.put(_JOB, "", 0.0)

    async def run(self, every: float = SECONDS) -> None:
        """Save sightings, delete expired rows and follow other planes periodically, forever."""
        while True:
            try:
                await self._save_sightings()
                self._counters.jobs[_JOB, "ok"] += await self._database.work_long(self.tidy)
                await self._anchor.follow_switch()
            except CertctrlError as error:  # a full disk must not end the plane; the next round retries
                self._counters.jobs[_JOB, "failed"] += 1
                self._storage_check.note_failure(error)
                log.error("housekeeping failed: %s", error)
            await trio.sleep(every)

    async def _save_sightings(self) -> None:
        """Save the sightings of a large fleet in parts, between which other requests are answered."""
        for _ in range(0, self._devices.sightings_waiting(), _MAX_SIGHTINGS):
            await self._database.work_long(self._devices.save_sightings, _MAX_SIGHTINGS)
            await trio.lowlevel.checkpoint()

    def tidy(self) -> int:
        """Save sightings; one of the planes on a database also deletes expired rows. Return the number of jobs done."""
        self._devices.save_sightings()
        self._planes.note(polls=self._stream.waiting_polls())
        self._reserved.note()
        jobs = self._jobs.claim(_JOB, limit=1, lease_seconds=SECONDS)
        for job in jobs:
            for delete_expired in self._expiring:
                delete_expired()
            self._jobs.reschedule(job, self._wall_now() + SECONDS / 2)
        return len(jobs)
