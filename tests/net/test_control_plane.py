"""What each call sends, what it makes of every kind of answer, and what it tolerates (api.md §1–§6, §8)."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import attrs
import pytest

from certctrl.errors import BadAnswerError, DeadlineError, PlaneError, TransportError
from certctrl.model.config import AgentConfig, ApplicationConfig, HttpClientConfig
from certctrl.net.control_plane import ControlPlane, UnsupportedByPlane
from certctrl.protocol import events
from certctrl.protocol.device_flow import GrantFailed, GrantPending, GrantReady
from certctrl.protocol.steps import Poll
from certctrl.protocol.wire import Answer

WALL = 1_790_000_000.0
HTML = Answer(200, {"content-type": "text/html"}, b"<html>Please sign in</html>")


@attrs.define
class Sent:
    """One request as the client handed it to the transport."""

    method: str
    path: str
    query: dict[str, Any]
    headers: dict[str, str]
    json: Any
    deadline: float
    cap: int


class FakeHttp:
    """Answers by (method, path), or by a list in order; keeps what was asked."""

    def __init__(self, *answers: Any, by_path: dict[str, Any] | None = None) -> None:
        self.answers = list(answers)
        self.by_path = by_path or {}
        self.sent: list[Sent] = []

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Any = None,
        headers: Any = None,
        json: Any = None,
        deadline: float,
        cap: int,
    ) -> Answer:
        self.sent.append(Sent(method, path, dict(query or {}), dict(headers or {}), json, deadline, cap))
        answer = self.by_path[path] if path in self.by_path else self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer() if callable(answer) else answer

    async def aclose(self) -> None:
        pass


def ok(data: Any, status: int = 200, **headers: str) -> Answer:
    return Answer(status, {"content-type": "application/json", **headers}, json.dumps({"data": data}).encode())


def refusal(status: int, key: str = "", what: str = "no", **params: Any) -> Answer:
    body = {"error": {"code": status * 10, "what": what, "key": key, "params": params}}
    return Answer(status, {"content-type": "application/json"}, json.dumps(body).encode())


def page(status: int) -> Answer:
    return Answer(status, {"content-type": "text/html"}, b"<html>404</html>")


def plane_of(http: FakeHttp, **application: Any) -> ControlPlane:
    config = AgentConfig(
        application=ApplicationConfig(server_url="https://plane.example", **application),
        httpclient=HttpClientConfig(request_timeout_seconds=30.0, long_poll_extra_seconds=5.0),
    )
    return ControlPlane(http, config, wall_now=lambda: WALL)


# --- polling -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("wait", "deadline"), [(0, 30.0), (25, 30.0), (30, 35.0), (1, 6.0)])
async def test_a_poll_names_cursor_limit_and_wait_and_has_the_right_deadline(wait: int, deadline: float) -> None:
    http = FakeHttp(Answer(204, {"etag": '"7-0"'}, b""))
    event = await plane_of(http).poll("token", Poll("5-1", 20, wait))
    assert event == events.NoUpdates("7-0")
    (sent,) = http.sent
    assert (sent.method, sent.path) == ("GET", "/apiv1/devices/self/updates")
    assert sent.query == {"cursor": "5-1", "limit": "20", "wait": str(wait)}
    assert sent.headers == {"authorization": "Bearer token", "if-none-match": "5-1"}
    assert sent.deadline == deadline
    assert sent.cap == 1 << 20


async def test_an_agent_names_itself_and_hears_of_copies() -> None:
    told = {"etag": '"7-0"', "cert-ctrl-copies": "suspected"}
    http = FakeHttp(Answer(204, {"etag": '"7-0"'}, b""), Answer(204, told, b""), page(502), Answer(204, {}, b""))
    config, heard = AgentConfig(application=ApplicationConfig(server_url="https://plane.example")), []
    plane = ControlPlane(http, config, wall_now=lambda: WALL, instance="a7")
    for _ in range(4):
        await plane.poll("token", Poll("5-1", 20, 0))
        heard.append(plane.copies_suspected)
    assert heard == [False, True, True, False]
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
async def test_every_ending_of_a_poll_is_an_event(answer: Any, event: type) -> None:
    assert isinstance(await plane_of(FakeHttp(answer)).poll("t", Poll(None, 20, 0)), event)


# --- acks --------------------------------------------------------------------------------------------------------


async def test_outcomes_go_out_in_the_schema() -> None:
    http = FakeHttp(Answer(204, {}, b""))
    await plane_of(http).post_notify("t", [{"type": "signal.ack", "outcome": "applied"}])
    (sent,) = http.sent
    assert (sent.method, sent.path) == ("POST", "/apiv1/devices/self/notify")
    assert sent.json == {
        "schema": "certctrl.device.notify.v1",
        "events": [{"type": "signal.ack", "outcome": "applied"}],
    }


@pytest.mark.parametrize("status", [404, 405, 501])
async def test_a_plane_without_acks_is_told_from_a_portal(status: int) -> None:
    with pytest.raises(UnsupportedByPlane) as caught:
        await plane_of(FakeHttp(refusal(status))).post_notify("t", [{}])
    assert caught.value.status == status
    with pytest.raises((BadAnswerError, PlaneError)) as portal:
        await plane_of(FakeHttp(page(status))).post_notify("t", [{}])
    assert not isinstance(portal.value, UnsupportedByPlane), "nobody said yet that this is the plane"
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
    assert not isinstance(portal.value, UnsupportedByPlane), "what answers is no longer the plane"


@pytest.mark.parametrize("answer", [HTML, attrs.evolve(HTML, status=202)])
async def test_a_portal_that_says_200_takes_no_outcome(answer: Answer) -> None:
    with pytest.raises(BadAnswerError):
        await plane_of(FakeHttp(answer)).post_notify("t", [{}])


async def test_other_refusals_of_acks_stay_refusals() -> None:
    for status in (400, 401, 403, 429, 500):
        with pytest.raises(PlaneError) as caught:
            await plane_of(FakeHttp(refusal(status))).post_notify("t", [{}])
        assert not isinstance(caught.value, UnsupportedByPlane)


@pytest.mark.parametrize(("status", "word"), [(429, "wait"), (500, "log"), (503, "log")])
async def test_a_busy_plane_comes_with_a_fix_that_is_always_the_same(status: int, word: str) -> None:
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


async def test_the_live_path_is_found_once_and_then_used_first() -> None:
    http = FakeHttp(by_path={OWN: page(404), LIVE: ok({"version": 1})})
    plane = plane_of(http)
    for _ in range(3):
        assert await plane.fetch_install_config("t", 7, 9, None) == ("", {"version": 1})
    assert [sent.path for sent in http.sent] == [OWN, LIVE, LIVE, LIVE]
    http = FakeHttp(by_path={LIVE: ok({"version": 1})})
    assert await plane_of(http).fetch_install_config("t", 7, None, None), "a token that names no device"


async def test_no_install_config_is_the_planes_404() -> None:
    with pytest.raises(PlaneError) as caught:
        await plane_of(FakeHttp(by_path={OWN: refusal(404), LIVE: page(404)})).fetch_install_config("t", 7, 9, None)
    assert caught.value.status == 404


@pytest.mark.parametrize("answer", [ok([1]), ok("x"), ok(None), HTML, Answer(304, {}, b""), Answer(204, {}, b"")])
async def test_what_is_no_install_config_is_refused(answer: Answer) -> None:
    with pytest.raises(BadAnswerError):
        await plane_of(FakeHttp(answer)).fetch_install_config("t", 7, 9, None)


@pytest.mark.parametrize("etag", ["x" * 300, "a\x80b", "a\nb"])
async def test_an_etag_that_could_not_be_sent_back_is_dropped(etag: str) -> None:
    found = await plane_of(FakeHttp(ok({"version": 1}, etag=etag))).fetch_install_config("t", 7, 9, None)
    assert found == ("", {"version": 1})


# --- certificates --------------------------------------------------------------------------------------------------


LIST = "/apiv1/devices/self/certificates"


def row(number: int, **fields: Any) -> dict[str, Any]:
    return {"id": number, "domain_name": f"c{number}.example", **fields}


async def test_the_certificate_list_is_read_to_its_end() -> None:
    numbers = list(range(1, 1201))

    def pages(sent: list[Sent]) -> Callable[[], Answer]:
        def answer() -> Answer:
            after = sent[-1].query["after_id"]
            return ok([row(n) for n in numbers if n > after][: sent[-1].query["limit"]])

        return answer

    http = FakeHttp()
    http.by_path[LIST] = pages(http.sent)
    found = await plane_of(http).fetch_certificates("t")
    assert [one.id for one in found] == numbers
    assert [sent.query["after_id"] for sent in http.sent] == [0, 500, 1000]


async def test_a_plane_that_knows_no_pages_ends_the_list_all_the_same() -> None:
    everything = ok([row(n) for n in range(900, 0, -1)])
    http = FakeHttp(everything, everything)
    assert len(await plane_of(http).fetch_certificates("t")) == 900
    assert len(http.sent) == 2


async def test_one_row_that_does_not_fit_fails_the_whole_list() -> None:
    """Left out, it would read as "unassigned", and its certificate would be taken out of use."""
    for broken in ({"id": 2}, {"id": True, "domain_name": "x"}, "x", None):
        with pytest.raises(BadAnswerError):
            await plane_of(FakeHttp(ok([row(1), broken]))).fetch_certificates("t")
    with pytest.raises(BadAnswerError):
        await plane_of(FakeHttp(ok({"1": row(1)}))).fetch_certificates("t")


async def test_an_endless_list_ends() -> None:
    start = iter(range(1, 10**9, 500))
    http = FakeHttp(by_path={LIST: lambda: (lambda first: ok([row(first + n) for n in range(500)]))(next(start))})
    with pytest.raises(BadAnswerError, match="does not end"):
        await plane_of(http).fetch_certificates("t")


async def test_a_certificate_is_the_one_asked_for() -> None:
    found = await plane_of(FakeHttp(ok(row(4, certificate_pem="PEM")))).fetch_certificate("t", 4)
    assert found.certificate_pem == "PEM"
    with pytest.raises(BadAnswerError, match="asked for certificate 4, got 5"):
        await plane_of(FakeHttp(ok(row(5)))).fetch_certificate("t", 4)


MATERIALS = "/apiv1/devices/self/certificates/4/deploy-materials"
BUNDLE = "/apiv1/devices/self/certificates/4/bundle"
DETAIL = "/apiv1/devices/self/certificates/4"
SEALED = {"enc_scheme": "aes256gcm", "enc_privkey_b64": "c2VjcmV0"}


async def test_complete_materials_need_one_request() -> None:
    for chain in ("CHAIN", ""):
        http = FakeHttp(ok(SEALED | {"certificate_pem": "PEM", "chain_pem": chain}))
        found = await plane_of(http).fetch_materials("t", 4)
        assert (found.certificate_pem, found.chain_pem) == ("PEM", chain or None)
        assert [sent.path for sent in http.sent] == [MATERIALS]
        assert http.sent[0].cap == 256 * 1024


async def test_missing_pem_texts_come_from_the_detail() -> None:
    detail = ok(row(4, certificate_pem="PEM", chain_pem="CHAIN", serial_number="04:ab"))
    found = await plane_of(FakeHttp(by_path={MATERIALS: ok(SEALED), DETAIL: detail})).fetch_materials("t", 4)
    assert (found.certificate_pem, found.chain_pem, found.serial_number) == ("PEM", "CHAIN", "04:ab")
    assert found.enc_privkey_b64 == "c2VjcmV0"


async def test_the_older_path_of_materials_is_found_once() -> None:
    whole = ok(SEALED | {"enc_scheme": 1, "certificate_pem": "PEM", "chain_pem": "C"})
    http = FakeHttp(by_path={MATERIALS: page(404), BUNDLE: whole})
    plane = plane_of(http)
    for _ in range(2):
        assert (await plane.fetch_materials("t", 4)).enc_scheme == "aes256gcm"
    assert [sent.path for sent in http.sent] == [MATERIALS, BUNDLE, BUNDLE]


@pytest.mark.parametrize(
    ("status", "key"), [(409, "WRAP_PENDING"), (403, "EXPORT_FORBIDDEN"), (410, ""), (404, "NOT_FOUND")]
)
async def test_refused_materials_keep_their_reason(status: int, key: str) -> None:
    with pytest.raises(PlaneError) as caught:
        await plane_of(FakeHttp(by_path={MATERIALS: refusal(status, key), BUNDLE: page(404)})).fetch_materials("t", 4)
    assert (caught.value.status, caught.value.key) == (status, key)


async def test_a_ca() -> None:
    http = FakeHttp(ok({"id": 3, "name": "lab", "ca_certificate_pem": "PEM"}))
    assert (await plane_of(http).fetch_ca("t", 3)).ca_certificate_pem == "PEM"
    assert http.sent[0].path == "/apiv1/devices/self/cas/3/bundle"


@pytest.mark.parametrize(
    "answer", [ok({"id": 1, "status": "queued"}, 202), ok(None), ok([], 201), Answer(204, {}, b"")]
)
async def test_a_renewal_may_be_accepted_in_any_way(answer: Answer) -> None:
    http = FakeHttp(answer)
    await plane_of(http).request_renewal("t", 7, 4, "expiry guard")
    assert http.sent[0].path == "/apiv1/users/7/certificates/4/issues"
    assert http.sent[0].json == {"action": "renew", "reason": "expiry guard"}


async def test_a_renewal_needs_a_plane_and_a_user() -> None:
    with pytest.raises(BadAnswerError):
        await plane_of(FakeHttp(HTML)).request_renewal("t", 7, 4)
    http = FakeHttp()
    with pytest.raises(BadAnswerError, match="names no user"):
        await plane_of(http).request_renewal("t", None, 4)
    assert not http.sent


# --- enrolment and tokens -----------------------------------------------------------------------------------------


async def test_a_grant_is_started_and_polled() -> None:
    started = {
        "device_code": "canary",
        "user_code": "ABCD",
        "verification_uri": "https://plane.example/device",
        "interval": 5,
        "expires_in": 600,
    }
    ready = {"status": "ready", "user_id": 7, "registration_code": "canary2"}
    http = FakeHttp(ok(started), ok({"status": "pending"}), ok(ready), TransportError("no route"), page(502))
    plane = plane_of(http)
    grant = await plane.start_grant(["device"], name="web-1", platform="Debian 12")
    asked = {"action": "device_start", "scopes": ["device"], "name": "web-1", "platform": "Debian 12"}
    assert http.sent[0].json == asked
    assert "canary" not in repr(grant)
    assert isinstance(await plane.poll_grant("canary"), GrantPending)
    assert http.sent[1].json == {"action": "device_poll", "device_code": "canary"}
    assert isinstance(await plane.poll_grant("canary"), GrantReady)
    assert await plane.poll_grant("canary") == GrantFailed("no route")
    assert isinstance(await plane.poll_grant("canary"), GrantFailed)
    assert all("authorization" not in sent.headers for sent in http.sent)


REGISTERED = {
    "device": {"id": 9, "user_id": 7, "device_public_id": "uuid", "status": "active", "name": "web-1"},
    "session": {"access_token": "canary-a", "refresh_token": "canary-r", "expires_in": 900},
}


@pytest.mark.parametrize("by_token", [True, False])
async def test_registration_sends_the_public_half_and_one_credential(by_token: bool) -> None:
    http = FakeHttp(ok(REGISTERED))
    credential: Any = {"enrolment_token": "et"} if by_token else {"user_id": 7, "registration_code": "rc"}
    done = await plane_of(http).register(
        device_public_id="uuid", public_key=bytes(range(32)), name="web-1", platform="linux", model="m", **credential
    )
    assert (done.user_id, done.device_id, done.refresh_token) == (7, 9, "canary-r")
    assert "canary" not in repr(done)
    sent = http.sent[0].json
    assert http.sent[0].path == "/apiv1/device/registration"
    assert sent["dev_pk"] == "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
    assert {
        name: sent[name] for name in ("user_id", "registration_code", "enrolment_token") if name in sent
    } == credential
    assert sent["app_version"] in sent["user_agent"]


async def test_a_refresh_uses_the_configured_path_and_a_short_deadline() -> None:
    http = FakeHttp(ok({"access_token": "a2", "expires_in": 900}), ok({"access_token": "a3", "refresh_token": "r3"}))
    plane = plane_of(http, refresh_path="/auth/refresh")
    fresh = await plane.refresh("r1", "uuid")
    assert (fresh.access_token, fresh.refresh_token, fresh.expires_in) == ("a2", None, 900.0)
    assert (await plane.refresh("r1", "uuid", deadline=7.0)).refresh_token == "r3"
    assert [(sent.path, sent.json, sent.deadline) for sent in http.sent] == [
        ("/auth/refresh", {"refresh_token": "r1", "device_public_id": "uuid"}, 30.0),
        ("/auth/refresh", {"refresh_token": "r1", "device_public_id": "uuid"}, 7.0),
    ]


async def test_a_gateways_401_does_not_end_the_session() -> None:
    """Found by the simulation: a portal's challenge to a refresh was taken for the plane's refusal."""
    for answer in (attrs.evolve(HTML, status=401), Answer(401, {}, b"")):
        with pytest.raises(BadAnswerError):
            await plane_of(FakeHttp(answer)).refresh("r1", "uuid")


# --- what holds for all ---------------------------------------------------------------------------------------------

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
async def test_no_answer_does_more_than_raise_one_of_ours(status: int, caplog: pytest.LogCaptureFixture) -> None:
    """Every call × status × body × content type: a refusal or a bad answer, and no secret in any text."""
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


async def test_busy_is_busy_whoever_says_it() -> None:
    for status in (429, 500, 502, 503, 504):
        answer = Answer(status, {"content-type": "text/html", "retry-after": "17"}, b"<html>")
        with pytest.raises(PlaneError) as caught:
            await plane_of(FakeHttp(answer)).fetch_certificates("t")
        assert (caught.value.status, caught.value.retry_after) == (status, 17.0)


async def test_a_bodiless_challenge_is_a_401() -> None:
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
    await plane.poll("t", Poll(None, 20, 0))
    assert plane.server_skew == 3600.5, "junk says nothing"
