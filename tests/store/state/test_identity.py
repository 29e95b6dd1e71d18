"""Device id, keys, tokens and the known plane: saved and replaced by registrations, and found after a crash."""

from __future__ import annotations

import errno

import pytest
from state_model import KEYS, TOKENS, fsyncs, modelled

from certctrl.errors import BadAnswerError, DiskError, StateCorruptError
from certctrl.model.records import DeviceKeys, KnownPlane, Tokens
from certctrl.store.disk.fs import RealFs
from certctrl.store.state.store import StateStore

RESTORE = "restore it from a backup, or run cert-ctrl -c DIR register"


def test_the_known_plane_round_trips(store: StateStore) -> None:
    assert store.session.load_known_plane() is None
    plane = KnownPlane(origin="https://plane.example some-id", since=1.5)
    store.session.save_known_plane(plane)
    assert StateStore(store.layout, RealFs()).session.load_known_plane() == plane
    store.layout.known_plane.write_text('{"state_version":1,"plane":{"origin":5}}')
    with pytest.raises(StateCorruptError) as caught:
        store.session.load_known_plane()
    assert (
        str(caught.value) == f"{store.layout.known_plane} is damaged: plane.origin: expected text, found a whole number"
    )
    assert caught.value.fix == "remove it; the agent then treats the current plane as the known one"


def test_a_next_identity_replaces_a_damaged_one(store: StateStore) -> None:
    assert store.session.load_next_identity() == (None, None)
    store.session.save_next_identity("new-id", None)
    assert store.session.load_next_identity() == ("new-id", None)
    store.session.save_next_identity(None, b"n" * 32)
    assert StateStore(store.layout, RealFs()).session.load_next_identity() == ("new-id", b"n" * 32)
    assert (store.session.load_device_id(), store.session.load_device_secret()) == (None, None)
    new = DeviceKeys(public=b"q" * 32, secret=b"n" * 32)
    store.session.adopt_identity("new-id", new)
    assert (store.session.load_device_id(), store.session.load_device_keys()) == ("new-id", new)
    assert store.session.load_next_identity() == (None, None)
    assert not store.layout.next_device_id.exists() and not store.layout.next_secret_key.exists()


def test_adopting_nothing_keeps_id_and_keys(store: StateStore) -> None:
    store.session.save_device_id("old-id")
    store.session.save_device_keys(KEYS)
    store.session.save_next_identity("new-id", b"n" * 32)
    store.session.adopt_identity(None, None)
    assert (store.session.load_device_id(), store.session.load_device_keys()) == ("old-id", KEYS)
    assert store.session.load_next_identity() == (None, None)


@pytest.mark.parametrize(("device_id", "secret"), [(b"", b"s" * 32), (b"new-id", b"s" * 31), (b"\0", bytes(32))])
def test_a_damaged_part_of_the_next_identity_is_made_again(store: StateStore, device_id: bytes, secret: bytes) -> None:
    store.layout.next_device_id.write_bytes(device_id)
    store.layout.next_secret_key.write_bytes(secret)
    assert store.session.load_next_identity() == (
        "new-id" if device_id == b"new-id" else None,
        secret if secret == b"s" * 32 else None,
    )


@pytest.mark.parametrize("data", [b"s" * 31, b"s" * 33, bytes(32), b""])
def test_a_key_has_32_bytes_that_are_not_all_zero(store: StateStore, data: bytes) -> None:
    store.session.save_device_keys(KEYS)
    assert store.session.load_device_secret() == KEYS.secret
    store.layout.device_secret_key.write_bytes(data)
    for load in (store.session.load_device_secret, store.session.load_device_keys):
        with pytest.raises(StateCorruptError) as caught:
            load()
        what = "it has 33 bytes, expected at most 32" if len(data) > 32 else "expected a key of 32 bytes"
        assert str(caught.value) == f"{store.layout.device_secret_key} is damaged: {what}"
        assert (caught.value.path, caught.value.fix) == (str(store.layout.device_secret_key), RESTORE)


