"""Run programs that the administrator of the plane's host provides, such as issuers.

Holders of the operator key choose programs by the API, so the plane runs only those in directories that the host's
administrator names, and only if no other user can change them. Each runs in a separate session, which is ended as a
whole. Secrets reach a program as files in memory, through descriptors that only it inherits.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import signal
import stat
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import attrs
import trio

from certctrl import lean
from certctrl.errors import CommandError, ConfigError
from certctrl.text import one_line

DIRECTORIES_VARIABLE = "CERTCTRL_PLANE_COMMANDS"
DIRECTORIES = ("/etc/cert-ctrl/commands", "/usr/local/lib/cert-ctrl/commands")
"""Directories of programs, unless `DIRECTORIES_VARIABLE` in the plane's environment names others."""
BASE_ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
MAX_OUTPUT = 1024 * 1024
_KEPT_ERRORS = 16 * 1024
_TERM_GRACE = 2.0
_LINGER = 1.0
"""Seconds that processes left behind may keep the pipes open."""
_SECRET_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}", re.ASCII)
_HIDDEN = "***"


@lean.frozen(kw_only=True)
class Finished:
    """How a program ended."""

    status: int
    """Exit status, or the negative number of the signal that ended it."""
    timed_out: bool = False
    output: bytes = attrs.field(default=b"", repr=False)
    """Its standard output, complete unless ``overflowed``."""
    overflowed: bool = False
    """Whether it was killed because it wrote too much."""
    last_line: str = ""
    """The last line of its standard error: printable, bounded, without the secrets it was given."""

    @property
    def ending(self) -> str:
        """How it ended, for an error message."""
        if self.timed_out:
            return "did not end in time"
        if self.overflowed:
            return f"wrote more than {MAX_OUTPUT} bytes"
        how = f"ended with status {self.status}" if self.status >= 0 else f"was ended by signal {-self.status}"
        return f"{how}: {self.last_line}" if self.last_line else how


def allowed_directories(environ: Mapping[str, str] = os.environ) -> tuple[Path, ...]:
    """Return the directories whose programs the plane may run."""
    named = environ.get(DIRECTORIES_VARIABLE, "")
    return tuple(Path(name) for name in (named.split(os.pathsep) if named else DIRECTORIES) if name)


def check_program(program: str, environ: Mapping[str, str] = os.environ) -> None:
    """Raise ConfigError unless the plane may run a program: its place, owner and mode."""
    path, allowed = Path(program), allowed_directories(environ)
    if not path.is_absolute() or path.parent not in allowed or path.name in ("", ".", ".."):
        places = " or ".join(map(str, allowed))
        raise ConfigError(
            f"{one_line(program)!r} is not a program that the control plane may run",
            fix=f"put it into {places} on the control plane's host and give its absolute path",
        )
    try:
        found, directory = path.stat(), path.parent.stat()
    except OSError as error:
        raise ConfigError(f"cannot read {program}: {error.strerror}", fix="install the program there") from None
    if not stat.S_ISREG(found.st_mode) or not os.access(path, os.X_OK):
        raise ConfigError(f"{program} is not an executable file", fix=f"chmod 0755 {program}")
    for name, info in ((program, found), (str(path.parent), directory)):
        if info.st_uid not in (0, os.geteuid()) or info.st_mode & 0o022:
            fix = f"chown root {name} && chmod go-w {name}"
            raise ConfigError(f"{name} can be changed by other users", fix=fix)


def check_secret_name(name: str) -> None:
    """Raise ConfigError unless a secret can have this name."""
    if not _SECRET_NAME.fullmatch(name):
        fix = "use lower-case letters, digits and _, at most 32 characters"
        raise ConfigError(f"{one_line(name)!r} cannot be the name of a secret", fix=fix)


async def run_program(
    argv: Sequence[str],
    *,
    seconds: float,
    stdin: bytes = b"",
    environment: Mapping[str, str],
    secrets: Mapping[str, bytes] | None = None,
) -> Finished:
    """Run a program to its end; its process group is ended after ``seconds``, and when cancelled.

    Each secret is a file whose path is in ``CERTCTRL_SECRET_NAME``. Raises ConfigError if the program may not be run,
    CommandError if it cannot be started.
    """
    check_program(argv[0])
    with _secret_files(secrets or {}) as files:
        paths = {f"CERTCTRL_SECRET_{name.upper()}": f"/dev/fd/{file}" for name, file in files.items()}
        try:
            process = await trio.lowlevel.open_process(
                list(argv),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={**BASE_ENVIRONMENT, **environment, **paths},
                cwd="/",
                start_new_session=True,
                pass_fds=tuple(files.values()),
            )
        except OSError as error:
            what = f"cannot start {argv[0]}: {error.strerror or error}"
            raise CommandError(what, fix="check its first line (#!) and its mode") from None
    return await _supervised(process, stdin, seconds, tuple((secrets or {}).values()))


