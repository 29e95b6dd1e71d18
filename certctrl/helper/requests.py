"""Answer requests: check the user, the rate and the policy, act, and write one line for the audit."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import pwd
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any

import attrs

from certctrl import lean
from certctrl.errors import CertctrlError, DiskError, PolicyRefusedError
from certctrl.helper.files import Files
from certctrl.helper.messages import ANSWER_LIMIT, Answer, Request, Result, Verb, encoded, request_of
from certctrl.helper.policy import UserEntry, load_policy, rules_of
from certctrl.helper.units import Units
from certctrl.store.disk.fs import Fs
from certctrl.store.disk.helper import FileRule, rule_for
from certctrl.store.disk.safe_path import SIZE_LIMIT
from certctrl.store.structure import Mismatch
from certctrl.text import one_line

WINDOW = 60.0
STRANGERS_PER_MINUTE = 60
"""Requests of a user without an entry in the policy that are answered."""
_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
_DIGEST = 64


@lean.frozen(kw_only=True)
class Peer:
    """The process that asks, as the kernel knows it."""

    pid: int
    uid: int

    @property
    def user(self) -> str:
        """The name of its user; its id if there is no such user."""
        try:
            return pwd.getpwuid(self.uid).pw_name
        except KeyError:
            return str(self.uid)


class Rates:
    """Counts events of the last minute, by key."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now, self._lock = now, Lock()
        self._times: dict[tuple[int, str], deque[float]] = {}
        self._refused: dict[tuple[int, str], float] = {}

    def allow(self, uid: int, what: str, most: int) -> bool:
        """Count an event and return True, or return False if there were ``most`` in the last minute."""
        with self._lock:
            now, times = self._now(), self._times.setdefault((uid, what), deque())
            while times and times[0] <= now - WINDOW:
                times.popleft()
            if len(times) >= most:
                return False
            times.append(now)
            return True

    def is_news(self, uid: int, what: str) -> bool:
        """Return whether no refusal of this kind was reported in the last minute."""
        with self._lock:
            now = self._now()
            if now - self._refused.get((uid, what), -WINDOW) < WINDOW:
                return False
            self._refused[uid, what] = now
            return True


class Requests:
    """Answers the requests of all users."""

    def __init__(
        self, fs: Fs, policy: Path, units: Units, *, now: Callable[[], float], audit: Callable[[str], None]
    ) -> None:
        self._fs, self._policy, self._units, self._audit = fs, policy, units, audit
        self._files, self._rates, self._disk = Files(fs), Rates(now), Lock()

    def answer(
        self,
        peer: Peer,
        packet: bytes,
        fds: Sequence[int] = (),
        *,
        whole: bool = True,
        is_gone: Callable[[], bool] = lambda: False,
    ) -> bytes:
        """Return the answer to one packet; ``whole``: nothing of it was cut off.

        ``is_gone``: whether the client has closed its connection; then no file is changed, because the agent's next
        request, or its recovery, may have undone this one already.
        """
        request, mismatch = _parsed(packet)
        try:
            found = self._admitted(peer) or self._perform(
                peer, request, fds, _fault_of(mismatch, fds, whole=whole), is_gone
            )
        except PolicyRefusedError as refused:
            found = Answer(result=Result.REFUSED, why=str(refused), fix=refused.fix or "")
        except DiskError as error:
            found = Answer(result=Result.FAILED, why=str(error), fix=error.fix or "", errno=error.errno)
        except CertctrlError as error:
            found = Answer(result=Result.FAILED, why=str(error), fix=error.fix or "")
        if found.result is not Result.BUSY or self._rates.is_news(peer.uid, found.why):
            self._audit(_line(peer, request, found))
        return encoded(found)

    def unexpected(self, peer: Peer, error: Exception) -> bytes:
        """Return the answer to a request that met a bug, without the error's text, which may quote a file."""
        found = Answer(result=Result.FAILED, why=f"unexpected {type(error).__name__}")
        self._audit(_line(peer, None, found))
        return encoded(found)

    def _admitted(self, peer: Peer) -> Answer | None:
        """Count a request; return the answer to one too many, None to others."""
        try:
            entry = load_policy(self._fs, self._policy).get(peer.user)
        except CertctrlError:
            entry = None  # reported to the first of them
        most = entry.requests_per_minute if entry is not None else STRANGERS_PER_MINUTE
        if self._rates.allow(peer.uid, "requests", most):
            return None
        return Answer(result=Result.BUSY, why=f"more than {most} requests in a minute")

    def _perform(
        self, peer: Peer, request: Request | None, fds: Sequence[int], fault: str, is_gone: Callable[[], bool]
    ) -> Answer:
        entry = load_policy(self._fs, self._policy).get(peer.user)
        if entry is None:
            raise PolicyRefusedError(f"{self._policy} has no entry for user {peer.user}")
        if fault or request is None:
            raise PolicyRefusedError(fault)
        if bool(fds) is not (request.do is Verb.STAGE):
            raise PolicyRefusedError("a file belongs to the request stage, and only to it")
        match request.do:
            case Verb.RULES:
                return _rules(entry)
            case Verb.RELOAD | Verb.RESTART:
                return self._act(peer, entry, request)
            case _:
                rule = rule_for(rules_of(entry), request.path)
                if rule is None:
                    return Answer(result=Result.UNNAMED, why=f"{self._policy} does not name this file")
                with self._disk:
                    if is_gone():
                        return Answer(result=Result.FAILED, why="the client has closed its connection")
                    return self._write(rule, request, fds)

    def _act(self, peer: Peer, entry: UserEntry, request: Request) -> Answer:
        if request.do not in entry.units.get(request.unit, ()):
            return Answer(result=Result.UNNAMED, why=f"{self._policy} does not name {request.do} of this unit")
        if not self._rates.allow(peer.uid, request.unit, entry.reloads_per_minute):
            return Answer(result=Result.BUSY, why=f"more than {entry.reloads_per_minute} in a minute")
        self._units.act(request.do, request.unit)
        return Answer(result=Result.DONE)

    def _write(self, rule: FileRule, request: Request, fds: Sequence[int]) -> Answer:
        files, path, done = self._files, request.path, Answer(result=Result.DONE)
        match request.do:
            case Verb.INSPECT:
                return attrs.evolve(done, facts=files.inspect(path, request.temp))
            case Verb.STAGE:
                data = read_sealed(fds[0])
                if hashlib.sha256(data).hexdigest() != request.sha256:
                    raise PolicyRefusedError("the file is not the one that the request announces")
                files.stage(rule, path, request.temp, request.backup, data)
            case Verb.PUT:
                files.put(rule, path, request.temp)
            case Verb.RESTORE:
                files.restore(rule, path, request.backup, _digest(request.sha256))
            case Verb.DROP:
                files.drop(path, request.temp, request.backup)
            case _:
                return attrs.evolve(done, why=files.remove(path, _digest(request.sha256)))
        return done


