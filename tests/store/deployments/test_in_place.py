"""Files that cannot be replaced, such as bind-mounted ones, are written over on request."""

from __future__ import annotations

import errno
import os
import random
import stat
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest
from copy_site import FS, OLD, shown
from modeldisk import ModelFs

from certctrl.errors import DiskError, PolicyRefusedError
from certctrl.store.deployments.file_set import CHANGED, FileSet, FileWrite, remove_unchanged
from certctrl.store.deployments.in_place import is_mix
from certctrl.store.deployments.recovery import recover
from certctrl.store.disk.fs import Handle, RealFs
from certctrl.store.disk.safe_path import destination_facts
from certctrl.store.disk.tree import make_tree
from certctrl.store.layout import ConfigDir

NEW_LEAF = b"new leaf, longer"


def write(site: Path, data: bytes = NEW_LEAF, mode: int = 0o640, name: str = "ssl/site.pem") -> FileWrite:
    return FileWrite(path=site / name, data=data, mode=mode, in_place=True)


def begun(layout: ConfigDir, *writes: FileWrite, fs: RealFs = FS) -> FileSet:
    copies = FileSet(layout, fs)
    copies.begin(writes)
    return copies


def test_the_file_keeps_its_inode_and_gets_bytes_and_mode(layout: ConfigDir, site: Path) -> None:
    path = site / "ssl" / "site.pem"
    before = path.stat().st_ino
    copies = begun(layout, write(site, b"new", 0o600))
    assert shown(site) == OLD
    assert [one.name for one in (site / "ssl").iterdir()] == ["site.pem"], "the copies are not in its directory"
    copies.commit()
    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode), path.stat().st_ino) == (b"new", 0o600, before)
    assert all(stat.S_IMODE(one.stat().st_mode) == 0o600 for one in layout.journal.iterdir())
    copies.close()
    assert not list(layout.journal.iterdir())


def test_undo_restores_bytes_and_mode(layout: ConfigDir, site: Path) -> None:
    before = (site / "ssl" / "site.pem").stat().st_ino
    copies = begun(layout, write(site, mode=0o600))
    copies.commit()
    copies.undo()
    assert shown(site) == OLD
    assert (site / "ssl" / "site.pem").stat().st_ino == before
    assert not list(layout.journal.iterdir())


def test_a_missing_file_is_created_by_renaming(layout: ConfigDir, site: Path) -> None:
    copies = begun(layout, write(site, b"key", 0o600, "private/site.key"))
    assert [one.suffix for one in (site / "private").iterdir()] == [".tmp"]
    copies.commit()
    assert (site / "private" / "site.key").read_bytes() == b"key"
    copies.undo()
    assert shown(site) == OLD


def test_all_files_are_written_one_after_the_other(layout: ConfigDir, site: Path) -> None:
    """No file is synced before all have their bytes: readers find a mix as shortly as possible."""
    calls = list[str]()

    class Noting(RealFs):
        def write(self, handle: Handle, data: bytes) -> None:
            calls.append("write")
            super().write(handle, data)

        def fsync(self, handle: Handle) -> None:
            calls.append("fsync")
            super().fsync(handle)

    (site / "ssl" / "site.key").write_bytes(b"old key")
    (site / "ssl" / "site.key").chmod(0o600)
    copies = begun(layout, write(site), write(site, b"new key", 0o600, "ssl/site.key"), fs=Noting())
    calls.clear()
    copies.commit()
    assert calls == ["write", "fsync", "write", "write", "fsync", "fsync", "fsync"], "armed, both, synced, names"
    copies.close()


@pytest.mark.root
@pytest.mark.parametrize("wanted", [(0o640, 0, 65534), (0o600, 65534, 65534), (0o600, 0, 0)])
def test_rights_are_narrowed_before_the_bytes(layout: ConfigDir, site: Path, wanted: tuple[int, int, int]) -> None:
    path, seen = site / "ssl" / "site.pem", list[tuple[int, int]]()
    path.chmod(0o644)

    class Noting(RealFs):
        def write(self, handle: Handle, data: bytes) -> None:
            if handle.path == str(path):
                seen.append((self.fstat(handle).mode, self.fstat(handle).uid))
            super().write(handle, data)

    mode, uid, gid = wanted
    copies = begun(layout, FileWrite(path=path, data=b"key", mode=mode, uid=uid, gid=gid, in_place=True), fs=Noting())
    copies.commit()
    copies.undo()
    narrow = {0o640: 0o600, 0o600: 0o600}[mode] if uid == 0 else 0
    assert seen == [(narrow, uid), (narrow, 0)]
    assert (stat.S_IMODE(path.stat().st_mode), path.stat().st_uid, path.stat().st_gid) == (0o644, 0, 0)


