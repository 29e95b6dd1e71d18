"""Who is asked: the running daemon (without one the command does the work, under the same locks), and the person."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from certctrl.errors import UsageError

if TYPE_CHECKING:
    from certctrl.cli.invocation import Invocation


def daemon_or_here(
    invoked: Invocation, op: str, here: Callable[[Path], Awaitable[Any]], *, seconds: float, **fields: Any
) -> Any:
    """Return what the daemon answers to ``op``; without a daemon, what ``here`` returns for the config directory.

    ``here`` takes ``daemon.lock``: a daemon that starts in between makes it a BusyError, never two writers.
    """
    from certctrl.cli.control import ask

    layout = invoked.layout()
    reply = ask(layout, op, seconds=seconds, **fields)
    if reply is not None:
        return reply.data
    from certctrl.cli.runtime import run
    from certctrl.logs.setup import log_for_command

    log_for_command(debug=invoked.debug)
    return run(here, layout.root)


def agreed(question: str) -> bool:
    """Ask the person at the terminal, who says no by saying nothing. Raises UsageError without a terminal."""
    import sys

    import typer

    if not sys.stdin.isatty():
        raise UsageError("this needs an answer and standard input is no terminal", fix="look at it, then add --yes")
    return typer.confirm(question, default=False)
