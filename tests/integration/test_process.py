"""The daemon as a process: stopping, reloading, SIGUSR1, and notifications of the service manager."""

from __future__ import annotations

import json
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fleet import HERE, Agent, Child, Fleet, Plane, processes_naming, wait_for

from certctrl.model.policy import HostPolicy, NamedCommand
from certctrl.store.config.files import save_policy
from certctrl.store.disk.fs import RealFs

pytestmark = pytest.mark.integration


class SlowReload:
    """A slow reload command, which marks its start and its end."""

    def __init__(self, agent: Agent, seconds: float) -> None:
        self.path = agent.layout.root.with_name(f"{agent.name}-reload.sh")
        self.marks = self.path.with_suffix(".marks")
        self.takes(seconds)
        argv = ("/bin/sh", str(self.path))
        save_policy(
            RealFs(), agent.layout, HostPolicy(commands={"reload": NamedCommand(argv=argv, timeout_seconds=120)})
        )
        item = {"id": "reload", "type": "exec", "cmd_argv": list(argv), "timeout_ms": 120_000}
        agent.plane.operator.put_items(agent.device_id, [item])

    def takes(self, seconds: float) -> None:
        """Change its duration."""
        self.path.write_text(f"echo begun >> {self.marks}\nsleep {seconds}\necho done >> {self.marks}\n")
        self.marks.write_text("")

    def seen(self, mark: str) -> int:
        """Return how often a mark was written."""
        return self.marks.read_text().split().count(mark)

    def begins(self) -> None:
        """Wait until it runs."""
        wait_for(lambda: self.seen("begun") > 0, "the reload to begin")


@pytest.fixture
def installing(fleet: Fleet, plane: Plane) -> Iterator[tuple[Agent, SlowReload]]:
    """Return a running agent with one certificate, and the reload of each renewal."""
    agent = fleet.agent(plane)
    plane.operator.issue("slow.example.com", agent.device_id)
    agent.start()
    agent.catches_up()
    agent.daemon.stop()
    reload = SlowReload(agent, 0)
    agent.start()
    wait_for(lambda: reload.seen("done"), "the first reload")
    wait_for(lambda: not agent.state.session.load_inbox(), "the start to be over")
    yield agent, reload
    assert processes_naming(str(reload.path)) == []


def renew(agent: Agent) -> None:
    for cert_id in agent.serials():
        agent.plane.operator.renew(cert_id)


# --- stopping ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_lets_a_running_install_finish(signum: signal.Signals, installing: tuple[Agent, SlowReload]) -> None:
    agent, reload = installing
    reload.takes(1)
    renew(agent)
    reload.begins()
    assert agent.daemon.stop(signum) == 0
    assert (reload.seen("begun"), reload.seen("done")) == (1, 1)
    assert agent.caught_up()
    assert agent.state.session.load_inbox() == ()
    assert agent.state.session.load_outcomes()[0] == ()  # and it is reported to the plane
    lines = agent.daemon.text
    assert f"Stopping: {signum.name}; running work gets up to 10.0 s" in lines
    assert lines.rstrip().endswith(f"Stopped: asked to stop {signum.name}")
    agent.start()
    agent.daemon.says("Compared with the plane: 1 certificate, 0 differences")
    assert agent.daemon.stop() == 0


def test_a_stop_does_not_wait_beyond_the_grace_time(installing: tuple[Agent, SlowReload]) -> None:
    agent, reload = installing
    agent.daemon.stop()
    agent.configure(stop_grace_seconds=0.5)
    agent.start()
    reload.takes(100)
    renew(agent)
    reload.begins()
    assert agent.daemon.stop() == 0
    assert (reload.seen("begun"), reload.seen("done")) == (1, 0)
    assert processes_naming(str(reload.path)) == []
    reload.takes(0)
    agent.start()
    wait_for(lambda: reload.seen("done"), "the reload that was pending")
    assert agent.caught_up()
    assert agent.daemon.stop() == 0


def test_a_second_sigterm_ends_it_immediately(installing: tuple[Agent, SlowReload]) -> None:
    agent, reload = installing
    agent.daemon.stop()
    agent.configure(stop_grace_seconds=300)
    agent.start()
    reload.takes(100)
    renew(agent)
    reload.begins()
    agent.daemon.send(signal.SIGTERM)
    agent.daemon.says("Stopping: SIGTERM; running work gets up to 300.0 s")
    assert agent.daemon.stop(signal.SIGTERM) == 0
    assert "Second stop request: cancelling running work" in agent.daemon.text
    assert reload.seen("done") == 0


def test_stops_at_random_moments_of_an_install(installing: tuple[Agent, SlowReload]) -> None:
    agent, reload = installing
    agent.daemon.stop()
    reload.takes(0.2)
    for _ in range(5):
        agent.start()
        renew(agent)
        time.sleep(random.uniform(0, 0.6))  # the random moment is what is tested
        assert agent.daemon.stop() == 0
    agent.start()
    agent.catches_up()
    wait_for(lambda: not agent.state.session.load_inbox(), "everything to be done")
    assert agent.daemon.stop() == 0
    assert reload.seen("begun") == reload.seen("done")


# --- SIGHUP, SIGUSR1 --------------------------------------------------------------------------------------------------


