"""The process of the root helper: one thread per connection, one request each, on the socket that systemd opened."""

from __future__ import annotations

import argparse
import os
import select
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Lock, Thread

from certctrl.errors import CertctrlError, ConfigError, ExitStatus
from certctrl.helper.messages import POLICY, REQUEST_LIMIT, Answer, Result, encoded
from certctrl.helper.policy import load_policy
from certctrl.helper.requests import Peer, Requests, close_all
from certctrl.helper.units import SYSTEMCTL, Units
from certctrl.store.disk.fs import RealFs

REQUEST_SECONDS = 5.0
"""A connection without a request is closed then."""
IDLE_SECONDS = 300.0
"""The process exits then; the next connection starts it again."""
MOST_CONNECTIONS, MOST_PER_USER = 64, 16
_FIRST_FD = 3
_CUT_OFF = socket.MSG_TRUNC | socket.MSG_CTRUNC
_CREDENTIALS = struct.Struct("iII")


class Server:
    """Accepts connections and limits them by user."""

    def __init__(self, listener: socket.socket, requests: Requests, *, idle: float = IDLE_SECONDS) -> None:
        self._listener, self._requests, self._idle = listener, requests, idle
        self._open, self._lock = Counter[int](), Lock()

    def run(self) -> None:
        """Serve until nothing was asked for the idle time."""
        self._listener.setblocking(False)
        while True:
            ready = select.select([self._listener], [], [], self._idle)[0]
            if not ready and not self._open.total():
                return
            try:
                connection = self._listener.accept()[0] if ready else None
            except OSError:  # the client has gone, or there are too many open files
                time.sleep(0.05)
                continue
            if connection is not None:
                self._start(connection)

    def _start(self, connection: socket.socket) -> None:
        peer = peer_of(connection)
        with self._lock:
            full = self._open.total() >= MOST_CONNECTIONS or self._open[peer.uid] >= MOST_PER_USER
            self._open[peer.uid] += not full
        if full:
            _turn_away(connection)
            return
        try:
            Thread(target=self._serve, args=(connection, peer), daemon=True).start()
        except RuntimeError:  # the system has no thread for it
            self._end(connection, peer)

    def _serve(self, connection: socket.socket, peer: Peer) -> None:
        try:
            connection.settimeout(REQUEST_SECONDS)
            packet, fds, flags, _ = socket.recv_fds(connection, REQUEST_LIMIT, 1, socket.MSG_CMSG_CLOEXEC)
            try:
                if packet:
                    _send(connection, self._answer(connection, peer, packet, fds, whole=not flags & _CUT_OFF))
            finally:
                close_all(fds)
        except OSError:  # it sends nothing, or has gone
            pass
        finally:
            self._end(connection, peer)

    def _answer(
        self, connection: socket.socket, peer: Peer, packet: bytes, fds: Sequence[int], *, whole: bool
    ) -> bytes:
        try:
            return self._requests.answer(peer, packet, fds, whole=whole, is_gone=lambda: _is_gone(connection))
        except Exception as error:  # isolate requests
            return self._requests.unexpected(peer, error)

    def _end(self, connection: socket.socket, peer: Peer) -> None:
        connection.close()
        with self._lock:
            self._open[peer.uid] -= 1


def peer_of(connection: socket.socket) -> Peer:
    """Return the process that opened a connection."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(raw)
    return Peer(pid=pid, uid=uid)


def _send(connection: socket.socket, answer: bytes) -> None:
    with suppress(OSError):
        connection.send(answer)


def _is_gone(connection: socket.socket) -> bool:
    """Return whether the other end of a connection is closed."""
    if not select.select([connection], [], [], 0)[0]:  # a socket with a time limit would wait for it
        return False
    try:
        return not connection.recv(1, socket.MSG_PEEK)
    except OSError:
        return True


def _turn_away(connection: socket.socket) -> None:
    """Answer that there are too many connections, without waiting for the request.

    An unread request would reset the connection, and the client would not get the answer.
    """
    connection.setblocking(False)
    _send(connection, encoded(Answer(result=Result.BUSY, why="too many connections")))
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RD)
        connection.recv(1)
    connection.close()


def inherited(environ: Mapping[str, str]) -> socket.socket:
    """Return the listening socket that systemd passes. Raises ConfigError."""
    if (environ.get("LISTEN_PID"), environ.get("LISTEN_FDS")) != (str(os.getpid()), "1"):
        what = "this command is for cert-ctrl-helper.service, which cert-ctrl-helper.socket starts"
        raise ConfigError(what, fix="systemctl enable --now cert-ctrl-helper.socket")
    os.set_inheritable(_FIRST_FD, False)
    found = socket.socket(fileno=_FIRST_FD)
    if (found.family, found.type) != (socket.AF_UNIX, socket.SOCK_SEQPACKET):
        raise ConfigError("the socket is not a Unix socket for packets", fix="use ListenSequentialPacket= in its unit")
    return found


def _say(line: str) -> None:
    with suppress(OSError):
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()


def main(arguments: Sequence[str], environ: Mapping[str, str] = os.environ) -> int:
    """Run the helper, or with ``--check`` only read its policy; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="cert-ctrl helper",
        description="Write files and reload units for the unprivileged agent, as root's policy says.",
    )
    parser.add_argument("--policy", default=POLICY, metavar="FILE", help=f"root's policy; default: {POLICY}")
    parser.add_argument("--systemctl", default=SYSTEMCTL, metavar="PROGRAM", help=argparse.SUPPRESS)
    parser.add_argument("--check", action="store_true", help="check the policy and exit")
    given = parser.parse_args(arguments)
    fs, policy = RealFs(), Path(given.policy)
    try:
        if given.check:
            entries = load_policy(fs, policy)
            sys.stdout.write(f"{policy}: no mistakes; users: {', '.join(entries) or 'none'}\n")
            return ExitStatus.DONE
        listener = inherited(environ)
    except CertctrlError as error:
        fix = f"fix: {error.fix}\n" if error.fix else ""
        sys.stderr.write(f"cert-ctrl: error: {error}\n{fix}")  # as all commands say it
        return error.exit_status
    units = Units(given.systemctl)
    Server(listener, Requests(fs, policy, units, now=time.monotonic, audit=_say)).run()
    return ExitStatus.DONE
