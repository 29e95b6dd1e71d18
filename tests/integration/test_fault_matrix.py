"""Faults around a daemon that are not its own: it delivers a certificate, answers, and stops in order."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from acl import acl_of, packed, set_acl
from fleet import HERE, PATIENCE, PROGRAM, ROOT, Agent, Fleet, Plane, clean_environment, wait_for

pytestmark = pytest.mark.integration

NO_WORDS = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
"""A locale that cannot encode more than ASCII."""
MONTH = 30 * 86_400.0


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


def full_pipe(stack: ExitStack) -> int:
    reader, writer = os.pipe()
    stack.callback(os.close, reader)
    return filled(writer)


def full_socket(stack: ExitStack) -> int:
    ours, theirs = socket.socketpair()
    stack.callback(ours.close)
    return filled(theirs.detach())


def filled(writer: int) -> int:
    os.set_blocking(writer, False)
    for size in (4096, 1):
        try:
            while True:
                os.write(writer, b"x" * size)
        except BlockingIOError:
            continue
    os.set_blocking(writer, True)
    return writer


def deserted_pipe(stack: ExitStack) -> int:
    reader, writer = os.pipe()
    os.close(reader)
    return writer


def copy(name: str, cert_id: int, file: str, to: Path) -> dict[str, object]:
    return {"id": name, "type": "copy", "ob_type": "cert", "ob_id": cert_id, "from": [file], "to": [str(to)]}


def delivers_and_stops(agent: Agent, process: subprocess.Popen[bytes], domain: str) -> None:
    """Require that the daemon deploys a certificate, answers and ends with 0."""
    try:
        agent.plane.operator.issue(domain, agent.device_id)
        wait_for(lambda: process.poll() is not None or agent.caught_up(), "the certificate")
        assert process.poll() is None
        assert agent.cli("status").returncode == 0
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("output", [full_pipe, full_socket, deserted_pipe])
def test_no_one_reads_the_log(output: Callable[[ExitStack], int], stack: ExitStack, fleet: Fleet, plane: Plane) -> None:
    agent, writer = fleet.agent(plane, output.__name__), output(stack)
    stack.callback(os.close, writer)
    argv = [*PROGRAM, "-c", str(agent.layout.root), "--keep-running"]
    process = subprocess.Popen(
        argv, cwd=ROOT, env=clean_environment(), stdin=subprocess.DEVNULL, stdout=writer, stderr=writer
    )
    delivers_and_stops(agent, process, f"{output.__name__.replace('_', '-')}.example")


def test_there_are_no_standard_streams(fleet: Fleet, plane: Plane) -> None:
    agent = fleet.agent(plane, "closed")
    program = ["/bin/sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *PROGRAM, "-c", str(agent.layout.root)]
    process = subprocess.Popen([*program, "--keep-running"], cwd=ROOT, env=clean_environment())
    delivers_and_stops(agent, process, "closed.example")


def test_the_locale_cannot_encode_a_destination(fleet: Fleet, plane: Plane) -> None:
    """The item with that destination is refused, with the reason; the other one is carried out."""
    agent, out = fleet.agent(plane, "Büro"), fleet.root / "out"
    out.mkdir()
    agent.configure("policy.json", write_roots=[str(out)])
    items = []
    for name, file in (("good", "good.pem"), ("bad", "ключ.pem")):
        row = plane.operator.issue(f"{name}.example", agent.device_id)
        items.append(copy(name, row["id"], "fullchain.pem", out / file))
    plane.operator.put_items(agent.device_id, items)
    daemon = agent.start(**NO_WORDS)
    wait_for(lambda: not daemon.running or (out / "good.pem").exists(), "the other item")
    daemon.says("this locale (ascii) cannot encode its name")
    agent.catches_up()
    assert daemon.running
    shown = agent.cli("status", **NO_WORDS)
    assert (shown.returncode, "\\u043a\\u043b\\u044e\\u0447" in shown.stdout) == (1, True), shown.stdout
    assert agent.cli("config", "show", **NO_WORDS).returncode == 0
    assert daemon.stop() == 0
    assert "Traceback" not in daemon.text
    assert [path.name for path in out.iterdir()] == ["good.pem"]


def test_a_destination_has_an_access_control_list(fleet: Fleet, plane: Plane, need_acl: Callable[[Path], None]) -> None:
    need_acl(fleet.root)
    agent, path = fleet.agent(plane, "listed"), fleet.root / "listed.key"
    reader = "user::6 user:1234:4 group::0 mask::4 other::0"
    path.write_text("old")
    set_acl(path, reader)
    agent.configure("policy.json", write_roots=[str(fleet.root)])
    row = plane.operator.issue("listed.example", agent.device_id)
    plane.operator.put_items(agent.device_id, [copy("key", row["id"], "private.key", path)])
    daemon = agent.start()
    wait_for(lambda: "PRIVATE KEY" in path.read_text(), "the first key")
    first = path.read_text()
    plane.operator.renew(row["id"])
    wait_for(lambda: path.read_text() != first, "the second key")
    assert acl_of(path) == packed(reader)
    assert daemon.stop() == 0


def set_clock(offset: Path, seconds: float) -> None:
    """Set the clock of a daemon to ``seconds`` ahead; it may read the file at any moment."""
    offset.with_suffix(".new").write_text(str(seconds))
    offset.with_suffix(".new").replace(offset)


def test_the_clock_is_set_while_it_runs(fleet: Fleet, plane: Plane) -> None:
    """A month ahead and back again: renewals arrive. A month behind: they are not valid yet, until the clock is right."""
    agent, offset = fleet.agent(plane, "set"), fleet.root / "offset"
    set_clock(offset, 0)
    argv = [sys.executable, HERE / "set_clock_daemon.py", "-c", agent.layout.root, "--keep-running"]
    daemon = fleet.child(argv, "set.log", SET_CLOCK=str(offset))
    row = plane.operator.issue("set.example", agent.device_id)
    agent.catches_up()
    for step in (MONTH, 0.0):
        set_clock(offset, step)
        plane.operator.renew(row["id"])
        agent.catches_up()
    set_clock(offset, -MONTH)
    plane.operator.renew(row["id"])
    daemon.says("valid only in")
    assert daemon.stop() == 0
    assert "Traceback" not in daemon.text
    set_clock(offset, 0)
    daemon = fleet.child(argv, "right.log", SET_CLOCK=str(offset))
    agent.catches_up()
    assert daemon.stop() == 0
