"""Run programs for an operator who waits, as a shell script would: with this process's rights, terminal and errors.

`Proc` is for commands that the control plane may choose; these are the operator's own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from certctrl.errors import CommandError

SYSTEM_PATH = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"
"""Searched after the operator's: an unprivileged user's lacks the programs of administrators."""
INTERRUPTED = 130
"""Exit status of a program that has handled Ctrl-C."""
_OWN_END_SECONDS = 15.0
"""Seconds for a program that was interrupted together with this one."""
_TERM_SECONDS = 5.0


def find_program(name: str) -> str | None:
    """Return the path of a program; None if it is not installed."""
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:{SYSTEM_PATH}".lstrip(":"))


def own_program(*words: str) -> list[str]:
    """Return the command line of another `cert-ctrl`, with the libraries of this one, wherever it found them."""
    code = f"import sys; sys.path[:] = {sys.path!r}; from certctrl.__main__ import program; program()"
    return [sys.executable, "-I", "-c", code, *words]


def run_program(
    argv: Sequence[str],
    *,
    given: bytes = b"",
    on_line: Callable[[str], None] | None = None,
    environ: Mapping[str, str] | None = None,
    quiet: bool = False,
) -> int:
    """Run a program to its end and return its exit status, negative for a signal.

    ``given`` is its standard input; ``on_line`` gets each line of its output, which is discarded otherwise; ``quiet``
    discards its errors. Raises CommandError if it cannot be started. When interrupted, waits for the program's end,
    and returns its status if it has handled the interruption.
    """
    pipe, null = subprocess.PIPE, subprocess.DEVNULL
    try:
        child = subprocess.Popen(
            list(argv),
            stdin=pipe,
            stdout=pipe,
            stderr=null if quiet else None,
            env=None if environ is None else dict(environ),
        )
    except OSError as error:
        raise CommandError(f"cannot run {argv[0]}: {error.strerror}", fix=f"check {argv[0]}") from None
    with child:
        try:
            _talk(child, given, on_line)
            return child.wait()
        except BaseException as error:
            _end(child)
            if isinstance(error, KeyboardInterrupt) and child.returncode == INTERRUPTED:
                return INTERRUPTED  # it has reported that
            raise


def _talk(child: subprocess.Popen[bytes], given: bytes, on_line: Callable[[str], None] | None) -> None:
    assert child.stdin is not None and child.stdout is not None
    with suppress(BrokenPipeError):  # it has ended, or needs no input
        child.stdin.write(given)
    with suppress(BrokenPipeError):
        child.stdin.close()
    for line in child.stdout:
        if on_line is not None:
            on_line(line.decode("utf-8", "replace").rstrip("\n"))


def _end(child: subprocess.Popen[bytes]) -> None:
    """Wait for a program that gets the terminal's interrupt as well; otherwise end it."""
    for seconds, end in ((_OWN_END_SECONDS, child.terminate), (_TERM_SECONDS, child.kill)):
        try:
            child.wait(seconds)
            return
        except subprocess.TimeoutExpired:
            end()
    child.wait()
