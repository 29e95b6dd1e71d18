"""Proc: runs every command of the agent."""

from __future__ import annotations

import grp
import marshal
import os
import pwd
import resource
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import trio

from certctrl.errors import CommandError
from certctrl.install.process.vetting import NO_PINS, vet_command
from certctrl.text import one_line

if TYPE_CHECKING:
    from certctrl.install.process.child import Child
    from certctrl.install.process.result import CommandResult

BASE_ENV = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C", "HOME": "/"}
TERM_GRACE = 5.0
"""Seconds between TERM and KILL at the deadline."""
LINGER = 1.0
"""Seconds that descendants, and processes that hold the pipe, may outlive the command."""
ANSWER_MARGIN = 15.0
"""Seconds after deadline and grace until a silent supervisor is treated as dead; it needs ``SWEEP_LIMIT`` itself."""
LIMITS = {
    resource.RLIMIT_CORE: 0,
    resource.RLIMIT_NOFILE: 4096,
    resource.RLIMIT_NPROC: 512,
    resource.RLIMIT_AS: 16 << 30,  # Java tools reserve many GiB that they never use
}
_User = tuple[int, int, list[int]]


class Proc:
    """Runs commands; when `run` returns or is cancelled, the command and all its descendants are gone."""

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
        timeout: float,  # noqa: ASYNC109 - the supervisor enforces it, even while this task does not run
        env_paths: Mapping[str, str] | None = None,
        cwd: str = "/",
        sha256: str | None = None,
        secrets: Collection[bytes] = (),
    ) -> CommandResult:
        """Run a command to its end and return its result.

        ``timeout``: seconds until TERM; KILL follows after the grace. ``env_paths`` extends the fixed environment.
        ``sha256`` pins the executable; ``secrets`` are redacted in its output. Raises CommandError if it cannot be
        started. When cancelled, ends the command, within about a second, before it propagates the cancellation.
        """
        from certctrl.install.process.result import read_answer  # here and below: only hosts with commands need it
        from certctrl.install.process.transcript import KEEP_BYTES

        command = tuple(argv)
        user = await trio.to_thread.run_sync(_prepared, command, run_as, sha256)
        order = {
            "argv": [_encoded(word) for word in command],
            "env": {_encoded(k): _encoded(v) for k, v in (BASE_ENV | dict(env_paths or {})).items()},
            "cwd": _encoded(cwd),
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
        """Start supervisors ahead of the next commands; unused ones exit after a minute."""
        if self._preparing:
            return
        self._preparing = True
        try:
            gone = [child for child in self._spares if not child.alive]
            self._spares = [child for child in self._spares if child.alive]
            for child in gone:
                await child.end(None)
            while len(self._spares) < count:
                self._spares.append(await _start_child())
        finally:
            self._preparing = False

    async def aclose(self) -> None:
        """End the supervisors that wait for an order."""
        spares, self._spares = self._spares, []
        with trio.CancelScope(shield=True):
            for child in spares:
                await child.end(None)

    async def _supervised(self, order: bytes, limit: float) -> bytes:
        """Send an order to a supervisor and return its answer, once none of its processes is left."""
        from certctrl.install.process.result import leader_of

        frame = b"%08d" % len(order) + order
        child = self._spares.pop(0) if self._spares else await _start_child()  # the oldest
        answer = bytearray()
        try:
            with trio.move_on_after(limit):
                try:
                    await child.order(frame)
                except trio.BrokenResourceError:  # it was started ahead and has just exited
                    with trio.CancelScope(shield=True):
                        await child.end(None)
                        child = await _start_child()
                    await child.order(frame)
                await child.receive(answer)
        finally:
            with trio.CancelScope(shield=True):
                await child.end(leader_of(bytes(answer)))
        return bytes(answer)


async def _start_child() -> Child:
    from certctrl.install.process.child import Child  # here: only hosts with commands need it

    return await Child.start()


def _prepared(argv: tuple[str, ...], run_as: str | None, sha256: str | None) -> _User | None:
    """Check the program and its script, and look up the user; blocks (the user database may be a network service)."""
    if not argv or not argv[0].startswith("/") or any("\0" in word for word in argv):
        raise CommandError("a command needs the absolute path of a program, and no NUL in its words")
    vet_command(argv, {argv[0]: sha256} if sha256 is not None else NO_PINS)
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
            fix="run it as the agent's user, or through a service that is root",
        )
    return entry.pw_uid, entry.pw_gid, os.getgrouplist(run_as, entry.pw_gid)


def _encoded(word: str) -> bytes:
    """Return a word as this locale encodes paths. Raises CommandError."""
    try:
        return os.fsencode(word)
    except UnicodeEncodeError as error:
        what = f"cannot run a command with {ascii(word)[:200]}: this locale ({error.encoding}) cannot encode it"
        raise CommandError(what, fix="use a UTF-8 locale: LANG=C.UTF-8 in the unit") from None


def _limit(number: int, most: int) -> tuple[int, int]:
    """Return a limit that does not exceed the current one, which may not be raised."""
    hard = resource.getrlimit(number)[1]
    value = most if hard == resource.RLIM_INFINITY else min(most, hard)
    return value, value


def own_names() -> tuple[str, str]:
    """Return the names (or ids) of this process's user and group."""
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
