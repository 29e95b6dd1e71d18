"""Hostile clients cannot stop the real server, and kill -9 loses no acknowledged change."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from plane_socket import FAST, UPDATES, connected, enrolled, fds_back_to, operator_key, port_of

from certctrl.plane.serve import PlaneAddress, serve_plane

CERTIFICATES = "/apiv1/devices/self/certificates"

pytestmark = pytest.mark.integration


# --- hostile clients --------------------------------------------------------------------------------------------------

HOSTILE = [
    b"", b"\0" * 1000, b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n",
    b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 9000 + b"\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(64),
    b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
    b"HTTP2-Settings: AAMAAABk\r\n\r\n",
    b"GET /device HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
    b"POST /auth/device HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"POST /auth/device HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
    b"POST /auth/device HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
    b"POST /auth/device HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n" + b"x" * 100_000,
    b"POST /auth/device HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    + b"2000\r\n" * 1 + b"x" * 0x2000 + (b"\r\n2000\r\n" + b"x" * 0x2000) * 60,
    b"POST /apiv1/devices/self/notify HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 5000,
    b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n" * 200, b"GET /%ff%fe%00/..%2f HTTP/1.1\r\nHost: \xff\r\n\r\n",
    b"GET /health?\xff HTTP/1.1\r\nHost: x\r\n\r\n", b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",
    b"CONNECT evil:443 HTTP/1.1\r\nHost: x\r\n\r\n", b"GET http://evil/ HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /device?user_code=%00 HTTP/1.1\r\nHost: x\r\nCookie: \xff=\xfe; ;;=\r\n\r\n",
    b"HEAD /device HTTP/1.0\r\n\r\n",
    b"GET /health HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n",
]  # fmt: skip


async def test_a_websocket_upgrade_is_refused_with_400(served: PlaneAddress) -> None:
    async with connected(served) as client:
        asked = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec_WebSocket_Version": "13"}
        answer = await client.ask("GET", "/device", **asked, Sec_WebSocket_Key="dGhlIHNhbXBsZSBub25jZQ==")
        assert (answer.status, answer.headers["connection"]) == (400, "close")
        assert b"WebSocket" in answer.body
        with trio.fail_after(60), pytest.raises(EOFError):
            await client.answer()


async def test_no_client_can_stop_the_plane(served: PlaneAddress) -> None:
    """After any bytes and any end of a connection, the next client is served and no resources are kept."""
    before = len(os.listdir("/proc/self/fd"))

    async def attack(data: bytes, polite: bool) -> None:
        async with connected(served) as client:
            with trio.move_on_after(3):
                try:
                    await client.stream.do_handshake()
                    await client.stream.send_all(data)
                    if polite:
                        while await client.stream.receive_some(65_536):
                            pass
                except (trio.BrokenResourceError, ConnectionError):
                    pass

    async with trio.open_nursery() as nursery:
        for data in HOSTILE:
            nursery.start_soon(attack, data, True)
            nursery.start_soon(attack, data, False)
        for data in (b"", b"GET /health HTTP/1.1\r\n\r\n", bytes(range(256)) * 100):  # no TLS at all

            async def plain(data: bytes = data) -> None:
                stream = await trio.open_tcp_stream("127.0.0.1", port_of(served))
                async with stream:
                    with trio.move_on_after(1):
                        try:
                            await stream.send_all(data)
                            await stream.receive_some(1000)
                        except trio.BrokenResourceError:
                            pass

            nursery.start_soon(plain)
    async with connected(served) as client:
        assert (await client.ask("GET", "/health")).status == 200
    await fds_back_to(before)


async def test_idle_connections_do_not_keep_devices_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: Any
) -> None:
    """Found by review: one client could hold connections until the plane had no descriptors left."""
    monkeypatch.setattr("certctrl.plane.http.server.UNAUTHENTICATED_PER_ADDRESS", 3)
    async with trio.open_nursery() as nursery:
        address: PlaneAddress = await nursery.start(partial(serve_plane, tmp_path / "plane", settings=FAST))
        async with connected(address, operator_key(address)) as operator:
            session = (await enrolled(operator, form))["session"]
            async with connected(address, session["access_token"]) as device, AsyncExitStack() as stack:
                assert (await device.ask("GET", UPDATES)).status == 204
                idle = [await stack.enter_async_context(connected(address)) for _ in range(3)]
                for client in idle:
                    assert (await client.ask("GET", "/health")).status == 200
                with pytest.raises((trio.BrokenResourceError, EOFError)):
                    async with connected(address) as refused:
                        await refused.ask("GET", "/health")
                assert (await device.ask("GET", UPDATES)).status == 204, "those that authenticated stay"
                assert (await operator.ask("GET", "/apiv1/users")).status == 200
                monkeypatch.setattr("certctrl.plane.limits._AUTHENTICATION_SECONDS", 0.0)
                async with connected(address, session["access_token"]) as another:
                    assert (await another.ask("GET", UPDATES)).status == 204
                with trio.fail_after(60), pytest.raises((trio.BrokenResourceError, EOFError)):
                    await idle[0].answer()
                assert (await idle[1].ask("GET", "/health")).status == 200
        nursery.cancel_scope.cancel()


# --- kill -9 ----------------------------------------------------------------------------------------------------------


class Process:
    """`cert-ctrl plane serve` in a separate process."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.process: subprocess.Popen[bytes] | None = None

    async def start(self) -> PlaneAddress:
        argv = [sys.executable, "-m", "certctrl", "plane", "serve", "--data", str(self.data), "--listen", "127.0.0.1:0"]
        self.process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert self.process.stdout is not None
        first = await trio.to_thread.run_sync(self.process.stdout.readline)
        url = first.decode().split()[-1]
        for _ in range(3):
            await trio.to_thread.run_sync(self.process.stdout.readline)
        return PlaneAddress(url, self.data / "ca.pem", self.data / "operator.key")

    def end(self, signum: int) -> int:
        assert self.process is not None
        assert self.process.stdout is not None
        self.process.send_signal(signum)
        status = self.process.wait(20)
        self.process.stdout.close()
        self.process = None
        return status


