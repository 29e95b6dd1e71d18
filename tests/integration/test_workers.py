"""``plane serve --workers N`` on one real PostgreSQL: killed workers, a killed supervisor, and an orderly stop."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import time
from pathlib import Path
from typing import Any

import pytest
from callers import WAITS, calling
from fleet import PATIENCE, PROGRAM, Child, Fleet, Plane, run_cli, wait_for
from operators_certificate import write_certificate
from postgres_server import PostgresServer

from certctrl.plane.ca.x509 import new_root
from certctrl.sandbox.servers import HOST

pytestmark = pytest.mark.integration

WORKERS = 2


class Workers(Plane):
    """A plane of several processes."""

    def __init__(self, fleet: Fleet, database: str) -> None:
        self._database = database
        super().__init__(fleet, {})
        assert self.child.stop() == 0
        moved = run_cli("plane", "migrate-to", database, "--data", self.data)
        assert moved.returncode == 0, moved.stderr
        self._starts = 0
        self.child = self.supervisor("0")
        self._port = int((self.data / "address").read_text().rpartition(":")[2])
        self.url = f"https://{HOST}:{self._port}"
        self.operator._address = f"{HOST}:{self._port}"

    def launch(self, port: str, *more: str, **extra: str) -> Child:
        """Start the supervisor; its first worker may wait for another one."""
        self._starts += 1
        options = ["--data", self.data, "--listen", f"{HOST}:{port}", "--database", self._database, *more]
        return self._fleet.child(
            [*PROGRAM, "plane", "serve", *options, "--workers", str(WORKERS)], f"workers.{self._starts}.log", **extra
        )

    def serves(self, child: Child) -> Child:
        child.says("operator key")
        wait_for(lambda: len(children_of(child.pid)) == WORKERS, "all workers to run")
        return child

    def supervisor(self, port: str, *more: str, **extra: str) -> Child:
        return self.serves(self.launch(port, *more, **extra))

    def noted(self) -> list[dict[str, Any]]:
        """Return the control planes that have noted themselves in the database."""
        return list(self.operator.call("GET", "/apiv1/plane/status")["database"]["planes"])


def children_of(pid: int) -> set[int]:
    """Return the processes that a process has started and that have not ended."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
        except OSError:  # it has just ended
            continue
        if int(parent) == pid and state != "Z":
            found.add(int(stat.parent.name))
    return found


def test_agents_live_on_when_workers_are_killed(fleet: Fleet, own_postgres: PostgresServer) -> None:
    plane = Workers(fleet, own_postgres.database())
    agents = [fleet.agent(plane, name) for name in ("first", "second", "third")]
    for agent in agents:
        agent.start()
    row = plane.operator.issue("shared.example", *(agent.device_id for agent in agents))
    for agent in agents:
        agent.catches_up()
    for victim in sorted(children_of(plane.child.pid)):
        os.kill(victim, signal.SIGKILL)
        wait_for(
            lambda victim=victim: (
                victim not in children_of(plane.child.pid) and len(children_of(plane.child.pid)) == WORKERS
            ),
            "the worker to be started again",
        )
        plane.operator.renew(row["id"])
        for agent in agents:
            agent.catches_up()
    assert all(agent.daemon.running for agent in agents)
    workers = children_of(plane.child.pid)
    assert plane.child.stop() == 0, plane.child.text
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)


def test_workers_end_with_a_killed_supervisor(fleet: Fleet, own_postgres: PostgresServer) -> None:
    plane = Workers(fleet, own_postgres.database())
    workers = children_of(plane.child.pid)
    plane.child.kill()
    wait_for(lambda: not any(is_running(worker) for worker in workers), "the workers to end")
    again = plane.supervisor(str(plane._port))
    assert plane.operator.call("GET", "/apiv1/users")
    assert again.stop(signal.SIGINT) == 0


def test_systemd_hears_that_the_supervisor_is_alive(fleet: Fleet, own_postgres: PostgresServer, tmp_path: Path) -> None:
    plane = Workers(fleet, own_postgres.database())
    assert plane.child.stop() == 0
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(PATIENCE)
        plane.supervisor(str(plane._port), NOTIFY_SOCKET=str(tmp_path / "notify"), WATCHDOG_USEC="120000000")
        assert b"READY=1" in systemd.recv(4096)
        assert systemd.recv(4096) == b"WATCHDOG=1"


def test_a_first_worker_that_cannot_serve_ends_the_command(fleet: Fleet, tmp_path: Path) -> None:
    data = tmp_path / "plane"
    words = ["plane", "serve", "--data", str(data), "--listen", f"{HOST}:0", "--workers", "2"]
    done = run_cli(*words)
    assert done.returncode == 2 and "fix: add --database" in done.stderr
    done = run_cli(*words, "--database", "postgresql://nobody@127.0.0.1:1/none")
    assert done.returncode in (69, 78), done.stderr
    assert done.stderr.count("cert-ctrl: error: ") == 1


def is_running(pid: int) -> bool:
    """Return whether a process has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_hand_over_between_workers_loses_no_attempt(fleet: Fleet, own_postgres: PostgresServer) -> None:
    plane = Workers(fleet, own_postgres.database())
    assert plane.child.stop() == 0
    port = str(plane._port)
    plane.child = plane.supervisor(port, "--reuse-port")
    with calling(plane._port, plane.ca) as callers:
        callers.more()
        following = plane.launch(port, "--reuse-port")
        following.says(WAITS)
        assert plane.child.stop() == 0, plane.child.text
        plane.child = plane.serves(following)
        callers.more()
    assert callers.failures == []
    assert plane.child.stop() == 0


def test_sighup_gives_all_workers_the_operators_certificate(fleet: Fleet, own_postgres: PostgresServer) -> None:
    plane = Workers(fleet, own_postgres.database())
    wait_for(lambda: len(plane.noted()) == WORKERS, "all workers to serve")  # one that starts reads the files, too
    workers = children_of(plane.child.pid)
    write_certificate(plane.data, new_root("Example CA", not_before=time.time() - 60, not_after=time.time() + 86_400))
    new = (plane.data / "tls.pem").read_text()

    def all_have_it() -> bool:
        plane.child.send(signal.SIGHUP)
        return all(served_certificate(plane.url) == new for _ in range(8))

    wait_for(all_have_it, "all workers to serve the new certificate")
    assert (plane.data / "workers" / "2" / "tls.pem").read_text() == new
    assert children_of(plane.child.pid) == workers, "none has ended"
    assert plane.child.stop() == 0


def served_certificate(url: str) -> str:
    host, _, port = url.rpartition("//")[2].rpartition(":")
    return ssl.get_server_certificate((host, int(port)), timeout=60)
