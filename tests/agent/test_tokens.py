"""The keeper's promises under a virtual clock: few refreshes, none lost, none after a final refusal."""

from __future__ import annotations

import errno
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import jwt
import pytest
import trio
import trio.testing

from certctrl.agent import tokens as tokens_module
from certctrl.agent.tokens import TokenKeeper
from certctrl.errors import BusyError, DeadlineError, DiskError, NotRegisteredError, PlaneError, TransportError
from certctrl.model.config import AgentConfig, ApplicationConfig
from certctrl.model.records import Tokens
from certctrl.protocol.wire import Refreshed
from certctrl.store.atomic import make_tree
from certctrl.store.fs import RealFs
from certctrl.store.layout import ConfigDir
from certctrl.store.lock import token_lock
from certctrl.store.state import StateStore

WALL = 1_790_000_000.0
KEY = "k" * 32


async def inline(call: Callable[..., Any], *args: Any) -> Any:
    return call(*args)


class World:
    """One config directory, a plane that answers as told, and a wall clock that follows the virtual one."""

    def __init__(self, root: Path) -> None:
        self.layout = ConfigDir(root)
        make_tree(RealFs(), self.layout)
        self.store = StateStore(self.layout, RealFs())
        self.store.save_device_id("uuid")
        self.spent: list[str] = []
        self.deadlines: list[float] = []
        self.answer: Callable[[str], Awaitable[Refreshed]] = self.rotate
        self.server_skew: float | None = None
        self.clock_error = 0.0
        self.lifetime = 900.0
        self.made = 0
        self.offload: Callable[..., Awaitable[Any]] = inline

    def wall_now(self) -> float:
        return WALL + trio.current_time() + self.clock_error

    def server_now(self) -> float:
        return self.wall_now() + (self.server_skew or 0.0)

    def access(self, lifetime: float | None = None) -> str:
        """Return a new access token as the plane would issue it now, by the plane's own (right) clock."""
        self.made += 1
        now = WALL + trio.current_time()
        lifetime = self.lifetime if lifetime is None else lifetime
        return jwt.encode({"sub": "7", "device_id": 9, "iat": now, "exp": now + lifetime, "n": self.made}, KEY)

    def stored(self, access: str, refresh: str = "canary-r0") -> None:
        self.store.save_tokens(Tokens(access_token=access, refresh_token=refresh))

    async def rotate(self, refresh_token: str) -> Refreshed:
        await trio.sleep(0.1)
        return Refreshed(access_token=self.access(), refresh_token=f"canary-r{len(self.spent)}", expires_in=None)

    async def refresh(self, refresh_token: str, device_public_id: str, *, deadline: float) -> Refreshed:
        assert device_public_id == "uuid"
        self.spent.append(refresh_token)
        self.deadlines.append(deadline)
        return await self.answer(refresh_token)

    def keeper(self, **settings: Any) -> TokenKeeper:
        return TokenKeeper(
            layout=self.layout,
            store=self.store,
            plane=self,  # type: ignore[arg-type]  # the two calls the keeper makes
            config=AgentConfig(application=ApplicationConfig(**settings)),
            wall_now=self.wall_now,
            offload=lambda call, *args: self.offload(call, *args),
            random=lambda: 1.0,
        )

    @property
    def on_disk(self) -> Tokens:
        found = self.store.load_tokens()
        assert found is not None
        return found


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "agent")


def failing(error: Exception) -> Callable[[str], Awaitable[Refreshed]]:
    async def answer(refresh_token: str) -> Refreshed:
        raise error

    return answer


def unsent() -> TransportError:
    error = TransportError("nothing listens")
    error.maybe_sent = False
    return error


# --- using -------------------------------------------------------------------------------------------------------


async def test_a_valid_token_is_used_as_it_is(world: World, autojump_clock: Any) -> None:
    access = world.access()
    world.stored(access)
    keeper = world.keeper()
    assert keeper.seen() == ""
    assert keeper.valid()
    assert await keeper.current() == access == keeper.seen()
    assert await keeper.identity() == (7, 9)
    assert keeper.expires_at() == pytest.approx(WALL + 900)
    assert world.spent == []