@pytest.fixture
async def process(tmp_path: Path) -> AsyncIterator[Process]:
    process = Process(tmp_path / "plane")
    yield process
    if process.process is not None:
        process.end(signal.SIGKILL)


async def test_sigterm_ends_the_command_with_status_0(process: Process) -> None:
    await process.start()
    assert process.end(signal.SIGTERM) == 0


async def test_kill_9_loses_no_acknowledged_change(process: Process, form: Any) -> None:
    """Killed at random moments after a change under load: acknowledged changes survive, and signals have no gap."""
    address = await process.start()
    async with connected(address, operator_key(address)) as operator:
        done = await enrolled(operator, form)
    device_id, token = done["device"]["id"], done["session"]["access_token"]
    known: dict[int, str] = {}
    seen: list[tuple[int, str]] = []
    cursor = ""
    seed = random.randrange(10**9)
    chance = random.Random(seed)
    acknowledged = 0
    for _ in range(8):
        with trio.move_on_after(120) as until_kill:
            async with connected(address, operator_key(address)) as operator:
                while True:
                    if known and chance.random() < 0.5:
                        cert_id = chance.choice(list(known))
                        row = (
                            await operator.ask(
                                "POST", f"/apiv1/users/1/certificates/{cert_id}/issues", {"action": "renew"}
                            )
                        ).data
                        known[cert_id] = row["serial_number"]
                    else:
                        body = {"domain_name": f"n{len(known)}.example", "device_ids": [device_id]}
                        row = (await operator.ask("POST", "/apiv1/users/1/certificates", body)).data
                        known[row["id"]] = row["serial_number"]
                    acknowledged += 1
                    until_kill.deadline = min(until_kill.deadline, trio.current_time() + chance.uniform(0, 0.5))
        process.end(signal.SIGKILL)
        address = await process.start()
        async with connected(address, token) as device:
            while True:
                answer = await device.ask("GET", f"{UPDATES}?limit=100" + (f"&cursor={cursor}" if cursor else ""))
                if answer.status == 204:
                    break
                if answer.status == 429:
                    await trio.sleep(1)
                    continue
                cursor = answer.data["cursor"]
                seen += [(s["ref"]["cert_id"], s["ref"]["serial"]) for s in answer.data["signals"]]
            rows: list[dict[str, Any]] = []
            while page := (await device.ask("GET", f"{CERTIFICATES}?after_id={rows[-1]['id'] if rows else 0}")).data:
                rows += page
            for row in rows:
                materials = await device.ask("GET", f"{CERTIFICATES}/{row['id']}/deploy-materials")
                assert materials.data["serial_number"] == row["serial_number"]
        now = {row["id"]: row["serial_number"] for row in rows}
        assert set(known) <= set(now), f"seed {seed}"
        # Only the renewal in progress at the kill may be newer than the last response.
        assert sum(now[cert_id] != serial for cert_id, serial in known.items()) <= 1, f"seed {seed}"
        assert set(known.items()) <= set(seen), f"seed {seed}: a signal is lost"
        assert len(seen) == len(set(seen)), f"seed {seed}: a signal came twice"
        known = now
    assert acknowledged >= 8
