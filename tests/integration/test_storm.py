"""Fifty concurrent one-shot commands during constant renewals, with the daemon and without it."""

from __future__ import annotations

import fcntl
import json
import re
import signal
import subprocess
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice
from pathlib import Path

import pytest
from fleet import Agent, Fleet, Plane, wait_for

pytestmark = pytest.mark.integration

CALLS = 50
NAMES = ("a.example.com", "b.example.com", "c.example.com")
KINDS = (
    "status", "status --daemon --json", "list-certs", "list-certs --json", "poll-now", "plan", "history --json",
    "config show", "config check", "doctor", "apply", "renew --domain a.example.com", "policy show", "plan --json",
    "apply --now --json", "renew --domain b.example.com --json",
)  # fmt: skip
DONE, FAILED, CHANGES, NOT_RUNNING, UNAVAILABLE, BUSY = 0, 1, 2, 3, 69, 75
LOCK_SECONDS = 35.0
"""Longest time that a process may hold the token lock: its POST has a deadline of 30 s."""


class Rain:
    """Renews one certificate after another until stopped."""

    def __init__(self, plane: Plane, ids: list[int]) -> None:
        self.renewals = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._rain, args=(plane, ids), daemon=True)
        self._thread.start()

    def _rain(self, plane: Plane, ids: list[int]) -> None:
        for cert_id in cycle(ids):
            if self._ended.wait(0.2):
                return
            plane.operator.renew(cert_id)
            self.renewals += 1

    def end(self) -> None:
        """Stop renewing."""
        self._ended.set()
        self._thread.join()


class Warden:
    """Tries the token lock continuously and measures how long other processes hold it."""

    def __init__(self, agent: Agent) -> None:
        self.longest, self.times = 0.0, 0
        self._path, self._ended = agent.layout.token_lock, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        held_since: float | None = None
        while not self._ended.wait(0.005):
            with self._path.open("rb") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    held_since = None
                except BlockingIOError:
                    now = time.monotonic()
                    self.times += held_since is None
                    held_since = now if held_since is None else held_since
                    self.longest = max(self.longest, now - held_since)

    def end(self) -> None:
        """Stop measuring."""
        self._ended.set()
        self._thread.join()


@pytest.fixture
def agent(fleet: Fleet) -> Agent:
    """Return an agent whose tokens live for seconds, at a plane that rotates refresh tokens."""
    plane = fleet.plane(
        poll_rate=1000.0, poll_burst=1000, access_token_seconds=4, rotate_refresh_tokens=True, stream_length=10_000
    )
    made = fleet.agent(plane)
    for name in NAMES:
        plane.operator.issue(name, made.device_id)
    made.start()
    made.catches_up()
    return made


def fifty_at_once(agent: Agent) -> list[tuple[str, subprocess.CompletedProcess[str]]]:
    words = list(islice(cycle(KINDS), CALLS))
    with ThreadPoolExecutor(CALLS) as pool:
        return list(zip(words, pool.map(lambda one: agent.cli(*one.split()), words), strict=True))


def storm(agent: Agent, expected: dict[str, set[int]], always: set[int]) -> None:
    """Run the calls during renewals and check how each ended; print the results."""
    # of two renewals within a second, the first counts as not arrived until the signal of the second comes
    expected = {"apply": {DONE, FAILED}, "poll-now": {DONE, FAILED}} | expected
    rain, warden = Rain(agent.plane, list(agent.serials())), Warden(agent)
    try:
        done = fifty_at_once(agent)
    finally:
        rain.end()
        warden.end()
    endings = Counter((words.split()[0], one.returncode) for words, one in done)
    print(f"{len(done)} calls, {rain.renewals} renewals: {dict(sorted(endings.items()))}")
    print(f"token lock: seen held {warden.times} times, at most {warden.longest:.2f} s at a stretch")
    for words, one in done:
        story = f"{words}: exit {one.returncode}\n{one.stdout}{one.stderr}"
        assert one.returncode in expected.get(words.split()[0], {DONE}) | always, story
        assert "Traceback" not in one.stderr and "unexpected" not in one.stderr and "refuse" not in one.stderr, story
        if words.startswith("status") and one.returncode == FAILED:  # overloaded perhaps, but it reports that
            assert re.search("Problem: |Stuck: |did not answer", one.stdout + _problems(words, one.stdout)), story
        if one.returncode in (UNAVAILABLE, BUSY):
            assert one.stderr.startswith("cert-ctrl: error: ") and "\nfix: " in one.stderr, story
        if "--json" in words and one.returncode in (DONE, CHANGES):
            json.loads(one.stdout)
    assert warden.longest < LOCK_SECONDS


