"""Standard error that never blocks: if its reader stops or disappears, lines are lost instead.

A full pipe, a stopped terminal or a busy journal would otherwise block the write, and with it the event loop. Lines
that cannot be written now are dropped and counted; their number precedes the next line that can.
"""

from __future__ import annotations

import io
import os
import select
import socket
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from certctrl.text import counted

_ATOMIC = select.PIPE_BUF
_Send = Callable[[bytes], int]
"""Writes what is possible now and returns the number of bytes. Raises OSError."""


def missing_lines(count: int, now: float) -> bytes:
    """Return the line that replaces dropped lines and contains their number."""
    moment = datetime.fromtimestamp(int(now), UTC).strftime("%Y-%m-%d %H:%M:%S")
    return f"[{moment}] [WARN] [Log] {counted(count, 'line')} missing here\n".encode()


class LossyStream(io.RawIOBase):
    """A stream on a descriptor that never blocks and drops lines that cannot be written now."""

    def __init__(self, fd: int, now: Callable[[], float]) -> None:
        self._fd = fd
        self._send, self._close = _sender(fd)
        self._now = now
        self._rest = b""
        """The rest of a line that was written in part."""
        self._lost = 0

    def writable(self) -> bool:
        """Return True."""
        return True

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._fd

    def close(self) -> None:
        """Close what was opened here, not the descriptor."""
        if not self.closed:
            self._close()
        super().close()

    def write(self, data: Any) -> int:
        """Write whole lines or drop them; return their length either way."""
        lines = bytes(data)
        self._rest = self._rest[self._sent(self._rest) :]
        if self._rest:
            self._lost += lines.count(b"\n")
            return len(lines)
        text = missing_lines(self._lost, self._now()) + lines if self._lost else lines
        if sent := self._sent(text):
            self._rest, self._lost = text[sent:], 0
        else:
            self._lost += lines.count(b"\n")
        return len(lines)

    def _sent(self, data: bytes) -> int:
        """Return how many bytes could be written now."""
        try:
            return self._send(data) if data else 0
        except OSError:  # would block, or the reader has gone
            return 0


def _sender(fd: int) -> tuple[_Send, Callable[[], object]]:
    """Return a function that writes without waiting, or changing the descriptor for other processes, and one to end."""
    mode = os.fstat(fd).st_mode
    if stat.S_ISSOCK(mode):
        shared = socket.socket(fileno=os.dup(fd))
        return (lambda data: shared.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)), shared.close
    if not (stat.S_ISFIFO(mode) or os.isatty(fd)):
        return (lambda data: os.write(fd, data)), lambda: None  # a file or /dev/null
    try:  # O_NONBLOCK belongs to an open file, which other processes share: open it again
        own = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:  # it belongs to another user, or has no reader
        return (lambda data: _write_polled(fd, data)), lambda: None
    return (lambda data: os.write(own, data)), lambda: os.close(own)


def _write_polled(fd: int, data: bytes) -> int:
    """Write in pieces that fit into a pipe which reports that it can be written."""
    poll, done = select.poll(), 0
    poll.register(fd, select.POLLOUT)
    while done < len(data) and any(event & select.POLLOUT for _, event in poll.poll(0)):
        done += os.write(fd, data[done : done + _ATOMIC])
    return done


@contextmanager
def lossy_stderr(now: Callable[[], float]) -> Iterator[None]:
    """Replace ``sys.stderr`` by a `LossyStream` while a daemon runs, for tracebacks and warnings, too."""
    before = sys.stderr
    try:
        fd = before.fileno()
        before.flush()
    except (OSError, ValueError, AttributeError):  # not a descriptor
        yield
        return
    stream = LossyStream(fd, now)
    sys.stderr = io.TextIOWrapper(stream, encoding=before.encoding, errors="backslashreplace", write_through=True)
    try:
        yield
    finally:
        sys.stderr = before
        stream.close()
