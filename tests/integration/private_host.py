"""A host of root's for a test: own /etc, /var/lib and /opt, in a mount namespace for each command.

The program and its Python are where every user can read them, as after an installation. ``systemctl`` records how it is
called and answers for units of a table; everything else, the network too, is this machine's.
"""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import sysconfig
import termios
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import attrs
from fleet import PATIENCE, ROOT, clean_environment

PROGRAM = "/opt/tools/cert-ctrl"
CTRL_C = "\x03"
SYSTEMCTL = """#!/bin/sh
# records its arguments; a unit is a file with the lines that `show` prints
printf '%s\\n' "$*" >> /opt/tools/calls
for unit; do :; done
case "$1" in
show)
    [ -e /opt/tools/booted ] || { echo "System has not been booted with systemd" >&2; exit 1; }
    cat "/opt/tools/units/$unit" 2>/dev/null || echo LoadState=not-found ;;
enable|restart)
    [ -e /opt/tools/refuses ] && exit 1
    sed -i 's/^UnitFileState=.*/UnitFileState=enabled/; s/^ActiveState=.*/ActiveState=active/' "/opt/tools/units/$unit" ;;
esac
"""
MOUNTS = """
set -e
mount --bind "$HOST/etc" /etc
mount --bind "$HOST/lib" /var/lib
mount -t tmpfs none /opt
mkdir /opt/python /opt/site /opt/source /opt/tools
mount --bind "$PYTHON" /opt/python
mount --bind "$SITE" /opt/site
mount --bind "$SOURCE" /opt/source
mount --bind "$HOST/tools" /opt/tools
cd /
umask 000
exec "$@"
"""


@attrs.define
class Ended:
    """A command that has ended."""

    status: int
    out: str
    """Standard output, or everything on the terminal."""
    err: str = ""