async def test_an_expired_token_is_refreshed_once_and_stored(world: World, autojump_clock: Any) -> None:
    world.stored(world.access())
    keeper = world.keeper()
    await trio.sleep(901)
    assert not keeper.valid()
    access = await keeper.current()
    assert await keeper.current() == access
    assert world.spent == ["canary-r0"]
    assert world.on_disk == Tokens(access_token=access, refresh_token="canary-r1")
    assert world.deadlines == [30.0]


async def test_no_tokens_is_not_registered(world: World, autojump_clock: Any) -> None:
    with pytest.raises(NotRegisteredError) as caught:
        await world.keeper().current()
    assert "register" in (caught.value.fix or "")
    assert world.keeper().valid() is False
    assert await world.keeper().identity() == (None, None)


async def test_any_number_of_tasks_make_one_refresh(world: World, autojump_clock: Any) -> None:
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


async def test_what_another_process_fetched_is_taken_over(world: World, autojump_clock: Any) -> None:
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


async def test_a_plane_that_does_not_rotate_keeps_the_refresh_token(world: World, autojump_clock: Any) -> None:
    async def same(refresh_token: str) -> Refreshed:
        return Refreshed(access_token=world.access(), refresh_token=None, expires_in=900)

    world.answer = same
    old = world.access()
    world.stored(old)
    access = await world.keeper().refresh(old)
    assert world.on_disk == Tokens(access_token=access, refresh_token="canary-r0")


async def test_a_token_nobody_can_read_is_used_until_it_is_rejected(world: World, autojump_clock: Any) -> None:
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
async def test_a_wrong_clock_here_neither_hastens_nor_delays(world: World, autojump_clock: Any, error: float) -> None:
    world.clock_error, world.server_skew = error, -error
    world.stored(world.access())
    keeper = world.keeper()
    await trio.sleep(890)
    await keeper.current()
    assert world.spent == []
    remaining = (keeper.expires_at() or 0) - world.wall_now()
    assert remaining == pytest.approx(10, abs=0.1), "told in this host's own time"
    await trio.sleep(11)
    await keeper.current()
    assert world.spent == ["canary-r0"]


