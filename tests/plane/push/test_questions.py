"""Questions to live agents: answers, refusals, time limits, limits, and the record of each."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import trio
from plane_world import Device, Reply, World
from push_client import PushClient, pushed

from certctrl.model.questions import MAX_ANSWER
from certctrl.plane.audit.log import Filter
from certctrl.plane.push.questions import Result, reply_of


async def able(world: World) -> Device:
    """Return a device whose agent has push."""
    device = await world.device()
    with world.plane.database.transaction():
        world.plane.database.run("UPDATE devices SET features = ? WHERE id = ?", '["push"]', device.id)
    return device


async def ask(world: World, device: Device, question: str = "status", **more: object) -> Reply:
    return await world.operator("POST", f"{device.home}/questions", {"question": question} | more)


async def answered(client: PushClient, data: object, *, after: float = 0.0) -> dict[str, Any]:
    """Answer the next question; return it."""
    message = await client.expect("ask.question")
    await trio.sleep(after)
    await client.send("ask.answer", data, message["id"])
    question: dict[str, Any] = message["data"]
    return question


@pytest.mark.parametrize("kind", ["status", "doctor", "plan", "history"])
async def test_an_agent_answers_on_its_socket(virtual: World, autojump_clock: trio.abc.Clock, kind: str) -> None:
    device = await able(virtual)
    async with pushed(virtual, device) as client, trio.open_nursery() as nursery:
        asked: list[Any] = []

        async def answer() -> None:
            asked.append(await answered(client, {"answer": {"a": [1, "ä"]}}, after=0.5))

        nursery.start_soon(answer)
        record = (await ask(virtual, device, kind)).data
        assert record["answer"] == {"a": [1, "ä"]}
        assert (record["question"], record["result"], record["seconds"]) == (kind, "answered", 0.5)
        assert record["asked_by"] == "operator at 192.0.2.7"
    (entry,) = virtual.plane.audit.page(Filter(), 0, 9)
    assert (entry["action"], entry["detail"], entry["objects"][0]["name"]) == (
        "device.ask",
        {"question": kind},
        "web-1",
    )
    assert asked[0]["question"] == kind
    assert virtual.plane.counters.questions == {(kind, "answered"): 1}


async def test_the_record_stays_without_the_answer(
    virtual: World, autojump_clock: trio.abc.Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    device = await able(virtual)
    async with pushed(virtual, device) as client, trio.open_nursery() as nursery:
        nursery.start_soon(answered, client, {"answer": {"secret": "hidden"}})
        await ask(virtual, device)
    (record,) = (await virtual.operator("GET", f"{device.home}/questions")).data
    assert "answer" not in record
    assert (record["question"], record["result"]) == ("status", "answered")
    assert virtual.plane.database.one("SELECT answer FROM questions")["answer"] == ""
    assert "question 1: status of device 1 (web-1) for operator at 192.0.2.7: answered" in caplog.text
    assert "hidden" not in caplog.text


@pytest.mark.parametrize(
    ("data", "status", "key", "words"),
    [
        ({"error": {"key": "REFUSED_BY_POLICY", "what": "remote_questions is off"}}, 409, "REFUSED_BY_POLICY", "remote_questions is off"),
        ({"error": {"key": "UNKNOWN_QUESTION"}}, 409, "UNKNOWN_QUESTION", "does not know"),
        ({"error": {"key": "TOO_LONG"}}, 409, "TOO_LONG", "200 KiB"),
        ({"error": {"key": "TIMED_OUT"}}, 504, "TIMED_OUT", "in time"),
        ({"error": {"key": "x", "what": "a\nb"}}, 409, "FAILED", "could not answer"),
        ({"error": {}}, 409, "FAILED", "could not answer"),
        ({"answer": "text"}, 409, "FAILED", "not an object"),
        ({"answer": None}, 409, "FAILED", "not an object"),
        ({}, 409, "FAILED", "not an object"),
        (None, 409, "FAILED", "not an object"),
        ([1], 409, "FAILED", "not an object"),
        ({"answer": {"a": "x" * (MAX_ANSWER + 1)}}, 409, "TOO_LONG", "200 KiB"),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
async def test_a_refusal_is_an_error_of_one_line(
    virtual: World, autojump_clock: trio.abc.Clock, data: object, status: int, key: str, words: str
) -> None:
    device = await able(virtual)
    async with pushed(virtual, device) as client, trio.open_nursery() as nursery:
        nursery.start_soon(answered, client, data)
        reply = await ask(virtual, device)
    assert (reply.status, reply.key) == (status, key)
    assert words in reply.what
    assert reply.what.startswith("web-1: ")
    assert "\n" not in reply.what


async def test_an_agent_that_is_silent_times_out(virtual: World, autojump_clock: trio.abc.Clock) -> None:
    device = await able(virtual)
    async with pushed(virtual, device) as client:
        reply = await ask(virtual, device, timeout_seconds=4)
        assert (reply.status, reply.key) == (504, "TIMED_OUT")
        assert trio.current_time() == pytest.approx(4, abs=0.1)
        message = await client.expect("ask.question")
        await client.send("ask.answer", {"answer": {}}, message["id"])  # too late
        await trio.sleep(1)
        (record,) = (await virtual.operator("GET", f"{device.home}/questions")).data
        assert record["result"] == "timed_out"


async def test_a_stopping_plane_ends_its_questions(virtual: World, autojump_clock: trio.abc.Clock) -> None:
    device = await able(virtual)
    replies: list[Reply] = []

    async def asks() -> None:
        replies.append(await ask(virtual, device, timeout_seconds=25))

    async with pushed(virtual, device) as client, trio.open_nursery() as nursery:
        nursery.start_soon(asks)
        await client.expect("ask.question")
        began = trio.current_time()
        virtual.plane.stop_polls()
        assert (await client.closed()).code == 1012
    assert trio.current_time() - began < 1
    (reply,) = replies
    assert (reply.status, reply.key) == (503, "SERVICE_UNAVAILABLE")
    assert "web-1: the control plane is stopping" in reply.what
    assert virtual.plane.counters.questions == {("status", "stopped"): 1}


async def test_a_device_without_a_socket_is_refused_immediately(virtual: World, autojump_clock: trio.abc.Clock) -> None:
    device = await able(virtual)
    await device.poll()
    reply = await ask(virtual, device)
    assert (reply.status, reply.key) == (409, "NOT_CONNECTED")
    assert trio.current_time() < 0.1


async def test_an_agent_without_push_is_refused(virtual: World, autojump_clock: trio.abc.Clock) -> None:
    device = await virtual.device()
    reply = await ask(virtual, device)
    assert (reply.status, reply.key) == (409, "PUSH_UNSUPPORTED")


async def test_a_revoked_or_unknown_device_is_refused(virtual: World, autojump_clock: trio.abc.Clock) -> None:
    device = await able(virtual)
    await virtual.operator("DELETE", device.home)
    assert (await ask(virtual, device)).key == "NOT_CONNECTED"
    assert (await virtual.operator("POST", "/apiv1/users/1/devices/99/questions", {"question": "status"})).status == 404


@pytest.mark.parametrize(
    "body", [{}, {"question": "shell"}, {"question": 1}, {"question": "status", "timeout_seconds": 0}, {"question": "status", "timeout_seconds": 26}]
)  # fmt: skip
async def test_invalid_questions_get_400(virtual: World, autojump_clock: trio.abc.Clock, body: object) -> None:
    device = await able(virtual)
    async with pushed(virtual, device):
        assert (await virtual.operator("POST", f"{device.home}/questions", body)).status == 400


async def test_devices_cannot_ask(virtual: World, autojump_clock: trio.abc.Clock) -> None:
    device = await able(virtual)
    assert (await device("POST", f"{device.home}/questions", {"question": "status"})).status == 403
    assert (await virtual.stranger("GET", f"{device.home}/questions")).status == 401


async def test_at_most_four_questions_are_open(virtual: World, autojump_clock: trio.abc.Clock) -> None:
    device = await able(virtual)
    statuses: list[int] = []

    async def one() -> None:
        statuses.append((await ask(virtual, device, timeout_seconds=5)).status)

    async with pushed(virtual, device), trio.open_nursery() as nursery:
        for _ in range(6):
            nursery.start_soon(one)
    assert sorted(statuses) == [429, 429, 504, 504, 504, 504]


async def test_a_question_is_sent_once_per_socket_and_again_after_a_reconnect(
    virtual: World, autojump_clock: trio.abc.Clock
) -> None:
    device = await able(virtual)
    async with trio.open_nursery() as nursery:
        async with pushed(virtual, device) as client:
            nursery.start_soon(ask, virtual, device)
            first = await client.expect("ask.question")
            virtual.plane.stream.wake_all()
            with trio.move_on_after(1):
                raise AssertionError(await client.receive())
        async with pushed(virtual, device) as client:
            again = await client.expect("ask.question")
            assert again == first
            await client.send("ask.answer", {"answer": {}}, again["id"])


async def test_signals_and_questions_do_not_wait_for_each_other(virtual: World, autojump_clock: trio.abc.Clock) -> None:
    device = await able(virtual)
    await virtual.plane.resync(1, device.id)
    async with pushed(virtual, device) as client, trio.open_nursery() as nursery:
        page = await client.expect("updates.signal")
        nursery.start_soon(answered, client, {"answer": {}})
        assert (await ask(virtual, device)).status == 200  # while the page is not confirmed
        await client.send("updates.ack", name=page["id"])


async def test_old_records_and_unread_answers_are_deleted(virtual: World, autojump_clock: trio.abc.Clock) -> None:
    device = await able(virtual)
    questions = virtual.plane.push.questions
    with virtual.plane.database.transaction():
        left = questions.ask(device.id, "status", 5, "operator")
        unread = questions.ask(device.id, "plan", 5, "operator")
        questions.end(device.id, unread.id, reply_of({"answer": {"a": 1}}))
    await trio.sleep(400)
    with virtual.plane.database.transaction():
        questions.delete_expired()
    rows = {row["id"]: row for row in virtual.plane.database.all("SELECT * FROM questions")}
    assert rows[left.id]["result"] == Result.TIMED_OUT
    assert rows[unread.id]["answer"] == ""
    await trio.sleep(91 * 86_400)
    with virtual.plane.database.transaction():
        questions.delete_expired()
    assert not virtual.plane.database.all("SELECT * FROM questions")
