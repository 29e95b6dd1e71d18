"""What a comparison costs on the wire: requests, and bytes with TLS and headers, between the agent's client and a served plane."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import handler_world
import pytest
import trio
from nacl.public import PrivateKey
from plane_socket import port_of

from certctrl.agent.context import Agent
from certctrl.agent.reconcile import plan_resync
from certctrl.model.certificate import CertFacts, CertificateSummary
from certctrl.model.features import PLANE_FEATURES
from certctrl.model.records import CertRecord, Stage
from certctrl.net.control_plane import ControlPlane
from certctrl.net.transport import HttpcoreHttp
from certctrl.plane.core import Plane
from certctrl.plane.devices.devices import FIRST_USER, DeviceFacts
from certctrl.plane.serve import PlaneAddress, serve_plane
from certctrl.plane.settings import PlaneSettings
from certctrl.store.config.files import init_config_dir, load_config
from certctrl.store.disk.fs import RealFs
from certctrl.store.layout import ConfigDir

pytestmark = pytest.mark.integration

MANY = 1000
MOST_REQUESTS, MAX_BYTES = 3, 20 * 1024


@attrs.define
class Counted:
    """What has passed between client and plane."""

    requests: list[str] = attrs.field(factory=list)
    sent: int = 0
    received: int = 0

    @property
    def bytes(self) -> int:
        return self.sent + self.received

    def begin(self) -> None:
        self.requests, self.sent, self.received = [], 0, 0


@attrs.define
class Session:
    """The session of a registered device."""

    token: str
    device_id: int

    async def identity(self) -> tuple[int, int]:
        return FIRST_USER, self.device_id

    async def current(self) -> str:
        return self.token


async def plane_with_certificates(data: Path) -> Session:
    """Make a plane whose device has many certificates: copies of one, which cost no keys."""
    with Plane.open(data, settings=PlaneSettings(access_token_seconds=86_400)) as plane:
        with plane.database.transaction():
            facts = DeviceFacts(device_public_id="device-number-1", name="host")
            device = plane.devices.add(FIRST_USER, facts)
            plane.devices.activate(device, facts, bytes(PrivateKey.generate().public_key))
            token = plane.sessions.start(device)["access_token"]
        await plane.installs.put(device, [{"id": 1, "type": "exec", "cmd_argv": ["/bin/true"]}])
        first = (await plane.certificates.issue(FIRST_USER, ["c1.example"], device_ids=[device]))["id"]
        database = plane.database
        with database.transaction():
            row = database.one("SELECT * FROM certificates WHERE id = ?", first)
            assert row is not None
            names = [name for name in dict(row) if name != "id"]  # type: ignore[call-overload]
            wanted = ", ".join("?" if name in ("domain_name", "sans") else name for name in names)
            for number in range(2, MANY + 1):
                domain = f"c{number}.example"
                sql = f"INSERT INTO certificates ({', '.join(names)}) SELECT {wanted} FROM certificates WHERE id = ?"
                made = database.insert(sql, domain, json.dumps([domain]), first)
                database.run("INSERT INTO assignments VALUES (?, ?, ?)", device, made, 0)
        return Session(token, device)


@asynccontextmanager
async def counting_proxy(port: int, counted: Counted) -> AsyncIterator[int]:
    """Forward connections to a port of this host, and count the bytes."""

    async def forward(client: trio.SocketStream) -> None:
        server = await trio.open_tcp_stream("127.0.0.1", port)

        async def copy(source: trio.SocketStream, target: trio.SocketStream, name: str) -> None:
            try:
                while data := await source.receive_some(65_536):
                    setattr(counted, name, getattr(counted, name) + len(data))
                    await target.send_all(data)
                await target.send_eof()
            except trio.BrokenResourceError:
                pass

        async with client, server, trio.open_nursery() as nursery:
            nursery.start_soon(copy, client, server, "sent")
            nursery.start_soon(copy, server, client, "received")

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, forward, 0, host="127.0.0.1"))
        yield int(listener.socket.getsockname()[1])
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def agent_of(root: Path, address: PlaneAddress, session: Session, counted: Counted) -> AsyncIterator[Agent]:
    """Yield an agent whose certificates are recorded only, with the real client."""
    async with counting_proxy(port_of(address), counted) as port:
        layout = ConfigDir(root / f"client-{port}")
        url = f"https://127.0.0.1:{port}"
        init_config_dir(RealFs(), layout, server_url=url, ca_pem=address.ca_file.read_bytes())
        config = load_config(layout, {}).config
        http = HttpcoreHttp.for_agent(config, layout.root)
        exchange = http.request

        async def counting(method: str, path: str, **more: Any) -> Any:
            counted.requests.append(path)
            return await exchange(method, path, **more)

        http.request = counting  # type: ignore[method-assign]
        world = handler_world.World(root / "agent")
        world.now = time.time()
        world.plane = ControlPlane(http, config, wall_now=time.time)  # type: ignore[assignment]
        agent = world._agent()
        agent.tokens = session  # type: ignore[assignment]
        agent.plane.features = frozenset(PLANE_FEATURES)
        try:
            yield agent
        finally:
            await http.aclose()


def in_step(agent: Agent, listed: list[CertificateSummary]) -> None:
    for one in listed:
        facts = CertFacts(
            cert_id=one.id, name=one.domain_name, domains=one.sans, serial=one.serial_number,
            fingerprint_sha256=one.fingerprint_sha256, not_before=0.0, not_after=1e12,
        )  # fmt: skip
        record = CertRecord(facts=facts, generation="g", activated="g", stage=Stage.ACTIVATED)
        agent.installer.records[one.id] = record


async def test_a_host_in_step_costs_three_small_requests(tmp_path: Path) -> None:
    session, counted = await plane_with_certificates(tmp_path / "plane"), Counted()
    async with trio.open_nursery() as nursery:
        address: PlaneAddress = await nursery.start(partial(serve_plane, tmp_path / "plane"))
        async with agent_of(tmp_path, address, session, counted) as agent:
            in_step(agent, await agent.authorized(agent.plane.fetch_certificates))
            assert await plan_resync(agent, "the first") <= 1, "the items, which are new"
            assert len(counted.requests) > MOST_REQUESTS, "a list of three pages"
            counted.begin()
            assert await plan_resync(agent, "in step") == 0
            assert len(agent.installer.records) == MANY
            print(f"in step: {len(counted.requests)} requests, {counted.sent} + {counted.received} bytes")
            assert len(counted.requests) <= MOST_REQUESTS, counted.requests
            assert counted.bytes <= MAX_BYTES
            listed = await agent.authorized(agent.plane.fetch_certificates)
        async with agent_of(tmp_path, address, session, counted) as restarted:
            in_step(restarted, listed)
            counted.begin()
            await plan_resync(restarted, "start")
            assert len(counted.requests) <= MOST_REQUESTS, "a restart remembers the list"
            assert counted.bytes <= MAX_BYTES, "with the handshake"
        nursery.cancel_scope.cancel()
