"""The way of a real certificate, by commands only: Pebble, BIND, a host with nginx, renewal by time, revocation.

Its key is made on the host and stays there.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from dns_servers import DnsServerProcess, Key, dns_servers, zone_text
from fleet import HERE, Agent, Fleet, Plane, Service, run_cli, wait_for
from pebble_server import Pebble, free_port, pebble_server

from certctrl.sandbox.workspace import allow_service, install_items

pytestmark = pytest.mark.integration

DAY = 86_400
LIFE = 12 * DAY
NAMES = ("www.example.com", "*.example.com")


class MovedPlane(Plane):
    """A control plane whose clock is ahead by ``ahead`` seconds from its next start on."""

    ahead = 0.0

    def start(self) -> None:
        clock = self._fleet.root / "clock"
        clock.write_text(str(self.ahead))
        listen = f"127.0.0.1:{self._port}"
        argv = [sys.executable, HERE / "set_clock_plane.py", "plane", "serve", "--data", self.data, "--listen", listen]
        self._starts += 1
        self.child = self._fleet.child(argv, f"plane.{self._starts}.log", SET_CLOCK=str(clock))
        self.child.says("operator key")
        self.url = (self.data / "address").read_text().strip()
        self._port = int(self.url.rpartition(":")[2])

    def restarted(self, ahead: float) -> None:
        """Restart it with another clock."""
        self.child.stop()
        self.ahead = ahead
        self.start()


@attrs.define
class Scene:
    fleet: Fleet
    plane: MovedPlane
    agent: Agent
    pebble: Pebble
    bind: DnsServerProcess
    root: Path
    """The root of Pebble's certificates."""

    def plane_cli(self, *words: str | Path, json_answer: bool = False) -> Any:
        """Run `cert-ctrl plane …`, which must succeed; return its output."""
        given = ["plane", *words, "--data", self.plane.data, *(["--json"] if json_answer else [])]
        done = run_cli(*given)
        assert done.returncode == 0, (given, done.stdout, done.stderr, self.plane.child.text)
        return json.loads(done.stdout) if json_answer else done.stdout

    def certificate(self) -> Any:
        return self.plane.operator.call("GET", "/apiv1/users/1/certificates/1")

    def key(self) -> bytes:
        """Return the secret number of the live key."""
        pem = (self.agent.layout.live_link(NAMES[0]) / "private.key").read_bytes()
        key = load_pem_private_key(pem, None)
        assert isinstance(key, EllipticCurvePrivateKey)
        return key.private_numbers().private_value.to_bytes(32, "big")

    def served(self, service: Service) -> str:
        """Return the serial that nginx serves, after openssl has verified chain and name against Pebble's root."""
        argv = [
            *("openssl", "s_client", "-connect", f"127.0.0.1:{service.server.port}", "-servername", NAMES[0]),
            *("-CAfile", str(self.root), "-verify_return_error", "-verify_hostname", NAMES[0]),
        ]
        done = subprocess.run(argv, input="", capture_output=True, text=True, check=False)
        if done.returncode or "Verify return code: 0 (ok)" not in done.stdout:
            return ""
        argv = ["openssl", "x509", "-noout", "-serial"]
        text = subprocess.run(argv, input=done.stdout, capture_output=True, text=True, check=True).stdout
        return text.strip().partition("=")[2].lower().lstrip("0")

    def serves_new(self, service: Service, *old: str) -> str:
        """Wait until nginx serves the plane's certificate, which is none of the old ones; return its serial."""

        def new() -> str:
            found = self.served(service)
            issued = str(self.certificate()["serial_number"]).replace(":", "").lstrip("0")
            return found if found == issued and found not in old else ""

        return wait_for(new, "nginx to serve the new certificate")

    def status_at_ca(self, serial: str) -> str:
        return str(json.loads(self.pebble.get(f"/cert-status-by-serial/{serial}"))["Status"])


