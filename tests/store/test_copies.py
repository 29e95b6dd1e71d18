"""Explicit destinations: written as one deployment, only where it is safe, taken back when it fails."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from modeldisk import ModelFs

from certctrl.errors import DiskError, PolicyRefusedError, StateCorruptError
from certctrl.store.atomic import make_tree
from certctrl.store.copies import CopySet, FileWrite, destination_facts, recover
from certctrl.store.fs import RealFs
from certctrl.store.layout import ConfigDir
from certctrl.store.walk import flaw_of, is_below

FS = RealFs()


@pytest.fixture
def layout(tmp_path: Path) -> ConfigDir:
    made = ConfigDir(tmp_path / "agent")
    make_tree(FS, made)
    return made


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """Two directories: one file with history, and room for a key."""
    (tmp_path / "site" / "ssl").mkdir(parents=True, mode=0o755)
    (tmp_path / "site" / "private").mkdir(mode=0o700)
    (tmp_path / "site" / "ssl" / "site.pem").write_bytes(b"old leaf")
    (tmp_path / "site" / "ssl" / "site.pem").chmod(0o640)
    return tmp_path / "site"


def writes(site: Path) -> list[FileWrite]:
    return [
        FileWrite(path=site / "ssl" / "site.pem", data=b"new leaf", mode=0o644),
        FileWrite(path=site / "private" / "site.key", data=b"new key", mode=0o600),
    ]


def shown(site: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(path.relative_to(site)): (path.read_bytes(), stat.S_IMODE(path.stat().st_mode))
        for path in sorted(site.rglob("*"))
        if path.is_file()
    }


OLD = {"ssl/site.pem": (b"old leaf", 0o640)}
NEW = {"private/site.key": (b"new key", 0o600), "ssl/site.pem": (b"new leaf", 0o644)}


def begun(layout: ConfigDir, site: Path) -> CopySet:
    copies = CopySet(layout, FS)
    copies.begin(writes(site))
    return copies


def test_begin_changes_nothing_live_and_commit_everything(layout: ConfigDir, site: Path) -> None:
    copies = begun(layout, site)
    assert shown(site)["ssl/site.pem"] == OLD["ssl/site.pem"]
    assert not (site / "private" / "site.key").exists()
    copies.commit()
    assert (site / "private" / "site.key").read_bytes() == b"new key"
    copies.close()
    assert shown(site) == NEW
    assert not list(layout.journal.iterdir())


def test_undo_brings_back_bytes_mode_and_absence(layout: ConfigDir, site: Path) -> None:
    copies = begun(layout, site)
    copies.commit()
    copies.undo()
    copies.undo()
    copies.close()
    assert shown(site) == OLD
    assert not list(layout.journal.iterdir())


def test_giving_up_before_commit_leaves_nothing(layout: ConfigDir, site: Path) -> None:
    begun(layout, site).close()
    assert shown(site) == OLD
    assert not list(layout.journal.iterdir())


def test_temporary_files_are_private_hidden_and_beside(layout: ConfigDir, site: Path) -> None:
    before = os.umask(0)
    try:
        copies = begun(layout, site)
    finally:
        os.umask(before)
    (temp,) = (site / "private").iterdir()
    assert temp.name.startswith(".site.key.")
    assert stat.S_IMODE(temp.stat().st_mode) == 0o600
    copies.close()


def test_what_is_as_wanted_is_not_touched(layout: ConfigDir, site: Path) -> None:
    copies = begun(layout, site)
    copies.commit()
    copies.close()
    before = (site / "ssl" / "site.pem").stat()
    again = begun(layout, site)
    assert not list(layout.journal.iterdir())
    again.commit()
    again.close()
    assert (site / "ssl" / "site.pem").stat() == before


def test_a_narrower_mode_alone_is_a_change(layout: ConfigDir, site: Path) -> None:
    copies = CopySet(layout, FS)
    copies.begin([FileWrite(path=site / "ssl" / "site.pem", data=b"old leaf", mode=0o600)])
    copies.commit()
    copies.close()
    assert shown(site) == {"ssl/site.pem": (b"old leaf", 0o600)}


def test_what_somebody_wrote_since_is_not_undone(layout: ConfigDir, site: Path) -> None:
    copies = begun(layout, site)
    copies.commit()
    (site / "ssl" / "site.pem").write_bytes(b"the operator's")
    copies.undo()
    assert shown(site) == {"ssl/site.pem": (b"the operator's", 0o644)}


def test_a_text_path_is_a_path(layout: ConfigDir, site: Path) -> None:
    write = FileWrite(path=str(site / "ssl" / "x.pem"), data=b"SECRET", mode=0o600)
    assert write.path == site / "ssl" / "x.pem"
    assert "SECRET" not in repr(write)


def test_one_destination_twice_is_refused(layout: ConfigDir, site: Path) -> None:
    copies = CopySet(layout, FS)
    with pytest.raises(ValueError, match="twice"):
        copies.begin([FileWrite(path=site / "ssl" / "site.pem", data=data, mode=0o600) for data in (b"1", b"2")])
    assert shown(site) == OLD


def test_the_journal_holds_no_contents(layout: ConfigDir, site: Path) -> None:
    copies = begun(layout, site)
    (journal,) = layout.journal.iterdir()
    text = journal.read_text()
    assert "new key" not in text and "old leaf" not in text
    assert stat.S_IMODE(journal.stat().st_mode) == 0o600
    entries = json.loads(text.splitlines()[0])["plan"]
    assert [entry["path"] for entry in entries] == [str(write.path) for write in writes(site)]
    copies.close()


@pytest.mark.root
def test_owners_are_set_before_the_rename_and_kept_where_none_is_named(layout: ConfigDir, site: Path) -> None:
    os.chown(site / "ssl" / "site.pem", 33, 34)
    copies = CopySet(layout, FS)
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


def test_a_security_label_goes_with_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """No SELinux here: the double has labels, and a new file is labelled as the old one was, before the rename."""
    fs = ModelFs()
    fs.put("/srv/site.pem", b"old")
    layout = ConfigDir(Path("/etc/agent"))
    fs.put_dir("/etc")
    make_tree(fs, layout)
    labels: dict[str, bytes] = {"/srv/site.pem": b"system_u:object_r:cert_t:s0"}
    relabelled: list[str] = []
    monkeypatch.setattr(fs, "label", lambda handle: labels.get(handle.path))
    monkeypatch.setattr(fs, "relabel", lambda handle, label: relabelled.append(handle.path))
    copies = CopySet(layout, fs)
    copies.begin([FileWrite(path=Path("/srv/site.pem"), data=b"new", mode=0o644)])
    assert len(relabelled) == 2  # the new file and the copy of the old one
    assert all(path.startswith("/srv/.site.pem.") for path in relabelled)
    copies.close()


# --- where nothing may be written ------------------------------------------------------------------------------


def test_facts_of_what_may_be_written(site: Path) -> None:
    found = destination_facts(site / "ssl" / "site.pem", [site])
    assert (found.kind, found.mode, found.uid, found.nlink, found.refusal) == ("file", 0o640, os.geteuid(), 1, None)
    assert (
        found.sha256 == "43e6a1ca0e6fabdb0d1e4bea04b0a1ebcc4ee2c5fc2cd7ca6b2e3cd4d1e4c5d4"
        or len(found.sha256 or "") == 64
    )
    missing = destination_facts(str(site / "ssl" / "new.pem"), [str(site)])
    assert (missing.kind, missing.sha256, missing.refusal) == ("missing", None, None)


def spoiled(site: Path, how: str) -> Path:
    target = site / "ssl" / "site.pem"
    match how:
        case "symbolic link in place of the file":
            target.unlink()
            target.symlink_to("/etc/passwd")
        case "hard link":
            os.link(target, site / "ssl" / "second")
        case "directory in place of the file":
            target.unlink()
            target.mkdir()
        case "pipe in place of the file":
            target.unlink()
            os.mkfifo(target)
        case "directory that others may write":
            target.parent.chmod(0o777)
        case "sticky directory that others may write":
            target.parent.chmod(0o1777)
        case "parent that others may write":
            site.chmod(0o777)
        case "link on the way":
            (site / "way").symlink_to("ssl")
            return site / "way" / "site.pem"
        case "no such directory":
            return site / "nowhere" / "site.pem"
        case "file in place of a directory":
            return target / "site.pem"
    return target


SPOILS = [
    "symbolic link in place of the file", "hard link", "directory in place of the file", "pipe in place of the file",
    "directory that others may write", "sticky directory that others may write", "parent that others may write",
    "link on the way", "no such directory", "file in place of a directory",
]  # fmt: skip


@pytest.mark.parametrize("how", SPOILS)
def test_unsafe_destinations_are_refused_with_the_reason(layout: ConfigDir, site: Path, how: str) -> None:
    target = spoiled(site, how)
    found = destination_facts(target, [site])
    assert found.refusal
    copies = CopySet(layout, FS)
    with pytest.raises(PolicyRefusedError) as caught:
        copies.begin([writes(site)[1], FileWrite(path=target, data=b"new", mode=0o644)])
    assert caught.value.fix
    assert not (site / "private" / "site.key").exists(), "one refused destination refuses the set"
    assert not list((site / "private").iterdir())
    assert not list(layout.journal.iterdir())


@pytest.mark.root
def test_a_strangers_directory_is_refused_unless_the_file_is_theirs(site: Path) -> None:
    target = site / "ssl" / "site.pem"
    os.chown(site / "ssl", 65534, 65534)
    assert "belongs to user 65534" in str(destination_facts(target, [site]).refusal)
    assert destination_facts(target, [site], owner=65534).refusal is None
    os.chown(site / "ssl", 0, 65534)
    (site / "ssl").chmod(0o775)
    assert "written by others" in str(destination_facts(target, [site]).refusal)


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
def test_paths_that_are_not_plain_are_below_nothing(path: str) -> None:
    assert flaw_of(path)
    assert not is_below(path, "/")
    assert destination_facts(path, ["/"]).refusal


@pytest.mark.parametrize(
    ("path", "root", "below"),
    [("/srv/x", "/srv", True), ("/srv", "/srv", False), ("/srvx/y", "/srv", False), ("/srv/x", "/", True)],
)
def test_below_is_by_whole_names(path: str, root: str, below: bool) -> None:
    assert is_below(path, root) is below


def test_outside_every_root_is_refused_without_looking(site: Path) -> None:
    assert "allowed" in str(destination_facts("/etc/passwd", [site]).refusal)
    assert destination_facts("/etc/passwd", []).sha256 is None


ATTACK = """
import os, sys
base, victim = sys.argv[1:]
os.setgid(65534); os.setuid(65534)
print("ready", flush=True)
while True:
    for step in (
        lambda: os.rename(f"{base}/sub", f"{base}/aside"), lambda: os.symlink(victim, f"{base}/sub"),
        lambda: os.unlink(f"{base}/sub"), lambda: os.rename(f"{base}/aside", f"{base}/sub"),
        lambda: os.symlink(f"{victim}/file", f"{base}/sub/file"), lambda: os.unlink(f"{base}/sub/file"),
    ):
        try:
            step()
        except OSError:
            pass
