"""Proc: the one door through which commands are run."""

from __future__ import annotations

import grp
import marshal
import os
import pwd
import resource
from collections.abc import Collection, Mapping, Sequence

import trio

from certctrl.errors import CommandError
from certctrl.install.process import supervisor
from certctrl.install.process.child import Child
from certctrl.install.process.result import CommandResult, leader_of, read_answer
from certctrl.install.process.transcript import KEEP_BYTES
from certctrl.install.process.vetting import vet_executable
from certctrl.text import one_line

BASE_ENV = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C", "HOME": "/"}
TERM_GRACE = 5.0
"""Seconds between TERM and KILL at the deadline."""
LINGER = 1.0
"""Seconds that descendants and pipe holders may outlive the command."""
ANSWER_MARGIN = supervisor.SWEEP_LIMIT + 5.0
"""A supervisor that has not answered this long after deadline and grace is taken for dead."""
LIMITS = {
    resource.RLIMIT_CORE: 0,
    resource.RLIMIT_NOFILE: 4096,
    resource.RLIMIT_NPROC: 512,
    resource.RLIMIT_AS: 16 << 30,  # a Java tool reserves many GiB that it never touches
}
_User = tuple[int, int, list[int]]


class Proc:
    """Runs commands; each is gone, with everything it started, when its `run` returns or is cancelled."""

    def __init__(
        self, *, term_grace: float = TERM_GRACE, linger: float = LINGER, limits: Mapping[int, int] = LIMITS
    ) -> None:
        self._grace, self._linger = term_grace, linger
        self._limits = dict(limits)
        self._spares: list[Child] = []
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
            "linger": self._linger,
            "keep": KEEP_BYTES,
        }
        started = trio.current_time()
        answer = await self._supervised(marshal.dumps(order), timeout + self._grace + ANSWER_MARGIN)
        return read_answer(command, answer, trio.current_time() - started, secrets)

    async def prepare(self, count: int = 1) -> None:
        """Start supervisors ahead of the next commands; they wait a minute for them, then leave."""
        if self._preparing:
            return
        self._preparing = True
        try:
            gone = [child for child in self._spares if not child.alive]
            self._spares = [child for child in self._spares if child.alive]
            for child in gone:
                await child.end(None)
            while len(self._spares) < count:
                self._spares.append(await Child.start())
        finally:
            self._preparing = False

    async def aclose(self) -> None:
        """End the supervisors that wait for a command."""
        spares, self._spares = self._spares, []
        with trio.CancelScope(shield=True):
            for child in spares:
                await child.end(None)

    async def _supervised(self, order: bytes, limit: float) -> bytes:
        """Give the order to a supervisor and return its answer; no process of it is left then."""
        parcel = b"%08d" % len(order) + order
        child = self._spares.pop(0) if self._spares else await Child.start()  # the one that started first
        answer = bytearray()
        try:
            with trio.move_on_after(limit):
                try:
                    await child.order(parcel)
                except trio.BrokenResourceError:  # one that was started ahead and has just left
                    with trio.CancelScope(shield=True):
                        await child.end(None)
                        child = await Child.start()
                    await child.order(parcel)
                await child.receive(answer)
        finally:
            with trio.CancelScope(shield=True):
                await child.end(leader_of(bytes(answer)))
        return bytes(answer)


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
        raise CommandError(f"there is no user {one_line(run_as)} on this host", fix="correct run_as") from None
    if os.geteuid() == entry.pw_uid:
        return None
    if os.geteuid() != 0:
        raise CommandError(
            f"cannot run {one_line(argv[0])} as {run_as}: this agent is not root",
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
