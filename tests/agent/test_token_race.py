"""Many processes, one refresh token, a server that rotates it and ends the session when a spent one comes again.

Processes are killed with SIGKILL at random moments. What must hold: one spend per rotation. The one exception
nobody can avoid is a process that dies between its POST and its rename; the server gives the same successor
again to whoever repeats the token before the successor was ever used, and counts it.
"""

from __future__ import annotations

import json
import random
import secrets
import ssl
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trustme

from certctrl.model.records import Tokens
from certctrl.store.disk.fs import RealFs
from certctrl.store.disk.tree import make_tree
from certctrl.store.layout import ConfigDir
from certctrl.store.state.session import SessionState

WORKER = Path(__file__).with_name("race_worker.py")


@attrs.define(eq=False)
class Server:
    """Rotates at each refresh; an access token is valid for a few requests only."""

    rotations: int
    """Rotations until the race ends."""
    chance: random.Random
    lost_answers: float
    """Share of refreshes whose answer never arrives."""
    refresh: list[str] = attrs.field(factory=lambda: ["r0-" + secrets.token_hex(8)])
    """All refresh tokens ever issued, in order; the last is current."""
    access: list[str] = attrs.field(factory=lambda: ["a0-" + secrets.token_hex(8)])
    uses_left: int = 3
    spends: dict[str, list[int]] = attrs.field(factory=dict)
    """Refresh token -> pids that sent it."""
    lost: dict[str, int] = attrs.field(factory=dict)
    """Refresh token -> how many of its answers were dropped."""
    confirmed: set[str] = attrs.field(factory=set)
    """Access tokens that were used."""
    reuse: list[str] = attrs.field(factory=list)
    """Session-ending reuses: must stay empty."""
    connected: dict[int, trio.Event] = attrs.field(factory=lambda: defaultdict(trio.Event))
    """Set at a process's first request."""

    @property
    def over(self) -> bool:
        return len(self.refresh) > self.rotations

    async def handle(self, stream: trio.abc.Stream) -> None:
        try:
            while (request := await read_request(stream)) is not None:
                answer = await self.answer(*request)
                if answer is None:
                    return
                await stream.send_all(answer)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
                await trio.aclose_forcefully(stream)

    async def answer(self, head: str, headers: dict[str, str], body: bytes) -> bytes | None:
        self.connected[int(headers["x-pid"])].set()
        if head.startswith("GET /check"):
            return self.check(headers["authorization"].removeprefix("Bearer "))
        return await self.spend(json.loads(body)["refresh_token"], int(headers["x-pid"]))

    def check(self, token: str) -> bytes:
        if self.over:
            return reply(410, {})
        if token != self.access[-1] or self.uses_left == 0:
            return reply(401, {"error": {"code": 4001, "what": "expired", "key": "TOKEN_EXPIRED"}})
        self.uses_left -= 1
        self.confirmed.add(token)
        return reply(200, {"data": {}})

    async def spend(self, token: str, pid: int) -> bytes | None:
        await trio.sleep(self.chance.uniform(0, 0.01))
        self.spends.setdefault(token, []).append(pid)
        if token == self.refresh[-1]:
            number = len(self.refresh)
            self.refresh.append(f"r{number}-{secrets.token_hex(8)}")
            self.access.append(f"a{number}-{secrets.token_hex(8)}")
            self.uses_left = self.chance.randint(1, 6)
        elif len(self.refresh) < 2 or token != self.refresh[-2] or self.access[-1] in self.confirmed:
            self.reuse.append(token)
            return reply(401, {"error": {"code": 4002, "what": "reuse detected", "key": "INVALID_TOKEN"}})
        await trio.sleep(self.chance.uniform(0, 0.01))
        if self.chance.random() < self.lost_answers:
            self.lost[token] = self.lost.get(token, 0) + 1
            return None
        return reply(200, {"data": {"access_token": self.access[-1], "refresh_token": self.refresh[-1]}})


def reply(status: int, value: Any) -> bytes:
    body = json.dumps(value).encode()
    head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def read_request(stream: trio.abc.Stream) -> tuple[str, dict[str, str], bytes] | None:
    data = b""
    while b"\r\n\r\n" not in data:
        more = await stream.receive_some(65536)
        if not more:
            return None
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    while len(body) < int(headers.get("content-length", 0)):
        body += await stream.receive_some(65536)
    return first, headers, body