class PrivateHost:
    """Runs commands as root of that host; umask 000."""

    def __init__(self, place: Path) -> None:
        self.place, self.tools = place, place / "tools"
        shutil.copytree("/etc", place / "etc", symlinks=True, ignore=_unneeded)
        (place / "lib").mkdir(mode=0o755)
        (self.tools / "units").mkdir(parents=True, mode=0o755)
        for folder in (place, place / "etc", self.tools):
            folder.chmod(0o755)
        python = f"/opt/python/bin/{Path(sys.executable).resolve().name}"
        self.script("cert-ctrl", f'#!/bin/sh\nexec {python} -m certctrl "$@"\n')
        self.script("systemctl", SYSTEMCTL)
        (self.tools / "calls").touch()

    @property
    def agent(self) -> Path:
        """The agent's directory, as this machine sees it."""
        return self.place / "etc" / "cert-ctrl"

    @property
    def plane(self) -> Path:
        """The control plane's directory, as this machine sees it."""
        return self.place / "lib" / "cert-ctrl-plane"

    def script(self, name: str, text: str) -> None:
        """Install a program."""
        (self.tools / name).write_text(text)
        (self.tools / name).chmod(0o755)

    def boots(self, *units: str, user: str = "cert-ctrl") -> None:
        """Have systemd run there, with these units installed."""
        (self.tools / "booted").touch()
        for unit in units:
            facts = f"LoadState=loaded\nUser={user}\nUnitFileState=disabled\nActiveState=inactive\n"
            (self.tools / "units" / unit).write_text(facts)

    def calls(self) -> list[str]:
        """Return the calls of ``systemctl`` that change something."""
        return [line for line in (self.tools / "calls").read_text().splitlines() if not line.startswith("show")]

    def uid(self, user: str) -> int | None:
        """Return the id of a user of that host."""
        for line in (self.place / "etc" / "passwd").read_text().splitlines():
            if line.startswith(f"{user}:"):
                return int(line.split(":")[2])
        return None

    def argv(self, *words: str | Path, wrapped: Sequence[str | Path] = ()) -> list[str]:
        """Return the command line on this machine."""
        inside = [*wrapped, PROGRAM, *words]
        return ["unshare", "--mount", "--propagation", "private", "sh", "-c", MOUNTS, "sh", *map(str, inside)]

    def environ(self, **extra: str) -> dict[str, str]:
        """Return the environment of a command there."""
        paths = {"HOST": self.place, "PYTHON": sys.base_prefix, "SITE": sysconfig.get_path("purelib"), "SOURCE": ROOT}
        plain = {name: str(path) for name, path in paths.items()} | extra
        tools = f"/opt/tools:{os.environ['PATH']}"
        return clean_environment(**plain) | {"PYTHONPATH": "/opt/source:/opt/site", "PATH": tools, "TERM": "dumb"}

    def run(self, *words: str | Path, given: str | None = None, **extra: str) -> Ended:
        """Run `cert-ctrl` without a terminal, until it ends."""
        done = subprocess.run(
            self.argv(*words), env=self.environ(**extra), input=given or "", capture_output=True, text=True,
            timeout=10 * PATIENCE, check=False,
        )  # fmt: skip
        return Ended(done.returncode, done.stdout, done.stderr)

    def kill_at(self, moment: Callable[[], bool], *words: str | Path, wait: float = PATIENCE, **extra: str) -> bool:
        """Run `cert-ctrl` and kill all of its processes once ``moment`` is true; return whether it came before the end."""
        child = subprocess.Popen(
            self.argv(*words), env=self.environ(**extra), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        until = time.monotonic() + wait
        while child.poll() is None and time.monotonic() < until:
            if moment():
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
                return True
            time.sleep(0.001)
        child.wait(PATIENCE)
        return False

    def talk(self, answers: Iterable[tuple[str, str]], *words: str | Path, **extra: str) -> Ended:
        """Run `cert-ctrl` on a terminal of its own; type each answer after its question."""
        return talk(self.argv(*words), self.environ(**extra), answers)


def talk(argv: Sequence[str], environ: Mapping[str, str], answers: Iterable[tuple[str, str]]) -> Ended:
    """Run a program on a terminal of its own; type each answer, with its newline, after its question.

    Ctrl-C as the last answer is pressed again until the program ends, as a person does: Python begins to read a moment
    after it has shown the question, and a signal between the two is noticed at the next key only.
    """
    master, slave = pty.openpty()
    child = subprocess.Popen(
        argv, env=dict(environ), stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
        preexec_fn=_as_a_shell_starts_it,
    )  # fmt: skip
    os.close(slave)
    shown, at, waiting, last = "", 0, list(answers), ""
    until = time.monotonic() + PATIENCE
    try:
        while True:
            assert time.monotonic() < until, f"waiting for {waiting}: {shown}"
            if not select.select([master], [], [], 5)[0]:
                if last == CTRL_C and not waiting and "interrupted" not in shown:
                    os.write(master, last.encode())
                continue
            try:
                part = os.read(master, 65_536)
            except OSError:  # the terminal is closed
                part = b""
            if not part:
                return Ended(child.wait(PATIENCE), shown)
            shown += part.decode(errors="replace").replace("\r\n", "\n")
            if waiting and (found := shown.find(waiting[0][0], at)) >= 0:
                at = found + len(waiting[0][0])
                last = waiting.pop(0)[1]
                os.write(master, last.encode())
    finally:
        os.close(master)
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()


def _as_a_shell_starts_it() -> None:
    """Make the terminal this session's; a test runner in the background ignores Ctrl-C, and so would its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def _unneeded(folder: str, names: list[str]) -> list[str]:
    """Skip what is large or of no use, and what this machine may have of the program."""
    return [
        name
        for name in names
        if name.startswith("cert-ctrl") or (folder == "/etc" and name in ("alternatives", "apt", "java"))
    ]


def json_of(path: Path) -> dict[str, object]:
    """Return the object in a file."""
    found: dict[str, object] = json.loads(path.read_text())
    return found
