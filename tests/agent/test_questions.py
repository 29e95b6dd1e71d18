"""Questions of the plane: answered read-only, within limits, and never against the host's policy."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import trio
from push_world import FakeStream, Scene, greeting, make_agent
from trio.testing import MockClock

from certctrl.agent.context import Agent
from certctrl.agent.questions import answer_question
from certctrl.errors import DiskError, TransportError
from certctrl.model.policy import HostPolicy, RemoteQuestions
from certctrl.model.questions import MAX_ANSWER
from certctrl.protocol.wire import push as wire
from certctrl.protocol.wire.push import Envelope


def question(name: object = "status", **data: object) -> Envelope:
    return Envelope(wire.QUESTION, "q1", {"question": name} | data)


def answering(value: object = None, seconds: float = 0.0) -> Any:
    async def answer(name: str) -> Any:
        await trio.sleep(seconds)
        if isinstance(value, Exception):
            raise value
        return {"question": name} if value is None else value

    return answer


async def key_of(agent: Agent, envelope: Envelope) -> str:
    return str((await answer_question(agent, envelope))["error"]["key"])


@pytest.mark.parametrize("name", ["status", "doctor", "plan", "history"])
async def test_a_question_is_answered_logged_and_audited(
    name: str, caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    caplog.set_level(logging.INFO)
    agent = make_agent(questions=answering())
    assert await answer_question(agent, question(name)) == {"answer": {"question": name}}
    assert f"Answered the control plane's question: {name}" in caplog.text
    entry = agent.history[0]
    assert (entry["name"], entry["asked_by"], entry["outcome"]) == (f"question: {name}", "plane", "answered")
    assert agent.counters.questions == {"answered": 1}


async def test_the_policy_refuses_all_questions(caplog: pytest.LogCaptureFixture, autojump_clock: MockClock) -> None:
    agent = make_agent(questions=answering(), policy=HostPolicy(remote_questions=RemoteQuestions.OFF))
    assert await key_of(agent, question()) == "REFUSED_BY_POLICY"
    assert "REFUSED_BY_POLICY" in caplog.text
    assert agent.history[0]["outcome"] == "refused"


@pytest.mark.parametrize("name", ["reload", "", "status ", None, 7, "x" * 10_000, "a\nb"])
async def test_an_unknown_question_is_refused_and_keeps_the_log_clean(
    name: object, caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    agent = make_agent(questions=answering())
    assert await key_of(agent, question(name)) == "UNKNOWN_QUESTION"
    assert all(len(record.getMessage()) < 300 and record.getMessage().isprintable() for record in caplog.records)


@pytest.mark.parametrize("data", [None, [], "status", {}])
async def test_a_question_without_data_is_unknown(data: object, autojump_clock: MockClock) -> None:
    agent = make_agent(questions=answering())
    assert await key_of(agent, Envelope(wire.QUESTION, "q1", data)) == "UNKNOWN_QUESTION"


async def test_an_agent_without_answers_knows_no_question(autojump_clock: MockClock) -> None:
    assert await key_of(make_agent(), question()) == "UNKNOWN_QUESTION"


async def test_a_long_answer_is_not_sent(autojump_clock: MockClock) -> None:
    agent = make_agent(questions=answering({"text": "x" * MAX_ANSWER}))
    assert await key_of(agent, question()) == "TOO_LONG"
    fits = make_agent(questions=answering({"text": "x" * (MAX_ANSWER - 100)}))
    assert "answer" in await answer_question(fits, question())


async def test_a_slow_answer_is_abandoned_at_its_limit(autojump_clock: MockClock) -> None:
    agent, began = make_agent(questions=answering(seconds=1000)), trio.current_time()
    assert await key_of(agent, question()) == "TIMED_OUT"
    assert trio.current_time() - began == pytest.approx(30)


@pytest.mark.parametrize(("left_ms", "seconds"), [(2000, 2), (-5, 0), (10_000_000, 30)])
async def test_the_plane_may_shorten_the_limit(left_ms: int, seconds: float, autojump_clock: MockClock) -> None:
    agent, began = make_agent(questions=answering(seconds=1000)), trio.current_time()
    expires = int(agent.plane.server_now() * 1000) + left_ms
    assert await key_of(agent, question(expires_ms=expires)) == "TIMED_OUT"
    assert trio.current_time() - began == pytest.approx(seconds, abs=0.01)


@pytest.mark.parametrize("expires", ["soon", 0, -1, 1e30, True, None])
async def test_an_odd_limit_is_the_usual_one(expires: object, autojump_clock: MockClock) -> None:
    assert "answer" in await answer_question(make_agent(questions=answering(seconds=29)), question(expires_ms=expires))


async def test_secrets_are_masked(autojump_clock: MockClock) -> None:
    secret = "https://user:hunter2@proxy.test:3128"
    agent = make_agent(
        questions=answering({"findings": [{"what": f"proxy {secret}"}, ("eyJhbGciOiJIUzI1NiJ9.abc.def",)]})
    )
    text = str(await answer_question(agent, question("doctor")))
    assert "hunter2" not in text
    assert "eyJ" not in text


@pytest.mark.parametrize(
    "error", [DiskError("cannot read", path="/x"), TransportError("no"), RuntimeError("secret text")]
)
async def test_a_failed_answer_says_so_and_no_more(
    error: Exception, caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    agent = make_agent(questions=answering(error))
    answer = await answer_question(agent, question())
    assert answer["error"]["key"] == "FAILED"
    assert "secret text" not in str(answer) + caplog.text


async def test_many_questions_do_not_displace_the_audit_log(autojump_clock: MockClock) -> None:
    agent = make_agent(questions=answering())
    for number in range(200):
        await answer_question(agent, question("status"))
        await answer_question(agent, question(f"made up {number}"))
    assert len(agent.history) == 2
    await trio.sleep(61)
    await answer_question(agent, question("status"))
    assert len(agent.history) == 3
    assert agent.counters.questions == {"answered": 201, "refused": 200}


# --- on the socket -------------------------------------------------------------------------------------------------


def asked(stream: FakeStream, number: str, name: str = "status") -> None:
    stream.push({"type": wire.QUESTION, "id": number, "data": {"question": name, "expires_ms": 0}})


async def test_questions_are_answered_one_at_a_time_while_pages_go_on(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    running: list[int] = []
    most = 0

    async def answer(name: str) -> Any:
        nonlocal most
        running.append(1)
        most = max(most, len(running))
        await trio.sleep(2)
        running.pop()
        return {"ok": True}

    scene = Scene(nursery, questions=answer)
    stream = scene.stream()
    await scene.poll("1-1", wait=1)
    for number in range(4):
        asked(stream, f"q{number}")
    from push_world import signals

    stream.push(signals("2-1"))
    assert (await scene.poll("1-1")).cursor == "2-1"
    await trio.sleep(20)
    answers = [message for message in stream.sent if message["type"] == wire.ANSWER]
    assert sorted(message["id"] for message in answers) == ["q0", "q1", "q2", "q3"]
    assert all(message["data"] == {"answer": {"ok": True}} for message in answers)
    assert most == 1


async def test_more_questions_than_places_are_refused_at_once(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    scene = Scene(nursery, questions=answering(seconds=5))
    stream = scene.stream()
    await scene.poll("1-1", wait=1)
    for number in range(50):
        asked(stream, f"q{number}")
    await trio.sleep(1)
    busy = [message for message in stream.sent if message["type"] == wire.ANSWER]
    assert len(busy) == 46
    assert {message["data"]["error"]["key"] for message in busy} == {"BUSY"}


async def test_questions_without_end_are_answered_at_a_slow_rate(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """Found by review: each was answered as soon as the last one was, with its processor time and its log line."""
    scene = Scene(nursery, questions=answering())
    stream = scene.stream()
    await scene.poll("1-1", wait=1)
    for number in range(300):
        asked(stream, f"q{number}")
        await trio.sleep(0.1)
    answers = [message for message in stream.sent if message["type"] == wire.ANSWER]
    answered = [message for message in answers if "answer" in message["data"]]
    assert len(answers) == 300
    assert 20 <= len(answered) <= 8 + 30 / 2
    assert {message["data"]["error"]["key"] for message in answers if message not in answered} == {"BUSY"}
    await trio.sleep(20)
    for number in range(8):
        asked(stream, f"later{number}")
        await trio.sleep(0.1)
    assert all("answer" in message["data"] for message in stream.sent[-8:])


async def test_the_end_of_the_socket_ends_the_work_on_a_question(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    ended = trio.Event()

    async def answer(name: str) -> Any:
        try:
            await trio.sleep_forever()
        finally:
            ended.set()

    from push_world import CUT

    scene = Scene(nursery, questions=answer)
    stream = scene.stream(greeting)
    await scene.poll("1-1", wait=1)
    asked(stream, "q1")
    await trio.sleep(1)
    stream.push(CUT)
    with trio.fail_after(5):
        await ended.wait()
