"""A control plane restarts without losing a connection attempt: with a socket of the service manager, or a shared port."""

from __future__ import annotations

import signal
import socket
import sys

import pytest
from callers import WAITS, calling
from fleet import PROGRAM, Child, Fleet, wait_for

from certctrl.sandbox.servers import HOST

pytestmark = pytest.mark.integration

AS_SYSTEMD = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()), LISTEN_FDNAMES="https")
os.execv(sys.argv[2], sys.argv[2:])
"""


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
