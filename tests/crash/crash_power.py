"""Power cuts of real file systems: loop images that the shutdown ioctl of ext4 and XFS stops.

*Oldest* drops the unwritten part of the journal: the oldest state that a power cut may leave. *Newest* writes the
journal and drops unwritten data: names and sizes are new, contents may not be.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs
import pytest
from crash_plane import PlaneThread
from crash_stage import Forks, Stage
from crash_trials import in_memory, scratch

SHUTDOWN = 0x8004587D  # _IOR('X', 125, __u32)
OLDEST, NEWEST = 2, 1  # no log flush, log flush
MOUNTS = 10
CLONE_NEWNS = 0x00020000
VARIANTS = {"oldest": OLDEST, "newest": NEWEST}
EXT4 = ["mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0"]  # initialise everything now
KINDS = {
    "ext4": (EXT4, "commit=600", 64),
    "ext4 noauto_da_alloc": (EXT4, "commit=600,noauto_da_alloc", 64),
    "xfs": (["mkfs.xfs", "-q", "-f"], "", 320),
}


@attrs.define
class Disk:
    """One mounted image."""

    kind: str
    image: Path
    mountpoint: Path

    def format(self) -> None:
        """Make an empty file system; it must not be mounted."""
        command, _, megabytes = KINDS[self.kind]
        with self.image.open("wb") as file:
            file.truncate(megabytes << 20)
        subprocess.run([*command, self.image], check=True, capture_output=True)

    def empty(self) -> None:
        """Replace it by a new file system."""
        self.unmount()
        self.format()
        self.mount()

    def mount(self) -> None:
        """Mount it, again while the kernel still returns the file system that was shut down."""
        options = ",".join(filter(None, ("loop", KINDS[self.kind][1])))
        for again in range(MOUNTS):
            subprocess.run(["mount", "-o", options, self.image, self.mountpoint], check=True, capture_output=True)
            try:
                self.mountpoint.chmod(0o755)
                return
            except OSError:
                self.unmount()
                time.sleep(0.1 * (again + 1))
        raise AssertionError(f"{self.image} cannot be mounted again")

    def unmount(self) -> None:
        subprocess.run(["umount", self.mountpoint], check=True, capture_output=True)

    def settle(self) -> None:
        """Make everything durable."""
        subprocess.run(["sync", "-f", self.mountpoint], check=True)

    def cut(self, variant: int) -> None:
        """Cut the power and mount again."""
        fd = os.open(self.mountpoint, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, SHUTDOWN, variant.to_bytes(4, "little"))
        finally:
            os.close(fd)
        self.unmount()
        self.mount()


@contextmanager
def disk(kind: str, image: Path, mountpoint: Path) -> Iterator[Disk]:
    """Make an image and mount it; unmount at the end."""
    made = Disk(kind, image, mountpoint)
    made.format()
    made.mount()
    try:
        yield made
    finally:
        made.unmount()
        image.unlink()


def loop_mounts_work(root: Path, kind: str) -> str:
    """Return why this machine cannot mount images of a kind; empty if it can."""
    mountpoint, image = root / "try", root / "try.img"
    mountpoint.mkdir()
    try:
        with disk(kind, image, mountpoint):
            return ""
    except subprocess.CalledProcessError as error:
        return f"{error.cmd[0]}: {error.stderr.decode('utf-8', 'replace').strip()}"
    finally:
        mountpoint.rmdir()
        image.unlink(missing_ok=True)


def have_private_mounts() -> None:
    """Give this thread and what it starts mounts of their own.

    Any other process that copies the mounts meanwhile would keep a file system that was shut down, until it ends.
    """
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNS) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    subprocess.run(["mount", "--make-rprivate", "/"], check=True, capture_output=True)


@contextmanager
def stage_on(kind: str, need: Callable[[str], str]) -> Iterator[tuple[Stage, Disk]]:
    """Yield a stage on a separate file system; skip the test on a machine without loop devices."""
    if not Path("/dev/loop-control").exists():
        pytest.skip("this machine has no loop devices")
    need("strace")
    need(KINDS[kind][0][0])
    have_private_mounts()
    root = Path(tempfile.mkdtemp(prefix="certctrl-power-", dir=in_memory()))
    try:
        if why := loop_mounts_work(root, kind):
            pytest.skip(f"no loop mounts here: {why}")
        world, aside = scratch(root)
        with (
            disk(kind, root / "image", world) as made,
            PlaneThread(aside / "s").running() as plane,
            Forks(aside / "log").running() as forks,
        ):
            yield Stage(world, aside, plane, forks), made
    finally:
        shutil.rmtree(root)
