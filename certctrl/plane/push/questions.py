"""Questions of operators to live agents, and their answers, in a table that all processes of a plane share.

A row records who asked what, when, and with which result. The answer is kept only until it has been read.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import Any

from certctrl import lean
from certctrl.model.questions import MAX_ANSWER, MAX_OPEN, MAX_SECONDS, QuestionKind
from certctrl.plane.clock import when
from certctrl.plane.errors import ErrorResponse, bad_request, conflict, rate_limited, unavailable
from certctrl.plane.storage.database import Database, Row, marks
from certctrl.plane.storage.signal_stream import SignalStream
from certctrl.protocol.wire.reader import json_object, or_default, text, wire_class
from certctrl.text import one_line

_KEPT_SECONDS = 90 * 86_400.0
"""Seconds for which the record of a question is kept."""
_UNREAD_SECONDS = 300.0
"""Seconds for which an answer is kept that the asking process has not read."""
_NO_ANSWER = 504
_AGAIN_SECONDS = 5
"""Seconds after which an operator may ask again at a control plane that was stopping."""

log = logging.getLogger("certctrl.Plane")


class Result(StrEnum):
    """The result of a question; empty while it is open."""

    OPEN = ""
    ANSWERED = "answered"
    REFUSED_BY_POLICY = "refused_by_policy"
    UNKNOWN_QUESTION = "unknown_question"
    TOO_LONG = "too_long"
    TIMED_OUT = "timed_out"
    STOPPED = "stopped"
    """The process that was asked has stopped."""
    FAILED = "failed"


_OF_KEYS = {
    "REFUSED_BY_POLICY": Result.REFUSED_BY_POLICY,
    "UNKNOWN_QUESTION": Result.UNKNOWN_QUESTION,
    "TOO_LONG": Result.TOO_LONG,
    "TIMED_OUT": Result.TIMED_OUT,
}
_TEXTS = {
    Result.REFUSED_BY_POLICY: "its policy refuses remote questions",
    Result.UNKNOWN_QUESTION: "its agent does not know this question",
    Result.TOO_LONG: f"its answer is longer than {MAX_ANSWER // 1024} KiB",
    Result.TIMED_OUT: "its agent did not answer in time",
    Result.STOPPED: "the control plane is stopping",
    Result.FAILED: "its agent could not answer",
}


@lean.frozen
class Question:
    """An open question."""

    id: int
    device_id: int
    kind: str
    expires_at: float
    """Seconds since the epoch."""


@lean.frozen
class Reply:
    """An agent's reply: an answer, or why there is none."""

    result: Result
    answer: str = ""
    """A JSON object."""
    detail: str = ""


@lean.frozen(kw_only=True)
class _Refusal:
    key: str = ""
    what: str = ""


@lean.frozen(kw_only=True)
class _Message:
    """The data of an agent's message: one of two."""

    answer: Mapping[str, Any] | None = None
    error: _Refusal | None = None


_read_refusal = wire_class(_Refusal, {"key": or_default(text(), ""), "what": or_default(text(), "")})
_read_message = wire_class(_Message, {"answer": or_default(json_object), "error": or_default(_read_refusal)})


def reply_of(data: object) -> Reply:
    """Return the reply in the ``data`` of an agent's message; anything else counts as a failure to answer."""
    message: _Message = or_default(_read_message, _Message())(data)
    if message.error is not None:
        result = _OF_KEYS.get(message.error.key, Result.FAILED)
        return Reply(result, detail=one_line(message.error.what, 200))
    if message.answer is None:
        return Reply(Result.FAILED, detail="the answer is not an object")
    answer = json.dumps(message.answer, ensure_ascii=False, separators=(",", ":"))
    return Reply(Result.TOO_LONG) if len(answer) > MAX_ANSWER else Reply(Result.ANSWERED, answer)


