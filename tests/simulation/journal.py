"""What happened in a history, in order: kept cheaply, written out when something is wrong."""

from __future__ import annotations

import hashlib
import logging
from collections import deque
from collections.abc import Callable, Mapping

KEPT = 4000
SHOWN = 120


class Violation(AssertionError):
    """A promise that was broken, with the seed, the way to see it again, and what led to it."""


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
        """Return a word that differs when anything happened otherwise, but for texts that differ from run to run."""
        text = self.text(KEPT)
        for what, instead in without.items():
            text = text.replace(what, instead)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def text(self, last: int = SHOWN) -> str:
        """Return the last lines."""
        lines = list(self.lines)[-last:]
        return "\n".join(f"{moment:12.3f}  {who:<8} {what}" for moment, who, what in lines)


class JournalHandler(logging.Handler):
    """Puts the agent's own log lines into the journal."""

    def __init__(self, journal: Journal) -> None:
        super().__init__(logging.INFO)
        self.journal = journal

    def emit(self, record: logging.LogRecord) -> None:
        self.journal.note("agent", f"{record.levelname[:4]} {record.name.rpartition('.')[2]}: {record.getMessage()}")
