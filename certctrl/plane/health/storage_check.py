"""StorageCheck: check periodically whether the database answers and accepts changes, for ``/health``.

``/health`` reads the result, so that its requests never wait for the database.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from pathlib import Path

import trio

from certctrl.errors import CertctrlError, ConfigError, DiskError
from certctrl.plane.errors import DatabaseAwayError, DatabaseLockedError
from certctrl.plane.health.problems import ProblemName, Problems
from certctrl.plane.storage.database import Database
from certctrl.plane.storage.schema import scripts_to_run

CHECK_SECONDS = 2.0
_SLOW_SECONDS = 5.0
"""Seconds without an answer after which the database counts as away."""
_BUSY_SECONDS = 20.0
"""Extra seconds while other units of work wait, so that an overloaded plane does not drive its agents to others."""
MAX_BACKLOG = 3.0
"""Seconds that units of work may wait for a connection; beyond, the plane is overloaded."""
_LOW_BYTES = 64 * 1024 * 1024
_WRITES = (ProblemName.READ_ONLY, ProblemName.DISK_FULL, ProblemName.STORAGE, ProblemName.DATABASE_LOCKED)
"""Problems that end when something can be stored."""
_BY_ERRNO = {
    errno.ENOSPC: ProblemName.DISK_FULL,
    errno.EDQUOT: ProblemName.DISK_FULL,
    errno.EROFS: ProblemName.READ_ONLY,
}

log = logging.getLogger("certctrl.Plane")


class StorageCheck:
    """Keeps the problems of the database up to date."""

    def __init__(self, database: Database, problems: Problems, directory: Path | None) -> None:
        """``directory`` is the data directory; None: in memory."""
        self._database = database
        self._problems = problems
        self._directory = directory

    async def run(self) -> None:
        """Check the database periodically, forever."""
        while True:
            await trio.sleep(CHECK_SECONDS)
            await self.once()

    async def once(self) -> None:
        """Check the database now."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._notice_slow)
            try:
                read_only, newer = await self._database.work(self._inspect)
            except CertctrlError as error:
                self.note_failure(error)
            else:
                self._problems.clear(ProblemName.DATABASE_AWAY)
                self._note(ProblemName.SCHEMA_NEWER, newer)
                self._note_wakes(self._database.calls.wakes_lost)
                if read_only:
                    self._note(ProblemName.READ_ONLY, True)
                elif any(name in self._problems for name in _WRITES):
                    await self._write_again()
            self._note_space()
            if self._database.backlog() < MAX_BACKLOG:
                self._problems.clear(ProblemName.OVERLOAD)
            nursery.cancel_scope.cancel()

    def note_failure(self, error: Exception) -> None:
        """Report the problem behind an exception of the database; a later check clears it."""
        name = problem_of(error)
        if name is not None:
            self._problems.report(name, str(error))

    def _note(self, name: ProblemName, present: bool) -> None:
        if present:
            self._problems.report(name, name.summary)
        else:
            self._problems.clear(name)

    def _note_wakes(self, lost: str) -> None:
        if lost:
            self._problems.report(ProblemName.WAKES_DELAYED, f"no connection for notifications: {lost}")
        else:
            self._problems.clear(ProblemName.WAKES_DELAYED)

    async def _notice_slow(self) -> None:
        await trio.sleep(_SLOW_SECONDS)
        if self._database.backlog():  # the check waits for its turn, too
            await trio.sleep(_BUSY_SECONDS)
        self._problems.report(ProblemName.DATABASE_AWAY, f"no answer for {_SLOW_SECONDS:g} s")

    def _inspect(self) -> tuple[bool, bool]:
        """Return whether the database is read-only, and whether only a newer release can use it."""
        try:
            scripts_to_run(self._database.schema_version(), "")
        except ConfigError:
            return self._database.is_read_only(), True
        return self._database.is_read_only(), False

    async def _write_again(self) -> None:
        """Write to the database to check whether it accepts changes again; only called after a failed write."""
        try:
            await self._database.work(self._write)
        except CertctrlError as error:
            log.debug("the database still cannot store changes: %s", error)
        else:
            for name in _WRITES:
                self._problems.clear(name)

    def _write(self) -> None:
        self._database.run("DELETE FROM settings WHERE name = 'write_check'")
        self._database.run("INSERT INTO settings VALUES ('write_check', '')")

    def _note_space(self) -> None:
        """Report a data directory with little space left."""
        if self._directory is None:
            return
        with contextlib.suppress(OSError):
            found = os.statvfs(self._directory)
            free = found.f_bavail * found.f_frsize
            if free < _LOW_BYTES:
                self._problems.report(ProblemName.DISK_LOW, f"{self._directory}: {free >> 10} KiB free")
            else:
                self._problems.clear(ProblemName.DISK_LOW)


def problem_of(error: Exception) -> ProblemName | None:
    """Return the problem behind an exception of the database."""
    if isinstance(error, DatabaseAwayError):
        return ProblemName.DATABASE_AWAY
    if isinstance(error, DatabaseLockedError):
        return ProblemName.DATABASE_LOCKED
    if isinstance(error, DiskError):
        return _BY_ERRNO.get(error.errno, ProblemName.STORAGE)
    return None
