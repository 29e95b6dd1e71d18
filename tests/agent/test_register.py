"""Registration: approval, retries, and consistency after any interruption."""

from __future__ import annotations

import base64
import logging
import stat
from hashlib import sha256
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from nacl.public import PrivateKey, PublicKey, SealedBox
from registering import FILES, READY, STARTED, URL, WALL, FakePlane, Host, access
from trio.testing import MockClock

from certctrl.agent.register import DeviceFlowPrompt, Registered
from certctrl.errors import BadAnswerError, DiskError, ExitStatus, NotRegisteredError, PlaneError, TransportError
from certctrl.model.records import Recommended, Tokens
from certctrl.protocol.device_flow import GrantDenied, GrantExpired, GrantFailed, GrantPending, GrantSlowDown
from certctrl.store.disk.fs import RealFs
from certctrl.store.disk.lock import token_lock
from certctrl.store.layout import ConfigDir
from certctrl.store.state.session import SessionState


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(ConfigDir(tmp_path / "agent"))


# --- by approval ---------------------------------------------------------------------------------------------------


async def test_an_operator_approves(host: Host, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    plane = FakePlane(grants=[GrantPending(), GrantPending(), READY])
    done = await host.register(plane)
    assert done == Registered(user_id=7, device_id=9, name="web-1")
    (prompt,) = host.prompts
    assert prompt == DeviceFlowPrompt(
        user_code="BDFH-JLNP",
        verification_uri=f"{URL}/device",
        verification_uri_complete=f"{URL}/device?code=BDFH-JLNP",
        expires_in=600.0,
        expires_at=WALL + 600.0,
    )
    assert plane.polls == [5.0, 10.0, 15.0], "never faster than the plane requested"
    (form,) = plane.forms
    assert form["user_id"] == 7
    assert form["registration_code"] == "canary-code"
    assert "enrolment_token" not in form
    assert form["name"] == "web-1"
    tokens, keys = host.store.load_tokens(), host.store.load_device_keys()
    assert tokens is not None
    assert keys is not None
    assert tokens.refresh_token == "canary-refresh-1"
    assert form["public_key"] == keys.public == bytes(PrivateKey(keys.secret).public_key)
    assert [form["device_public_id"]] == [host.store.load_device_id()] == plane.asked, "approved for this id"
    assert "canary" not in caplog.text + repr(done) + repr(plane.started)
    assert "BDFH" not in caplog.text, "the code is for the person, not for the log"


async def test_the_last_recommendation_is_kept(host: Host, autojump_clock: MockClock) -> None:
    assert host.store.load_recommended() is None
    for recommended in (Recommended("long-poll", 20), Recommended("push"), None):
        done = await host.register(FakePlane(recommended=recommended), token="et_x")
        assert done.recommended == host.store.load_recommended() == recommended


async def test_slow_down_lasts_and_failures_back_off(host: Host, autojump_clock: MockClock) -> None:
    plane = FakePlane(grants=[GrantSlowDown(), GrantPending(), GrantFailed("no route"), GrantFailed("no route"), READY])
    await host.register(plane)
    assert [round(b - a) for a, b in zip(plane.polls, plane.polls[1:], strict=False)] == [10, 10, 10, 20]


@pytest.mark.parametrize(
    ("grants", "words", "polls"),
    [
        ([GrantPending(), GrantDenied()], "denied", 2),
        ([GrantExpired()], "this device was not approved in time", 1),
        ([], "this device was not approved in time", 119),
        ([GrantFailed("no route")] * 99, "in time; the last poll failed: no route", 13),
    ],
)
async def test_no_approval_ends_with_a_reason(
    host: Host, autojump_clock: MockClock, grants: list[Any], words: str, polls: int
) -> None:
    plane = FakePlane(grants=grants)
    with pytest.raises(NotRegisteredError, match=words) as caught:
        await host.register(plane)
    assert caught.value.exit_status is ExitStatus.NOT_REGISTERED
    assert caught.value.fix
    assert trio.current_time() <= 600
    assert len(plane.polls) == polls
    assert plane.forms == []
    assert host.store.load_tokens() is None


@pytest.mark.parametrize(
    "uri",
    [
        "http://plane.example:8443/device",
        "https://evil.example/device",
        "https://plane.example.evil.net/device",
        "https://plane.example@evil.net/",
        "javascript:alert(1)",
        "plane.example/device",
    ],
)
@pytest.mark.parametrize("where", ["verification_uri", "verification_uri_complete"])
async def test_an_approval_page_elsewhere_is_never_shown(
    host: Host, autojump_clock: MockClock, uri: str, where: str
) -> None:
    plane = FakePlane(grants=[READY], started=attrs.evolve(STARTED, **{where: uri}))
    with pytest.raises(BadAnswerError, match="cannot be trusted") as caught:
        await host.register(plane)
    assert "do not type the code" in (caught.value.fix or "")
    assert (host.prompts, plane.polls, plane.forms) == ([], [], [])


async def test_loopback_http_is_allowed_on_the_host_of_the_plane(host: Host, autojump_clock: MockClock) -> None:
    started = attrs.evolve(STARTED, verification_uri="http://127.0.0.1:8080/device", verification_uri_complete=None)
    await host.register(FakePlane(grants=[READY], started=started), url="http://127.0.0.1:8080")
    assert host.prompts[0].verification_uri_complete is None


# --- without ------------------------------------------------------------------------------------------------------


async def test_an_enrolment_token_needs_no_approval(host: Host, autojump_clock: MockClock) -> None:
    plane = FakePlane()
    await host.register(plane, token="canary-enrolment")
    assert host.prompts == []
    assert plane.forms[0]["enrolment_token"] == "canary-enrolment"
    assert {"user_id", "registration_code"}.isdisjoint(plane.forms[0])


async def test_id_and_keys_are_stored_before_anything_is_sent(host: Host, autojump_clock: MockClock) -> None:
    """The secret key must be durable before the plane encrypts anything to the public one."""

    def check_disk(form: dict[str, Any]) -> None:
        device_id, secret = SessionState(host.layout, RealFs()).load_next_identity()
        assert secret is not None
        assert (device_id, bytes(PrivateKey(secret).public_key)) == (form["device_public_id"], form["public_key"])
        assert stat.S_IMODE(host.layout.next_secret_key.stat().st_mode) == 0o600
        reserved = [path for path in host.layout.state.iterdir() if path.name.startswith(".")]
        assert len(reserved) == 2, "space for both tokens"
        assert not token_lock(host.layout).try_acquire(), "no daemon can refresh in between"

    await host.register(FakePlane(at_post=check_disk), token="t")
    assert [path.name for path in host.layout.state.iterdir() if path.name.startswith(".")] == []
    for name in FILES:
        assert stat.S_IMODE(getattr(host.layout, name).stat().st_mode) == 0o600
    assert not host.layout.next_secret_key.exists() and not host.layout.next_device_id.exists()
    free = token_lock(host.layout)
    assert free.try_acquire()
    free.release()


async def test_a_full_disk_registers_nothing(
    host: Host, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: SessionState, size: int = 0) -> None:
        raise DiskError("cannot reserve space: No space left on device", path="state", errno=28)

    monkeypatch.setattr(SessionState, "reserve_tokens", full)
    plane = FakePlane()
    with pytest.raises(DiskError):
        await host.register(plane, token="t")
    assert plane.forms == []


# --- again ---------------------------------------------------------------------------------------------------------


async def test_registering_again_keeps_id_and_keys(host: Host, autojump_clock: MockClock) -> None:
    plane = FakePlane()
    await host.register(plane, token="t")
    host.store.save_cursor("5-5")
    await host.register(plane, token="t")
    first, second = plane.forms
    assert {name: first[name] for name in ("device_public_id", "public_key")} == {
        name: second[name] for name in ("device_public_id", "public_key")
    }
    tokens = host.store.load_tokens()
    assert tokens is not None
    assert tokens.refresh_token == "canary-refresh-2"
    assert host.store.load_cursor() == "5-5", "the same device, the same stream"


async def test_another_device_row_starts_without_a_cursor(host: Host, autojump_clock: MockClock) -> None:
    plane = FakePlane()
    await host.register(plane, token="t")
    host.store.save_cursor("5-5")
    plane.device_id = 10
    await host.register(plane, token="t")
    assert host.store.load_cursor() is None


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 410, 422])
async def test_a_refused_registration_leaves_the_old_one(host: Host, autojump_clock: MockClock, status: int) -> None:
    plane = FakePlane()
    await host.register(plane, token="t")
    before = host.store.load_tokens()
    plane.answers = [PlaneError("token used up", status=status)]
    with pytest.raises(NotRegisteredError, match="token used up") as caught:
        await host.register(plane, token="t")
    assert "enrolment" in (caught.value.fix or "")
    assert host.store.load_tokens() == before
    assert len(plane.forms) == 2


