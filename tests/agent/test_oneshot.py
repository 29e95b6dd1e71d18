"""One-shot polls wait for the rate limit while they fetch a backlog."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest
import trio
from trio.testing import MockClock

from certctrl.agent.context import Agent
from certctrl.agent.oneshot import BUSY_SECONDS, _page
from certctrl.errors import PlaneError
from certctrl.protocol import events

PAGE = events.Updates("2-0", (), False)


def agent_that_hears(*answers: events.Event) -> Agent:
    left = list(answers)

    async def authorized(_call: object) -> events.Event:
        await trio.lowlevel.checkpoint()
        return left.pop(0)

    application = SimpleNamespace(poll_limit=10)
    return cast(
        Agent, SimpleNamespace(authorized=authorized, config=SimpleNamespace(application=application), left=left)
    )


async def asked(agent: Agent) -> events.Updates:
    return await _page(agent, "1-0", trio.current_time() + BUSY_SECONDS)


async def test_a_rate_limit_is_respected(autojump_clock: MockClock) -> None:
    start = trio.current_time()
    busy = [events.ServerBusy(429, 0.25), events.ServerBusy(429, 7.0)]
    assert await asked(agent_that_hears(*busy, PAGE)) == PAGE
    assert trio.current_time() - start == pytest.approx(8.0), "a second at least, and as long as the plane asks"


async def test_a_rate_limit_is_respected_for_a_limited_time(autojump_clock: MockClock) -> None:
    start, agent = trio.current_time(), agent_that_hears(*[events.ServerBusy(429, 0.0)] * 1000)
    with pytest.raises(PlaneError) as caught:
        await asked(agent)
    assert caught.value.status == 429
    assert trio.current_time() - start <= BUSY_SECONDS


@pytest.mark.parametrize(
    "busy", [events.ServerBusy(429, 3600.0), events.ServerBusy(429), events.ServerBusy(503, 1.0)], ids=str
)
async def test_any_other_refusal_ends_the_command(autojump_clock: MockClock, busy: events.ServerBusy) -> None:
    start = trio.current_time()
    with pytest.raises(PlaneError):
        await asked(agent_that_hears(busy, PAGE))
    assert trio.current_time() == start
