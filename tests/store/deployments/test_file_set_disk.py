"""File sets on a model disk: durability when a call returns, and the errors of destinations and journals."""

from __future__ import annotations

import errno
import json
import os
from hashlib import sha256
from pathlib import Path

import pytest
from model_site import KEY, LAYOUT, NEW, OLD, PEM, begun, bytes_at, model_site
from modeldisk import ModelFs

from certctrl.errors import DiskError, PolicyRefusedError, StateCorruptError
from certctrl.store.deployments import journal
from certctrl.store.deployments.file_set import CHANGED, FileSet, FileWrite, remove_unchanged
from certctrl.store.deployments.in_place import Overwrite, overwrite
from certctrl.store.deployments.recovery import recover
from certctrl.store.disk.fs import Handle, RealFs, closing
from certctrl.store.disk.safe_path import SIZE_LIMIT, facts_at
from certctrl.store.disk.tree import make_tree
from certctrl.store.layout import ConfigDir


@pytest.fixture(params=[True, False], ids=["syncfs", "a kernel without a reliable syncfs"])
def fs(request: pytest.FixtureRequest) -> ModelFs:
    return model_site(syncfs=request.param)


def armed(fs: ModelFs, *, in_place: bool = False, **how: int) -> FileSet:
    made = begun(fs, in_place=in_place, **how)
    assert made._journal is not None
    made._journal.arm()
    return made


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("undo", [False, True])
def test_each_step_is_durable_when_it_returns(fs: ModelFs, in_place: bool, undo: bool) -> None:
    copies = begun(fs, in_place=in_place)
    assert (fs.pending, fs.open_files(), bytes_at(fs)) == ([], [], OLD)
    copies.commit()
    assert (fs.pending, bytes_at(fs)) == ([], NEW)
    if undo:
        copies.undo()
    else:
        copies.close()
    assert not [change for change in fs.pending if not any(name.endswith(".jsonl") for name in change.names)]
    assert (bytes_at(fs), fs.open_files()) == (OLD if undo else NEW, [])
    settled = {path for path in fs.settled().tree() if path.startswith(("/srv", str(LAYOUT.journal)))}
    assert settled == {"/srv", "/srv/a", "/srv/b", str(PEM), str(LAYOUT.journal)} | (set() if undo else {str(KEY)})
    copies.close()
    copies.commit()
    assert bytes_at(fs) == (OLD if undo else NEW), "a set that has ended does nothing"


def test_the_copies_are_removed_before_the_journal_durably(fs: ModelFs) -> None:
    copies = begun(fs)
    copies.commit()
    fs.trace.clear()
    copies.close()
    done = [line.partition(" ")[0] for line in fs.trace]
    assert done[0] == "unlink" and done[-1] == "unlink" and "fsync" in done[1:-1]
    assert fs.trace[-1].startswith(f"unlink {LAYOUT.journal}/")


def test_an_error_at_the_end_keeps_the_journal(fs: ModelFs) -> None:
    copies = begun(fs)
    copies.commit()
    fs.fault = lambda verb, path: errno.EIO if verb == "unlink" and path.startswith("/srv") else None
    with pytest.raises(DiskError):
        copies.close()
    fs.fault = None
    assert fs.open_files() == [] and [path for path in fs.tree() if path.endswith(".jsonl")]
    assert recover(LAYOUT, fs, []).completed == (str(PEM), str(KEY))
    assert not [path for path in fs.tree() if path.endswith((".jsonl", ".tmp"))]


# --- recovery -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_place", [False, True])
def test_recovery_completes_durably(fs: ModelFs, in_place: bool) -> None:
    armed(fs, in_place=in_place)
    assert recover(LAYOUT, fs, ["/srv"]).completed == (str(PEM), str(KEY))
    assert (bytes_at(fs), fs.open_files()) == (NEW, [])
    assert not [change for change in fs.pending if not any(name.endswith(".jsonl") for name in change.names)]
    assert not [path for path in fs.tree() if path.endswith((".jsonl", ".tmp"))]


