"""Fixtures of the command line tests: run commands in-process on a config directory."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import attrs
import pytest

from certctrl.__main__ import main
from certctrl.cli.doctor.finding import CheckContext
from certctrl.model.certificate import CertFacts
from certctrl.model.plan import OutcomeKind
from certctrl.model.records import CertRecord, Stage
from certctrl.store.config.files import init_config_dir
from certctrl.store.disk.fs import RealFs
from certctrl.store.layout import ConfigDir
from certctrl.store.state.store import StateStore

from .doctor_helpers import CONFIG

NOW = 1_759_470_000.0
DAY = 86_400.0


class Ran(NamedTuple):
    """Exit status and output of one command."""

    status: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture(autouse=True)
def _restored_logging(own_logging: None) -> None:
    """Apply `own_logging` to every test."""


@pytest.fixture
def ran(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """``ran("-c", DIR, "status")`` runs a command line in this process."""

    def run(*argv: object) -> Ran:
        capsys.readouterr()
        status = main([str(word) for word in argv])
        out, err = capsys.readouterr()
        return Ran(int(status), out, err)

    return run


@pytest.fixture
def layout(tmp_path: Path) -> ConfigDir:
    """A new config directory, not registered."""
    made = ConfigDir(tmp_path / "agent")
    init_config_dir(RealFs(), made, server_url="https://plane.example", ca_pem=None)
    return made


@pytest.fixture
def store(layout: ConfigDir) -> StateStore:
    return StateStore(layout, RealFs())


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> float:
    """Stop the wall clock at NOW."""
    monkeypatch.setattr("certctrl.agent.clock.wall_now", lambda: NOW)
    return NOW


def record(cert_id: int = 7, name: str = "www.example.com", **changes: Any) -> CertRecord:
    """Return the record of a deployed certificate in the middle of its validity."""
    facts = CertFacts(
        cert_id=cert_id, name=name, domains=(name, "example.com"), serial="04:ab:00:11:22:33:44:55:66",
        fingerprint_sha256="ab" * 32, not_before=NOW - 45 * DAY, not_after=NOW + 45 * DAY,
    )  # fmt: skip
    about_it = {key: changes.pop(key) for key in list(changes) if key in attrs.fields_dict(CertFacts)}
    plain = CertRecord(
        facts=attrs.evolve(facts, **about_it), generation="g1", stage=Stage.ACTIVATED,
        last_outcome=OutcomeKind.APPLIED, last_apply_at=NOW - DAY,
    )  # fmt: skip
    return attrs.evolve(plain, **changes)


Answer = Callable[[dict[str, Any]], object]


class FakeDaemon:
    """A control socket that answers requests with the result of ``answer``; bytes are sent unchanged."""

    def __init__(self, layout: ConfigDir, answer: Answer) -> None:
        self.requests: list[dict[str, Any]] = []
        self._answer = answer
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._sock.bind(str(layout.control_socket))
        self._sock.listen(8)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                conn, _ = self._sock.accept()
            except OSError:
                return
            with conn, conn.makefile("rb") as lines:
                line = lines.readline()
                if not line:
                    continue
                request = json.loads(line)
                self.requests.append(request)
                reply = self._answer(request)
                with contextlib.suppress(OSError):  # the client may be gone
                    conn.sendall(reply if isinstance(reply, bytes) else json.dumps(reply).encode() + b"\n")

    def close(self) -> None:
        self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()
        self._thread.join(5)


@pytest.fixture
def daemon(layout: ConfigDir) -> Iterator[Callable[[Answer], FakeDaemon]]:
    """``daemon(answer)`` starts a fake daemon on the socket of the layout."""
    started: list[FakeDaemon] = []

    def start(answer: Answer) -> FakeDaemon:
        started.append(FakeDaemon(layout, answer))
        return started[-1]

    yield start
    for one in started:
        one.close()


def running_status(**changes: Any) -> dict[str, Any]:
    """Return the status of a healthy daemon in the reporter's format."""
    return {
        "running": True, "pid": 1, "version": "0", "started_at": NOW - (2 * 86_400 + 14 * 3600 + 32 * 60), "now": NOW,
        "state": "Polling", "server_url": "https://plane.example", "device_id": "d",
        "poll": {
            "mode": "interval", "interval_ms": 5000, "last_at": NOW - 5, "last_code": 204,
            "last_text": "204 No Content", "next_at": NOW + 5, "last_retry_after": None, "failures": 0,
            "breaker_open": False,
        },
        "cursor": "1736900123-42", "cursor_at": NOW - 8100, "queue_depth": 0,
        "token": {"expires_at": NOW + 863}, "last_signal": {"type": "install.updated", "at": NOW - 8100},
        "acks_pending": 0, "health": "healthy", "problems": [], "stuck": [], "quarantined": [], "counters": {},
    } | changes  # fmt: skip


@pytest.fixture
def context(layout: ConfigDir, store: StateStore) -> CheckContext:
    return CheckContext(layout=layout, fs=RealFs(), store=store, environ={}, now=lambda: NOW, config=CONFIG)
