"""A control plane restarts without losing a connection attempt: with a socket of the service manager, or a shared port."""

from __future__ import annotations

import contextlib
import http.client
import signal
import socket
import ssl
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fleet import PROGRAM, Child, Fleet, wait_for

from certctrl.sandbox.servers import HOST

pytestmark = pytest.mark.integration

CALLERS = 8
ATTEMPT_SECONDS = 120.0
AS_SYSTEMD = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()), LISTEN_FDNAMES="https")
os.execv(sys.argv[2], sys.argv[2:])
"""
WAITS = "waiting for the other control plane to stop"


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


def activated(fleet: Fleet, sock: socket.socket, number: int) -> Child:
    """Start a control plane as systemd does: with the socket as descriptor 3."""
    argv = [sys.executable, "-c", AS_SYSTEMD, str(sock.fileno()), *PROGRAM]
    argv += ["plane", "serve", "--data", str(fleet.root / "plane")]
    child = fleet.child(argv, f"plane.{number}.log", passed=(sock.fileno(),))
    child.says("operator key")
    return child


def test_a_restart_with_a_socket_of_systemd_loses_no_attempt(fleet: Fleet) -> None:
    with socket.create_server((HOST, 0), backlog=512) as sock:
        port = sock.getsockname()[1]
        plane = activated(fleet, sock, 1)
        assert f"https://{HOST}:{port}" in plane.text
        with calling(port, fleet.root / "plane" / "ca.pem") as callers:
            callers.more()
            for number in (2, 3):
                assert plane.stop() == 0
                plane = activated(fleet, sock, number)
                callers.more()
        assert callers.failures == []
        assert plane.stop() == 0


def sharing(fleet: Fleet, port: int, number: int) -> Child:
    argv = [*PROGRAM, "plane", "serve", "--data", str(fleet.root / "plane"), "--listen", f"{HOST}:{port}"]
    return fleet.child([*argv, "--reuse-port"], f"plane.{number}.log")


def test_a_hand_over_of_a_shared_port_loses_no_attempt(fleet: Fleet) -> None:
    plane = sharing(fleet, 0, 1)
    plane.says("operator key")
    port = int((fleet.root / "plane" / "address").read_text().strip().rpartition(":")[2])
    with calling(port, fleet.root / "plane" / "ca.pem") as callers:
        callers.more()
        for number in (2, 3):
            following = sharing(fleet, port, number)
            following.says(WAITS)
            assert plane.stop(signal.SIGTERM) == 0
            following.says("operator key")
            plane = following
            callers.more()
    assert callers.failures == []
    assert plane.stop() == 0


def test_without_either_some_attempts_are_refused(fleet: Fleet) -> None:
    """The test can find what it looks for."""
    from fleet import Plane

    plane = Plane(fleet, {})
    with calling(plane._port, plane.ca) as callers:
        callers.more()
        assert plane.child.stop() == 0
        wait_for(lambda: callers.failures, "a failure")
        plane.start()
    assert any("refused" in failure for failure in callers.failures)
