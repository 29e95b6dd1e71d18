"""Explicit destinations are written as one deployment and rolled back if it fails."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from pathlib import Path

import pytest
from copy_site import FS, NEW, OLD, begun, shown, writes
from modeldisk import ModelFs

from certctrl.errors import PolicyRefusedError
from certctrl.store.deployments.file_set import FileSet, FileWrite
from certctrl.store.deployments.recovery import recover
from certctrl.store.disk.fs import Handle, RealFs, closing
from certctrl.store.disk.tree import make_tree
from certctrl.store.layout import ConfigDir


def test_begin_changes_nothing_live_and_commit_all_files(layout: ConfigDir, site: Path) -> None:
    copies = begun(layout, site)
    assert shown(site)["ssl/site.pem"] == OLD["ssl/site.pem"]
    assert not (site / "private" / "site.key").exists()
    copies.commit()
    assert (site / "private" / "site.key").read_bytes() == b"new key"
    copies.close()
    assert shown(site) == NEW
    assert not list(layout.journal.iterdir())


def test_undo_restores_bytes_modes_and_absence(layout: ConfigDir, site: Path) -> None:
    copies = begun(layout, site)
    copies.commit()
    copies.undo()
    copies.undo()
    copies.close()
    assert shown(site) == OLD
    assert not list(layout.journal.iterdir())


def test_close_before_commit_leaves_nothing(layout: ConfigDir, site: Path) -> None:
    begun(layout, site).close()
    assert shown(site) == OLD
    assert not list(layout.journal.iterdir())


def test_temporary_files_are_private_hidden_and_in_the_same_directory(layout: ConfigDir, site: Path) -> None:
    before = os.umask(0)
    try:
        copies = begun(layout, site)
    finally:
        os.umask(before)
    (temp,) = (site / "private").iterdir()
    assert temp.name.startswith(".site.key.")
    assert stat.S_IMODE(temp.stat().st_mode) == 0o600
    copies.close()


def test_an_unchanged_destination_is_not_written(layout: ConfigDir, site: Path) -> None:
    copies = begun(layout, site)
    copies.commit()
    copies.close()
    path = site / "ssl" / "site.pem"
    before = (path.stat().st_ino, path.stat().st_mtime_ns)
    again = begun(layout, site)
    assert not list(layout.journal.iterdir())
    again.commit()
    again.close()
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == before


def test_a_different_mode_alone_is_a_change(layout: ConfigDir, site: Path) -> None:
    copies = FileSet(layout, FS)
    copies.begin([FileWrite(path=site / "ssl" / "site.pem", data=b"old leaf", mode=0o600)])
    copies.commit()
    copies.close()
    assert shown(site) == {"ssl/site.pem": (b"old leaf", 0o600)}


def test_undo_keeps_a_file_that_others_changed(layout: ConfigDir, site: Path) -> None:
    copies = begun(layout, site)
    copies.commit()
    (site / "ssl" / "site.pem").write_bytes(b"the operator's")
    copies.undo()
    assert shown(site) == {"ssl/site.pem": (b"the operator's", 0o644)}


def test_file_write_converts_its_path_and_hides_its_data(layout: ConfigDir, site: Path) -> None:
    write = FileWrite(path=str(site / "ssl" / "x.pem"), data=b"SECRET", mode=0o600)
    assert write.path == site / "ssl" / "x.pem"
    assert "SECRET" not in repr(write)


def test_a_duplicate_destination_is_refused(layout: ConfigDir, site: Path) -> None:
    copies = FileSet(layout, FS)
    with pytest.raises(ValueError, match="twice"):
        copies.begin([FileWrite(path=site / "ssl" / "site.pem", data=data, mode=0o600) for data in (b"1", b"2")])
    assert shown(site) == OLD


def test_the_journal_contains_no_file_contents(layout: ConfigDir, site: Path) -> None:
    copies = begun(layout, site)
    (journal,) = layout.journal.iterdir()
    text = journal.read_text()
    assert "new key" not in text and "old leaf" not in text
    assert stat.S_IMODE(journal.stat().st_mode) == 0o600
    entries = json.loads(text.splitlines()[0])["plan"]
    assert [entry["path"] for entry in entries] == [str(write.path) for write in writes(site)]
    copies.close()


def test_the_journal_has_the_format_of_earlier_releases(layout: ConfigDir, site: Path) -> None:
    copies = begun(layout, site)
    (journal,) = layout.journal.iterdir()
    record = json.loads(journal.read_text().splitlines()[0])
    assert list(record) == ["state_version", "plan"]
    replaced, created = record["plan"]
    assert list(replaced) == ["path", "temp", "backup", "old", "new", "owner"]
    assert list(replaced["old"]) == list(replaced["new"]) == ["sha256", "mode", "uid", "gid"]
    assert (created["old"], created["owner"]) == (None, None)
    copies.close()


@pytest.mark.root
def test_owners_are_set_before_the_rename_and_kept_by_default(layout: ConfigDir, site: Path) -> None:
    os.chown(site / "ssl" / "site.pem", 33, 34)
    copies = FileSet(layout, FS)
    key = FileWrite(path=site / "private" / "site.key", data=b"new key", mode=0o640, uid=65534, gid=65534)
    copies.begin([writes(site)[0], key])
    (temp,) = (site / "private").iterdir()
    assert (temp.stat().st_uid, temp.stat().st_gid, stat.S_IMODE(temp.stat().st_mode)) == (65534, 65534, 0o640)
    copies.commit()
    kept = (site / "ssl" / "site.pem").stat()
    assert (kept.st_uid, kept.st_gid) == (33, 34)
    copies.undo()
    kept = (site / "ssl" / "site.pem").stat()
    assert (kept.st_uid, kept.st_gid, stat.S_IMODE(kept.st_mode)) == (33, 34, 0o640)


def test_the_selinux_label_is_copied() -> None:
    """New files get the old file's label before the rename."""
    fs = ModelFs()
    fs.put("/srv/site.pem", b"old")
    layout = ConfigDir(Path("/etc/agent"))
    fs.put_dir("/etc")
    make_tree(fs, layout)
    label = b"system_u:object_r:cert_t:s0"
    with closing(fs, fs.open_file("/srv/site.pem")) as handle:
        fs.set_attribute(handle, "security.selinux", label)
    copies = FileSet(layout, fs)
    copies.begin([FileWrite(path=Path("/srv/site.pem"), data=b"new", mode=0o644)])
    labelled = {path: node.attributes for path, node in fs.tree().items() if path.startswith("/srv/.site.pem.")}
    assert list(labelled.values()) == [{"security.selinux": label}] * 2  # the new file and the copy of the old one
    copies.close()


