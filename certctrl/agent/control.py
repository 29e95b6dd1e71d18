"""Serve the control socket ``state/agent.sock``: one JSON object per line, for one-shot commands.

Its mode is 0600 in the 0700 state directory, and the kernel names the peer's uid (SO_PEERCRED): only root and the
daemon's user get an answer. The socket is bound through ``/proc/self/fd``, because the path of a Unix socket is
limited to 107 bytes.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import trio

from certctrl.agent.log_lines import Line, log_line
from certctrl.agent.package_guard import PackageChangedError, raise_if_replaced
from certctrl.errors import CertctrlError, ExitStatus, UsageError
from certctrl.protocol.wire.reader import json_object, or_default, text
from certctrl.store.disk.atomic import remove_file
from certctrl.store.disk.fs import Fs

LINE_LIMIT = 64 * 1024
REQUEST_SECONDS = 10.0
CONNECTIONS = 64

Operation = Callable[[dict[str, Any]], Awaitable[Any]]


async def serve_control(
    fs: Fs,
    path: Path,
    operations: Callable[[], Mapping[str, Operation]],
    log: logging.Logger,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Answer requests on the socket until cancelled; the socket file is removed at the end.

    ``operations`` is called for each request, so that a daemon that is never asked need not load them.
    """
    with _listening(fs, path) as listener:
        limiter = trio.CapacityLimiter(CONNECTIONS)

        async def answer(stream: trio.SocketStream) -> None:
            async with limiter, stream:
                try:
                    await _answer(stream, operations, log)
                except* (trio.BrokenResourceError, trio.ClosedResourceError):
                    pass  # the client hung up; from the nursery, such an error comes in a group

        async with trio.open_nursery() as nursery:
            task_status.started()
            await trio.serve_listeners(answer, [listener], handler_nursery=nursery)


@contextlib.contextmanager
def _listening(fs: Fs, path: Path) -> Iterator[trio.SocketListener]:
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        remove_file(fs, path, durable=False)  # under daemon.lock, an existing socket belongs to a dead daemon
        plain = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        umask = os.umask(0o177)
        try:
            plain.bind(f"/proc/self/fd/{folder}/{path.name}")
        finally:
            os.umask(umask)
        plain.listen(CONNECTIONS)
        try:
            with trio.socket.from_stdlib_socket(plain) as sock:
                yield trio.SocketListener(sock)
        finally:
            remove_file(fs, path, durable=False)
    finally:
        os.close(folder)


def _allowed(stream: trio.SocketStream, log: logging.Logger) -> bool:
    raw = stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    assert isinstance(raw, bytes)
    pid, uid, _gid = struct.unpack("3i", raw)
    if uid in (0, os.geteuid()):
        return True
    log_line(log, Line.CONTROL_REFUSED, uid=uid, pid=pid, why="neither root nor the agent's own user")
    return False


async def _answer(
    stream: trio.SocketStream, operations: Callable[[], Mapping[str, Operation]], log: logging.Logger
) -> None:
    if not _allowed(stream, log):
        await stream.send_all(_line({"ok": False, "error": "not allowed", "fix": "run as root", "exit": 77}))
        return
    line = b""
    with trio.move_on_after(REQUEST_SECONDS):
        line = await _read_line(stream)
    if not line:
        return
    async with trio.open_nursery() as nursery:

        async def watch() -> None:
            """Cancel the work for this client once it disconnects."""
            with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                while await stream.receive_some(1024):
                    pass
            nursery.cancel_scope.cancel()

        nursery.start_soon(watch)
        try:
            reply = await perform(line, operations(), log)
        except PackageChangedError as changed:
            what = f"{changed}; the daemon restarts"
            await stream.send_all(_line({"ok": False, "error": what, "fix": "try again", "exit": int(ExitStatus.BUSY)}))
            raise
        await stream.send_all(_line(reply))
        nursery.cancel_scope.cancel()


async def perform(line: bytes, operations: Mapping[str, Operation], log: logging.Logger) -> dict[str, Any]:
    """Return the reply to one request line; never raises for an invalid request or a failed operation."""
    try:
        name, request = _request(line)
        if name not in operations:
            raise UsageError("unknown operation", fix=f"one of: {', '.join(sorted(operations))}")
        return {"ok": True, "data": await operations[name](request)}
    except CertctrlError as error:
        return {"ok": False, "error": str(error), "fix": error.fix, "exit": int(error.exit_status)}
    except Exception as error:  # a bug in one operation must not stop the daemon
        raise_if_replaced(error)
        log.error("control request failed: %s", type(error).__name__)
        return {"ok": False, "error": f"internal error ({type(error).__name__})", "fix": "see the log", "exit": 1}


def _request(line: bytes) -> tuple[str, dict[str, Any]]:
    """Return the operation, empty if there is none, and the request. Raises UsageError."""
    try:
        request = json_object(json.loads(line))
    except (ValueError, RecursionError):  # Misfit is a ValueError
        raise UsageError("not a JSON object") from None
    return or_default(text(), "")(request.get("op")), request


async def _read_line(stream: trio.SocketStream) -> bytes:
    data = b""
    while b"\n" not in data and len(data) <= LINE_LIMIT:
        part = await stream.receive_some(4096)
        if not part:
            return b""
        data += part
    return data.split(b"\n", 1)[0]


def _line(reply: dict[str, Any]) -> bytes:
    return json.dumps(reply, separators=(",", ":")).encode() + b"\n"
