"""A registration or refresh interrupted at any operation can be repeated and uses no token twice."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from crash_exploration import explore
from modeldisk import ModelFs
from nacl.public import PrivateKey
from registering import URL, WALL, Host, access

from certctrl.agent.tokens import TokenKeeper
from certctrl.errors import PlaneError
from certctrl.model.config import AgentConfig, ApplicationConfig
from certctrl.protocol.wire.registration import Registration
from certctrl.protocol.wire.tokens import Refreshed
from certctrl.store.disk.tree import make_tree
from certctrl.store.layout import ConfigDir
from certctrl.store.state.session import SessionState

ROOT = ConfigDir(Path("/agent"))


def apart(call: Callable[[ModelFs], None]) -> Callable[[ModelFs], None]:
    """Run in a separate thread: a crash is checked while the interrupted run continues."""

    def run(fs: ModelFs) -> None:
        failed: list[BaseException] = []

        def body() -> None:
            try:
                call(fs)
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=body)
        thread.start()
        thread.join()
        if failed:
            raise failed[0]

    return run


@attrs.define(eq=False)
class ModelPlane:
    """Remembers what the plane knows across crashes of the model disk."""

    fs: ModelFs
    features: frozenset[str] = frozenset()

    async def register(self, *, public_key: bytes, device_public_id: str, **form: object) -> Registration:
        number = int(self.fs.promises.get("session", 0)) + 1
        self.fs.promise(session=number, public_key=public_key, public_id=device_public_id)
        return Registration(
            device_id=9, user_id=7, device_public_id=device_public_id, name="web-1", status="active",
            access_token=access(9, number), refresh_token=f"r-{number}", expires_in=900.0,
        )  # fmt: skip

    server_skew = None

    def server_now(self) -> float:
        return WALL

    async def refresh(self, refresh_token: str, device_public_id: str, *, deadline: float) -> Refreshed:
        """Rotate; the last token may come again until its successor is seen, any older one ends the session."""
        number = int(self.fs.promises["session"])
        sent = int(refresh_token.partition("-")[2])
        if sent == number:
            number += 1
            self.fs.promise(session=number)
        elif sent != number - 1:
            raise PlaneError("reuse detected", status=401)
        return Refreshed(access_token=access(9, number), refresh_token=f"r-{number}")


def register_on(fs: ModelFs) -> None:
    host = Host(ROOT, fs=fs)
    trio.run(lambda: host.register(ModelPlane(fs), token="t"))  # type: ignore[arg-type]
    fs.promise(printed=fs.promises["session"])


def stored_keys(store: SessionState) -> list[bytes]:
    """Return the public keys of the secret keys on the disk."""
    secrets = (store.load_device_secret(), store.load_next_identity()[1])
    return [bytes(PrivateKey(secret).public_key) for secret in secrets if secret is not None]


def consistent(fs: ModelFs) -> None:
    """Compare a disk with what the plane knows, then run `register` again on it."""
    store = SessionState(ROOT, fs)
    if "public_key" in fs.promises:
        assert fs.promises["public_key"] in stored_keys(store), "the plane seals to a key that is gone"
        assert fs.promises["public_id"] in (store.load_device_id(), store.load_next_identity()[0])
    tokens = store.load_tokens()
    if "printed" in fs.promises:
        keys = store.load_device_keys()
        assert keys is not None and keys.public == fs.promises["public_key"]
        assert tokens is not None, "registered, and the session is gone"
        assert int(tokens.refresh_token.partition("-")[2]) >= fs.promises["printed"]
    before = dict(fs.promises)
    register_on(fs)
    assert not [path for path in fs.tree() if path.endswith(".tmp")], "a killed run's tokens or key left behind"
    tokens, keys = store.load_tokens(), store.load_device_keys()
    assert tokens is not None
    assert keys is not None
    assert tokens.refresh_token == f"r-{fs.promises['session']}"
    assert tokens.access_token == access(9, fs.promises["session"])
    assert keys.public == fs.promises["public_key"] == bytes(PrivateKey(keys.secret).public_key)
    if "public_key" in before:
        assert before["public_key"] == keys.public, "one device, one key, however often it was cut off"
        assert before["public_id"] == fs.promises["public_id"]


@pytest.mark.parametrize("again", [False, True], ids=["first", "again"])
def test_a_registration_interrupted_anywhere_can_be_repeated(again: bool) -> None:
    fs = ModelFs()
    fs.put_dir("/agent", 0o700)
    make_tree(fs, ROOT)
    fs = fs.settled()
    if again:
        register_on(fs)
        fs = fs.settled()
    tally = explore(fs, apart(register_on), apart(consistent), limit=12)
    assert tally.points >= 20
    assert len(tally.states) >= 60


def refresh_on(fs: ModelFs) -> None:
    store = SessionState(ROOT, fs)
    config = AgentConfig(application=ApplicationConfig(server_url=URL))

    async def inline(call: Callable[..., Any], *args: object) -> Any:
        return call(*args)

    async def main() -> None:
        keeper = TokenKeeper(
            layout=ROOT, store=store, plane=ModelPlane(fs), config=config,  # type: ignore[arg-type]
            wall_now=lambda: WALL, offload=inline, fs=fs,
        )  # fmt: skip
        fs.promise(used=await keeper.refresh(await keeper.current()))

    trio.run(main)


def refreshes_again(fs: ModelFs) -> None:
    store = SessionState(ROOT, fs)
    tokens = store.load_tokens()
    assert tokens is not None, "the session is lost"
    if "used" in fs.promises:
        assert tokens.refresh_token == f"r-{fs.promises['session']}", (
            "an access token was used before its refresh token was safe"
        )
    refresh_on(fs)


def test_a_refresh_interrupted_anywhere_uses_no_token_twice() -> None:
    fs = ModelFs()
    fs.put_dir("/agent", 0o700)
    make_tree(fs, ROOT)
    register_on(fs)
    fs = fs.settled()
    tally = explore(fs, apart(refresh_on), apart(refreshes_again), limit=20)
    assert tally.points >= 15
    assert len(tally.states) >= 60
