"""Show the progress of a long command: one line on a terminal, nothing in a pipe.

The line names what was logged last, or how many signals the daemon still has to handle, and the seconds so far. It
disappears when the command ends.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType

from certctrl.text import one_line

FIRST_SECONDS = 1.0
"""A shorter command shows nothing."""
EVERY_SECONDS = 0.5
WIDTH = 79
_CLEAR = "\r\x1b[K"


def shown_here() -> bool:
    """Return whether standard error is a terminal."""
    try:
        return sys.stderr.isatty()
    except ValueError:  # closed
        return False


class Progress:
    """A context in which the line is drawn by a thread."""

    def __init__(self, what: str, *, shown: bool, detail: Callable[[], str] = lambda: "") -> None:
        """``detail`` returns the current step; called in the thread, it must not raise."""
        self._what = what
        self._detail = detail
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._draw, daemon=True) if shown else None

    def __enter__(self) -> Progress:
        if self._thread is not None:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join()

    def _draw(self) -> None:
        began, drawn, pause = time.monotonic(), False, FIRST_SECONDS
        while not self._over.wait(pause):
            pause, drawn = EVERY_SECONDS, True
            sys.stderr.write(_CLEAR + line_of(self._what, self._detail(), time.monotonic() - began))
            sys.stderr.flush()
        if drawn:
            sys.stderr.write(_CLEAR)
            sys.stderr.flush()


def line_of(what: str, detail: str, seconds: float) -> str:
    """Return the line: the command, its duration and its current step; cut to the width of a terminal."""
    text = f"{what}, {seconds:.0f} s" + (f": {one_line(detail, None)}" if detail else "")
    return text if len(text) <= WIDTH else text[: WIDTH - 1] + "…"
