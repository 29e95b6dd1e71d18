"""Messages of the push socket."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certctrl.errors import BadAnswerError, PlaneError
from certctrl.protocol import events
from certctrl.protocol.wire import push
from certctrl.protocol.wire.push import Envelope

RENEWED = {"type": "cert.renewed", "ts_ms": 1, "ref": {"cert_id": 7}}


def page(**data: object) -> Envelope:
    return Envelope(push.SIGNALS, "9-1", {"cursor": "9-1", "signals": [RENEWED], "more": False} | data)


@pytest.mark.parametrize("text", ["", "7", "[]", "nonsense", "{}", '{"type": 7}', '{"type": ""}', '{"type": "x", "id": 7}',
    '{"type": "x", "id": []}', json.dumps({"type": "x" * 200}), json.dumps({"type": "x", "id": "1" * 2000}), '{"type": NaN}',
    "[" * 5000, '{"type": "x", "data": ' + "[" * 100 + "]" * 100 + "}"])  # fmt: skip
def test_a_message_that_is_not_one_is_refused(text: str) -> None:
    with pytest.raises(BadAnswerError):
        push.envelope_from_text(text)


def test_a_message_may_have_no_id_and_no_data() -> None:
    assert push.envelope_from_text('{"type": "session.token_ack", "more": 1}') == Envelope("session.token_ack")


def test_a_message_of_the_agent_is_compact_and_has_no_empty_fields() -> None:
    assert push.envelope_text(push.ACK, id="5-1") == '{"type":"updates.ack","id":"5-1"}'
    assert push.envelope_text(push.HELLO, data={"cursor": None, "limit": 20}) == (
        '{"type":"lifecycle.hello","data":{"cursor":null,"limit":20}}'
    )


def test_what_utf8_lacks_is_replaced() -> None:
    assert push.envelope_text("x", data={"path": "/a\udcff"}) == '{"type":"x","data":{"path":"/a?"}}'


def test_a_page_is_the_event_of_a_poll() -> None:
    event = push.page_event(page(), 20)
    assert isinstance(event, events.Updates)
    assert (event.cursor, len(event.signals), event.full, event.pushed) == ("9-1", 1, False, True)


@pytest.mark.parametrize(
    ("data", "limit", "full"), [({"more": True}, 20, True), ({}, 1, True), ({"more": 1}, 20, False)]
)
def test_a_page_that_has_more_behind_it_is_full(data: dict[str, Any], limit: int, full: bool) -> None:
    assert push.page_event(page(**data), limit).full is full


def test_the_id_is_the_cursor_if_the_data_have_none() -> None:
    assert push.page_event(page(cursor=None), 20).cursor == "9-1"


@pytest.mark.parametrize("data", [{"signals": []}, {"signals": None}, {"signals": {}}, {"signals": [RENEWED] * 1001},
    {"cursor": 7}, {"cursor": "a\nb"}, {"cursor": "x" * 2000}])  # fmt: skip
def test_a_page_without_signals_or_cursor_is_refused(data: dict[str, Any]) -> None:
    with pytest.raises(BadAnswerError):
        push.page_event(page(**data), 20)


@pytest.mark.parametrize("data", [None, [], "x", 7])
def test_a_page_without_data_is_refused(data: object) -> None:
    with pytest.raises(BadAnswerError):
        push.page_event(Envelope(push.SIGNALS, "9-1", data), 20)


def test_a_page_without_any_cursor_is_refused() -> None:
    with pytest.raises(BadAnswerError):
        push.page_event(Envelope(push.SIGNALS, "", {"signals": [RENEWED]}), 20)


def test_malformed_signals_do_not_fail_a_page() -> None:
    assert len(push.page_event(page(signals=[RENEWED, 7, {}]), 20).signals) == 3


@pytest.mark.parametrize(("asked", "used"), [(25, 25.0), (0, 5.0), (-3, 5.0), (1e9, 120.0), (7.5, 7.5)])
def test_the_ping_interval_is_bounded(asked: float, used: float) -> None:
    greeting = push.greeting_from_wire(Envelope(push.HELLO_ACK, "", {"resume_token": "1-1", "ping_seconds": asked}))
    assert greeting == push.Greeting("1-1", used)


@pytest.mark.parametrize(
    "data", [{"ping_seconds": "25"}, {"ping_seconds": True}, {"resume_token": 7}, {"resume_token": "a\nb"}, None]
)
def test_an_odd_greeting_is_refused(data: object) -> None:
    with pytest.raises(BadAnswerError):
        push.greeting_from_wire(Envelope(push.HELLO_ACK, "", data))


def test_a_greeting_may_have_no_position() -> None:
    assert push.greeting_from_wire(Envelope(push.HELLO_ACK, "", {})) == push.Greeting(None, 25.0)


@pytest.mark.parametrize(
    ("status", "error", "event"),
    [
        (409, {"code": 40901, "what": "old", "key": "CURSOR_EXPIRED"}, events.CursorExpired()),
        (401, {"code": 1, "what": "over", "key": "TOKEN_EXPIRED"}, events.TokenExpired()),
        (403, {"code": 1, "what": "gone", "key": "DEVICE_REVOKED"}, events.DeviceRevoked("gone")),
        (
            503,
            {"code": 1, "what": "x", "key": "BUSY", "params": {"retry_after": 7}},
            events.ServerBusy(503, 7.0, "BUSY"),
        ),
        (400, {"code": 1, "what": "no", "key": "BAD"}, events.Refused(400, "BAD", 1, "no")),
    ],
)
def test_a_refused_hello_is_the_event_of_a_refused_poll(status: int, error: object, event: events.PollAnswer) -> None:
    assert push.refusal_event(Envelope(push.ERROR, "", {"status": status, "error": error})) == event


@pytest.mark.parametrize(
    "data",
    [
        None,
        {},
        {"status": 200, "error": {}},
        {"status": "many", "error": {}},
        {"status": 409},
        {"status": 409, "error": 7},
    ],
)
def test_an_odd_refusal_is_a_bad_answer(data: object) -> None:
    assert isinstance(push.refusal_event(Envelope(push.ERROR, "", data)), events.BadAnswer)


def test_the_error_of_outcomes_keeps_its_status() -> None:
    error = push.error_from_wire(
        Envelope(push.ERROR, "4", {"status": 429, "error": {"code": 1, "what": "slow", "key": "RATE"}})
    )
    assert isinstance(error, PlaneError)
    assert (error.status, error.key) == (429, "RATE")


@pytest.mark.parametrize(
    ("code", "reason", "event"),
    [
        (4401, "", events.TokenExpired()),
        (4403, "revoked by an operator", events.DeviceRevoked("revoked by an operator")),
        (4409, "", events.Refused(409, "REPLACED", 0, "another connection of this device has replaced this one")),
        (1012, '{"retry_after": 12}', events.NoUpdates(None, retry_after=12.0)),
        (1012, '{"retry_after": 1e9}', events.NoUpdates(None, retry_after=3600.0)),
        (1013, '{"retry_after": 12}', events.ServerBusy(503, 12.0, "OVERLOADED")),
        (1013, "", events.ServerBusy(503, None, "OVERLOADED")),
        (1006, "", events.TransportFailed("the connection was closed")),
        (1008, "slow", events.TransportFailed("the connection was closed (1008: slow)")),
        (1009, "", events.TransportFailed("the connection was closed (1009)")),
    ],
)
def test_close_codes_are_what_the_session_knows(code: int, reason: str, event: events.PollAnswer) -> None:
    assert push.close_event(code, reason) == event


@pytest.mark.parametrize("reason", ["", "soon", "[]", '{"retry_after": "x"}', '{"retry_after": null}', "{"])
def test_a_restart_without_a_pause_is_a_lost_connection(reason: str) -> None:
    assert isinstance(push.close_event(1012, reason), events.TransportFailed)


@given(st.integers(1000, 4999), st.text(max_size=60))
def test_no_close_frame_raises_or_spoils_a_log_line(code: int, reason: str) -> None:
    assert events.poll_text(push.close_event(code, reason)).isprintable()
