"""Print lines, JSON and tables; format durations. Untrusted text is escaped here."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from certctrl.text import one_line

TABLE_WIDTH = 80
"""Columns of a table in a pipe; on a terminal, the terminal's."""
_MIN_COLUMN = 6
_SECOND, _MINUTE, _HOUR, _DAY = 1, 60, 3600, 86_400


def write_line(text: str = "") -> None:
    """Print one line to standard output; control characters are escaped."""
    sys.stdout.write(one_line(text, None) + "\n")


def write_error(text: str) -> None:
    """Print one line to standard error; control characters are escaped."""
    sys.stderr.write(one_line(text, None) + "\n")


def write_problems(problems: Iterable[Mapping[str, Any]]) -> None:
    """Print problems that made a result incomplete, with their fixes, to standard error."""
    for problem in problems:
        write_error(f"warning: {problem['what']}")
        if problem.get("fix"):
            write_error(f"fix: {problem['fix']}")


def write_json(value: Any, *, pretty: bool = True) -> None:
    """Print a JSON value, indented or on one line."""
    import json

    sys.stdout.write(json.dumps(value, indent=2 if pretty else None, ensure_ascii=True, default=str) + "\n")


def on_terminal() -> bool:
    """Whether standard output is a terminal that understands control sequences."""
    return sys.stdout.isatty() and os.environ.get("TERM", "") not in ("", "dumb")


def reader_has_gone() -> bool:
    """Whether standard output is a pipe that no process reads anymore."""
    import select

    poll = select.poll()
    try:
        poll.register(sys.stdout.fileno(), 0)
    except (OSError, ValueError):  # not a descriptor
        return False
    return any(event & select.POLLERR for _, event in poll.poll(0))


def duration(seconds: float) -> str:
    """Return a duration in the specification's format: ``5 seconds``, ``14m 23s``, ``2h 15m``, ``2d 14h 32m``."""
    whole = max(0, round(seconds))
    if whole < _MINUTE:
        return f"{whole} second" if whole == 1 else f"{whole} seconds"
    days, rest = divmod(whole, _DAY)
    hours, rest = divmod(rest, _HOUR)
    minutes, secs = divmod(rest, _MINUTE)
    if days:
        return f"{days}d {hours}h {minutes}m"
    return f"{hours}h {minutes}m" if hours else f"{minutes}m {secs}s"


def ago(then: float, now: float) -> str:
    """Return how long ago ``then`` was; ``in …`` for a time in the future."""
    return f"{duration(now - then)} ago" if then <= now + 1 else f"in {duration(then - now)}"


def remaining(seconds: float) -> str:
    """Return the remaining lifetime of a certificate or token, or ``expired … ago``."""
    return duration(seconds) if seconds > 0 else f"expired {duration(-seconds)} ago"


def bar(share: float, width: int = 10) -> str:
    """Return a bar of ``width`` cells, full at 1."""
    full = round(max(0.0, min(1.0, share)) * width)
    return "█" * full + "░" * (width - full)


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], *, title: str = "") -> None:
    """Print a table: with rich on a terminal, otherwise in aligned columns."""
    cells = [[one_line(cell, None) for cell in row] for row in rows]
    if on_terminal():
        _rich_table(heads, cells, title)
        return
    widths = _fitted([[head, *(row[number] for row in cells)] for number, head in enumerate(heads)])
    for row in ([head.upper() for head in heads], *cells):
        parts = [_wrapped(cell, width) for cell, width in zip(row, widths, strict=True)]
        for number in range(max(map(len, parts))):
            line = [part[number] if number < len(part) else "" for part in parts]
            sys.stdout.write("  ".join(map(str.ljust, line, widths)).rstrip() + "\n")


def _fitted(columns: list[list[str]]) -> list[int]:
    """Return column widths that fit the table: columns that can be broken between words become narrower first."""
    widths = [max(map(len, column)) for column in columns]
    words = [max(map(len, " ".join(column).replace("/", "/ ").split()), default=0) for column in columns]
    for least in (words, [_MIN_COLUMN] * len(widths)):
        while sum(widths) + 2 * len(widths) - 2 > TABLE_WIDTH:
            wide = [number for number, width in enumerate(widths) if width > least[number]]
            if not wide:
                break
            widths[max(wide, key=widths.__getitem__)] -= 1
    return widths


def _wrapped(cell: str, width: int) -> list[str]:
    """Return a cell in lines of at most ``width``, broken at spaces if possible, otherwise after a slash."""
    lines = []
    while len(cell) > width:
        space, slash = cell.rfind(" ", 1, width + 1), cell.rfind("/", 1, width)
        cut = space if space > 0 else slash + 1 if slash > 0 else width
        lines.append(cell[:cut].rstrip())
        cell = cell[cut:].lstrip()
    return [*lines, cell]


def short_serial(serial: str) -> str:
    """Return the first and last bytes of a serial number, for tables."""
    return f"{serial[:8]}…{serial[-5:]}" if len(serial) > 20 else serial


def _rich_table(heads: Sequence[str], cells: list[list[str]], title: str) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(*heads, box=SIMPLE_HEAD, title=title or None, title_justify="left")
    for row in cells:
        drawn.add_row(*(Text(cell, style=_colour(cell)) for cell in row))
    Console().print(drawn)


def _colour(cell: str) -> str:
    word = cell.lstrip("█░ ").partition(" ")[0].rstrip(":")
    if word in ("failed", "rolled_back", "expired", "ERROR", "degraded", "stale", "revoked"):
        return "red"
    if word in ("WARN", "staged", "held", "withdrawn"):
        return "yellow"
    return "green" if word in ("applied", "unchanged", "OK", "healthy") else ""
