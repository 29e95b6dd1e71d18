"""`plane ask` and the online column of `plane devices`, against a plane in another process."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import trio
from nacl.public import PrivateKey
from plane_commands import PlaneSite
from proving import registration
from push_client import PushClient

NOW = 1_790_000_000.0
STATUS = {
    "now": NOW, "running": True, "started_at": NOW - 60, "registered": True, "state": "Polling", "health": "healthy",
    "poll": {"last_at": NOW - 5, "interval_ms": 5000}, "cursor": "1-0", "certificates": [],
}  # fmt: skip
ANSWERS: dict[str, Any] = {
    "status": {"answer": STATUS},
    "doctor": {"answer": {"findings": [{"level": "FAIL", "check": "disk", "what": "full", "fix": "delete files"}]}},
    "plan": {"answer": {"diff": "no changes\n+ a line", "problems": [], "changes": False, "refusals": []}},
    "history": {"answer": {"entries": [{"at": NOW, "name": "a.example", "to": "0001", "outcome": "applied"}]}},
}


@contextmanager
def agent(site: PlaneSite, name: str, answers: dict[str, Any], features: list[str]) -> Iterator[None]:
    """Run a device with an open socket in a thread."""
    token = site("enrolment-token").output.strip()
    body = registration(f"id-{name}", PrivateKey.generate(), name) | {"enrolment_token": token}
    session = site.register(body | {"features": ["key-proof", *features]})["session"]
    ready, stop = threading.Event(), trio.Event()
    made: list[Any] = []

    async def live() -> None:
        made.append(trio.lowlevel.current_trio_token())
        context = ssl.create_default_context(cafile=str(site.data / "ca.pem"))
        stream = await trio.open_ssl_over_tcp_stream(
            "127.0.0.1", int(site.url.rpartition(":")[2]), ssl_context=context, https_compatible=True
        )
        async with stream, trio.open_nursery() as nursery:
            client = PushClient(stream, session["access_token"])
            await client.upgrade()
            await client.hello()
            nursery.start_soon(_answer, client, answers)
            ready.set()
            await stop.wait()
            nursery.cancel_scope.cancel()

    thread = threading.Thread(target=trio.run, args=(live,))
    thread.start()
    assert ready.wait(60)
    try:
        yield
    finally:
        made[0].run_sync_soon(stop.set)
        thread.join(60)


async def _answer(client: PushClient, answers: dict[str, Any]) -> None:
    while True:
        message = await client.expect("ask.question")
        data = answers.get(message["data"]["question"])
        if data is not None:
            await client.send("ask.answer", data, message["id"])


@pytest.mark.parametrize(
    ("question", "lines"),
    [
        ("status", ["Daemon Status: Running", "State: Polling", "Certificates: none deployed"]),
        ("doctor", ["FAIL  disk: full", "      fix: delete files", "1 finding: 1 failure, 0 warnings"]),
        ("plan", ["no changes", "+ a line"]),
    ],
)
def test_answers_look_as_at_the_host(site: PlaneSite, question: str, lines: list[str]) -> None:
    with agent(site, f"shown-{question}", ANSWERS, ["push"]):
        found = site("ask", f"shown-{question}", question)
    assert [line for line in lines if line in found.output.splitlines()] == lines


def test_a_history_is_a_table(site: PlaneSite) -> None:
    with agent(site, "storied", ANSWERS, ["push"]):
        found = site("ask", "storied", "history").output
        assert "a.example" in found
        assert "applied" in found
        record = site("ask", "storied", "history", "--json").json
    assert record["answer"] == ANSWERS["history"]["answer"]
    assert (record["question"], record["result"]) == ("history", "answered")


def test_an_answer_of_another_form_is_printed_as_json(site: PlaneSite) -> None:
    with agent(site, "foreign", {"doctor": {"answer": {"found": []}}}, ["push"]):
        assert json.loads(site("ask", "foreign", "doctor").output) == {"found": []}


def test_control_characters_of_an_agent_do_not_reach_the_terminal(site: PlaneSite) -> None:
    with agent(site, "evil-host", {"plan": {"answer": {"diff": "\x1b[2Jgone"}}}, ["push"]):
        assert "\x1b" not in site("ask", "evil-host", "plan").output


def test_a_device_with_a_socket_is_shown_online(site: PlaneSite) -> None:
    def row(name: str) -> str:
        return next(line for line in site("devices").output.splitlines() if name in line)

    with agent(site, "present", ANSWERS, ["push"]):
        assert "push since 20" in row("present")
        assert "push sockets: 1" in site("status").out
    (shown,) = [one for one in site("devices", "--json").json if one["name"] == "present"]
    assert shown["connected_at"] is None


def test_refusals_are_one_line_with_a_fix(site: PlaneSite, device: str) -> None:
    refused = {"error": {"key": "REFUSED_BY_POLICY", "what": "remote_questions is off"}}
    with agent(site, "strict", {"status": refused}, ["push"]):
        found = site("ask", "strict", "status")
        assert (found.status, found.out) == (1, "")
        assert "strict: its policy refuses remote questions: remote_questions is off" in found.err
        assert "policy.json" in found.err
        late = site("ask", "strict", "plan", "--timeout", "1")
        assert late.status == 69
        assert "did not answer in time" in late.err
        assert "longer --timeout" in late.err
    gone = site("ask", "strict", "status")
    assert gone.status == 1
    assert "strict is not connected by push" in gone.err
    old = site("ask", device, "status")
    assert old.status == 1
    assert "has no push; update it" in old.err


def test_unknown_questions_and_devices_are_usage_errors(site: PlaneSite, device: str) -> None:
    wrong = site("ask", device, "statsu")
    assert wrong.status == 64 or wrong.status == 2
    assert "did you mean status?" in wrong.err
    assert "has no device 'nobody'" in site("ask", "nobody", "status").err
