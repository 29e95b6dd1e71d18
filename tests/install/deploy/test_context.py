"""Many short calls share a thread job; each caller gets its own result."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any
from weakref import ref

import pytest
import trio
from trio.testing import MockClock

from certctrl.errors import MaterialError
from certctrl.install.deploy.context import SharedOffload


class Slow:
    """An offload that takes a while and may find no thread."""

    def __init__(self) -> None:
        self.jobs, self.broken = 0, False

    async def __call__(self, call: Callable[..., Any], *args: Any) -> Any:
        self.jobs += 1
        await trio.sleep(1)
        if self.broken:
            raise RuntimeError("no thread")
        return call(*args)


async def test_a_thousand_calls_share_few_jobs_and_each_gets_its_result(autojump_clock: MockClock) -> None:
    slow, results = Slow(), dict[int, int]()
    shared_offload = SharedOffload(slow)

    async def one(number: int) -> None:
        results[number] = await shared_offload(lambda: number * 2)

    async with trio.open_nursery() as nursery:
        for number in range(1000):
            nursery.start_soon(one, number)
    assert results == {number: number * 2 for number in range(1000)}
    assert slow.jobs <= 2


async def test_a_failing_call_does_not_affect_others(autojump_clock: MockClock) -> None:
    shared_offload, good = SharedOffload(Slow()), []

    async def fails() -> None:
        with pytest.raises(ZeroDivisionError):
            await shared_offload(lambda: 1 // 0)

    async def works() -> None:
        good.append(await shared_offload(lambda: 1))

    async with trio.open_nursery() as nursery:
        for call in (works, fails, works, fails, works):
            nursery.start_soon(call)
    assert good == [1, 1, 1]


class Key:
    """Something that must not stay in memory, such as a private key."""


@pytest.mark.parametrize("number", range(20))  # the order of tasks is random
async def test_an_error_does_not_keep_the_results_of_others(autojump_clock: MockClock, number: int) -> None:
    """Found by random histories: a staging directory was in use until the next garbage collection."""
    shared_offload, errors, keys = SharedOffload(Slow()), list[Exception](), list["ref[Key]"]()

    def failing() -> None:
        sys._getframe(1)  # as a debugger or a traceback does
        try:
            raise ValueError
        except ValueError:
            raise MaterialError("it cannot be opened", reason="leaf-unreadable") from None

    async def fails() -> None:
        try:
            await shared_offload(failing)
        except MaterialError as error:
            errors.append(error)

    async def works() -> None:
        key = await shared_offload(Key)
        keys.append(ref(key))

    async with trio.open_nursery() as nursery:
        for call in (works, works, fails, works):
            nursery.start_soon(call)
    assert len(errors) == 1 and [key() for key in keys] == [None] * 3


async def test_a_cancelled_caller_does_not_affect_others(autojump_clock: MockClock) -> None:
    shared_offload, done = SharedOffload(Slow()), []

    async def impatient() -> None:
        with trio.move_on_after(0.1):
            await shared_offload(done.append, "impatient")

    async def patient() -> None:
        await shared_offload(done.append, "patient")

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(impatient)
            nursery.start_soon(patient)
    assert sorted(done) == ["impatient"] * 3 + ["patient"] * 3  # what was begun is finished, as with a thread


async def test_without_a_thread_every_call_fails(autojump_clock: MockClock) -> None:
    slow, ticks = Slow(), []
    slow.broken, shared_offload = True, SharedOffload(slow)

    async def one() -> None:
        with pytest.raises(RuntimeError):
            await shared_offload(lambda: None)
        ticks.append(1)

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(one)
    assert len(ticks) == 5
