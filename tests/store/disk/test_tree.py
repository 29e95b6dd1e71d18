"""The config directory's tree is created durably and kept private."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest
from modeldisk import ModelFs

from certctrl.errors import ConfigError, DiskError
from certctrl.store.disk.atomic import write_atomic
from certctrl.store.disk.fs import RealFs, closing
from certctrl.store.disk.interface import Handle
from certctrl.store.disk.tree import check_modes, make_tree
from certctrl.store.layout import ConfigDir

FS = RealFs()


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


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
    with pytest.raises(ConfigError, match="expected a directory") as caught:
        make_tree(FS, layout)
    assert (caught.value.file, caught.value.fix) == (str(layout.state), f"move {layout.state} away")


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
    assert (dry_run.was, dry_run.now) == (mode, wanted)
    what = f"{path}: mode {mode:04o} gives other users access, expected {wanted:04o} or less"
    assert str(dry_run) == what
    (found,) = check_modes(FS, layout)
    assert (found.path, found.was, found.now, found.repaired) == (path, mode, wanted, True)
    assert str(found) == f"{what}; repaired"
    assert mode_of(path) == wanted
    assert check_modes(FS, layout) == []


@pytest.mark.parametrize("root", [0o755, 0o710, 0o701])
def test_a_policy_that_others_can_only_read_is_not_refused(layout: ConfigDir, root: int) -> None:
    layout.policy.write_text("{}")
    layout.root.chmod(root)
    assert [found.path for found in check_modes(FS, layout)] == [layout.root]


@pytest.mark.parametrize("root", [0o755, 0o710, 0o701])
@pytest.mark.parametrize("mode", [0o666, 0o664, 0o646])
def test_a_policy_writable_by_others_is_refused_and_stays_so(layout: ConfigDir, mode: int, root: int) -> None:
    layout.policy.write_text("{}")
    layout.policy.chmod(mode)
    layout.root.chmod(root)
    for _ in range(2):
        with pytest.raises(ConfigError, match="others can write it") as caught:
            check_modes(FS, layout)
        assert caught.value.fix == f"review it, then chmod go-w {layout.policy} and chmod 0700 {layout.root}"
        assert caught.value.file == str(layout.policy)
    assert (mode_of(layout.policy), mode_of(layout.root)) == (mode, root)
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
    with pytest.raises(ConfigError, match="a link instead of a real file or directory") as caught:
        check_modes(FS, layout)
    fix = f"replace {layout.state} by the real file or directory"
    assert (caught.value.file, caught.value.fix) == (str(layout.state), fix)
    (found,) = check_modes(FS, layout, repair=False)
    assert (found.path, found.fix, found.repaired, found.was, found.now) == (layout.state, fix, False, 0o777, 0o777)


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
    fix = "chown 1000 /etc/agent/state/access_token.txt, or run as user 0"
    assert (caught.value.file, caught.value.fix) == (str(made.access_token), fix)
    (found,) = check_modes(fs, made, repair=False)
    assert (found.path, found.fix, found.repaired, found.was, found.now) == (
        made.access_token, fix, False, 0o600, 0o600,
    )  # fmt: skip


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
    assert caught.value.file == str(tmp_path / "nothing")
    assert caught.value.fix == f"cert-ctrl -c {tmp_path}/nothing init --server URL"


# --- on a model disk ----------------------------------------------------------------------------------------


@pytest.fixture
def model() -> tuple[ModelFs, ConfigDir]:
    """Return a disk without any directory and the paths of a config directory to be."""
    return ModelFs(uid=1000), ConfigDir(Path("/etc/site/agent"))


def test_the_tree_is_durable_with_its_parents(model: tuple[ModelFs, ConfigDir]) -> None:
    fs, layout = model
    make_tree(fs, layout)
    assert (fs.pending, fs.open_files()) == ([], [])
    made = {path: node.mode for path, node in fs.tree().items()}
    assert made == {"/": 0o755, "/etc": 0o755, "/etc/site": 0o755} | {str(one): 0o700 for one in layout.directories()}
    fs.trace.clear()
    make_tree(fs, layout)
    assert fs.trace == [], "existing directories are unchanged"


def test_a_failed_fsync_leaves_no_open_directory(model: tuple[ModelFs, ConfigDir]) -> None:
    fs, layout = model
    fs.fault = lambda verb, path: errno.EIO if verb == "fsync" else None
    with pytest.raises(DiskError):
        make_tree(fs, layout)
    assert fs.open_files() == []


def test_files_of_root_may_configure_a_daemon_of_another_user(model: tuple[ModelFs, ConfigDir]) -> None:
    fs, layout = model
    make_tree(fs, layout)
    for path in (layout.application, layout.policy, layout.local_installs):
        fs.put(path, b"{}")
        with closing(fs, fs.open_file(path)) as handle:
            fs.chown(handle, 0, 0)
    assert check_modes(fs, layout) == []
    with closing(fs, fs.open_dir(layout.logs)) as handle:
        fs.chown(handle, 0, 0)
    (found,) = check_modes(fs, layout, repair=False)
    assert (found.path, found.what) == (layout.logs, "belongs to user 0, but this runs as user 1000")


def test_a_mode_that_cannot_be_changed_is_refused(
    model: tuple[ModelFs, ConfigDir], monkeypatch: pytest.MonkeyPatch
) -> None:
    fs, layout = model
    make_tree(fs, layout)
    fs.put(layout.application, b"{}", 0o666)
    expected = "mode 0666 gives other users access, expected 0644 or less", f"chmod 0644 {layout.application}"
    fs.fault = lambda verb, path: errno.EPERM if verb == "chmod" else None
    with pytest.raises(ConfigError) as caught:
        check_modes(fs, layout)
    assert (caught.value.file, caught.value.fix) == (str(layout.application), expected[1])
    assert expected[0] in str(caught.value)
    fs.fault = None

    def unreadable(path: object, at: object = None) -> Handle:
        raise DiskError("cannot read", path=str(path), errno=errno.EACCES, fix="x")

    monkeypatch.setattr(fs, "open_file", unreadable)
    with pytest.raises(ConfigError, match="mode 0666"):
        check_modes(fs, layout)
    assert fs.open_files() == []


def test_a_file_that_was_replaced_meanwhile_keeps_its_mode(
    model: tuple[ModelFs, ConfigDir], monkeypatch: pytest.MonkeyPatch
) -> None:
    fs, layout = model
    make_tree(fs, layout)
    fs.put(layout.application, b"{}", 0o666)
    real = fs.open_file

    def racing(path: Path, at: Handle | None = None) -> Handle:
        fs.unlink(path)
        fs.put(path, b"{}", 0o666)
        return real(path, at)

    monkeypatch.setattr(fs, "open_file", racing)
    with pytest.raises(ConfigError, match="mode 0666"):
        check_modes(fs, layout)
    assert (fs.tree()[str(layout.application)].mode, fs.open_files()) == (0o666, [])


def test_a_directory_that_cannot_be_listed_is_a_finding_itself(
    model: tuple[ModelFs, ConfigDir], monkeypatch: pytest.MonkeyPatch
) -> None:
    fs, layout = model
    make_tree(fs, layout)
    with closing(fs, fs.open_dir(layout.keys)) as handle:
        fs.chown(handle, 0, 0)
    fs.put(layout.device_secret_key, b"k", 0o644)
    real = fs.open_dir

    def closed(path: str | Path, at: Handle | None = None) -> Handle:
        if path == layout.keys:
            raise DiskError("cannot open", path=str(path), errno=errno.EACCES, fix="x")
        return real(path, at)

    monkeypatch.setattr(fs, "open_dir", closed)
    (found,) = check_modes(fs, layout, repair=False)
    assert found.path == layout.keys


def test_private_files_are_watched_wherever_they_are(model: tuple[ModelFs, ConfigDir]) -> None:
    """Readable by others may be the operator's files and what `certs` leads to, but no state, key or password."""
    fs, layout = model
    make_tree(fs, layout)
    private = [
        layout.inbox, layout.journal / "x.jsonl", layout.passwords / "www.pfx", layout.device_secret_key,
        layout.account_keys / "acme.key",
    ]  # fmt: skip
    operators = [
        layout.application, layout.httpclient, layout.ioc, layout.log_config, layout.policy, layout.local_installs,
    ]  # fmt: skip
    for path in (*private, *operators, layout.certs / "www.crt", layout.logs / "agent.log"):
        fs.put(path, b"x", 0o644)
    found = check_modes(fs, layout, repair=False)
    assert {(one.path, one.now) for one in found} == {(path, 0o600) for path in private}
    for path in operators:
        with closing(fs, fs.open_file(path)) as handle:
            fs.chmod(handle, 0o666)
    found = check_modes(fs, layout)
    assert {(one.path, one.now) for one in found} == {(path, 0o600) for path in private} | {
        (path, 0o644) for path in operators
    }
    assert check_modes(fs, layout) == []
