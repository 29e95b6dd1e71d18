"""Enrolment and tokens: credentials sent, deadlines, and answers of gateways."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from plane_answers import HTML, FakeHttp, ok, page, plane_of

from certctrl.errors import BadAnswerError, TransportError
from certctrl.model.answer import Answer
from certctrl.model.features import AGENT_FEATURES
from certctrl.protocol.device_flow import GrantFailed, GrantPending, GrantReady


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
    grant = await plane.start_grant(["device"], name="web-1", platform="Debian 12", device_public_id="uuid")
    asked = {"action": "device_start", "scopes": ["device"], "name": "web-1", "platform": "Debian 12"}
    assert http.sent[0].json == asked | {"device_public_id": "uuid"}
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


def registering(**more: object) -> dict[str, Any]:
    facts = {"device_public_id": "uuid", "name": "web-1", "platform": "linux", "model": "m", "enrolment_token": "et"}
    return facts | {"public_key": bytes(range(32))} | more


async def test_a_registration_answers_the_challenge_for_its_key() -> None:
    http = FakeHttp(ok({"challenge_b64": "c2VhbGVk"}), ok(REGISTERED))
    done = await plane_of(http).register(**registering(prove=lambda sealed: f"opened {sealed.decode()}"))
    assert done.device_id == 9
    first, second = (sent.json for sent in http.sent)
    assert first["features"] == ["key-proof", *AGENT_FEATURES]
    assert second == first | {"challenge_response": "opened sealed"}


async def test_a_plane_may_send_no_challenge_but_not_two() -> None:
    def never(sealed: bytes) -> str:
        raise AssertionError(sealed)

    assert (await plane_of(FakeHttp(ok(REGISTERED))).register(**registering(prove=never))).device_id == 9
    challenge = ok({"challenge_b64": "c2VhbGVk"})
    for answers in ([challenge, challenge], [ok({"challenge_b64": "!"})], [ok({"challenge_b64": 7})]):
        with pytest.raises(BadAnswerError):
            await plane_of(FakeHttp(*answers)).register(**registering(prove=lambda sealed: "x"))


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
    """Found by the simulation: a portal's challenge to a refresh was treated as the plane's refusal."""
    for answer in (attrs.evolve(HTML, status=401), Answer(401, {}, b"")):
        with pytest.raises(BadAnswerError):
            await plane_of(FakeHttp(answer)).refresh("r1", "uuid")
