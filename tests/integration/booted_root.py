"""A root file system with a running systemd, in namespaces of its own except for the network.

It needs root and cgroup v2, which may be mounted beside v1: only systemd's own hierarchy is used, so limits of memory or
tasks have no effect there.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

GROUP = """\
set -e
root=$0 group=$1 boot=$2
mount --make-rprivate /
mount -t cgroup2 none "$root/mnt"
mkdir "$root/mnt/$group"
echo $$ > "$root/mnt/$group/cgroup.procs"
shift 2
exec unshare --mount --pid --fork --kill-child --cgroup --ipc --uts sh -c "$boot" "$root" "$@"
"""
BOOT = """\
set -e
root=$0
hostname host
umount "$root/mnt"
mount --bind "$root" "$root"
for pair in "$@"; do mkdir -p "$root${pair#*:}"; mount --bind "${pair%%:*}" "$root${pair#*:}"; done
mount -t proc proc "$root/proc"
mount --bind "$root/proc/sys" "$root/proc/sys" && mount -o remount,bind,ro "$root/proc/sys"
mount -t sysfs -o ro sysfs "$root/sys"
mount -t cgroup2 none "$root/sys/fs/cgroup"
mount -t tmpfs -o mode=755 none "$root/run"
mount -t tmpfs -o mode=755 none "$root/dev"
for node in null:3 zero:5 full:7 random:8 urandom:9; do mknod -m 666 "$root/dev/${node%:*}" c 1 "${node#*:}"; done
mknod -m 666 "$root/dev/tty" c 5 0
mkdir "$root/dev/pts" "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 none "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
cd "$root"
pivot_root . mnt
umount -l /mnt
mount --make-rshared /
exec env -i container=test PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --show-status=no </dev/null
"""
"""PrivateDevices= needs these devices, LoadCredential= shared mounts. The sysctl settings of this machine are read-only."""
START = ("setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "sh", "-c")
"""It ends with the test, even if that is killed."""
REMOVE_GROUP = 'mount -t cgroup2 none "$0" && find "$0/$1" -depth -type d -exec rmdir {} +'
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL": "C.UTF-8",
    "DEBIAN_FRONTEND": "noninteractive",
}


class Transcript:
    """Lines for a reader, printed and appended to a file, if one is named."""

    def __init__(self, file: Path | None = None) -> None:
        self._file = file
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("")

    def add(self, suffix: str, text: str) -> None:
        """Write another file beside the transcript."""
        if self._file is not None:
            self._file.with_suffix(suffix).write_text(text)

    def say(self, text: str) -> None:
        """Add lines."""
        print(text, flush=True)
        if self._file is not None:
            with self._file.open("a") as file:
                file.write(f"{text}\n")


class BootedRoot:
    """A system that runs inside the block."""

    def __init__(self, path: Path, transcript: Transcript, binds: Mapping[Path, str] | None = None) -> None:
        self.path = path
        self.transcript = transcript
        self._binds = [f"{outside}:{inside}" for outside, inside in (binds or {}).items()]
        self._group = f"cert-ctrl-test-{os.getpid()}-{path.stat().st_ino}"

    def __enter__(self) -> BootedRoot:
        (self.path / "etc/hosts").write_text("127.0.0.1 localhost\n")
        (self.path / "etc/machine-id").write_text("")
        with (self.path / "var/log/boot").open("wb") as log:
            argv = [*START, GROUP, str(self.path), self._group, BOOT, *self._binds]
            self._outer = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        wait_for(lambda: self._outer.poll() is not None or bool(self._systemd()), "systemd starts")
        try:
            wait_for(lambda: self._outer.poll() is not None or self._is_up(), "systemd has started all services")
            assert self._outer.poll() is None, (self.path / "var/log/boot").read_text()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._systemd():
            self.transcript.add(".journal", self.run("journalctl", "--no-pager", quiet=True))
        self._outer.kill()
        self._outer.wait()
        argv = ["unshare", "--mount", "sh", "-c", REMOVE_GROUP, str(self.path / "mnt"), self._group]
        wait_for(lambda: subprocess.run(argv, capture_output=True, check=False).returncode == 0, "all processes end")

    def _systemd(self) -> str:
        """Return the process id of systemd outside; empty if it does not run (yet)."""
        children = Path(f"/proc/{self._outer.pid}/task/{self._outer.pid}/children").read_text().split()
        for pid in children:
            with contextlib.suppress(OSError):
                if Path(f"/proc/{pid}/comm").read_text() == "systemd\n":
                    return pid
        return ""

    def _is_up(self) -> bool:
        done = subprocess.run(self.argv("systemctl", "is-system-running"), capture_output=True, text=True, check=False)
        return done.stdout.strip() in {"running", "degraded"}

    def argv(self, *words: str, user: str = "") -> list[str]:
        """Return the command that runs a program in the system."""
        enter = ["nsenter", "--target", self._systemd(), "--mount", "--pid", "--ipc", "--uts", "--cgroup"]
        become = ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups"] if user else []
        return [*enter, *become, *words]

    def run(self, *words: str, status: int = 0, user: str = "", quiet: bool = False) -> str:
        """Run a program, transcribe what it prints, and return that."""
        done = subprocess.run(
            self.argv(*words, user=user),
            env=ENVIRONMENT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        if not quiet:
            self.transcript.say(f"{'$' if user else '#'} {shlex.join(words)}")
            for line in (done.stdout + done.stderr).splitlines():
                self.transcript.say(f"  {line}")
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr

    def dpkg(self, *words: str | Path) -> str:
        """Run dpkg with packages from outside; return what it prints."""
        inside = []
        for word in words:
            if isinstance(word, Path):
                shutil.copy(word, self.path / "root")
            inside.append(f"/root/{word.name}" if isinstance(word, Path) else word)
        return self.run("dpkg", *inside)

    def file(self, name: str) -> Path:
        """Return where a file of the system is outside of it; links lead astray."""
        return self.path / name.lstrip("/")

    def write(self, name: str, text: str) -> None:
        """Write a file of the system, and transcribe its name."""
        self.transcript.say(f"# (writes {name})")
        self.file(name).parent.mkdir(parents=True, exist_ok=True)
        self.file(name).write_text(text)

    def shows(self, unit: str, key: str) -> str:
        """Return a property of a unit."""
        return self.run("systemctl", "show", "--value", "-p", key, unit, quiet=True).strip()

    def journal(self, unit: str, *words: str) -> Sequence[str]:
        """Return the messages of a unit."""
        return self.run("journalctl", "--no-pager", "-o", "cat", "-u", unit, *words, quiet=True).splitlines()


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 300) -> None:
    """Wait until a condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{what}: not within {seconds} s"
        time.sleep(0.05)
