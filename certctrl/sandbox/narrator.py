"""The output of the sandbox: text lines, or one JSON object per line.

The agent's actions come from its own log records (``agent/log_lines.py``): a logging handler reports the interesting
ones.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from typing import Any, TextIO

from certctrl.text import one_line

# line key -> (event, sentence); fields as the agent logged them
AGENT_LINES: Mapping[str, tuple[str, str]] = {
    "agent-ready": ("started", "daemon ready, poll mode {mode}"),
    "poll-updates": ("polled", "polled: 200 OK, signals: {count}"),
    "poll-no-updates": ("polled", "polled: 204 No Content"),
    "signal-processing": ("signal", "signal {type}"),
    "install-applied": ("plan", "install plan version {version} is active"),
    "cert-revoked": ("withdrawn", "certificate {name} revoked: {done}"),
    "agent-stopped": ("stopped", "daemon stopped: {reason}"),
}
JSON_ONLY = {"poll-no-updates"}
COLOURS = {"plane": "35", "agent": "36", "service": "33", "witness": "32", "alert": "31"}


class Narrator:
    """Writes events in order, with the seconds since the start."""

    def __init__(self, out: TextIO, *, as_json: bool, colour: bool, now: Callable[[], float]) -> None:
        self._out = out
        self.as_json = as_json
        self._colour = colour and not as_json
        self._now = now
        self._began = now()
        self._published: dict[str, float] = {}

    def note_signal(self, type_: str, ts_ms: str) -> None:
        """Remember when the plane published the newest signal of a type."""
        if ts_ms.isdecimal():
            self._published[type_] = int(ts_ms) / 1000

    def published_at(self, type_: str) -> float | None:
        """Return when the newest processed signal of a type was published, in seconds since the epoch."""
        return self._published.get(type_)

    def write(self, who: str, event: str, sentence: str, **facts: Any) -> None:
        """Write one event: ``who`` acted, ``event`` is its stable name, ``facts`` go into the JSON form."""
        at = self._now() - self._began
        if self.as_json:
            self._line(json.dumps({**facts, "at": round(at, 4), "who": who, "event": event}, default=str))
        else:
            self._line(f"{at:7.2f}s  {self._paint(who, f'{who:<8}')} {sentence}")

    def title(self, text: str) -> None:
        """Write a line of text; nothing in JSON mode."""
        if not self.as_json:
            self._line(text)

    def summary(self, figures: Mapping[str, Any], sentences: list[str]) -> None:
        """Write the summary: the last JSON line, or a few sentences."""
        if self.as_json:
            self._line(json.dumps({"event": "summary", **figures}))
            return
        self._line("")
        for sentence in sentences:
            self._line(sentence)

    def strong(self, text: str) -> str:
        """Return ``text`` in bold if colours are on."""
        return f"\x1b[1m{text}\x1b[0m" if self._colour else text

    def _paint(self, who: str, text: str) -> str:
        return f"\x1b[{COLOURS.get(who, '0')}m{text}\x1b[0m" if self._colour else text

    def _line(self, text: str) -> None:
        print(text, file=self._out, flush=True)


class NarratorHandler(logging.Handler):
    """Reports the agent's log records: milestones, and everything from WARNING up."""

    def __init__(self, narrator: Narrator) -> None:
        super().__init__(logging.INFO)
        self._narrator = narrator

    def emit(self, record: logging.LogRecord) -> None:
        """Report one record."""
        key = getattr(record, "line_key", "")
        fields = {name: one_line(str(value)) for name, value in getattr(record, "line_fields", {}).items()}
        if key == "signal-processing":
            self._narrator.note_signal(fields.get("type", ""), fields.get("ts", ""))
        if key in AGENT_LINES:
            event, sentence = AGENT_LINES[key]
            self._write(event, sentence, fields, quiet=key in JSON_ONLY)
        elif record.levelno >= logging.WARNING:
            self._narrator.write("alert", key or "log", one_line(record.getMessage()), level=record.levelname)

    def _write(self, event: str, sentence: str, fields: Mapping[str, str], *, quiet: bool) -> None:
        text = sentence.format_map(Lenient(fields))
        if not quiet or self._narrator.as_json:
            self._narrator.write("agent", event, text, **fields)


class Lenient(dict[str, str]):
    """Fields of a sentence; a missing one prints as ``?``."""

    def __missing__(self, name: str) -> str:
        return "?"
