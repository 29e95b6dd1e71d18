"""The kept certificate list: whole with its revision, or absent."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from certctrl.errors import DiskError
from certctrl.protocol.wire.certificate_changes import KnownList
from certctrl.store.disk.fs import RealFs
from certctrl.store.state import known_list
from certctrl.store.state.known_list import KnownListFile
from certctrl.store.state.store import StateStore

KNOWN = KnownList("r1-_", {1: '{"id":1}', 20: '{"id":20,"domain_name":"b\\u00fc.example"}'})


@pytest.fixture
def file(store: StateStore) -> KnownListFile:
    return KnownListFile(store.layout, RealFs())


@pytest.fixture
def path(store: StateStore) -> Path:
    return store.layout.certificate_list


def test_round_trip(file: KnownListFile, path: Path) -> None:
    assert file.load() is None
    for known in (KNOWN, KnownList("r2", {}), KnownList("r3", {7: '{"a":" \\u2028"}'})):
        file.save(known)
        assert file.load() == known
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    file.remove()
    assert file.load() is None
    file.remove()


def test_every_damage_is_read_as_absent(file: KnownListFile, path: Path) -> None:
    file.save(KNOWN)
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        assert file.load() is None, f"cut after {size} bytes"
    body = whole.index(b"\n") + 1
    for place in range(body, len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert file.load() is None, f"byte {place} changed"
    for other in (
        b"",
        b"\0" * 100,
        whole + b"x",
        whole * 2,
        b"[]\n",
        b'{"state_version":1}\n',
        whole.replace(b"1", b"9", 1),
    ):
        path.write_bytes(other)
        assert file.load() is None, other[:40]
    path.write_bytes(whole)
    assert file.load() == KNOWN


@pytest.mark.parametrize("rest", [b"x\n", b"1\xff {}\n", b"one {}\n", b"\xff\xfe\n", b"-\n"])
def test_lines_that_are_none_are_read_as_absent(file: KnownListFile, path: Path, rest: bytes) -> None:
    import hashlib
    import json

    head = {"state_version": 1, "revision": "r", "sha256": hashlib.sha256(rest).hexdigest()}
    path.write_bytes(json.dumps(head).encode() + b"\n" + rest)
    assert file.load() is None


def test_a_file_of_another_kind_is_read_as_absent(file: KnownListFile, path: Path) -> None:
    path.mkdir()
    assert file.load() is None
    with pytest.raises(DiskError):
        file.save(KNOWN)


def test_a_list_that_is_too_long_is_not_kept(file: KnownListFile, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.save(KNOWN)
    monkeypatch.setattr(known_list, "LIMIT", 200)
    file.save(KnownList("r2", dict.fromkeys(range(100), "{}")))
    assert not path.exists(), "the old one would only cause ever larger changes"