@pytest.mark.parametrize("key", ["DEVICE_REVOKED", "KEY_MISMATCH"])
async def test_a_refusal_that_no_token_lifts_names_the_approval(
    host: Host, autojump_clock: MockClock, key: str
) -> None:
    """A new token, as advised before, was refused as well."""
    plane = FakePlane()
    plane.answers = [PlaneError("no", status=403, key=key)]
    with pytest.raises(NotRegisteredError) as caught:
        await host.register(plane, token="t")
    assert caught.value.fix == "run register without a token, and have an operator approve it (cert-ctrl plane approve)"


@pytest.mark.parametrize("damage", [None, b"", b"\0" * 40, b"\xff\xfe"])
@pytest.mark.parametrize("name", FILES)
async def test_a_refused_registration_replaces_nothing(
    host: Host, autojump_clock: MockClock, name: str, damage: bytes | None
) -> None:
    """Found by review: a new id and new keys were stored before the plane refused them."""

    def stored() -> dict[str, bytes | None]:
        paths = [getattr(host.layout, name) for name in FILES]
        return {path.name: path.read_bytes() if path.exists() else None for path in paths}

    plane = FakePlane()
    await host.register(plane, token="t")
    if damage is None:
        getattr(host.layout, name).unlink()
    else:
        getattr(host.layout, name).write_bytes(damage)
    before = stored()
    plane.answers = [PlaneError("token used up", status=401), PlaneError("denied", status=403)]
    for _ in range(2):
        with pytest.raises(NotRegisteredError):
            await host.register(plane, token="t")
        assert stored() == before
    await host.register(plane, token="t")
    _, first, second, last = plane.forms
    assert first["public_key"] == second["public_key"] == last["public_key"], "one new key, however often it is refused"
    assert first["device_public_id"] == second["device_public_id"] == last["device_public_id"]
    assert host.store.load_device_id() == last["device_public_id"]


