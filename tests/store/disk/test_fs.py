"""The real file system: modes, links, and errors with path, reason and fix."""

from __future__ import annotations

import ctypes
import errno
import io
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from certctrl.errors import DiskError, ExitStatus
from certctrl.store.disk import fs as fs_module
from certctrl.store.disk.fs import FileKind, Handle, RealFs, Stat, _syncfs_call, closing, disk_error

FS = RealFs()


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o777])
@pytest.mark.parametrize("mode", [0o600, 0o644])
def test_create_sets_exactly_the_mode(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        with closing(FS, FS.create(tmp_path / "x", mode)):
            pass
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == mode


def test_create_requests_the_final_mode_from_the_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even with umask 0, open gets 0600; the later fchmod only restores bits."""
    asked: list[int] = []
    real = os.open
    monkeypatch.setattr(
        os, "open", lambda path, flags, mode=0, **more: asked.append(mode) or real(path, flags, mode, **more)
    )
    FS.close(FS.create(tmp_path / "x", 0o600))
    assert asked == [0o600]


def test_create_never_follows_or_replaces(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("mine")
    (tmp_path / "link").symlink_to("victim")
    for name in ("link", "victim"):
        with pytest.raises(DiskError) as caught:
            FS.create(tmp_path / name, 0o600)
        assert caught.value.errno == errno.EEXIST
    assert (tmp_path / "victim").read_text() == "mine"


def links(path: Path) -> list[Callable[[], Handle]]:
    return [
        lambda: FS.open_file(path), lambda: FS.open_dir(path), lambda: FS.open_append(path, 0o600),
        lambda: FS.open_lock(path, 0o600),
    ]  # fmt: skip


@pytest.mark.parametrize("number", range(4))
def test_open_refuses_a_link_as_last_component(tmp_path: Path, number: int) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with pytest.raises(DiskError) as caught:
        links(tmp_path / "link")[number]()
    assert caught.value.errno in (errno.ELOOP, errno.ENOTDIR)
    assert "real" in str(caught.value.fix)


def test_handles_are_not_inherited(tmp_path: Path) -> None:
    with closing(FS, FS.create(tmp_path / "x", 0o600)) as handle:
        assert not os.get_inheritable(handle.fd)


@pytest.mark.usefixtures("no_wait")
def test_a_pipe_does_not_block_reading(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with closing(FS, FS.open_file(tmp_path / "pipe")) as handle:
        assert FS.fstat(handle).kind == "other"


def test_write_continues_after_short_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, bytes(data)[:3]))
    with closing(FS, FS.create(tmp_path / "x", 0o600)) as handle:
        FS.write(handle, b"ten bytes!")
    assert (tmp_path / "x").read_bytes() == b"ten bytes!"


def test_a_write_of_zero_bytes_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "write", lambda fd, data: 0)
    with closing(FS, FS.create(tmp_path / "x", 0o600)) as handle, pytest.raises(DiskError) as caught:
        FS.write(handle, b"x")
    assert caught.value.errno == errno.EIO
    assert str(caught.value) == f"cannot write {tmp_path}/x: {os.strerror(errno.EIO)}"


def test_close_is_idempotent(tmp_path: Path) -> None:
    handle = FS.create(tmp_path / "x", 0o600)
    FS.close(handle)
    FS.close(handle)


def test_a_descriptor_of_number_zero_is_closed_too(tmp_path: Path) -> None:
    """It is given to the first file if a daemon starts without standard input."""
    kept = os.dup(0)
    os.close(0)
    try:
        handle = FS.create(tmp_path / "x", 0o600)
        assert handle.fd == 0
        FS.close(handle)
        with pytest.raises(OSError, match="descriptor"):
            os.fstat(0)
    finally:
        os.dup2(kept, 0)
        os.close(kept)


def test_tokens_are_different_hexadecimal_digits() -> None:
    tokens = {FS.token() for _ in range(50)}
    assert len(tokens) == 50 and all(len(token) == 16 and int(token, 16) >= 0 for token in tokens)


def test_a_lock_belongs_to_its_handle(tmp_path: Path) -> None:
    first, second = FS.open_lock(tmp_path / "lock", 0o600), FS.open_lock(tmp_path / "lock", 0o600)
    assert FS.try_lock(first)
    assert not FS.try_lock(second)
    FS.close(first)
    assert FS.try_lock(second)
    FS.close(second)


def test_operations_by_directory_handle(tmp_path: Path) -> None:
    with closing(FS, FS.open_dir(tmp_path)) as directory:
        FS.mkdir("d", 0o700, at=directory)
        FS.symlink("d", "l", at=directory)
        assert FS.readlink("l", at=directory) == "d"
        assert sorted(FS.listdir(directory)) == ["d", "l"]
        assert stat.S_IMODE((tmp_path / "d").stat().st_mode) == 0o700
        found = FS.lstat("l", at=directory)
        assert found is not None and found.kind == "link"
        assert FS.lstat("nothing", at=directory) is None
        FS.rename("l", "m", at=directory)
        FS.unlink("m", at=directory)
        FS.rmdir("d", at=directory)
    assert not list(tmp_path.iterdir())


def test_syncfs_and_allocation_work_here(tmp_path: Path) -> None:
    with closing(FS, FS.create(tmp_path / "x", 0o600)) as handle:
        FS.allocate(handle, 16_384)
        assert FS.fstat(handle).size == 16_384
        FS.fsync(handle)
        assert FS.syncfs(handle) in (True, False)


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (errno.ENOSPC, "free space"), (errno.EDQUOT, "quota"), (errno.EROFS, "read-write"), (errno.EACCES, "owner"),
        (errno.EPERM, "owner"), (errno.EIO, "dmesg"), (errno.EMFILE, "LimitNOFILE"), (errno.ENOENT, "init"),
        (errno.ELOOP, "not a link"), (errno.EEXIST, "move /etc/x/y away"), (errno.EFBIG, "LimitFSIZE"),
        (errno.EBUSY, "check /etc/x/y"),
    ],
)  # fmt: skip
def test_every_error_names_path_reason_and_fix(code: int, says: str) -> None:
    error = disk_error("write", "/etc/x/y", OSError(code, os.strerror(code)))
    assert (error.path, error.errno, error.exit_status) == ("/etc/x/y", code, ExitStatus.DISK)
    assert "/etc/x/y" in str(error) and os.strerror(code) in str(error)
    assert says in str(error.fix)


GONE = Handle(1 << 20, "/MAX")
"""A handle that the kernel does not know."""

CALLS: list[tuple[str, str, Callable[[], object]]] = [
    ("open", "/MAX/x", lambda: FS.open_dir("x", GONE)),
    ("read", "/MAX/x", lambda: FS.open_file("x", GONE)),
    ("write", "/MAX/x", lambda: FS.open_append("x", 0o600, GONE)),
    ("lock", "/no/such/lock", lambda: FS.open_lock("/no/such/lock", 0o600)),
    ("write", "/MAX/x", lambda: FS.open_in_place("x", GONE)),
    ("create", "/MAX/x", lambda: FS.create("x", 0o600, GONE)),
    ("read", "/MAX", lambda: FS.read(GONE, 10)),
    ("write", "/MAX", lambda: FS.write(GONE, b"x")),
    ("truncate", "/MAX", lambda: FS.truncate(GONE, 0)),
    ("reserve space for", "/MAX", lambda: FS.allocate(GONE, 10)),
    ("set the mode of", "/MAX", lambda: FS.chmod(GONE, 0o600)),
    ("set the owner of", "/MAX", lambda: FS.chown(GONE, 0, 0)),
    ("read the attributes of", "/MAX", lambda: FS.attributes(GONE)),
    ("set security.x of", "/MAX", lambda: FS.set_attribute(GONE, "security.x", b"x")),
    ("set security.x of", "/MAX", lambda: FS.set_attribute(GONE, "security.x", None)),
    ("sync", "/MAX", lambda: FS.fsync(GONE)),
    ("lock", "/MAX", lambda: FS.try_lock(GONE)),
    ("close", "/MAX", lambda: FS.close(Handle(1 << 20, "/MAX"))),
    ("replace", "/MAX/x", lambda: FS.rename("y", "x", GONE)),
    ("link", "/MAX/x", lambda: FS.symlink("y", "x", GONE)),
    ("remove", "/MAX/x", lambda: FS.unlink("x", GONE)),
    ("create", "/MAX/x", lambda: FS.mkdir("x", 0o700, GONE)),
    ("remove", "/MAX/x", lambda: FS.rmdir("x", GONE)),
    ("list", "/MAX", lambda: FS.listdir(GONE)),
    ("inspect", "/MAX/x", lambda: FS.lstat("x", GONE)),
    ("inspect", "/MAX", lambda: FS.fstat(GONE)),
    ("read the link", "/MAX/x", lambda: FS.readlink("x", GONE)),
]


@pytest.mark.parametrize(("verb", "path", "call"), CALLS)
def test_an_error_names_the_operation_and_the_path(verb: str, path: str, call: Callable[[], object]) -> None:
    with pytest.raises(DiskError) as caught:
        call()
    code = errno.ENOENT if path.startswith("/no/") else errno.EBADF
    assert str(caught.value) == f"cannot {verb} {path}: {os.strerror(code)}"
    assert (caught.value.path, caught.value.errno) == (path, code)
    assert isinstance(caught.value.__cause__, OSError)


def test_files_are_opened_for_their_use(tmp_path: Path) -> None:
    """Existing bytes stay until they are written over, and only `create`, `open_append` and `open_lock` make files."""
    path = tmp_path / "x"
    path.write_bytes(b"old bytes")
    with closing(FS, FS.open_append(path, 0o600)) as handle:
        FS.write(handle, b"!")
    with closing(FS, FS.open_in_place(path)) as handle:
        FS.write(handle, b"new")
    with closing(FS, FS.open_lock(path, 0o600)) as handle:
        assert FS.read(handle, 5) == b"new b"
        FS.write(handle, b"Y")
        FS.truncate(handle, 7)
    assert path.read_bytes() == b"new bYt"
    FS.close(FS.open_append(tmp_path / "made", 0o640))
    FS.close(FS.open_lock(tmp_path / "lock", 0o600))
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) & 0o700 for name in ("made", "lock")] == [0o600] * 2
    for missing in (FS.open_in_place, FS.open_file, FS.open_dir):
        with pytest.raises(DiskError) as caught:
            missing(tmp_path / "nothing")
        assert caught.value.errno == errno.ENOENT
    with pytest.raises(DiskError) as caught:
        FS.open_dir(path)
    assert caught.value.errno == errno.ENOTDIR


@pytest.mark.usefixtures("no_wait")
def test_a_pipe_does_not_block_writing(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DiskError) as caught:
        FS.open_in_place(tmp_path / "pipe")
    assert caught.value.errno == errno.ENXIO, "no reader"
    with closing(FS, FS.open_file(tmp_path / "pipe")), closing(FS, FS.open_in_place(tmp_path / "pipe")) as handle:
        assert FS.fstat(handle).kind is FileKind.OTHER


@pytest.mark.parametrize("limit", [0, 1, 3 << 20, (3 << 20) + 5, 1 << 30])
def test_read_returns_at_most_the_limit(tmp_path: Path, limit: int) -> None:
    data = b"0123456789abcdef" * (3 << 16) + b"rest"
    (tmp_path / "x").write_bytes(data)
    with closing(FS, FS.open_file(tmp_path / "x")) as handle:
        assert FS.read(handle, limit) == data[:limit]


def test_metadata_is_that_of_the_kernel(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"four")
    path.chmod(0o4640)
    os.link(path, tmp_path / "y")
    raw = path.stat()
    expected = Stat(FileKind.FILE, 0o4640, raw.st_uid, raw.st_gid, 4, 2, raw.st_ino, raw.st_dev, raw.st_mtime_ns)
    with closing(FS, FS.open_dir(tmp_path)) as directory, closing(FS, FS.open_file("x", directory)) as handle:
        assert FS.fstat(handle) == FS.lstat("x", directory) == FS.lstat(path) == expected
        assert FS.fstat(directory).kind is FileKind.DIR
        assert FS.mount(handle) == FS.mount(directory) != 0
    assert FS.lstat(path / "below a file") is None
    assert FS.mount(GONE) == 0


# --- what the kernel offers ---------------------------------------------------------------------------------


def uncached_syncfs_call() -> Callable[[int], int] | None:
    has_cache = hasattr(_syncfs_call, "cache_clear")  # mutation tests remove it
    return _syncfs_call.__wrapped__() if has_cache else _syncfs_call()


@pytest.mark.parametrize(
    ("release", "reports_errors"),
    [
        ("4.19.0-27-amd64", False), ("5.7.19", False), ("5.8.0", True), ("5.10.0-33-amd64", True), ("6.1", True),
        ("10.0.0", True), ("5", False), ("5.x", False),
    ],
)  # fmt: skip
def test_syncfs_is_used_from_linux_5_8_on(
    release: str, reports_errors: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Earlier kernels do not report that writing failed."""
    raw = os.uname()
    monkeypatch.setattr(os, "uname", lambda: os.uname_result((raw[0], raw[1], release, raw[3], raw[4])))
    call = uncached_syncfs_call()
    assert (call is not None) is reports_errors
    if call is not None:
        ctypes.set_errno(0)  # no error of an earlier test is reported
        with closing(FS, FS.open_dir(tmp_path)) as handle:
            assert (call(handle.fd), call(GONE.fd)) == (0, errno.EBADF)


def test_a_c_library_without_syncfs_has_none_that_reports_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: object())
    assert uncached_syncfs_call() is None


