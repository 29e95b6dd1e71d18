"""Wakes: notify other planes on a PostgreSQL database of devices with new signals, and receive their notifications.

Device numbers are gathered for some milliseconds after their commits and sent with one NOTIFY: a NOTIFY inside each
transaction would make commits wait for each other. A NOTIFY only saves time. If one is lost (a lost connection, a plane
that dies after its commit), the sweep finds the signals: it compares all waiting polls with their streams.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

import psycopg
import trio

from certctrl.errors import CertctrlError
from certctrl.plane.storage.database import Database, Waiting
from certctrl.text import one_line

CHANNEL = "certctrl_signals"
SWEEP_SECONDS = 10.0
_GATHER_SECONDS = 0.005
_MAX_DEVICES = 900
_MAX_PAYLOAD = 7900
"""Bytes; PostgreSQL accepts fewer than 8000."""
_LISTEN_SECONDS = 1.0
"""Longest delay until the listener notices that it should end."""
_RECONNECT_SECONDS = 1.0

log = logging.getLogger("certctrl.Plane")


class Wakes:
    """Exchanges wakes for one plane."""

    def __init__(self, database: Database, connect: Callable[[], psycopg.Connection[Any]], stream: Waiting) -> None:
        """``connect`` opens the connection of the listener."""
        self._database = database
        self._connect = connect
        self._stream = stream
        self._name = secrets.token_hex(4)
        """Marks our own notifications: our waiters are awake already."""
        self._fresh: set[int] = set()
        self._any_fresh = trio.Event()
        self._ending = threading.Event()
        self.listening = trio.Event()
        """Set once the listener has started to listen."""

    async def run(self) -> None:
        """Exchange wakes forever."""
        self._stream.announce = self._announce
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._send_forever)
                nursery.start_soon(self._listen_forever)
                nursery.start_soon(self._sweep_forever)
        finally:
            self._stream.announce = None
            self._ending.set()

    def _announce(self, device_ids: Collection[int]) -> None:
        self._fresh.update(device_ids)
        self._any_fresh.set()

    async def _send_forever(self) -> None:
        while True:
            await self._any_fresh.wait()
            await trio.sleep(_GATHER_SECONDS)
            fresh, self._fresh, self._any_fresh = self._fresh, set(), trio.Event()
            with contextlib.suppress(CertctrlError):  # logged by the engine; the sweep of each plane finds the signals
                await self._database.work(self._send, fresh)

    def _send(self, devices: Iterable[int]) -> None:
        for payload in payloads(self._name, devices):
            self._database.all("SELECT pg_notify(?, ?)", CHANNEL, payload)

    async def _sweep_forever(self) -> None:
        while True:
            await trio.sleep(SWEEP_SECONDS)
            with contextlib.suppress(CertctrlError):
                await self._stream.sweep()

    async def _listen_forever(self) -> None:
        token = trio.lowlevel.current_trio_token()
        await trio.to_thread.run_sync(self._listen, token, abandon_on_cancel=True, limiter=trio.CapacityLimiter(1))

    def _listen(self, token: trio.lowlevel.TrioToken) -> None:
        """Pass on notifications from a connection of our own, and connect again when it ends."""
        with contextlib.suppress(trio.RunFinishedError):
            while not self._ending.is_set():
                try:
                    self._listen_once(token)
                except psycopg.Error as error:
                    self._database.calls.wakes_lost = first_line(error)
                    log.warning("lost the connection for wakes: %s; reconnecting", first_line(error))
                    self._ending.wait(_RECONNECT_SECONDS)

    def _listen_once(self, token: trio.lowlevel.TrioToken) -> None:
        with self._connect() as connection:
            connection.autocommit = True
            connection.execute(f"LISTEN {CHANNEL}".encode())
            self._database.calls.wakes_lost = ""
            token.run_sync_soon(self._started)
            while not self._ending.is_set():
                for notification in connection.notifies(timeout=_LISTEN_SECONDS):
                    token.run_sync_soon(self._received, notification.payload)

    def _started(self) -> None:
        self.listening.set()
        self._stream.wake_all()  # earlier notifications were lost

    def _received(self, payload: str) -> None:
        sender, _, devices = payload.partition(":")
        if sender != self._name:
            for device_id in devices.split(","):
                if device_id.isdigit():
                    self._stream.wake(int(device_id))


def payloads(sender: str, devices: Iterable[int]) -> Iterator[str]:
    """Return the payloads of the notifications for these devices, none too long."""
    batch: list[str] = []
    length = 0
    for text in map(str, sorted(devices)):
        if len(batch) == _MAX_DEVICES or length + len(text) + 1 > _MAX_PAYLOAD:
            yield f"{sender}:{','.join(batch)}"
            batch, length = [], 0
        batch.append(text)
        length += len(text) + 1
    if batch:
        yield f"{sender}:{','.join(batch)}"


def first_line(error: Exception) -> str:
    """Return the first line of a server error."""
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return one_line(lines[0], 300)
