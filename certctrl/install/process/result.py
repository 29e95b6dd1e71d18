"""How a command has ended, and the answer of its supervisor read into that."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable
from contextlib import suppress

import attrs

from certctrl.errors import CommandError
from certctrl.install.process.transcript import last_line, transcript
from certctrl.text import one_line


@attrs.frozen(kw_only=True)
class CommandResult:
    """How a command that ran has ended."""

    argv: tuple[str, ...]
    status: int
    """Exit status, or the negative number of the signal that killed it."""
    timed_out: bool = False
    output: str = ""
    """What it printed: escaped, redacted, at most its first and last 32 KiB."""
    swept: int = 0
    """Processes that it left behind and that were killed."""
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """True when it exited with 0 by itself."""
        return self.status == 0 and not self.timed_out

    def check(self, what: str = "") -> CommandResult:
        """Return itself; raise CommandError when the command did not succeed."""
        if self.ok:
            return self
        end = f"did not finish within {self.seconds:.0f} s" if self.timed_out else _ended(self.status)
        said = last_line(self.output)
        raise CommandError(
            f"{what or one_line(self.argv[0])} {end}" + (f": {said}" if said else ""),
            status=self.status,
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
    """Return the pid of the command from the beginning of a supervisor's answer."""
    line = answer.partition(b"\n")[0].split()
    return int(line[1]) if len(line) == 2 and line[0] == b"started" else None


def read_answer(argv: tuple[str, ...], answer: bytes, seconds: float, secrets: Iterable[bytes]) -> CommandResult:
    """Return what a supervisor's whole answer says. Raises CommandError for a command that never ran."""
    if leader_of(answer) is not None:
        answer = answer.partition(b"\n")[2]
    line, _, output = answer.partition(b"\n")
    words = line.split()
    name = one_line(argv[0])
    if len(words) != 7:
        raise CommandError(f"the supervisor of {name} was killed", fix="see what the command does to its parent")
    kind, (value, timed_out, swept, total, head, tail) = words[0], map(int, words[1:])
    if kind == b"failed":
        raise CommandError(f"cannot run {name}: {os.strerror(value)}", fix=f"ls -l {name}")
    if kind == b"stuck":
        raise CommandError(f"{name} cannot be killed: the kernel holds it", fix="see its state in `ps -o stat,wchan`")
    return CommandResult(
        argv=argv,
        status=-value if kind == b"signal" else value,
        timed_out=bool(timed_out),
        output=transcript(output[:head], output[head : head + tail], total, secrets),
        swept=swept,
        seconds=seconds,
    )
