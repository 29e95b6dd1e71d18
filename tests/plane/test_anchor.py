"""The plane's own certificate comes from a CA that issues nothing else; older planes switch to it (docs/protocol.md)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from earlier import earlier_data_dir
from issued import issue
from plane_world import World

from certctrl.errors import DiskError
from certctrl.plane.ca.domains import collides
from certctrl.plane.core import Plane
from certctrl.plane.errors import ErrorResponse
from certctrl.plane.settings import PlaneSettings
from certctrl.plane.storage.data_dir import DataDir
from certctrl.plane.tls import ServerCertificate, names_of

WALL = 1_790_000_000.0


def opened(root: Path) -> Plane:
    settings = PlaneSettings(poll_rate=1000.0)
    return Plane.open(root, settings=settings, wall_now=lambda: WALL, monotonic=lambda: 0.0)


async def served_issuer(plane: Plane, root: Path) -> str:
    """Load the plane's certificate as `serve_plane` does; return the name of its issuer's issuer, the root."""
    await ServerCertificate(plane, DataDir(root), names_of("127.0.0.1", ("plane.example.com",))).load()
    _, intermediate = x509.load_pem_x509_certificates((root / "tls.pem").read_bytes())
    return intermediate.issuer.rfc4514_string()


def root_name(pem: bytes) -> str:
    return x509.load_pem_x509_certificate(pem).subject.rfc4514_string()


# --- a new plane ------------------------------------------------------------------------------------------------------


async def test_a_new_plane_has_a_ca_of_its_own(tmp_path: Path) -> None:
    """Found by review: a loopback certificate of the one CA impersonated the plane, and got token and operator key."""
    root = tmp_path / "plane"
    with opened(root) as plane:
        row = await plane.certificates.issue(1, ["web.example"])
        anchor, issuing = (root / "ca.pem").read_bytes(), (root / "issuing-ca.pem").read_bytes()
        assert anchor != issuing == plane.ca.root_pem.encode()
        assert await served_issuer(plane, root) == root_name(anchor)
        chain = plane.database.one("SELECT chain_pem FROM certificates WHERE id = ?", row["id"])["chain_pem"]  # type: ignore[index]
        assert x509.load_pem_x509_certificate(chain.encode()).issuer.rfc4514_string() == root_name(issuing)
        assert plane.anchor.offer() == {}, "its agents have this anchor already"
        assert plane.anchor.unconfirmed() == []
    with opened(root) as plane:
        assert (root / "ca.pem").read_bytes() == anchor, "across restarts"


@pytest.mark.parametrize(
    "name", ["plane.example.com", "PLANE.example.com.", "*.example.com", "localhost", "127.0.0.1", "::1"]
)
async def test_the_ca_issues_no_name_of_the_plane(world: World, name: str) -> None:
    earlier = await issue(world, name if "*" in name else "www.example.com", name)
    taken = world.plane.certificates.reserve(names_of("127.0.0.1", ("plane.example.com",)))
    assert [row["id"] for row in taken] == [earlier["id"]], "told to the operator"
    for names in ([name], ["www.example.com", name]):
        with pytest.raises(ErrorResponse) as caught:
            await world.plane.certificates.issue(1, names)
        assert (caught.value.status, caught.value.key) == (409, "NAME_RESERVED")
    with pytest.raises(ErrorResponse, match="a name of this control plane"):
        await world.plane.certificates.renew(1, earlier["id"])


@pytest.mark.parametrize(
    "name", ["example.com", "www.example.com", "a.plane.example.com", "*.plane.example.com", "127.0.0.2"]
)
async def test_other_names_are_issued(world: World, name: str) -> None:
    world.plane.certificates.reserve(names_of("127.0.0.1", ("plane.example.com",)))
    row = await issue(world, name)
    assert (await world.plane.certificates.renew(1, row["id"]))["status"] == "done"


@pytest.mark.parametrize(
    ("one", "other", "both"),
    [
        ("a.example", "a.example", True), ("*.example", "a.example", True), ("*.example", "*.example", True),
        ("*.example", "b.a.example", False), ("*.example", "example", False), ("*.a.example", "*.example", False),
        ("*.0.0.1", "127.0.0.1", False), ("a.example", "b.example", False),
    ],
)  # fmt: skip
def test_names_collide_in_both_directions(one: str, other: str, both: bool) -> None:
    assert collides(one, other) is collides(other, one) is both


# --- an older plane ---------------------------------------------------------------------------------------------------


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, str]:
    """Return a data directory of version 0.1 and its CA."""
    return tmp_path / "plane", earlier_data_dir(tmp_path / "plane", monkeypatch)


async def test_an_older_plane_keeps_its_chain_and_hands_out_the_new_anchor(old: tuple[Path, str]) -> None:
    root, ca = old
    for _ in range(2):
        with opened(root) as plane:
            assert (root / "ca.pem").read_text() == (root / "issuing-ca.pem").read_text() == ca
            assert await served_issuer(plane, root) == root_name(ca.encode())
            offered = plane.anchor.offer()["plane_anchor_pem"]
            assert offered == plane.anchor.own.root_pem != ca
    with opened(root) as plane:
        assert plane.anchor.offer() == {"plane_anchor_pem": offered}, "always the same one"


async def test_the_switch_waits_for_every_active_device(old: tuple[Path, str]) -> None:
    root, ca = old
    with opened(root) as plane:
        assert [row["name"] for row in plane.anchor.unconfirmed()] == ["web-1"]
        plane.anchor.note(1, ["0" * 64])
        for _ in range(2):
            with pytest.raises(ErrorResponse, match="1 active devices have not confirmed") as caught:
                await plane.anchor.switch(force=False)
            assert (caught.value.status, caught.value.key) == (409, "ANCHOR_UNCONFIRMED")
            assert [row["id"] for row in caught.value.params["devices"]] == [1]
        assert await served_issuer(plane, root) == root_name(ca.encode())
        plane.anchor.note(1, ["0" * 64, plane.anchor.own.root_fingerprint])
        assert plane.anchor.unconfirmed() == []
        plane.anchor.note(1, [])
        assert len(plane.anchor.unconfirmed()) == 1, "restored from a backup, or updated to an older agent"
        plane.anchor.note(1, [plane.anchor.own.root_fingerprint])
        done = await plane.anchor.switch(force=False)
        assert (done["switched"], done["lost_devices"]) == (True, [])
        plane.write_cas()
        assert await served_issuer(plane, root) == root_name(done["anchor_pem"].encode())
        assert (root / "ca.pem").read_text() == done["anchor_pem"]
        assert (root / "issuing-ca.pem").read_text() == ca


async def test_a_refused_switch_hands_out_no_anchor_that_is_not_stored(old: tuple[Path, str]) -> None:
    with opened(old[0]) as plane:
        with pytest.raises(ErrorResponse, match="have not confirmed"):
            await plane.anchor.switch(force=False)  # the first use of the CA, rolled back
        offered = await plane.work(plane.anchor.offer)
    with opened(old[0]) as plane:
        assert await plane.work(plane.anchor.offer) == offered


async def test_a_forced_switch_says_who_is_lost(old: tuple[Path, str]) -> None:
    with opened(old[0]) as plane:
        done = await plane.anchor.switch(force=True)
        assert [(row["id"], row["name"]) for row in done["lost_devices"]] == [(1, "web-1")]
        assert (await plane.anchor.switch(force=False))["lost_devices"] == [], "done once"


async def test_revoked_and_expected_devices_do_not_hold_the_switch_up(old: tuple[Path, str]) -> None:
    with opened(old[0]) as plane:
        plane.devices.revoke(1, 1, "gone")
        plane.database.run(
            "INSERT INTO devices (user_id, device_public_id, status, created_at) VALUES (1, 'b', 'expected', 0)"
        )
        assert plane.anchor.unconfirmed() == []


async def test_a_device_that_registers_again_has_to_confirm_again(old: tuple[Path, str]) -> None:
    with opened(old[0]) as plane:
        plane.anchor.note(1, [plane.anchor.own.root_fingerprint])
        row = plane.devices.row(1, 1)
        from certctrl.plane.devices.devices import DeviceFacts

        plane.devices.activate(row["id"], DeviceFacts(device_public_id="device-1"), bytes(32))
        assert len(plane.anchor.unconfirmed()) == 1


async def test_a_switch_that_is_cut_off_is_finished_by_the_next_start(old: tuple[Path, str]) -> None:
    root, _ = old

    async def broken() -> None:
        raise DiskError("no space", path="tls.pem")

    with opened(root) as plane:
        await served_issuer(plane, root)
        plane.anchor.on_switch = broken
        with pytest.raises(DiskError):
            await plane.anchor.switch(force=True)
        new = plane.anchor.own.root_pem
    with opened(root) as plane:
        assert plane.anchor.switched
        assert (root / "ca.pem").read_text() == new
        assert await served_issuer(plane, root) == root_name(new.encode())


async def test_the_old_ca_issues_no_name_of_the_plane_before_the_switch_either(old: tuple[Path, str]) -> None:
    with opened(old[0]) as plane:
        plane.certificates.reserve(names_of("127.0.0.1", ("plane.example.com",)))
        for switched in (False, True):
            assert plane.anchor.switched is switched
            with pytest.raises(ErrorResponse, match="a name of this control plane"):
                await plane.certificates.issue(1, ["*.example.com"])
            await plane.anchor.switch(force=True)


async def test_a_refresh_hands_out_the_anchor_and_confirms_it(build: Callable[..., World]) -> None:
    world = build()
    world.plane.anchor.switched = False
    device = await world.device()

    async def refresh(**more: object) -> Any:
        body = {"refresh_token": device.refresh_token, "device_public_id": device.public_id} | more
        return (await device("POST", "/auth/token/refresh", body)).data

    own = world.plane.anchor.own
    assert (await refresh())["plane_anchor_pem"] == own.root_pem
    state = (await world.operator("GET", "/apiv1/plane/tls")).data
    assert [row["id"] for row in state["unconfirmed_devices"]] == [device.id]
    assert state["anchor_sha256"] == own.root_fingerprint
    reply = await world.operator("POST", "/apiv1/plane/tls", {})
    assert (reply.status, reply.key) == (409, "ANCHOR_UNCONFIRMED")
    await refresh(plane_anchors_sha256=[own.root_fingerprint])
    assert (await world.operator("POST", "/apiv1/plane/tls", {})).data["switched"] is True
    assert "plane_anchor_pem" not in await refresh()
