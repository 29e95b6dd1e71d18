"""The client of the daemon's control socket: one JSON line each way, with blocking calls.

Importing Trio would take longer than the request. SO_PEERCRED says who serves the socket: only root and the user of
this command are accepted as the daemon.
"""

from __future__ import annotations

import json
import os
import struct
from contextlib import closing
from typing import TYPE_CHECKING, Any

from certctrl.errors import BusyError, CertctrlError, DiskError, ExitStatus, TransportError

if TYPE_CHECKING:
    import socket

    from certctrl.store.layout import ConfigDir

ANSWER_LIMIT = 16 << 20
CONNECT_SECONDS = 2.0
ANSWER_SECONDS = 10.0
PATH_LIMIT = 107
_CREDENTIALS = "3i"


class Reply:
    """The daemon's answer."""

    __slots__ = ("data",)

    def __init__(self, data: Any) -> None:
        self.data = data


class RefusedByDaemon(CertctrlError):
    """An error that the daemon returned, with its exit status."""

    def __init__(self, what: str, *, fix: str | None, status: int) -> None:
        super().__init__(what, fix=fix)
        self.exit_status = ExitStatus(status) if status in set(ExitStatus) else ExitStatus.FAILED


def ask(layout: ConfigDir, op: str, *, seconds: float = ANSWER_SECONDS, **fields: Any) -> Reply | None:
    """Send a request to the daemon; return None if no daemon is running.

    ``seconds`` bounds the wait for the answer. Raises RefusedByDaemon for an error of the daemon, BusyError if it is
    too slow, DiskError without permission for the socket, TransportError for any other socket error.
    """
    if _is_missing(layout):
        return None
    import socket  # only now: it takes a tenth of the time of `status`

    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)) as sock:
        sock.settimeout(CONNECT_SECONDS)
        try:
            _connect(sock, layout)
        except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError):
            return None  # no socket, or a stale one
        except OSError as error:
            why = os.strerror(error.errno) if error.errno else str(error)
            what, fix = f"cannot reach the daemon at {layout.control_socket}: {why}", f"ls -l {layout.state}"
            if isinstance(error, PermissionError):  # a local file error, not a transport error
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
                f"the daemon did not answer `{op}` within {seconds:g} s", fix="check its log and the load of this host"
            ) from None
        except OSError as error:
            raise TransportError(f"the daemon closed the connection: {error}", fix="check its log") from None
    return _reply(line)


def _is_missing(layout: ConfigDir) -> bool:
    try:
        os.lstat(layout.control_socket)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        pass  # connecting says what is wrong
    return False


def _connect(sock: socket.socket, layout: ConfigDir) -> None:
    path = str(layout.control_socket)
    if len(os.fsencode(path)) <= PATH_LIMIT:
        sock.connect(path)
        return
    from certctrl.store.disk.fs import RealFs  # a socket path is limited to 107 bytes, a directory path is not
    from certctrl.store.disk.fs import closing as closing_handle

    fs = RealFs()
    with closing_handle(fs, fs.open_dir(layout.state)) as folder:
        sock.connect(f"/proc/self/fd/{folder.fd}/{layout.control_socket.name}")


def _check_peer(sock: socket.socket, layout: ConfigDir) -> None:
    import socket

    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize(_CREDENTIALS))
    _pid, uid, _gid = struct.unpack(_CREDENTIALS, raw)
    if uid not in (0, os.geteuid()):  # root has become the owner of the directory before
        raise TransportError(
            f"the control socket is served by user id {uid}, which is neither root nor the user of this command",
            fix="find the process with `ss -xlp` and stop it",
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
        why = "the daemon is stopping" if not line else "its answer has an unknown format; do the versions differ?"
        raise BusyError(f"no answer from the daemon: {why}", fix="try again") from None
    if good:
        return Reply(answer.get("data"))
    raise RefusedByDaemon(str(answer.get("error")), fix=answer.get("fix"), status=answer.get("exit", 1))
