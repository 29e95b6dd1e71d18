"""Atomic replacement of files; the config directory is created and kept private."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from modeldisk import ModelFs

from certctrl.errors import ConfigError, DiskError
from certctrl.store.disk.atomic import (
    is_temp,
    read_bytes,
    remove_file,
    swap_link_at,
    sweep_temps,
    temp_name,
    write_atomic,
)
from certctrl.store.disk.fs import RealFs, closing
from certctrl.store.disk.tree import check_modes, make_tree  # fmt: skip
from certctrl.store.layout import ConfigDir

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


def swap_link(link: Path, text: str) -> None:
    with closing(FS, FS.open_dir(link.parent)) as parent:
        swap_link_at(FS, parent, link.name, text)


def test_swap_link_replaces_only_a_different_link(tmp_path: Path) -> None:
    link = tmp_path / "live"
    swap_link(link, "one")
    first = link.lstat().st_ino
    swap_link(link, "one")
    assert link.lstat().st_ino == first
    swap_link(link, "two")
    assert os.readlink(link) == "two"
    assert [path.name for path in tmp_path.iterdir()] == ["live"]


def test_read_bytes_distinguishes_missing_from_unreadable(tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(b"x" * 11)
    os.mkfifo(tmp_path / "pipe")
    assert read_bytes(FS, tmp_path / "nothing", 10) is None
    assert read_bytes(FS, tmp_path / "big", 11) == b"x" * 11
    for name in ("big", "pipe"):
        with pytest.raises(DiskError) as caught:
            read_bytes(FS, tmp_path / name, 10)
        assert name in str(caught.value)
        assert caught.value.fix


def test_remove_file_returns_whether_it_existed(tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    assert remove_file(FS, tmp_path / "x")
    assert not remove_file(FS, tmp_path / "x")


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


def test_temporary_names_are_hidden_short_and_unique() -> None:
    names = {temp_name(FS, "x" * 255) for _ in range(50)}
    assert len(names) == 50
    assert all(is_temp(name) and len(name) < 255 for name in names)
    assert not is_temp("x.tmp") and not is_temp(".x")


# --- the tree -----------------------------------------------------------------------------------------------


@pytest.fixture
def layout(tmp_path: Path) -> ConfigDir:
    made = ConfigDir(tmp_path / "deep" / "agent")
    make_tree(FS, made)
    return made


def test_the_tree_is_private_under_any_umask(tmp_path: Path) -> None:
    before = os.umask(0o277)
    try:
        layout = ConfigDir(tmp_path / "agent")
        make_tree(FS, layout)
    finally:
        os.umask(before)
    assert {mode_of(path) for path in layout.directories()} == {0o700}
    make_tree(FS, layout)  # idempotent
    assert check_modes(FS, layout) == []


def test_make_tree_reports_a_file_in_place_of_a_directory(tmp_path: Path) -> None:
    layout = ConfigDir(tmp_path / "agent")
    layout.root.mkdir()
    layout.state.touch()
    with pytest.raises(ConfigError, match="state"):
        make_tree(FS, layout)


@pytest.mark.parametrize(
    ("name", "mode", "wanted"),
    [
        (".", 0o755, 0o700), ("state", 0o750, 0o700), ("state/access_token.txt", 0o644, 0o600), ("keys", 0o777, 0o700),
        ("keys/account_keys/acme.key", 0o640, 0o600), ("state/passwords/a.pfx", 0o604, 0o600),
        ("certs", 0o775, 0o755), ("certs/.generations", 0o711, 0o700), ("application.json", 0o666, 0o644),
    ],
)  # fmt: skip
def test_excess_permissions_are_removed(layout: ConfigDir, name: str, mode: int, wanted: int) -> None:
    path = layout.root / name
    if not path.exists():
        path.touch()
    path.chmod(mode)
    (dry_run,) = check_modes(FS, layout, repair=False)
    assert (dry_run.path, dry_run.repaired, mode_of(path)) == (path, False, mode)
    assert dry_run.fix == f"chmod {wanted:04o} {path}"
    (found,) = check_modes(FS, layout)
    assert (found.path, found.was, found.now, found.repaired) == (path, mode, wanted, True)
    assert mode_of(path) == wanted
    assert check_modes(FS, layout) == []


@pytest.mark.parametrize("mode", [0o666, 0o664, 0o646])
def test_a_policy_writable_by_others_is_refused_and_stays_so(layout: ConfigDir, mode: int) -> None:
    layout.policy.write_text("{}")
    layout.policy.chmod(mode)
    layout.root.chmod(0o755)
    for _ in range(2):
        with pytest.raises(ConfigError, match="others can write it") as caught:
            check_modes(FS, layout)
        assert caught.value.fix and f"chmod go-w {layout.policy}" in caught.value.fix
    assert (mode_of(layout.policy), mode_of(layout.root)) == (mode, 0o755)
    layout.root.chmod(0o700)
    (found,) = check_modes(FS, layout)
    assert (found.path, found.repaired) == (layout.policy, True), "no other user could reach it"


@pytest.mark.parametrize(("name", "mode"), [("application.json", 0o644), ("certs", 0o755), ("logs", 0o755)])
def test_permissions_that_the_spec_allows_are_kept(layout: ConfigDir, name: str, mode: int) -> None:
    path = layout.root / name
    if not path.exists():
        path.touch()
    path.chmod(mode)
    assert check_modes(FS, layout) == []


def test_a_link_in_place_of_state_is_refused(layout: ConfigDir, tmp_path: Path) -> None:
    layout.state.rename(tmp_path / "elsewhere")
    layout.state.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="link"):
        check_modes(FS, layout)


def test_a_file_of_another_user_is_refused_with_a_fix(layout: ConfigDir) -> None:
    fs = ModelFs(uid=1000)
    fs.put_dir("/etc")
    made = ConfigDir(Path("/etc/agent"))
    make_tree(fs, made)
    write_atomic(fs, made.access_token, b"token")
    fs.chown(fs.open_file(made.access_token), 0, 0)
    with pytest.raises(ConfigError) as caught:
        check_modes(fs, made)
    assert "belongs to user 0" in str(caught.value)
    assert str(caught.value.fix).startswith("chown 1000 /etc/agent/state/access_token.txt")
    assert check_modes(fs, made, repair=False)[0].repaired is False


def test_root_does_not_work_in_the_directory_of_another_user() -> None:
    fs = ModelFs(uid=0)
    fs.put_dir("/etc")
    layout = ConfigDir(Path("/etc/agent"))
    make_tree(fs, layout)
    for path in layout.directories():
        with closing(fs, fs.open_dir(path)) as handle:
            fs.chown(handle, 1000, 1000)
    with pytest.raises(ConfigError, match="belongs to user 1000, but this runs as user 0"):
        check_modes(fs, layout)


def test_a_missing_directory_is_reported_with_the_init_command(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        check_modes(FS, ConfigDir(tmp_path / "nothing"))
    assert "init" in str(caught.value.fix)