@pytest.mark.parametrize("how", ["symbolic link", "hard link", "others can write"])
def test_an_unsafe_file_is_refused_and_not_cut(layout: ConfigDir, site: Path, how: str) -> None:
    path, other = site / "ssl" / "site.pem", site / "ssl" / "other"
    other.write_bytes(b"other")
    match how:
        case "symbolic link":
            path.unlink()
            path.symlink_to(other)
        case "hard link":
            path.unlink()
            os.link(other, path)
        case "others can write":
            path.chmod(0o662)
    before = path.read_bytes()
    with pytest.raises(PolicyRefusedError):
        begun(layout, write(site))
    assert (path.read_bytes(), other.read_bytes()) == (before, b"other")
    assert not list(layout.journal.iterdir())


@pytest.mark.parametrize("how", ["symbolic link", "hard link", "another file"])
def test_a_file_replaced_since_it_was_judged_is_not_written(layout: ConfigDir, site: Path, how: str) -> None:
    """Another program replaces the file between the last check and the write."""
    path, other = site / "ssl" / "site.pem", site / "ssl" / "other"
    other.write_bytes(b"old leaf")
    other.chmod(0o640)

    class Racing(RealFs):
        def open_in_place(self, name: str | Path, at: Handle | None = None) -> Handle:
            path.rename(site / "ssl" / "away")  # not removed: its inode number could be used again
            if how == "symbolic link":
                path.symlink_to(other)
            elif how == "hard link":
                os.link(other, path)
            else:
                path.write_bytes(b"old leaf")
            return super().open_in_place(name, at)

    copies = begun(layout, write(site), fs=Racing())
    with pytest.raises(DiskError) as caught:
        copies.commit()
    assert caught.value.fix
    assert (path.read_bytes(), other.read_bytes()) == (b"old leaf", b"old leaf")


def test_bytes_of_others_are_not_written_over(layout: ConfigDir, site: Path) -> None:
    path = site / "ssl" / "site.pem"
    copies = begun(layout, write(site))
    path.write_bytes(b"the operator's")
    with pytest.raises(DiskError, match="was changed"):
        copies.commit()
    copies = begun(layout, write(site))
    copies.commit()
    path.write_bytes(b"the operator's, again")
    copies.undo()
    assert path.read_bytes() == b"the operator's, again"


# --- interrupted --------------------------------------------------------------------------------------------------


def torn(layout: ConfigDir, site: Path) -> Path:
    """Leave a deployment of which the first half is written."""
    copies = begun(layout, write(site))
    assert copies._journal is not None
    copies._journal.arm()
    path = site / "ssl" / "site.pem"
    with path.open("r+b") as file:
        file.write(NEW_LEAF[: len(NEW_LEAF) // 2])
    return path


def test_an_interrupted_write_is_completed(layout: ConfigDir, site: Path) -> None:
    path = torn(layout, site)
    assert recover(layout, FS, [site]).completed == (str(path),)
    assert path.read_bytes() == NEW_LEAF
    assert not list(layout.journal.iterdir())


def test_an_interrupted_write_is_undone_if_no_longer_allowed(layout: ConfigDir, site: Path) -> None:
    path = torn(layout, site)
    assert recover(layout, FS, []).rolled_back == (str(path),)
    assert shown(site) == OLD
    assert not list(layout.journal.iterdir())


def test_recovery_keeps_a_file_that_others_changed(layout: ConfigDir, site: Path) -> None:
    path = torn(layout, site)
    path.write_bytes(b"the operator's")
    assert recover(layout, FS, [site]).failed == ()
    assert path.read_bytes() == b"the operator's"
    assert not list(layout.journal.iterdir())


def test_an_interrupted_write_to_an_unsafe_file_is_retried_later(layout: ConfigDir, site: Path) -> None:
    path = torn(layout, site)
    path.chmod(0o666)
    assert len(recover(layout, FS, [site]).failed) == 1
    path.chmod(0o640)
    assert recover(layout, FS, [site]).completed == (str(path),)


def test_no_key_is_left_in_the_journal_if_the_directory_is_gone(layout: ConfigDir, site: Path) -> None:
    path = torn(layout, site)
    path.unlink()
    path.parent.rmdir()
    assert recover(layout, FS, [site]).failed == ()
    assert not list(layout.journal.iterdir())


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (b"OLD OLD", True), (b"NEW", True), (b"NEW OLD", True), (b"NEW\0OLD", True), (b"NEW ", True), (b"OLD", True),
        (b"NE", False), (b"OLD OLD!", False), (b"XLD OLD", False), (b"", False),
    ],
)  # fmt: skip
def test_a_mix_of_old_and_new_bytes(found: bytes, expected: bool) -> None:
    assert is_mix(found, b"OLD OLD", b"NEW") is expected
    assert is_mix(found, b"NEW", b"OLD OLD") is expected