def test_the_backup_is_the_file_that_was_judged(layout: ConfigDir, site: Path) -> None:
    """Another program replaces the file right after it was judged."""
    path = site / "ssl" / "site.pem"

    class Racing(RealFs):
        def close(self, handle: Handle) -> None:
            super().close(handle)
            if handle.path == str(path):
                (site / "other").write_bytes(b"not judged")
                (site / "other").replace(path)

    copies = FileSet(layout, Racing())
    copies.begin(writes(site))
    entry = copies._entries[0]
    assert entry.old is not None and entry.old.sha256 == hashlib.sha256(b"old leaf").hexdigest()
    assert (path.parent / entry.backup).read_bytes() == b"old leaf"


def test_a_set_waits_for_its_commit_without_open_directories(layout: ConfigDir, site: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    sets = [FileSet(layout, FS) for _ in range(20)]
    for number, one in enumerate(sets):
        one.begin([FileWrite(path=site / "ssl" / f"{number}.pem", data=b"new", mode=0o644)])
    assert len(os.listdir("/proc/self/fd")) == before
    for one in sets:
        one.close()
    assert shown(site) == OLD


def test_a_directory_that_became_a_link_before_the_commit_is_refused(layout: ConfigDir, site: Path) -> None:
    copies = begun(layout, site)
    (site / "ssl").rename(site / "moved")
    (site / "ssl").symlink_to(site / "moved")
    with pytest.raises(PolicyRefusedError, match="symbolic link"):
        copies.commit()
    assert [*layout.journal.iterdir()], "recovery removes the staged files"
    (site / "ssl").unlink()
    (site / "moved").rename(site / "ssl")
    recover(layout, FS, [site])
    assert (shown(site), [*layout.journal.iterdir()]) == (OLD, [])


def test_a_set_knows_whether_its_destinations_have_changed(layout: ConfigDir, site: Path) -> None:
    copies = begun(layout, site)
    assert copies.is_current()
    (site / "ssl" / "site.pem").write_bytes(b"edited")
    assert not copies.is_current()
    copies.close()
