"""Set up logging: text or JSON lines, to standard error and a rotated file; escaped, without secrets.

``[YYYY-MM-DD HH:MM:SS] [LEVEL] [Category] message`` in UTC; the category is the last part of the logger's name
(``certctrl.Poll`` → ``[Poll]``). One record is always one line, even if a server put line breaks into it. The texts
are in ``agent/log_lines.py``, their meanings in ``docs/logs.md``.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TextIO

from certctrl.logs.redact import redact
from certctrl.model.config import LogFormat
from certctrl.text import one_line

if TYPE_CHECKING:
    from certctrl.model.config import LogConfig
    from certctrl.store.disk.fs import Fs
    from certctrl.store.layout import ConfigDir

MAX_MESSAGE = 4000
"""Characters of a message; the rest is cut off and counted."""
LEVELS = {
    "DEBUG": logging.DEBUG,
    "INFO": logging.INFO,
    "WARN": logging.WARNING,
    "ERROR": logging.ERROR,
    "CRITICAL": logging.CRITICAL,
}
_NAMES = {number: name for name, number in LEVELS.items()}
_SYSLOG = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}
_CHATTY = ("httpx", "httpcore", "h11", "asyncio")
"""Libraries that log every request; URLs and headers may contain secrets."""


def level_name(number: int) -> str:
    """Return the specification's name of a level: ``WARN``, not ``WARNING``."""
    return _NAMES.get(number) or f"LEVEL{number}"


def message_of(record: logging.LogRecord) -> str:
    """Return the message of a record, redacted and bounded.

    An exception adds its type and place, but not its message.
    """
    try:
        text = record.getMessage()
    except Exception as error:  # a wrong format string must not lose the line or stop the daemon
        text = f"{record.msg} (unprintable: {type(error).__name__})"
    if record.exc_info and record.exc_info[0] is not None:
        text += f" ({record.exc_info[0].__name__} at {_place(record.exc_info[2])})"
    text = redact(text)
    if len(text) > MAX_MESSAGE:
        text = f"{text[:MAX_MESSAGE]}… ({len(text) - MAX_MESSAGE} more characters)"
    return text


def _place(trace: Any) -> str:
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{trace.tb_frame.f_globals.get('__name__', '?')}:{trace.tb_lineno}" if trace is not None else "?"


@lru_cache(maxsize=1)
def _second(epoch: int) -> str:
    """Return a time in UTC as text; a burst writes hundreds of lines a second."""
    return datetime.fromtimestamp(epoch, UTC).strftime("%Y-%m-%d %H:%M:%S")


class TextFormatter(logging.Formatter):
    """Text lines; ``journald`` adds the prefix ``<priority>`` (SyslogLevelPrefix=)."""

    def __init__(self, *, journald: bool = False) -> None:
        super().__init__()
        self.journald = journald

    def format(self, record: logging.LogRecord) -> str:
        """Return one line without a newline."""
        line: str | None = getattr(record, "certctrl_line", None)  # formatted once for file and stderr
        if line is None:
            moment = _second(int(record.created))
            category = record.name.rpartition(".")[2]
            line = one_line(f"[{moment}] [{level_name(record.levelno)}] [{category}] {message_of(record)}", None)
            record.certctrl_line = line
        return f"<{_SYSLOG.get(record.levelno, 6)}>{line}" if self.journald else line


class JsonFormatter(logging.Formatter):
    """JSON lines: time, level, category, message, and the key and fields of a line of the catalogue."""

    def __init__(self, *, journald: bool = False) -> None:
        super().__init__()
        self.journald = journald

    def format(self, record: logging.LogRecord) -> str:
        """Return one line without a newline."""
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": level_name(record.levelno),
            "category": record.name.rpartition(".")[2],
            "message": message_of(record),
        }
        if (key := getattr(record, "line_key", None)) is not None:
            entry["key"] = key
        fields = getattr(record, "line_fields", None) or {}
        entry |= {name: _plain(value) for name, value in fields.items() if name not in entry}
        line = json.dumps(entry, ensure_ascii=True)
        return f"<{_SYSLOG.get(record.levelno, 6)}>{line}" if self.journald else line


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    return redact(str(value))[:MAX_MESSAGE]


class StderrHandler(logging.StreamHandler[TextIO]):
    """Writes to standard error; ignores a closed pipe."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)

    def handleError(self, record: logging.LogRecord) -> None:
        """Drop the line; there is no other place to report it."""


class Logs:
    """The log handlers of the daemon; `configure` may be called again (SIGHUP)."""

    def __init__(self, layout: ConfigDir, fs: Fs, *, debug: bool = False, verbosity: int = 0) -> None:
        """``debug``, or ``verbosity`` above 0: log everything; below 0: errors only. Both override the configured level."""
        self._layout = layout
        self._fs = fs
        self._level = logging.DEBUG if debug or verbosity > 0 else logging.ERROR if verbosity < 0 else None
        self._handlers: list[logging.Handler] = []

    def configure(self, config: LogConfig) -> None:
        """Replace the handlers by those of ``config``. Raises ConfigError for an invalid file name."""
        logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False  # no format shows them
        fresh = self._handlers_of(config)
        root = logging.getLogger()
        self.close()
        for handler in fresh:
            root.addHandler(handler)
        self._handlers = fresh
        logging.getLogger("certctrl").setLevel(self._level or LEVELS[config.level])
        for name in _CHATTY:
            logging.getLogger(name).setLevel(logging.WARNING)

    def close(self) -> None:
        """Remove the handlers and close the file."""
        for handler in self._handlers:
            logging.getLogger().removeHandler(handler)
            handler.close()
        self._handlers = []

    def _handlers_of(self, config: LogConfig) -> list[logging.Handler]:
        made: list[logging.Handler] = []
        formatter = JsonFormatter if config.format is LogFormat.JSON else TextFormatter
        if config.stderr:
            handler = StderrHandler()
            handler.setFormatter(formatter(journald=config.journald))
            made.append(handler)
        if config.file:
            from certctrl.logs.file import LogFile

            file = LogFile.in_directory(self._layout.logs, config, self._fs)
            file.setFormatter(formatter())
            made.append(file)
        return made


class LastLine(logging.Handler):
    """Keeps the message of the last record, to show it as progress."""

    text = ""

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a message."""
        self.text = message_of(record)


def log_for_command(*, debug: bool, verbosity: int = 0) -> LastLine:
    """Log warnings of a one-shot command to standard error; return the handler that keeps its last line, written or not.

    ``debug``: log everything. ``verbosity``: above 0 each step, below 0 errors only.
    """
    root, last = logging.getLogger(), LastLine()
    for old in [handler for handler in root.handlers if isinstance(handler, StderrHandler | LastLine)]:
        root.removeHandler(old)
    handler = StderrHandler()
    handler.setFormatter(TextFormatter())
    handler.setLevel(
        {-1: logging.ERROR, 0: logging.WARNING, 1: logging.INFO}[verbosity] if not debug else logging.DEBUG
    )
    root.addHandler(handler)
    root.addHandler(last)
    logging.getLogger("certctrl").setLevel(logging.DEBUG if debug else logging.INFO)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    return last
