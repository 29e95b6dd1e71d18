"""Agents follow an older plane to its own CA, over real TLS."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

import attrs
import pytest
import trio
from earlier import earlier_data_dir
from plane_socket import connected, operator_key

from certctrl.agent.plane_anchor import PlaneAnchor
from certctrl.agent.register import register
from certctrl.agent.setup import in_thread
from certctrl.agent.tokens import TokenKeeper
from certctrl.model.config import AgentConfig
from certctrl.net.control_plane import ControlPlane
from certctrl.net.transport import HttpcoreHttp
from certctrl.plane.serve import PlaneAddress, serve_plane
from certctrl.store.config.files import init_config_dir, load_config
from certctrl.store.disk.fs import RealFs
from certctrl.store.layout import ConfigDir
from certctrl.store.state.session import SessionState

pytestmark = pytest.mark.integration


@attrs.define(eq=False)
class Follower:
    """An agent that only refreshes its token."""

    layout: ConfigDir
    config: AgentConfig
    http: HttpcoreHttp

    @classmethod
    def made(cls, root: Path, address: PlaneAddress) -> Follower:
        layout = ConfigDir(root)
        init_config_dir(RealFs(), layout, server_url=address.url, ca_pem=address.ca_file.read_bytes())
        config = load_config(layout, {}).config
        return cls(layout, config, HttpcoreHttp.for_agent(config, root))

    @property
    def plane(self) -> ControlPlane:
        return ControlPlane(self.http, self.config, wall_now=time.time)

    @property
    def store(self) -> SessionState:
        return SessionState(self.layout, RealFs())

    async def register(self, token: str) -> None:
        await register(
            self.layout, self.store, self.plane, self.config,
            enrolment_token=token, show=lambda prompt: None, wall_now=time.time,
        )  # fmt: skip

    async def refresh(self) -> None:
        anchor = PlaneAnchor(
            self.layout, self.config, RealFs(), lambda other: HttpcoreHttp.for_agent(other, self.layout.root), in_thread
        )
        keeper = TokenKeeper(
            layout=self.layout, store=self.store, plane=self.plane, config=self.config, wall_now=time.time,
            offload=in_thread, anchor=anchor,
        )  # fmt: skip
        await keeper.refresh(await keeper.current())


async def test_the_whole_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old chain, the anchor by a refresh, its confirmation, the switch, the old anchor dropped."""
    old = earlier_data_dir(tmp_path / "plane", monkeypatch, wall=time.time() - 86_400)
    async with trio.open_nursery() as nursery:
        address: PlaneAddress = await nursery.start(partial(serve_plane, tmp_path / "plane"))
        agent = Follower.made(tmp_path / "agent", address)
        async with connected(address, operator_key(address)) as operator:
            await agent.register((await operator.ask("POST", "/apiv1/users/1/enrolment-tokens", {})).data["token"])
            assert (await operator.ask("DELETE", "/apiv1/users/1/devices/1")).status == 200
            for status in (409, 409, 200):
                assert (await operator.ask("POST", "/apiv1/plane/tls", {})).status == status
                assert not agent.layout.taken_plane_ca.exists()
                if status == 409:
                    await agent.refresh()
        await agent.refresh()  # the connection of before may still be open
        assert agent.layout.plane_ca.read_text() == old
        assert agent.layout.taken_plane_ca.read_bytes().endswith(address.ca_file.read_bytes())
        assert not agent.layout.next_plane_ca.exists()
        await agent.refresh()
        async with connected(address) as client:
            assert (await client.ask("GET", "/health")).status == 200
        await agent.http.aclose()
        nursery.cancel_scope.cancel()