@pytest.mark.parametrize("damage", [None, b"\xff\xfe"])
async def test_a_public_key_is_computed_from_its_secret_key(
    host: Host, autojump_clock: MockClock, damage: bytes | None
) -> None:
    """A new pair would be refused as another device's, and could not open what is sealed to the old one."""
    plane = FakePlane()
    await host.register(plane, token="t")
    if damage is None:
        host.layout.device_public_key.unlink()
    else:
        host.layout.device_public_key.write_bytes(damage)
    await host.register(plane, token="t")
    assert plane.forms[0]["public_key"] == plane.forms[1]["public_key"]


async def test_the_key_of_a_registration_is_proven(host: Host, autojump_clock: MockClock) -> None:
    def challenge(form: dict[str, Any]) -> None:
        sealed = SealedBox(PublicKey(form["public_key"])).encrypt(b"r" * 32)
        assert form["prove"](sealed) == base64.b64encode(sha256(b"cert-ctrl key proof\0" + b"r" * 32).digest()).decode()
        other = SealedBox(PrivateKey.generate().public_key).encrypt(b"r" * 32)
        for wrong in (other, sealed[:-1], b"", b"x"):
            with pytest.raises(BadAnswerError, match="not sealed to this device's key"):
                form["prove"](wrong)

    plane = FakePlane(at_post=challenge)
    await host.register(plane, token="t")
    assert len(plane.forms) == 1