@pytest.mark.parametrize("in_place", [False, True])
def test_a_roll_back_that_fails_is_reported_and_retried(fs: ModelFs, in_place: bool) -> None:
    begun(fs, in_place=in_place).commit()
    fs = fs.settled()  # the process was killed
    fs.unlink(KEY)
    fs.fault = lambda verb, path: errno.EIO if verb in ("rename", "write") and path == str(PEM) else None
    report = recover(LAYOUT, fs, [])
    assert (report.completed, report.rolled_back) == ((), ())
    (failed,) = report.failed
    assert failed.startswith(f"{PEM} and its set: cannot ") and failed.endswith(os.strerror(errno.EIO))
    assert fs.open_files() == []
    fs.fault = None
    assert recover(LAYOUT, fs, []).rolled_back == (str(PEM), str(KEY))
    assert (bytes_at(fs), fs.open_files()) == (OLD, [])


def test_a_failed_set_does_not_stop_those_after_it(fs: ModelFs) -> None:
    armed(fs)
    fs.put_dir("/srv/c")
    other = FileSet(LAYOUT, fs)
    other.begin([FileWrite(path=Path("/srv/c/x"), data=b"x", mode=0o600)])
    with closing(fs, fs.open_dir("/srv/a")) as handle:
        fs.chmod(handle, 0o777)
    report = recover(LAYOUT, fs, ["/srv"])
    assert len(report.failed) == 1 and report.failed[0].startswith(
        f"{PEM} and its set: /srv/a can be written by others"
    )
    assert not [path for path in fs.tree() if path.startswith("/srv/c/")], "the second set was removed"


def test_a_directory_that_is_gone_does_not_keep_the_others_from_recovery(fs: ModelFs) -> None:
    armed(fs)
    for path in [path for path in fs.tree() if path.startswith("/srv/a/")]:
        fs.unlink(path)
    fs.rmdir("/srv/a")
    assert recover(LAYOUT, fs, ["/srv"]).completed == (str(PEM), str(KEY))
    assert bytes_at(fs) == [None, b"new key"]


def test_the_directory_of_another_user_is_recovered_if_it_gets_the_file() -> None:
    fs = ModelFs(uid=0)
    fs.put_dir("/etc")
    make_tree(fs, LAYOUT)
    for path in (PEM.parent, KEY.parent):
        fs.put_dir(path)
        with closing(fs, fs.open_dir(path)) as handle:
            fs.chown(handle, 33, 33)
    armed(fs, uid=33, gid=34)
    assert recover(LAYOUT, fs, ["/srv"]).completed == (str(PEM), str(KEY))
    assert (bytes_at(fs), fs.tree()[str(KEY)].uid, fs.tree()[str(KEY)].gid) == (NEW, 33, 34)
    digest = sha256(b"new key").hexdigest()
    with pytest.raises(PolicyRefusedError, match="belongs to user 33"):
        remove_unchanged(fs, str(KEY), digest)
    assert remove_unchanged(fs, str(KEY), digest, owner=33) == ""
    assert bytes_at(fs) == [NEW[0], None]


def test_journals_are_recovered_in_the_order_of_their_age(layout: ConfigDir) -> None:
    for name, age in (("c.jsonl", 5), ("a.jsonl", 9), ("b.jsonl", 7), ("x.txt", 1)):
        (layout.journal / name).touch()
        os.utime(layout.journal / name, (age, age))
    assert [one.name for one in journal.journals(RealFs(), layout)] == ["c.jsonl", "b.jsonl", "a.jsonl"]


@pytest.mark.parametrize(
    ("first", "what"), [({"temp": "passwd"}, "names files that the agent does not write"), ({"new": 5}, "is damaged")]
)
def test_a_journal_that_is_not_understood_is_named(fs: ModelFs, first: dict[str, object], what: str) -> None:
    armed(fs)
    (path,) = (path for path in fs.tree() if path.endswith(".jsonl"))
    plan, rest = fs.tree()[path].data.split(b"\n", 1)
    record = json.loads(plan)
    record["plan"][0] |= first
    fs.put(path, json.dumps(record).encode() + b"\n" + rest, 0o600)
    with pytest.raises(StateCorruptError) as caught:
        recover(LAYOUT, fs, ["/srv"])
    assert str(caught.value) == f"{path} {what}"
    assert (caught.value.path, caught.value.fix) == (path, f"check the files it names, then remove {path}")
    assert bytes_at(fs) == OLD


