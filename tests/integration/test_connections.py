"""The agent keeps its connection to the plane: a relay between daemon and plane counts connections."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections import Counter
from collections.abc import Iterator

import pytest
from fleet import HOST, PATIENCE, Agent, Fleet, Plane, wait_for

pytestmark = pytest.mark.integration


class Relay:
    """Passes TCP on to the plane; counts connections, and bytes sent by the agent on each."""

    def __init__(self, port: int) -> None:
        self.accepted = 0
        self.sent: Counter[int] = Counter()
        self._port = port
        self._listener = socket.create_server((HOST, 0))
        self.port = int(self._listener.getsockname()[1])
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection((HOST, self._port))
                number, self.accepted = self.accepted, self.accepted + 1
                self._sockets += [near, far]
                for source, sink, count in ((near, far, True), (far, near, False)):
                    thread = threading.Thread(target=self._pass_on, args=(source, sink, number, count), daemon=True)
                    thread.start()
                    self._threads.append(thread)

    def _pass_on(self, source: socket.socket, sink: socket.socket, number: int, count: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65_536):
                if count:
                    self.sent[number] += len(data)
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """End every connection and thread."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for one in self._sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for one in self._sockets:
            one.close()


@pytest.fixture
def relay(plane: Plane) -> Iterator[Relay]:
    made = Relay(int(plane.url.rpartition(":")[2]))
    yield made
    made.close()


def used_during(relay: Relay, agent: Agent, polls: int, seconds: float = PATIENCE) -> tuple[int, int]:
    """Wait for some polls; return the connections used and those opened meanwhile."""
    daemon = agent.daemon
    daemon.says("Compared with the plane", "Done: type=install.updated")
    wait_for(agent.has_reported_all, "the acks to be sent")
    seen = daemon.text.count("Response: 204")
    daemon.says("Response: 204", count=seen + 3)  # the start is over: only polls follow
    before, accepted, answered = relay.sent.copy(), relay.accepted, daemon.text.count("Response: 204")
    wait_for(lambda: daemon.text.count("Response: 204") >= answered + polls, f"{polls} polls", seconds)
    return len(relay.sent - before), relay.accepted - accepted


@pytest.mark.parametrize(
    ("polls", "settings"),
    [
        pytest.param(100, {"poll_mode": "interval", "poll_interval_ms": 20}, id="100 polls"),
        pytest.param(5, {"poll_mode": "long-poll", "long_poll_wait_seconds": 1}, id="5 long polls"),
        pytest.param(
            100,
            {"poll_mode": "long-poll", "long_poll_wait_seconds": 1},
            id="100 long polls",
            marks=pytest.mark.campaign,
        ),
        # httpx would close a connection that idles for 5 s, which is the spec's interval
        pytest.param(
            10, {"poll_mode": "interval", "poll_interval_ms": 5500}, id="10 slow polls", marks=pytest.mark.campaign
        ),
    ],
)
def test_all_polls_go_over_one_connection(
    polls: int, settings: dict[str, object], fleet: Fleet, plane: Plane, relay: Relay
) -> None:
    agent = fleet.agent(plane, server_url=f"https://{HOST}:{relay.port}", **settings)
    agent.start()
    used, opened = used_during(relay, agent, polls, 300.0)
    print(f"{polls} polls: {used} connection used, {opened} opened, {relay.accepted} since the start")
    assert (used, opened) == (1, 0)
    assert agent.daemon.stop() == 0


def test_a_broken_connection_is_replaced_by_one(fleet: Fleet, plane: Plane, relay: Relay) -> None:
    """Check the counter: a new connection is counted."""
    agent = fleet.agent(plane, server_url=f"https://{HOST}:{relay.port}", poll_mode="interval", poll_interval_ms=20)
    agent.start()
    assert used_during(relay, agent, 5) == (1, 0)
    accepted = relay.accepted
    for one in list(relay._sockets):
        with contextlib.suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)
    wait_for(lambda: relay.accepted > accepted, "a new connection")
    assert used_during(relay, agent, 20)[1] == 0
    assert agent.daemon.stop() == 0
