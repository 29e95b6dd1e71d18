"""CommandResult: how a command ended, parsed from its supervisor's answer."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable
from contextlib import suppress

from certctrl import lean
from certctrl.errors import CommandError
from certctrl.install.process.transcript import last_line, transcript
from certctrl.text import one_line


@lean.frozen(kw_only=True)
class CommandResult:
    """The result of a command that was started."""

    argv: tuple[str, ...]
    status: int
    """Exit status, or the negative number of the signal that killed it."""
    timed_out: bool = False
    output: str = ""
    """Its output: escaped, redacted, at most the first and last 32 KiB."""
    swept: int = 0
    """Number of processes that it left behind; they were killed."""
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether it exited with 0 before its timeout."""
        return self.status == 0 and not self.timed_out

    def check(self, what: str = "") -> CommandResult:
        """Return this result. Raises CommandError, named ``what``, if the command did not succeed."""
        if self.ok:
            return self
        end = f"did not finish within {self.seconds:.0f} s" if self.timed_out else _ended(self.status)
        said = last_line(self.output)
        raise CommandError(
            f"{what or one_line(self.argv[0])} {end}" + (f": {said}" if said else ""),
            status=self.status,
            timed_out=self.timed_out,
            output=self.output,
            fix=f"run it by hand: {one_line(' '.join(self.argv))}",
        )


def _ended(status: int) -> str:
    if status >= 0:
        return f"exited with {status}"
    with suppress(ValueError):
        return f"was killed by {signal.Signals(-status).name}"
    return f"was killed by signal {-status}"


def leader_of(answer: bytes) -> int | None:
    """Return the command's pid from the start of a supervisor's answer; None if it never started."""
    line = answer.partition(b"\n")[0].split()
    return int(line[1]) if len(line) == 2 and line[0] == b"started" else None


def read_answer(argv: tuple[str, ...], answer: bytes, seconds: float, secrets: Iterable[bytes]) -> CommandResult:
    """Parse a supervisor's complete answer. Raises CommandError if the command never ran or cannot be killed."""
    if leader_of(answer) is not None:
        answer = answer.partition(b"\n")[2]
    line, _, output = answer.partition(b"\n")
    words = line.split()
    name = one_line(argv[0])
    if len(words) != 7:
        raise CommandError(
            f"the supervisor of {name} was killed", fix="check what the command does to its parent process"
        )
    kind, (value, timed_out, swept, total, head, tail) = words[0], map(int, words[1:])
    if kind == b"failed":
        raise CommandError(f"cannot run {name}: {os.strerror(value)}", fix=f"ls -l {name}")
    if kind == b"stuck":
        raise CommandError(
            f"{name} cannot be killed: it is blocked in the kernel", fix="check its state with `ps -o stat,wchan`"
        )
    return CommandResult(
        argv=argv,
        status=-value if kind == b"signal" else value,
        timed_out=bool(timed_out),
        output=transcript(output[:head], output[head : head + tail], total, secrets),
        swept=swept,
        seconds=seconds,
    )
