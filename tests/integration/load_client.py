"""A client under constant load, which counts what a service drops while it changes certificates.

Usage: load_client.py JSON with ``{"kind", "host", "port", "name", "ca"}``; ``kind``: https, smtp, imap or postgres. Two
threads make new connections, one keeps a connection for as long as the server does. Every handshake verifies chain
and name. It ends with standard input and prints its counters as one JSON object.

An HTTP server may close an idle connection at any time, and a client then repeats its request on a new one (RFC 9112,
9.3.1 and 9.5): that is counted as ``reopened``. An IMAP login is tried a second time, as every mail program does, and
counted as ``retried`` (Dovecot replaces its login service at a reload). Everything else that does not succeed has
failed: a kept connection of the other protocols may not be closed at all.
"""

from __future__ import annotations

import json
import socket
import ssl
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

TIMEOUT = 10.0
NEW_CLIENTS = 2
NEW_PAUSE, KEPT_PAUSE = 0.01, 0.02


class ClosedError(Exception):
    """The server closed a kept connection before it answered."""


FAULTS = (OSError, ValueError, KeyError, ClosedError)
T = TypeVar("T")


class Line:
    """One connection with TLS, and a buffer of what was read."""

    def __init__(self, target: dict[str, Any], context: ssl.SSLContext) -> None:
        self._rest = b""
        self._socket: socket.socket = socket.create_connection((target["host"], target["port"]), timeout=TIMEOUT)
        try:
            PLAIN[target["kind"]](self)
            tls = context.wrap_socket(self._socket, server_hostname=target["name"])
        except BaseException:
            self.close()
            raise
        self._socket = tls
        self.leaf: bytes = tls.getpeercert(binary_form=True) or b""
        # without verification only the bytes are known
        self.serial = str((tls.getpeercert() or {}).get("serialNumber", "")).lower().lstrip("0")

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def more(self) -> None:
        part = self._socket.recv(65536)
        if not part:
            raise ClosedError("closed" if not self._rest else "closed in the middle of an answer")
        self._rest += part

    def take(self, count: int) -> bytes:
        while len(self._rest) < count:
            self.more()
        data, self._rest = self._rest[:count], self._rest[count:]
        return data

    def until(self, end: bytes) -> bytes:
        while end not in self._rest:
            self.more()
        return self.take(self._rest.index(end) + len(end))

    def close(self) -> None:
        self._socket.close()


def expect(found: bytes, start: bytes) -> None:
    if not found.startswith(start):
        raise ValueError(f"expected {start!r}, got {found[:200]!r}")


# --- before TLS -----------------------------------------------------------------------------------------------------


def smtp_reply(line: Line, code: bytes) -> None:
    while True:
        text = line.until(b"\r\n")
        expect(text, code)
        if text[3:4] != b"-":
            return


def smtp_starttls(line: Line) -> None:
    smtp_reply(line, b"220")
    line.send(b"EHLO client.example.com\r\n")
    smtp_reply(line, b"250")
    line.send(b"STARTTLS\r\n")
    smtp_reply(line, b"220")


def imap_starttls(line: Line) -> None:
    expect(line.until(b"\r\n"), b"* OK")
    line.send(b"a STARTTLS\r\n")
    imap_reply(line)


def imap_reply(line: Line) -> None:
    while (text := line.until(b"\r\n")).startswith(b"* "):
        pass
    expect(text, b"a OK")


def postgres_ssl(line: Line) -> None:
    line.send(struct.pack("!ii", 8, 80877103))
    expect(line.take(1), b"S")


PLAIN: dict[str, Callable[[Line], None]] = {
    "https": lambda line: None, "smtp": smtp_starttls, "imap": imap_starttls, "postgres": postgres_ssl,
}  # fmt: skip


# --- in TLS: begin once, ask over and over, end ---------------------------------------------------------------------


def http_ask(line: Line, name: str) -> None:
    line.send(f"GET / HTTP/1.1\r\nHost: {name}\r\n\r\n".encode())
    head = line.until(b"\r\n\r\n")
    expect(head, b"HTTP/1.1 200")
    fields = dict(row.lower().split(b": ", 1) for row in head.split(b"\r\n")[1:-2])
    line.take(int(fields[b"content-length"]))


def smtp_ask(line: Line, name: str) -> None:
    line.send(b"EHLO client.example.com\r\n")
    smtp_reply(line, b"250")


def imap_begin(line: Line) -> None:
    line.send(b"a LOGIN someone anything\r\n")
    imap_reply(line)


def imap_ask(line: Line, name: str) -> None:
    line.send(b"a NOOP\r\n")
    imap_reply(line)


