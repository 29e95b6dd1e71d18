"""TokenKeeper under a virtual clock: few refreshes, ahead of expiry, without waiting requests."""

from __future__ import annotations

import logging

import pytest
import trio
from token_world import WALL, World, failing
from trio.testing import MockClock

from certctrl.agent import tokens as tokens_module
from certctrl.errors import NotRegisteredError, PlaneError
from certctrl.model.records import Tokens
from certctrl.protocol.wire.tokens import Refreshed

# --- using -------------------------------------------------------------------------------------------------------


async def test_a_valid_token_is_used_unchanged(world: World, autojump_clock: MockClock) -> None:
    access = world.access()
    world.stored(access)
    keeper = world.keeper()
    assert keeper.seen() == ""
    assert keeper.valid()
    assert await keeper.current() == access == keeper.seen()
    assert await keeper.identity() == (7, 9)
    assert keeper.expires_at() == pytest.approx(WALL + 900)
    assert world.spent == []


async def test_an_expired_token_is_refreshed_once_and_stored(world: World, autojump_clock: MockClock) -> None:
    world.stored(world.access())
    keeper = world.keeper()
    await trio.sleep(901)
    assert not keeper.valid()
    access = await keeper.current()
    assert await keeper.current() == access
    assert world.spent == ["canary-r0"]
    assert world.on_disk == Tokens(access_token=access, refresh_token="canary-r1")
    assert world.deadlines == [30.0]


async def test_no_tokens_is_not_registered(world: World, autojump_clock: MockClock) -> None:
    with pytest.raises(NotRegisteredError) as caught:
        await world.keeper().current()
    assert "register" in (caught.value.fix or "")
    assert world.keeper().valid() is False
    assert await world.keeper().identity() == (None, None)


async def test_any_number_of_tasks_make_one_refresh(world: World, autojump_clock: MockClock) -> None:
    old = world.access()
    world.stored(old)
    keeper = world.keeper()
    assert await keeper.current() == old
    got: list[str] = []

    async def rejected() -> None:
        got.append(await keeper.refresh(old))

    async with trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(rejected)
    assert len(set(got)) == 1
    assert len(got) == 50
    assert world.spent == ["canary-r0"]


async def test_a_token_of_another_process_is_used(world: World, autojump_clock: MockClock) -> None:
    old = world.access()
    world.stored(old)
    keeper = world.keeper()
    assert await keeper.current() == old
    newer = world.access()
    world.stored(newer, "canary-other")
    assert await keeper.refresh(old) == newer
    assert world.spent == []
    expired = world.access(lifetime=-5)
    world.stored(expired, "canary-other")
    await trio.sleep(5)
    assert await keeper.refresh(newer) not in (newer, expired)
    assert world.spent == ["canary-other"]


async def test_a_plane_that_does_not_rotate_keeps_the_refresh_token(world: World, autojump_clock: MockClock) -> None:
    async def same(refresh_token: str) -> Refreshed:
        return Refreshed(access_token=world.access(), refresh_token=None, expires_in=900)

    world.answer = same
    old = world.access()
    world.stored(old)
    access = await world.keeper().refresh(old)
    assert world.on_disk == Tokens(access_token=access, refresh_token="canary-r0")


async def test_an_unreadable_token_is_used_until_it_is_rejected(world: World, autojump_clock: MockClock) -> None:
    world.stored("opaque")
    keeper = world.keeper()
    await trio.sleep(10**6)
    assert await keeper.current() == "opaque"
    assert keeper.expires_at() is None
    assert keeper.valid()

    async def opaque(refresh_token: str) -> Refreshed:
        return Refreshed(access_token="opaque2", refresh_token=None, expires_in=300)

    world.answer = opaque
    assert await keeper.refresh("opaque") == "opaque2"
    assert keeper.expires_at() == pytest.approx(world.wall_now() + 300), "the answer said what the token does not"


@pytest.mark.parametrize("error", [3600.0, -3600.0, -WALL + 1000.0, 3.2e8])
async def test_a_wrong_local_clock_does_not_shift_refreshes(
    world: World, autojump_clock: MockClock, error: float
) -> None:
    world.clock_error, world.server_skew = error, -error
    world.stored(world.access())
    keeper = world.keeper()
    await trio.sleep(890)
    await keeper.current()
    assert world.spent == []
    remaining = (keeper.expires_at() or 0) - world.wall_now()
    assert remaining == pytest.approx(10, abs=0.1), "in this host's own time"
    await trio.sleep(11)
    await keeper.current()
    assert world.spent == ["canary-r0"]


# --- the task ------------------------------------------------------------------------------------------------------


async def test_tokens_over_a_working_day(
    world: World, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """900 s tokens are refreshed 60 s ahead, with the warning of the spec, and never expire."""
    caplog.set_level(logging.INFO)
    world.stored(world.access())
    keeper = world.keeper()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keeper.keep_token_fresh)
        for _ in range(8 * 60):
            await trio.sleep(60)
            before = len(world.spent)
            await keeper.current()
            assert len(world.spent) == before, "no request ever waits for a refresh"
        nursery.cancel_scope.cancel()
    assert len(world.spent) == len(set(world.spent)) == 8 * 3600 // 840
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings == ["Access token expires in 60 seconds"] * len(world.spent)
    refreshed = [record for record in caplog.records if "Token refresh successful" in record.getMessage()]
    assert {record.name for record in caplog.records} == {"certctrl.Token"}
    assert {record.getMessage() for record in refreshed} == {"Token refresh successful, expires in 900s"}
    assert "canary" not in caplog.text + repr(keeper)


@pytest.mark.parametrize(
    ("lifetime", "ahead", "expected"), [(30.0, 60, 15.0), (4.0, 60, 3.0), (7200.0, 300, 6900.0), (900.0, 10, 890.0)]
)
async def test_short_and_long_lives(
    world: World, autojump_clock: MockClock, lifetime: float, ahead: int, expected: float
) -> None:
    world.lifetime = lifetime
    world.stored(world.access())
    with trio.move_on_after(expected * 10.5):
        await world.keeper(refresh_ahead_seconds=ahead).keep_token_fresh()
    assert 8 <= len(world.spent) <= 14


async def test_failures_ahead_of_expiry_are_logged_with_the_next_try(
    world: World, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    world.stored(world.access())
    world.answer = failing(PlaneError("busy", status=503))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.keeper().keep_token_fresh)
        await trio.sleep(850)
        world.answer = world.rotate
        await trio.sleep(40)
        nursery.cancel_scope.cancel()
    assert "Token refresh failed: busy; next try in 2 s" in caplog.text
    assert world.on_disk.refresh_token != "canary-r0"
    assert set(world.spent) == {"canary-r0"}


async def test_the_task_ends_when_the_plane_refuses_permanently(world: World, autojump_clock: MockClock) -> None:
    world.stored(world.access())
    world.answer = failing(PlaneError("no more", status=401))
    with pytest.raises(NotRegisteredError):
        await world.keeper().keep_token_fresh()
    assert trio.current_time() == pytest.approx(840, abs=1)


def test_the_constants_are_the_documented_ones() -> None:
    assert (tokens_module.WARN_SECONDS, tokens_module.LAST_BACKOFF) == (60.0, 30.0)