@pytest.mark.parametrize("damage", [b"", b"\0" * 40, b"\xff\xfe"])
@pytest.mark.parametrize(
    "name", ["device_id", "device_public_key", "device_secret_key", "refresh_token", "access_token"]
)
async def test_damaged_files_are_replaced(
    host: Host, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture, name: str, damage: bytes
) -> None:
    plane = FakePlane()
    await host.register(plane, token="t")
    getattr(host.layout, name).write_bytes(damage)
    await host.register(plane, token="t")
    keys = host.store.load_device_keys()
    assert keys is not None
    assert plane.forms[1]["public_key"] == keys.public == bytes(PrivateKey(keys.secret).public_key)
    assert plane.forms[1]["device_public_id"] == host.store.load_device_id()
    tokens = host.store.load_tokens()
    assert tokens is not None
    assert tokens.refresh_token == "canary-refresh-2"
    assert "damaged" in caplog.text


@pytest.mark.parametrize(
    "name", ["device_public_key", "device_secret_key", "refresh_token", "access_token", "device_id"]
)
async def test_missing_files_are_replaced(host: Host, autojump_clock: MockClock, name: str) -> None:
    plane = FakePlane()
    await host.register(plane, token="t")
    getattr(host.layout, name).unlink()
    await host.register(plane, token="t")
    assert host.store.load_tokens() == Tokens(access_token=access(9, 2), refresh_token="canary-refresh-2")
    assert host.store.load_device_keys() is not None


# --- when the plane is in trouble -------------------------------------------------------------------------------


async def test_a_busy_plane_is_retried_after_its_pause(host: Host, autojump_clock: MockClock) -> None:
    plane = FakePlane(
        answers=[PlaneError("x", status=503), PlaneError("x", status=429, retry_after=20.0), TransportError("broke")]
    )
    moments: list[float] = []
    plane.at_post = lambda form: moments.append(trio.current_time())
    await host.register(plane, token="t")
    assert moments == [0.0, 1.0, 21.0, 25.0]


async def test_retries_end_after_a_minute(host: Host, autojump_clock: MockClock) -> None:
    plane = FakePlane(answers=[PlaneError("busy", status=503)] * 99)
    with pytest.raises(PlaneError, match="busy"):
        await host.register(plane, token="t")
    assert trio.current_time() <= 60
    assert 5 <= len(plane.forms) <= 8


def not_sent() -> TransportError:
    error = TransportError("nothing listens")
    error.maybe_sent = False
    return error


@pytest.mark.parametrize("error", [not_sent(), BadAnswerError("HTML")])
async def test_a_permanent_error_is_raised_immediately(host: Host, autojump_clock: MockClock, error: Exception) -> None:
    with pytest.raises(type(error)):
        await host.register(FakePlane(answers=[error]), token="t")
    assert trio.current_time() == 0


async def test_a_cancelled_run_keeps_a_pending_answer(host: Host, autojump_clock: MockClock) -> None:
    async def slow() -> None:
        await trio.sleep(3)

    with trio.move_on_after(1):
        await host.register(FakePlane(answers=[slow]), token="t")
    tokens = host.store.load_tokens()
    assert tokens is not None
    assert tokens.refresh_token == "canary-refresh-1"


async def test_concurrent_runs_share_one_key_pair(host: Host, autojump_clock: MockClock) -> None:
    async def slow() -> None:
        await trio.sleep(1)

    plane = FakePlane(answers=[slow, slow])
    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(lambda: host.register(plane, token="t"))
    assert len({form["public_key"] for form in plane.forms}) == 1
    assert len({form["device_public_id"] for form in plane.forms}) == 1
    tokens = host.store.load_tokens()
    assert tokens is not None
    assert tokens.refresh_token == "canary-refresh-2", "the one the plane issued last"