@contextlib.contextmanager
def _secret_files(secrets: Mapping[str, bytes]) -> Iterator[dict[str, int]]:
    """Make a sealed file in memory for each secret; the program inherits their descriptors."""
    with contextlib.ExitStack() as stack:
        files = {}
        for name, value in secrets.items():
            check_secret_name(name)
            file = os.memfd_create(f"certctrl-{name}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            stack.callback(os.close, file)
            left = value
            while left:
                left = left[os.write(file, left) :]
            os.lseek(file, 0, os.SEEK_SET)
            seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
            fcntl.fcntl(file, fcntl.F_ADD_SEALS, seals)
            files[name] = file
        yield files


async def _supervised(process: trio.Process, stdin: bytes, seconds: float, secrets: Sequence[bytes]) -> Finished:
    """Feed a process and read its output until it ends, in time or not."""
    output, errors = _Head(MAX_OUTPUT), _Tail(_KEPT_ERRORS)
    pidfd = os.pidfd_open(process.pid)
    try:
        with trio.move_on_after(seconds) as limit:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_feed, process, stdin)
                nursery.start_soon(_read, process.stdout, output, nursery.cancel_scope)
                nursery.start_soon(_read, process.stderr, errors, nursery.cancel_scope)
                await trio.lowlevel.wait_readable(pidfd)
                nursery.cancel_scope.deadline = trio.current_time() + _LINGER
    finally:
        with trio.CancelScope(shield=True):
            await _end(process, pidfd)
    return Finished(
        status=process.returncode if process.returncode is not None else -signal.SIGKILL,
        timed_out=limit.cancelled_caught,
        output=bytes(output.data),
        overflowed=output.is_full,
        last_line=_last_line(bytes(errors.data), secrets),
    )


async def _feed(process: trio.Process, data: bytes) -> None:
    assert process.stdin is not None
    with contextlib.suppress(trio.BrokenResourceError):  # it may end without reading everything
        await process.stdin.send_all(data)
    await process.stdin.aclose()


async def _read(stream: trio.abc.ReceiveStream | None, kept: _Head | _Tail, scope: trio.CancelScope) -> None:
    assert stream is not None
    while part := await stream.receive_some(65_536):
        if not kept.add(bytes(part)):
            scope.cancel()
            return


async def _end(process: trio.Process, pidfd: int) -> None:
    """End the process group and reap its leader, which keeps the number of the group taken until then."""
    try:
        if not _has_ended(pidfd):
            _send(process.pid, signal.SIGTERM)
            with trio.move_on_after(_TERM_GRACE):
                await trio.lowlevel.wait_readable(pidfd)
        _send(process.pid, signal.SIGKILL)
        await process.wait()
    finally:
        trio.lowlevel.notify_closing(pidfd)
        os.close(pidfd)
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                await trio.aclose_forcefully(stream)


def _has_ended(pidfd: int) -> bool:
    """Return whether a process has ended, without reaping it."""
    return os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _send(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


class _Head:
    """The beginning of a stream."""

    def __init__(self, limit: int) -> None:
        self.data = bytearray()
        self.is_full = False
        self._limit = limit

    def add(self, part: bytes) -> bool:
        """Keep a part; return whether there may be more."""
        self.is_full = len(self.data) + len(part) > self._limit
        if not self.is_full:
            self.data += part
        return not self.is_full


class _Tail:
    """The end of a stream."""

    def __init__(self, limit: int) -> None:
        self.data = bytearray()
        self._limit = limit

    def add(self, part: bytes) -> bool:
        """Keep a part, and drop the oldest bytes beyond the limit."""
        self.data += part
        del self.data[: -self._limit]
        return True


def _last_line(data: bytes, secrets: Sequence[bytes]) -> str:
    """Return the last line that is not blank, without secrets."""
    for secret in secrets:
        for form in {secret, secret.strip()} - {b""}:
            data = data.replace(form, _HIDDEN.encode())
    lines = data.decode("utf-8", "replace").splitlines()
    return one_line(next((line.strip() for line in reversed(lines) if line.strip()), ""))
