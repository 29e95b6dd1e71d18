"""Renewals: how long polls take while a thousand certificates are renewed, beside the same polls of an idle plane.

Certificates come due together (their ``renew_at`` is set back in the database), and are ordered with one command, in rounds
with the idle plane before each. Server, issuer and client share the machine.
"""

from __future__ import annotations

import http.client
import itertools
import sqlite3
import ssl
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import trio
from fleet_rig import PATIENCE, Fleet, Server, served_plane
from measure import percentile, row
from nacl.public import PrivateKey

from certctrl.plane.core import Plane
from certctrl.plane.devices.devices import FIRST_USER, DeviceFacts
from certctrl.plane.settings import DAY, PlaneSettings

MOST = 2.0
"""How much longer the slowest percent of polls may take."""
DEVICES = 200
PAUSE = 0.01
"""Between two polls: each device polls less than once a second."""
UPDATES = "/apiv1/devices/self/updates?limit=20"


def measure(work: Path, *, count: int, seconds: float, rounds: int) -> Iterator[dict[str, Any]]:
    """Yield the rows."""
    fleet = _made(work / "plane", count)
    polls = Polls(fleet.tokens.read_text().split())
    database = fleet.data / "plane.db"
    cases = ("come due together", "are ordered with one command")
    idle: dict[str, list[float]] = {case: [] for case in cases}
    busy: dict[str, list[float]] = {case: [] for case in cases}
    took = dict.fromkeys(cases, 0.0)
    with served_plane(fleet) as server:
        polls.run(server, 3.0)  # the first polls deliver what was issued
        ids = _ids(database)
        for number in range(rounds):
            for place, case in enumerate(cases):
                idle[case] += polls.run(server, seconds)
                start = (lambda: _order(server, ids)) if place else (lambda: _make_due(database))
                times, lasted = _renewed(server, polls, database, (2 * number + place + 1) * count, start)
                busy[case] += times
                took[case] += lasted
    for case in cases:
        base, p99 = (percentile(times, 0.99) * 1000 for times in (idle[case], busy[case]))
        medians = [f"{percentile(times, 0.5) * 1000:.1f}" for times in (busy[case], idle[case])]
        note = f"{rounds * count / took[case]:.0f} renewals/s; median {' and '.join(medians)} ms"
        yield row(f"a poll while {count} certificates {case}, p99 ms", p99, base, must=MOST, note=note)


def _made(data: Path, count: int) -> Fleet:
    """Make a plane with certificates, each on one device."""
    key = bytes(PrivateKey.generate().public_key)
    with Plane.open(data, settings=PlaneSettings(access_token_seconds=DAY)) as plane:
        devices, tokens = [], []
        with plane.database.transaction():
            for number in range(DEVICES):
                facts = DeviceFacts(device_public_id=f"bench-{number:05}", name=f"host-{number:05}")
                devices.append(plane.devices.add(FIRST_USER, facts))
                plane.devices.activate(devices[-1], facts, key)
                tokens.append(plane.sessions.start(devices[-1])["access_token"])

        async def issue() -> None:
            for number in range(count):
                device = devices[number % DEVICES]
                await plane.certificates.issue(FIRST_USER, [f"{number}.bench.test"], device_ids=[device])

        trio.run(issue)
    (data.parent / "tokens").write_text("\n".join(tokens))
    return Fleet(data, data.parent / "tokens", devices, 1)


class Polls:
    """The polls of devices in turn, each with the cursor of its last answer."""

    def __init__(self, tokens: Sequence[str]) -> None:
        self._devices = itertools.cycle(tokens)
        self._cursors: dict[str, str] = {}

    def run(self, server: Server, seconds: float, until: threading.Event | None = None) -> list[float]:
        """Return how long polls took, one after the other, until an event or for some seconds."""
        context = ssl.create_default_context(cafile=str(server.ca))
        context.check_hostname = False
        connection = http.client.HTTPSConnection("127.0.0.1", server.port, timeout=PATIENCE, context=context)
        times: list[float] = []
        end = time.monotonic() + seconds
        while not (until.is_set() if until else time.monotonic() >= end):
            token = next(self._devices)
            headers = {"authorization": f"Bearer {token}", "if-none-match": self._cursors.get(token, "")}
            began = time.perf_counter()
            connection.request("GET", UPDATES, None, headers)
            answer = connection.getresponse()
            answer.read()
            times.append(time.perf_counter() - began)
            if answer.status not in (200, 204):
                raise SystemExit(f"bench: a poll was answered with {answer.status}")
            self._cursors[token] = answer.headers["etag"]
            time.sleep(max(0.0, PAUSE - times[-1]))
        connection.close()
        return times


def _renewed(server: Server, polls: Polls, database: Path, done: int, start: Any) -> tuple[list[float], float]:
    """Start renewals; return how long polls took until ``done`` orders are done, and the seconds since the first one."""
    over, times = threading.Event(), [0.0]

    def poll() -> None:
        times[:] = polls.run(server, 0, over)

    polling = threading.Thread(target=poll)
    start()
    end, before = time.monotonic() + PATIENCE, _done(database)
    while _done(database) == before and time.monotonic() < end:
        time.sleep(0.05)
    began = time.monotonic()
    polling.start()
    while _done(database) < done and time.monotonic() < end:
        time.sleep(0.2)
    over.set()
    polling.join()
    if time.monotonic() >= end:
        raise SystemExit(f"bench: {_done(database)} of {done} renewals were done")
    return times, max(time.monotonic() - began, 0.001)


def _done(database: Path) -> int:
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        found = connection.execute("SELECT count(*) FROM orders WHERE state = 'done' AND action = 'renew'").fetchone()
    return int(found[0])


def _ids(database: Path) -> list[int]:
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        return [found[0] for found in connection.execute("SELECT id FROM certificates ORDER BY id")]


def _make_due(database: Path) -> None:
    with closing(sqlite3.connect(database, timeout=30)) as connection, connection:
        connection.execute("UPDATE certificates SET renew_at = 0")


def _order(server: Server, ids: Sequence[int]) -> None:
    operator = server.operator()
    operator.call("POST", "/apiv1/users/1/renewals", {"cert_ids": list(ids)})
    operator.close()
