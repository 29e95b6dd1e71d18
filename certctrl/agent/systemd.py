"""Notify systemd: READY, STATUS, WATCHDOG, RELOADING, STOPPING (sd_notify(3), ``Type=notify``)."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Mapping

import trio


class Notifier:
    """Sends to the socket in ``NOTIFY_SOCKET``; does nothing without one."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        name = environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + name[1:] if name.startswith("@") else name
        try:
            usec = int(environ.get("WATCHDOG_USEC", "0"))
        except ValueError:
            usec = 0
        self.watchdog_seconds = usec / 1e6
        """Seconds without a ping after which systemd kills the daemon; 0: no watchdog."""

    def send(self, *lines: str) -> None:
        """Send the lines as one datagram; never blocks, ignores errors."""
        if not self._address:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.setblocking(False)
            with contextlib.suppress(OSError):
                sock.sendto("\n".join(lines).encode(), self._address)

    def ready(self, status: str) -> None:
        """Report that start-up or a reload is complete."""
        self.send("READY=1", f"STATUS={status}")

    def status(self, status: str) -> None:
        """Set the status line of `systemctl status`."""
        self.send(f"STATUS={status}")

    def reloading(self) -> None:
        """Report the start of a reload; `ready` ends it (``Type=notify-reload`` needs the monotonic time)."""
        self.send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self, status: str) -> None:
        """Report that the orderly stop has started."""
        self.send("STOPPING=1", f"STATUS={status}")

    def watchdog(self) -> None:
        """Report that the event loop is alive."""
        self.send("WATCHDOG=1")


async def feed_watchdog(notifier: Notifier) -> None:
    """Ping the watchdog from the event loop, at half its interval, until cancelled."""
    if notifier.watchdog_seconds <= 0:
        return
    while True:
        notifier.watchdog()
        await trio.sleep(notifier.watchdog_seconds / 2)
