"""The output of the sandbox: a live table on a terminal, otherwise short lines, or one JSON object per line.

The agent's actions come from its own log records (``agent/log_lines.py``): a logging handler reports the interesting
ones.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TextIO

from certctrl.agent.log_lines import filled
from certctrl.text import one_line

if TYPE_CHECKING:
    from certctrl.sandbox.live_table import LiveTable

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
ROUTINE = {"issued", "renewed", "started", "polled", "signal", "plan", "withdrawn", "stopped"}
"""Events without a line of text: their result, served or gone, has one."""


class Narrator:
    """Writes events in order, with the seconds since the start."""

    def __init__(self, out: TextIO, *, as_json: bool, now: Callable[[], float], live: LiveTable | None = None) -> None:
        self._out = out
        self.as_json = as_json
        self._live = live
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

    def write(self, who: str, event: str, sentence: str, *, routine: bool = False, **facts: Any) -> None:
        """Write one event: ``who`` acted, ``event`` is its stable name, ``facts`` go into the JSON form.

        A ``routine`` event has no line of text.
        """
        at = self._now() - self._began
        if self.as_json:
            self._line(json.dumps({**facts, "at": round(at, 4), "who": who, "event": event}, default=str))
        elif self._live is not None:
            self._live.add(at, who, event, sentence, facts)
        elif not routine and (event not in ROUTINE or who == "alert"):
            self._line(f"{at:7.2f}s  {who:<8} {sentence}")

    def redraw(self) -> None:
        """Draw the live table, if there is one."""
        if self._live is not None:
            self._live.draw(self._now() - self._began)

    def title(self, text: str) -> None:
        """Write a line of text, or put it above the live table; nothing in JSON mode."""
        if self._live is not None:
            self._live.title(text)
        elif not self.as_json:
            self._line(text)

    def summary(self, figures: Mapping[str, Any], sentences: list[str]) -> None:
        """Write the summary: the last JSON line, or a few sentences; the live table ends."""
        if self.as_json:
            self._line(json.dumps({"event": "summary", **figures}))
            return
        if self._live is not None:
            self._live.close()
        self._line("")
        for sentence in sentences:
            self._line(sentence)

    def _line(self, text: str) -> None:
        print(text, file=self._out, flush=True)


@contextlib.contextmanager
def narrating(out: TextIO, *, as_json: bool, now: Callable[[], float]) -> Iterator[Narrator]:
    """Yield the narrator for an output; a live table runs during the block if it is a terminal that can redraw."""
    if as_json or not out.isatty() or os.environ.get("TERM") in ("dumb", "unknown"):
        yield Narrator(out, as_json=as_json, now=now)
        return
    from certctrl.sandbox.live_table import LiveTable, terminal

    with LiveTable(terminal(out)) as live:
        yield Narrator(out, as_json=False, now=now, live=live)


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
            facts: dict[str, Any] = {**fields}
            self._narrator.write("agent", event, filled(sentence, fields), **facts)
        elif record.levelno >= logging.WARNING:
            self._narrator.write("alert", key or "log", one_line(record.getMessage()), level=record.levelname)
