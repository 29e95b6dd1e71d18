"""Key and certificate match at every moment, and TLS clients get the renewed certificate."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from fleet import HERE, HOST, Fleet, Plane, wait_for

from certctrl.sandbox.workspace import allow_service, install_items

RENEWALS, NAMES = 200, 4
pytestmark = pytest.mark.integration


class Reader:
    """A running `pair_reader.py`."""

    def __init__(self, fleet: Fleet, certs: Path, names: Sequence[str]) -> None:
        argv = [sys.executable, HERE / "pair_reader.py", certs, *names]
        self._child = fleet.child(argv, "reader.log", stdin=subprocess.PIPE)

    def has_read(self) -> bool:
        """Return whether it has read every pair once."""
        return "looked" in self._child.text

    def report(self) -> dict[str, Any]:
        """End it and return its counters."""
        assert self._child.process.stdin is not None
        self._child.process.stdin.close()
        assert self._child.wait() == 0, self._child.text
        return dict(json.loads(self._child.text.splitlines()[-1]))


def test_every_pair_read_during_200_renewals_matches(fleet: Fleet, plane: Plane) -> None:
    agent = fleet.agent(plane)
    names = [f"pair{number}.example.com" for number in range(NAMES)]
    ids = [plane.operator.issue(name, agent.device_id)["id"] for name in names]
    agent.start()
    agent.catches_up()
    reader = Reader(fleet, agent.layout.certs, names)
    wait_for(reader.has_read, "a first look")
    for _ in range(RENEWALS // NAMES):
        for cert_id in ids:
            plane.operator.renew(cert_id)
        agent.catches_up()
    report = reader.report()
    seen = report["seen"]
    print(f"{RENEWALS} renewals, {report['generations']} generations read, {seen}")
    assert {kind for kind in seen if "mismatch" in kind or "missing" in kind} == set()
    assert seen["directory match"] + seen["names match"] >= 2 * RENEWALS
    assert report["generations"] > RENEWALS / 4  # the reader ran during the renewals
    assert agent.daemon.stop() == 0


def test_the_reader_finds_mixed_pairs(fleet: Fleet, plane: Plane) -> None:
    agent = fleet.agent(plane)
    names = ["one.example.com", "two.example.com"]
    for name in names:
        plane.operator.issue(name, agent.device_id)
    agent.start()
    agent.catches_up()
    agent.daemon.stop()
    one, two = map(agent.layout.live_link, names)
    (one / "private.key").write_bytes((two / "private.key").read_bytes())
    (agent.layout.certs / "two.example.com.key").unlink()
    reader = Reader(fleet, agent.layout.certs, names)
    wait_for(reader.has_read, "a first look")
    assert set(reader.report()["seen"]) == {
        "directory mismatch", "names mismatch",  # one
        "directory match", "names missing",  # two
    }  # fmt: skip


def shown_serial(openssl: str, port: int, name: str, ca: Path) -> str:
    """Return the serial that `openssl s_client` is served for a name, verified against the plane's root."""
    client = subprocess.run(
        [openssl, "s_client", "-connect", f"{HOST}:{port}", "-servername", name, "-CAfile", str(ca),
         "-verify_return_error", "-verify_hostname", name],
        input="", capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert client.returncode == 0, client.stdout + client.stderr
    shown = subprocess.run(
        [openssl, "x509", "-noout", "-serial"], input=client.stdout, capture_output=True, text=True, check=True
    )
    return shown.stdout.strip().removeprefix("serial=").lower()


@pytest.mark.parametrize("kind", ["builtin", "nginx"])
def test_openssl_sees_the_new_serial_after_each_of_10_renewals(
    kind: str, fleet: Fleet, plane: Plane, need: Callable[[str], str]
) -> None:
    openssl = need("openssl")
    if kind == "nginx":
        need("nginx")
    agent, name = fleet.agent(plane, poll_mode="interval", poll_interval_ms=100), f"{kind}.example.com"
    cert_id = plane.operator.issue(name, agent.device_id)["id"]
    agent.start()
    agent.catches_up()
    agent.daemon.stop()
    service = fleet.service(kind, agent, [name])
    allow_service(agent.layout, service.server)
    plane.operator.put_items(agent.device_id, install_items(service.server, {cert_id: name}))
    agent.start()
    shown = [shown_serial(openssl, service.server.port, name, plane.issuing_ca)]
    for _ in range(10):
        plane.operator.renew(cert_id)
        issued = plane.operator.serial(cert_id)
        wait_for(partial(agent.acked, issued), "the ack of the renewal")
        shown.append(shown_serial(openssl, service.server.port, name, plane.issuing_ca))
        assert shown[-1] == issued.replace(":", "")  # the ack reports it as served: no waiting, no retry
    assert len(set(shown)) == 11
    assert agent.daemon.stop() == 0
