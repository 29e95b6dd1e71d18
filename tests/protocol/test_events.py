"""How status and logs name the answers to polls."""

from __future__ import annotations

import pytest

from certctrl.model.signals import CertRenewed
from certctrl.protocol import events
from certctrl.protocol.events import POLL_ANSWERS, POLL_ENDS, PollAnswer, PollEnd, poll_code, poll_text

ONE, TWO = (CertRenewed(1, 7),), (CertRenewed(1, 7), CertRenewed(1, 8))

ANSWERS: list[tuple[PollAnswer, int | None, str]] = [
    (events.NoUpdates("1-1"), 204, "204 No Content"),
    (events.NoUpdates("1-1", status=200), 200, "200 OK, no signals"),
    (events.Updates("1-1", ONE, False), 200, "200 OK, 1 signal"),
    (events.Updates("1-1", TWO, False, status=206), 206, "206 OK, 2 signals"),
    (events.TokenExpired(), 401, "401 access token expired"),
    (events.DeviceRevoked("x"), 403, "403 device revoked"),
    (events.CursorExpired(), 409, "409 cursor expired"),
    (events.ServerBusy(503), 503, "503 server busy"),
    (events.ServerBusy(429, key="RATE_LIMITED"), 429, "429 RATE_LIMITED"),
    (events.Refused(404, "NOT_FOUND", 40401, "no such page"), 404, "404 NOT_FOUND"),
    (events.Refused(400, "", 0, "no such page"), 400, "400 no such page"),
    (events.BadAnswer("HTML", status=502), 502, "unusable answer: HTML"),
    (events.BadAnswer("a redirect"), None, "unusable answer: a redirect"),
    (events.TransportFailed("no route"), None, "no answer: no route"),
]
OTHER_ENDS: list[tuple[PollEnd, str]] = [
    (events.RefreshFailed("busy"), "token refresh failed: busy"),
    (events.RefreshRefused("revoked"), "refresh token refused: revoked"),
    (events.ResyncFailed("no list"), "comparison with the plane failed: no list"),
]


@pytest.mark.parametrize(("event", "code", "text"), ANSWERS, ids=lambda value: type(value).__name__)
def test_an_answer_has_a_status_and_a_line(event: PollAnswer, code: int | None, text: str) -> None:
    assert (poll_code(event), poll_text(event)) == (code, text)


@pytest.mark.parametrize(("event", "text"), OTHER_ENDS, ids=lambda value: type(value).__name__)
def test_a_poll_that_was_not_sent_has_a_line(event: PollEnd, text: str) -> None:
    assert poll_text(event) == text


def test_no_event_was_forgotten() -> None:
    assert {type(event) for event, _, _ in ANSWERS} == set(POLL_ANSWERS)
    assert {type(event) for event, _ in OTHER_ENDS} == set(POLL_ENDS) - set(POLL_ANSWERS)