def test_sighup_applies_a_good_configuration_and_rejects_a_bad_one(fleet: Fleet, plane: Plane) -> None:
    agent = fleet.agent(plane, poll_mode="interval", poll_interval_ms=100)
    daemon = agent.start()
    agent.configure(poll_interval_ms=110)
    daemon.send(signal.SIGHUP)
    daemon.says("Configuration reloaded: application.poll_interval_ms\n")
    agent.configure(poll_intervall_ms=5)
    daemon.send(signal.SIGHUP)
    daemon.says("Configuration rejected, keeping the old one: ", "poll_intervall_ms: unknown key")
    status = json.loads(agent.cli("status", "--daemon", "--json").stdout)
    assert status["poll"]["interval_ms"] == 110
    assert [(problem["what"], problem["fix"]) for problem in status["problems"]] == [
        (f"new configuration rejected: {agent.layout.application}: poll_intervall_ms: unknown key",
         "did you mean 'poll_interval_ms'?"),
    ]  # fmt: skip
    assert status["exit_status"] == 1
    daemon.says("204 No Content", count=daemon.text.count("204 No Content") + 2)  # it keeps working
    agent.layout.application.write_text(agent.layout.application.read_text().replace("intervall", "interval"))
    agent.configure(poll_interval_ms=120)
    daemon.send(signal.SIGHUP)
    daemon.says("Configuration reloaded", count=2)
    assert agent.cli("status", "--daemon").returncode == 0
    assert daemon.stop() == 0


def test_sigusr1_polls_now(fleet: Fleet, plane: Plane) -> None:
    agent = fleet.agent(plane, poll_mode="interval", poll_interval_ms=3_600_000)
    daemon = agent.start()
    daemon.says("204 No Content")
    plane.operator.issue("now.example.com", agent.device_id)
    daemon.send(signal.SIGUSR1)
    daemon.says("Immediate poll requested by SIGUSR1", "Response: 200 OK, 1 signal", "outcome=applied")
    assert agent.caught_up()
    assert daemon.stop() == 0


# --- the service manager ----------------------------------------------------------------------------------------------


class Manager:
    """The socket of a service manager, and the messages received."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "notify")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.path)
        self._socket.setblocking(False)
        self._told: list[str] = []

    def reported(self) -> list[str]:
        """Return the messages received so far."""
        try:
            while True:
                self._told.append(self._socket.recv(4096).decode())
        except BlockingIOError:
            return self._told

    def hears(self, start: str, after: int = 0, count: int = 1) -> int:
        """Wait for the count-th message with a prefix after a position; return its position."""

        def found() -> list[int]:
            places = [at for at, text in enumerate(self.reported()) if at > after - 1 and text.startswith(start)]
            return places[count - 1 : count]

        try:
            return wait_for(found, f"{count} x {start!r}")[0]
        except AssertionError as error:
            raise AssertionError(f"{error}; received: {self._told}") from None

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


@pytest.fixture
def manager() -> Iterator[Manager]:
    folder = Path(tempfile.mkdtemp(prefix="cc-"))  # the path of a socket must be short
    made = Manager(folder)
    yield made
    made.close()
    shutil.rmtree(folder)


def test_the_service_manager_is_notified_in_order(fleet: Fleet, plane: Plane, manager: Manager) -> None:
    agent = fleet.agent(plane, poll_mode="interval", poll_interval_ms=100)
    daemon = agent.start(NOTIFY_SOCKET=manager.path, WATCHDOG_USEC="200000")
    ready = manager.hears("READY=1")
    assert manager.reported()[ready] == f"READY=1\nSTATUS=polling {plane.url}"
    assert not [text for text in manager.reported()[:ready] if "STOPPING" in text]
    fed = manager.hears("WATCHDOG=1", after=ready, count=3)
    agent.configure(poll_interval_ms=110)
    daemon.send(signal.SIGHUP)
    reloading = manager.hears("RELOADING=1\nMONOTONIC_USEC=", after=fed)
    again = manager.hears("READY=1", after=reloading)
    fed = manager.hears("WATCHDOG=1", after=again, count=2)
    assert daemon.stop() == 0
    stopping = manager.hears("STOPPING=1", after=fed)
    assert manager.reported()[stopping] == "STOPPING=1\nSTATUS=SIGTERM"
    assert set(manager.reported()[stopping + 1 :]) <= {"WATCHDOG=1"}


def test_problems_are_reported_as_status(fleet: Fleet, plane: Plane, manager: Manager) -> None:
    agent = fleet.agent(plane, poll_mode="interval", poll_interval_ms=100)
    daemon = agent.start(NOTIFY_SOCKET=manager.path)
    daemon.says("204 No Content")
    agent.configure(poll_mode="sometimes")
    daemon.send(signal.SIGHUP)
    manager.hears("STATUS=degraded; 204 No Content")
    agent.configure(poll_mode="interval")
    daemon.send(signal.SIGHUP)
    manager.hears("STATUS=healthy; 204 No Content")
    assert daemon.stop() == 0
    assert not [text for text in manager.reported() if text.startswith("WATCHDOG")]  # no watchdog is configured


def test_a_blocked_event_loop_sends_no_watchdog_pings(fleet: Fleet, plane: Plane, manager: Manager) -> None:
    agent = fleet.agent(plane)
    argv = [sys.executable, HERE / "stuck_daemon.py", "-c", agent.layout.root, "--keep-running"]
    daemon: Child = fleet.child(argv, "stuck.log", NOTIFY_SOCKET=manager.path, WATCHDOG_USEC="100000")
    fed = manager.hears("WATCHDOG=1", after=manager.hears("READY=1"), count=3)
    daemon.send(signal.SIGUSR2)
    stuck = manager.hears("STUCK=1", after=fed)
    free = manager.hears("FREE=1", after=stuck)
    assert manager.reported()[stuck + 1 : free] == []
    manager.hears("WATCHDOG=1", after=free, count=2)
    assert daemon.stop() == 0


def test_ready_is_sent_without_a_plane(fleet: Fleet, manager: Manager) -> None:
    plane = fleet.plane()
    agent = fleet.agent(plane)
    plane.child.kill()
    daemon = agent.start(NOTIFY_SOCKET=manager.path)
    manager.hears("READY=1")
    assert daemon.stop() == 0