def test_half_a_key_pair_is_damage_once_it_was_used(store: StateStore) -> None:
    for gone, kept in (
        (store.layout.device_public_key, store.layout.device_secret_key),
        (store.layout.device_secret_key, store.layout.device_public_key),
    ):
        store.session.save_device_keys(KEYS)
        store.session.save_tokens(TOKENS)
        gone.unlink()
        with pytest.raises(StateCorruptError) as caught:
            store.session.load_device_keys()
        assert str(caught.value) == f"{gone} is missing, but this device has used it"
        assert (caught.value.path, caught.value.fix) == (str(gone), RESTORE)
        kept.unlink()
    store.layout.refresh_token.unlink()
    store.layout.device_public_key.write_bytes(KEYS.public)
    with pytest.raises(StateCorruptError, match=r"dev_sk\.bin is missing"):
        store.session.load_device_keys()


def test_a_missing_refresh_token_is_named(store: StateStore) -> None:
    store.session.save_tokens(TOKENS)
    store.layout.refresh_token.unlink()
    with pytest.raises(StateCorruptError) as caught:
        store.session.load_tokens()
    assert str(caught.value) == f"{store.layout.refresh_token} is missing, but there is an access token"
    assert (caught.value.path, caught.value.fix) == (str(store.layout.refresh_token), RESTORE)


@pytest.mark.parametrize(
    ("tokens", "named"),
    [
        (Tokens(access_token="a", refresh_token=""), "refresh token"),
        (Tokens(access_token="a\n", refresh_token="r"), "access token"),
    ],
)
def test_tokens_that_cannot_be_stored_are_named(store: StateStore, tokens: Tokens, named: str) -> None:
    with pytest.raises(BadAnswerError) as caught:
        store.session.save_tokens(tokens)
    assert str(caught.value) == f"the {named} is empty, too long, or contains control characters"
    assert caught.value.fix == "check the plane"


def test_a_password_that_cannot_be_stored_is_named(store: StateStore) -> None:
    with pytest.raises(BadAnswerError, match=r"^the password is empty, too long, or contains control characters$"):
        store.installed.set_password("www", "pfx", "a\nb")


def test_other_texts_that_cannot_be_stored_are_named(store: StateStore) -> None:
    for save, named in (
        (store.session.save_cursor, "cursor"),
        (store.session.save_device_id, "device id"),
        (lambda text: store.session.save_next_identity(text, None), "device id"),
    ):
        with pytest.raises(BadAnswerError, match=f"the {named} is empty, too long"):
            save("")


# --- order and cost -----------------------------------------------------------------------------------------


def test_keys_are_read_once_while_their_files_are_unchanged() -> None:
    store, fs = modelled()
    store.session.save_device_keys(KEYS)
    first = store.session.load_device_keys()
    reads = list[object]()
    real = fs.read
    fs.read = lambda handle, limit: reads.append(handle) or real(handle, limit)  # type: ignore[method-assign,func-returns-value]
    assert store.session.load_device_keys() is first
    assert reads == []
    store.session.save_device_keys(KEYS)
    assert store.session.load_device_keys() == KEYS
    assert len(reads) == 2


def test_identity_and_tokens_are_durable_when_saved() -> None:
    store, fs = modelled()
    for save in (
        lambda: store.session.save_device_id("id"),
        lambda: store.session.save_next_identity("new", b"n" * 32),
        lambda: store.session.save_device_keys(KEYS),
        lambda: store.session.save_tokens(TOKENS),
        lambda: store.session.save_known_plane(KnownPlane(origin="x")),
        lambda: store.session.adopt_identity("new", KEYS),
        lambda: store.session.save_cursor("1-1"),
        store.session.clear_cursor,
    ):
        save()
        assert fsyncs(fs) >= 1
        assert not fs.pending or store.session.load_cursor() == "1-1"


@pytest.mark.parametrize(("save", "first"), [("save_tokens", "refresh_token.txt"), ("save_device_keys", "dev_sk.bin")])
def test_the_irreplaceable_half_is_saved_first(save: str, first: str) -> None:
    """The other half is not written if it fails."""
    store, fs = modelled()
    fs.fault = lambda verb, path: errno.ENOSPC if verb == "rename" and path.endswith(first) else None
    with pytest.raises(DiskError):
        getattr(store.session, save)(TOKENS if save == "save_tokens" else KEYS)
    assert [line for line in fs.trace if line.startswith("rename")] == [
        line for line in fs.trace if line.startswith("rename") and line.endswith(first)
    ]
    assert not [path for path in fs.tree() if path.endswith((".txt", ".bin", ".tmp"))]
