"""Destinations and the directories on the way are judged by handle; unsafe ones are refused with the reason."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from acl import ACCESS, packed
from modeldisk import ModelFs

from certctrl.errors import DiskError, PolicyRefusedError
from certctrl.model.paths import is_below, path_fault
from certctrl.store.disk.fs import FileKind, RealFs, closing
from certctrl.store.disk.safe_path import (
    IN_PLACE,
    MOUNTED,
    SIZE_LIMIT,
    DestinationFact,
    NoDirectoryError,
    destination_facts,
    facts_at,
    open_parent,
    read_at,
)

FS = RealFs()


def test_destination_facts_of_a_safe_destination(site: Path) -> None:
    found = destination_facts(site / "ssl" / "site.pem", [site])
    assert (found.kind, found.mode, found.uid, found.nlink, found.refusal) == ("file", 0o640, os.geteuid(), 1, None)
    assert found.sha256 == hashlib.sha256((site / "ssl" / "site.pem").read_bytes()).hexdigest()
    missing = destination_facts(str(site / "ssl" / "new.pem"), [str(site)])
    assert (missing.kind, missing.sha256, missing.refusal) == ("missing", None, None)


@pytest.mark.root
def test_another_users_directory_is_refused_unless_it_gets_the_file(site: Path) -> None:
    target = site / "ssl" / "site.pem"
    os.chown(site / "ssl", 65534, 65534)
    assert "belongs to user 65534" in str(destination_facts(target, [site]).refusal)
    assert destination_facts(target, [site], owner=65534).refusal is None
    os.chown(site / "ssl", 0, 65534)
    (site / "ssl").chmod(0o775)
    assert "written by group 65534" in str(destination_facts(target, [site]).refusal)


@pytest.mark.parametrize(
    "path",
    [
        "relative/x",
        "/a/../etc/passwd",
        "/a//b",
        "/a/./b",
        "/a/b/",
        "/a/\0b",
        "/a/\nb",
        "/a/\x1b[31m",
        "",
        "/",
        "/a/" + "x" * 300,
    ],
)
def test_paths_that_are_not_normalized_are_below_no_root(path: str) -> None:
    assert path_fault(path)
    assert not is_below(path, "/")
    assert destination_facts(path, ["/"]).refusal


@pytest.mark.parametrize(
    ("path", "root", "below"),
    [("/srv/x", "/srv", True), ("/srv", "/srv", False), ("/srvx/y", "/srv", False), ("/srv/x", "/", True)],
)
def test_is_below_compares_whole_components(path: str, root: str, below: bool) -> None:
    assert is_below(path, root) is below


def test_paths_outside_all_roots_are_refused_unread(site: Path) -> None:
    assert "allowed" in str(destination_facts("/etc/passwd", [site]).refusal)
    assert destination_facts("/etc/passwd", []).sha256 is None


# --- what is at a destination -------------------------------------------------------------------------------


def test_the_facts_of_a_file_are_those_of_the_kernel(site: Path) -> None:
    path = site / "ssl" / "site.pem"
    path.chmod(0o4640)
    raw = path.stat()
    assert destination_facts(path, [site]) == DestinationFact(
        path=path, kind=FileKind.FILE, sha256=hashlib.sha256(b"old leaf").hexdigest(), mode=0o640, uid=raw.st_uid,
        gid=raw.st_gid, size=8, nlink=1, data=b"old leaf", identity=(raw.st_dev, raw.st_ino),
    )  # fmt: skip


def link(path: Path) -> None:
    path.symlink_to("/etc/passwd")


@pytest.mark.usefixtures("no_wait")
@pytest.mark.parametrize(
    ("make", "kind", "named"),
    [
        (Path.mkdir, FileKind.DIR, "a directory"), (link, FileKind.LINK, "a symbolic link"),
        (os.mkfifo, FileKind.OTHER, "a device, pipe or socket"),
    ],
)  # fmt: skip
def test_only_regular_files_are_replaced(make: Callable[[Path], None], kind: FileKind, named: str, site: Path) -> None:
    path = site / "ssl" / "x"
    make(path)
    found, raw = destination_facts(path, [site]), path.lstat()
    assert (found.kind, found.refusal) == (kind, f"{path} is {named}, not a regular file")
    assert (found.sha256, found.data, found.mode) == (None, b"", stat.S_IMODE(raw.st_mode))
    assert (found.identity, found.nlink) == ((raw.st_dev, raw.st_ino), raw.st_nlink)


def test_a_file_with_a_second_name_is_refused(site: Path) -> None:
    path = site / "ssl" / "site.pem"
    os.link(path, site / "ssl" / "second")
    found = destination_facts(path, [site])
    assert (found.refusal, found.nlink) == (f"{path} has 2 hard links", 2)


@pytest.mark.parametrize(("mode", "in_place", "who"), [(0o646, True, "others"), (0o646, False, ""), (0o640, True, "")])
def test_a_file_that_others_can_write_is_not_written_over(mode: int, in_place: bool, who: str, site: Path) -> None:
    path = site / "ssl" / "site.pem"
    path.chmod(mode)
    refusal = f"{path} can be written by {who} (mode 0{mode:o}), so it is not written in place" if who else None
    assert destination_facts(path, [site], in_place=in_place).refusal == refusal


@pytest.mark.root
@pytest.mark.parametrize(("uid", "gid", "who"), [(65534, 0, None), (0, 65534, "group 65534")])
def test_the_owner_of_a_file_may_write_it_but_not_another_group(
    uid: int, gid: int, who: str | None, site: Path
) -> None:
    path = site / "ssl" / "site.pem"
    path.chmod(0o660)
    os.chown(path, uid, gid)
    refusal = destination_facts(path, [site], in_place=True).refusal
    assert refusal is None if who is None else f"can be written by {who} (mode 0660)" in str(refusal)


@pytest.mark.parametrize(("size", "fits"), [(SIZE_LIMIT, True), (SIZE_LIMIT + 1, False)])
def test_files_are_read_up_to_four_mebibytes(size: int, fits: bool, site: Path) -> None:
    path = site / "ssl" / "site.pem"
    os.truncate(path, size)
    with closing(FS, FS.open_dir(path.parent)) as parent:
        if fits:
            assert len(read_at(FS, parent, "site.pem")) == size == len(destination_facts(path, [site]).data)
            return
        for read in (lambda: read_at(FS, parent, "site.pem"), lambda: destination_facts(path, [site])):
            with pytest.raises(DiskError) as caught:
                read()
            assert str(caught.value) == f"{path} is not a regular file of at most 4194304 bytes"
            assert (caught.value.path, caught.value.errno) == (str(path), errno.EFBIG)
            assert caught.value.fix == f"move {path} away"


@pytest.mark.usefixtures("no_wait")
def test_a_pipe_is_not_read(site: Path) -> None:
    os.mkfifo(site / "ssl" / "pipe")
    with closing(FS, FS.open_dir(site / "ssl")) as parent, pytest.raises(DiskError, match="not a regular file"):
        read_at(FS, parent, "pipe")


# --- the way ------------------------------------------------------------------------------------------------


def refused(path: Path | str, fs: ModelFs | RealFs = FS, owner: int | None = None) -> PolicyRefusedError:
    with pytest.raises(PolicyRefusedError) as caught:
        FS.close(open_parent(fs, Path(path), owner=owner))
    return caught.value


def test_the_directory_of_a_path_is_opened(site: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with closing(FS, open_parent(FS, site / "ssl" / "x")) as parent:
        assert FS.fstat(parent).ino == (site / "ssl").stat().st_ino
        assert parent.path == str(site / "ssl")
        assert not os.get_inheritable(parent.fd)
        assert len(os.listdir("/proc/self/fd")) == before + 1
    with closing(FS, open_parent(FS, Path("/x"))) as top:
        assert FS.fstat(top).ino == os.stat("/").st_ino


def test_a_step_that_is_not_a_directory_is_refused(site: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    (site / "link").symlink_to("ssl")
    for step in (site / "link", site / "ssl" / "site.pem"):
        error = refused(step / "x")
        assert str(error) == f"{step} is a symbolic link or not a directory"
        assert error.fix == f"use the real path in the install plan; see realpath {step}"
    missing = refused(site / "no" / "dir" / "x")
    assert isinstance(missing, NoDirectoryError)
    assert (str(missing), missing.fix) == (f"there is no directory {site / 'no'}", f"mkdir {site / 'no'}")
    assert str(refused("/no-such-directory/x")) == "there is no directory /no-such-directory"
    (site / "X").mkdir(mode=0o755)
    assert str(refused(site / "X" / "no" / "x")) == f"there is no directory {site / 'X' / 'no'}"
    odd = refused("/a/../\u2028" + "b" * 300)
    assert str(odd).startswith(r"'/a/../\u2028bbb") and len(str(odd).partition(": ")[0]) == 200
    assert odd.fix == "use another path in the install plan"
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.fixture
def model() -> ModelFs:
    """Return a disk of user 1000 with /srv/www/ssl."""
    fs = ModelFs(uid=1000)
    fs.put_dir("/srv/www/ssl")
    return fs


def give(fs: ModelFs, path: str, uid: int, gid: int, mode: int) -> None:
    with closing(fs, fs.open_dir(path)) as handle:
        fs.chown(handle, uid, gid)
        fs.chmod(handle, mode)


OPEN_WAY: list[tuple[str, int, int, int]] = [
    ("/srv", 0, 0, 0o755), ("/srv", 1000, 1000, 0o755), ("/srv", 4711, 4711, 0o755), ("/srv", 0, 33, 0o1777),
    ("/srv", 0, 33, 0o1757), ("/srv/www/ssl", 0, 0, 0o775), ("/srv/www/ssl", 1000, 1000, 0o775),
    ("/srv/www/ssl", 4711, 33, 0o755), ("/", 0, 0, 0o775),
    ("/", 4711, 33, 0o755),
]  # fmt: skip
CLOSED_WAY: list[tuple[str, int, int, int, str]] = [
    ("/srv", 33, 0, 0o755, "belongs to user 33, who could change what is in it"),
    ("/srv/www/ssl", 33, 0, 0o755, "belongs to user 33, who could change what is in it"),
    ("/srv", 0, 33, 0o775, "can be written by group 33 (mode 0775)"),
    ("/srv", 0, 0, 0o757, "can be written by others (mode 0757)"),
    ("/srv/www/ssl", 0, 33, 0o775, "can be written by group 33 (mode 0775)"),
    ("/srv/www/ssl", 0, 33, 0o1775, "can be written by group 33 (mode 1775)"),
    ("/", 0, 33, 0o775, "can be written by group 33 (mode 0775)"),
]


@pytest.mark.parametrize(("path", "uid", "gid", "mode"), OPEN_WAY)
def test_a_way_that_only_trusted_users_can_change(path: str, uid: int, gid: int, mode: int, model: ModelFs) -> None:
    """Trusted are root, the current user and the user who gets the file (4711)."""
    give(model, path, uid, gid, mode)
    model.close(open_parent(model, Path("/srv/www/ssl/site.pem"), owner=4711))
    assert model.open_files() == []


@pytest.mark.parametrize(("path", "uid", "gid", "mode", "why"), CLOSED_WAY)
def test_a_way_that_others_can_change_is_refused(
    path: str, uid: int, gid: int, mode: int, why: str, model: ModelFs
) -> None:
    give(model, path, uid, gid, mode)
    error = refused("/srv/www/ssl/site.pem", model, owner=4711)
    assert str(error) == f"{path} {why}"
    belongs = f"chown root {path}, or give the file to that user in the plan"
    assert error.fix == (belongs if "belongs" in why else f"chmod go-w {path}; see getfacl {path}")
    assert model.open_files() == []
    found = destination_facts("/srv/www/ssl/site.pem", ["/srv"], fs=model, owner=4711)
    assert (found.kind, found.refusal) == (FileKind.MISSING, f"{path} {why}")


def test_an_error_on_the_way_is_passed_on(model: ModelFs, monkeypatch: pytest.MonkeyPatch) -> None:
    real = model.open_dir

    def broken(path: object, at: object = None) -> object:
        if path == "www":
            raise DiskError("cannot open /srv/www: Input/output error", path="/srv/www", errno=errno.EIO, fix="x")
        return real(path, at)  # type: ignore[arg-type]

    monkeypatch.setattr(model, "open_dir", broken)
    with pytest.raises(DiskError) as caught:
        open_parent(model, Path("/srv/www/ssl/site.pem"))
    assert (caught.value.errno, model.open_files()) == (errno.EIO, [])


# --- rights and mounts on a model disk ----------------------------------------------------------------------


def judged(fs: ModelFs, uid: int, gid: int, attributes: dict[str, bytes], **how: bool) -> DestinationFact:
    """Return the facts of a file with this owner and these attributes."""
    fs.put("/srv/www/ssl/x", b"old", 0o660)
    with closing(fs, fs.open_file("/srv/www/ssl/x")) as handle:
        fs.chown(handle, uid, gid)
        for name, value in attributes.items():
            fs.set_attribute(handle, name, value)
    return destination_facts("/srv/www/ssl/x", ["/srv"], fs=fs, **how)


@pytest.mark.parametrize(
    ("uid", "gid", "acl", "who"),
    [
        (1000, 1000, "", None), (1000, 0, "", None), (33, 0, "", None), (1000, 33, "", "group 33"),
        (33, 0, "user::6 user:0:6 user:33:6 user:1000:6 group::6 mask::6 other::0", None),
        (1000, 0, "user::6 user:33:6 group::6 mask::6 other::0", "user 33"),
        (1000, 0, "user::6 group::6 group:33:6 mask::6 other::0", "group 33"),
    ],
)  # fmt: skip
def test_only_trusted_users_may_write_a_file_that_is_written_over(
    uid: int, gid: int, acl: str, who: str | None, model: ModelFs
) -> None:
    """Trusted are root, the current user (1000) and the owner of the file."""
    attributes = {ACCESS: packed(acl)} if acl else {}
    found = judged(model, uid, gid, attributes, in_place=True)
    why = f"/srv/www/ssl/x can be written by {who} (mode 0660), so it is not written in place"
    assert (found.refusal, found.attributes, found.data) == (why if who else None, attributes, b"old")
    assert judged(model, uid, gid, attributes).refusal is None, "a file that is replaced is not judged"


@pytest.mark.parametrize("in_place", [True, False])
def test_rights_that_are_not_understood_cannot_be_kept(in_place: bool, model: ModelFs) -> None:
    why = "it has an access control list that this agent does not know (system.richacl)"
    found = judged(model, 1000, 1000, {"system.richacl": b"x"}, in_place=in_place)
    assert found.refusal == f"/srv/www/ssl/x: {why}, so its rights cannot be kept"


def test_a_mount_point_is_only_written_over(model: ModelFs) -> None:
    assert judged(model, 1000, 1000, {}).refusal is None
    model.mount_on("/srv/www/ssl/x")
    with closing(model, model.open_dir("/srv/www/ssl")) as parent:
        refusal = facts_at(model, parent, Path("/srv/www/ssl/x")).refusal
        assert facts_at(model, parent, Path("/srv/www/ssl/x"), in_place=True).refusal is None
    assert refusal == f"/srv/www/ssl/x {MOUNTED}: {IN_PLACE}"


@pytest.mark.parametrize("acl", ["user::7 user:0:7 user:1000:7 user:4711:7 group::7 group:0:7 mask::7 other::5"])
def test_trusted_users_may_write_a_directory_by_its_list(acl: str, model: ModelFs) -> None:
    give(model, "/srv/www/ssl", 0, 1000, 0o775)
    with closing(model, model.open_dir("/srv/www/ssl")) as handle:
        model.set_attribute(handle, ACCESS, packed(acl))
    model.close(open_parent(model, Path("/srv/www/ssl/x"), owner=4711))
    assert "user 4711" in str(refused("/srv/www/ssl/x", model))