@attrs.define(eq=False)
class Race:
    """The processes, and those that were killed."""

    argv: list[str]
    chance: random.Random
    killed: set[int] = attrs.field(factory=set)
    ended: list[int] = attrs.field(factory=list)
    started: int = 0

    async def keep_one_running(self, server: Server, kills: int) -> None:
        """Run one worker after the other: each of the first ``kills`` dies soon after its first request."""
        for number in range(kills + 1):
            process = await trio.lowlevel.open_process(self.argv, stdin=subprocess.DEVNULL)
            self.started += 1
            async with trio.open_nursery() as watch:
                if number < kills:
                    watch.start_soon(self.kill_soon, process, server)
                status = await process.wait()
                watch.cancel_scope.cancel()
            if process.pid not in self.killed:
                self.ended.append(status)
                return

    async def kill_soon(self, process: trio.Process, server: Server) -> None:
        await server.connected[process.pid].wait()
        await trio.sleep(self.chance.expovariate(4))
        if not server.over:
            self.killed.add(process.pid)
            process.kill()


async def run_race(root: Path, *, processes: int, rotations: int, kills: int, seed: int) -> None:
    """Race until the server has rotated ``rotations`` times; each process slot is killed up to ``kills`` times."""
    print(f"seed {seed}")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(root / "ca.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    chance = random.Random(seed)
    server = Server(rotations, chance, lost_answers=0.02)
    layout = ConfigDir(root / "agent")
    make_tree(RealFs(), layout)
    store = SessionState(layout, RealFs())
    store.save_device_id("23229bf7-5172-02c7-59a2-76d5b4a40090")
    store.save_tokens(Tokens(access_token=server.access[0], refresh_token=server.refresh[0]))

    async with trio.open_nursery() as serving:
        (listener,) = await trio.open_ssl_over_tcp_listeners(0, context, host="127.0.0.1", https_compatible=True)
        port = listener.transport_listener.socket.getsockname()[1]
        serving.start_soon(trio.serve_listeners, server.handle, [listener])
        argv = [sys.executable, str(WORKER), str(layout.root), f"https://127.0.0.1:{port}", str(root / "ca.pem")]
        race = Race(argv, chance)
        async with trio.open_nursery() as running:
            for _ in range(processes):
                running.start_soon(race.keep_one_running, server, kills)
        serving.cancel_scope.cancel()
    judge(server, race, store, processes)


def judge(server: Server, race: Race, store: SessionState, processes: int) -> None:
    """Check for exactly one use per rotation, except for lost answers."""
    made = len(server.refresh) - 1
    unexplained = []
    for token, pids in server.spends.items():
        deaths = sum(pid in race.killed for pid in pids[:-1])
        if len(pids) - 1 > deaths + server.lost.get(token, 0):
            unexplained.append((token.partition("-")[0], pids))
    repeats = sum(len(pids) - 1 for pids in server.spends.values())
    print(
        f"{made} rotations, {len(race.killed)} kills, {sum(server.lost.values())} answers lost, {repeats} repeats, "
        f"{race.started} processes"
    )
    assert not server.reuse, "the session would have ended"
    assert not unexplained, "a refresh token was spent twice"
    assert made == server.rotations
    assert race.ended == [0] * processes, "no process had to register again"
    assert set(server.spends) == set(server.refresh[:-1])
    stored = store.load_tokens()
    assert stored is not None
    assert stored.refresh_token in server.refresh[-2:], "the last answer is stored, or its reader was killed"
    left = [path.name for path in store.layout.state.iterdir() if path.name.startswith(".")]
    assert len(left) <= 2 * len(race.killed), "only the killed leave temporary files"


async def test_many_processes_use_each_refresh_token_once(tmp_path: Path) -> None:
    await run_race(tmp_path, processes=3, rotations=50, kills=1, seed=secrets.randbelow(2**32))


@pytest.mark.campaign
@pytest.mark.timeout(3600)
async def test_eight_processes_two_hundred_expiries_each(tmp_path: Path) -> None:
    await run_race(tmp_path, processes=8, rotations=8 * 200, kills=40, seed=secrets.randbelow(2**32))
