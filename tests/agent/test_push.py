"""Push mode: what the session polls with becomes acks, and its answers are the events of polls."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from push_world import CUT, FakeStream, Scene, greeting, signals
from trio.testing import MockClock

from certctrl.errors import PlaneError
from certctrl.net.stream import Ping
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


async def test_the_session_gets_a_page_before_the_next_read_begins(scene: Scene, autojump_clock: MockClock) -> None:
    """Beginning to read takes as long as all that is left to do for the page."""
    order: list[str] = []

    class Noting(FakeStream):
        async def receive(self) -> Any:
            order.append("read")
            return await super().receive()

    stream = Noting()
    scene.plane.opens.append(stream)
    await scene.poll("0-1")
    for number in range(20):  # the event loop takes the tasks of a turn in either order
        async with trio.open_nursery() as nursery:

            async def polls() -> None:
                await scene.poll(f"{number}-1")  # noqa: B023
                order.append("page")

            nursery.start_soon(polls)
            await trio.testing.wait_all_tasks_blocked()
            order.clear()
            stream.push(signals(f"{number + 1}-1"))
        assert order[0] == "page", f"page {number}"


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


async def test_outcomes_that_are_too_large_for_the_socket_are_sent_as_a_request(
    scene: Scene, autojump_clock: MockClock
) -> None:
    """The plane would end the socket (1009)."""
    stream = scene.stream(storing)
    await scene.poll("1-1")
    assert await scene.push.post([{"detail": "é" * 140_000}]) is False
    assert stream.types() == [wire.HELLO]


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
