"""Rotate the device's key against a real plane in memory: each step may be the last, and the next refresh repeats it."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from nacl.public import PrivateKey, SealedBox

from certctrl.agent.key_rotation import rotate_key
from certctrl.errors import DiskError, PlaneError, TransportError
from certctrl.model.records import DeviceKeys
from certctrl.protocol.wire.registration import key_proof
from certctrl.store.disk.fs import RealFs
from certctrl.store.disk.tree import make_tree
from certctrl.store.layout import ConfigDir
from certctrl.store.state.session import SessionState

PRESENT = PrivateKey(bytes(range(32)))
SECRETS = {"present": b"p" * 32, "new": b"n" * 32}


class Plane:
    """The control plane's part."""

    def __init__(self) -> None:
        self.key, self.wanted = bytes(PRESENT.public_key), True
        self.lost_answers = 0

    async def send_key(self, token: str, public_key: bytes, responses: Mapping[str, str]) -> dict[str, bytes]:
        if public_key == self.key:
            return {}
        if not self.wanted:
            raise PlaneError("not wanted", status=409, key="ROTATION_NOT_WANTED")
        if not responses:
            from nacl.public import PublicKey

            keys = {"present": self.key, "new": public_key}
            return {name: SealedBox(PublicKey(keys[name])).encrypt(secret) for name, secret in SECRETS.items()}
        assert responses == {f"{name}_response": key_proof(secret) for name, secret in SECRETS.items()}
        self.key, self.wanted = public_key, False
        if self.lost_answers:
            self.lost_answers -= 1
            raise TransportError("the answer is lost")
        return {}


class Killed(BaseException):
    """The process ends here."""


@pytest.fixture
def store(tmp_path: Path) -> SessionState:
    layout = ConfigDir(tmp_path / "etc")
    make_tree(RealFs(), layout)
    made = SessionState(layout, RealFs())
    made.save_device_keys(DeviceKeys(public=bytes(PRESENT.public_key), secret=bytes(PRESENT)))
    return made


async def inline(call: Any, *arguments: Any) -> Any:
    return call(*arguments)


async def refresh(store: SessionState, plane: Plane) -> None:
    """Do what a token refresh does."""
    wanted = plane.wanted and plane.key == bytes(PRESENT.public_key)
    await rotate_key(store, plane, "token", inline, wanted=wanted)  # type: ignore[arg-type]


def assert_rotated(store: SessionState, plane: Plane) -> None:
    keys = store.load_device_keys()
    assert keys is not None and keys.public == plane.key != bytes(PRESENT.public_key)
    assert bytes(PrivateKey(keys.secret).public_key) == keys.public
    assert not store.has_rotated_secret()


async def test_the_new_key_replaces_the_present_one(store: SessionState) -> None:
    plane = Plane()
    await refresh(store, plane)
    assert_rotated(store, plane)
    await refresh(store, plane)
    assert_rotated(store, plane)


async def test_a_lost_answer_is_asked_for_again(store: SessionState) -> None:
    plane = Plane()
    plane.lost_answers = 1
    await refresh(store, plane)
    assert store.has_rotated_secret() and plane.key != bytes(PRESENT.public_key)
    await refresh(store, plane)
    assert_rotated(store, plane)


async def test_a_request_that_was_withdrawn_leaves_the_present_key(store: SessionState) -> None:
    plane = Plane()
    plane.wanted = False
    store.save_rotated_secret(b"x" * 32)
    await refresh(store, plane)
    keys = store.load_device_keys()
    assert keys is not None and keys.public == bytes(PRESENT.public_key) and not store.has_rotated_secret()


@pytest.mark.parametrize("step", ["save_rotated_secret", "save_device_keys"])
@pytest.mark.parametrize("when", [1, 2])
async def test_a_kill_between_steps(store: SessionState, step: str, when: int, monkeypatch: pytest.MonkeyPatch) -> None:
    plane, calls = Plane(), 0
    real = getattr(SessionState, step)

    def killing(self: SessionState, *arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == when:
            raise Killed
        real(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(SessionState, step, killing)
        try:
            await refresh(store, plane)
        except Killed:
            assert step == "save_rotated_secret" or when == 1
    await refresh(store, plane)
    assert_rotated(store, plane)


async def test_a_full_disk_is_reported_and_repeated(
    store: SessionState, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plane = Plane()

    def full(*_: Any) -> None:
        raise DiskError("no space")

    with monkeypatch.context() as patch:
        patch.setattr(SessionState, "save_rotated_secret", full)
        await refresh(store, plane)
    assert "The device keeps its key for now: no space" in caplog.text
    await refresh(store, plane)
    assert_rotated(store, plane)


def test_challenges_of_an_answer() -> None:
    from certctrl.errors import BadAnswerError
    from certctrl.protocol.wire.registration import key_challenges

    sealed = base64.b64encode(b"sealed").decode()
    assert key_challenges({"present_challenge_b64": sealed, "new_challenge_b64": sealed})["new"] == b"sealed"
    answers: list[object] = [{}, {"key_fingerprint": "ab"}, {"present_challenge_b64": sealed}, [], None]
    for nothing in answers:
        assert key_challenges(nothing) == {}
    for bad in ("é", "x", 7, ["x"]):
        with pytest.raises(BadAnswerError):
            key_challenges({"present_challenge_b64": bad, "new_challenge_b64": sealed})