# --- errors -------------------------------------------------------------------------------------------------


def test_a_file_that_others_changed_is_named(fs: ModelFs) -> None:
    copies = begun(fs, in_place=True)
    fs.put(PEM, b"the operator's")
    with pytest.raises(DiskError) as caught:
        copies.commit()
    assert str(caught.value) == f"{PEM} was changed while it was to be written"
    assert (caught.value.path, caught.value.fix) == (str(PEM), "try again")
    assert bytes_at(fs) == [b"the operator's", None]


def test_a_file_that_became_unsafe_is_named(fs: ModelFs) -> None:
    copies = begun(fs, in_place=True)
    with closing(fs, fs.open_file(PEM)) as handle:
        fs.chmod(handle, 0o666)
    with pytest.raises(DiskError) as caught:
        copies.commit()
    assert str(caught.value).startswith(f"{PEM} can be written by others (mode 0666)")
    assert (caught.value.path, caught.value.fix) == (str(PEM), f"check {PEM}")


def test_a_mount_point_that_only_the_rename_reveals_is_named(fs: ModelFs) -> None:
    copies = begun(fs)
    fs.mount_on(PEM)
    with pytest.raises(DiskError) as caught:
        copies.commit()
    assert (caught.value.path, caught.value.errno) == (str(PEM), errno.EBUSY)
    assert str(caught.value).startswith(f"{PEM} is a mount point")


def test_a_refused_destination_has_a_fix(fs: ModelFs) -> None:
    fs.mkdir(PEM.with_name("dir"), 0o755)
    with pytest.raises(PolicyRefusedError) as caught:
        FileSet(LAYOUT, fs).begin([FileWrite(path=PEM.with_name("dir"), data=b"x", mode=0o600)])
    assert str(caught.value) == "/srv/a/dir is a directory, not a regular file"
    assert caught.value.fix == "correct /srv/a/dir, or use another path"


# --- writing over -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "during"), [(0o664, 0o644), (0o600, 0o600), (0o644, 0o644), (0o444, 0o444)])
def test_readers_of_both_files_can_read_while_it_is_written(fs: ModelFs, mode: int, during: int) -> None:
    seen = list[int]()
    fs.observer = lambda disk, call: seen.append(disk.tree()[str(PEM)].mode) if call == f"write {PEM}" else None
    with closing(fs, fs.open_dir(PEM.parent)) as parent:
        found = facts_at(fs, parent, PEM, in_place=True)
        overwrite(fs, [Overwrite(parent, found, b"new", mode, 1000, 1000)])
    assert (seen, fs.tree()[str(PEM)].mode, bytes_at(fs)[0]) == ([during], mode, b"new")
    assert (fs.pending, len(fs.open_files())) == ([], 0)


@pytest.mark.parametrize(("uid", "gid", "during"), [(0, 0, 0o755), (0, 33, 0o700), (33, 33, 0o000), (33, 0, 0o000)])
def test_users_of_one_file_only_have_no_rights_while_it_is_written(uid: int, gid: int, during: int) -> None:
    fs, seen = ModelFs(uid=0), list[int]()
    fs.put(PEM, b"old leaf", 0o755)
    fs.observer = lambda disk, call: seen.append(disk.tree()[str(PEM)].mode) if call == f"write {PEM}" else None
    with closing(fs, fs.open_dir(PEM.parent)) as parent:
        overwrite(fs, [Overwrite(parent, facts_at(fs, parent, PEM, in_place=True), b"new", 0o755, uid, gid)])
    node = fs.tree()[str(PEM)]
    assert (seen, node.mode, node.uid, node.gid) == ([during], 0o755, uid, gid)


def test_a_file_that_was_replaced_is_named(fs: ModelFs) -> None:
    with closing(fs, fs.open_dir(PEM.parent)) as parent:
        found = facts_at(fs, parent, PEM, in_place=True)
        fs.unlink(PEM)
        fs.put(PEM, b"another")
        with pytest.raises(DiskError) as caught:
            overwrite(fs, [Overwrite(parent, found, b"new", 0o600, 1000, 1000)])
    assert str(caught.value) == f"{PEM} was replaced while it was to be written"
    assert (caught.value.path, caught.value.fix) == (str(PEM), "try again")
    assert (bytes_at(fs)[0], fs.open_files()) == (b"another", [])


