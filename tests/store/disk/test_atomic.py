"""Files are replaced atomically, and leftovers of crashed writers are removed."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from modeldisk import ModelFs

from certctrl.errors import DiskError
from certctrl.store.disk.atomic import (
    is_temp,
    read_bytes,
    remove_file,
    swap_link_at,
    sweep_temps,
    temp_name,
    write_atomic,
)
from certctrl.store.disk.fs import Handle, RealFs, Stat, closing

FS = RealFs()


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def test_write_atomic_replaces_contents_and_mode(tmp_path: Path) -> None:
    target = tmp_path / "x"
    target.write_text("old")
    target.chmod(0o666)
    write_atomic(FS, target, b"new")
    assert (target.read_bytes(), mode_of(target)) == (b"new", 0o600)
    write_atomic(FS, target, b"newer", mode=0o644)
    assert (target.read_bytes(), mode_of(target)) == (b"newer", 0o644)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_write_atomic_replaces_a_link_itself(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("mine")
    (tmp_path / "x").symlink_to("victim")
    write_atomic(FS, tmp_path / "x", b"new")
    assert (tmp_path / "victim").read_text() == "mine"
    assert not (tmp_path / "x").is_symlink()


def test_write_atomic_counts_its_fsyncs(tmp_path: Path) -> None:
    def count(**how: bool) -> list[str]:
        fs = ModelFs()
        fs.put("/d/x", b"old")
        write_atomic(fs, Path("/d/x"), b"new", **how)
        return [line.partition(" ")[0] for line in fs.trace if line.startswith(("fsync", "syncfs"))]

    assert count() == ["fsync", "fsync"]
    assert count(sync_parent=False) == ["fsync"]
    assert count(durable=False) == []


@pytest.mark.parametrize(("code", "tries"), [(errno.EIO, 3), (errno.ENOSPC, 1)])
def test_after_a_failed_fsync_the_bytes_are_written_again(code: int, tries: int) -> None:
    """After EIO the page may be marked clean, so the bytes are written to a new file, a few times."""
    fs = ModelFs()
    fs.put("/d/x", b"old")
    fs.fault = lambda verb, path: code if verb == "fsync" else None
    with pytest.raises(DiskError) as caught:
        write_atomic(fs, Path("/d/x"), b"new")
    assert caught.value.errno == code
    assert sum(line.startswith("create") for line in fs.trace) == tries
    assert list(fs.tree()) == ["/", "/d", "/d/x"]
    assert fs.tree()["/d/x"].data == b"old"


def test_write_atomic_survives_one_failed_fsync() -> None:
    fs = ModelFs()
    fs.put("/d/x", b"old")
    faults = [errno.EIO]
    fs.fault = lambda verb, path: faults.pop() if verb == "fsync" and faults else None
    write_atomic(fs, Path("/d/x"), b"new")
    assert fs.tree()["/d/x"].data == b"new"


def swap_link(link: Path, text: str, keep: str = "") -> bool:
    with closing(FS, FS.open_dir(link.parent)) as parent:
        return swap_link_at(FS, parent, link.name, text, keep=keep)


def test_swap_link_replaces_only_a_different_link(tmp_path: Path) -> None:
    link = tmp_path / "live"
    assert swap_link(link, "one") is True
    first = link.lstat().st_ino
    assert swap_link(link, "one") is False
    assert swap_link(link, "two", keep="one") is False
    assert (os.readlink(link), link.lstat().st_ino) == ("one", first)
    assert swap_link(link, "two", keep="three") is True
    assert os.readlink(link) == "two"
    link.unlink()
    link.write_text("two")
    assert swap_link(link, "two") is True, "a file is not a link"
    assert os.readlink(link) == "two"
    assert [path.name for path in tmp_path.iterdir()] == ["live"]


@pytest.mark.parametrize("verb", ["write", "chmod", "rename"])
def test_a_failed_replacement_leaves_the_old_file_alone(verb: str) -> None:
    fs = ModelFs()
    fs.put("/d/x", b"old", 0o644)
    fs.symlink("one", "/d/live")
    fs.fault = lambda called, path: errno.ENOSPC if called == verb else None
    with pytest.raises(DiskError):
        write_atomic(fs, Path("/d/x"), b"new", mode=0o640)
    if verb == "rename":
        with closing(fs, fs.open_dir("/d")) as parent, pytest.raises(DiskError):
            swap_link_at(fs, parent, "live", "two")
    tree = fs.tree()
    assert tree.keys() == {"/", "/d", "/d/x", "/d/live"}
    assert (tree["/d/x"].data, tree["/d/x"].mode, tree["/d/live"].text, fs.open_files()) == (b"old", 0o644, "one", [])


@pytest.mark.parametrize("kind", ["file", "directory", "link", "nothing"])
def test_only_a_file_leaves_its_attributes_to_its_replacement(kind: str) -> None:
    fs = ModelFs()
    fs.put("/d/victim", b"old", 0o644)
    if kind == "file":
        fs.put("/d/x", b"old", 0o644)
        with closing(fs, fs.open_file("/d/x")) as handle:
            fs.set_attribute(handle, "security.selinux", b"label")
    elif kind == "link":
        fs.symlink("victim", "/d/x")
    elif kind == "directory":
        fs.mkdir("/d/x", 0o755)
        with pytest.raises(DiskError):
            write_atomic(fs, Path("/d/x"), b"new", mode=0o644, keep_attributes=True)
        fs.rmdir("/d/x")
    for keep in ({"keep_attributes": True}, {}):
        write_atomic(fs, Path("/d/x"), b"new", mode=0o640, **keep)
        found = fs.tree()["/d/x"]
        assert (found.data, found.mode) == (b"new", 0o640)
        assert found.attributes == ({"security.selinux": b"label"} if keep and kind == "file" else {})
    assert (fs.tree().keys(), fs.open_files()) == ({"/", "/d", "/d/victim", "/d/x"}, [])


def test_a_temporary_file_that_a_sweep_took_is_written_again() -> None:
    fs = ModelFs()
    fs.put("/d/x", b"old")
    faults = [errno.ENOENT]
    fs.fault = lambda verb, path: faults.pop() if verb == "rename" and faults else None
    write_atomic(fs, Path("/d/x"), b"new")
    assert fs.tree()["/d/x"].data == b"new" and not fs.pending


@pytest.mark.usefixtures("no_wait")
def test_read_bytes_distinguishes_missing_from_unreadable(tmp_path: Path) -> None:
    big, pipe, link = (tmp_path / name for name in ("big", "pipe", "link"))
    big.write_bytes(b"x" * 11)
    os.mkfifo(pipe)
    link.symlink_to("big")
    assert read_bytes(FS, tmp_path / "nothing", 10) is None
    assert read_bytes(FS, big / "below a file", 10) is None
    assert read_bytes(FS, big, 11) == b"x" * 11
    with closing(FS, FS.open_dir(tmp_path)) as parent:
        assert read_bytes(FS, "big", 11, at=parent) == b"x" * 11
    for path, what, code, fix in (
        (big, f"{big} has 11 bytes, more than 10", errno.EFBIG, f"find out what wrote {big}, and move it away"),
        (pipe, f"{pipe} is not a regular file", 0, f"move {pipe} away"),
        (link, f"cannot read {link}: {os.strerror(errno.ELOOP)}", errno.ELOOP, None),
    ):
        with pytest.raises(DiskError) as caught:
            read_bytes(FS, path, 10)
        assert (str(caught.value), caught.value.path, caught.value.errno) == (what, str(path), code)
        assert fix is None or caught.value.fix == fix


def test_a_file_is_judged_by_its_handle_before_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"four")

    def judge(handle: Handle, found: Stat) -> None:
        assert FS.fstat(handle) == found
        raise DiskError("refused", path=handle.path, fix="x")

    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(DiskError, match="refused"):
        read_bytes(FS, tmp_path / "x", 10, judge=judge)
    assert read_bytes(FS, tmp_path / "x", 10, judge=lambda handle, found: None) == b"four"
    assert len(os.listdir("/proc/self/fd")) == before


def test_remove_file_returns_whether_it_existed(tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    assert remove_file(FS, tmp_path / "x") is True
    assert remove_file(FS, tmp_path / "x") is False


@pytest.mark.parametrize("durable", [True, False])
def test_a_removal_is_durable_unless_it_need_not_be(durable: bool) -> None:
    fs = ModelFs()
    fs.put("/d/x", b"old")
    assert remove_file(fs, Path("/d/x"), durable=durable)
    assert ("/d/x" in fs.tree(), bool(fs.pending), fs.open_files()) == (False, not durable, [])


def test_a_removal_is_durable_by_default() -> None:
    fs = ModelFs()
    fs.put("/d/x", b"old")
    assert remove_file(fs, Path("/d/x")) and not fs.pending


# --- leftovers ----------------------------------------------------------------------------------------------

HOLD = """
import sys, time
from certctrl.store.disk.fs import RealFs
fs = RealFs()
handle = fs.create(sys.argv[1], 0o600)
fs.try_lock(handle)
print("ready", flush=True)
sys.stdin.read()
"""


def test_sweep_temps_keeps_files_of_living_writers(tmp_path: Path) -> None:
    dead, living, other = (tmp_path / name for name in (temp_name(FS, "a"), temp_name(FS, "b"), "c.txt"))
    dead.write_text("secret")
    other.touch()
    (tmp_path / temp_name(FS, "l")).symlink_to("nowhere")
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(living)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as writer:
        assert writer.stdout is not None and writer.stdout.readline() == b"ready\n"
        assert sweep_temps(FS, tmp_path) == 2
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted([living.name, "c.txt"])
        writer.kill()
        writer.wait()
        assert sweep_temps(FS, tmp_path) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["c.txt"]


@pytest.mark.usefixtures("no_wait")
def test_sweep_temps_keeps_files_of_other_forms(tmp_path: Path) -> None:
    for name in (".dir.00.tmp", "x.tmp", ".hidden"):
        (tmp_path / name).mkdir()
    os.mkfifo(tmp_path / ".pipe.00.tmp")
    (tmp_path / ".a.00.tmp").touch()
    assert sweep_temps(FS, tmp_path) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == [".dir.00.tmp", ".hidden", "x.tmp"]


def test_sweep_temps_keeps_unreadable_files(monkeypatch: pytest.MonkeyPatch) -> None:
    fs = ModelFs()
    fs.put("/d/.a.00.tmp", b"x")

    def gone(path: object, at: object = None) -> Handle:
        raise DiskError("cannot read", path=str(path), errno=errno.ENOENT, fix="x")

    monkeypatch.setattr(fs, "open_file", gone)
    assert (sweep_temps(fs, Path("/d")), list(fs.tree())) == (0, ["/", "/d", "/d/.a.00.tmp"])
    monkeypatch.undo()
    assert (sweep_temps(fs, Path("/d")), list(fs.tree()), fs.open_files()) == (1, ["/", "/d"], [])


def test_temporary_names_are_hidden_short_and_unique() -> None:
    names = {temp_name(FS, "x" * 255) for _ in range(50)}
    assert len(names) == 50
    assert all(is_temp(name) and len(name) < 255 for name in names)
    assert not is_temp("x.tmp") and not is_temp(".x")
    assert temp_name(FS, "www.key").startswith(".www.key.")
    assert temp_name(FS, "x" * 255).partition(".x")[2].partition(".")[0] == "x" * 179