# --- mount points -------------------------------------------------------------------------------------------------


@pytest.fixture
def mounted() -> tuple[ModelFs, ConfigDir]:
    """A disk with a bind-mounted file."""
    fs, layout = ModelFs(), ConfigDir(Path("/etc/agent"))
    fs.put_dir("/etc")
    fs.put("/srv/site.pem", b"old")
    fs.mount_on("/srv/site.pem")
    make_tree(fs, layout)
    return fs, layout


PEM, KEY = Path("/srv/site.pem"), Path("/srv/site.key")


def test_a_mount_point_is_refused_and_the_option_named(mounted: tuple[ModelFs, ConfigDir]) -> None:
    fs, layout = mounted
    assert '"write": "in_place"' in str(destination_facts(PEM, ["/srv"], fs=fs).refusal)
    assert destination_facts(PEM, ["/srv"], fs=fs, in_place=True).refusal is None
    with pytest.raises(PolicyRefusedError, match='"write": "in_place"'):
        FileSet(layout, fs).begin([FileWrite(path=PEM, data=b"new", mode=0o644)])


def test_a_mount_point_that_only_the_rename_reveals(
    mounted: tuple[ModelFs, ConfigDir], monkeypatch: pytest.MonkeyPatch
) -> None:
    fs, layout = mounted
    monkeypatch.setattr(fs, "mount", lambda handle: 0)
    copies = FileSet(layout, fs)
    copies.begin([FileWrite(path=PEM, data=b"new", mode=0o644)])
    with pytest.raises(DiskError) as caught:
        copies.commit()
    assert (caught.value.errno, caught.value.fix) == (errno.EBUSY, 'give the item "write": "in_place"')
    assert [path for path in fs.tree() if path.startswith("/srv/")] == ["/srv/site.pem"]


def test_a_disk_that_fills_up_leaves_the_old_bytes(mounted: tuple[ModelFs, ConfigDir]) -> None:
    fs, layout = mounted
    copies = FileSet(layout, fs)
    copies.begin([FileWrite(path=PEM, data=b"new and longer", mode=0o644, in_place=True)])
    fs.fault = lambda verb, path: errno.ENOSPC if verb == "truncate" and path == str(PEM) else None
    with pytest.raises(DiskError):
        copies.commit()
    fs.fault = None
    recover(layout, fs, [])
    assert fs.tree()[str(PEM)].data == b"old"


@pytest.mark.parametrize("before, after", [((b"LEAF", 0o644), (b"KEY", 0o600)), ((b"KEY", 0o600), (b"LEAF", 0o644))])
def test_a_power_cut_opens_no_secret_bytes(
    mounted: tuple[ModelFs, ConfigDir], before: tuple[bytes, int], after: tuple[bytes, int]
) -> None:
    """Found by the model of a disk: the wider mode of the other bytes was durable before these were."""
    fs, layout = mounted
    fs.put(str(PEM), *before)
    chance, seen = random.Random(1), set[tuple[bytes, int]]()

    def observe(fs: ModelFs, operation: str) -> None:
        found = [crashed.tree()[str(PEM)] for crashed in fs.crash_states(50, chance)]
        seen.update((bytes(one.data), one.mode) for one in found)
        assert not [one for one in found if set(b"KEY") & set(one.data) - set(b"LEAF") and one.mode & 0o077], operation

    fs.observer = observe
    copies = FileSet(layout, fs)
    copies.begin([FileWrite(path=PEM, data=after[0], mode=after[1], in_place=True)])
    copies.commit()
    copies.undo()
    assert {before, after} <= seen
    assert (fs.tree()[str(PEM)].data, fs.tree()[str(PEM)].mode) == before


