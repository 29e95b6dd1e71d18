"""Start, record (``fleet.json``) and end the processes of a fleet on one machine; find the programs they need."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

HOST = "127.0.0.1"
START_SECONDS = 300.0
STOP_SECONDS = 30.0


class FleetError(Exception):
    """A command that a fleet cannot carry out; the text has the reason."""


class Fleet:
    """The processes below one directory, recorded in ``fleet.json``."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._file = root / "fleet.json"
        self.state: dict[str, Any] = {"port": 0, "planes": [], "agents": 0, "processes": {}}
        with contextlib.suppress(FileNotFoundError):
            self.state = json.loads(self._file.read_text())

    @property
    def url(self) -> str:
        """The URL of HAProxy, for agents."""
        return f"https://{HOST}:{self.state['port']}"

    def plane(self, number: int) -> Path:
        """Return the data directory of a control plane, from 1 on."""
        return self.root / f"plane{number}"

    def agent(self, number: int) -> Path:
        """Return the config directory of an agent, from 1 on."""
        return self.root / "agents" / f"agent{number:03d}"

    def numbers(self) -> range:
        """Return the numbers of the control planes."""
        return range(1, len(self.state["planes"]) + 1)

    # --- processes ----------------------------------------------------------------------------------------------

    def launch(self, name: str, argv: Sequence[str | Path]) -> None:
        """Start a process in its own session, with its output in ``logs``."""
        with (self.root / "logs" / f"{name}.log").open("ab") as log:
            child = subprocess.Popen(
                [str(word) for word in argv],
                cwd="/",
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.state["processes"][name] = [child.pid, started_at(child.pid)]
        self.save()

    def pid(self, name: str) -> int | None:
        """Return the process of that name; None if it has ended, even if its number was given to another one."""
        pid, start = self.state["processes"].get(name, (0, ""))
        return pid if pid and start and started_at(pid) == start else None

    def wait_until(self, condition: Callable[[], bool], what: str, *names: str) -> None:
        """Wait for a condition while the processes of these names run."""
        deadline = time.monotonic() + START_SECONDS
        while not condition():
            for name in names:
                if self.pid(name) is None:
                    raise FleetError(f"{name} has ended: see {self.root / 'logs' / name}.log")
            if time.monotonic() > deadline:
                raise FleetError(f"waited {START_SECONDS:g} s for {what}")
            time.sleep(0.1)

    def end(self, names: Iterable[str], signum: signal.Signals = signal.SIGTERM) -> None:
        """End processes, after a while with SIGKILL."""
        waiting = {name: pid for name in names if (pid := self.pid(name)) is not None}
        deadline = time.monotonic() + STOP_SECONDS
        for pid in waiting.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signum)
        while any(self.pid(name) for name in waiting) and time.monotonic() < deadline:
            time.sleep(0.05)
        for name in waiting:
            if (pid := self.pid(name)) is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)
            self.state["processes"].pop(name, None)
        self.save()

    def stop(self) -> None:
        """End everything: agents, HAProxy, control planes, PostgreSQL."""
        names = list(self.state["processes"])
        for kind in ("agent", "haproxy", "plane"):
            self.end(name for name in names if name.startswith(kind))
        self.end(["postgresql"], signal.SIGINT)

    def save(self) -> None:
        """Write ``fleet.json``."""
        temp = self._file.with_suffix(".tmp")
        temp.write_text(json.dumps(self.state))
        temp.rename(self._file)


def free_ports(count: int) -> list[int]:
    """Return ports on which nothing listens."""
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(socket.create_server((HOST, 0))) for _ in range(count)]
        return [sock.getsockname()[1] for sock in socks]


def unprivileged() -> tuple[list[str], pwd.struct_passwd]:
    """Return the words before a command that must not run as root, and its user: PostgreSQL refuses root."""
    if os.geteuid() != 0:
        return [], pwd.getpwuid(os.geteuid())
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            user = pwd.getpwnam(name)
            return ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"], user
    raise FleetError("no unprivileged user for PostgreSQL")


def postgresql_program(name: str) -> str:
    """Return the path of a program of PostgreSQL; Debian has them outside of PATH."""
    versions = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: int(path.parts[-3]))
    found = str(versions[-1]) if versions else shutil.which(name)
    if found is None:
        raise FleetError("PostgreSQL is not installed: apt install postgresql")
    return found


def search_path() -> str:
    """Return PATH with the directories of servers, which are not in that of all users."""
    return f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"


def environment() -> dict[str, str]:
    """Return this environment without variables that configure the program."""
    return {name: text for name, text in os.environ.items() if not name.startswith(("CERTCTRL_", "NOTIFY_", "PG"))}


def started_at(pid: int) -> str:
    """Return the start time of a process; empty if it has ended."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if words[0] == "Z" else words[19]


def run(argv: Sequence[str | Path]) -> str:
    """Run a command and return what it prints. Raises FleetError with its error."""
    words = [str(word) for word in argv]
    done = subprocess.run(
        words, cwd="/", env=environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300
    )
    if done.returncode:
        raise FleetError(f"{' '.join(words)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def succeeds(argv: Sequence[str | Path]) -> bool:
    """Return whether a command succeeds."""
    with contextlib.suppress(FleetError):
        run(argv)
        return True
    return False
