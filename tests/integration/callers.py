"""Clients that connect again and again, to notice an attempt that is refused while processes change over."""

from __future__ import annotations

import contextlib
import http.client
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from fleet import wait_for

from certctrl.sandbox.servers import HOST

CALLERS = 8
ATTEMPT_SECONDS = 120.0
WAITS = "waiting for the other control plane to stop"
"""What a process logs that is ready to take over."""


class Callers:
    """Threads that connect again and again, each for one request."""

    def __init__(self, port: int, ca: Path) -> None:
        self._address = HOST, port
        self._context = ssl.create_default_context(cafile=str(ca))
        self._ended = threading.Event()
        self.answered = 0
        self.failures: list[str] = []
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(CALLERS)]
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        while not self._ended.is_set():
            connection = http.client.HTTPSConnection(*self._address, timeout=ATTEMPT_SECONDS, context=self._context)
            try:
                with contextlib.closing(connection):
                    connection.request("GET", "/health")
                    connection.getresponse().read()
                self.answered += 1
            except (OSError, http.client.HTTPException) as error:
                self.failures.append(repr(error))
            time.sleep(0.005)

    def more(self, count: int = 200) -> None:
        """Wait until so many more attempts have been answered."""
        before = self.answered
        wait_for(lambda: self.answered >= before + count or self.failures, "attempts to be answered")

    def end(self) -> None:
        """End all threads."""
        self._ended.set()
        for thread in self._threads:
            thread.join(ATTEMPT_SECONDS)


@contextlib.contextmanager
def calling(port: int, ca: Path) -> Iterator[Callers]:
    callers = Callers(port, ca)
    try:
        yield callers
    finally:
        callers.end()