def test_syncfs_is_repeated_after_a_signal_and_reports_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    results = [errno.EINTR, errno.EINTR, 0, errno.EINTR, errno.EIO]
    monkeypatch.setattr(fs_module, "_syncfs_call", lambda: lambda fd: results.pop(0))
    assert FS.syncfs(GONE) is True
    with pytest.raises(DiskError) as caught:
        FS.syncfs(GONE)
    assert str(caught.value) == f"cannot sync the file system of /MAX: {os.strerror(errno.EIO)}"
    assert (caught.value.errno, results) == (errno.EIO, [])
    monkeypatch.setattr(fs_module, "_syncfs_call", lambda: None)
    assert FS.syncfs(GONE) is False


@pytest.mark.parametrize(
    ("text", "number"),
    [(b"pos:\t0\nflags:\t02\nmnt_id:\t25\nino:\t7\n", 25), (b"pos:\t0\n", 0), (b"mnt_id:\tx\n", 0), (b"", 0)],
)
def test_the_mount_is_that_which_the_kernel_names(text: bytes, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", lambda *_: io.BytesIO(text))
        found = FS.mount(GONE)
    assert found == number


def test_an_error_without_a_number_is_reported_by_its_text() -> None:
    error = disk_error("write", "name", OSError("no reason"))
    assert (str(error), error.errno, error.fix) == ("cannot write name: no reason", 0, "check name and its file system")
    assert str(disk_error("write", "name", OSError(errno.ENOSPC, "x")).fix).endswith(
        "free space (or inodes) on the file system of .; see df -h and df -i"
    )
