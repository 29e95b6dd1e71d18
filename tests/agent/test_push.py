"""Push mode: what the session polls with becomes acks, and its answers are the events of polls."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import trio
from push_world import CUT, FakeStream, Scene, greeting, page_of_a_proxy, refusal, signals
from trio.testing import MockClock

from certctrl.errors import BadAnswerError, PlaneError, TransportError
from certctrl.model.features import PUSH
from certctrl.net.stream import Closed, Ping
from certctrl.protocol import events
from certctrl.protocol.wire import push as wire


@pytest.fixture
def scene(nursery: trio.Nursery) -> Scene:
    return Scene(nursery)


# --- pages, acks, positions ----------------------------------------------------------------------------------------


async def test_a_page_is_acknowledged_with_the_poll_that_has_its_cursor(
    scene: Scene, autojump_clock: MockClock
) -> None:
    stream = scene.stream()
    stream.push(signals("2-1"))
    first = await scene.poll("1-1")
    assert isinstance(first, events.NoUpdates)  # it came before the greeting, so it belongs to no hello
    stream.push(signals("2-1"))
    page = await scene.poll("1-1")
    assert page.cursor == "2-1"
    assert stream.types() == [wire.HELLO]
    stream.push(signals("3-1"))
    page = await scene.poll("2-1")
    assert page.cursor == "3-1"
    assert stream.sent[1:] == [{"type": wire.ACK, "id": "2-1"}]


async def test_hello_begins_at_the_durable_cursor(scene: Scene, autojump_clock: MockClock) -> None:
    stream = scene.stream()
    await scene.poll("7-1", limit=3)
    assert stream.sent[0] == {"type": wire.HELLO, "data": {"cursor": "7-1", "limit": 3}}


async def test_a_page_that_could_not_be_stored_comes_again(scene: Scene, autojump_clock: MockClock) -> None:
    stream = scene.stream()
    await scene.poll("1-1")
    stream.push(signals("2-1"))
    await scene.poll("1-1")
    await scene.poll("1-1")  # the session has dropped the page
    assert stream.types() == [wire.HELLO, wire.HELLO]
    assert stream.sent[1]["data"]["cursor"] == "1-1"


async def test_without_a_cursor_the_position_of_the_greeting_is_the_cursor(
    scene: Scene, autojump_clock: MockClock
) -> None:
    stream = scene.stream()
    assert await scene.poll(None) == events.NoUpdates("0-0", pushed=True)
    stream.push(signals("2-1"))
    assert (await scene.poll("0-0")).cursor == "2-1"
    assert stream.types() == [wire.HELLO]


async def test_a_void_cursor_is_the_event_of_a_poll_and_the_socket_goes_on(
    scene: Scene, autojump_clock: MockClock
) -> None:
    def script(stream: FakeStream, message: dict[str, Any]) -> None:
        if message.get("data", {}).get("cursor") == "1-1":
            error = {"code": 40901, "what": "old", "key": "CURSOR_EXPIRED"}
            stream.push({"type": wire.ERROR, "data": {"status": 409, "error": error}})
        else:
            greeting(stream, message)

    stream = scene.stream(script)
    assert await scene.poll("1-1") == events.CursorExpired()
    assert await scene.poll(None) == events.NoUpdates("0-0", pushed=True)
    assert stream.types() == [wire.HELLO, wire.HELLO]
    assert len(scene.plane.tokens) == 1


async def test_a_page_on_its_way_when_hello_begins_again_is_dropped(scene: Scene, autojump_clock: MockClock) -> None:
    stream = scene.stream()
    await scene.poll("1-1")
    stream.push(signals("2-1"))
    await scene.poll("1-1")
    answers: list[Any] = []
    stream.script = lambda stream, message: answers.append(message)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scene.poll, "1-1")
        await trio.sleep(0.5)
        stream.push(signals("5-1"))
        await trio.sleep(0.5)
        greeting(stream, answers[0])
        stream.push(signals("2-1"))
    assert (await scene.poll("2-1", wait=1)) == events.NoUpdates(None, pushed=True)
    assert stream.sent[-1] == {"type": wire.ACK, "id": "2-1"}


async def test_a_page_before_the_ack_of_the_last_one_ends_the_socket(scene: Scene, autojump_clock: MockClock) -> None:
    stream = scene.stream()
    await scene.poll("1-1")
    stream.push(signals("2-1"), signals("3-1"))
    assert (await scene.poll("1-1")).cursor == "2-1"
    await trio.sleep(1)
    assert isinstance(await scene.poll("2-1"), events.BadAnswer)
    await trio.sleep(1)
    assert stream.closed == 1002


async def test_a_poll_that_is_abandoned_loses_no_page(scene: Scene, autojump_clock: MockClock) -> None:
    stream = scene.stream()
    with trio.move_on_after(3):
        await scene.poll("1-1")
    stream.push(signals("2-1"))
    await trio.sleep(1)
    assert (await scene.poll("1-1")).cursor == "2-1"
    assert stream.types() == [wire.HELLO]


@pytest.mark.parametrize("more", [True, False])
async def test_more_says_whether_the_page_is_full(scene: Scene, more: bool, autojump_clock: MockClock) -> None:
    stream = scene.stream()
    await scene.poll("1-1")
    stream.push(signals("2-1", more=more))
    page = await scene.poll("1-1")
    assert page.full is more
    assert page.pushed


# --- waiting -------------------------------------------------------------------------------------------------------


async def test_a_quiet_poll_ends_with_the_plane_s_ping(scene: Scene, autojump_clock: MockClock) -> None:
    stream = scene.stream()
    await scene.poll("1-1")
    began = trio.current_time()
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def pinging() -> None:
            await trio.sleep(20)
            stream.push(Ping())

        assert await scene.poll("1-1") == events.NoUpdates(None, pushed=True)
        assert trio.current_time() - began == pytest.approx(20)


async def test_a_requested_poll_is_a_round_trip(scene: Scene, autojump_clock: MockClock) -> None:
    stream = scene.stream()
    await scene.poll("1-1", wait=1)
    began, before = trio.current_time(), stream.pings
    assert await scene.poll("1-1", wait=0) == events.NoUpdates(None, pushed=True)
    assert stream.pings == before + 1
    assert trio.current_time() == began


async def test_a_requested_poll_on_a_dead_socket_fails(scene: Scene, autojump_clock: MockClock) -> None:
    stream = scene.stream()
    await scene.poll("1-1")
    stream.pongs = False
    assert isinstance(await scene.poll("1-1", wait=0), events.TransportFailed)
    await trio.sleep(1)
    assert stream.closed is not None


async def test_a_half_open_socket_is_noticed_within_two_pings(scene: Scene, autojump_clock: MockClock) -> None:
    stream = scene.stream()
    await scene.poll("1-1", wait=1)
    stream.pongs, began, event = False, trio.current_time(), None
    while not isinstance(event, events.TransportFailed):
        event = await scene.poll("1-1")
        assert trio.current_time() - began < 120
    assert stream.pings == 2
    assert trio.current_time() - began == pytest.approx(75, abs=2)
    assert "nothing received" in event.why


async def test_a_quiet_socket_that_answers_pings_lasts(scene: Scene, autojump_clock: MockClock) -> None:
    stream = scene.stream()
    for _ in range(20):
        assert await scene.poll("1-1") == events.NoUpdates(None, pushed=True)
    await trio.sleep(1)
    assert stream.closed is None
    assert 10 <= stream.pings <= 25


# --- outcomes and tokens -------------------------------------------------------------------------------------------


def storing(stream: FakeStream, message: dict[str, Any]) -> None:
    greeting(stream, message)
    if message["type"] == wire.OUTCOMES:
        stream.push({"type": wire.OUTCOMES_ACK, "id": message["id"]})


async def test_outcomes_go_over_the_socket(scene: Scene, autojump_clock: MockClock) -> None:
    stream = scene.stream(storing)
    await scene.poll("1-1")
    assert await scene.push.post([{"type": "signal.ack"}]) is True
    sent = stream.sent[-1]
    assert (sent["type"], sent["id"]) == (wire.OUTCOMES, "1")
    assert sent["data"] == {"schema": "certctrl.device.notify.v1", "events": [{"type": "signal.ack"}]}


async def test_outcomes_are_sent_as_a_request_without_a_socket(scene: Scene, autojump_clock: MockClock) -> None:
    assert await scene.push.post([{}]) is False


@pytest.mark.parametrize("how", ["silent", "cut", "many"])
async def test_outcomes_that_may_not_have_arrived_are_sent_as_a_request(
    scene: Scene, how: str, autojump_clock: MockClock
) -> None:
    stream = scene.stream()
    await scene.poll("1-1")
    if how == "cut":
        stream.push(CUT)
    assert await scene.push.post([{}] * (1000 if how == "many" else 1)) is False


@pytest.mark.parametrize("status", [400, 401, 429, 500])
async def test_refused_outcomes_are_the_error_of_a_request(
    scene: Scene, status: int, autojump_clock: MockClock
) -> None:
    def script(stream: FakeStream, message: dict[str, Any]) -> None:
        greeting(stream, message)
        if message["type"] == wire.OUTCOMES:
            error = {"code": 1, "what": "no", "key": "NO"}
            stream.push({"type": wire.ERROR, "id": message["id"], "data": {"status": status, "error": error}})

    scene.stream(script)
    await scene.poll("1-1")
    with pytest.raises(PlaneError) as caught:
        await scene.push.post([{}])
    assert caught.value.status == status


async def test_a_fresh_token_is_sent_once_before_the_old_one_ends(scene: Scene, autojump_clock: MockClock) -> None:
    stream = scene.stream()
    await scene.poll("1-1", wait=1)
    scene.agent.tokens.renew("second")
    await scene.poll("1-1", wait=1)
    assert stream.sent[1:] == [{"type": wire.TOKEN, "data": {"access_token": "second"}}]
    await scene.poll("1-1", wait=1)
    assert len(stream.sent) == 2


async def test_a_token_that_changed_while_the_socket_was_opened_is_sent(
    scene: Scene, autojump_clock: MockClock
) -> None:
    stream = scene.stream()
    scene.agent.tokens.token = "second"
    from certctrl.protocol.steps import Poll

    await scene.push.poll("first", Poll("1-1", 20, 1))
    assert {"type": wire.TOKEN, "data": {"access_token": "second"}} in stream.sent


# --- ends ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "reason", "event"),
    [
        (4401, "", events.TokenExpired()),
        (4403, "gone", events.DeviceRevoked("gone")),
        (1012, '{"retry_after": 4}', events.NoUpdates(None, retry_after=4.0)),
        (1013, '{"retry_after": 4}', events.ServerBusy(503, 4.0, "OVERLOADED")),
        (1006, "", events.TransportFailed("the connection was closed")),
        (1008, "", events.TransportFailed("the connection was closed (1008)")),
    ],
)
async def test_the_end_of_a_socket_is_the_answer_to_the_poll(
    scene: Scene, code: int, reason: str, event: Any, autojump_clock: MockClock
) -> None:
    stream = scene.stream()
    await scene.poll("1-1")
    stream.push(Closed(code, reason))
    assert await scene.poll("1-1") == event
    assert not scene.push.is_open
    again = scene.stream()
    await trio.sleep(5)
    assert isinstance(await scene.poll("1-1"), events.NoUpdates)
    assert again.types() == [wire.HELLO]


async def test_a_page_that_arrived_before_the_end_is_returned_first(scene: Scene, autojump_clock: MockClock) -> None:
    stream = scene.stream()
    await scene.poll("1-1")
    stream.push(signals("2-1"), CUT)
    await trio.sleep(1)
    assert (await scene.poll("1-1")).cursor == "2-1"
    assert isinstance(await scene.poll("2-1"), events.TransportFailed)


@pytest.mark.parametrize("error", [BadAnswerError("binary"), TransportError("reset")])
async def test_an_error_of_the_socket_is_the_answer_to_the_poll(
    scene: Scene, error: Exception, autojump_clock: MockClock
) -> None:
    stream = scene.stream()
    await scene.poll("1-1")
    stream.push(error)
    kind = events.BadAnswer if isinstance(error, BadAnswerError) else events.TransportFailed
    assert isinstance(await scene.poll("1-1"), kind)


@pytest.mark.parametrize("message", ["", "7", "{}", '{"type":"updates.signal"}', '{"type":"updates.signal","id":"2-1","data":{"cursor":"2-1","signals":[]}}',
    '{"type":"lifecycle.hello_ack","data":{"ping_seconds":"x"}}'])  # fmt: skip
async def test_a_message_outside_the_contract_ends_the_socket(
    scene: Scene, message: str, autojump_clock: MockClock
) -> None:
    stream = scene.stream()
    await scene.poll("1-1")
    stream.push(message)
    assert isinstance(await scene.poll("1-1"), events.BadAnswer)
    await trio.sleep(1)
    assert stream.closed == 1002


async def test_messages_of_unknown_types_are_ignored(scene: Scene, autojump_clock: MockClock) -> None:
    stream = scene.stream()
    await scene.poll("1-1")
    stream.push(
        {"type": "future.thing", "id": "9", "data": [1]}, {"type": wire.OUTCOMES_ACK, "id": "77"}, signals("2-1")
    )
    assert (await scene.poll("1-1")).cursor == "2-1"


async def test_a_device_whose_socket_was_replaced_is_reported_as_copied(
    scene: Scene, autojump_clock: MockClock
) -> None:
    stream = scene.stream()
    await scene.poll("1-1")
    stream.push(Closed(4409))
    assert isinstance(await scene.poll("1-1"), events.Refused)
    assert scene.plane.copies_suspected


async def test_stopping_closes_the_socket_with_going_away(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        scene = Scene(nursery)
        stream = scene.stream()
        await scene.poll("1-1")
        nursery.cancel_scope.cancel()
    assert stream.closed == 1001


async def test_another_poll_mode_closes_the_socket(scene: Scene, autojump_clock: MockClock) -> None:
    stream = scene.stream()
    await scene.poll("1-1")
    await scene.push.aclose()
    await trio.sleep(1)
    await trio.sleep(1)
    assert stream.closed == 1001
    assert not scene.push.is_open


async def test_a_bug_on_the_socket_ends_it_and_nothing_else(scene: Scene, autojump_clock: MockClock) -> None:
    stream = scene.stream()
    await scene.poll("1-1")
    stream.push(RuntimeError("a bug"))
    assert isinstance(await scene.poll("1-1"), events.TransportFailed)


# --- without a socket ----------------------------------------------------------------------------------------------


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
    scene: Scene, status: int, key: str, event: Any, autojump_clock: MockClock
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
    scene: Scene, opened: Any, autojump_clock: MockClock
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
