"""Bar: the progress of a long command, drawn on a terminal; in a pipe, one line for every tenth."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any

from certctrl.cli.output import write_error

LEAST_TOTAL = 20
"""Smaller jobs print nothing in a pipe."""


class Bar:
    """A context that shows the progress given to ``reached``."""

    def __init__(self, what: str, total: int) -> None:
        self._what = what
        self._total = total
        self._tenths = 0
        self._drawn: Any = None
        self._task: Any = None

    def __enter__(self) -> Bar:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import Progress

            self._drawn = Progress(console=Console(stderr=True), transient=True)
            self._task = self._drawn.add_task(self._what, total=self._total)
            self._drawn.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._drawn is not None:
            self._drawn.stop()

    def reached(self, count: int) -> None:
        """Show that ``count`` of ``total`` are done."""
        if self._drawn is not None:
            self._drawn.update(self._task, completed=count)
            return
        tenths = 10 * count // max(self._total, 1)
        if self._total >= LEAST_TOTAL and tenths > self._tenths:
            self._tenths = tenths
            write_error(f"{self._what}: {count} of {self._total}")
