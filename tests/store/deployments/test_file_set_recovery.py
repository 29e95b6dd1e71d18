"""An interrupted deployment is completed or rolled back as a whole, independently of others."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
from copy_site import FS, NEW, OLD, begun, shown, writes
from modeldisk import ModelFs

from certctrl.errors import DiskError, StateCorruptError
from certctrl.store.deployments.file_set import FileSet, FileWrite
from certctrl.store.deployments.journal import journals
from certctrl.store.deployments.recovery import recover
from certctrl.store.disk.tree import make_tree
from certctrl.store.layout import ConfigDir


def test_an_armed_deployment_is_completed(layout: ConfigDir, site: Path) -> None:
    copies = begun(layout, site)
    assert copies._journal is not None
    copies._journal.arm()  # power cut here
    report = recover(layout, FS, [site])
    assert report.completed == tuple(str(write.path) for write in writes(site))
    assert (shown(site), list(layout.journal.iterdir())) == (NEW, [])
    assert recover(layout, FS, [site]) == type(report)()


def test_an_armed_deployment_is_rolled_back_if_a_new_file_is_missing(layout: ConfigDir, site: Path) -> None:
    copies = begun(layout, site)
    assert copies._journal is not None
    copies._journal.arm()
    first, second = copies._entries
    (site / "ssl" / first.temp).rename(first.path)
    (Path(second.path).parent / second.temp).unlink()
    report = recover(layout, FS, [site])
    assert (report.completed, len(report.rolled_back)) == ((), 2)
    assert (shown(site), list(layout.journal.iterdir())) == (OLD, [])


def test_an_armed_deployment_is_rolled_back_if_no_longer_allowed(layout: ConfigDir, site: Path) -> None:
    copies = begun(layout, site)
    assert copies._journal is not None
    copies._journal.arm()
    assert len(recover(layout, FS, [site / "ssl"]).rolled_back) == 2
    assert shown(site) == OLD


def test_a_committed_deployment_stays_even_if_no_longer_allowed(layout: ConfigDir, site: Path) -> None:
    begun(layout, site).commit()
    assert len(recover(layout, FS, []).completed) == 2
    assert shown(site) == NEW


def test_a_deployment_that_was_not_armed_is_removed(layout: ConfigDir, site: Path) -> None:
    begun(layout, site)
    report = recover(layout, FS, [site])
    assert (report.completed, report.rolled_back, report.failed) == ((), (), ())
    assert (shown(site), list(layout.journal.iterdir())) == (OLD, [])


def test_a_failed_recovery_does_not_stop_the_others(layout: ConfigDir, site: Path) -> None:
    begun(layout, site)
    other = FileSet(layout, FS)
    (site / "more").mkdir(mode=0o755)
    other.begin([FileWrite(path=site / "more" / "x", data=b"x", mode=0o600)])
    (site / "more").chmod(0o777)
    report = recover(layout, FS, [site])
    assert len(report.failed) == 1
    assert "written by others" in report.failed[0]
    assert len(list(layout.journal.iterdir())) == 1
    (site / "more").chmod(0o755)
    assert recover(layout, FS, [site]).failed == ()
    assert not list((site / "more").iterdir())
    assert shown(site) == OLD


def test_a_removed_directory_needs_no_recovery(layout: ConfigDir, site: Path) -> None:
    other = FileSet(layout, FS)
    (site / "more").mkdir(mode=0o755)
    other.begin([FileWrite(path=site / "more" / "x", data=b"x", mode=0o600)])
    for path in (site / "more").iterdir():
        path.unlink()
    (site / "more").rmdir()
    assert recover(layout, FS, [site]).failed == ()
    assert not list(layout.journal.iterdir())


@pytest.mark.parametrize("body", [b"", b"\0\0", b'{"plan":', b"garbage"])
def test_a_torn_plan_is_removed(layout: ConfigDir, body: bytes) -> None:
    (layout.journal / "x.jsonl").write_bytes(body)
    (torn,) = journals(FS, layout)
    assert torn.load() == ([], False), "nothing was created after it"
    recover(layout, FS, ["/"])
    assert not list(layout.journal.iterdir())


def test_a_damaged_armed_plan_is_reported(layout: ConfigDir) -> None:
    (layout.journal / "x.jsonl").write_bytes(b"garbage\n" + b'{"armed":true}\n')
    with pytest.raises(StateCorruptError) as caught:
        recover(layout, FS, ["/"])
    assert "x.jsonl" in str(caught.value)
    assert caught.value.fix


def test_a_disk_that_fills_up_while_staging_leaves_nothing() -> None:
    fs = ModelFs()
    layout = ConfigDir(Path("/etc/agent"))
    fs.put_dir("/etc")
    fs.put("/srv/site.pem", b"old")
    make_tree(fs, layout)
    fs.fault = lambda verb, path: errno.ENOSPC if verb == "write" and path.startswith("/srv") else None
    copies = FileSet(layout, fs)
    with pytest.raises(DiskError) as caught:
        copies.begin([FileWrite(path=Path("/srv/site.pem"), data=b"new", mode=0o644)])
    assert "free space" in str(caught.value.fix)
    assert [path for path in fs.tree() if path.startswith("/srv/")] == ["/srv/site.pem"]
    assert not fs.open_files()


def test_undo_needs_no_space() -> None:
    fs = ModelFs()
    layout = ConfigDir(Path("/etc/agent"))
    fs.put_dir("/etc")
    fs.put("/srv/site.pem", b"old")
    make_tree(fs, layout)
    copies = FileSet(layout, fs)
    copies.begin([FileWrite(path=Path("/srv/site.pem"), data=b"new", mode=0o644)])
    copies.commit()
    fs.fault = lambda verb, path: errno.ENOSPC if verb in ("write", "create", "mkdir", "symlink") else None
    copies.undo()
    assert fs.tree()["/srv/site.pem"].data == b"old"


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ("temp", "passwd"), ("backup", "shadow"), ("temp", ".x/../../etc/passwd.tmp"), ("backup", "/etc/.x.tmp"),
        ("path", "etc/passwd"), ("path", "/srv/../etc/passwd"), ("path", "/etc/./passwd"),
    ],
)  # fmt: skip
def test_a_journal_that_names_other_files_is_not_obeyed(layout: ConfigDir, site: Path, field: str, text: str) -> None:
    begun(layout, site)
    (file,) = layout.journal.iterdir()
    plan = json.loads(file.read_text())
    plan["plan"][0][field] = text
    file.write_text(json.dumps(plan) + "\n")
    (site / "ssl" / "passwd").write_text("kept")
    with pytest.raises(StateCorruptError, match="names files that the agent does not write"):
        recover(layout, FS, [site])
    assert (site / "ssl" / "passwd").read_text() == "kept"
    assert file.exists()
