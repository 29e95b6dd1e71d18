"""Workers: several processes that serve one address, on one PostgreSQL database.

The supervisor listens, and forks the workers. Each is a separate plane, which accepts connections from the shared
socket. The first worker uses the data directory, the others use directories below it with the same keys. A worker that
ends is restarted; if the supervisor ends, even by kill -9, so do its workers.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import trio

from certctrl import lean
from certctrl.backoff import grown
from certctrl.plane.stop_deadline import STOP_SECONDS
from certctrl.plane.storage.data_dir import DataDir, disk_errors, keep_file, make_data_dir

_HEALTHY_SECONDS = 30.0
"""A worker that has run for so long is restarted immediately."""
_MAX_PAUSE = 30.0
_STOP_SECONDS = STOP_SECONDS + 3.0  # each worker logs that it has not stopped in time
_AWAITED = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGHUP)

log = logging.getLogger("certctrl.Plane.workers")


@lean.define
class Worker:
    """One worker, in its own process."""

    number: int
    """From 1 on."""
    _ready: int
    """A pipe to the supervisor, written once the worker serves."""
    _supervisor: int
    """A pipe that closes when the supervisor ends."""
    _root: Path | None = None
    """The data directory of the first worker; None in that one."""

    def directory(self, root: Path) -> Path:
        """Return this worker's data directory; the keys of the plane are copied into it."""
        if self.number == 1:
            return root
        make_data_dir(root)
        folder = root / "workers"
        main, own = DataDir(root), make_data_dir(make_data_dir(folder).root / str(self.number))
        for source, copy in ((main.storage_key, own.storage_key), (main.operator_key, own.operator_key)):
            with disk_errors(source), contextlib.suppress(FileNotFoundError):
                keep_file(copy, source.read_bytes(), mode=0o600)
        with disk_errors(own.denied_keys), contextlib.suppress(FileExistsError):
            own.denied_keys.symlink_to(main.denied_keys.absolute())
        self._root = root
        self.copy_certificate()
        return own.root

    def copy_certificate(self) -> None:
        """Copy the TLS certificate and its key from the data directory of the first worker."""
        if self._root is None:
            return
        main, own = DataDir(self._root), DataDir(self._root / "workers" / str(self.number))
        for source, copy in ((main.tls_key, own.tls_key), (main.tls_certificate, own.tls_certificate)):
            with disk_errors(source):
                try:
                    keep_file(copy, source.read_bytes(), mode=0o600)
                except FileNotFoundError:
                    copy.unlink(missing_ok=True)

    def serves(self) -> None:
        """Notify the supervisor that this worker serves."""
        with contextlib.suppress(BrokenPipeError):
            os.write(self._ready, b"1")

    async def until_orphaned(self) -> None:
        """Return when the supervisor has ended."""
        await trio.lowlevel.wait_readable(self._supervisor)


@lean.define
class _Process:
    number: int
    started_at: float


class _Supervisor:
    """The workers of this process."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._running: dict[int, _Process] = {}
        self._due: dict[int, float] = {}
        """Restart times of the workers that have ended."""
        self._failures: dict[int, int] = {}
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, _AWAITED)
        self._alive, self._lifeline = os.pipe()

    def start(self, number: int) -> Worker | int:
        """Fork a worker; return it in its process, and in this one the pipe that reports when it serves."""
        ready, readied = os.pipe()
        pid = os.fork()
        if pid:
            os.close(readied)
            self._running[pid] = _Process(number, time.monotonic())
            return ready
        os.close(ready)
        os.close(self._lifeline)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
        return Worker(number, readied, self._alive)

    def supervise(self, alive: Callable[[], object]) -> Worker | None:
        """Restart workers until a stop signal; return one in its process, and None in this one."""
        while True:
            alive()
            now = time.monotonic()
            for number in [number for number, due in self._due.items() if due <= now]:
                del self._due[number]
                started = self.start(number)
                if isinstance(started, Worker):
                    return started
                os.close(started)
            received = signal.sigtimedwait(_AWAITED, max(0.0, min(self._due.values(), default=now + 60.0) - now))
            if received is not None and received.si_signo == signal.SIGHUP:
                self._send(signal.SIGHUP)
            elif received is not None and received.si_signo != signal.SIGCHLD:
                return None
            for process, status in self._reaped():
                self._plan(process, status)

    def stop(self) -> None:
        """Stop all workers: their polls are answered, and remaining connections are cut after a grace period."""
        self._send(signal.SIGTERM)
        deadline = time.monotonic() + _STOP_SECONDS
        while self._running and (left := deadline - time.monotonic()) > 0:
            signal.sigtimedwait((signal.SIGCHLD,), left)
            self._reaped()
        for pid in list(self._running):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)

    def _send(self, signum: int) -> None:
        for pid in self._running:
            os.kill(pid, signum)

    def end_of(self, number: int) -> int:
        """Wait for the end of a worker and return its exit status."""
        pid = next(pid for pid, process in self._running.items() if process.number == number)
        del self._running[pid]
        return max(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), 1)

    def _reaped(self) -> list[tuple[_Process, int]]:
        """Return the workers that have ended, with their wait status."""
        ended = []
        while self._running:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            ended.append((self._running.pop(pid), status))
        return ended

    def _plan(self, process: _Process, status: int) -> None:
        now, number = time.monotonic(), process.number
        lived = now - process.started_at
        self._failures[number] = 0 if lived >= _HEALTHY_SECONDS else self._failures.get(number, 0) + 1
        pause = grown(1.0, _MAX_PAUSE, self._failures[number]) if self._failures[number] else 0.0
        self._due[number] = now + pause
        ending = os.waitstatus_to_exitcode(status)
        how = f"signal {-ending}" if ending < 0 else f"status {ending}"
        log.error("worker %d ended with %s; starting it again in %.0f s", number, how, pause)


def supervise(
    count: int, *, ready: Callable[[], object], alive: Callable[[], object], stopping: Callable[[], object]
) -> Worker | int:
    """Fork workers and supervise them until SIGTERM or Ctrl-C.

    Returns a `Worker` in the process of each worker, and in this one the exit status, after all have ended. The first
    worker starts alone, because it creates what all share; if it cannot serve, its status is returned. ``ready`` is
    called when all have been started, ``alive`` at least once a minute from then on, ``stopping`` before they are
    stopped. No other thread may be running.
    """
    supervisor = _Supervisor(count)
    for number in range(1, count + 1):
        started = supervisor.start(number)
        if isinstance(started, Worker):
            return started
        with open(started, "rb") as pipe:
            serves = bool(pipe.read(1))
        if not serves and number == 1:
            return supervisor.end_of(number)
    ready()
    worker = supervisor.supervise(alive)
    if worker is not None:
        return worker
    stopping()
    supervisor.stop()
    return 0
