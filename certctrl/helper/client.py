"""The agent's end: ask the root helper. All methods block."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from io import FileIO
from pathlib import Path
from types import MappingProxyType

from certctrl.errors import CommandError, DiskError, PolicyRefusedError
from certctrl.helper.messages import ANSWER_LIMIT, Answer, Request, Result, Verb, answer_of, encoded
from certctrl.store.disk.fs import FileKind
from certctrl.store.disk.helper import FileRule
from certctrl.store.disk.safe_path import DestinationFact
from certctrl.store.structure import Mismatch

SECONDS = 30.0
"""For a request about a file."""
BUSY_SECONDS = 75.0
"""How long a request about a file is repeated while the helper has too many: longer than the minute that it counts in, so
that a deployment of many files waits, and neither it nor its rollback stops half-way."""
BUSY_ACT_SECONDS = 10.0
"""The same for a reload."""
_PAUSE, _LAST_PAUSE = 0.1, 1.0
_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_NOEXEC_SEAL = 0x8
"""MFD_NOEXEC_SEAL of <linux/memfd.h>."""
_NO_MEMORY_FILE = "allow memfd_create in the system call filter of the agent's unit; without it, run the agent as root"
_FIX = "systemctl status cert-ctrl-helper.socket cert-ctrl-helper"
_NOT_ASKED = (errno.ENOENT, errno.ECONNREFUSED)
"""Errors of a connection to a socket that is gone, or on which nothing listens any more."""
_NO_UNITS: Mapping[str, tuple[str, ...]] = MappingProxyType({})

Ask = Callable[[Request, "bytes | None", float], Answer]
"""Sends a request, with the bytes of a file, and returns the answer within some seconds. Raises DiskError."""


class HelperClient:
    """Asks the root helper for one agent; `FileHelper` for its files."""

    def __init__(self, ask: Ask, is_there: Callable[[], bool] = lambda: True) -> None:
        self._ask, self._is_there = ask, is_there

    @classmethod
    def at(cls, path: str) -> HelperClient:
        """Return the client of the helper at a socket, which may not exist."""
        return cls(
            lambda request, data, seconds: ask_socket(path, request, data, seconds), lambda: os.access(path, os.W_OK)
        )

    @property
    def is_there(self) -> bool:
        """Whether its socket exists, and this user may connect: it may be there for another agent of this host."""
        return self._is_there()

    def rules(self) -> tuple[FileRule, ...]:
        """Return the rules for this user; none if there is no helper. Raises DiskError, PolicyRefusedError."""
        if not self.is_there:
            return ()
        return self._done(Request(do=Verb.RULES)).rules

    def units(self) -> Mapping[str, tuple[str, ...]]:
        """Return unit -> verbs that this user may request; none if there is no helper. Raises as `rules`."""
        return self._done(Request(do=Verb.RULES)).units if self.is_there else _NO_UNITS

    def act(self, verb: str, unit: str, seconds: float) -> bool:
        """Reload or restart a unit; False if no helper was asked, or root's policy does not name it for this user.

        Raises CommandError.
        """
        if not self.is_there:
            return False
        try:
            answer = self._asked(Request(do=Verb(verb), unit=unit), seconds=seconds, busy=BUSY_ACT_SECONDS)
        except DiskError as error:
            if error.errno in _NOT_ASKED:
                return False
            raise CommandError(str(error), fix=error.fix) from None
        if answer.result in (Result.DONE, Result.UNNAMED, Result.REFUSED):  # refused: no entry for this user
            return answer.result is Result.DONE
        # whichever status systemctl ended with
        raise CommandError(f"the root helper: {answer.why}", status=1, fix=answer.fix or _FIX)

    def observe(self, path: str, temp: str = "") -> tuple[DestinationFact, str]:
        """Return the state of a destination without its bytes, and the SHA-256 of its new file, empty if it has none."""
        facts = self._done(Request(do=Verb.INSPECT, path=path, temp=temp)).facts
        if facts is None or facts.kind not in tuple(FileKind):
            raise DiskError("the root helper gives no state", path=path, errno=errno.EPROTO, fix=_FIX)
        found = DestinationFact(
            path=Path(path),
            kind=FileKind(facts.kind),
            sha256=facts.sha256,
            mode=facts.mode,
            uid=facts.uid,
            gid=facts.gid,
            refusal=facts.refusal,
        )
        return found, facts.staged

    def stage(self, path: str, temp: str, backup: str, data: bytes) -> None:
        """Write the new file, and a copy of the old one if there is one, next to the destination."""
        digest = hashlib.sha256(data).hexdigest()
        self._done(Request(do=Verb.STAGE, path=path, temp=temp, backup=backup, sha256=digest), data)

    def put(self, path: str, temp: str) -> None:
        """Rename the new file into place."""
        self._done(Request(do=Verb.PUT, path=path, temp=temp))

    def restore(self, path: str, backup: str, sha256: str) -> None:
        """Restore the old file, if the destination still has the bytes with this hash; without one, remove it."""
        self._done(Request(do=Verb.RESTORE, path=path, backup=backup, sha256=sha256))

    def drop(self, path: str, temp: str, backup: str) -> None:
        """Remove the new file that was not put in place, and the copy of the old one; idempotent."""
        self._done(Request(do=Verb.DROP, path=path, temp=temp, backup=backup))

    def remove(self, path: str, sha256: str) -> str:
        """Remove a file if its bytes have this hash; return why it stays, empty if it is gone."""
        return self._done(Request(do=Verb.REMOVE, path=path, sha256=sha256)).why

    def _done(self, request: Request, data: bytes | None = None) -> Answer:
        answer = self._asked(request, data)
        match answer.result:
            case Result.DONE:
                return answer
            case Result.REFUSED | Result.UNNAMED:
                raise PolicyRefusedError(f"the root helper refuses: {answer.why}", fix=answer.fix or None)
            case Result.BUSY | Result.FAILED:
                code = errno.EBUSY if answer.result is Result.BUSY else answer.errno
                what = f"the root helper: {answer.why}"
                raise DiskError(what, path=request.path, errno=code, fix=answer.fix or _FIX)

    def _asked(
        self, request: Request, data: bytes | None = None, *, seconds: float = SECONDS, busy: float = BUSY_SECONDS
    ) -> Answer:
        """Return the answer; while the helper has too many requests, ask again."""
        until, pause = time.monotonic() + busy, _PAUSE
        while True:
            answer = self._ask(request, data, seconds)
            if answer.result is not Result.BUSY or time.monotonic() + pause > until:
                return answer
            time.sleep(pause)
            pause = min(2 * pause, _LAST_PAUSE)


def ask_socket(path: str, request: Request, data: bytes | None, seconds: float) -> Answer:
    """Send a request to the helper at a socket and return its answer. Raises DiskError."""
    fds: list[int] = []
    try:
        with closing(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)) as connection:
            connection.settimeout(seconds)
            connection.connect(path)
            fds += [sealed(data)] if data is not None else []
            with suppress(BrokenPipeError):  # it has answered already, that it is busy
                socket.send_fds(connection, [encoded(request)], fds)
            packet = connection.recv(ANSWER_LIMIT)
        if not packet:
            raise DiskError("the root helper ended before it answered", errno=errno.EPIPE, fix=_FIX)
        return answer_of(packet)
    except Mismatch as mismatch:
        raise DiskError(f"the root helper's answer: {mismatch}", errno=errno.EPROTO, fix=_FIX) from None
    except OSError as error:
        why = error.strerror or "it does not answer"
        raise DiskError(f"cannot ask the root helper at {path}: {why}", errno=error.errno or 0, fix=_FIX) from None
    finally:
        for fd in fds:
            os.close(fd)


def sealed(data: bytes) -> int:
    """Return a memory file with these bytes, which can no longer change. Raises DiskError if the kernel refuses it."""
    fd = None
    try:
        fd = _memory_file()
        FileIO(fd, "w", closefd=False).write(data)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except OSError as error:
        if fd is not None:
            os.close(fd)
        what = f"the kernel gives no sealed memory file, which the root helper needs: {error.strerror}"
        raise DiskError(what, errno=error.errno or 0, fix=_NO_MEMORY_FILE) from None
    return fd


def _memory_file() -> int:
    """Return an empty memory file that cannot be executed, as ``vm.memfd_noexec=2`` requires since Linux 6.3."""
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        return os.memfd_create("cert-ctrl", flags | _NOEXEC_SEAL)
    except OSError as error:
        if error.errno != errno.EINVAL:  # the answer of kernels without this flag
            raise
    return os.memfd_create("cert-ctrl", flags)
