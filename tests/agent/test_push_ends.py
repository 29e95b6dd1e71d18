"""The ends of a push socket become the answers to polls, and leave nothing open."""

from __future__ import annotations

import pytest
import trio
from push_world import CUT, Scene, signals
from trio.testing import MockClock

from certctrl.errors import BadAnswerError, TransportError
from certctrl.net.stream import Closed
from certctrl.protocol import events
from certctrl.protocol.wire import push as wire


@pytest.fixture
def scene(nursery: trio.Nursery) -> Scene:
    return Scene(nursery)


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
    scene: Scene, code: int, reason: str, event: object, autojump_clock: MockClock
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
