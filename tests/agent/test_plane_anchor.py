"""A new CA of the plane: trusted beside the old one, then instead of it, whatever interrupts that."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trustme
from install_host import ScriptedFs
from token_world import World, inline

from certctrl.agent.plane_anchor import PlaneAnchor, fingerprints
from certctrl.agent.tokens import TokenKeeper
from certctrl.errors import TransportError
from certctrl.model.answer import Answer
from certctrl.model.config import AgentConfig, ApplicationConfig, HttpClientConfig
from certctrl.protocol.wire.tokens import Refreshed
from certctrl.store.disk.fs import Fs, RealFs

OLD, NEW = trustme.CA(), trustme.CA()
OLD_PEM, NEW_PEM = (ca.cert_pem.bytes().decode() for ca in (OLD, NEW))
URL = "https://plane.example"


@attrs.define(eq=False)
class Host:
    """A config directory whose plane is verified by ``OLD``."""

    world: World
    serves: str = OLD_PEM
    """The CA of the certificate that the plane serves."""
    connections: list[HttpClientConfig] = attrs.field(factory=list)

    def __attrs_post_init__(self) -> None:
        self.layout.plane_ca.write_text(OLD_PEM)

    @property
    def layout(self) -> Any:
        return self.world.layout

    def anchor(
        self, url: str = URL, ca_files: tuple[str, ...] = ("plane-ca.pem",), fs: Fs | None = None
    ) -> PlaneAnchor:
        application = ApplicationConfig(server_url=url, allow_http_loopback=True)
        config = AgentConfig(application=application, httpclient=HttpClientConfig(ca_files=ca_files))
        return PlaneAnchor(self.layout, config, fs or RealFs(), self.connect, inline)

    def connect(self, config: AgentConfig) -> Any:
        self.connections.append(config.httpclient)
        return self

    async def request(self, method: str, path: str, **options: object) -> Answer:
        assert (method, path) == ("GET", "/health")
        (name,) = self.connections[-1].ca_files
        if not (self.layout.root / name).read_text().endswith(self.serves):
            raise TransportError("not signed by the CA in ca_files")
        return Answer(404, {}, b"")

    async def aclose(self) -> None:
        pass


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(World(tmp_path / "agent"))


def print_of(pem: str) -> str:
    (found,) = fingerprints(pem.encode())
    return found


async def test_the_new_ca_is_trusted_beside_the_old_one_until_it_is_proven(host: Host) -> None:
    anchor = host.anchor()
    assert await anchor.trusted() == (print_of(OLD_PEM),)
    await anchor.prove()
    await anchor.take(None)
    assert host.connections == [], "nothing to prove"
    await anchor.take(NEW_PEM)
    assert await anchor.trusted() == (print_of(OLD_PEM), print_of(NEW_PEM))
    await anchor.prove()
    assert host.connections[0].ca_files == (str(host.layout.next_plane_ca),), "by the new one alone"
    assert await anchor.trusted() == (print_of(OLD_PEM), print_of(NEW_PEM)), "the plane has not switched"
    host.serves = NEW_PEM
    await host.anchor().prove()
    assert not host.layout.next_plane_ca.exists()
    assert await anchor.trusted() == (print_of(NEW_PEM),)
    assert host.layout.plane_ca.read_text() == OLD_PEM, "the configuration is read-only to the daemon"
    await anchor.take(NEW_PEM)
    assert not host.layout.next_plane_ca.exists(), "trusted already"


async def test_a_proof_that_was_cut_off_is_repeated(host: Host) -> None:
    host.serves = NEW_PEM
    await host.anchor().take(NEW_PEM)
    await host.anchor(fs=ScriptedFs(RealFs(), "unlink", 1)).prove()
    assert host.layout.taken_plane_ca.read_bytes() == host.layout.next_plane_ca.read_bytes()
    await host.anchor().prove()
    assert await host.anchor().trusted() == (print_of(NEW_PEM),)
    assert not host.layout.next_plane_ca.exists()


LEAF = NEW.issue_cert("plane.example").cert_chain_pems[0].bytes().decode()


@pytest.mark.parametrize("pem", ["", "x", LEAF, NEW_PEM + OLD_PEM, NEW_PEM[:200], NEW_PEM.replace("M", "\u00e4")])
async def test_anything_but_one_ca_is_refused_and_logged_once(
    host: Host, caplog: pytest.LogCaptureFixture, pem: str
) -> None:
    anchor = host.anchor()
    for _ in range(2):
        await anchor.take(pem)
    assert [record.line_key for record in caplog.records] == ["plane-anchor-refused"]
    assert not host.layout.next_plane_ca.exists()


async def test_files_of_the_operator_are_left_alone(host: Host, caplog: pytest.LogCaptureFixture) -> None:
    (host.layout.root / "mine.pem").write_text(OLD_PEM)
    anchor = host.anchor(ca_files=("mine.pem",))
    await anchor.take(NEW_PEM)
    assert "add the plane's ca.pem" in caplog.text
    await anchor.prove()
    assert host.connections == [] and not host.layout.next_plane_ca.exists()
    (host.layout.root / "mine.pem").write_text(OLD_PEM + NEW_PEM)
    assert await anchor.trusted() == (print_of(OLD_PEM), print_of(NEW_PEM)), "as the operator was told"
    caplog.clear()
    await anchor.take(NEW_PEM)
    await host.anchor(ca_files=()).take(NEW_PEM)
    assert caplog.text == "", "a public CA in front of the plane is no fault"


async def test_a_full_disk_is_logged(host: Host, caplog: pytest.LogCaptureFixture) -> None:
    await host.anchor(fs=ScriptedFs(RealFs(), "create", 1)).take(NEW_PEM)
    assert "cannot create" in caplog.text
    assert await host.anchor().trusted() == (print_of(OLD_PEM),), "not confirmed"


async def test_a_connection_without_tls_proves_nothing(host: Host) -> None:
    anchor = host.anchor("http://127.0.0.1:8080")
    host.serves = NEW_PEM
    await anchor.take(NEW_PEM)
    await anchor.prove()
    assert await anchor.trusted() == (print_of(OLD_PEM), print_of(NEW_PEM))


@pytest.mark.parametrize("proven", [False, True])
async def test_a_file_that_the_operator_changes_counts(host: Host, proven: bool) -> None:
    anchor, other = host.anchor(), trustme.CA().cert_pem.bytes().decode()
    await anchor.take(NEW_PEM)
    host.serves = NEW_PEM if proven else OLD_PEM
    await anchor.prove()
    host.layout.plane_ca.write_text(other)
    assert await anchor.trusted() == (print_of(other),)
    await anchor.prove()
    assert len(host.connections) == 1, "nothing to prove"
    await anchor.take(NEW_PEM)
    assert await anchor.trusted() == (print_of(other), print_of(NEW_PEM))


async def test_a_refresh_takes_the_new_ca_and_the_next_one_confirms_it(
    host: Host, autojump_clock: trio.abc.Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    world, confirmed = host.world, []

    async def refresh(token: str, device: str, *, deadline: float, anchors: tuple[str, ...] = ()) -> Refreshed:
        confirmed.append(anchors)
        return Refreshed(access_token=world.access(), plane_anchor_pem=None if len(confirmed) > 2 else NEW_PEM)

    world.refresh = refresh  # type: ignore[method-assign, assignment]
    world.stored(world.access(-5))
    keeper = TokenKeeper(
        layout=world.layout, store=world.store, plane=world, config=AgentConfig(),  # type: ignore[arg-type]
        wall_now=world.wall_now, offload=inline, anchor=host.anchor(),
    )  # fmt: skip
    await keeper.current()
    host.serves = NEW_PEM
    for _ in range(2):
        await trio.sleep(10)
        await keeper.refresh(keeper.seen())
    old, new = print_of(OLD_PEM), print_of(NEW_PEM)
    assert confirmed[0] == (old,)
    assert confirmed[1] == (old, new)
    assert confirmed[-1] == (new,)
    keys = [record.line_key for record in caplog.records if record.line_key.startswith("plane-")]
    assert keys == ["plane-anchor-stored", "plane-anchor-replaced"]
