"""Proc: the one door through which commands are run."""

from __future__ import annotations

import grp
import marshal
import os
import pwd
import resource
import signal
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib.abc import InspectLoader

import trio

from certctrl.errors import CommandError
from certctrl.install.policy import shown
from certctrl.install.process import supervisor
from certctrl.install.process.result import CommandResult, leader_of, read_answer
from certctrl.install.process.transcript import KEEP_BYTES
from certctrl.install.process.vetting import vet_executable

BASE_ENV = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C", "HOME": "/"}
TERM_GRACE = 5.0
"""Seconds between TERM and KILL at the deadline."""
ANSWER_MARGIN = supervisor.SWEEP_LIMIT + 5.0
"""A supervisor that has not answered this long after deadline and grace is taken for dead."""
END_MARGIN = supervisor.HASTY_GRACE + 3.0
"""Longest wait for a supervisor that was told to end its command now."""
LARGEST_ANSWER = 4 * KEEP_BYTES
LIMITS = {
    resource.RLIMIT_CORE: 0,
    resource.RLIMIT_NOFILE: 4096,
    resource.RLIMIT_NPROC: 512,
    resource.RLIMIT_AS: 16 << 30,  # a Java tool reserves many GiB that it never touches
}
_User = tuple[int, int, list[int]]
_BOOT = "import marshal; exec(marshal.load(open(0, 'rb', 0, closefd=False)), {'__name__': '__main__'})"


class Proc:
    """Runs commands; each is gone, with everything it started, when its `run` returns or is cancelled."""

    def __init__(self, *, term_grace: float = TERM_GRACE, limits: Mapping[int, int] = LIMITS) -> None:
        self._grace = term_grace
        self._limits = dict(limits)
        self._spare: trio.Process | None = None
        self._preparing = False

    async def run(
        self,
        argv: Sequence[str],
        *,
        run_as: str | None = None,
        timeout: float,  # noqa: ASYNC109 - the supervisor keeps it: it must hold while this task is away
        env_paths: Mapping[str, str] | None = None,
        cwd: str = "/",
        sha256: str | None = None,
        secrets: Collection[bytes] = (),
    ) -> CommandResult:
        """Run a command to its end and return how it ended.

        ``timeout``: seconds until TERM; KILL follows after the grace. ``env_paths`` joins the fixed environment.
        ``sha256`` pins the executable, ``secrets`` are taken out of its output. Raises CommandError when it
        cannot be started. Cancellation ends the command, within about a second, before it is let through.
        """
        command = tuple(argv)
        user = await trio.to_thread.run_sync(_prepared, command, run_as, sha256)
        order = {
            "argv": [os.fsencode(word) for word in command],
            "env": {os.fsencode(k): os.fsencode(v) for k, v in (BASE_ENV | dict(env_paths or {})).items()},
            "cwd": os.fsencode(cwd),
            "user": user,
            "limits": [(number, *_limit(number, most)) for number, most in self._limits.items()],
            "deadline": timeout,
            "grace": self._grace,
            "keep": KEEP_BYTES,
        }
        started = trio.current_time()
        answer = await self._supervised(marshal.dumps(order), timeout + self._grace + ANSWER_MARGIN)
        return read_answer(command, answer, trio.current_time() - started, secrets)

    async def prepare(self) -> None:
        """Start a supervisor ahead of the next command; it waits a minute for one, then leaves."""
        if self._preparing or (self._spare is not None and self._spare.poll() is None):
            return
        self._preparing = True
        try:
            await self.aclose()
            self._spare = await _spawn()
        finally:
            self._preparing = False

    async def aclose(self) -> None:
        """End the supervisor that waits for a command, if there is one."""
        spare, self._spare = self._spare, None
        if spare is not None:
            await _end(spare, None)

    async def _supervised(self, order: bytes, limit: float) -> bytes:
        """Give the order to a supervisor and return its answer; no process of it is left then."""
        parcel = b"%08d" % len(order) + order
        process, self._spare = self._spare or await _spawn(), None
        answer = bytearray()
        try:
            with trio.move_on_after(limit):
                try:
                    await _send(process, parcel)
                except trio.BrokenResourceError:  # one that was started ahead and has just left
                    with trio.CancelScope(shield=True):
                        await _end(process, None)
                    process = await _spawn()
                    await _send(process, parcel)
                await _receive(process, answer)
        finally:
            with trio.CancelScope(shield=True):
                await _end(process, leader_of(bytes(answer)))
        return bytes(answer)


