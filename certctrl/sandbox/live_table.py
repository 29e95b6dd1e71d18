"""The live table of the sandbox on a terminal: one row per certificate, and the latest events below.

The only module of the sandbox that imports rich; ``narrator`` imports it when the output is a terminal.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from certctrl import lean
from certctrl.sandbox.serials import short_serial

STYLES = {"plane": "magenta", "agent": "cyan", "service": "yellow", "witness": "green", "alert": "red"}
LINES = 6
"""Events shown below the table."""
_AROUND = 6
"""Other lines: the title (two), the heads, what is left out, the cursor, a margin."""
_HEADS = ("certificate", "issued", "served", "renewed", "latency", "state")
_STATES = {
    "issued": ("issued", "yellow"),
    "renewed": ("renewing", "yellow"),
    "served": ("served", "green"),
    "not-served": ("not served", "bold red"),
    "revoked": ("revoking", "yellow"),
    "gone": ("revoked", "magenta"),
    "still-served": ("still served", "bold red"),
}
"""Event → (state of the certificate, style)."""
_SERIAL_OF = {"issued": "issued", "renewed": "issued", "served": "served"}
"""Event → the field that its serial sets."""


def terminal(out: TextIO) -> Console:
    """Return the console of a terminal."""
    return Console(file=out, highlight=False)


@lean.define
class Row:
    """One certificate."""

    name: str
    changed: float = 0.0
    state: str = ""
    style: str = ""
    issued: str = ""
    served: str = ""
    renewals: int = 0
    latency: str = ""


class LiveTable:
    """Redraws itself in place during the block; the last state stays on the screen."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False)
        self._title = ""
        self._at = 0.0
        self._rows: dict[str, Row] = {}
        self._recent: deque[Text] = deque(maxlen=LINES)
        self._alerts: deque[Text] = deque(maxlen=LINES)
        """Shown at the end, in place of the other events."""

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Draw the table a last time, with the alerts below; idempotent."""
        if self._live.is_started:
            self._recent = self._alerts
            self.draw(self._at)
            self._live.stop()

    def title(self, text: str) -> None:
        """Replace the line above the table."""
        self._title = text.strip()

    def draw(self, at: float) -> None:
        """Draw the current state, with the seconds since the start; does nothing after ``close``."""
        self._at = at
        if self._live.is_started:
            self._live.update(self._contents(), refresh=True)

    def add(self, at: float, who: str, event: str, sentence: str, facts: Mapping[str, Any]) -> None:
        """Record one event, for its certificate's row and the lines below; the next ``draw`` shows it."""
        line = Text(no_wrap=True, overflow="ellipsis").append(f"{at:7.2f}s  ").append(f"{who:<8}", STYLES.get(who, ""))
        line.append(f" {sentence}")
        self._recent.append(line)
        if who == "alert":
            self._alerts.append(line)
        if event in _STATES and "name" in facts:
            self._change(self._rows.setdefault(facts["name"], Row(facts["name"])), at, event, facts)

    def _change(self, row: Row, at: float, event: str, facts: Mapping[str, Any]) -> None:
        row.changed = at
        row.state, row.style = _STATES[event]
        if event in _SERIAL_OF:
            setattr(row, _SERIAL_OF[event], short_serial(facts["serial"]))
        row.renewals += event == "renewed"
        if event == "gone":
            row.served = "-"
        elif facts.get("latency_ms") is not None:
            row.latency = f"{facts['latency_ms']:.0f} ms"

    def _contents(self) -> RenderableType:
        head = Text(f"{self._at:.0f} s  ").append(self._title, "bold")
        return Group(head, self._table(), *self._recent)

    def _table(self) -> RenderableType:
        room = max(1, self._console.height - LINES - _AROUND)
        newest = sorted(self._rows, key=lambda name: self._rows[name].changed, reverse=True)[:room]
        left_out = len(self._rows) - len(newest)
        caption = f"and {left_out} more" if left_out else None
        table = Table(box=None, padding=(0, 2, 0, 0), caption=caption, caption_justify="left")
        for head in _HEADS:
            table.add_column(head, no_wrap=True, justify="right" if head in ("renewed", "latency") else "left")
        for row in self._rows.values():
            if row.name in newest:
                cells = (row.name, row.issued, row.served, str(row.renewals), row.latency)
                table.add_row(*map(Text, cells), Text(row.state, row.style))
        return table
