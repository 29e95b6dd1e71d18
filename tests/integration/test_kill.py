"""Repeated SIGKILL: nothing is lost, no certificate is reported as new twice, and the host matches the plane."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping

import pytest
from fleet import HERE, HOST, Fleet, Plane, wait_for

from certctrl.sandbox.workspace import allow_service, install_items

pytestmark = pytest.mark.integration

NAMES = ("one.example.com", "two.example.com")


class Onlooker:
    """A TLS client that connects to each name all the time, and a reader of the files."""

    def __init__(self, fleet: Fleet, stage: Stage) -> None:
        self.seen: dict[int, list[str]] = {cert_id: [] for cert_id in stage.ids}
        self._port, self._ids = stage.service.server.port, stage.ids
        self._context = ssl.create_default_context(cafile=str(stage.plane.issuing_ca))
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look_on, daemon=True)
        self._thread.start()
        argv = [sys.executable, HERE / "pair_reader.py", stage.agent.layout.certs, *NAMES]
        self._reader = fleet.child(argv, "reader.log", stdin=subprocess.PIPE)

    def _look_on(self) -> None:
        while not self._ended.is_set():
            for cert_id, name in self._ids.items():
                with contextlib.suppress(OSError):  # a service refuses a name until it serves it
                    serial = self.served(name)
                    if self.seen[cert_id][-1:] != [serial]:
                        self.seen[cert_id].append(serial)
            self._ended.wait(0.02)

    def served(self, name: str) -> str:
        """Return the serial that is served behind a name now."""
        with socket.create_connection((HOST, self._port), timeout=10) as plain:
            with self._context.wrap_socket(plain, server_hostname=name) as tls:
                shown = tls.getpeercert()
        assert shown is not None
        return bytes.fromhex(str(shown["serialNumber"])).hex(":")

    def end(self) -> dict[str, int]:
        """Stop, and return the counters of the reader."""
        self._ended.set()
        self._thread.join()
        assert self._reader.process.stdin is not None
        self._reader.process.stdin.close()
        assert self._reader.wait() == 0, self._reader.text
        return dict(json.loads(self._reader.text.splitlines()[-1])["seen"])


class Stage:
    """Plane, agent and TLS service with the whole pipeline: check, copy, reload, probe."""

    def __init__(self, fleet: Fleet) -> None:
        self.plane = fleet.plane(poll_rate=1000.0, poll_burst=1000, access_token_seconds=10)
        operator = self.plane.operator
        self.agent = fleet.agent(self.plane, poll_mode="interval", poll_interval_ms=100)
        rows = [operator.issue(name, self.agent.device_id) for name in NAMES]
        self.ids: Mapping[int, str] = {row["id"]: row["domain_name"] for row in rows}
        self.issued: dict[int, list[str]] = {row["id"]: [row["serial_number"]] for row in rows}
        self.agent.start()
        self.agent.catches_up()
        self.agent.daemon.stop()
        self.service = fleet.service("builtin", self.agent, list(NAMES))
        allow_service(self.agent.layout, self.service.server)
        operator.put_items(self.agent.device_id, install_items(self.service.server, self.ids))
        self.onlooker = Onlooker(fleet, self)
        self.usual = self._seconds_of_a_renewal()

    def _seconds_of_a_renewal(self) -> float:
        """Return how long one renewal takes now, so that kills can fall anywhere into it."""
        self.agent.start()
        wait_for(self.agent.caught_up, "the start")
        began, cert_id = time.monotonic(), next(iter(self.ids))
        self.plane.operator.renew(cert_id)
        self.learn(cert_id)
        wait_for(lambda: self.onlooker.seen[cert_id][-1] == self.issued[cert_id][-1], "a renewal")
        took = time.monotonic() - began
        self.agent.daemon.stop()
        return took

    def learn(self, cert_id: int) -> None:
        """Record the newest serial of a certificate."""
        serial = self.plane.operator.serial(cert_id)
        if self.issued[cert_id][-1] != serial:
            self.issued[cert_id].append(serial)

    def settled(self) -> bool:
        """Return whether host, service and plane agree, and all outcomes are reported."""
        acked = self.acked()
        return (
            self.agent.caught_up()
            and all(set(serials[1:]) <= acked for serials in self.issued.values())
            and not self.agent.state.session.load_inbox()
            and all(self.onlooker.served(name) == self.issued[cert_id][-1] for cert_id, name in self.ids.items())
        )

    def acked(self) -> set[str]:
        """Return the serials of all renewals whose signal was acked, with any outcome."""
        rows = self.plane.operator.outcomes(self.agent.device_id)
        return {row["signal"]["ref"].get("serial", "") for row in rows if row["signal"]["type"] == "cert.renewed"}

    def judge(self) -> None:
        """Wait until host and plane agree, check every guarantee, print the counters."""
        wait_for(self.settled, "host, service and plane to agree")
        assert self.agent.daemon.stop() == 0
        files = self.onlooker.end()
        renewed = {serial for serials in self.issued.values() for serial in serials[1:]}
        history = Counter(
            entry["serial"]
            for entry in self.agent.state.installed.load_history()
            if entry["outcome"] == "applied" and entry["from"] != entry["to"]  # otherwise its command was due once more
        )
        reported = [
            (row["serial"], outcome["signal"])
            for outcome in self.plane.operator.outcomes(self.agent.device_id)
            for row in outcome["deployed"]
            if (outcome["outcome"], outcome["signal"]["type"]) == ("applied", "cert.renewed")
            and row["serial"] in renewed
        ]
        served = {cert_id: len(seen) for cert_id, seen in self.onlooker.seen.items()}
        print(f"issued {sum(map(len, self.issued.values()))}, served {sum(served.values())}, files {files}")
        for cert_id, seen in self.onlooker.seen.items():
            assert seen == [serial for serial in self.issued[cert_id] if serial in seen], (
                "served out of order, or twice"
            )
        assert {kind for kind in files if "mismatch" in kind or "missing" in kind} == set()
        assert len({serial for serial, _ in reported}) == len(reported), f"reported as new twice: {reported}"
        assert not {serial: count for serial, count in history.items() if count > 1}, "deployed as new twice"
        left = [path for path in self.agent.layout.root.rglob("*") if ".tmp-" in path.name]
        assert left == []


@pytest.fixture
def rng() -> random.Random:
    """Return the random generator of this run; CERTCTRL_TEST_SEED repeats one."""
    seed = int(os.environ.get("CERTCTRL_TEST_SEED") or int.from_bytes(os.urandom(4)))
    print(f"CERTCTRL_TEST_SEED={seed}")
    return random.Random(seed)


def where_it_hit(text: str) -> str:
    """Return what a daemon was doing when it was killed, from its log."""
    if "Ready: poll mode" not in text:
        return "starting"
    return "deploying" if text.count("] Processing: ") > text.count("] Done: ") else "between"


def kill_daemons(fleet: Fleet, rng: random.Random, kills: int) -> None:
    stage = Stage(fleet)
    hits: Counter[str] = Counter()
    for number in range(kills):
        ready = rng.random() < 0.8
        daemon = stage.agent.start(ready=ready)
        cert_id = list(stage.ids)[number % len(stage.ids)]
        stage.plane.operator.renew(cert_id)
        stage.learn(cert_id)
        time.sleep(rng.uniform(0.0, 2 * stage.usual))  # the moment is the test: any will do
        daemon.kill()
        hits[where_it_hit(daemon.text)] += 1
    stage.agent.start()
    print(f"{kills} daemons killed, of which {dict(hits)}; a renewal takes {stage.usual:.2f} s")
    stage.judge()


def kill_planes(fleet: Fleet, rng: random.Random, kills: int) -> None:
    stage = Stage(fleet)
    daemon, lost = stage.agent.start(), 0
    for number in range(kills):
        cert_id = list(stage.ids)[number % len(stage.ids)]
        with killed_during(stage.plane, rng.choice((0.1, 2 * stage.usual)) * rng.random()):  # its work, or the agent's
            try:
                stage.plane.operator.renew(cert_id)
            except (OSError, AssertionError):
                lost += 1
        stage.plane.start()
        stage.learn(cert_id)
        if rng.random() < 0.7:
            daemon.send(signal.SIGUSR1)  # otherwise its backoff may delay it until the next kill
    daemon.send(signal.SIGUSR1)
    print(f"{kills} planes killed, {lost} requests broken off")
    stage.judge()
    assert "Cursor reset" not in daemon.text  # the plane knows every cursor that it has sent


@contextlib.contextmanager
def killed_during(plane: Plane, after: float) -> Iterator[None]:
    """Kill the plane at a random moment of the block."""
    timer = threading.Timer(after, plane.child.kill)
    timer.start()
    try:
        yield
    finally:
        timer.join()


def test_a_daemon_killed_at_random_moments_loses_nothing(fleet: Fleet, rng: random.Random) -> None:
    kill_daemons(fleet, rng, 10)


def test_a_plane_killed_at_random_moments_loses_nothing(fleet: Fleet, rng: random.Random) -> None:
    kill_planes(fleet, rng, 6)


@pytest.mark.campaign
@pytest.mark.timeout(3600)
def test_100_daemons_killed_during_100_renewals(fleet: Fleet, rng: random.Random) -> None:
    kill_daemons(fleet, rng, 100)


@pytest.mark.campaign
@pytest.mark.timeout(3600)
def test_100_planes_killed_during_100_renewals(fleet: Fleet, rng: random.Random) -> None:
    kill_planes(fleet, rng, 100)