class Questions:
    """The table; methods run in the caller's unit of work."""

    def __init__(self, database: Database, stream: SignalStream, wall_now: Callable[[], float]) -> None:
        self._db = database
        self._stream = stream
        self._wall_now = wall_now

    def ask(self, device_id: int, kind: str, seconds: int, asked_by: str) -> Question:
        """Store a question, and wake the socket of its device; ErrorResponse 400 and 429."""
        if kind not in tuple(QuestionKind):
            raise bad_request(f"question must be one of {', '.join(QuestionKind)}", field="question")
        if not 1 <= seconds <= MAX_SECONDS:
            raise bad_request(f"timeout_seconds must be 1 to {MAX_SECONDS}", field="timeout_seconds")
        now = self._wall_now()
        # The row of the stream is locked, so that the limit holds whichever processes ask.
        self._db.one_locked("SELECT device_id FROM streams WHERE device_id = ?", device_id)
        row = self._db.one(
            "SELECT count(*) AS n FROM questions WHERE device_id = ? AND result = '' AND expires_at > ?", device_id, now
        )
        if row is not None and row["n"] >= MAX_OPEN:
            allowed = f"{MAX_OPEN} open questions"
            raise rate_limited(1.0, allowed, f"This device has {allowed} already")
        question_id = self._db.insert(
            "INSERT INTO questions (device_id, question, asked_by, asked_at, expires_at) VALUES (?, ?, ?, ?, ?)",
            *(device_id, kind, asked_by, now, now + seconds),
        )
        self._stream.wake_after_commit(device_id)
        return Question(question_id, device_id, kind, now + seconds)

    def waiting(self, device_ids: Sequence[int]) -> dict[int, tuple[Question, ...]]:
        """Return the open questions of devices that have some."""
        found: dict[int, tuple[Question, ...]] = {}
        for row in self._open(f"device_id IN ({marks(device_ids)})", *device_ids):
            one = Question(row["id"], row["device_id"], row["question"], row["expires_at"])
            found[one.device_id] = (*found.get(one.device_id, ()), one)
        return found

    def devices(self) -> list[int]:
        """Return the devices with open questions."""
        return sorted({row["device_id"] for row in self._open("id > 0")})

    def _open(self, condition: str, *parameters: Any) -> list[Row]:
        sql = f"SELECT * FROM questions WHERE result = '' AND expires_at > ? AND {condition} ORDER BY id LIMIT 1000"
        return self._db.all(sql, self._wall_now(), *parameters)

    def end(self, device_id: int, question_id: int, reply: Reply) -> bool:
        """Store the result of a device's question; return False if it has already ended."""
        ended = self._db.run(
            "UPDATE questions SET result = ?, answer = ?, detail = ?, ended_at = ?"
            " WHERE id = ? AND device_id = ? AND result = ''",
            *(reply.result.value, reply.answer, reply.detail, self._wall_now(), question_id, device_id),
        )
        if ended:
            self._stream.wake_after_commit(device_id)
        return bool(ended)

    def take(self, question: Question) -> dict[str, Any] | None:
        """Return the record of an ended question with its answer, and delete the answer; None while it is open."""
        row = self._db.one("SELECT * FROM questions WHERE id = ?", question.id)
        if row is None or row["result"] == Result.OPEN:
            return None
        if row["answer"]:
            self._db.run("UPDATE questions SET answer = '' WHERE id = ?", question.id)
        return _shown(row) | {"answer": json.loads(row["answer"]) if row["answer"] else None}

    def recent(self, device_id: int, limit: int) -> list[dict[str, Any]]:
        """Return the records of a device's questions, the newest first, without answers."""
        rows = self._db.all("SELECT * FROM questions WHERE device_id = ? ORDER BY id DESC LIMIT ?", device_id, limit)
        return [_shown(row) for row in rows]

    def delete_expired(self) -> None:
        """End questions whose process has died, drop answers that were not read, and delete old records."""
        now = self._wall_now()
        sql = "UPDATE questions SET result = ?, ended_at = ? WHERE result = '' AND expires_at < ?"
        self._db.run(sql, Result.TIMED_OUT.value, now, now - _UNREAD_SECONDS)
        self._db.run("UPDATE questions SET answer = '' WHERE answer != '' AND ended_at < ?", now - _UNREAD_SECONDS)
        self._db.run("DELETE FROM questions WHERE asked_at < ?", now - _KEPT_SECONDS)


def _shown(row: Row) -> dict[str, Any]:
    ended = row["ended_at"]
    return {
        "id": row["id"],
        "device_id": row["device_id"],
        "question": row["question"],
        "asked_by": row["asked_by"],
        "asked_at": when(row["asked_at"]),
        "result": row["result"] or "open",
        "detail": row["detail"],
        "seconds": None if ended is None else round(max(0.0, ended - row["asked_at"]), 3),
    }


def refusal(name: str, record: dict[str, Any]) -> ErrorResponse:
    """Return the response for a question that has ended without an answer."""
    result = Result(record["result"])
    what = f"{name}: {_TEXTS[result]}" + (f": {record['detail']}" if record["detail"] else "")
    if result is Result.TIMED_OUT:
        return ErrorResponse(what, status=_NO_ANSWER, key="TIMED_OUT", code=5040)
    if result is Result.STOPPED:
        return unavailable(what, _AGAIN_SECONDS)
    return conflict(what, result.name)
