"""Have the running daemon do the work, or do it in this process; confirmation prompts."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from certctrl.errors import CertctrlError, UsageError
from certctrl.text import counted, one_line

if TYPE_CHECKING:
    from certctrl.cli.invocation import Invocation
    from certctrl.store.layout import ConfigDir


def daemon_or_local(
    invoked: Invocation, op: str, local: Callable[[Path], Awaitable[Any]], *, seconds: float, **fields: Any
) -> Any:
    """Return the daemon's answer to ``op``; without a daemon, the result of ``local`` for the config directory.

    ``local`` takes ``daemon.lock``: if a daemon starts in between, it raises BusyError. ``seconds`` bounds the wait for
    the daemon.
    """
    from certctrl.cli.control import ask
    from certctrl.cli.progress import Progress, shown_here

    layout = invoked.layout()
    shown = invoked.verbosity == 0 and not invoked.debug and shown_here()
    with Progress(f"{op}: the daemon is working", shown=shown, detail=lambda: _queued(layout)):
        reply = ask(layout, op, seconds=seconds, **fields)
    if reply is not None:
        return reply.data
    from certctrl.cli.runtime import run
    from certctrl.logs.setup import log_for_command

    last = log_for_command(debug=invoked.debug, verbosity=invoked.verbosity)
    with Progress(op, shown=shown, detail=lambda: last.text):
        return run(local, layout.root)


def _queued(layout: ConfigDir) -> str:
    """Return how many signals the daemon still has to handle, for the progress line."""
    from certctrl.cli.control import ask

    try:
        reply = ask(layout, "status", seconds=1)
    except CertctrlError:
        return ""
    depth = reply.data.get("queue_depth", 0) if reply is not None else 0
    return f"{counted(depth, 'signal')} to handle" if depth else ""


def confirmed(question: str) -> bool:
    """Ask the operator to confirm. Raises UsageError if stdin is not a terminal."""
    import sys

    if not sys.stdin.isatty():
        raise UsageError("confirmation needed, but stdin is not a terminal", fix="add --yes")
    return answered_yes(question)


def answered_yes(question: str) -> bool:
    """Ask on standard error, as standard output may be JSON; every answer except y and yes means no."""
    import sys

    sys.stderr.write(f"{one_line(question, None)} [y/N]: ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")
