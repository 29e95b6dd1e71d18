"""Several real planes on one PostgreSQL behind a real HAProxy, which forwards TCP without stickiness."""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
from pathlib import Path
from typing import Any

from fleet import PROGRAM, Child, Fleet, Operator, Plane, run_cli, wait_for

from certctrl.errors import ExitStatus
from certctrl.sandbox.servers import HOST, free_port

_HAPROXY = """
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
    default-server check check-ssl verify none inter 500ms fall 2 rise 1
{servers}backend unready
    default-server check inter 500ms
{servers}"""


class Planes(Plane):
    """Planes on one database, as one to agents and operators: the address is the load balancer's.

    The first two have their keys in their data directories, the others from systemd's credentials.
    """

    def __init__(self, fleet: Fleet, haproxy: str, database: str, count: int = 2) -> None:
        self._fleet, self._database, self._logs = fleet, database, 0
        self._places = [fleet.root / f"plane-{number}" for number in range(1, count + 1)]
        self.data = self._places[0]
        self._move_in()
        self.children = [self._serve(place, "0") for place in self._places]
        for child in self.children:
            child.says("operator key")
        self._addresses = [(place / "address").read_text().strip().rpartition("//")[2] for place in self._places]
        port = self._balance(haproxy)
        self.url = f"https://{HOST}:{port}"
        self.operator_key = (self.data / "operator.key").read_text().strip()
        self.operator = Operator(self.url, self.ca, self.operator_key)

    @property
    def logs(self) -> str:
        """Everything that the planes have printed."""
        return "".join(path.read_text(errors="replace") for path in sorted(self._fleet.root.glob("plane-?.*.log")))

    @property
    def faults(self) -> list[str]:
        """Requests that failed for no reason that the protocol knows, and other internal errors."""
        return re.findall(r"request req_\w+ failed.*|Traceback.*", self.logs)

    def restart(self, number: int) -> None:
        """Start a plane that ended, on its port; again, as systemd does, while the database is away."""
        port = self._addresses[number].rpartition(":")[2]
        while not self._serves(child := self._serve(self._places[number], port)):
            assert child.process.returncode == ExitStatus.UNAVAILABLE, child.text
        self.children[number] = child

    def _serves(self, child: Child) -> bool:
        """Wait until a plane serves or ends; return whether it serves."""
        wait_for(lambda: not child.running or "operator key" in child.text, "a plane to start")
        return child.running

    def _move_in(self) -> None:
        first = self._fleet.child(
            [*PROGRAM, "plane", "serve", "--data", self.data, "--listen", f"{HOST}:0"], "plane-0.log"
        )
        first.says("operator key")
        assert first.stop() == 0
        moved = run_cli("plane", "migrate-to", self._database, "--data", self.data)
        assert moved.returncode == 0, moved.stderr
        for place in self._places[1:]:
            place.mkdir(mode=0o700)
        credentials = self._fleet.root / "credentials"
        credentials.mkdir(mode=0o700)
        for key in ("storage.key", "operator.key"):
            shutil.copy(self.data / key, self._places[1] / key)
            shutil.copy(self.data / key, credentials / f"certctrl-{key.replace('.', '-')}")

    def _serve(self, place: Path, port: str) -> Child:
        options: list[str | Path] = ["--data", place, "--listen", f"{HOST}:{port}", "--database", self._database]
        self._logs += 1
        extra: dict[str, Any] = (
            {} if place in self._places[:2] else {"CREDENTIALS_DIRECTORY": str(self._fleet.root / "credentials")}
        )
        return self._fleet.child([*PROGRAM, "plane", "serve", *options], f"{place.name}.{self._logs}.log", **extra)

    def _balance(self, haproxy: str) -> int:
        """Start HAProxy and return its port."""
        config, port = self._fleet.root / "haproxy.cfg", free_port()
        lines = (f"    server plane{number} {address}\n" for number, address in enumerate(self._addresses, 1))
        config.write_text(_HAPROXY.format(host=HOST, port=port, servers="".join(lines)))
        self._fleet.child([haproxy, "-db", "-f", config], "haproxy.log")
        wait_for(lambda: _accepts(port), "HAProxy to accept connections")
        return port


def _accepts(port: int) -> bool:
    """Return whether connections to a port are accepted."""
    with contextlib.suppress(OSError), socket.create_connection((HOST, port), timeout=5):
        return True
    return False