# --- removing -----------------------------------------------------------------------------------------------


def test_only_unchanged_files_are_removed(layout: ConfigDir, site: Path) -> None:
    fs, path = RealFs(), site / "ssl" / "x"
    digest = sha256(b"new").hexdigest()
    assert remove_unchanged(fs, str(path), digest) == ""
    assert remove_unchanged(fs, str(site / "nowhere" / "x"), digest) == ""
    path.touch()
    assert remove_unchanged(fs, str(path), digest) == "" and path.exists(), "an empty file counts as gone"
    path.write_bytes(b"new")
    os.link(path, site / "ssl" / "y")
    assert remove_unchanged(fs, str(path), digest) == "it has 2 hard links"
    (site / "ssl" / "y").unlink()
    assert remove_unchanged(fs, str(path), digest) == "" and not path.exists()
    path.symlink_to("site.pem")
    assert remove_unchanged(fs, str(path), sha256(b"old leaf").hexdigest()) == CHANGED
    path.unlink()
    path.mkdir()
    assert remove_unchanged(fs, str(path), digest) == CHANGED
    path.rmdir()
    for size, why in ((SIZE_LIMIT, ""), (SIZE_LIMIT + 1, CHANGED)):
        path.write_bytes(bytes(size))
        assert remove_unchanged(fs, str(path), sha256(bytes(size)).hexdigest()) == why


def test_a_removal_is_durable_and_its_error_is_reported(fs: ModelFs) -> None:
    digest = sha256(b"old leaf").hexdigest()
    fs.fault = lambda verb, path: errno.EIO if verb == "unlink" else None
    with pytest.raises(DiskError) as caught:
        remove_unchanged(fs, str(PEM), digest)
    assert (caught.value.errno, fs.open_files()) == (errno.EIO, [])
    fs.fault = None
    assert remove_unchanged(fs, str(PEM), digest) == ""
    assert (bytes_at(fs), fs.pending, fs.open_files()) == ([None, None], [], [])


@pytest.mark.parametrize("mode", [0o000, 0o640])
def test_a_mount_point_of_root_keeps_owner_and_mode(mode: int) -> None:
    fs = ModelFs(uid=0)
    fs.put(PEM, b"old leaf", mode)
    fs.mount_on(PEM)
    assert remove_unchanged(fs, str(PEM), sha256(b"old leaf").hexdigest()) == ""
    node = fs.tree()[str(PEM)]
    assert (node.data, node.mode, node.uid, node.gid, fs.pending) == (b"", mode, 0, 0, [])


def test_a_set_is_not_current_if_its_way_was_replaced(fs: ModelFs) -> None:
    copies = begun(fs)
    assert copies.is_current() is True
    fs.put(KEY, b"the operator's")
    assert copies.is_current() is False
    assert fs.open_files() == []
    copies.close()


def test_files_read_meanwhile_are_closed(fs: ModelFs, monkeypatch: pytest.MonkeyPatch) -> None:
    real = fs.fstat

    def broken(handle: Handle) -> object:
        if handle.path == str(PEM):
            raise DiskError("cannot inspect", path=handle.path, errno=errno.EIO, fix="x")
        return real(handle)

    monkeypatch.setattr(fs, "fstat", broken)
    with pytest.raises(DiskError):
        begun(fs)
    assert fs.open_files() == []


def test_an_undo_that_cannot_reach_a_directory_restores_the_others(fs: ModelFs) -> None:
    copies = begun(fs)
    copies.commit()
    copies._close_parents()
    with closing(fs, fs.open_dir(PEM.parent)) as handle:
        fs.chmod(handle, 0o777)
    with pytest.raises(DiskError) as caught:
        copies.undo()
    assert str(caught.value) == f"{PEM.parent} can be written by others (mode 0777)"
    assert caught.value.path == str(PEM)
    assert caught.value.fix == f"chmod go-w {PEM.parent}; see getfacl {PEM.parent}"
    assert (bytes_at(fs), fs.open_files()) == ([NEW[0], None], [])
    assert [path for path in fs.tree() if path.endswith(".jsonl")], "recovery continues"
