"""Unsafe destinations are refused, even if other users replace entries meanwhile."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from copy_site import FS, writes

from certctrl.errors import DiskError, PolicyRefusedError
from certctrl.store.deployments.file_set import FileSet, FileWrite
from certctrl.store.disk.safe_path import destination_facts
from certctrl.store.layout import ConfigDir


def made_unsafe(site: Path, how: str) -> Path:
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
        case "directory that others can write":
            target.parent.chmod(0o777)
        case "sticky directory that others can write":
            target.parent.chmod(0o1777)
        case "parent that others can write":
            site.chmod(0o777)
        case "link on the way":
            (site / "way").symlink_to("ssl")
            return site / "way" / "site.pem"
        case "no such directory":
            return site / "nowhere" / "site.pem"
        case "file in place of a directory":
            return target / "site.pem"
    return target


UNSAFE = [
    "symbolic link in place of the file", "hard link", "directory in place of the file", "pipe in place of the file",
    "directory that others can write", "sticky directory that others can write", "parent that others can write",
    "link on the way", "no such directory", "file in place of a directory",
]  # fmt: skip


@pytest.mark.usefixtures("no_wait")
@pytest.mark.parametrize("how", UNSAFE)
def test_unsafe_destinations_are_refused_with_the_reason(layout: ConfigDir, site: Path, how: str) -> None:
    target = made_unsafe(site, how)
    found = destination_facts(target, [site])
    assert found.refusal
    copies = FileSet(layout, FS)
    with pytest.raises(PolicyRefusedError) as caught:
        copies.begin([writes(site)[1], FileWrite(path=target, data=b"new", mode=0o644)])
    assert caught.value.fix
    assert not (site / "private" / "site.key").exists(), "one refused destination refuses the set"
    assert not list((site / "private").iterdir())
    assert not list(layout.journal.iterdir())


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
def shared_directory() -> Iterator[Path]:
    """A directory that all users can reach."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        yield Path(directory)


@pytest.mark.root
def test_an_attacker_replacing_directories_by_links_gains_nothing(layout: ConfigDir, shared_directory: Path) -> None:
    """The agent may write to the attacker's own directory, never through a link to another one."""
    written, refused = race(layout, shared_directory, seconds=2)
    assert written + refused > 10


@pytest.mark.root
@pytest.mark.campaign
def test_campaign_of_an_attacker_for_a_minute(
    layout: ConfigDir, shared_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written, refused = race(layout, shared_directory, seconds=60)
    with capsys.disabled():
        print(
            f"\n{written + refused} deployments into a directory under attack: {refused} refused, 0 written elsewhere",
            end="",
        )
    assert written > 10 and refused > 10


def race(layout: ConfigDir, shared_directory: Path, *, seconds: float) -> tuple[int, int]:
    """Deploy for some seconds against an attacker; return how many deployments were written and refused."""
    base, victim = shared_directory / "base", shared_directory / "victim"
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
            copies = FileSet(layout, FS)
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
