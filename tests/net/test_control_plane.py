"""Polls, acks and install configs: requests, and how each answer is interpreted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pytest
from plane_answers import HTML, WALL, FakeHttp, ok, page, plane_of, refusal

from certctrl.errors import BadAnswerError, DeadlineError, PlaneError, TransportError
from certctrl.model.answer import Answer
from certctrl.model.config import AgentConfig, ApplicationConfig
from certctrl.net.control_plane import ControlPlane, UnsupportedByPlane
from certctrl.protocol import events
from certctrl.protocol.steps import Poll

# --- polling -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("wait", "deadline"), [(0, 30.0), (25, 30.0), (30, 35.0), (1, 6.0)])
async def test_the_request_and_deadline_of_a_poll(wait: int, deadline: float) -> None:
    http = FakeHttp(Answer(204, {"etag": '"7-0"'}, b""))
    event = await plane_of(http).poll("token", Poll("5-1", 20, wait))
    assert event == events.NoUpdates("7-0")
    (sent,) = http.sent
    assert (sent.method, sent.path) == ("GET", "/apiv1/devices/self/updates")
    assert sent.query == {"cursor": "5-1", "limit": "20", "wait": str(wait)}
    assert sent.headers == {"authorization": "Bearer token", "if-none-match": "5-1"}
    assert sent.deadline == deadline
    assert sent.cap == 1 << 20


async def test_an_agent_sends_its_instance_and_learns_of_clones() -> None:
    reported = {"etag": '"7-0"', "cert-ctrl-copies": "suspected"}
    http = FakeHttp(Answer(204, {"etag": '"7-0"'}, b""), Answer(204, reported, b""), page(502), Answer(204, {}, b""))
    config, suspected = AgentConfig(application=ApplicationConfig(server_url="https://plane.example")), []
    plane = ControlPlane(http, config, wall_now=lambda: WALL, instance="a7")
    for _ in range(4):
        await plane.poll("token", Poll("5-1", 20, 0))
        suspected.append(plane.copies_suspected)
    assert suspected == [False, True, True, False]
    assert {sent.headers["cert-ctrl-instance"] for sent in http.sent} == {"a7"}


@pytest.mark.parametrize(
    ("answer", "event"),
    [
        (TransportError("refused"), events.TransportFailed),
        (DeadlineError("late"), events.TransportFailed),
        (BadAnswerError("redirects"), events.BadAnswer),
        (HTML, events.BadAnswer),
        (page(403), events.BadAnswer),
        (refusal(403, "DEVICE_REVOKED"), events.DeviceRevoked),
        (refusal(401, "TOKEN_EXPIRED"), events.TokenExpired),
        (refusal(409, "CURSOR_EXPIRED"), events.CursorExpired),
        (refusal(503), events.ServerBusy),
    ],
)
async def test_every_result_of_a_poll_is_an_event(answer: Any, event: type) -> None:
    assert isinstance(await plane_of(FakeHttp(answer)).poll("t", Poll(None, 20, 0)), event)


# --- acks --------------------------------------------------------------------------------------------------------


async def test_outcomes_are_sent_in_the_notify_schema() -> None:
    http = FakeHttp(Answer(204, {}, b""))
    await plane_of(http).post_notify("t", [{"type": "signal.ack", "outcome": "applied"}])
    (sent,) = http.sent
    assert (sent.method, sent.path) == ("POST", "/apiv1/devices/self/notify")
    assert sent.json == {
        "schema": "certctrl.device.notify.v1",
        "events": [{"type": "signal.ack", "outcome": "applied"}],
    }


@pytest.mark.parametrize("status", [404, 405, 501])
async def test_a_plane_without_acks_is_distinguished_from_a_portal(status: int) -> None:
    with pytest.raises(UnsupportedByPlane) as caught:
        await plane_of(FakeHttp(refusal(status))).post_notify("t", [{}])
    assert caught.value.status == status
    with pytest.raises((BadAnswerError, PlaneError)) as portal:
        await plane_of(FakeHttp(page(status))).post_notify("t", [{}])
    assert not isinstance(portal.value, UnsupportedByPlane), "the plane has not answered yet"
    understood = plane_of(FakeHttp(Answer(204, {}, b""), page(status)))
    await understood.poll("t", Poll(None, 20, 0))
    with pytest.raises(UnsupportedByPlane):
        await understood.post_notify("t", [{}])
    lost = plane_of(FakeHttp(Answer(204, {}, b""), page(502), page(status)))
    await lost.poll("t", Poll(None, 20, 0))
    with pytest.raises(PlaneError):
        await lost.fetch_certificates("t")
    with pytest.raises((BadAnswerError, PlaneError)) as portal:
        await lost.post_notify("t", [{}])
    assert not isinstance(portal.value, UnsupportedByPlane), "the last answer was not the plane's"


@pytest.mark.parametrize("answer", [HTML, attrs.evolve(HTML, status=202)])
async def test_a_200_of_a_portal_does_not_accept_outcomes(answer: Answer) -> None:
    with pytest.raises(BadAnswerError):
        await plane_of(FakeHttp(answer)).post_notify("t", [{}])


async def test_other_refusals_of_acks_are_raised() -> None:
    for status in (400, 401, 403, 429, 500):
        with pytest.raises(PlaneError) as caught:
            await plane_of(FakeHttp(refusal(status))).post_notify("t", [{}])
        assert not isinstance(caught.value, UnsupportedByPlane)


@pytest.mark.parametrize(("status", "word"), [(429, "wait"), (500, "log"), (503, "log")])
async def test_errors_of_a_busy_plane_have_a_constant_fix(status: int, word: str) -> None:
    fixes = set()
    for seconds in (3, 4):
        with pytest.raises(PlaneError) as caught:
            await plane_of(FakeHttp(refusal(status, retry_after=seconds))).fetch_certificate("t", 1)
        fixes.add(caught.value.fix)
    (fix,) = fixes
    assert fix is not None and word in fix


# --- install config ------------------------------------------------------------------------------------------------

OWN = "/apiv1/users/7/devices/9/install-config"
LIVE = "/apiv1/devices/self/install-config"


async def test_an_install_config_comes_with_its_etag() -> None:
    http = FakeHttp(ok({"version": 3}, etag='"v3"'), Answer(304, {}, b""), ok({"version": 4}))
    plane = plane_of(http)
    assert await plane.fetch_install_config("t", 7, 9, None) == ('"v3"', {"version": 3})
    assert await plane.fetch_install_config("t", 7, 9, '"v3"') is None
    assert await plane.fetch_install_config("t", 7, 9, '"v3"') == ("", {"version": 4})
    assert [sent.path for sent in http.sent] == [OWN] * 3
    assert [sent.headers.get("if-none-match") for sent in http.sent] == [None, '"v3"', '"v3"']


async def test_the_working_path_is_used_first_from_then_on() -> None:
    http = FakeHttp(by_path={OWN: page(404), LIVE: ok({"version": 1})})
    plane = plane_of(http)
    for _ in range(3):
        assert await plane.fetch_install_config("t", 7, 9, None) == ("", {"version": 1})
    assert [sent.path for sent in http.sent] == [OWN, LIVE, LIVE, LIVE]
    http = FakeHttp(by_path={LIVE: ok({"version": 1})})
    assert await plane_of(http).fetch_install_config("t", 7, None, None), "a token without a device id"


async def test_a_missing_install_config_is_a_404() -> None:
    with pytest.raises(PlaneError) as caught:
        await plane_of(FakeHttp(by_path={OWN: refusal(404), LIVE: page(404)})).fetch_install_config("t", 7, 9, None)
    assert caught.value.status == 404


@pytest.mark.parametrize("answer", [ok([1]), ok("x"), ok(None), HTML, Answer(304, {}, b""), Answer(204, {}, b"")])
async def test_an_invalid_install_config_is_refused(answer: Answer) -> None:
    with pytest.raises(BadAnswerError):
        await plane_of(FakeHttp(answer)).fetch_install_config("t", 7, 9, None)


@pytest.mark.parametrize("etag", ["x" * 300, "a\x80b", "a\nb"])
async def test_an_etag_that_is_not_valid_in_a_header_is_dropped(etag: str) -> None:
    found = await plane_of(FakeHttp(ok({"version": 1}, etag=etag))).fetch_install_config("t", 7, 9, None)
    assert found == ("", {"version": 1})


# --- all requests ---------------------------------------------------------------------------------------------------

CALLS: list[Callable[[ControlPlane], Any]] = [
    lambda plane: plane.fetch_certificates("canary-token"),
    lambda plane: plane.fetch_certificate("canary-token", 4),
    lambda plane: plane.fetch_materials("canary-token", 4),
    lambda plane: plane.fetch_ca("canary-token", 3),
    lambda plane: plane.start_grant(),
    lambda plane: plane.register(
        device_public_id="u", public_key=b"p" * 32, name="n", platform="p", model="m", enrolment_token="canary-et"
    ),
    lambda plane: plane.refresh("canary-rt", "uuid"),
]
BODIES = [
    b"", b"<html>canary-body</html>", b"null", b"[]", b"{}", b'{"data":', b'{"data": "canary-body"}',
    b'{"data": 1e999}', b'{"data": {"access_token": 5}}', b"\xff\xfe", b"[" * 5000, b'{"error": "canary-body"}',
    b'{"error": {"code": "x"}}', b'{"error": {"what": "no", "key": "DEVICE_REVOKED", "code": 4003}}',
]  # fmt: skip
KINDS = ["application/json", "text/html", ""]


@pytest.mark.parametrize("status", [200, 201, 204, 400, 401, 403, 404, 409, 418, 429, 500, 502, 503])
async def test_any_answer_raises_one_of_our_errors_at_most(status: int, caplog: pytest.LogCaptureFixture) -> None:
    """Every call × status × body × content type: PlaneError or TransportError, without a secret in the text."""
    for call in CALLS:
        for body in BODIES:
            for kind in KINDS:
                answer = Answer(status, {"content-type": kind, "retry-after": "1e400"}, body)
                plane = plane_of(FakeHttp(*[answer] * 3))
                with pytest.raises((PlaneError, BadAnswerError)) as caught:
                    await call(plane)
                assert "canary" not in f"{caught.value}{caught.value!r}{caught.value.fix}{caplog.text}"
                if isinstance(caught.value, PlaneError):
                    assert status >= 400
                    assert kind == "application/json" or status == 429 or status >= 500


async def test_429_and_5xx_mean_later_in_any_form() -> None:
    for status in (429, 500, 502, 503, 504):
        answer = Answer(status, {"content-type": "text/html", "retry-after": "17"}, b"<html>")
        with pytest.raises(PlaneError) as caught:
            await plane_of(FakeHttp(answer)).fetch_certificates("t")
        assert (caught.value.status, caught.value.retry_after) == (status, 17.0)


async def test_a_bearer_challenge_without_a_body_is_a_401() -> None:
    answer = Answer(401, {"www-authenticate": 'Bearer realm="x"'}, b"")
    with pytest.raises(PlaneError) as caught:
        await plane_of(FakeHttp(answer)).fetch_certificates("t")
    assert caught.value.status == 401
    with pytest.raises(BadAnswerError):
        await plane_of(FakeHttp(Answer(401, {"www-authenticate": "Basic"}, b""))).fetch_certificates("t")


async def test_the_planes_clock_is_read_from_every_answer() -> None:
    at_wall = "Mon, 21 Sep 2026 14:13:20 GMT"
    http = FakeHttp(
        Answer(204, {"date": at_wall}, b""),
        Answer(503, {"date": "Mon, 21 Sep 2026 15:13:20 GMT"}, b""),
        Answer(204, {"date": "yesterday"}, b""),
    )
    plane = plane_of(http)
    assert plane.server_skew is None
    assert plane.server_now() == WALL
    await plane.poll("t", Poll(None, 20, 0))
    assert plane.server_skew == 0.5
    await plane.poll("t", Poll(None, 20, 0))
    assert plane.server_skew == 3600.5
    assert plane.server_now() == WALL + 3600.5
    assert plane.own_signal_ms() == (WALL + 3599.5) * 1000, "not after the plane's time, which is between 3600 and 3601"
    await plane.poll("t", Poll(None, 20, 0))
    assert plane.server_skew == 3600.5, "an invalid date is ignored"