def postgres_begin(line: Line) -> None:
    body = struct.pack("!i", 196608) + b"user\0postgres\0database\0postgres\0\0"
    line.send(struct.pack("!i", len(body) + 4) + body)
    postgres_ready(line)


def postgres_ready(line: Line) -> bytes:
    kinds = b""
    while not kinds.endswith(b"Z"):
        kinds += line.take(1)
        body = line.take(struct.unpack("!i", line.take(4))[0] - 4)
        if kinds.endswith(b"E"):
            raise ValueError(f"the server says {body!r}")
    return kinds


def postgres_ask(line: Line, name: str) -> None:
    line.send(b"Q" + struct.pack("!i", 13) + b"SELECT 1\0")
    if b"D" not in postgres_ready(line):
        raise ValueError("no row came")


BEGIN: dict[str, Callable[[Line], None]] = {"imap": imap_begin, "postgres": postgres_begin}
ASK: dict[str, Callable[[Line, str], None]] = {
    "https": http_ask, "smtp": smtp_ask, "imap": imap_ask, "postgres": postgres_ask,
}  # fmt: skip
TRIES = {"imap": 2}
"""Attempts per connection; a request on an open connection has one."""
END = {"smtp": b"QUIT\r\n", "imap": b"a LOGOUT\r\n", "postgres": b"X\0\0\0\4"}


class Load:
    """The threads and their counters."""

    def __init__(self, target: dict[str, Any]) -> None:
        self._target = target
        self._context = ssl.create_default_context(cafile=target["ca"])
        self._kind: str = target["kind"]
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._tally: Counter[str] = Counter()
        self._serials: Counter[str] = Counter()
        self._faults: list[str] = []

    def run(self) -> dict[str, Any]:
        """Send requests until standard input ends; return the counters."""
        jobs = [*[self._new] * NEW_CLIENTS, self._kept]
        threads = [threading.Thread(target=job) for job in jobs]
        for thread in threads:
            thread.start()
        sys.stdin.read()
        self._stop.set()
        for thread in threads:
            thread.join()
        return {**self._tally, "faults": self._faults[:10], "serials": dict(self._serials)}

    def _count(self, what: str, serial: str = "") -> None:
        with self._lock:
            self._tally[what] += 1
            if serial:
                self._serials[serial] += 1

    def _fail(self, what: str, error: Exception) -> None:
        with self._lock:
            self._tally[f"{what}_failed"] += 1
            self._faults.append(f"{what}: {type(error).__name__}: {error}")

    def _open(self) -> Line:
        line = Line(self._target, self._context)
        try:
            if self._kind in BEGIN:
                BEGIN[self._kind](line)
        except BaseException:
            line.close()
            raise
        return line

    def _ask(self, line: Line) -> None:
        ASK[self._kind](line, self._target["name"])

    def _new(self) -> None:
        last = False
        while not last:
            last = self._stop.is_set()  # once more after the end, to see what was served last
            try:
                self._count("new", self._patiently(self._once))
            except FAULTS as error:
                self._fail("new", error)
            time.sleep(NEW_PAUSE)

    def _patiently(self, what: Callable[[], T]) -> T:
        """Do something that clients of the protocol repeat automatically."""
        for _ in range(TRIES.get(self._kind, 1) - 1):
            try:
                return what()
            except FAULTS:
                self._count("retried")
        return what()

    def _once(self) -> str:
        """Connect, send a request, disconnect; return the serial."""
        line = self._open()
        try:
            self._ask(line)
            line.send(END.get(self._kind, b""))
        finally:
            line.close()
        return line.serial

    def _kept(self) -> None:
        line: Line | None = None
        while not self._stop.is_set():
            fresh = line is None
            try:
                line = line or self._patiently(self._open)
                self._ask(line)
                self._count("kept")
            except FAULTS as error:
                if line is not None:
                    line.close()
                line = None
                if not fresh and self._kind == "https" and is_close(error):
                    self._count("reopened")
                    continue  # repeat it immediately on a new connection
                self._fail("kept", error)
            time.sleep(KEPT_PAUSE)
        if line is not None:
            line.close()


def is_close(error: Exception) -> bool:
    """Return whether the server closed before it began to answer."""
    if isinstance(error, ClosedError):
        return str(error) == "closed"
    return isinstance(error, ConnectionResetError | BrokenPipeError | ssl.SSLEOFError | ssl.SSLZeroReturnError)


if __name__ == "__main__":
    print(json.dumps(Load(json.loads(sys.argv[1])).run()), flush=True)
