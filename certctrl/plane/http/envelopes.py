"""Envelopes: the messages of a push socket (docs/protocol.md), as JSON texts."""

from __future__ import annotations

import json
from typing import Any

from certctrl import lean
from certctrl.plane.http.reading import parsed_json

PROTOCOL = "certctrl.v1"
HELLO = "lifecycle.hello"
HELLO_ACK = "lifecycle.hello_ack"
ERROR = "lifecycle.error"
SIGNAL = "updates.signal"
ACK = "updates.ack"
OUTCOMES = "updates.outcomes"
OUTCOMES_ACK = "updates.outcomes_ack"
FRESH = "session.token"
FRESH_ACK = "session.token_ack"
QUESTION = "ask.question"
ANSWER = "ask.answer"
_LONGEST_ID = 1024


@lean.frozen
class Envelope:
    """One message of an agent."""

    type: str
    id: str
    """Empty if there is none."""
    data: Any


def read_envelope(text: str) -> Envelope:
    """Return a message; ValueError for anything but a JSON object with a type, ErrorResponse 400 for too many values."""
    value = parsed_json(text)
    if not isinstance(value, dict) or not isinstance(value.get("type"), str):
        raise ValueError("not an envelope")
    name = value.get("id")
    if name is not None and not (isinstance(name, str) and len(name) <= _LONGEST_ID):
        raise ValueError("the id is not a text")
    return Envelope(value["type"], name or "", value.get("data"))


def envelope(type_: str, data: Any = None, name: str = "") -> str:
    """Return a message as text; ``name`` is its id."""
    value = {"type": type_} | ({"id": name} if name else {}) | ({} if data is None else {"data": data})
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
