"""The signal stream: growing ids, valid and void cursors, waiting without missed signals."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
import trio
from hypothesis import example, given
from hypothesis import strategies as st

from certctrl.plane.core import Plane
from certctrl.plane.devices.devices import DeviceFacts
from certctrl.plane.errors import ErrorResponse
from certctrl.plane.settings import PlaneSettings
from certctrl.plane.storage.signal_stream import Page

WALL = 1_790_000_000.0


class Bench:
    """A stream of one device, with a controlled clock."""

    def __init__(self, length: int = 1000) -> None:
        self.wall = WALL
        self.plane = Plane.open(
            settings=PlaneSettings(stream_length=length), wall_now=lambda: self.wall, monotonic=lambda: 0.0
        )
        self.stream = self.plane.stream
        with self.plane.database.transaction():
            self.device = self.plane.devices.add(1, DeviceFacts(device_public_id="device-1"))
            self.other = self.plane.devices.add(1, DeviceFacts(device_public_id="device-2"))

    def append(self, cert_id: int = 1, device: int | None = None, type_: str = "cert.renewed") -> int:
        with self.plane.database.transaction():
            return self.stream.append(device or self.device, type_, {"cert_id": cert_id})

    def read(self, after: str | None = None, limit: int = 100, device: int | None = None) -> Page:
        return self.stream.read(device or self.device, after, limit)

    def waiting(self, cursor: str) -> int:
        return self.stream.waiting({self.device: cursor}).get(self.device, 0)

    async def wait(
        self, device: int | None = None, leave: Callable[[], Awaitable[object]] = trio.sleep_forever
    ) -> bool:
        """Wait as a poll of a device that has read all signals."""
        with self.stream.waiter(device or self.device) as waiter:
            return await waiter.wait(self.read(device=device).cursor, leave)

    def void(self, cursor: str, device: int | None = None) -> bool:
        try:
            self.read(cursor, device=device)
        except ErrorResponse as error:
            assert (error.status, error.key, error.code) == (409, "CURSOR_EXPIRED", 40901)
            return True
        return False


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.plane.close()


def order(cursor: str) -> tuple[int, int]:
    ms, seq = cursor.split("-")
    return int(ms), int(seq)


def test_an_empty_stream_has_a_cursor_to_keep(bench: Bench) -> None:
    page = bench.read()
    assert page.signals == ()
    assert bench.read(page.cursor) == page


def test_signals_come_after_the_cursor_in_order_and_in_pages(bench: Bench) -> None:
    for cert_id in range(1, 6):
        bench.append(cert_id)
    first = bench.read(limit=2)
    second = bench.read(first.cursor, limit=2)
    third = bench.read(second.cursor, limit=2)
    assert [s["ref"]["cert_id"] for page in (first, second, third) for s in page.signals] == [1, 2, 3, 4, 5]
    assert bench.read(third.cursor).signals == ()
    assert bench.read(first.cursor, limit=2) == second, "reading removes nothing"


def test_the_wire_form_of_a_signal(bench: Bench) -> None:
    bench.wall += 1.5
    ts_ms = bench.append(7)
    assert bench.read().signals == ({"type": "cert.renewed", "ts_ms": ts_ms, "ref": {"cert_id": 7}},)
    assert ts_ms == int((WALL + 1.5) * 1000)


def test_each_device_has_its_own_stream(bench: Bench) -> None:
    bench.append(1)
    assert bench.read(device=bench.other).signals == ()


@given(st.lists(st.tuples(st.floats(-5, 5), st.integers(1, 3)), min_size=1, max_size=30))
def test_ids_grow_and_identities_differ_for_any_clock(steps: list[tuple[float, int]]) -> None:
    bench = Bench()
    cursors, identities = [bench.read().cursor], set()
    for jump, cert_id in steps:
        bench.wall += jump
        bench.append(cert_id)
        page = bench.read(cursors[-1])
        assert len(page.signals) == 1
        cursors.append(page.cursor)
        identities.add((page.signals[0]["ref"]["cert_id"], page.signals[0]["ts_ms"]))
    assert cursors == sorted(set(cursors), key=order)
    assert len(identities) == len(steps), "a second renewal in the same millisecond would look like a replay"
    bench.plane.close()


def test_ids_grow_while_the_clock_does_not(bench: Bench) -> None:
    stamps = [bench.append(1) for _ in range(5)]
    assert stamps == sorted(set(stamps))
    same = {bench.append(cert_id) for cert_id in range(2, 10)}
    assert len(same) == 1, "other certificates share the millisecond and differ in seq"
    assert len({s["ts_ms"] for s in bench.read().signals}) == 5


def test_trimming_voids_older_cursors_only(bench: Bench) -> None:
    cursors = [bench.read().cursor]
    for cert_id in range(1, 6):
        bench.append(cert_id)
        cursors.append(bench.read(cursors[-1]).cursor)
    assert bench.stream.trim(bench.device, 2) == 3
    assert [bench.void(cursor) for cursor in cursors] == [True, True, True, False, False, False]
    assert [s["ref"]["cert_id"] for s in bench.read(cursors[3]).signals] == [4, 5]
    assert [s["ref"]["cert_id"] for s in bench.read().signals] == [4, 5]
    assert bench.stream.trim(bench.device, 2) == 0


def test_a_stream_is_bounded() -> None:
    small = Bench(length=3)
    start = small.read().cursor
    for cert_id in range(1, 4):
        small.append(cert_id)
    assert not small.void(start)
    small.append(4)
    assert small.void(start)
    assert [s["ref"]["cert_id"] for s in small.read().signals] == [2, 3, 4]
    small.plane.close()


def test_an_emptied_stream_continues(bench: Bench) -> None:
    bench.append(1)
    last = bench.read().cursor
    bench.stream.trim(bench.device, 0)
    assert bench.read() == Page(last, ())
    bench.append(1)
    page = bench.read(last)
    assert len(page.signals) == 1
    assert order(page.cursor) > order(last)


@pytest.mark.parametrize(
    "cursor",
    [
        "", "x", "1", "1-", "-1", "1-2-3", "１-0", " 1-0", "1-0 ", "0-0", "01-0", "99999999999999999999-0",
        "1736900000-5",
        "1790000000000-7", "99999999999999-0", "1790000000000-1e3", "'; DROP TABLE signals; --", "\0",
    ],
)  # fmt: skip
def test_a_malformed_or_foreign_cursor_is_void(bench: Bench, cursor: str) -> None:
    bench.append(1)
    bench.append(2)
    assert bench.void(cursor)


def test_a_cursor_of_another_device_is_void(bench: Bench) -> None:
    bench.wall += 1
    bench.append(1)
    assert bench.void(bench.read().cursor, device=bench.other)


def test_waiting_counts_the_signals_after_a_cursor(bench: Bench) -> None:
    start = bench.read().cursor
    for cert_id in range(3):
        bench.append(cert_id)
    assert bench.waiting(start) == 3
    assert bench.waiting(bench.read(start, limit=1).cursor) == 2
    assert bench.waiting("") == 3
    assert bench.waiting("junk") == 3


def test_a_rolled_back_signal_is_never_read(bench: Bench) -> None:
    with pytest.raises(RuntimeError), bench.plane.database.transaction():
        bench.stream.append(bench.device, "cert.renewed", {"cert_id": 1})
        raise RuntimeError
    assert bench.read().signals == ()


# --- waiting -------------------------------------------------------------------------------------------------


async def test_a_commit_wakes_the_waiters_of_its_devices(bench: Bench, autojump_clock: trio.abc.Clock) -> None:
    woken: list[float] = []

    async def wait() -> None:
        assert await bench.wait()
        woken.append(trio.current_time())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        nursery.start_soon(wait)
        await trio.sleep(3)
        bench.append(1, bench.other)
        await trio.sleep(1)
        assert not woken, "signals of other devices wake no waiter"
        await bench.plane.work(bench.stream.append, bench.device, "cert.renewed", {"cert_id": 1})
    assert woken == [4.0, 4.0]


async def test_a_rolled_back_signal_wakes_no_waiter(bench: Bench, autojump_clock: trio.abc.Clock) -> None:
    def fail() -> None:
        bench.stream.append(bench.device, "cert.renewed", {"cert_id": 1})
        raise RuntimeError

    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.wait)
        await trio.sleep(1)
        with pytest.raises(RuntimeError):
            await bench.plane.work(fail)
        bench.plane.devices.add_user("another commit")
        with trio.move_on_after(1) as scope:
            await trio.sleep_forever()
        assert scope.cancelled_caught
        assert nursery.child_tasks
        bench.stream.wake_all()


async def test_a_signal_between_read_and_wait_is_not_missed(bench: Bench) -> None:
    with bench.stream.waiter(bench.device) as waiter:
        cursor = bench.read().cursor
        bench.append(1)
        with trio.fail_after(30):
            assert await waiter.wait(cursor)


async def test_wait_returns_false_when_the_client_has_left(bench: Bench, autojump_clock: trio.abc.Clock) -> None:
    async def leave() -> None:
        await trio.sleep(2)

    assert not await bench.wait(leave=leave)
    assert trio.current_time() == 2.0


async def test_wake_wakes_one_device_or_all(bench: Bench, autojump_clock: trio.abc.Clock) -> None:
    woken: list[int] = []

    async def wait(device: int) -> None:
        assert await bench.wait(device)
        woken.append(device)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait, bench.device)
        nursery.start_soon(wait, bench.other)
        await trio.sleep(1)
        bench.stream.wake(bench.device)
        await trio.sleep(1)
        assert woken == [bench.device]
        bench.stream.wake_all()
    assert woken == [bench.device, bench.other]


async def test_a_cancelled_waiter_is_removed(bench: Bench, autojump_clock: trio.abc.Clock) -> None:
    with trio.move_on_after(5) as scope:
        await bench.wait()
    assert scope.cancelled_caught
    stream: Any = bench.stream
    assert stream._waiters == {}


@given(st.lists(st.sampled_from(["append", "trim", "poll", "clock back"]), max_size=40))
@example(["append"] * 8 + ["poll"] + ["append"] * 3 + ["poll"])
@example(["append"] * 4 + ["poll", "trim", "poll"])
@example(["append"] * 6 + ["poll", "trim", "poll", "append", "poll"])
def test_a_polling_device_gets_every_signal_once_or_a_409(history: list[str]) -> None:
    """For any appends and trims, a device reads without gap or repeat, and gets a 409 only if it has missed a signal.

    The numbers of the appended signals are their ids, so that the newest one dropped and the last one read say which
    page comes next.
    """
    bench = Bench(length=5)
    cursor: str | None = None
    newest = dropped = seen = 0
    for step in history:
        if step == "append":
            newest += 1
            bench.append(newest)
            dropped = max(dropped, newest - 5)
        elif step == "trim":
            assert bench.stream.trim(bench.device, 2) == max(0, newest - 2 - dropped)
            dropped = max(dropped, newest - 2)
        elif step == "clock back":
            bench.wall -= 60
        else:
            if cursor is not None and seen < dropped:
                assert bench.void(cursor)
                cursor = None
            seen = dropped if cursor is None else seen
            page = bench.read(cursor, limit=2)
            assert [signal["ref"]["cert_id"] for signal in page.signals] == [*range(seen + 1, newest + 1)][:2]
            assert bench.waiting(page.cursor) == newest - seen - len(page.signals)
            cursor, seen = page.cursor, seen + len(page.signals)
    bench.plane.close()


@pytest.mark.parametrize("back", [0.0, 0.001, 3600.0])
@pytest.mark.parametrize("keep", [0, 1, 2])
def test_no_identity_comes_twice_after_a_trim_and_a_step_back(bench: Bench, back: float, keep: int) -> None:
    """A device that has seen a signal would drop another one with the same identity."""
    given = {bench.append(cert_id=7) for _ in range(3)}
    assert len(given) == 3
    bench.stream.trim(bench.device, keep)
    bench.wall -= back
    again = [bench.append(cert_id=7) for _ in range(3)]
    assert given.isdisjoint(again) and len(set(again)) == 3
    assert again == sorted(again) and again[0] > max(given)
