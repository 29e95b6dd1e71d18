"""Messages of the push socket, in and out (docs/protocol.md, "Push"); they become the events of polls."""

from __future__ import annotations

import json
from typing import Any

from certctrl import lean
from certctrl.errors import BadAnswerError, PlaneError
from certctrl.model.answer import Answer
from certctrl.protocol.events import (
    BadAnswer,
    DeviceRevoked,
    NoUpdates,
    PollAnswer,
    Refused,
    ServerBusy,
    TokenExpired,
    TransportFailed,
    Updates,
)
from certctrl.protocol.wire.answer import ErrorBody, error_from, read_params, retry_after
from certctrl.protocol.wire.poll import cursor_from_wire, error_event, page_from_wire
from certctrl.protocol.wire.reader import (
    SAFE_INT,
    from_answer,
    integer,
    number,
    or_default,
    parse_json,
    text,
    unread,
    wire_class,
)
from certctrl.text import one_line

STREAM_PATH = "/apiv1/devices/self/stream"
SUBPROTOCOL = "certctrl.v1"
MAX_SENT = 262_144
"""Bytes of a message of the agent."""
MAX_RECEIVED = 1_048_576
"""Bytes of a message of the plane."""
PING_SECONDS = 25.0
MIN_PING, MAX_PING = 5.0, 120.0
"""Bounds of the interval that the plane may set."""
MAX_TYPE, MAX_ID = 128, 1024
"""Characters; the id may be a cursor."""

HELLO, HELLO_ACK, ERROR = "lifecycle.hello", "lifecycle.hello_ack", "lifecycle.error"
SIGNALS, ACK = "updates.signal", "updates.ack"
OUTCOMES, OUTCOMES_ACK = "updates.outcomes", "updates.outcomes_ack"
TOKEN, TOKEN_ACK = "session.token", "session.token_ack"
QUESTION, ANSWER = "ask.question", "ask.answer"

TOKEN_ENDED, DEVICE_IS_REVOKED, REPLACED = 4401, 4403, 4409
RESTART, OVERLOAD = 1012, 1013


@lean.frozen
class Envelope:
    """One message."""

    type: str
    id: str = ""
    data: Any = None


_read_envelope = wire_class(Envelope, {"type": text(MAX_TYPE), "id": text(MAX_ID), "data": unread})


def envelope_from_text(message: str) -> Envelope:
    """Return a message of the plane; raises BadAnswerError for anything else."""
    return envelope_of(parse_json(message))


def envelope_of(value: object) -> Envelope:
    """Return the message in a JSON value; raises BadAnswerError for anything else."""
    return from_answer(_read_envelope, value, "message")


def envelope_text(kind: str, *, id: str = "", data: Any = None) -> str:
    """Return a message as text."""
    message: dict[str, Any] = {"type": kind}
    message |= {"id": id} if id else {}
    message |= {} if data is None else {"data": data}
    found = json.dumps(message, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return found.encode(errors="replace").decode()  # as in a request: ``?`` for what UTF-8 lacks


@lean.frozen
class AskedQuestion:
    """A question of the plane; a member that does not fit counts as absent."""

    question: str = ""
    expires_ms: int = 0
    """By the plane's clock; 0: unknown."""


_read_question = wire_class(
    AskedQuestion,
    {"question": or_default(text(), ""), "expires_ms": or_default(integer(le=SAFE_INT, digits=False), 0)},
)


def question_from_wire(envelope: Envelope) -> AskedQuestion:
    """Return the question of a message; an empty one if there is none."""
    found: AskedQuestion = or_default(_read_question, AskedQuestion())(envelope.data)
    return found


@lean.frozen
class Greeting:
    """The plane's answer to a hello."""

    resume_token: str | None = None
    ping_seconds: float = PING_SECONDS


def _interval(value: Any, _: Any = None) -> float:
    return min(max(number(value), MIN_PING), MAX_PING)


_read_greeting = wire_class(
    Greeting, {"resume_token": lambda value, _=None: cursor_from_wire(value), "ping_seconds": _interval}
)


def greeting_from_wire(envelope: Envelope) -> Greeting:
    """Return the answer to a hello; raises BadAnswerError if it does not fit."""
    return from_answer(_read_greeting, envelope.data, envelope.type)


def page_event(envelope: Envelope, limit: int) -> Updates:
    """Return the event for a page; raises BadAnswerError for one without signals or cursor."""
    cursor, signals, more = page_from_wire(envelope.data)
    cursor = cursor or (cursor_from_wire(envelope.id) if envelope.id else None)
    if cursor is None or not signals:
        raise BadAnswerError("a page has no cursor" if cursor is None else "a page has no signals")
    return Updates(cursor, signals, more or len(signals) >= limit, pushed=True)


@lean.frozen
class _Refusal:
    status: int
    error: ErrorBody


_read_refusal = wire_class(_Refusal, {"status": integer(ge=400, le=599)})


def error_from_wire(envelope: Envelope) -> PlaneError:
    """Return the error in a message; raises BadAnswerError if it does not fit."""
    found = from_answer(_read_refusal, envelope.data, envelope.type)
    return error_from(found.status, found.error, retry_after(Answer(found.status, {}, b""), found.error.params))


def refusal_event(envelope: Envelope) -> PollAnswer:
    """Return the event for an error that answers a hello; never raises."""
    try:
        return error_event(error_from_wire(envelope))
    except BadAnswerError as error:
        return BadAnswer(error.what)


def close_event(code: int, reason: str) -> PollAnswer:
    """Return the event for a socket that the plane, or something in between, has closed."""
    what = one_line(reason, 80, ascii_only=True)
    if code == TOKEN_ENDED:
        return TokenExpired()
    if code == DEVICE_IS_REVOKED:
        return DeviceRevoked(what or "the control plane has revoked this device")
    if code == REPLACED:
        return Refused(409, "REPLACED", 0, "another connection of this device has replaced this one")
    pause = _pause(reason) if code in (RESTART, OVERLOAD) else None
    if code == RESTART and pause is not None:
        return NoUpdates(None, retry_after=pause)  # as a draining plane answers a poll: not a failure
    if code == OVERLOAD:
        return ServerBusy(503, pause, "OVERLOADED")
    if code in (1005, 1006):
        return TransportFailed("the connection was closed")
    return TransportFailed(f"the connection was closed ({code}{f': {what}' if what else ''})")


def _pause(reason: str) -> float | None:
    """Return the seconds that the reason of a close frame requests, clamped as a Retry-After."""
    try:
        params = from_answer(read_params, parse_json(reason), "reason")
    except BadAnswerError:
        return None
    return retry_after(Answer(503, {}, b""), params)
