"""Two live agents with one identity are detected; restarts, upgrades and old agents are not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from plane_world import Device, World

from certctrl.errors import DiskError
from certctrl.plane.devices.clones import WINDOW_SECONDS
from certctrl.plane.devices.devices import DeviceFacts

UPDATES = "/apiv1/devices/self/updates"


@pytest.fixture
def world(build: Callable[..., World]) -> World:
    return build(poll_rate=1000.0, poll_burst=1000, access_token_seconds=3600)


async def copies(device: Device, name: str) -> bool:
    """Poll under a name; return whether the answer reports copies."""
    reply = await device("GET", UPDATES, headers={"cert-ctrl-instance": name} if name else {})
    assert reply.status == 204
    return reply.headers.get("cert-ctrl-copies") == "suspected"


@pytest.mark.parametrize(
    ("names", "suspected"),
    [
        ("a", False),
        ("aaaa", False),
        ("ab", False),  # a restart
        ("abcdefghijklmnop", False),  # a restart loop
        ("aba", True),
        ("aabbab", True),
        ("abca", True),  # one of the two restarts
        ("abcdefgha", True),
        ("abcdefghia", False),  # more than eight names
        ("a-b-", False),  # agents without instance names
        ("a-a", False),
    ],
)
async def test_alternating_instances_are_suspected(world: World, names: str, suspected: bool) -> None:
    device, other = await world.device(), await world.device("device-2")
    for name in names:
        found = await copies(device, "" if name == "-" else name)
        world.clock.advance(1)
    assert found is suspected
    assert await copies(other, "a") is False


async def test_the_suspicion_ends_when_one_of_them_stops(world: World) -> None:
    device = await world.device()
    for name in "aba":
        await copies(device, name)
    world.clock.advance(WINDOW_SECONDS - 1)
    assert await copies(device, "a")
    world.clock.advance(1)
    assert not await copies(device, "a")


async def test_names_are_forgotten_after_the_window(world: World) -> None:
    device = await world.device()
    for name in "ab":
        await copies(device, name)
    world.clock.advance(WINDOW_SECONDS)
    assert not await copies(device, "a")


async def test_both_clones_and_the_operator_are_notified_until_the_device_registers(world: World) -> None:
    device = await world.device()
    reported = []
    for name in ("one", "two", "one", "two"):
        reported.append(await copies(device, name))
        world.clock.advance(5)
    assert reported == [False, False, True, True]
    assert world.plane.devices.show(1, device.id)["copies_suspected"] is True
    world.plane.devices.activate(
        device.id, DeviceFacts(device_public_id=device.public_id), bytes(device.secret.public_key)
    )
    assert world.plane.devices.show(1, device.id)["copies_suspected"] is False


async def test_polls_write_only_when_the_agent_changes(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two copies that poll each second are confirmed once a minute."""
    device, run, written = await world.device(), world.plane.database.run, list[int]()

    def counted(sql: str, *parameters: object) -> int:
        if not sql.startswith(("BEGIN", "COMMIT")):
            written.append(int(world.clock.steady))
        return run(sql, *parameters)

    monkeypatch.setattr(world.plane.database, "run", counted)
    for name in ["a"] * 10 + ["b", "a"] * 60:
        await copies(device, name)
        world.clock.advance(1)
    assert written == [0, 10, 11, 72]


async def test_a_poll_succeeds_when_the_database_takes_no_changes(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    device, run = await world.device(), world.plane.database.run
    await copies(device, "a")

    def full(sql: str, *parameters: object) -> int:
        if sql.startswith("UPDATE"):
            raise DiskError("disk full", path="plane.db")
        return run(sql, *parameters)

    with monkeypatch.context() as patched:
        patched.setattr(world.plane.database, "run", full)
        assert await copies(device, "b") is False
    assert [await copies(device, name) for name in "ba"] == [False, True]
