"""Access control lists: effective rights as the kernel sees them, and lists that a replaced file keeps."""

from __future__ import annotations

import errno
import itertools
import os
import stat
import struct
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from acl import ACCESS, DEFAULT, acl_of, packed, set_acl
from modeldisk import ModelFs

from certctrl.errors import DiskError
from certctrl.store.disk.acl import give_attributes, is_kept, lists_of, other_writers, unknown_list
from certctrl.store.disk.atomic import write_atomic
from certctrl.store.disk.fs import RealFs, closing

FS = RealFs()
READER = "user::6 user:1234:4 group::0 mask::4 other::0"


@pytest.fixture
def place(tmp_path: Path, need_acl: Callable[[Path], None]) -> Path:
    need_acl(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("acl", "who"),
    [
        ("user::7 group::5 other::5", ""),
        ("user::7 user:1234:7 group::5 mask::7 other::5", "user 1234"),
        ("user::7 user:1234:7 group::5 mask::5 other::5", ""),  # the mask takes the right away
        ("user::7 user:33:7 group::5 mask::7 other::5", ""),  # trusted
        ("user::7 group::7 mask::7 other::0", "group 50"),
        ("user::7 group::7 group:1234:7 mask::5 other::0", ""),
        ("user::7 group::5 group:1234:7 mask::7 other::0", "group 1234"),
        ("user::7 group::5 group:44:7 mask::7 other::0", ""),  # trusted
        ("user::7 user:1234:4 group::5 mask::5 other::7", "others"),
    ],
)
def test_other_writers_of_a_file(acl: str, who: str) -> None:
    assert other_writers(0o775, 50, {ACCESS: packed(acl)}, (0, 33), (0, 44)) == who


@pytest.mark.parametrize(
    ("mode", "gid", "who"),
    [(0o755, 50, ""), (0o775, 50, "group 50"), (0o775, 44, ""), (0o757, 44, "others"), (0o41777, 0, "others")],
)
def test_without_a_list_the_mode_decides(mode: int, gid: int, who: str) -> None:
    assert other_writers(mode, gid, {}, (0, 33), (0, 44)) == who


@pytest.fixture
def open_place(need_acl: Callable[[Path], None]) -> Iterator[Path]:
    """Return a directory that every user can enter."""
    made = Path(tempfile.mkdtemp(dir="/tmp"))
    made.chmod(0o755)
    need_acl(made)
    yield made
    for path in made.iterdir():
        path.unlink()
    made.rmdir()


@pytest.mark.root
def test_the_kernel_agrees(open_place: Path) -> None:
    """For every combination of rights: someone else can write exactly if the kernel lets that user write."""
    path = open_place / "file"
    path.touch()
    os.chown(path, 0, 50)
    for user, group, named, mask, other in itertools.product((0, 6), (0, 6), (0, 6), (0, 4, 6), (0, 6)):
        acl = f"user::6 user:1234:{user} group::{group} group:60:{named} mask::{mask} other::{other}"
        set_acl(path, acl)
        able = [kernel_lets_write(path, uid, gid) for uid, gid in ((1234, 1234), (2000, 50), (2000, 60), (2000, 2000))]
        with closing(FS, FS.open_file(path)) as handle:
            who = other_writers(path.stat().st_mode, 50, FS.attributes(handle), (0,), (0,))
        assert bool(who) == any(able), acl


def kernel_lets_write(path: Path, uid: int, gid: int) -> bool:
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(gid)
    os.seteuid(uid)
    try:
        return os.access(path, os.W_OK, effective_ids=True)
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


def nfs4(*names: bytes) -> bytes:
    raw = struct.pack(">I", len(names))
    for name in names:
        raw += struct.pack(">IIII", 0, 0, 2, len(name)) + name + bytes(-len(name) % 4)
    return raw


@pytest.mark.parametrize(
    ("attributes", "why"),
    [
        ({}, ""),
        ({ACCESS: packed(READER), "security.selinux": b"x"}, ""),
        ({"system.nfs4_acl": nfs4(b"OWNER@", b"GROUP@", b"EVERYONE@")}, ""),
        ({"system.nfs4_acl": nfs4(b"OWNER@", b"eve@example.com", b"EVERYONE@")}, "does not know (system.nfs4_acl)"),
        ({"system.nfs4_acl": nfs4(b"EVERYONE@", b"OWNER@")}, ""),
        ({"system.nfs4_acl": nfs4(b"OWNER@")[:-3]}, "does not know"),
        ({"system.nfs4_acl": nfs4(b"OWNER@")[:10]}, "does not know"),
        ({"system.nfs4_acl": b""}, "does not know"),
        ({"system.richacl": nfs4(b"OWNER@")}, "does not know (system.richacl)"),
        ({"system.richacl": b"x"}, "does not know (system.richacl)"),
        ({ACCESS: b"\2\0\0\0"}, ""),
        ({ACCESS: b"\2\0\0\0\1"}, "malformed"),
        ({ACCESS: b"\3\0\0\0"}, "malformed"),
        ({ACCESS: b"\2\0\0"}, "malformed"),
    ],
)
def test_a_list_that_is_not_understood_is_named(attributes: dict[str, bytes], why: str) -> None:
    found = unknown_list(attributes)
    assert (why in found) and bool(why) == bool(found)
    assert bool(why) == bool(other_writers(0o755, 0, attributes, (0,), (0,)))


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        (ACCESS, True), ("security.selinux", True), ("security.SMACK64", True), ("security.capability", True),
        ("system.nfs4_acl", True), (DEFAULT, False), ("security.ima", False), ("security.evm", False),
        ("user.note", False), ("trusted.overlay.opaque", False),
    ],
)  # fmt: skip
def test_attributes_that_decide_about_access(name: str, kept: bool) -> None:
    assert is_kept(name) is kept


