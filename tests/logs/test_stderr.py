"""Standard error of a daemon: a reader that does not read loses lines and stops nothing."""

from __future__ import annotations

import io
import os
import re
import select
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

from certctrl.logs.stderr import LossyStream, lossy_stderr

LINE = b"[2025-10-03 05:45:56] [INFO] [Poll] " + b"x" * 200 + b"\n"
LINES = 40_000
"""More than any pipe or socket buffers."""
NOTE = rb"\[2025-10-03 05:46:40\] \[WARN\] \[Log\] (\d+) lines? missing here\n"
AT = 1_759_470_400.0


class End(NamedTuple):
    fd: int
    read: Callable[[], bytes]
    """Waits a little until there is something to read and returns it."""


def readable(fd: int) -> Callable[[], bytes]:
    os.set_blocking(fd, False)

    def read() -> bytes:
        select.select([fd], [], [], 0.1)
        found = b""
        try:
            while part := os.read(fd, 1 << 16):
                found += part
        except BlockingIOError:
            pass
        return found

    return read


def a_pipe(stack: ExitStack) -> End:
    reader, writer = os.pipe()
    stack.callback(os.close, reader)
    stack.callback(os.close, writer)
    return End(writer, readable(reader))


def a_socket(stack: ExitStack) -> End:
    ours, theirs = socket.socketpair()
    stack.callback(ours.close)
    stack.callback(theirs.close)
    return End(theirs.fileno(), readable(ours.fileno()))


def a_terminal(stack: ExitStack) -> End:
    import tty

    ours, theirs = os.openpty()
    stack.callback(os.close, ours)
    stack.callback(os.close, theirs)
    tty.setraw(theirs)
    return End(theirs, readable(ours))


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


def stream_on(fd: int, stack: ExitStack) -> LossyStream:
    stream = LossyStream(fd, lambda: AT)
    stack.callback(stream.close)
    return stream


def lines_until_the_end(end: End, stream: LossyStream) -> tuple[list[bytes], int]:
    """Read everything, writing a last line until it arrives; return the lines, and how many were written as the last."""
    received, times = end.read(), 0
    while not received.endswith(b"the end\n"):
        stream.write(b"the end\n")
        times += 1
        received += end.read()
    return received.splitlines(keepends=True), times


@pytest.mark.parametrize("kind", [a_pipe, a_socket, a_terminal])
def test_lines_that_no_one_reads_are_dropped_and_counted(kind: Callable[[ExitStack], End], stack: ExitStack) -> None:
    """Every line arrives whole or is counted at its place."""
    end = kind(stack)
    stream = stream_on(end.fd, stack)
    for _ in range(LINES):
        assert stream.write(LINE) == len(LINE)
    lines, times = lines_until_the_end(end, stream)
    notes = [found for line in lines if (found := re.fullmatch(NOTE, line))]
    assert notes, "no buffer is that large"
    assert set(lines) - {LINE, b"the end\n"} == {note[0] for note in notes}
    assert lines[0] == LINE
    missing = sum(int(note[1]) for note in notes)
    assert len(lines) - len(notes) + missing == LINES + times


def test_a_pipe_that_cannot_be_opened_again_is_polled(stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    """It belongs to another user, for example to root before the agent became the owner of its directory."""
    end = a_pipe(stack)

    def refused(*_args: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refused)
    stream = stream_on(end.fd, stack)
    monkeypatch.undo()
    long = b"y" * 10_000 + b"\n"
    for _ in range(100):
        stream.write(long)
    before = end.read()
    assert before.startswith(long) and len(before) < 100 * len(long)
    stream.write(b"and on\n")
    assert end.read().endswith(b" missing here\nand on\n")


def test_other_processes_keep_a_blocking_descriptor(stack: ExitStack) -> None:
    end = a_pipe(stack)
    stream_on(end.fd, stack)
    assert os.get_blocking(end.fd)


def test_a_reader_that_has_gone_is_no_error(stack: ExitStack) -> None:
    ours, theirs = socket.socketpair()
    for reader, writer in (os.pipe(), (ours.detach(), theirs.detach())):
        stack.callback(os.close, writer)
        stream = stream_on(writer, stack)
        os.close(reader)
        for _ in range(3):
            assert stream.write(LINE) == len(LINE)


def test_a_file_gets_every_line(tmp_path: Path, stack: ExitStack) -> None:
    with (tmp_path / "log").open("wb") as file:
        stream = stream_on(file.fileno(), stack)
        for _ in range(1000):
            stream.write(LINE)
    assert (tmp_path / "log").read_bytes() == LINE * 1000


def test_the_standard_error_of_a_daemon(stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    end = a_pipe(stack)
    before = open(end.fd, "w", closefd=False, encoding="ascii")  # noqa: SIM115 - closed by the stack
    stack.callback(before.close)
    monkeypatch.setattr(sys, "stderr", before)
    with lossy_stderr(lambda: AT):
        for _ in range(2000):
            print("näht " + "z" * 100, file=sys.stderr)
    assert sys.stderr is before
    assert end.read().startswith(b"n\\xe4ht zzz")


def test_a_captured_stream_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    captured = io.StringIO()
    monkeypatch.setattr(sys, "stderr", captured)
    with lossy_stderr(lambda: AT):
        assert sys.stderr is captured
