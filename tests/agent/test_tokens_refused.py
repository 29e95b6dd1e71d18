"""A refused refresh is final and keeps the files; any other failure backs off."""

from __future__ import annotations

import logging

import pytest
import trio
from token_world import World, failing
from trio.testing import MockClock

from certctrl.errors import DeadlineError, NotRegisteredError, PlaneError, TransportError
from certctrl.model.records import Tokens


def unsent() -> TransportError:
    error = TransportError("nothing listens")
    error.maybe_sent = False
    return error


# --- refusals and failures ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "key"), [(401, ""), (403, ""), (403, "DEVICE_REVOKED"), (400, "INVALID_TOKEN"), (400, "TOKEN_EXPIRED")]
)
async def test_a_refused_refresh_is_final_and_keeps_the_files(
    world: World, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture, status: int, key: str
) -> None:
    old = world.access()
    world.stored(old)
    world.answer = failing(PlaneError("no more", status=status, key=key))
    keeper = world.keeper()
    for _ in range(3):
        with pytest.raises(NotRegisteredError, match="no more") as caught:
            await keeper.refresh(old)
        assert "register" in (caught.value.fix or "")
    assert world.spent == ["canary-r0"]
    assert world.on_disk == Tokens(access_token=old, refresh_token="canary-r0")
    assert [record.levelno for record in caplog.records if "refused" in record.message] == [logging.CRITICAL]


@pytest.mark.parametrize(
    "error",
    [
        PlaneError("busy", status=503),
        PlaneError("slow", status=429),
        PlaneError("odd", status=400),
        PlaneError("gone", status=404),
        unsent(),
    ],
)
async def test_other_failures_are_not_final_and_wait_for_their_backoff(
    world: World, autojump_clock: MockClock, error: Exception
) -> None:
    old = world.access()
    world.stored(old)
    world.answer = failing(error)
    keeper = world.keeper()
    began = trio.current_time()
    for _ in range(1000):
        with pytest.raises(type(error)):
            await keeper.refresh(old)
        await trio.sleep(0.1)
    assert len(world.spent) <= 9, f"{len(world.spent)} in {trio.current_time() - began:.0f} s: 1, 2, 4, 8, 16, 30, 30"
    assert len(world.spent) >= 6
    world.answer = world.rotate
    await trio.sleep(30)
    assert await keeper.refresh(old) != old
    assert set(world.spent) == {"canary-r0"}


async def test_the_retry_after_of_the_plane_is_respected(world: World, autojump_clock: MockClock) -> None:
    old = world.access()
    world.stored(old)
    world.answer = failing(PlaneError("slow", status=429, retry_after=120.0))
    keeper = world.keeper()
    with pytest.raises(PlaneError):
        await keeper.refresh(old)
    world.answer = world.rotate
    await trio.sleep(119)
    with pytest.raises(PlaneError):
        await keeper.refresh(old)
    await trio.sleep(2)
    await keeper.refresh(old)
    assert len(world.spent) == 2


async def test_a_broken_exchange_is_repeated_once_with_the_same_token(world: World, autojump_clock: MockClock) -> None:
    old = world.access()
    world.stored(old)
    answers = [failing(TransportError("broke")), world.rotate]
    world.answer = lambda token: answers.pop(0)(token)
    access = await world.keeper().refresh(old)
    assert world.spent == ["canary-r0", "canary-r0"]
    assert world.on_disk.access_token == access


async def test_a_second_break_is_a_transport_error_and_a_timeout_is_not_repeated(
    world: World, autojump_clock: MockClock
) -> None:
    old = world.access()
    world.stored(old)
    world.answer = failing(TransportError("broke"))
    with pytest.raises(TransportError, match="broke"):
        await world.keeper().refresh(old)
    assert len(world.spent) == 2
    world.answer = failing(DeadlineError("no answer within 30 s"))
    with pytest.raises(DeadlineError):
        await world.keeper().refresh(old)
    assert len(world.spent) == 3, "the plane may still be at work on it"
    assert world.on_disk.refresh_token == "canary-r0"


async def test_a_plane_that_rejects_fresh_tokens_causes_no_storm(world: World, autojump_clock: MockClock) -> None:
    world.stored(world.access())
    keeper = world.keeper()
    await keeper.current()
    end = trio.current_time() + 10
    while trio.current_time() < end:
        try:
            await keeper.refresh(keeper.seen())
        except PlaneError as error:
            assert error.status == 401
        await trio.sleep(0.05)
    assert len(world.spent) <= 6


async def test_a_plane_that_issues_expired_tokens_causes_no_storm(world: World, autojump_clock: MockClock) -> None:
    world.stored(world.access())
    world.lifetime = -100.0
    keeper = world.keeper()
    await trio.sleep(901)
    with trio.move_on_after(60):
        await keeper.keep_token_fresh()
    assert 1 <= len(world.spent) <= 40
