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
from certctrl.protocol.wire.answer import parse_error, retry_after
from certctrl.protocol.wire.poll import cursor_from_wire, error_event, page_from_wire
from certctrl.protocol.wire.reader import parse_json
from certctrl.text import kind_of, one_line

STREAM_PATH = "/apiv1/devices/self/stream"
SUBPROTOCOL = "certctrl.v1"
MAX_SENT = 262_144
"""Bytes of a message of the agent."""
MAX_RECEIVED = 1_048_576
"""Bytes of a message of the plane."""
PING_SECONDS = 25.0
MIN_PING, MAX_PING = 5.0, 120.0
"""Bounds of the interval that the plane may ask for."""
MAX_ID = 1024
"""Characters; a cursor is one."""

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


def envelope_from_text(text: str) -> Envelope:
    """Return a message of the plane; raises BadAnswerError for anything else."""
    value = parse_json(text)
    if not isinstance(value, dict):
        raise BadAnswerError(f"expected a JSON object, got {kind_of(value)}")
    kind, number = value.get("type"), value.get("id", "")
    if not isinstance(kind, str) or not 0 < len(kind) <= 128:
        raise BadAnswerError("a message has no type")
    if not isinstance(number, str) or len(number) > MAX_ID:
        raise BadAnswerError("a message has an invalid id")
    return Envelope(kind, number, value.get("data"))


def envelope_text(kind: str, *, id: str = "", data: Any = None) -> str:
    """Return a message of the agent."""
    message: dict[str, Any] = {"type": kind}
    message |= {"id": id} if id else {}
    message |= {} if data is None else {"data": data}
    text = json.dumps(message, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode(errors="replace").decode()  # as in a request: ``?`` for what UTF-8 lacks


@lean.frozen
class Greeting:
    """The plane's answer to a hello."""

    resume_token: str | None
    ping_seconds: float = PING_SECONDS


def greeting_from_wire(envelope: Envelope) -> Greeting:
    """Return the answer to a hello; raises BadAnswerError if it does not fit."""
    data = _object(envelope)
    token, ping = data.get("resume_token"), data.get("ping_seconds", PING_SECONDS)
    if token is not None:
        token = cursor_from_wire(token)
    if isinstance(ping, bool) or not isinstance(ping, int | float):
        raise BadAnswerError("ping_seconds is not a number")
    return Greeting(token, min(max(float(ping), MIN_PING), MAX_PING))


def page_event(envelope: Envelope, limit: int) -> Updates:
    """Return the event for a page; raises BadAnswerError for one without signals or cursor."""
    data = _object(envelope)
    cursor, signals = page_from_wire(data)
    cursor = cursor or (cursor_from_wire(envelope.id) if envelope.id else None)
    if cursor is None or not signals:
        raise BadAnswerError("a page has no cursor" if cursor is None else "a page has no signals")
    full = data.get("more") is True or len(signals) >= limit
    return Updates(cursor, signals, full, pushed=True)


def error_from_wire(envelope: Envelope) -> PlaneError:
    """Return the error in a message; raises BadAnswerError if it does not fit."""
    data = _object(envelope)
    status = data.get("status")
    if type(status) is not int or not 400 <= status <= 599:
        raise BadAnswerError("an error has no status")
    body = json.dumps({"error": data.get("error")}).encode()
    return parse_error(Answer(status, {"content-type": "application/json"}, body))


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
        return DeviceRevoked(what or "the control plane closed the connection for good")
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
        params = parse_json(reason)
    except BadAnswerError:
        return None
    return retry_after(Answer(503, {}, b""), params)


def _object(envelope: Envelope) -> dict[str, Any]:
    if not isinstance(envelope.data, dict):
        raise BadAnswerError(f"{one_line(envelope.type, 40)} has no data")
    return envelope.data
