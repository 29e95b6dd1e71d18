"""Periodic work is done when a poll ends, so that it does not wake the host."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock
from trio_util import RepeatedEvent

from certctrl.agent.context import wait_for_poll


@pytest.mark.parametrize(
    ("every", "waited"),
    [(5, 30), (25, 50), (29, 58), (30, 30), (45, 45), (60, 60), (600, 60)],
)
async def test_it_waits_for_the_end_of_a_poll(
    every: float, waited: float, autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    polled = RepeatedEvent()

    async def poll() -> None:
        while True:
            await trio.sleep(every)
            polled.set()

    nursery.start_soon(poll)
    for _ in range(2):
        began = trio.current_time()
        await wait_for_poll(polled, 30, 60)
        assert trio.current_time() - began == waited
