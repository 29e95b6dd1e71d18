"""Without a push socket: the same polls are requests, and push is tried again with growing pauses."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import trio
from push_world import Scene, page_of_a_proxy, refusal
from trio.testing import MockClock

from certctrl.errors import BadAnswerError, TransportError
from certctrl.model.features import PUSH
from certctrl.protocol import events
from certctrl.protocol.wire import push as wire


@pytest.fixture
def scene(nursery: trio.Nursery) -> Scene:
    return Scene(nursery)


@pytest.mark.parametrize(
    ("status", "key", "event"),
    [
        (401, "TOKEN_EXPIRED", events.TokenExpired()),
        (403, "DEVICE_REVOKED", events.DeviceRevoked("no")),
        (429, "RATE", events.ServerBusy(429, 9.0, "RATE")),
        (503, "BUSY", events.ServerBusy(503, 9.0, "BUSY")),
    ],
)
async def test_the_plane_s_refusal_is_that_of_a_poll(
    scene: Scene, status: int, key: str, event: object, autojump_clock: MockClock
) -> None:
    scene.plane.opens.append(refusal(status, key, **{"retry-after": "9"}))
    assert await scene.poll("1-1") == event
    assert not scene.plane.polls


async def test_a_plane_that_cannot_be_reached_is_not_polled_as_well(scene: Scene, autojump_clock: MockClock) -> None:
    error = TransportError("nothing listens", fix="start it")
    error.maybe_sent = False
    scene.plane.opens.append(error)
    assert await scene.poll("1-1") == events.TransportFailed("nothing listens", fix="start it")
    assert not scene.plane.polls
    assert scene.push.view()["why"] == "connecting"


@pytest.mark.parametrize("opened", [page_of_a_proxy(400), page_of_a_proxy(403), page_of_a_proxy(502), refusal(404), refusal(403, "NO"),
    BadAnswerError("not HTTP"), TransportError("closed")], ids=str)  # fmt: skip
async def test_where_the_upgrade_is_blocked_the_same_poll_is_a_request(
    scene: Scene, opened: object, autojump_clock: MockClock
) -> None:
    scene.plane.opens.append(opened)
    assert await scene.poll("1-1") == events.NoUpdates("9-9")
    assert [(step.cursor, step.wait) for step in scene.plane.polls] == [("1-1", 0)]
    assert scene.push.view()["uses"] == "long-poll"
    assert scene.push.view()["why"]


async def test_a_socket_without_a_greeting_is_a_blocked_upgrade(scene: Scene, autojump_clock: MockClock) -> None:
    stream = scene.stream(lambda stream, message: None)
    began = trio.current_time()
    assert await scene.poll("1-1") == events.NoUpdates("9-9")
    assert trio.current_time() - began == pytest.approx(10)
    assert len(scene.plane.polls) == 1
    await trio.sleep(1)
    await trio.sleep(1)
    assert stream.closed is not None


async def test_an_outage_says_nothing_about_push(scene: Scene, autojump_clock: MockClock) -> None:
    scene.plane.opens += [TransportError("reset")] * 10
    scene.plane.answer = events.TransportFailed("reset")
    for _ in range(10):
        assert isinstance(await scene.poll("1-1"), events.TransportFailed)
        await trio.sleep(30)
    scene.plane.answer = events.NoUpdates("9-9")
    stream = scene.stream()
    await scene.poll("1-1")
    assert stream.types() == [wire.HELLO]


async def test_a_blocked_agent_settles_on_long_poll_after_a_minute_and_tries_again_with_growing_pauses(
    scene: Scene, autojump_clock: MockClock
) -> None:
    tries: list[float] = []
    opens = scene.plane.open_stream

    async def noted(token: str) -> Any:
        tries.append(trio.current_time())
        scene.plane.opens.append(page_of_a_proxy(403))
        return await opens(token)

    scene.plane.open_stream = noted  # type: ignore[method-assign]
    began = trio.current_time()
    while trio.current_time() - began < 4 * 3600:
        await scene.poll("1-1")
        await trio.sleep(5)
    pauses = [after - before for before, after in pairwise(tries)]
    quick = [pause for pause in pauses if pause < 100]
    slow = [round(pause / 60) for pause in pauses if pause >= 100]
    assert 60 <= sum(quick) <= 120
    assert slow[:4] == [5, 10, 20, 40]
    assert set(slow[4:]) <= {60, 61}
    waits = {step.wait for step in scene.plane.polls[-20:]}
    assert 25 in waits


async def test_push_is_used_again_once_it_works(scene: Scene, autojump_clock: MockClock) -> None:
    began = trio.current_time()
    while not scene.push.view()["next_try_at"] or trio.current_time() - began < 120:
        scene.plane.opens = [page_of_a_proxy(403)]
        await scene.poll("1-1")
        await trio.sleep(5)
    scene.plane.opens = []
    stream = scene.stream()
    while not stream.sent:
        await scene.poll("1-1")
        await trio.sleep(1)
    assert trio.current_time() - began < 1200
    assert scene.push.view()["uses"] == "push"
    for _ in range(4):
        await scene.poll("1-1")
    assert scene.push.view() == {
        "uses": "push",
        "since": pytest.approx(scene.agent.wall_now(), abs=200),
        "why": "",
        "next_try_at": None,
    }


async def test_a_plane_that_does_not_offer_push_is_never_asked_for_it(scene: Scene, autojump_clock: MockClock) -> None:
    scene.plane.features = frozenset()
    for _ in range(5):
        assert await scene.poll("1-1") == events.NoUpdates("9-9")
    assert not scene.plane.tokens
    assert {step.wait for step in scene.plane.polls} == {25}
    assert "does not offer" in scene.push.view()["why"]
    scene.plane.features = frozenset({PUSH})
    stream = scene.stream()
    await scene.poll("1-1")
    assert stream.sent


async def test_an_operator_can_have_push_tried_now(scene: Scene, autojump_clock: MockClock) -> None:
    scene.plane.opens.append(refusal(404))
    await scene.poll("1-1")
    assert scene.push.view()["next_try_at"]
    scene.push.try_now()
    stream = scene.stream()
    await scene.poll("1-1", wait=0)
    assert stream.types() == [wire.HELLO]