"""


@pytest.fixture
def ground() -> Iterator[Path]:
    """A directory that every user can reach."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        yield Path(directory)


@pytest.mark.root
def test_an_attacker_who_swaps_directories_for_links_wins_nothing(layout: ConfigDir, ground: Path) -> None:
    """Their own directory may be written for them; whatever they put in its place, nothing else is."""
    written, refused = race(layout, ground, seconds=2)
    assert written + refused > 10


@pytest.mark.root
@pytest.mark.campaign
def test_campaign_of_an_attacker_for_a_minute(
    layout: ConfigDir, ground: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written, refused = race(layout, ground, seconds=60)
    with capsys.disabled():
        print(
            f"\n{written + refused} deployments into a directory under attack: {refused} refused, 0 went astray", end=""
        )
    assert written > 10 and refused > 10


def race(layout: ConfigDir, ground: Path, *, seconds: float) -> tuple[int, int]:
    """Deploy for so long against another user who swaps things; return how often that went well and was refused."""
    base, victim = ground / "base", ground / "victim"
    victim.mkdir(mode=0o755)
    (victim / "file").write_text("untouched")
    for path in (base, base / "sub"):
        path.mkdir(mode=0o755)
        os.chown(path, 65534, 65534)
    attacker = subprocess.Popen([sys.executable, "-c", ATTACK, str(base), str(victim)], stdout=subprocess.PIPE)
    written = refused = 0
    with attacker:
        assert attacker.stdout is not None and attacker.stdout.readline() == b"ready\n"
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            copies = CopySet(layout, FS)
            write = FileWrite(path=base / "sub" / "file", data=b"key %d" % written, mode=0o600, uid=65534, gid=65534)
            try:
                copies.begin([write])
                copies.commit()
                copies.close()
                written += 1
            except (PolicyRefusedError, DiskError):
                refused += 1
        attacker.kill()
    assert (victim / "file").read_text() == "untouched"
    assert [path.name for path in victim.iterdir()] == ["file"]
    assert (victim / "file").stat().st_uid == 0
    return written, refused


# --- recovery -------------------------------------------------------------------------------------------------


def test_an_armed_deployment_goes_forward(layout: ConfigDir, site: Path) -> None:
    copies = begun(layout, site)
    assert copies._journal is not None
    copies._journal.arm()  # and here the power went
    report = recover(layout, FS, [site])
    assert report.forward == tuple(str(write.path) for write in writes(site))
    assert (shown(site), list(layout.journal.iterdir())) == (NEW, [])
    assert recover(layout, FS, [site]) == type(report)()


def test_an_armed_deployment_goes_back_when_a_new_file_is_gone(layout: ConfigDir, site: Path) -> None:
    copies = begun(layout, site)
    assert copies._journal is not None
    copies._journal.arm()
    first, second = copies._jobs
    FS.rename(first.entry.temp, "site.pem", at=first.parent)
    FS.unlink(second.entry.temp, at=second.parent)
    report = recover(layout, FS, [site])
    assert (report.forward, len(report.back)) == ((), 2)
    assert (shown(site), list(layout.journal.iterdir())) == (OLD, [])


def test_an_armed_deployment_goes_back_where_it_is_no_longer_allowed(layout: ConfigDir, site: Path) -> None:
    copies = begun(layout, site)
    assert copies._journal is not None
    copies._journal.arm()
    assert len(recover(layout, FS, [site / "ssl"]).back) == 2
    assert shown(site) == OLD


def test_a_deployment_that_was_carried_out_stands_whatever_is_allowed_now(layout: ConfigDir, site: Path) -> None:
    begun(layout, site).commit()
    assert len(recover(layout, FS, []).forward) == 2
    assert shown(site) == NEW


def test_what_was_never_armed_is_removed(layout: ConfigDir, site: Path) -> None:
    begun(layout, site)
    report = recover(layout, FS, [site])
    assert (report.forward, report.back, report.failed) == ((), (), ())
    assert (shown(site), list(layout.journal.iterdir())) == (OLD, [])


def test_one_that_cannot_be_recovered_does_not_hold_up_the_others(layout: ConfigDir, site: Path) -> None:
    begun(layout, site)
    other = CopySet(layout, FS)
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


def test_a_directory_that_is_gone_needs_no_recovery(layout: ConfigDir, site: Path) -> None:
    other = CopySet(layout, FS)
    (site / "more").mkdir(mode=0o755)
    other.begin([FileWrite(path=site / "more" / "x", data=b"x", mode=0o600)])
    for path in (site / "more").iterdir():
        path.unlink()
    (site / "more").rmdir()
    assert recover(layout, FS, [site]).failed == ()
    assert not list(layout.journal.iterdir())


@pytest.mark.parametrize("body", [b"", b"\0\0", b'{"plan":', b"garbage"])
def test_a_torn_plan_is_forgotten(layout: ConfigDir, body: bytes) -> None:
    (layout.journal / "x.jsonl").write_bytes(body)
    recover(layout, FS, ["/"])
    assert not list(layout.journal.iterdir())


def test_a_damaged_plan_that_was_carried_out_is_named(layout: ConfigDir) -> None:
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
    copies = CopySet(layout, fs)
    with pytest.raises(DiskError) as caught:
        copies.begin([FileWrite(path=Path("/srv/site.pem"), data=b"new", mode=0o644)])
    assert "free space" in str(caught.value.fix)
    assert [path for path in fs.tree() if path.startswith("/srv/")] == ["/srv/site.pem"]
    assert not fs.open_files()


def test_going_back_needs_no_space() -> None:
    fs = ModelFs()
    layout = ConfigDir(Path("/etc/agent"))
    fs.put_dir("/etc")
    fs.put("/srv/site.pem", b"old")
    make_tree(fs, layout)
    copies = CopySet(layout, fs)
    copies.begin([FileWrite(path=Path("/srv/site.pem"), data=b"new", mode=0o644)])
    copies.commit()
    fs.fault = lambda verb, path: errno.ENOSPC if verb in ("write", "create", "mkdir", "symlink") else None
    copies.undo()
    assert fs.tree()["/srv/site.pem"].data == b"old"
