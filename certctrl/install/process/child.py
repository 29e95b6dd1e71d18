"""Child: the agent's end of one supervisor process. It always ends."""

from __future__ import annotations

import marshal
import os
import signal
import subprocess
import sys
from contextlib import suppress
from functools import cache
from io import FileIO
from time import sleep
from typing import Any

import trio

from certctrl.errors import CommandError
from certctrl.install.process import supervisor
from certctrl.install.process.transcript import KEEP_BYTES

END_MARGIN = supervisor.SHORT_GRACE + 3.0
"""Seconds to wait for a supervisor that was ordered to end its command now."""
LARGEST_ANSWER = 4 * KEEP_BYTES
_BOOT = "import marshal; exec(marshal.load(open(0, 'rb', 0, closefd=False)), {'__name__': '__main__'})"


class _Popen(subprocess.Popen[bytes]):
    """A process that may be dropped while it runs: when its standard input closes, it ends."""

    def __del__(self) -> None:
        with suppress(OSError, AttributeError):
            os.waitpid(self.pid, os.WNOHANG)
        self.returncode = self.returncode or 0


class Child:
    """A supervisor that runs at most one command."""

    def __init__(self, popen: _Popen, stdin: int, stdout: int) -> None:
        self._popen = popen
        self._stdin = trio.lowlevel.FdStream(stdin)
        self._stdout = trio.lowlevel.FdStream(stdout)

    @classmethod
    async def start(cls) -> Child:
        """Start a supervisor. Raises CommandError if the system cannot start another process."""
        with trio.CancelScope(shield=True):  # the thread always ends, and its process must not be lost
            try:
                made = await trio.to_thread.run_sync(_spawn)
            except OSError as error:
                raise CommandError(
                    f"cannot start a supervisor: {error.strerror}", fix="check `ulimit -a` and the free memory"
                ) from None
        return cls(*made)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._popen.pid

    @property
    def alive(self) -> bool:
        """Whether it is running."""
        return self._popen.poll() is None

    @property
    def status(self) -> int | None:
        """Its exit status; None while it runs."""
        return self._popen.returncode

    async def order(self, frame: bytes) -> None:
        """Send it its order. Raises trio.BrokenResourceError if it has exited."""
        await self._stdin.send_all(frame)  # stays open: closing it means that the agent is gone

    async def receive(self, answer: bytearray) -> None:
        """Append its output to ``answer`` until it closes."""
        while len(answer) < LARGEST_ANSWER and (part := await self._stdout.receive_some()):
            answer += part

    async def end(self, leader: int | None) -> None:
        """Wait until it has exited; kill the processes that a dead or stopped one left behind."""
        await trio.aclose_forcefully(self._stdin)
        await trio.aclose_forcefully(self._stdout)  # so that it can end although nothing reads
        with trio.move_on_after(END_MARGIN):
            if await self._wait() == 0:
                return
        await trio.to_thread.run_sync(self._kill_left_over, leader)
        await self._wait()

    async def _wait(self) -> int:
        if self._popen.poll() is None:
            handle = os.pidfd_open(self.pid)
            try:
                await trio.lowlevel.wait_readable(handle)
            finally:
                trio.lowlevel.notify_closing(handle)
                os.close(handle)
        return self._popen.wait()

    def _kill_left_over(self, leader: int | None) -> None:
        """Kill it, its descendants and the processes in its command's session."""
        left = {}
        if self._popen.poll() is None:  # once it is reaped, its pid may be reused
            left = dict(supervisor.descendants(self.pid))
            self._popen.send_signal(signal.SIGKILL)
        for one, (_, session, start) in supervisor.process_table().items():
            if leader is not None and session == leader:
                left[one] = start
        for _ in range(400):  # two seconds: a killed process disappears soon, but not immediately
            reached = [supervisor.send(one, start, signal.SIGKILL) for one, start in left.items()]
            if not any(reached):
                return
            sleep(0.005)


def load_supervisor() -> None:
    """Read the supervisor's code, so that commands that are started later need no file of this package."""
    _program()


@cache
def _program() -> bytes:
    """Return the supervisor's compiled code, which a bare interpreter runs without a file or compiling."""
    loader: Any = supervisor.__loader__  # an importlib.abc.InspectLoader; importing that class would load much more
    return marshal.dumps(loader.get_code(supervisor.__name__))


def _spawn() -> tuple[_Popen, int, int]:
    """Start a bare interpreter with the supervisor's program in its pipe; return it and the agent's pipe ends."""
    program = _program()
    orders, stdin = os.pipe()
    stdout, answers = os.pipe()
    try:
        popen = _Popen(
            [sys.executable, "-I", "-S", "-c", _BOOT],
            stdin=orders,
            stdout=answers,
            stderr=subprocess.DEVNULL,
            env={},
            cwd="/",
            close_fds=True,
            start_new_session=True,  # Ctrl-C at the agent's terminal must reach the agent only
        )
        FileIO(stdin, "w", closefd=False).write(program)  # fits into the pipe, so it does not block
    except OSError:
        os.close(stdin)
        os.close(stdout)
        raise
    finally:
        os.close(orders)
        os.close(answers)
    return popen, stdin, stdout