# --- refusals and failures ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "key"), [(401, ""), (403, ""), (403, "DEVICE_REVOKED"), (400, "INVALID_TOKEN"), (400, "TOKEN_EXPIRED")]
)
async def test_a_refused_refresh_is_final_and_keeps_the_files(
    world: World, autojump_clock: Any, caplog: pytest.LogCaptureFixture, status: int, key: str
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
    world: World, autojump_clock: Any, error: Exception
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


async def test_the_planes_own_pause_is_kept(world: World, autojump_clock: Any) -> None:
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


async def test_an_exchange_that_broke_is_tried_once_more_with_the_same_token(world: World, autojump_clock: Any) -> None:
    old = world.access()
    world.stored(old)
    answers = [failing(TransportError("broke")), world.rotate]
    world.answer = lambda token: answers.pop(0)(token)
    access = await world.keeper().refresh(old)
    assert world.spent == ["canary-r0", "canary-r0"]
    assert world.on_disk.access_token == access


async def test_twice_broken_is_a_transport_error_and_late_is_not_hurried(world: World, autojump_clock: Any) -> None:
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


async def test_a_plane_that_rejects_its_own_fresh_tokens_makes_no_storm(world: World, autojump_clock: Any) -> None:
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


async def test_a_plane_that_issues_expired_tokens_makes_no_storm(world: World, autojump_clock: Any) -> None:
    world.stored(world.access())
    world.lifetime = -100.0
    keeper = world.keeper()
    await trio.sleep(901)
    with trio.move_on_after(60):
        await keeper.keep_token_fresh()
    assert 1 <= len(world.spent) <= 40


# --- the disk ----------------------------------------------------------------------------------------------------


def full(path: str = "state") -> DiskError:
    return DiskError(f"cannot write {path}: No space left on device", path=path, errno=errno.ENOSPC)


async def test_a_full_disk_spends_nothing(
    world: World, autojump_clock: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
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
    assert caplog.text.count("Token refresh put off") == 1
    await trio.sleep(60)
    assert await keeper.refresh(old) != old
    assert world.spent == ["canary-r0"]


async def test_a_save_that_fails_keeps_the_tokens_in_memory_until_it_works(
    world: World, autojump_clock: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    old = world.access()
    world.stored(old)
    keeper = world.keeper()
    broken = True

    async def offload(call: Callable[..., Any], *args: Any) -> Any:
        if broken and getattr(call, "__name__", "") in ("commit", "save_tokens"):
            raise full()
        return call(*args)

    world.offload = offload
    access = await keeper.refresh(old)
    assert await keeper.current() == access, "polling goes on"
    assert world.on_disk == Tokens(access_token=old, refresh_token="canary-r0")
    assert "held in memory only" in caplog.text
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keeper.keep_token_fresh)
        await trio.sleep(60)
        assert world.on_disk.refresh_token == "canary-r0"
        broken = False
        await trio.sleep(11)
        assert world.on_disk == Tokens(access_token=access, refresh_token="canary-r1")
        nursery.cancel_scope.cancel()
    assert world.spent == ["canary-r0"]


async def test_a_token_in_memory_is_the_next_to_be_spent_and_stopping_saves_it(
    world: World, autojump_clock: Any
) -> None:
    old = world.access()
    world.stored(old)
    keeper = world.keeper()
    broken = True

    async def offload(call: Callable[..., Any], *args: Any) -> Any:
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


async def test_registering_anew_wins_over_what_is_in_memory(world: World, autojump_clock: Any) -> None:
    old = world.access()
    world.stored(old)
    keeper = world.keeper()

    async def offload(call: Callable[..., Any], *args: Any) -> Any:
        if getattr(call, "__name__", "") in ("commit", "save_tokens"):
            raise full()
        return call(*args)

    world.offload = offload
    first = await keeper.refresh(old)
    world.offload = inline
    anew = world.access()
    world.stored(anew, "canary-registered")
    await trio.sleep(5)
    assert await keeper.refresh(first) == anew
    assert world.on_disk.refresh_token == "canary-registered"
    assert world.spent == ["canary-r0"]


# --- cancelling ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", [0.0, 0.01, 0.05, 0.099])
async def test_a_cancelled_leader_does_not_lose_the_answer(world: World, autojump_clock: Any, after: float) -> None:
    old = world.access()
    world.stored(old)
    keeper = world.keeper()
    with trio.move_on_after(after) as scope:
        await keeper.refresh(old)
    assert scope.cancelled_caught or after == 0.0
    later = await keeper.refresh(old)
    assert len(world.spent) == 1
    assert world.on_disk == Tokens(access_token=later, refresh_token="canary-r1")


async def test_a_waiter_takes_over_from_a_cancelled_leader(world: World, autojump_clock: Any) -> None:
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


async def test_a_hanging_plane_holds_a_stop_up_for_five_seconds_only(world: World, autojump_clock: Any) -> None:
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


async def test_somebody_elses_lock_is_waited_for_35_seconds(world: World, autojump_clock: Any) -> None:
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


# --- the task ------------------------------------------------------------------------------------------------------


async def test_a_shift_of_tokens(world: World, autojump_clock: Any, caplog: pytest.LogCaptureFixture) -> None:
    """900 s tokens: refreshed 60 s ahead, warned of as the spec shows, never expired in between."""
    caplog.set_level(logging.INFO)
    world.stored(world.access())
    keeper = world.keeper()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keeper.keep_token_fresh)
        for _ in range(8 * 60):
            await trio.sleep(60)
            before = len(world.spent)
            await keeper.current()
            assert len(world.spent) == before, "nobody ever waits for a refresh"
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
    world: World, autojump_clock: Any, lifetime: float, ahead: int, expected: float
) -> None:
    world.lifetime = lifetime
    world.stored(world.access())
    with trio.move_on_after(expected * 10.5):
        await world.keeper(refresh_ahead_seconds=ahead).keep_token_fresh()
    assert 8 <= len(world.spent) <= 14


async def test_failures_ahead_of_expiry_are_told_with_the_next_try(
    world: World, autojump_clock: Any, caplog: pytest.LogCaptureFixture
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


async def test_the_task_ends_when_the_plane_refuses_for_good(world: World, autojump_clock: Any) -> None:
    world.stored(world.access())
    world.answer = failing(PlaneError("no more", status=401))
    with pytest.raises(NotRegisteredError):
        await world.keeper().keep_token_fresh()
    assert trio.current_time() == pytest.approx(840, abs=1)


def test_the_figures_are_the_documented_ones() -> None:
    assert (tokens_module.WARN_SECONDS, tokens_module.LAST_BACKOFF) == (60.0, 30.0)
