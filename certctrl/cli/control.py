"""The client of the daemon's control socket: one JSON line out, one back, plain blocking calls.

Trio would cost more than the answer. The kernel is asked who serves the socket (SO_PEERCRED): only root and our
own user may pretend to be the daemon.
"""

from __future__ import annotations

import json
import os
import socket
import struct
from contextlib import closing
from typing import TYPE_CHECKING, Any

from certctrl.errors import BusyError, CertctrlError, DiskError, ExitStatus, TransportError

if TYPE_CHECKING:
    from certctrl.store.layout import ConfigDir

ANSWER_LIMIT = 16 << 20
CONNECT_SECONDS = 2.0
ANSWER_SECONDS = 10.0
PATH_LIMIT = 107
_CREDENTIALS = "3i"


class Reply:
    """What the daemon answered."""

    __slots__ = ("data",)

    def __init__(self, data: Any) -> None:
        self.data = data


class RefusedByDaemon(CertctrlError):
    """The daemon answered with an error of its own; carries its exit status."""

    def __init__(self, what: str, *, fix: str | None, status: int) -> None:
        super().__init__(what, fix=fix)
        self.exit_status = ExitStatus(status) if status in set(ExitStatus) else ExitStatus.FAILED


def ask(layout: ConfigDir, op: str, *, seconds: float = ANSWER_SECONDS, **fields: Any) -> Reply | None:
    """Ask the running daemon; None when none is running. ``seconds`` bounds the wait for the answer.

    Raises RefusedByDaemon with the daemon's own words, BusyError when it is too slow, DiskError when the socket may
    not be used, TransportError when it does not lead to the daemon.
    """
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)) as sock:
        sock.settimeout(CONNECT_SECONDS)
        try:
            _connect(sock, layout)
        except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError):
            return None  # no socket, or one that a dead daemon left
        except OSError as error:
            why = os.strerror(error.errno) if error.errno else str(error)
            what, fix = f"cannot reach the daemon at {layout.control_socket}: {why}", f"see ls -l {layout.state}"
            if isinstance(error, PermissionError):  # as of every other file here: the plane has no part in it
                fix = f"run as root or as the owner of {layout.state}"
                raise DiskError(what, path=str(layout.control_socket), errno=error.errno or 0, fix=fix) from None
            raise TransportError(what, fix=fix) from None
        _check_peer(sock, layout)
        sock.settimeout(seconds)
        try:
            sock.sendall(json.dumps({"op": op, **fields}).encode() + b"\n")
            line = _read_line(sock)
        except TimeoutError:
            raise BusyError(
                f"the daemon did not answer `{op}` within {seconds:g} s", fix="see its log; is the host overloaded?"
            ) from None
        except OSError as error:
            raise TransportError(f"the daemon hung up: {error}", fix="see its log") from None
    return _reply(line)


def _connect(sock: socket.socket, layout: ConfigDir) -> None:
    path = str(layout.control_socket)
    if len(os.fsencode(path)) <= PATH_LIMIT:
        sock.connect(path)
        return
    from certctrl.store.disk.fs import RealFs  # a socket's path is limited, a directory's is not
    from certctrl.store.disk.fs import closing as closing_handle

    fs = RealFs()
    with closing_handle(fs, fs.open_dir(layout.state)) as folder:
        sock.connect(f"/proc/self/fd/{folder.fd}/{layout.control_socket.name}")


def _check_peer(sock: socket.socket, layout: ConfigDir) -> None:
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize(_CREDENTIALS))
    _pid, uid, _gid = struct.unpack(_CREDENTIALS, raw)
    trusted = {0, os.geteuid()}
    if os.geteuid() == 0:  # root may ask anybody's daemon; then the directory's owner is the one to expect
        trusted.add(os.stat(layout.state).st_uid)
    if uid not in trusted:
        raise TransportError(
            f"the control socket is served by user id {uid}, who is neither root nor the owner of {layout.state}",
            fix="find out which process that is (ss -xlp) and do not trust it",
        )


def _read_line(sock: socket.socket) -> bytes:
    parts = []
    size = 0
    while part := sock.recv(65_536):
        parts.append(part)
        size += len(part)
        if part.endswith(b"\n") or size > ANSWER_LIMIT:
            break
    return b"".join(parts)


def _reply(line: bytes) -> Reply:
    try:
        answer = json.loads(line)
        good = answer["ok"]
    except (ValueError, KeyError, TypeError):
        why = "the daemon is stopping" if not line else "its answer is not of this version's form"
        raise BusyError(f"no answer from the daemon: {why}", fix="try again in a moment") from None
    if good:
        return Reply(answer.get("data"))
    raise RefusedByDaemon(str(answer.get("error")), fix=answer.get("fix"), status=answer.get("exit", 1))
