"""Retry-After: seconds or a date, in header or body, bounded; invalid values are ignored."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wire_answers import HTML, JSON, SIGNAL, answer, error

from certctrl.model.answer import Answer
from certctrl.protocol.events import NoUpdates, ServerBusy
from certctrl.protocol.wire.answer import http_date, retry_after
from certctrl.protocol.wire.poll import poll_event

NOW = 1_736_900_000.0  # 2025-01-15 00:13:20 UTC
DATE = "Wed, 15 Jan 2025 00:13:20 GMT"
SECONDS = [
    ("30", 30.0), ("0", 0.0), ("-1", 0.0), ("1.5", 1.5), ("1e9", 3600.0), ("1e400", 3600.0), ("-1e400", 0.0),
    ("9" * 400, 3600.0), ("3600", 3600.0), ("3601", 3600.0), (" 7 ", 7.0),
    ("Wed, 15 Jan 2025 00:14:20 GMT", 60.0), ("Wed, 15 Jan 2025 00:13:20 GMT", 0.0),
    ("Wed, 15 Jan 2020 00:00:00 GMT", 0.0), ("Fri, 31 Dec 9999 23:59:59 GMT", 3600.0),
    ("Wednesday, 15-Jan-25 00:14:20 GMT", 60.0), ("Wed Jan 15 00:14:20 2025", 60.0),
    ("junk", None), ("", None), ("nan", None), ("inf", None), ("1_0", None), ("0x10", None), ("٣", None),
    ("Wed, 32 Jan 2025 00:14:20 GMT", None), ("Wed, 15 Foo 2025 00:14:20 GMT", None), ("12 monkeys", None),
    ("Wed, 15 Jan 2025 24:14:20 GMT", None), ("Wed, 15 Jan 0000 00:14:20 GMT", None),
]  # fmt: skip


@pytest.mark.parametrize(("text", "seconds"), SECONDS)
@pytest.mark.parametrize("status", [429, 503, 500, 200, 204])
def test_retry_after_in_the_header(status: int, text: str, seconds: float | None) -> None:
    assert retry_after(answer(status, retry_after=text), None, NOW) == seconds
    body: object = {"data": {"signals": [SIGNAL]}} if status == 200 else {"error": {}}
    event = poll_event(answer(status, body, retry_after=text), 20, NOW)
    assert event.retry_after == seconds  # type: ignore[union-attr]


PARAMS = [
    (30, 30.0), (0, 0.0), (-1, 0.0), (1.5, 1.5), (10**9, 3600.0), (10**400, 3600.0), ("45", 45.0), ("1e400", 3600.0),
    (True, None), (None, None), ([30], None), ({}, None), ("junk", None), ("", None),
]  # fmt: skip


@pytest.mark.parametrize(("value", "seconds"), PARAMS)
def test_retry_after_in_the_body(value: object, seconds: float | None) -> None:
    event = poll_event(error(429, "RATE_LIMITED", params={"retry_after": value}), 20)
    assert event == ServerBusy(429, seconds, "RATE_LIMITED")
    body = b'{"error":{"key":"RATE_LIMITED","params":{"retry_after":1e400}}}'
    assert poll_event(Answer(429, JSON, body), 20) == ServerBusy(429, 3600.0, "RATE_LIMITED")


@pytest.mark.parametrize("params", [None, [], "x", 5, [{"retry_after": 9}]])
def test_params_of_any_kind(params: object) -> None:
    assert poll_event(error(503, params=params), 20) == ServerBusy(503, None, "")


def test_the_header_comes_first_unless_it_is_invalid() -> None:
    both = error(429, params={"retry_after": 9})
    for text, seconds in (("30", 30.0), ("-1", 0.0), ("junk", 9.0)):
        event = poll_event(Answer(429, {**both.headers, "retry-after": text}, both.body), 20)
        assert event == ServerBusy(429, seconds, "")


def test_an_html_page_may_request_a_delay() -> None:
    for text, now in (("30", None), ("Wed, 15 Jan 2025 00:13:50 GMT", NOW)):
        html = {"content-type": "text/html", "retry-after": text}
        for status, seconds in ((429, 30.0), (500, 30.0), (503, 30.0), (403, None), (430, None), (499, None)):
            event = poll_event(Answer(status, html, HTML.encode()), 20, now)
            assert event.retry_after == seconds  # type: ignore[union-attr]


def test_a_page_without_signals_may_request_a_delay() -> None:
    assert poll_event(answer(200, {"data": {}}, retry_after="30"), 20) == NoUpdates(None, status=200, retry_after=30.0)


def test_a_date_is_relative_to_the_server_s_own_clock() -> None:
    later = "Wed, 15 Jan 2025 00:14:20 GMT"
    assert retry_after(answer(503, retry_after=later, date=DATE), None, 0.0) == 60.0
    assert retry_after(answer(503, retry_after=later)) is None, "without any clock there is no delay"


@given(st.text(max_size=60))
def test_any_text_is_a_date_or_not(text: str) -> None:
    http_date(text)
    found = retry_after(answer(503, retry_after=text), None, NOW)
    assert found is None or 0 <= found <= 3600


def test_http_dates() -> None:
    assert http_date(DATE) == NOW
    assert http_date("Sun, 06 Nov 1994 08:49:37 GMT") == 784_111_777
    assert http_date("Sunday, 06-Nov-94 08:49:37 GMT") == 784_111_777
    assert http_date("Sun Nov  6 08:49:37 1994") == 784_111_777
    assert http_date("Sat, 31 Dec 2016 23:59:60 GMT") == 1_483_228_800  # a leap second
