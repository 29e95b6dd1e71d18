"""The agent knows the features of its plane: from the last announcement, across restarts and processes."""

from __future__ import annotations

import pytest
import trio
from token_world import World
from trio.testing import MockClock

from certctrl.errors import TransportError
from certctrl.protocol.wire.tokens import Refreshed

NO_ROUTE = TransportError("no route")
BOTH = frozenset({"delta", "push"})


def announces(world: World, *features: str) -> None:
    async def answer(refresh_token: str) -> Refreshed:
        return Refreshed(access_token=world.access(), features=frozenset(features))

    world.answer = answer


async def test_a_refresh_announces_features_for_now_and_after_a_restart(
    world: World, autojump_clock: MockClock
) -> None:
    world.stored(world.access(-5))
    announces(world, *BOTH)
    await world.keeper().current()
    assert world.features == BOTH
    world.features = frozenset({"of", "another", "process"})
    restarted = world.keeper()
    assert restarted.valid()
    assert world.features == BOTH, "with a token that is still valid"
    assert len(world.spent) == 1


async def test_a_refresh_without_features_means_that_the_plane_has_none(
    world: World, autojump_clock: MockClock
) -> None:
    world.stored(world.access(-5))
    announces(world, *BOTH)
    keeper = world.keeper()
    await keeper.current()
    announces(world)
    await trio.sleep(10)
    await keeper.refresh(keeper.seen())
    assert world.features == frozenset()
    assert world.on_disk.features == frozenset()


async def test_a_failed_refresh_keeps_the_features(world: World, autojump_clock: MockClock) -> None:
    world.stored(world.access(-5))
    announces(world, *BOTH)
    keeper = world.keeper()
    await keeper.current()

    async def away(refresh_token: str) -> Refreshed:
        raise NO_ROUTE

    world.answer = away
    await trio.sleep(10)
    with pytest.raises(TransportError):
        await keeper.refresh(keeper.seen())
    assert world.features == BOTH == world.on_disk.features


async def test_the_refresh_of_another_process_announces_too(world: World, autojump_clock: MockClock) -> None:
    old = world.access()
    world.stored(old)
    daemon, command = world.keeper(), world.keeper()
    assert await daemon.current() == await command.current() == old
    announces(world, *BOTH)
    await command.refresh(old)
    world.features = frozenset()  # the daemon has its own client
    await daemon.refresh(old)
    assert len(world.spent) == 1, "the daemon takes the tokens from the disk"
    assert world.features == BOTH