@cache
def _program() -> bytes:
    """Return the supervisor's compiled code: sent to a bare interpreter, it needs no file and no compiling."""
    assert isinstance(supervisor.__loader__, InspectLoader)
    return marshal.dumps(supervisor.__loader__.get_code(supervisor.__name__))


async def _spawn() -> trio.Process:
    try:
        process = await trio.lowlevel.open_process(
            [sys.executable, "-I", "-S", "-c", _BOOT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={},
            cwd="/",
            close_fds=True,
            start_new_session=True,  # a Ctrl-C at the agent's terminal is for the agent alone
        )
    except OSError as error:
        raise CommandError(f"cannot start a supervisor: {error.strerror}", fix="see `ulimit -a` and free memory") \
            from None  # fmt: skip
    try:
        await _send(process, _program())
    except trio.Cancelled:
        with trio.CancelScope(shield=True):
            await _end(process, None)
        raise
    except trio.BrokenResourceError:
        pass  # it died at birth: its empty answer tells
    return process


async def _send(process: trio.Process, parcel: bytes) -> None:
    assert process.stdin is not None
    await process.stdin.send_all(parcel)  # left open: its end tells the supervisor that we are gone


async def _receive(process: trio.Process, answer: bytearray) -> None:
    assert process.stdout is not None
    while len(answer) < LARGEST_ANSWER and (part := await process.stdout.receive_some()):
        answer += part


async def _end(process: trio.Process, leader: int | None) -> None:
    """Wait for a supervisor that is done or is told to be; kill by hand what a dead or stopped one left."""
    for stream in (process.stdin, process.stdout):  # closing the second lets it end without anybody reading
        if stream is not None:
            await trio.aclose_forcefully(stream)
    with trio.move_on_after(END_MARGIN):
        if await process.wait() == 0:
            return
    await trio.to_thread.run_sync(_kill_by_hand, process.pid, leader)
    await process.wait()


def _kill_by_hand(pid: int, leader: int | None) -> None:
    """Kill a supervisor and everything that is its, or that is left in its command's session."""
    left = dict(supervisor.descendants(pid))
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)  # not reaped yet, so the number is still its own
    for one, (_, session, start) in supervisor.process_table().items():
        if leader is not None and session == leader:
            left[one] = start
    for one, start in left.items():
        supervisor.send(one, start, signal.SIGKILL)


def _prepared(argv: tuple[str, ...], run_as: str | None, sha256: str | None) -> _User | None:
    """Check the executable and look up the user; blocks (the user database may be a network service)."""
    if not argv or not argv[0].startswith("/") or any("\0" in word for word in argv):
        raise CommandError("a command needs a program with an absolute path, and no NUL in its words")
    vet_executable(argv[0], sha256)
    if run_as is None:
        return None
    try:
        entry = pwd.getpwnam(run_as)
    except (KeyError, ValueError):
        raise CommandError(f"there is no user {shown(run_as)} on this host", fix="correct run_as") from None
    if os.geteuid() == entry.pw_uid:
        return None
    if os.geteuid() != 0:
        raise CommandError(
            f"cannot run {shown(argv[0])} as {run_as}: this agent is not root",
            fix="run it as the agent's own user, or through a service that is",
        )
    return entry.pw_uid, entry.pw_gid, os.getgrouplist(run_as, entry.pw_gid)


def _limit(number: int, most: int) -> tuple[int, int]:
    """Return a limit not above the one in force: raising that may be forbidden."""
    hard = resource.getrlimit(number)[1]
    value = most if hard == resource.RLIM_INFINITY else min(most, hard)
    return value, value


def own_names() -> tuple[str, str]:
    """Return the names (or numbers) of this process's user and group."""
    uid, gid = os.geteuid(), os.getegid()
    try:
        user = pwd.getpwuid(uid).pw_name
    except KeyError:
        user = str(uid)
    try:
        group = grp.getgrgid(gid).gr_name
    except KeyError:
        group = str(gid)
    return user, group
