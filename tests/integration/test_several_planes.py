"""Two real planes on one real PostgreSQL behind a real HAProxy, which forwards TCP without stickiness."""

from __future__ import annotations

import contextlib
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fleet import PROGRAM, Child, Fleet, Operator, Plane, run_cli, wait_for
from nacl.public import PrivateKey
from plane_world import REGISTER
from postgres_server import PostgresServer, postgres_server
from proving import answered, registration

from certctrl.sandbox.servers import HOST, free_port

pytestmark = pytest.mark.integration

HAPROXY = """
defaults
    mode tcp
    balance roundrobin
    option redispatch
    timeout connect 5s
    timeout client 60s
    timeout server 60s
frontend plane
    bind {host}:{port}
    use_backend unready if {{ nbsrv(planes) eq 0 }}
    default_backend planes
backend planes
    option httpchk GET /health/ready
    default-server check check-ssl verify none inter 200ms on-marked-down shutdown-sessions
    server plane1 {first}
    server plane2 {second}
backend unready
    default-server check inter 200ms
    server plane1 {first}
    server plane2 {second}
"""


class Planes(Plane):
    """Planes on one database, as one to agents and operators: the address is the load balancer's."""

    def __init__(self, fleet: Fleet, haproxy: str, database: str) -> None:
        self._fleet, self._database = fleet, database
        self._places = [fleet.root / "plane-1", fleet.root / "plane-2"]
        self.data = self._places[0]
        self._move_in()
        self.children = [self._serve(place, "0") for place in self._places]
        self._addresses = [(place / "address").read_text().strip().rpartition("//")[2] for place in self._places]
        port = self._balance(haproxy)
        self.url = f"https://{HOST}:{port}"
        self.operator = Operator(self.url, self.ca, (self.data / "operator.key").read_text().strip())

    def restart(self, number: int) -> None:
        """Start a plane that ended, on its port."""
        self.children[number] = self._serve(self._places[number], self._addresses[number].rpartition(":")[2])

    def _move_in(self) -> None:
        first = self._fleet.child(
            [*PROGRAM, "plane", "serve", "--data", self.data, "--listen", f"{HOST}:0"], "plane-0.log"
        )
        first.says("operator key")
        assert first.stop() == 0
        moved = run_cli("plane", "migrate-to", self._database, "--data", self.data)
        assert moved.returncode == 0, moved.stderr
        self._places[1].mkdir(mode=0o700)
        for key in ("storage.key", "operator.key"):
            shutil.copy(self.data / key, self._places[1] / key)

    def _serve(self, place: Path, port: str) -> Child:
        options = ["--data", place, "--listen", f"{HOST}:{port}", "--database", self._database]
        child = self._fleet.child([*PROGRAM, "plane", "serve", *options], f"{place.name}.log")
        child.says("operator key")
        return child

    def _balance(self, haproxy: str) -> int:
        """Start HAProxy and return its port."""
        config, (first, second), port = self._fleet.root / "haproxy.cfg", self._addresses, free_port()
        config.write_text(HAPROXY.format(host=HOST, port=port, first=first, second=second))
        self._fleet.child([haproxy, "-db", "-f", config], "haproxy.log")
        wait_for(lambda: accepts(port), "HAProxy to accept connections")
        return port


def accepts(port: int) -> bool:
    """Return whether connections to a port are accepted."""
    with contextlib.suppress(OSError), socket.create_connection((HOST, port), timeout=5):
        return True
    return False


@pytest.fixture
def server(need: Callable[[str], str], need_module: Callable[[str], None]) -> Iterator[PostgresServer]:
    need_module("psycopg")
    with postgres_server(need) as server:
        yield server


@pytest.fixture
def planes(fleet: Fleet, need: Callable[[str], str], server: PostgresServer) -> Planes:
    return Planes(fleet, need("haproxy"), server.database())


def test_agents_live_on_when_either_plane_is_killed(fleet: Fleet, planes: Planes) -> None:
    """Each request of `Operator` has a connection of its own, so the planes answer in turn."""
    token = planes.operator.enrolment_token()
    body = registration("device-by-hand", PrivateKey.generate()) | {"enrolment_token": token}
    challenge = planes.operator.call("POST", REGISTER, body)
    assert planes.operator.call("POST", REGISTER, answered(body, challenge))["device"]["status"] == "active"

    agents = [fleet.agent(planes, name) for name in ("first", "second")]
    for agent in agents:
        agent.start()
    row = planes.operator.issue("shared.example", *(agent.device_id for agent in agents))
    for agent in agents:
        agent.catches_up()
    for number in (0, 1):
        planes.children[number].kill()
        wait_for(lambda: renewed(planes, row["id"]), "the other plane to answer")
        for agent in agents:
            agent.catches_up()
        planes.restart(number)
        renewed(planes, row["id"])
        for agent in agents:
            agent.catches_up()
    assert all(agent.daemon.running for agent in agents)
    shown = planes.operator.call("GET", "/apiv1/users/1/devices")
    assert [device["copies_suspected"] for device in shown] == [False] * 3


def renewed(planes: Planes, cert_id: int) -> bool:
    """Renew a certificate; return False if the connection was to a plane that has just ended."""
    with contextlib.suppress(OSError):
        planes.operator.renew(cert_id)
        return True
    return False
