"""Answers to a poll: every error in every shape, pages, cursors, and random bytes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wire_answers import HTML, JSON, SIGNAL, answer, error

from certctrl.errors import BadAnswerError, PlaneError
from certctrl.model.answer import Answer
from certctrl.model.signals import CertRenewed, MalformedSignal, UnknownSignal
from certctrl.protocol.events import (
    POLL_ANSWERS,
    BadAnswer,
    CursorExpired,
    DeviceRevoked,
    Event,
    NoUpdates,
    Refused,
    ServerBusy,
    TokenExpired,
    Updates,
)
from certctrl.protocol.wire.answer import data_of, parse_error
from certctrl.protocol.wire.canonical import canonical_json
from certctrl.protocol.wire.poll import PollRequest, cursor_of_etag, poll_event

# --- errors ------------------------------------------------------------------------------------------------

ROWS: dict[str, tuple[int, str, int, Event]] = {
    "400": (400, "BAD_LIMIT", 4000, Refused(400, "BAD_LIMIT", 4000, "no")),
    "401": (401, "TOKEN_EXPIRED", 4001, TokenExpired()),
    "401 other key": (401, "INVALID_TOKEN", 4002, TokenExpired()),
    "403 revoked": (403, "DEVICE_REVOKED", 4003, DeviceRevoked("no")),
    "403 other": (403, "FORBIDDEN", 4003, Refused(403, "FORBIDDEN", 4003, "no")),
    "404": (404, "NOT_FOUND", 4004, Refused(404, "NOT_FOUND", 4004, "no")),
    "409 by key": (409, "CURSOR_EXPIRED", 0, CursorExpired()),
    "409 by code": (409, "", 40901, CursorExpired()),
    "409 other": (409, "WRAP_PENDING", 4009, Refused(409, "WRAP_PENDING", 4009, "no")),
    "429": (429, "RATE_LIMITED", 4029, ServerBusy(429, None, "RATE_LIMITED")),
    "500": (500, "SERVER_ERROR", 5000, ServerBusy(500, None, "SERVER_ERROR")),
    "502": (502, "BAD_GATEWAY", 5002, ServerBusy(502, None, "BAD_GATEWAY")),
    "503": (503, "SERVICE_UNAVAILABLE", 5003, ServerBusy(503, None, "SERVICE_UNAVAILABLE")),
    "599": (599, "", 0, ServerBusy(599, None, "")),
}
ROW = pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)


@ROW
def test_each_error_as_json(row: tuple[int, str, int, Event]) -> None:
    status, key, code, event = row
    assert poll_event(error(status, key, code), 20) == event
    kind = "application/problem+json; charset=utf-8"
    body = error(status, key, code).body
    assert poll_event(Answer(status, {"content-type": kind}, body), 20) == event


def spoilt(row: tuple[int, str, int, Event]) -> dict[str, Answer]:
    """Return the same error in every shape outside the wire contract."""
    status, key, code, _ = row
    whole = error(status, key, code)
    wrong = {
        "a list": [],
        "text": "DEVICE_REVOKED",
        "a number": 40901,
        "null": None,
        "no error": {},
        "error is text": {"error": key},
        "error is null": {"error": None},
        "error is a list": {"error": [{"key": key, "code": code}]},
        "data instead": {"data": {"key": key, "code": code}},
    }
    return {
        "html": Answer(status, {"content-type": "text/html; charset=utf-8"}, HTML.encode()),
        "html said to be json": Answer(status, JSON, HTML.encode()),
        "json said to be html": Answer(status, {"content-type": "text/html"}, whole.body),
        "no content type": Answer(status, {}, whole.body),
        "empty": Answer(status, {}, b""),
        "empty json": Answer(status, JSON, b""),
        "truncated": Answer(status, JSON, whole.body[:-3]),
        "not utf-8": Answer(status, JSON, whole.body[:-1] + b"\xff}"),
        "too large": Answer(status, JSON, b" " * 1_048_577 + whole.body),
        **{name: answer(status, value) for name, value in wrong.items()},
    }


@ROW
def test_each_error_in_another_shape_changes_no_state(row: tuple[int, str, int, Event]) -> None:
    for name, spoilt_answer in spoilt(row).items():
        event = poll_event(spoilt_answer, 20)
        assert isinstance(event, BadAnswer), name
        assert event.status == row[0]
        assert "guest network" not in event.why, "a body is never quoted"


@pytest.mark.parametrize("wrong", [None, 5, True, ["DEVICE_REVOKED"], {"k": "DEVICE_REVOKED"}, "device_revoked", ""])
def test_a_key_of_the_wrong_type_is_ignored(wrong: object) -> None:
    assert isinstance(poll_event(error(403, wrong), 20), Refused)
    assert isinstance(poll_event(error(409, wrong), 20), Refused)


@pytest.mark.parametrize("wrong", ["40901", 40901.0, None, [40901], True, 10**400, -40901])
def test_a_code_of_the_wrong_type_is_ignored(wrong: object) -> None:
    assert isinstance(poll_event(error(409, "", wrong), 20), Refused)


@pytest.mark.parametrize("status", [300, 301, 302, 303, 304, 307, 308])
@pytest.mark.parametrize("key", ["", "DEVICE_REVOKED", "CURSOR_EXPIRED"])
def test_a_redirect_is_a_bad_answer(status: int, key: str) -> None:
    event = poll_event(error(status, key), 20)
    assert isinstance(event, BadAnswer)
    assert ("redirect" in event.why) is (status != 304)


@pytest.mark.parametrize("status", [201, 202, 203, 205, 206, 299])
def test_other_success_statuses_are_bad_answers(status: int) -> None:
    event = poll_event(answer(status, {"data": {"cursor": "c", "signals": []}}), 20)
    assert event == BadAnswer(f"status {status} is not an answer to a poll", status=status)


@pytest.mark.parametrize(
    ("challenge", "body", "event"),
    [
        ('Bearer realm="x"', b"", TokenExpired),
        ("bearer", b"", TokenExpired),
        ("Basic realm=wifi", b"", BadAnswer),
        ("", b"", BadAnswer),
        ("Bearer", b"<html>", BadAnswer),
        ("Bearerish", b"", BadAnswer),
    ],
)
def test_a_bodiless_401_counts_only_from_a_token_guard(challenge: str, body: bytes, event: type) -> None:
    assert isinstance(poll_event(answer(401, body, www_authenticate=challenge), 20), event)


def test_untrusted_text_is_made_printable() -> None:
    event = poll_event(error(403, "DEVICE_REVOKED", what="a\x1b[2J\u202e\n" + "x" * 500), 20)
    assert isinstance(event, DeviceRevoked)
    assert event.what.isprintable()
    assert len(event.what) == 200
    refused = poll_event(error(400, "K" * 300, what=["no"]), 20)
    assert isinstance(refused, Refused)
    assert len(refused.key) == 64
    assert refused.what == "status 400"


# --- pages and cursors -------------------------------------------------------------------------------------


def page(data: object, **headers: str) -> Event:
    return poll_event(answer(200, {"data": data}, **headers), 2)


@pytest.mark.parametrize(
    ("etag", "cursor"),
    [
        ("1736900000-5", "1736900000-5"),
        ('"1736900000-5"', "1736900000-5"),
        ('W/"1736900000-5"', "1736900000-5"),
        ('w/"a b"', "a b"),
        ("W/bare", "bare"),
        ('  "x" ', "x"),
        ('"', '"'),
        ('"half', '"half'),
        ("", None),
        ('""', None),
        ('W/""', None),
        ("   ", None),
        (None, None),
        ('" x"', None),
        ("a\tb", None),
        ("x" * 1024, "x" * 1024),
        ("x" * 1025, None),
    ],
)
def test_the_cursor_inside_an_etag(etag: str | None, cursor: str | None) -> None:
    assert cursor_of_etag(etag) == cursor
    headers = {} if etag is None else {"etag": etag}
    assert poll_event(Answer(204, headers, b""), 20) == NoUpdates(cursor)
    assert poll_event(Answer(204, headers | {"content-type": "text/html"}, b"<html>"), 20) == NoUpdates(cursor)


def test_a_page() -> None:
    event = page({"cursor": "c-2", "signals": [SIGNAL]}, etag="c-2")
    assert event == Updates("c-2", (CertRenewed(1736900124500, 9981),), False)


def test_body_beats_header_and_header_beats_nothing() -> None:
    assert page({"cursor": "body", "signals": [SIGNAL]}, etag='"header"').cursor == "body"  # type: ignore[union-attr]
    for unset in ({"cursor": None}, {"cursor": ""}, {}):
        assert page(unset | {"signals": [SIGNAL]}, etag='W/"header"').cursor == "header"  # type: ignore[union-attr]
        assert page(unset | {"signals": [SIGNAL]}).cursor is None  # type: ignore[union-attr]


@pytest.mark.parametrize(("count", "full"), [(1, False), (2, True), (3, True)])
def test_a_page_is_full_at_the_requested_size(count: int, full: bool) -> None:
    event = page({"cursor": "c", "signals": [SIGNAL] * count})
    assert isinstance(event, Updates)
    assert event.full is full
    assert len(event.signals) == count
    assert event.free is False


@pytest.mark.parametrize(("word", "free"), [("free", True), ("FREE", False), ("", False), ("yes", False)])
def test_the_header_for_a_free_next_page(word: str, free: bool) -> None:
    event = page({"cursor": "c", "signals": [SIGNAL]}, **{"cert-ctrl-next-page": word})
    assert isinstance(event, Updates)
    assert event.free is free


@pytest.mark.parametrize("signals", [{"signals": []}, {"signals": None}, {}])
def test_a_page_without_signals_is_no_updates(signals: dict[str, Any]) -> None:
    assert page({"cursor": "c"} | signals) == NoUpdates("c", status=200)


@pytest.mark.parametrize(
    "data",
    [None, [], "x", 5, {"signals": {}}, {"signals": "x"}, {"signals": 0}, {"cursor": 5, "signals": [SIGNAL]},
     {"cursor": ["c"]}, {"cursor": "a\nb"}, {"cursor": "x" * 1025}, {"cursor": " c"}, {"cursor": "a\x00"}],
)  # fmt: skip
def test_a_page_that_does_not_fit_is_a_bad_answer(data: object) -> None:
    assert isinstance(page(data), BadAnswer)


def test_a_success_without_data_is_a_bad_answer() -> None:
    for body in ({}, [], {"signals": []}):
        assert isinstance(poll_event(answer(200, body), 20), BadAnswer)
    for headers, body in (
        ({}, b"{}"),
        ({"content-type": "text/html"}, HTML.encode()),
        (JSON, b'{"data":'),
        (JSON, b""),
    ):
        assert isinstance(poll_event(Answer(200, headers, body), 20), BadAnswer)


def test_a_malformed_signal_does_not_affect_others() -> None:
    event = page({"cursor": "c", "signals": [5, SIGNAL, {"type": "new.thing", "ts_ms": 1, "ref": {}}]})
    assert isinstance(event, Updates)
    assert [type(signal) for signal in event.signals] == [MalformedSignal, CertRenewed, UnknownSignal]


def test_any_bytes_are_an_answer_to_a_poll() -> None:
    @given(
        st.integers(100, 599),
        st.sampled_from(["application/json", "text/html", ""]),
        st.binary(max_size=200) | st.just(b'{"data":{"cursor":"c","signals":[{}]}}') | st.just(b'{"error":{"key":1}}'),
        st.text(max_size=40),
    )
    def check(status: int, kind: str, body: bytes, header: str) -> None:
        event = poll_event(Answer(status, {"content-type": kind, "etag": header, "retry-after": header}, body), 20)
        assert isinstance(event, POLL_ANSWERS)
        if kind != "application/json":
            assert not isinstance(event, DeviceRevoked | CursorExpired | Updates)

    check()


# --- requests ----------------------------------------------------------------------------------------------


def test_requests() -> None:
    assert PollRequest(None, 20).query() == {"limit": "20", "wait": "0"}
    assert PollRequest(None, 20).headers() == {}
    request = PollRequest("1736900000-5", 100, 25)
    assert request.path == "/apiv1/devices/self/updates"
    assert request.query() == {"cursor": "1736900000-5", "limit": "100", "wait": "25"}
    assert request.headers() == {"if-none-match": "1736900000-5"}


@pytest.mark.parametrize("cursor", ["!", "~", "X", "a!b~", "W/x", "x" * 1024])
def test_a_cursor_of_visible_ascii_is_sent_in_a_header(cursor: str) -> None:
    assert PollRequest(cursor, 20).headers() == {"if-none-match": cursor}


@pytest.mark.parametrize("cursor", ["a,b", ",", 'a"b', '"', "a b", " ", "ü", "a\x7f", "a\n"])
def test_any_other_cursor_is_sent_in_the_query_only(cursor: str) -> None:
    assert PollRequest(cursor, 20).headers() == {}
    assert PollRequest(cursor, 20).query()["cursor"] == cursor


@given(st.text(max_size=20))
def test_any_cursor_gives_a_valid_header(cursor: str) -> None:
    for value in PollRequest(cursor, 20).headers().values():
        assert value.isascii() and value.isprintable()
        assert '"' not in value and " " not in value
    assert PollRequest(cursor, 20).query()["cursor"] == cursor


# --- other endpoints ---------------------------------------------------------------------------------------


def test_data_of_and_parse_error() -> None:
    assert data_of(answer(200, {"data": None})) is None
    with pytest.raises(BadAnswerError, match="not a success"):
        data_of(error(404))
    with pytest.raises(BadAnswerError, match="larger"):
        data_of(answer(200, {"data": "x" * 100}), cap=100)
    found = parse_error(error(409, "WRAP_PENDING", 7, "not sealed yet", {"retry_after": 5}))
    assert isinstance(found, PlaneError)
    assert (found.status, found.key, found.code, found.retry_after) == (409, "WRAP_PENDING", 7, 5.0)
    assert str(found) == "not sealed yet"
    for shape in spoilt(ROWS["403 revoked"]).values():
        with pytest.raises(BadAnswerError):
            parse_error(shape)


def test_secrets_stay_out_of_the_repr() -> None:
    assert "hunter2" not in repr(answer(200, {"data": "hunter2"}))
    assert canonical_json({"data": "hunter2"}) in answer(200, {"data": "hunter2"}).body.decode().replace(" ", "")
