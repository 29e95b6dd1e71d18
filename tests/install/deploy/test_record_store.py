"""Records are written together, and each name is locked by one task at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from certctrl.errors import DiskError
from certctrl.install.deploy.context import Locks
from certctrl.install.deploy.record_store import RecordStore
from certctrl.install.deploy.retry_table import RetryTable
from certctrl.install.plan.retries import Failure
from certctrl.model.certificate import CertFacts
from certctrl.model.config import ApplicationConfig
from certctrl.model.records import CertRecord, RetryKind
from certctrl.store.disk.fs import RealFs
from certctrl.store.disk.tree import make_tree
from certctrl.store.layout import ConfigDir
from certctrl.store.state.installed import InstalledState


class Slow:
    """An offload that takes a while and may fail."""

    def __init__(self) -> None:
        self.writes, self.fails = 0, 0

    async def __call__(self, call: Callable[..., Any], *args: object) -> Any:
        self.writes += 1
        await trio.sleep(1)
        if self.fails:
            self.fails -= 1
            raise DiskError("full", path="x", errno=28)
        return call(*args)


@pytest.fixture
def state(tmp_path: Path) -> InstalledState:
    layout = ConfigDir(tmp_path)
    make_tree(RealFs(), layout)
    return InstalledState(layout, RealFs())


def record(n: int) -> CertRecord:
    return CertRecord(facts=CertFacts(cert_id=n, name=f"c{n}"))


def records_of(state: InstalledState, offload: Slow) -> RecordStore:
    retries = RetryTable(
        load=state.load_retries,
        wall_now=lambda: 100.0,
        steady_now=lambda: 100.0,
        random=lambda: 1.0,
        settings=ApplicationConfig,
    )
    return RecordStore(state, offload, lambda: 1000, retries)


async def test_a_hundred_outcomes_cost_two_writes(clock: MockClock, state: InstalledState) -> None:
    slow = Slow()
    records = records_of(state, slow)

    async def one(n: int) -> None:
        records.note(record(n))
        records.mark({f"i{n}": "key"})
        records.audit({"n": n})
        await records.save()
        assert n in state.load_certificates() and state.load_activations()[f"i{n}"] == "key"

    async with trio.open_nursery() as nursery:
        for n in range(50):
            nursery.start_soon(one, n)
        await trio.sleep(0.5)  # the first write is under way
        for n in range(50, 100):
            nursery.start_soon(one, n)
    assert slow.writes == 2
    assert sorted(entry["n"] for entry in state.load_history()) == list(range(100))


async def test_unchanged_records_are_not_written(clock: MockClock, state: InstalledState) -> None:
    slow = Slow()
    records = records_of(state, slow)
    records.note(record(1))
    await records.save()
    records.note(record(1))
    records.mark({})
    assert not records.unmark(["unknown"])
    await records.save()
    assert slow.writes == 1


async def test_a_failed_write_is_repeated_by_the_next_save(clock: MockClock, state: InstalledState) -> None:
    slow = Slow()
    records = records_of(state, slow)
    records.note(record(1))
    records.audit({"n": 1})
    slow.fails = 1
    with pytest.raises(DiskError):
        await records.save()
    assert state.load_certificates() == {}
    await records.save()
    assert list(state.load_certificates()) == [1] and state.load_history() == [{"n": 1}]


async def test_a_cancelled_writer_finishes_its_write(clock: MockClock, state: InstalledState) -> None:
    records = records_of(state, Slow())
    records.note(record(1))
    with trio.move_on_after(0.5):
        await records.save()
    assert list(state.load_certificates()) == [1]


async def test_retries_are_written_with_the_records(clock: MockClock, state: InstalledState) -> None:
    slow = Slow()
    records = records_of(state, slow)
    await records.save()
    assert (slow.writes, state.layout.retries.exists()) == (0, False)
    records.note(record(1))
    retry = records.retries.failed(Failure(resource="cert:1", kind=RetryKind.REFUSED, error="why"))
    await records.save()
    assert (slow.writes, state.load_retries()) == (1, ((retry,), False))
    records.retries.succeeded("cert:1")
    await records.secure_retries()
    assert (slow.writes, state.load_retries()) == (2, ((), False))


async def test_retries_that_may_fall_back_are_secured(clock: MockClock, state: InstalledState) -> None:
    slow = Slow()
    records = records_of(state, slow)
    records.retries.failed(Failure(resource="cert:1", kind=RetryKind.REFUSED, error="why"))
    await records.save(lasting=False)
    await records.secure_retries()
    await records.secure_retries()
    assert slow.writes == 2


async def test_markers_of_removed_items_are_removed(clock: MockClock, state: InstalledState) -> None:
    records = records_of(state, Slow())
    records.mark({"a": "1", "b": "2"})
    records.keep_marks(["b", "c"])
    await records.save()
    assert state.load_activations() == {"b": "2"}


async def test_a_claim_comes_before_those_that_wait_for_the_same_names(clock: MockClock) -> None:
    """A withdrawal that waits for one batch must not wait for the next ones, too."""
    locks, order = Locks(), list[str]()

    async def batch(name: str) -> None:
        async with locks.held({"a", "b"}):
            order.append(name)
            await trio.sleep(5)

    async def withdrawal() -> None:
        with locks.claim({"a"}):
            for step in ("removed", "reloaded"):
                async with locks.held({"a"}, claimed=True):
                    order.append(step)
                    await trio.sleep(1)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(batch, "first")
        await wait_all_tasks_blocked()
        nursery.start_soon(batch, "second")
        nursery.start_soon(batch, "third")
        await wait_all_tasks_blocked()
        nursery.start_soon(withdrawal)
        await wait_all_tasks_blocked()
        assert locks.try_acquire({"c"}), "others are not kept out"
        locks.release({"c"})
    assert order[:3] == ["first", "removed", "reloaded"]
    assert sorted(order[3:]) == ["second", "third"]
    assert locks.try_acquire({"a", "b"}), "the claim has ended"


async def test_two_claims_do_not_block_each_other(clock: MockClock) -> None:
    locks = Locks()
    with locks.claim({"a"}):
        with locks.claim({"a", "b"}):
            assert locks.try_acquire({"a", "b"}, claimed=True)
            locks.release({"a", "b"})
        assert not locks.try_acquire({"a"}), "the first one still claims it"
        assert locks.try_acquire({"b"})
        locks.release({"b"})
    assert locks.try_acquire({"a"})


async def test_a_lock_takes_all_names_or_none(clock: MockClock) -> None:
    locks, order = Locks(), list[str]()

    async def work(name: str, names: set[str], seconds: float) -> None:
        async with locks.held(names):
            order.append(f"{name} begins")
            await trio.sleep(seconds)
            order.append(f"{name} ends")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(work, "one", {"a", "b"}, 2)
        await wait_all_tasks_blocked()
        nursery.start_soon(work, "two", {"b", "c"}, 1)
        await wait_all_tasks_blocked()
        assert locks.try_acquire({"c"}), "who waits for b does not sit on c"
        locks.release({"c"})
        nursery.start_soon(work, "three", {"d"}, 0.5)
    assert order == ["one begins", "three begins", "three ends", "one ends", "two begins", "two ends"]
    assert locks.try_acquire({"a", "b", "c", "d"})
