"""No token is lost or wasted by a full disk, a cancelled caller or another process."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing
from token_world import World, inline
from trio.testing import MockClock

from certctrl.errors import BusyError, DiskError
from certctrl.model.records import Tokens
from certctrl.protocol.wire.tokens import Refreshed
from certctrl.store.disk.lock import token_lock

# --- the disk ----------------------------------------------------------------------------------------------------


def full(path: str = "state") -> DiskError:
    return DiskError(f"cannot write {path}: No space left on device", path=path, errno=errno.ENOSPC)


async def test_a_full_disk_uses_no_refresh_token(
    world: World, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    old = world.access()
    world.stored(old)
    with monkeypatch.context() as patch:
        patch.setattr(world.store, "reserve_tokens", lambda: (_ for _ in ()).throw(full()))
        keeper = world.keeper()
        with pytest.raises(DiskError):
            await keeper.refresh(old)
        await trio.sleep(60)
        with pytest.raises(DiskError):
            await keeper.refresh(old)
    assert world.spent == []
    assert caplog.text.count("Token refresh postponed") == 1
    await trio.sleep(60)
    assert await keeper.refresh(old) != old
    assert world.spent == ["canary-r0"]


async def test_tokens_that_cannot_be_saved_stay_in_memory(
    world: World, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    old = world.access()
    world.stored(old)
    keeper = world.keeper()
    broken = True

    async def offload(call: Callable[..., Any], *args: object) -> Any:
        if broken and getattr(call, "__name__", "") in ("commit", "save_tokens"):
            raise full()
        return call(*args)

    world.offload = offload
    access = await keeper.refresh(old)
    assert await keeper.current() == access, "polling continues"
    assert world.on_disk == Tokens(access_token=old, refresh_token="canary-r0")
    assert "New tokens are in memory only" in caplog.text
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keeper.keep_token_fresh)
        await trio.sleep(60)
        assert world.on_disk.refresh_token == "canary-r0"
        broken = False
        await trio.sleep(11)
        assert world.on_disk == Tokens(access_token=access, refresh_token="canary-r1")
        nursery.cancel_scope.cancel()
    assert world.spent == ["canary-r0"]


async def test_a_token_in_memory_is_used_next_and_saved_at_a_stop(world: World, autojump_clock: MockClock) -> None:
    old = world.access()
    world.stored(old)
    keeper = world.keeper()
    broken = True

    async def offload(call: Callable[..., Any], *args: object) -> Any:
        if broken and getattr(call, "__name__", "") in ("commit", "save_tokens"):
            raise full()
        return call(*args)

    world.offload = offload
    first = await keeper.refresh(old)
    await trio.sleep(5)
    second = await keeper.refresh(first)
    assert world.spent == ["canary-r0", "canary-r1"], "not the one on disk, which is spent"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keeper.keep_token_fresh)
        await trio.testing.wait_all_tasks_blocked()
        broken = False
        nursery.cancel_scope.cancel()
    assert world.on_disk == Tokens(access_token=second, refresh_token="canary-r2")


async def test_a_new_registration_replaces_tokens_in_memory(world: World, autojump_clock: MockClock) -> None:
    old = world.access()
    world.stored(old)
    keeper = world.keeper()

    async def offload(call: Callable[..., Any], *args: object) -> Any:
        if getattr(call, "__name__", "") in ("commit", "save_tokens"):
            raise full()
        return call(*args)

    world.offload = offload
    first = await keeper.refresh(old)
    world.offload = inline
    registered = world.access()
    world.stored(registered, "canary-registered")
    await trio.sleep(5)
    assert await keeper.refresh(first) == registered
    assert world.on_disk.refresh_token == "canary-registered"
    assert world.spent == ["canary-r0"]


# --- cancelling ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", [0.0, 0.01, 0.05, 0.099])
async def test_a_cancelled_leader_does_not_lose_the_answer(
    world: World, autojump_clock: MockClock, after: float
) -> None:
    old = world.access()
    world.stored(old)
    keeper = world.keeper()
    with trio.move_on_after(after) as scope:
        await keeper.refresh(old)
    assert scope.cancelled_caught or after == 0.0
    later = await keeper.refresh(old)
    assert len(world.spent) == 1
    assert world.on_disk == Tokens(access_token=later, refresh_token="canary-r1")


async def test_a_waiter_takes_over_from_a_cancelled_leader(world: World, autojump_clock: MockClock) -> None:
    old = world.access()
    world.stored(old)
    keeper = world.keeper()
    got: list[str] = []
    leader = trio.CancelScope()

    async def lead() -> None:
        with leader:
            await keeper.refresh(old)

    async def follow() -> None:
        got.append(await keeper.refresh(old))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(lead)
        await trio.sleep(0.05)
        nursery.start_soon(follow)
        leader.cancel()
    assert got == [world.on_disk.access_token]
    assert world.spent == ["canary-r0"]


async def test_a_hanging_plane_delays_a_stop_by_five_seconds(world: World, autojump_clock: MockClock) -> None:
    async def hang(refresh_token: str) -> Refreshed:
        await trio.sleep_forever()
        raise AssertionError

    old = world.access()
    world.stored(old)
    world.answer = hang
    keeper = world.keeper()
    began = trio.current_time()
    with trio.move_on_after(1):
        await keeper.refresh(old)
    assert trio.current_time() - began == pytest.approx(6)
    assert world.on_disk.refresh_token == "canary-r0"
    assert sorted(path.name for path in world.layout.state.iterdir() if path.name.startswith(".")) == []
    free = token_lock(world.layout)
    assert free.try_acquire()
    free.release()
    world.answer = world.rotate
    assert await keeper.refresh(old) != old


async def test_the_lock_of_another_process_is_awaited_for_35_seconds(world: World, autojump_clock: MockClock) -> None:
    old = world.access()
    world.stored(old)
    keeper = world.keeper()
    other = token_lock(world.layout)
    assert other.try_acquire()
    began = trio.current_time()
    with pytest.raises(BusyError, match=r"pid \d+"):
        await keeper.refresh(old)
    assert trio.current_time() - began == pytest.approx(35, abs=1)
    assert world.spent == []
    await trio.sleep(60)
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def let_go() -> None:
            await trio.sleep(20)
            other.release()

        began = trio.current_time()
        await keeper.refresh(old)
    assert trio.current_time() - began == pytest.approx(20.2, abs=0.2)