def test_a_power_cut_after_a_kill_mixes_no_files(mounted: tuple[ModelFs, ConfigDir]) -> None:
    """Found by the campaign: recovery removed the copies of files that a killed undo had restored, but not synced."""
    fs, layout = mounted
    old, new = {PEM: b"old", KEY: b"old key"}, {PEM: b"new", KEY: b"new key"}
    fs.put(str(KEY), old[KEY])
    fs.mount_on(str(KEY))
    killed = list[ModelFs]()
    copies = FileSet(layout, fs)
    copies.begin([FileWrite(path=path, data=data, mode=0o644, in_place=True) for path, data in new.items()])
    fs.observer = lambda fs, _operation: killed.append(fs.copy())
    copies.commit()
    copies.undo()
    for number, disk in enumerate(killed):
        cut = list[ModelFs]()
        chance = random.Random(number)
        disk.observer = lambda fs, _operation, cut=cut, chance=chance: cut.extend(fs.crash_states(10, chance))
        recover(layout, disk, [])
        for one in (disk, *cut):
            one.observer = None
            recover(layout, one, [])
            found = {path: one.tree()[str(path)].data for path in old}
            assert found in (old, new), f"kill {number}"


def test_removing_a_mount_point_empties_it(mounted: tuple[ModelFs, ConfigDir]) -> None:
    fs, _ = mounted
    assert remove_unchanged(fs, str(PEM), sha256(b"other").hexdigest()) == CHANGED
    assert remove_unchanged(fs, str(PEM), sha256(b"old").hexdigest()) == ""
    assert fs.tree()[str(PEM)].data == b""
    assert remove_unchanged(fs, str(PEM), sha256(b"old").hexdigest()) == "", "an empty file counts as gone"


NAMESPACE = """
import os, sys
from pathlib import Path
from certctrl.errors import PolicyRefusedError
from certctrl.store.deployments.file_set import FileSet, FileWrite
from certctrl.store.deployments.recovery import recover
from certctrl.store.disk.fs import RealFs
from certctrl.store.disk.safe_path import destination_facts
from certctrl.store.layout import ConfigDir

layout, paths = ConfigDir(Path(sys.argv[1])), [Path(one) for one in sys.argv[2:]]
root = [paths[0].parent]

class Killed(RealFs):
    def truncate(self, handle, size):
        os._exit(0)

def writes(text):
    return [FileWrite(path=path, data=f"{text} of {path.name}".encode(), mode=0o600, in_place=True) for path in paths]

def deploy(text, fs=RealFs()):
    copies = FileSet(layout, fs)
    copies.begin(writes(text))
    copies.commit()
    return copies

try:
    FileSet(layout, RealFs()).begin([FileWrite(path=paths[0], data=b"x", mode=0o600)])
except PolicyRefusedError as refused:
    assert "in_place" in str(refused), refused
else:
    raise SystemExit("a mount point was not recognized")
assert all(destination_facts(path, root, in_place=True).refusal is None for path in paths)
deploy("first").close()
deploy("second").undo()
assert [path.read_text() for path in paths] == ["first of a.key", "first of a.pem"]
if not os.fork():
    deploy("third", Killed())
os.wait()
assert paths[0].read_text() == "third of a.key" and paths[1].read_text() == "first of a.pem"
report = recover(layout, RealFs(), root)
assert len(report.completed) == 2, report
assert sorted(os.listdir(root[0])) == ["a.key", "a.pem"]
assert os.listdir(layout.journal) == []
"""


@pytest.mark.root
@pytest.mark.integration
def test_bind_mounted_files_in_a_read_only_directory(layout: ConfigDir, tmp_path: Path) -> None:
    """As in a container: two files of the host are mounted, and its own file system is read-only."""
    host, container = tmp_path / "host", tmp_path / "container"
    host.mkdir()
    container.mkdir()
    names = ("a.key", "a.pem")
    for name in names:
        (host / name).touch(0o600)
        (container / name).touch()
    inodes = [(host / name).stat().st_ino for name in names]
    script = 'mount --bind "$1" "$1" && mount -o remount,ro,bind "$1"'
    script += "".join(f' && mount --bind "$2/{name}" "$1/{name}"' for name in names) + " && shift 2"
    script += f' && exec {sys.executable} -c "$@"'
    arguments = [str(container), str(host), NAMESPACE, str(layout.root), *(str(container / name) for name in names)]
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, "sh", *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert [(host / name).read_text() for name in names] == [f"third of {name}" for name in names]
    assert [(host / name).stat().st_ino for name in names] == inodes