def _parsed(packet: bytes) -> tuple[Request | None, str]:
    """Return the request in a packet, or why it is none."""
    try:
        return request_of(packet), ""
    except Mismatch as mismatch:
        return None, one_line(str(mismatch), 200)


def _fault_of(mismatch: str, fds: Sequence[int], *, whole: bool) -> str:
    """Return why a packet is not a request; empty if it is one."""
    if not whole or len(fds) > 1:
        return "the request is too long, or has more than one file"
    return f"not a request: {mismatch}" if mismatch else ""


def read_sealed(fd: int) -> bytes:
    """Return the bytes of a memory file that can no longer change. Raises PolicyRefusedError for any other file.

    A file of a file system could change while it is read, or never answer.
    """
    try:
        sealed = fcntl.fcntl(fd, fcntl.F_GET_SEALS) & _SEALS == _SEALS
    except OSError:
        sealed = False
    if not sealed or os.fstat(fd).st_size > SIZE_LIMIT:
        raise PolicyRefusedError(f"the file is not a sealed memory file of at most {SIZE_LIMIT} bytes")
    with open(fd, "rb", closefd=False) as file:
        file.seek(0)
        return file.read(SIZE_LIMIT)


def _digest(text: str) -> str:
    if len(text) != _DIGEST:
        raise PolicyRefusedError("the request has no SHA-256")
    return text


def _rules(entry: UserEntry) -> Answer:
    found = Answer(result=Result.DONE, rules=rules_of(entry), units=dict(entry.units))
    if len(encoded(found)) > ANSWER_LIMIT:
        raise PolicyRefusedError("the policy has too many files for one user", fix="use patterns, such as *.pem")
    return found


def _line(peer: Peer, request: Request | None, found: Answer) -> str:
    """Return the line of a request for the audit: one JSON object in ASCII."""
    row: dict[str, Any] = {"pid": peer.pid, "uid": peer.uid, "user": peer.user}
    if request is not None:
        row |= {"request": request.do.value}
        for name in ("path", "temp", "backup", "sha256", "unit"):
            if value := getattr(request, name):
                row[name] = value[:4000]
    row |= {"result": found.result.value} | ({"why": found.why[:500]} if found.why else {})
    return json.dumps(row)


def close_all(fds: Sequence[int]) -> None:
    """Close received descriptors."""
    for fd in fds:
        with suppress(OSError):
            os.close(fd)