def _problems(words: str, out: str) -> str:
    """Return the problems of `status --json`, in the words of its text output."""
    reported = json.loads(out) if "--json" in words else {}
    problems = [f"Problem: {problem['what']}" for problem in reported.get("problems", ())]
    return "".join(
        [*problems, *(f"Stuck: {item}" for item in reported.get("stuck", ())), reported.get("unresponsive", "")]
    )


def whole(agent: Agent) -> None:
    """Check that every state file can be read, and that there are no temporary files."""
    state = agent.state
    assert state.session.load_tokens() is not None
    assert {record.name for record in state.installed.load_certificates().values()} == set(NAMES)
    assert (
        state.session.load_inbox(),
        [entry["outcome"] for entry in state.installed.load_history() if entry["outcome"] == "failed"],
    ) == ((), [])
    assert [path for path in agent.layout.root.rglob("*") if ".tmp" in path.name] == []


RENEW = {DONE, UNAVAILABLE}
"""The plane lets a device ask for five renewals at once, then for one in ten seconds: 429."""


def test_fifty_calls_with_the_daemon(agent: Agent) -> None:
    storm(agent, {"status": {DONE, FAILED}, "plan": {DONE, CHANGES}, "renew": RENEW}, always=set())
    agent.catches_up()
    wait_for(lambda: "Token refresh successful" in agent.daemon.text, "a refresh")
    assert agent.cli("poll-now").returncode == DONE
    assert agent.daemon.stop() == 0
    assert "refused" not in agent.daemon.text and "Unexpected" not in agent.daemon.text
    whole(agent)


def test_fifty_calls_without_a_daemon(agent: Agent) -> None:
    """Commands that change something take the daemon's lock, one at a time; the others report the lock's holder."""
    assert agent.daemon.stop() == 0
    status = {NOT_RUNNING}
    storm(agent, {"status": status, "plan": {DONE, CHANGES}, "renew": RENEW, "doctor": {DONE, FAILED}}, always={BUSY})
    assert agent.cli("poll-now").returncode == DONE  # first: a signal may wait for the next of its second, see `storm`
    assert agent.cli("apply").returncode == DONE
    assert agent.caught_up()
    whole(agent)


def free(path: Path) -> bool:
    """Return whether a lock is free."""
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


@pytest.mark.parametrize("token_seconds", [3, 900], ids=["with an expired token", "with a good token"])
def test_no_lock_is_held_beyond_the_deadline_of_a_hanging_plane(token_seconds: int, fleet: Fleet) -> None:
    plane = fleet.plane(access_token_seconds=token_seconds, poll_rate=1000.0, poll_burst=1000)
    agent = fleet.agent(plane)
    agent.configure("httpclient_config.json", connect_timeout_seconds=1, request_timeout_seconds=1)
    assert agent.cli("poll-now").returncode == DONE
    if token_seconds < 900:
        agent.outlives_its_token()
    plane.child.send(signal.SIGSTOP)
    with ThreadPoolExecutor(3) as pool:
        done = list(pool.map(lambda _: agent.cli("poll-now"), range(3)))
    endings = Counter(one.returncode for one in done)
    assert endings[UNAVAILABLE] >= 1 and endings.keys() <= {UNAVAILABLE, BUSY}, [one.stderr for one in done]
    for one in done:
        assert one.returncode == BUSY or re.match("cert-ctrl: error: .* within 1 s\nfix: ", one.stderr), one.stderr
    assert free(agent.layout.daemon_lock) and free(agent.layout.token_lock)
    plane.child.send(signal.SIGCONT)
    assert agent.cli("poll-now").returncode == DONE
