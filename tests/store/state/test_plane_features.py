"""The features of the plane are kept with the session that they came with, and never in the way of its tokens."""

from __future__ import annotations

import stat

import attrs
import pytest
from state_model import TOKENS

from certctrl.errors import DiskError
from certctrl.model.records import Tokens
from certctrl.store.disk.fs import RealFs
from certctrl.store.state.store import StateStore

WITH_FEATURES = attrs.evolve(TOKENS, features=frozenset({"delta", "csr"}))


def features(store: StateStore) -> frozenset[str]:
    found = StateStore(store.layout, RealFs()).session.load_tokens()
    assert found is not None
    return found.features


def test_features_are_kept_with_the_tokens(store: StateStore) -> None:
    store.session.save_tokens(WITH_FEATURES)
    assert StateStore(store.layout, RealFs()).session.load_tokens() == WITH_FEATURES
    assert stat.S_IMODE(store.layout.plane_features.stat().st_mode) == 0o600
    assert TOKENS.refresh_token not in store.layout.plane_features.read_text()


def test_features_are_kept_with_reserved_tokens(store: StateStore) -> None:
    with store.session.reserve_tokens() as reservation:
        reservation.commit(WITH_FEATURES)
    assert features(store) == {"delta", "csr"}


def test_a_session_without_features_ends_those_of_the_last(store: StateStore) -> None:
    store.session.save_tokens(WITH_FEATURES)
    store.session.save_tokens(TOKENS)
    assert features(store) == frozenset()


def test_a_plane_without_features_costs_no_file(store: StateStore) -> None:
    store.session.save_tokens(TOKENS)
    assert not store.layout.plane_features.exists()


def test_unchanged_features_are_not_written_again(store: StateStore) -> None:
    store.session.save_tokens(WITH_FEATURES)
    before = store.layout.plane_features.stat().st_ino
    store.session.save_tokens(attrs.evolve(WITH_FEATURES, access_token="next"))
    assert store.layout.plane_features.stat().st_ino == before


def test_tokens_of_another_session_have_no_features(store: StateStore) -> None:
    """An older agent registers again and does not know the file: its features are not those of the new plane."""
    store.session.save_tokens(WITH_FEATURES)
    store.layout.refresh_token.write_text("rt_of_another_plane")
    assert features(store) == frozenset()


@pytest.mark.parametrize("damage", ["", "\0\0\0", "[]", "{}", '{"state_version":1}', '{"state_version":9}', "{" * 5000])
def test_a_damaged_file_means_no_features_and_is_replaced(store: StateStore, damage: str) -> None:
    store.session.save_tokens(WITH_FEATURES)
    store.layout.plane_features.write_text(damage)
    assert features(store) == frozenset()
    StateStore(store.layout, RealFs()).session.save_tokens(WITH_FEATURES)
    assert features(store) == {"delta", "csr"}


def test_odd_names_in_the_file_are_left_out(store: StateStore) -> None:
    store.session.save_tokens(WITH_FEATURES)
    text = store.layout.plane_features.read_text().replace('"csr"', '5,null,["x"],"","a\\nb"')
    store.layout.plane_features.write_text(text)
    assert features(store) == {"delta"}


def test_tokens_are_stored_even_if_their_features_cannot_be(store: StateStore, monkeypatch: pytest.MonkeyPatch) -> None:
    real = store.session._files.save_json

    def full(path: object, *args: object, **more: object) -> None:
        if path == store.layout.plane_features:
            raise DiskError("no space left")
        real(path, *args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(store.session._files, "save_json", full)
    with store.session.reserve_tokens() as reservation:
        reservation.commit(attrs.evolve(WITH_FEATURES, refresh_token="r2"))
    store.session.save_tokens(attrs.evolve(WITH_FEATURES, refresh_token="r3"))
    found = StateStore(store.layout, RealFs()).session.load_tokens()
    assert found == Tokens(access_token=TOKENS.access_token, refresh_token="r3")
