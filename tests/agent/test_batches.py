"""Batches: one reload for a burst, no waiting for a lone renewal, no hostage to a slow fetch."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Collection, Sequence
from typing import Any

import pytest
import trio
import trio.testing

from certctrl.agent.batches import Batches, Seat
from certctrl.model.plan import Outcome, OutcomeKind
from certctrl.model.records import InboxEntry
from certctrl.model.signals import CertRenewed

APPLIED = Outcome(kind=OutcomeKind.APPLIED)


class Staged:
    """Stands in for what was prepared."""

    def __init__(self, cert_id: int) -> None:
        self.cert_id = cert_id


def seat(cert_id: int, *, within: float = 300.0) -> Seat:
    entry, now, staged = InboxEntry(signal=CertRenewed(ts_ms=1, cert_id=cert_id)), trio.current_time(), Staged(cert_id)
    return Seat(entry=entry, prepared=staged, started=now, until=now + within)  # type: ignore[arg-type]


class Recorder:
    def __init__(self) -> None:
        self.batches: list[tuple[float, set[int]]] = []
        self.hang: set[int] = set()
        self.got: dict[int, Outcome | None] = {}
        self.told_at: dict[int, float] = {}

    async def converge(self, prepared: Sequence[Any], ids: Collection[int]) -> dict[int, Outcome]:
        assert {one.cert_id for one in prepared} == ids
        self.batches.append((trio.current_time(), set(ids)))
        if self.hang & set(ids):
            await trio.sleep_forever()
        return dict.fromkeys(ids, APPLIED)

    async def tell(self, told: Sequence[tuple[Seat, Outcome | None]]) -> None:
        for one, outcome in told:
            assert one.prepared.cert_id not in self.got, "told once"
            self.got[one.prepared.cert_id] = outcome
            self.told_at[one.prepared.cert_id] = trio.current_time()


async def bring(batches: Batches, cert_id: int, fetch_seconds: float) -> None:
    batches.coming()
    await trio.sleep(fetch_seconds)
    batches.take(seat(cert_id))
    batches.arrived()


async def run(recorder: Recorder, fetches: dict[int, float]) -> dict[int, Outcome | None]:
    batches = Batches(recorder.converge, debounce=lambda: (0.5, 5.0))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(batches.run_batches, recorder.tell)
        with trio.move_on_after(60):
            async with trio.open_nursery() as handlers:
                for cert_id, seconds in fetches.items():
                    handlers.start_soon(bring, batches, cert_id, seconds)
            await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    return recorder.got


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
    recorder = Recorder()
    batches = Batches(recorder.converge, debounce=lambda: (0.5, 5.0))
    held = weakref.WeakSet[Any]()

    def take() -> None:
        batches.take(one := seat(1))
        held.add(one.prepared)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(batches.run_batches, recorder.tell)
        take()
        await trio.testing.wait_all_tasks_blocked()
        gc.collect()
        assert recorder.got == {1: APPLIED}
        assert not held
        nursery.cancel_scope.cancel()


async def test_who_waits_too_long_is_told_so_once_and_the_batch_goes_on(autojump_clock: trio.testing.MockClock) -> None:
    recorder, start = Recorder(), trio.current_time()
    recorder.hang = {1}
    batches = Batches(recorder.converge, debounce=lambda: (0.5, 5.0))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(batches.run_batches, recorder.tell)
        for cert_id in range(3):
            batches.take(seat(cert_id, within=7.0 + cert_id))
        await trio.sleep(100)
        nursery.cancel_scope.cancel()
    assert recorder.got == dict.fromkeys(range(3))
    assert [at - start for at in recorder.told_at.values()] == [pytest.approx(7.0 + n) for n in range(3)]
    assert len(recorder.batches) == 1


async def test_who_waits_too_long_in_a_batch_that_has_not_left_is_told_and_not_switched(
    autojump_clock: trio.testing.MockClock,
) -> None:
    recorder = Recorder()
    batches = Batches(recorder.converge, debounce=lambda: (30.0, 60.0))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(batches.run_batches, recorder.tell)
        batches.coming()  # and never arrives
        batches.take(seat(1, within=2.0))
        batches.take(seat(2))
        await trio.sleep(50)
        nursery.cancel_scope.cancel()
    assert recorder.got == {1: None, 2: APPLIED}
    assert [ids for _, ids in recorder.batches] == [{2}]


async def test_a_certificate_that_the_plan_does_not_know_is_told_so(autojump_clock: trio.testing.MockClock) -> None:
    recorder = Recorder()

    async def nothing(prepared: Sequence[Any], ids: Collection[int]) -> dict[int, Outcome]:
        return {}

    batches = Batches(nothing, debounce=lambda: (0.5, 5.0))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(batches.run_batches, recorder.tell)
        batches.take(seat(1))
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    outcome = recorder.got[1]
    assert outcome is not None
    assert (outcome.kind, outcome.detail) == (OutcomeKind.FAILED, "the plan has nothing for this certificate")


async def test_a_hanging_batch_delays_nobody_else(autojump_clock: trio.testing.MockClock) -> None:
    recorder = Recorder()
    recorder.hang = {1}
    got = await run(recorder, {1: 0.1, 2: 3.0})
    assert got == {2: APPLIED}


async def test_pages_of_one_burst_are_one_batch_though_nobody_fetches_in_between(
    autojump_clock: trio.testing.MockClock,
) -> None:
    recorder = Recorder()
    batches = Batches(recorder.converge, debounce=lambda: (0.5, 5.0))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(batches.run_batches, recorder.tell)
        with batches.expecting():
            batches.expect(True)  # the first page was full
            await bring_some(nursery, batches, range(20))
            await trio.sleep(1.2)  # the second is asked for a second later
            await bring_some(nursery, batches, range(20, 30))
        await trio.sleep(6)
        nursery.cancel_scope.cancel()
    assert [ids for _, ids in recorder.batches] == [set(range(30))]


async def test_what_was_only_announced_is_waited_for_a_moment(autojump_clock: trio.testing.MockClock) -> None:
    recorder, start = Recorder(), trio.current_time()
    batches = Batches(recorder.converge, debounce=lambda: (0.5, 5.0))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(batches.run_batches, recorder.tell)
        with batches.expecting():
            batches.expect(True)  # a page that was full, and the last
            await bring_some(nursery, batches, range(20))
            await trio.sleep(25)
        nursery.cancel_scope.cancel()
    assert recorder.batches == [(pytest.approx(start + 0.01 + 5.0), set(range(20)))]


async def bring_some(nursery: trio.Nursery, batches: Batches, ids: range) -> None:
    for cert_id in ids:
        nursery.start_soon(bring, batches, cert_id, 0.01)
    await trio.sleep(0.01)


async def test_a_slow_host_still_makes_one_batch(autojump_clock: trio.testing.MockClock) -> None:
    recorder = Recorder()
    got = await run(recorder, {n: 0.4 + n * 0.4 + (n == 4) * 0.4 for n in range(5)})
    assert len(got) == 5
    assert [ids for _, ids in recorder.batches] == [set(range(5))], "0.8 s after arrivals of 0.4 s is no hang"
