"""The journal of a history: events in order, printed only after a failure."""

from __future__ import annotations

import hashlib
import logging
from collections import deque
from collections.abc import Callable, Mapping

KEPT = 4000
SHOWN = 120


class Violation(AssertionError):
    """A broken guarantee, with the seed, the command that repeats it, and the journal before it."""


class Journal:
    """Lines with their virtual time."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.lines: deque[tuple[float, str, str]] = deque(maxlen=KEPT)
        self.count = 0

    def note(self, who: str, what: str) -> None:
        """Add one line."""
        self.count += 1
        self.lines.append((self.clock(), who, what))

    def mark(self, without: Mapping[str, str]) -> str:
        """Return a hash of the journal, with texts replaced that differ from run to run."""
        text = self.text(KEPT)
        for what, instead in without.items():
            text = text.replace(what, instead)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def text(self, last: int = SHOWN) -> str:
        """Return the last lines."""
        lines = list(self.lines)[-last:]
        return "\n".join(f"{moment:12.3f}  {who:<8} {what}" for moment, who, what in lines)


class JournalHandler(logging.Handler):
    """Logging handler that adds the agent's log lines to the journal."""

    def __init__(self, journal: Journal) -> None:
        super().__init__(logging.INFO)
        self.journal = journal

    def emit(self, record: logging.LogRecord) -> None:
        self.journal.note("agent", f"{record.levelname[:4]} {record.name.rpartition('.')[2]}: {record.getMessage()}")
