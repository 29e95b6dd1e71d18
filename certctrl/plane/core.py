"""Plane: the whole control plane without sockets.

Its parts are public attributes, each one table's worth of rules; HTTP (``device_api``, ``operator_api``, ``pages``)
only translates. Everything that waits, waits on Trio; storage is inline; time comes from ``wall_now`` (what is written
down) and ``monotonic`` (what is measured): so the same plane runs on a real and on a virtual clock.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import attrs
import trio

from certctrl.errors import CertctrlError
from certctrl.plane import clock
from certctrl.plane.authorities import Authorities
from certctrl.plane.ca.issuer import BuiltinCa, Issuer, Offload, inline
from certctrl.plane.certificates import Certificates
from certctrl.plane.clones import CloneDetector
from certctrl.plane.devices import Devices
from certctrl.plane.enrolment import Enrolment
from certctrl.plane.errors import bad_request
from certctrl.plane.grants import Grants
from certctrl.plane.installs import Installs
from certctrl.plane.limits import Buckets, FreePages
from certctrl.plane.operators import Operators
from certctrl.plane.reports import Reports
from certctrl.plane.sessions import DeviceSession, Sessions
from certctrl.plane.settings import PlaneSettings
from certctrl.plane.storage.data_dir import DataDir, locked, make_data_dir, write_file
from certctrl.plane.storage.database import Database
from certctrl.plane.storage.keyring import Keyring
from certctrl.plane.storage.signal_stream import EMBEDDED, Page, StreamEngine

MOST_SIGNALS = 100
LONGEST_WAIT = 30
DEFAULT_LIMIT = 20

log = logging.getLogger("certctrl.Plane")


class Plane:
    """One control plane; made by ``open``, ended by ``close`` (or as a context manager)."""

    def __init__(
        self,
        data: DataDir | None,
        database: Database,
        keyring: Keyring,
        *,
        settings: PlaneSettings,
        wall_now: Callable[[], float],
        monotonic: Callable[[], float],
        offload: Offload,
        issuer: Issuer | None = None,
        stream: StreamEngine = EMBEDDED,
    ) -> None:
        """Put the parts together; ``issuer`` None: the built-in CA. Use ``open``, which also takes the lock."""
        self.data = data
        self.settings = settings
        self.wall_now = wall_now
        self.draining = False
        """True once the plane is being stopped: polls are not held any more."""
        self.database, self.keyring = db, keys = database, keyring
        self.ca = BuiltinCa(db, keys, wall_now, offload)
        self.stream = stream(db, length=settings.stream_length, wall_now=wall_now)
        self.clones = CloneDetector(monotonic)
        self.sessions = Sessions(db, keys, settings, wall_now)
        self.installs = Installs(db, self.stream, wall_now)
        self.devices = Devices(db, self.stream, self.sessions, self.installs, self.clones, wall_now)
        self.grants = Grants(db, settings, wall_now, monotonic)
        self.enrolment = Enrolment(db, self.devices, self.grants, self.sessions, self.stream, wall_now)
        self.certificates = Certificates(db, keys, issuer or self.ca, self.stream, settings, wall_now, monotonic)
        self.authorities = Authorities(db, self.stream, lambda: self.ca.root_pem, wall_now)
        self.reports = Reports(db, settings, wall_now)
        self.operators = Operators(db, keys, settings, wall_now, monotonic)
        self._polls = Buckets(settings.poll_rate, settings.poll_burst, monotonic)
        self._free_pages = FreePages()
        self._closing = contextlib.ExitStack()

    @classmethod
    def open(
        cls,
        data: Path | None = None,
        *,
        settings: PlaneSettings | None = None,
        wall_now: Callable[[], float] = clock.wall_now,
        monotonic: Callable[[], float] = trio.current_time,
        offload: Offload = inline,
        issuer: Issuer | None = None,
        stream: StreamEngine = EMBEDDED,
    ) -> Self:
        """Open (or make) the plane of a data directory; None: one in memory that leaves nothing behind.

        Raises ConfigError (not ours, keys missing), BusyError (another plane has it) and DiskError.
        """
        with contextlib.ExitStack() as held:
            directory = None if data is None else make_data_dir(data)
            if directory is not None:
                held.enter_context(locked(directory))
            keyring = Keyring.open(directory)
            database = Database(None if directory is None else directory.database)
            held.callback(database.close)
            plane = cls(
                directory,
                database,
                keyring,
                settings=settings or PlaneSettings(),
                wall_now=wall_now,
                monotonic=monotonic,
                offload=offload,
                issuer=issuer,
                stream=stream,
            )
            if directory is not None:
                write_file(directory.ca, plane.ca.root_pem.encode(), mode=0o644)
            plane._closing = held.pop_all()
        return plane

    def close(self) -> None:
        """Write what is still in memory and close the database."""
        with self._closing:
            self.devices.save_sightings()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def operator_key(self) -> str:
        """Return the key that opens the operator API and the approval page."""
        return self.keyring.operator_key

    async def poll(
        self,
        session: DeviceSession,
        *,
        cursor: str | None = None,
        limit: int = DEFAULT_LIMIT,
        wait: float = 0,
        address: str = "",
        until: Callable[[], Awaitable[object]] = trio.sleep_forever,
    ) -> Page:
        """Return the signals after a cursor, at once or as soon as there are any within ``wait`` seconds.

        An empty page carries the cursor to keep. A full one of ``DEFAULT_LIMIT`` and more gives the next one free.
        ``until`` returning means the asker has gone. Refused 400, 409, 429; also 401 and 403 when the session ends, or
        the device is revoked, while it waits.
        """
        if not 1 <= limit <= MOST_SIGNALS:
            raise bad_request(f"limit must be 1 to {MOST_SIGNALS}", field="limit")
        if not 0 <= wait <= LONGEST_WAIT:
            raise bad_request(f"wait must be 0 to {LONGEST_WAIT}", field="wait")
        if not self._free_pages.redeem(session.device_id, cursor):
            self._polls.take(session.device_id)
        page = await self.stream.read(session.device_id, cursor, limit)
        self.devices.seen(session.device_id, address, cursor or "")
        with trio.move_on_after(wait):
            while wait and not page.signals and not self.draining:
                if not await self.stream.wait(session.device_id, page.cursor, until):
                    break
                self.sessions.still_valid(session)
                page = await self.stream.read(session.device_id, page.cursor, limit)
        if not DEFAULT_LIMIT <= limit == len(page.signals):
            return page
        self._free_pages.offer(session.device_id, page.cursor)
        return attrs.evolve(page, next_is_free=True)

    async def resync(self, user_id: int, device_id: int, reason: str = "") -> None:
        """Have a device fetch everything anew (signal ``state.resync_required``)."""
        self.devices.row(user_id, device_id)
        with self.database.transaction():
            self.stream.append(device_id, "state.resync_required", {"reason": reason} if reason else {})
        await self.stream.publish()

    def stop_polls(self) -> None:
        """Answer every held poll now, and hold none from here on."""
        self.draining = True
        self.stream.wake()

    async def keep_house(self, every: float = 30.0) -> None:
        """Write sightings and drop what has expired, for ever."""
        while True:
            await trio.sleep(every)
            try:
                self.tidy()
            except CertctrlError as error:  # a full disk must not end the plane; it tries again
                log.error("housekeeping failed: %s", error)

    def tidy(self) -> None:
        """Write sightings and drop what has expired."""
        self.devices.save_sightings()
        self.grants.forget_old()
        self.operators.forget_old()
        self.sessions.forget_old()
