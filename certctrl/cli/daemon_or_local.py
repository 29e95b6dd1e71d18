"""Have the running daemon do the work, or do it in this process; confirmation prompts."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from certctrl.errors import UsageError

if TYPE_CHECKING:
    from certctrl.cli.invocation import Invocation


def daemon_or_local(
    invoked: Invocation, op: str, local: Callable[[Path], Awaitable[Any]], *, seconds: float, **fields: Any
) -> Any:
    """Return the daemon's answer to ``op``; without a daemon, the result of ``local`` for the config directory.

    ``local`` takes ``daemon.lock``: if a daemon starts in between, it raises BusyError. ``seconds`` bounds the wait for
    the daemon.
    """
    from certctrl.cli.control import ask

    layout = invoked.layout()
    reply = ask(layout, op, seconds=seconds, **fields)
    if reply is not None:
        return reply.data
    from certctrl.cli.runtime import run
    from certctrl.logs.setup import log_for_command

    log_for_command(debug=invoked.debug)
    return run(local, layout.root)


def confirmed(question: str, *, on_stderr: bool = False) -> bool:
    """Ask the operator to confirm; an empty answer means no. Raises UsageError if stdin is not a terminal."""
    import sys

    import typer

    if not sys.stdin.isatty():
        raise UsageError("confirmation needed, but stdin is not a terminal", fix="add --yes")
    return typer.confirm(question, default=False, err=on_stderr)