@pytest.mark.parametrize(
    ("mode", "then"),
    [
        (0o640, READER),
        (0o600, "user::6 user:1234:4 group::0 mask::0 other::0"),
        (0o664, "user::6 user:1234:4 group::0 mask::6 other::4"),
    ],
)
def test_the_mode_of_a_replacement_is_the_mask_of_its_list(mode: int, then: str, place: Path) -> None:
    old, new = place / "old", place / "new"
    old.touch()
    set_acl(old, READER)
    with closing(FS, FS.open_file(old)) as handle:
        attributes = FS.attributes(handle)
    with closing(FS, FS.create(new, 0o600)) as handle:
        give_attributes(FS, handle, attributes, mode)
    assert (acl_of(new), stat.S_IMODE(new.stat().st_mode)) == (packed(then), mode)


@pytest.mark.parametrize("mode", [0o600, 0o640])
def test_a_replacement_inherits_no_further_rights(mode: int, place: Path) -> None:
    old, new = place / "old", place / "new"
    old.touch()
    set_acl(place, "user::7 user:1234:7 group::7 mask::7 other::0", DEFAULT)
    with closing(FS, FS.open_file(old)) as handle:
        attributes = FS.attributes(handle)
    with closing(FS, FS.create(new, 0o600)) as handle:
        assert acl_of(new) is not None
        give_attributes(FS, handle, attributes, mode)
    assert (acl_of(new), stat.S_IMODE(new.stat().st_mode)) == (None, mode)


def test_the_operators_files_keep_their_list(place: Path) -> None:
    path = place / "policy.json"
    path.write_bytes(b"old")
    set_acl(path, "user::6 user:1234:4 group::4 mask::4 other::4")
    write_atomic(FS, path, b"new", mode=0o644, keep_attributes=True)
    assert (path.read_bytes(), acl_of(path)) == (b"new", packed("user::6 user:1234:4 group::4 mask::4 other::4"))
    write_atomic(FS, place / "fresh", b"new", mode=0o644, keep_attributes=True)
    assert stat.S_IMODE((place / "fresh").stat().st_mode) == 0o644


def test_the_lists_of_a_path_are_its_own(place: Path) -> None:
    """They are read from the link itself, and labels are not lists."""
    path, link = place / "file", place / "link"
    path.touch()
    assert lists_of(str(path)) == {}
    set_acl(path, READER)
    link.symlink_to("file")
    assert (lists_of(str(path)), lists_of(str(link))) == ({ACCESS: packed(READER)}, {})
    set_acl(place, READER, DEFAULT)
    assert lists_of(str(place)) == {}, "a list for new files does not decide about the directory"


@pytest.mark.parametrize(("code", "known"), [(errno.ENOTSUP, True), (errno.ENOSYS, True), (errno.EACCES, False)])
def test_a_file_system_without_lists_has_none(
    code: int, known: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> list[str]:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "listxattr", refuse)
    with closing(FS, FS.open_dir(tmp_path)) as handle:
        if known:
            assert (lists_of(str(tmp_path)), FS.attributes(handle)) == ({}, {})
            return
        with pytest.raises(OSError, match=os.strerror(code)):
            lists_of(str(tmp_path))
        with pytest.raises(DiskError, match="cannot read the attributes"):
            FS.attributes(handle)


def test_labels_of_the_old_file_are_given_to_the_new_one_if_they_differ() -> None:
    fs = ModelFs()
    fs.put("/d/new", b"", 0o600)
    with closing(fs, fs.open_file("/d/new")) as handle:
        fs.set_attribute(handle, "security.selinux", b"inherited")
        fs.set_attribute(handle, "security.same", b"same")
        fs.trace.clear()
        old = {"security.selinux": b"old", "security.same": b"same", "system.richacl": b"x"}
        give_attributes(fs, handle, old, 0o644)
    assert fs.trace == ["set_attribute /d/new", "chmod /d/new"]
    found = fs.tree()["/d/new"]
    assert (found.attributes, found.mode) == ({"security.selinux": b"old", "security.same": b"same"}, 0o644)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o751])
def test_without_a_mask_the_mode_sets_the_rights_of_the_group(mode: int) -> None:
    fs = ModelFs()
    fs.put("/d/new", b"", 0o600)
    with closing(fs, fs.open_file("/d/new")) as handle:
        give_attributes(fs, handle, {ACCESS: packed("user::7 group::7 other::7")}, mode)
        expected = f"user::{mode >> 6} group::{mode >> 3 & 7} other::{mode & 7}"
        assert fs.attributes(handle) == {ACCESS: packed(expected)}
