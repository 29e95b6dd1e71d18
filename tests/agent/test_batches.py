"""Batches: one reload for a burst, no waiting for a lone renewal, no hostage to a slow fetch."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Collection, Sequence
from typing import Any

import pytest
import trio
import trio.testing

from certctrl.agent.batches import Batches
from certctrl.model.plan import Outcome, OutcomeKind

APPLIED = Outcome(kind=OutcomeKind.APPLIED)


class Recorder:
    def __init__(self) -> None:
        self.batches: list[tuple[float, set[int]]] = []
        self.hang: set[int] = set()

    async def converge(self, prepared: Sequence[Any], ids: Collection[int]) -> dict[int, Outcome]:
        self.batches.append((trio.current_time(), set(ids)))
        if self.hang & set(ids):
            await trio.sleep_forever()
        return dict.fromkeys(ids, APPLIED)


async def bring(batches: Batches, cert_id: int, fetch_seconds: float, got: dict[int, Outcome]) -> None:
    with batches.joining():
        await trio.sleep(fetch_seconds)
    got[cert_id] = await batches.deploy(cert_id, None)


async def run(recorder: Recorder, fetches: dict[int, float]) -> dict[int, Outcome]:
    batches = Batches(recorder.converge, debounce=lambda: (0.5, 5.0))
    got: dict[int, Outcome] = {}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(batches.run_batches)
        with trio.move_on_after(60):
            async with trio.open_nursery() as handlers:
                for cert_id, seconds in fetches.items():
                    handlers.start_soon(bring, batches, cert_id, seconds, got)
        nursery.cancel_scope.cancel()
    return got


async def test_a_lone_renewal_waits_for_nobody(autojump_clock: trio.testing.MockClock) -> None:
    recorder, start = Recorder(), trio.current_time()
    got = await run(recorder, {1: 0.2})
    assert got == {1: APPLIED}
    assert recorder.batches == [(pytest.approx(start + 0.2), {1})]


async def test_a_burst_is_one_batch(autojump_clock: trio.testing.MockClock) -> None:
    recorder = Recorder()
    got = await run(recorder, {n: 0.1 + n * 0.02 for n in range(20)})
    assert len(got) == 20
    assert [ids for _, ids in recorder.batches] == [set(range(20))]


async def test_a_slow_fetch_does_not_hold_the_others(autojump_clock: trio.testing.MockClock) -> None:
    recorder, start = Recorder(), trio.current_time()
    await run(recorder, {1: 0.1, 2: 30.0})
    assert [(at - start, ids) for at, ids in recorder.batches] == [
        (pytest.approx(0.6), {1}),
        (pytest.approx(30.0), {2}),
    ]


async def test_an_endless_burst_is_cut_at_the_bound(autojump_clock: trio.testing.MockClock) -> None:
    recorder, start = Recorder(), trio.current_time()
    await run(recorder, {n: 0.1 + n * 0.3 for n in range(40)})
    assert recorder.batches[0][0] - start == pytest.approx(5.1, abs=0.01)
    assert sum(len(ids) for _, ids in recorder.batches) == 40


async def test_what_was_deployed_is_not_held_until_the_next_batch(autojump_clock: trio.testing.MockClock) -> None:
    class Staged:
        pass

    batches = Batches(Recorder().converge, debounce=lambda: (0.5, 5.0))
    held = weakref.WeakSet[Staged]()

    async def deploy() -> None:
        staged: Any = Staged()
        held.add(staged)
        await batches.deploy(1, staged)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(batches.run_batches)
        await deploy()
        await trio.testing.wait_all_tasks_blocked()
        gc.collect()
        assert not held
        nursery.cancel_scope.cancel()


async def test_a_hanging_batch_delays_nobody_else(autojump_clock: trio.testing.MockClock) -> None:
    recorder = Recorder()
    recorder.hang = {1}
    got = await run(recorder, {1: 0.1, 2: 3.0})
    assert got == {2: APPLIED}


async def test_pages_of_one_burst_are_one_batch_though_nobody_fetches_in_between(
    autojump_clock: trio.testing.MockClock,
) -> None:
    recorder, got = Recorder(), dict[int, Outcome]()
    batches = Batches(recorder.converge, debounce=lambda: (0.5, 5.0))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(batches.run_batches)
        with batches.expecting():
            batches.expect(True)  # the first page was full
            await bring_some(nursery, batches, range(20), got)
            await trio.sleep(1.2)  # the second is asked for a second later
            await bring_some(nursery, batches, range(20, 30), got)
        await trio.sleep(6)
        nursery.cancel_scope.cancel()
    assert [ids for _, ids in recorder.batches] == [set(range(30))]


async def test_what_was_only_announced_is_waited_for_a_moment(autojump_clock: trio.testing.MockClock) -> None:
    recorder, got, start = Recorder(), dict[int, Outcome](), trio.current_time()
    batches = Batches(recorder.converge, debounce=lambda: (0.5, 5.0))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(batches.run_batches)
        with batches.expecting():
            batches.expect(True)  # a page that was full, and the last
            await bring_some(nursery, batches, range(20), got)
            await trio.sleep(25)
        nursery.cancel_scope.cancel()
    assert recorder.batches == [(pytest.approx(start + 0.01 + 5.0), set(range(20)))]


async def bring_some(nursery: trio.Nursery, batches: Batches, ids: range, got: dict[int, Outcome]) -> None:
    for cert_id in ids:
        nursery.start_soon(bring, batches, cert_id, 0.01, got)
    await trio.sleep(0.01)


async def test_a_slow_host_still_makes_one_batch(autojump_clock: trio.testing.MockClock) -> None:
    recorder = Recorder()
    got = await run(recorder, {n: 0.4 + n * 0.4 + (n == 4) * 0.4 for n in range(5)})
    assert len(got) == 5
    assert [ids for _, ids in recorder.batches] == [set(range(5))], "0.8 s after arrivals of 0.4 s is no hang"


async def test_a_cancelled_waiter_leaves_the_queue(autojump_clock: trio.testing.MockClock) -> None:
    recorder = Recorder()
    batches = Batches(recorder.converge, debounce=lambda: (0.5, 5.0))
    with trio.move_on_after(1):
        await batches.deploy(1, None)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(batches.run_batches)
        await trio.sleep(10)
        nursery.cancel_scope.cancel()
    assert recorder.batches == []
