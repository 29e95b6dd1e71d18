"""Device grants from the plane."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wire_answers import GRANT, JSON, answer

from certctrl.errors import BadAnswerError
from certctrl.model.answer import Answer
from certctrl.protocol.device_flow import (
    DeviceFlow,
    GrantDenied,
    GrantExpired,
    GrantFailed,
    GrantPending,
    GrantReady,
    GrantSlowDown,
    GrantUnusable,
    Refused,
)
from certctrl.protocol.wire.device_grant import grant_event, grant_from_wire


def test_a_grant() -> None:
    found = grant_from_wire(
        GRANT | {"interval": "7", "expires_in": 300, "verification_uri_complete": "https://p/d?c=A"}
    )
    assert (found.user_code, found.interval, found.expires_in) == ("ABCD-EFGH", 7.0, 300.0)
    assert found.verification_uri_complete == "https://p/d?c=A"
    assert "hunter2" not in repr(found)
    bare = grant_from_wire(GRANT | {"verification_uri_complete": ""})
    assert (bare.interval, bare.expires_in, bare.verification_uri_complete) == (5.0, 600.0, None)


@pytest.mark.parametrize(
    "change",
    [{"device_code": None}, {"user_code": "A\x1b[2J"}, {"user_code": "x" * 65}, {"verification_uri": "https://x/\n"},
     {"verification_uri_complete": 5}, {"interval": -1}, {"interval": 1.5}, {"interval": 10**6}, {"expires_in": 10**6}],
)  # fmt: skip
def test_a_grant_that_does_not_fit(change: dict[str, Any]) -> None:
    with pytest.raises(BadAnswerError, match=r"grant\."):
        grant_from_wire(GRANT | change)


READY = {"status": "ready", "user_id": "14", "registration_code": "hunter2", "registration_code_ttl": 60}


@pytest.mark.parametrize(
    ("data", "event"),
    [
        ({"status": "authorization_pending"}, GrantPending()),
        ({"status": "pending"}, GrantPending()),
        ({"status": "PENDING"}, GrantPending()),
        ({"status": "slow_down"}, GrantSlowDown()),
        ({"status": "access_denied"}, GrantDenied()),
        ({"status": "expired"}, GrantExpired()),
        ({"status": "expired_token"}, GrantExpired()),
        (READY, GrantReady(user_id=14, registration_code="hunter2", ttl=60.0)),
    ],
)
def test_each_status_of_a_grant(data: object, event: object) -> None:
    assert grant_event(answer(200, {"data": data})) == event
    assert "hunter2" not in repr(event)


@pytest.mark.parametrize("key", ["authorization_pending", "AUTHORIZATION_PENDING"])
def test_the_status_of_a_grant_may_be_the_key_of_an_error(key: str) -> None:
    assert grant_event(answer(400, {"error": {"key": key, "code": 1, "what": "wait"}})) == GrantPending()


@pytest.mark.parametrize("status", [200, 201, 299])
def test_any_success_may_contain_the_status_of_a_grant(status: int) -> None:
    assert grant_event(answer(status, {"data": {"status": "slow_down"}})) == GrantSlowDown()


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (answer(200, {"data": {}}), "data.status: missing"),
        (answer(200, {"data": {"status": "x" * 65}}), "data.status: longer than 64 characters"),
        (answer(200, {"data": {"status": "x" * 60}}), f"unknown grant status {'x' * 39}…"),
        (answer(200, {"data": {"status": "pending"}, "more": "x" * 262_144}), "the answer is larger than 262144 bytes"),
        (answer(300, {"data": {"status": "pending"}}), "the server redirects (status 300)"),
        (answer(404, {"error": {"key": "NOT_FOUND", "what": "gone"}}), "gone"),
    ],
)
def test_a_failed_poll_of_a_grant_says_why(given: Answer, why: str) -> None:
    event = grant_event(given)
    assert isinstance(event, GrantFailed) and event.why.startswith(why)


@pytest.mark.parametrize(
    "wrong",
    [
        answer(200, {"data": {"status": "maybe"}}),
        answer(200, {"data": {"status": 5}}),
        answer(200, {"data": {}}),
        answer(200, {"data": []}),
        answer(404, {"error": {"key": "NOT_FOUND"}}),
        answer(302, {"error": {"key": "access_denied"}}),
        Answer(200, {"content-type": "text/html"}, b"<html>access_denied</html>"),
        Answer(403, {"content-type": "text/html"}, b"<html>access_denied</html>"),
        Answer(200, JSON, b"{"),
        Answer(204, {}, b""),
    ],
)
def test_answers_without_a_grant_status(wrong: Answer) -> None:
    assert isinstance(grant_event(wrong), GrantFailed)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"registration_code": ""}, "data.registration_code: missing"),
        ({"registration_code": None}, "data.registration_code: missing"),
        ({"registration_code": 5}, "data.registration_code: expected text, got a whole number"),
        ({"user_id": 0}, "data.user_id: expected an integer from 1"),
    ],
)
def test_an_approval_that_allows_no_registration_ends_with_its_reason(change: dict[str, Any], why: str) -> None:
    event = grant_event(answer(200, {"data": READY | change}))
    assert isinstance(event, GrantUnusable) and why in event.why
    flow = DeviceFlow(grant_from_wire(GRANT), 0.0)
    flow.receive(event, 5.0)
    assert flow.next_step(5.0) == Refused(event.why)


def test_a_busy_plane_may_request_a_delay() -> None:
    busy = answer(503, {"error": {"key": "SERVICE_UNAVAILABLE", "what": "later", "params": {"retry_after": 30}}})
    assert grant_event(busy) == GrantFailed("later", 30.0)
    dated = {"retry-after": "Wed, 15 Jan 2025 00:14:20 GMT"}
    assert grant_event(Answer(503, JSON | dated, busy.body), 1_736_900_000.0) == GrantFailed("later", 60.0)


@given(st.integers(100, 599), st.sampled_from(["application/json", "text/html"]), st.binary(max_size=100))
def test_any_answer_that_says_nothing_is_a_failed_poll(status: int, kind: str, body: bytes) -> None:
    event = grant_event(Answer(status, {"content-type": kind}, body))
    assert isinstance(event, GrantFailed) and event.why and event.why.isprintable()


MEANING = {
    "authorization_pending": GrantPending(), "pending": GrantPending(), "slow_down": GrantSlowDown(),
    "access_denied": GrantDenied(), "denied": GrantDenied(), "expired": GrantExpired(), "expired_token": GrantExpired(),
}  # fmt: skip


@given(
    st.integers(200, 299) | st.integers(400, 599),
    st.sampled_from([*MEANING, "ready", "maybe", ""]),
    st.sampled_from([str.lower, str.upper, str.title]),
    st.sampled_from(["data", "error", "both"]),
    st.sampled_from(["application/json", "application/problem+json", "text/html"]),
)
def test_any_answer_is_the_event_that_it_names(
    status: int, word: str, spelled: Callable[[str], str], where: str, kind: str
) -> None:
    """A success is read in its data and a refusal in its error; a page that merely contains the word ends nothing."""
    parts = {"data": {"status": spelled(word)}, "error": {"key": spelled(word), "code": 1, "what": "said"}}
    body = parts if where == "both" else {where: parts[where]}
    event = grant_event(Answer(status, {"content-type": kind}, json.dumps(body).encode()))
    read = where == "both" or (where == "data") is (status < 300)
    if kind == "text/html" or not read or word in ("maybe", ""):
        assert isinstance(event, GrantFailed)
    elif word == "ready":
        assert isinstance(event, GrantUnusable if status < 300 else GrantFailed)
    else:
        assert event == MEANING[word]
