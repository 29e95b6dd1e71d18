"""The root helper as its units run it: the socket stays, and a connection starts the process, by its ExecStart."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from fleet import PATIENCE, ROOT, clean_environment, wait_for

SERVICE = ROOT / "deploy" / "cert-ctrl-helper.service"
SYSTEMD = """
import os, select, socket, subprocess, sys, time
number, argv = int(sys.argv[1]), sys.argv[2:]
listener = socket.socket(fileno=number)
process = None
while True:
    waiting = select.select([listener], [], [], 0.05)[0]
    running = process is not None and process.poll() is None
    if waiting and not running:
        process = subprocess.Popen([sys.executable, "-c", '''
import os, sys
os.dup2(int(sys.argv[1]), 3, inheritable=True)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}
print(os.getpid(), flush=True)
os.dup2(2, 1)
os.execvp(sys.argv[2], sys.argv[2:])
''', str(number), *argv], pass_fds=[number])
    elif waiting:
        time.sleep(0.005)  # it is about to accept
"""
"""Starts the process when a connection waits and it does not run; prints its id. A separate process, so that the test
may become another user."""


def exec_start(*program: str) -> list[str]:
    """Return the command line of the unit, with another program than the installed one."""
    line = next(one for one in SERVICE.read_text(encoding="utf-8").splitlines() if one.startswith("ExecStart="))
    return [*program, *line.partition("=")[2].split()[1:]]


class HelperUnit:
    """The socket, and the process while it runs."""

    def __init__(self, path: Path, argv: Sequence[str], *, gid: int, **environ: str) -> None:
        self.path, self._argv, self._gid, self._environ = path, list(argv), gid, environ
        self._log, self._pids = path.with_suffix(".log"), path.with_suffix(".pids")
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def __enter__(self) -> HelperUnit:
        self._listener.bind(str(self.path))
        os.chown(self.path, 0, self._gid)
        self.path.chmod(0o660)
        self._listener.listen(128)
        number = self._listener.fileno()
        with self._log.open("wb") as log, self._pids.open("wb") as pids:
            self._systemd = subprocess.Popen(
                [sys.executable, "-c", SYSTEMD, str(number), *self._argv], stdin=subprocess.DEVNULL, stdout=pids,
                stderr=log, pass_fds=[number], env=clean_environment(PYTHONPATH=str(ROOT)) | self._environ, cwd="/",
            )  # fmt: skip
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._systemd.kill()
        self._systemd.wait(PATIENCE)
        self.kill()
        self._listener.close()

    @property
    def pids(self) -> list[int]:
        """The ids of the processes that were started; the last one may run."""
        return [int(line) for line in self._pids.read_text(encoding="utf-8").splitlines()]

    @property
    def running(self) -> bool:
        """Whether the process runs."""
        return any(_runs(pid) for pid in self.pids[-1:])

    def kill(self) -> None:
        """Kill the process; the next connection starts another one."""
        for pid in self.pids[-1:]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                wait_for(lambda pid=pid: not _runs(pid), "the helper to be gone")  # type: ignore[misc]

    @property
    def audit(self) -> list[dict[str, Any]]:
        """The lines of the journal."""
        return [json.loads(line) for line in self._log.read_text(encoding="utf-8").splitlines()]


def _runs(pid: int) -> bool:
    """Return whether a process runs; one that has ended but is not reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
