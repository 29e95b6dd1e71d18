"""Batches: one reload per burst; lone renewals and slow fetches delay nothing."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import pytest
import trio
import trio.testing

from certctrl.agent.batches import Batches, ReadyCertificate
from certctrl.agent.burst import BurstWatch
from certctrl.model.plan import Outcome, OutcomeKind
from certctrl.model.records import InboxEntry
from certctrl.model.signals import CertRenewed

APPLIED = Outcome(kind=OutcomeKind.APPLIED)


class Staged:
    """A stand-in for a prepared certificate."""

    def __init__(self, cert_id: int) -> None:
        self.cert_id = cert_id


def ready(cert_id: int, *, within: float = 300.0) -> ReadyCertificate:
    entry, now, staged = InboxEntry(signal=CertRenewed(ts_ms=1, cert_id=cert_id)), trio.current_time(), Staged(cert_id)
    return ReadyCertificate(entry=entry, prepared=staged, started=now, deadline=now + within)  # type: ignore[arg-type]


class Recorder:
    def __init__(self) -> None:
        self.batches: list[tuple[float, set[int]]] = []
        self.hang: set[int] = set()
        self.got: dict[int, Outcome | None] = {}
        self.finished_at: dict[int, float] = {}

    async def converge(
        self, prepared: Sequence[Any], ids: Collection[int], together: Mapping[int, str]
    ) -> dict[int, Outcome]:
        assert together == {}
        assert {one.cert_id for one in prepared} == ids
        self.batches.append((trio.current_time(), set(ids)))
        if self.hang & set(ids):
            await trio.sleep_forever()
        return dict.fromkeys(ids, APPLIED)

    async def finish(self, finished: Sequence[tuple[ReadyCertificate, Outcome | None]]) -> None:
        for one, outcome in finished:
            assert one.prepared.cert_id not in self.got, "finished once"
            self.got[one.prepared.cert_id] = outcome
            self.finished_at[one.prepared.cert_id] = trio.current_time()


def batches_of(converge: Any, debounce: tuple[float, float] = (0.5, 5.0)) -> tuple[Batches, BurstWatch]:
    burst = BurstWatch(debounce=lambda: debounce, clock=trio.current_time)
    return Batches(converge, burst), burst


async def bring(batches: Batches, burst: BurstWatch, cert_id: int, fetch_seconds: float) -> None:
    burst.fetch_queued()
    await trio.sleep(fetch_seconds)
    batches.add(ready(cert_id))
    burst.fetch_ended()


async def run(recorder: Recorder, fetches: dict[int, float]) -> dict[int, Outcome | None]:
    batches, burst = batches_of(recorder.converge)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(batches.run_batches, recorder.finish)
        with trio.move_on_after(60):
            async with trio.open_nursery() as handlers:
                for cert_id, seconds in fetches.items():
                    handlers.start_soon(bring, batches, burst, cert_id, seconds)
            await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    return recorder.got


async def test_a_lone_renewal_does_not_wait(autojump_clock: trio.testing.MockClock) -> None:
    recorder, start = Recorder(), trio.current_time()
    got = await run(recorder, {1: 0.2})
    assert got == {1: APPLIED}
    assert recorder.batches == [(pytest.approx(start + 0.2), {1})]


async def test_a_burst_is_one_batch(autojump_clock: trio.testing.MockClock) -> None:
    recorder = Recorder()
    got = await run(recorder, {n: 0.1 + n * 0.02 for n in range(20)})
    assert len(got) == 20
    assert [ids for _, ids in recorder.batches] == [set(range(20))]


async def test_a_slow_fetch_does_not_delay_the_others(autojump_clock: trio.testing.MockClock) -> None:
    recorder, start = Recorder(), trio.current_time()
    await run(recorder, {1: 0.1, 2: 30.0})
    assert [(at - start, ids) for at, ids in recorder.batches] == [
        (pytest.approx(0.6), {1}),
        (pytest.approx(30.0), {2}),
    ]


async def test_an_endless_burst_is_split_at_the_limit(autojump_clock: trio.testing.MockClock) -> None:
    recorder, start = Recorder(), trio.current_time()
    await run(recorder, {n: 0.1 + n * 0.3 for n in range(40)})
    assert recorder.batches[0][0] - start == pytest.approx(5.1, abs=0.01)
    assert sum(len(ids) for _, ids in recorder.batches) == 40


async def test_deployed_certificates_are_released_from_memory(autojump_clock: trio.testing.MockClock) -> None:
    recorder = Recorder()
    batches, _burst = batches_of(recorder.converge)
    held = weakref.WeakSet[Any]()

    def take() -> None:
        batches.add(one := ready(1))
        held.add(one.prepared)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(batches.run_batches, recorder.finish)
        take()
        await trio.testing.wait_all_tasks_blocked()
        gc.collect()
        assert recorder.got == {1: APPLIED}
        assert not held
        nursery.cancel_scope.cancel()


async def test_a_late_signal_is_finished_once_and_the_batch_keeps_running(
    autojump_clock: trio.testing.MockClock,
) -> None:
    recorder, start = Recorder(), trio.current_time()
    recorder.hang = {1}
    batches, _burst = batches_of(recorder.converge)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(batches.run_batches, recorder.finish)
        for cert_id in range(3):
            batches.add(ready(cert_id, within=7.0 + cert_id))
        await trio.sleep(100)
        nursery.cancel_scope.cancel()
    assert recorder.got == dict.fromkeys(range(3))
    assert [at - start for at in recorder.finished_at.values()] == [pytest.approx(7.0 + n) for n in range(3)]
    assert len(recorder.batches) == 1


async def test_a_certificate_whose_signal_timed_out_before_the_batch_left_is_not_switched(
    autojump_clock: trio.testing.MockClock,
) -> None:
    recorder = Recorder()
    batches, burst = batches_of(recorder.converge, (30.0, 60.0))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(batches.run_batches, recorder.finish)
        burst.fetch_queued()  # and never ends
        batches.add(ready(1, within=2.0))
        batches.add(ready(2))
        await trio.sleep(50)
        nursery.cancel_scope.cancel()
    assert recorder.got == {1: None, 2: APPLIED}
    assert [ids for _, ids in recorder.batches] == [{2}]


async def test_a_certificate_without_an_outcome_fails(autojump_clock: trio.testing.MockClock) -> None:
    recorder = Recorder()

    async def nothing(prepared: Sequence[Any], ids: Collection[int], _: Mapping[int, str]) -> dict[int, Outcome]:
        return {}

    batches, _ = batches_of(nothing)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(batches.run_batches, recorder.finish)
        batches.add(ready(1))
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    outcome = recorder.got[1]
    assert outcome is not None
    assert (outcome.kind, outcome.detail) == (OutcomeKind.FAILED, "the plan has nothing for this certificate")


async def test_a_hanging_batch_does_not_delay_the_next(autojump_clock: trio.testing.MockClock) -> None:
    recorder = Recorder()
    recorder.hang = {1}
    got = await run(recorder, {1: 0.1, 2: 3.0})
    assert got == {2: APPLIED}


async def test_pages_of_one_burst_are_one_batch_even_without_a_fetch_in_between(
    autojump_clock: trio.testing.MockClock,
) -> None:
    recorder = Recorder()
    batches, burst = batches_of(recorder.converge)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(batches.run_batches, recorder.finish)
        burst.full_page()
        await bring_some(nursery, batches, burst, range(20))
        await trio.sleep(1.2)  # the second page is requested a second later
        await bring_some(nursery, batches, burst, range(20, 30))
        burst.last_page()
        await trio.sleep(6)
        nursery.cancel_scope.cancel()
    assert [ids for _, ids in recorder.batches] == [set(range(30))]


async def test_a_batch_waits_for_an_expected_page_for_a_limited_time(autojump_clock: trio.testing.MockClock) -> None:
    recorder, start = Recorder(), trio.current_time()
    batches, burst = batches_of(recorder.converge)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(batches.run_batches, recorder.finish)
        burst.full_page()  # and no other one follows
        await bring_some(nursery, batches, burst, range(20))
        await trio.sleep(25)
        nursery.cancel_scope.cancel()
    assert recorder.batches == [(pytest.approx(start + 0.01 + 5.0), set(range(20)))]


async def bring_some(nursery: trio.Nursery, batches: Batches, burst: BurstWatch, ids: range) -> None:
    for cert_id in ids:
        nursery.start_soon(bring, batches, burst, cert_id, 0.01)
    await trio.sleep(0.01)


async def test_a_slow_host_still_makes_one_batch(autojump_clock: trio.testing.MockClock) -> None:
    recorder = Recorder()
    got = await run(recorder, {n: 0.4 + n * 0.4 + (n == 4) * 0.4 for n in range(5)})
    assert len(got) == 5
    assert [ids for _, ids in recorder.batches] == [set(range(5))], "0.8 s after arrivals of 0.4 s is no hang"