@pytest.fixture
def scene(fleet: Fleet, need: Callable[[str], str], tmp_path: Path) -> Iterator[Scene]:
    for program in ("nginx", "openssl"):
        need(program)
    with contextlib.ExitStack() as stack:
        servers = stack.enter_context(dns_servers(need))
        key = Key()
        bind = servers.bind({"example.com": zone_text("example.com", ["127.0.0.1"])}, key)
        config = {"httpPort": free_port(), "certificateValidityPeriod": LIFE}
        pebble = stack.enter_context(
            pebble_server(need, tmp_path / "pebble", config=config, options=["-dnsserver", bind.place])
        )
        (tmp_path / "root.pem").write_text(pebble.get("/roots/0"))
        (tmp_path / "tsig.key").write_text(key.file)
        (tmp_path / "tsig.key").chmod(0o600)
        plane = MovedPlane(fleet, {})
        yield Scene(fleet, plane, fleet.agent(plane, "web-1"), pebble, bind, tmp_path / "root.pem")


def test_from_the_order_to_the_revocation(scene: Scene, tmp_path: Path) -> None:
    challenges = [
        {"type": "rfc2136", "server": scene.bind.place, "resolvers": [scene.bind.place], "port": scene.bind.port}
    ]
    scene.plane_cli(
        *("issuers", "add", "le", "--kind", "acme", "--set", f"directory_url={scene.pebble.directory_url}"),
        *("--set", f"ca_file={scene.pebble.ca_file}", "--set", "terms_agreed=true"),
        *("--set", f"challenges={json.dumps(challenges)}", "--secret", f"tsig_key={tmp_path / 'tsig.key'}"),
    )
    agent = scene.agent
    agent.start()

    issued = scene.plane_cli("issue", *NAMES, "--issuer", "le", "--device", "web-1", json_answer=True)
    assert (issued["issuer"], issued["sans"], issued["key_origin"]) == ("le", [*NAMES], "device")
    agent.catches_up()
    assert scene.bind.texts("_acme-challenge.example.com") == [], "taken back"

    service = scene.fleet.service("nginx", agent, [NAMES[0]])
    allow_service(agent.layout, service.server)
    agent.daemon.send(1)  # SIGHUP
    scene.plane.operator.put_items(agent.device_id, install_items(service.server, {1: NAMES[0]}))
    first = scene.serves_new(service)
    keys = [scene.key()]
    live = agent.layout.live_link(NAMES[0])
    verify = ["openssl", "verify", "-CAfile", scene.root, "-untrusted", live / "chain.pem", live / "certificate.pem"]
    assert subprocess.run(verify, capture_output=True, text=True, check=True).stdout.endswith(": OK\n")

    scene.plane.restarted(ahead=LIFE * 2 / 3 + 60)
    second = scene.serves_new(service, first)
    keys.append(scene.key())
    scene.plane.restarted(ahead=0)

    scene.plane_cli("revoke", NAMES[0], "--reason-code", "superseded", "--replace", "--yes")
    third = scene.serves_new(service, first, second)
    keys.append(scene.key())
    wait_for(lambda: scene.status_at_ca(second) == "Revoked", "the revocation at the CA")
    assert scene.status_at_ca(third) == "Valid"
    agent.daemon.stop()

    scene.plane.child.stop()
    assert len({*keys}) == 3, "each certificate has a new key"
    with contextlib.closing(sqlite3.connect(scene.plane.data / "plane.db")) as database:
        sealed = [*database.execute("SELECT private_key_enc FROM certificates WHERE id = 1")]
        sealed += [*database.execute("SELECT coalesce(key_enc, x'') FROM orders")]
    assert {*sealed} == {(b"",)}, "nothing is sealed that could be a key"
    known = b"".join(path.read_bytes() for path in scene.plane.data.rglob("*") if path.is_file())
    assert b"www.example.com" in known, "the database is among the files"
    assert not [key for key in keys if key in known], "no key has left the host"
