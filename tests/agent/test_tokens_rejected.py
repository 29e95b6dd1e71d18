"""What a rejected access token leads to: one refresh, unless another call has made it already."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from token_world import World
from trio.testing import MockClock

from certctrl.agent.context import Agent
from certctrl.agent.counters import Counters
from certctrl.agent.oneshot import BUSY_SECONDS, _page
from certctrl.agent.poller import Poller
from certctrl.agent.tokens import TokenKeeper
from certctrl.errors import PlaneError
from certctrl.model.config import ApplicationConfig
from certctrl.protocol import events, steps

PAGE = events.Updates("2-0", (), False)


async def test_a_young_token_is_refreshed_only_once_its_life_is_over(world: World, autojump_clock: MockClock) -> None:
    world.stored(world.access(lifetime=-5))
    world.lifetime = 1.0
    keeper = world.keeper()
    first = await keeper.current()
    with pytest.raises(PlaneError, match="just issued"):
        await keeper.refresh(first)
    await trio.sleep(1.1)
    assert await keeper.refresh(first) != first, "the plane is right: it expired on a slow way"
    assert len(world.spent) == 2


def agent_of(keeper: TokenKeeper, answer: Callable[[str], Awaitable[events.Event]]) -> Any:
    async def poll(token: str, _step: steps.Poll) -> events.Event:
        return await answer(token)

    agent = SimpleNamespace(
        plane=SimpleNamespace(poll=poll),
        tokens=keeper,
        counters=Counters(),
        config=SimpleNamespace(application=ApplicationConfig()),
        push=None,
    )
    agent.authorized = partial(Agent.authorized, agent)
    return agent


async def test_a_rejected_poll_uses_the_token_that_another_call_has_refreshed_meanwhile(
    world: World, autojump_clock: MockClock
) -> None:
    world.stored(world.access())
    keeper = world.keeper()

    async def rejected(token: str) -> events.Event:
        await keeper.refresh(token)  # a handler's call was rejected during the long-poll
        return events.TokenExpired()

    poller = Poller(agent_of(keeper, rejected))
    assert await poller._request(steps.Poll("1-0", 20, 30)) == events.TokenExpired()
    assert await poller._refresh() == events.TokenRefreshed()
    assert world.spent == ["canary-r0"]


async def test_a_rejected_one_shot_poll_is_repeated_with_the_token_that_another_call_has_refreshed(
    world: World, autojump_clock: MockClock
) -> None:
    world.stored(world.access())
    keeper = world.keeper()
    sent: list[str] = []

    async def rejected_once(token: str) -> events.Event:
        sent.append(token)
        if len(sent) > 1:
            return PAGE
        await keeper.refresh(token)
        return events.TokenExpired()

    agent = agent_of(keeper, rejected_once)
    assert await _page(agent, "1-0", trio.current_time() + BUSY_SECONDS) == PAGE
    assert world.spent == ["canary-r0"]


@pytest.mark.parametrize("answer", [events.TokenExpired(), events.CursorExpired()], ids=["401", "409"])
async def test_a_plane_that_always_says_no_ends_a_one_shot_poll(
    world: World, autojump_clock: MockClock, answer: events.Event
) -> None:
    world.stored(world.access())
    world.lifetime = -5.0  # its tokens have expired when they arrive
    sent: list[str] = []

    async def no(token: str) -> events.Event:
        sent.append(token)
        assert len(sent) < 10, "it repeats forever"
        return answer

    with pytest.raises(PlaneError) as caught:
        await _page(agent_of(world.keeper(), no), None, trio.current_time() + BUSY_SECONDS)
    assert caught.value.status == events.poll_code(answer)  # type: ignore[arg-type]  # both are poll answers
    assert len(sent) <= 2
