"""Answer the plane's questions: read-only, within limits, and only if the host's policy allows it.

Each question is a log line and an entry of the audit log. A refusal or failure is a key and one line; the text of an
unexpected error never leaves the host.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import trio

from certctrl.agent.context import Agent
from certctrl.agent.log_lines import Line, log_line
from certctrl.agent.package_guard import raise_if_replaced
from certctrl.errors import CertctrlError, DiskError
from certctrl.logs.redact import redact
from certctrl.model.policy import RemoteQuestions
from certctrl.model.questions import MAX_ANSWER, QuestionKind
from certctrl.protocol.wire.push import Envelope, question_from_wire
from certctrl.text import one_line

ANSWER_SECONDS = 30.0
AUDITED_EACH = 60.0
"""Least seconds between entries of the audit log for one kind of question and result, which must not displace its
deployments."""


async def answer_question(agent: Agent, envelope: Envelope) -> Mapping[str, Any]:
    """Return the data of the answer to a question."""
    asked = question_from_wire(envelope)
    question = QuestionKind(asked.question) if asked.question in tuple(QuestionKind) else None
    if question is None or agent.questions is None:
        name = one_line(asked.question, 40, ascii_only=True) or "none"
        answer: dict[str, Any] = _error("UNKNOWN_QUESTION", f"this agent answers {', '.join(QuestionKind)}")
    elif agent.policy.remote_questions is RemoteQuestions.OFF:
        name, answer = question.value, _error("REFUSED_BY_POLICY", 'policy.json has "remote_questions": "off"')
    else:
        name = question.value
        answer = await _answered(agent, question, _seconds(agent, asked.expires_ms))
    await _record(agent, name, answer)
    return answer


def _seconds(agent: Agent, expires_ms: int) -> float:
    """Return the seconds that are left for an answer, by the plane's clock."""
    if not expires_ms:
        return ANSWER_SECONDS
    return min(expires_ms / 1000 - agent.plane.server_now(), ANSWER_SECONDS)


async def _answered(agent: Agent, question: QuestionKind, seconds: float) -> dict[str, Any]:
    assert agent.questions is not None
    found: Any = None
    with trio.move_on_after(max(seconds, 0.0)) as late:
        try:
            found = await agent.questions(question)
        except CertctrlError as error:
            return _error("FAILED", redact(one_line(str(error))))
        except Exception as error:  # a bug in one answer must not end the socket
            raise_if_replaced(error)
            log_line(
                agent.log, Line.BUG, kind=type(error).__name__, where=f"question {question}", why=type(error).__name__
            )
            return _error("FAILED", f"internal error ({type(error).__name__})")
    if late.cancelled_caught or seconds <= 0:
        return _error("TIMED_OUT", f"no answer within {max(seconds, 0.0):.0f} s")
    clean = _redacted(found)
    size = len(json.dumps({"answer": clean}, separators=(",", ":"), ensure_ascii=False).encode(errors="replace"))
    if size > MAX_ANSWER:
        return _error("TOO_LONG", f"the answer has {size // 1024} KiB, more than {MAX_ANSWER // 1024}")
    return {"answer": clean}


def _redacted(value: Any) -> Any:
    """Return JSON values with everything masked that looks like a secret."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, dict):
        return {redact(str(key)): _redacted(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_redacted(item) for item in value]
    return value


def _error(key: str, what: str) -> dict[str, Any]:
    return {"error": {"key": key, "what": what}}


async def _record(agent: Agent, question: str, answer: Mapping[str, Any]) -> None:
    """Log a question, and enter it in the audit log."""
    error = answer.get("error")
    if error is None:
        log_line(agent.log, Line.QUESTION_ANSWERED, question=question)
    else:
        log_line(agent.log, Line.QUESTION_REFUSED, question=question, key=error["key"], why=error["what"])
    outcome = "answered" if error is None else "refused"
    agent.counters.questions[outcome] += 1
    key, now = f"{question if question in tuple(QuestionKind) else 'unknown'} {outcome}", trio.current_time()
    if now - agent.audited.get(key, -AUDITED_EACH) < AUDITED_EACH:
        return
    agent.audited[key] = now
    entry = {
        "at": agent.wall_now(), "name": f"question: {question}", "asked_by": "plane", "outcome": outcome,
        "detail": error["key"] if error is not None else "",
    }  # fmt: skip
    try:
        await agent.offload(agent.store.installed.append_history, [entry], agent.config.application.history_entries)
    except DiskError:
        return  # the log has it
