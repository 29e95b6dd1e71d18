"""The built-in TLS service: a process that serves one certificate per name and reloads them on SIGHUP.

``python -m certctrl.sandbox.service FILE`` serves; FILE is JSON: ``{"host", "port", "pid_file", "sites": {name:
directory}}``, where a directory contains ``fullchain.pem`` and ``private.key``. ``… --check DIRECTORY`` only loads
certificate and key as the service would, and exits 0 or 1. Like common servers, it keeps the old certificates if a
new one is broken; unlike them, it stops serving a name whose directory is gone.
"""

from __future__ import annotations

import json
import os
import signal
import ssl
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import trio

REQUEST_SECONDS = 5.0
REQUEST_BYTES = 8192


def load_pair(directory: Path) -> ssl.SSLContext:
    """Return a server context with the certificate and key of one directory.

    The directory is resolved first: both files come from one generation even if the link is switched in between.
    Raises OSError (missing or unreadable) or ssl.SSLError (broken, or key and certificate do not match).
    """
    generation = directory.resolve(strict=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(generation / "fullchain.pem", generation / "private.key")
    return context


def load_sites(sites: Mapping[str, str]) -> dict[str, ssl.SSLContext]:
    """Return the contexts by name, without missing directories; raises ssl.SSLError if one is broken."""
    contexts = {}
    for name, directory in sites.items():
        try:
            contexts[name] = load_pair(Path(directory))
        except FileNotFoundError:
            continue
    return contexts


class Front:
    """The served certificates, replaced as a whole: a handshake sees the old set or the new one."""

    def __init__(self, sites: Mapping[str, str]) -> None:
        self._sites = sites
        self._contexts: dict[str, ssl.SSLContext] = {}
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.sni_callback = self._choose

    def reload(self) -> str:
        """Load all certificates, or keep the old set if one is broken; return the line to log."""
        try:
            self._contexts = load_sites(self._sites)
        except (OSError, ssl.SSLError) as error:
            return f"reload failed, keeping the old certificates: {error}"
        return f"serving {len(self._contexts)} of {len(self._sites)} names"

    def _choose(self, connection: Any, name: str | None, _: ssl.SSLContext) -> int | None:
        context = self._contexts.get(name or "")
        if context is None:
            return ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME
        connection.context = context
        return None


async def serve(settings: Mapping[str, Any]) -> None:
    """Serve until SIGTERM, or until standard input ends because the sandbox is gone."""
    import trio

    front = Front(settings["sites"])
    log(front.reload())

    async def watch_os_signals(task_status: trio.TaskStatus[None]) -> None:
        with trio.open_signal_receiver(signal.SIGHUP, signal.SIGTERM, signal.SIGINT) as received:
            task_status.started()
            async for signum in received:
                if signum != signal.SIGHUP:
                    nursery.cancel_scope.cancel()
                    return
                log(front.reload())

    async def stop_with_parent() -> None:
        async with trio.lowlevel.FdStream(os.dup(0)) as stdin:
            async for _ in stdin:
                pass
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        await nursery.start(watch_os_signals)
        await nursery.start(
            partial(trio.serve_tcp, partial(answer, front.context), settings["port"], host=settings["host"])
        )
        write_pid(Path(settings["pid_file"]))
        nursery.start_soon(stop_with_parent)


def write_pid(path: Path) -> None:
    """Write the pid for SIGHUP; the file appears once the service is ready."""
    path.write_text(f"{os.getpid()}\n", encoding="ascii")


async def answer(context: ssl.SSLContext, stream: trio.SocketStream) -> None:
    """Serve one connection: handshake, one request, one short response."""
    import trio

    tls = trio.SSLStream(stream, context, server_side=True)
    with trio.move_on_after(REQUEST_SECONDS):
        try:
            await tls.do_handshake()
            request = b""
            while b"\r\n\r\n" not in request and len(request) < REQUEST_BYTES:
                part = await tls.receive_some(REQUEST_BYTES)
                if not part:
                    return
                request += part
            body = b"served by the sandbox of certctrl\n"
            head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode()
            await tls.send_all(head + body)
            await tls.aclose()
        except (trio.BrokenResourceError, trio.ClosedResourceError, ssl.SSLError):
            pass  # a disconnected client or a failed handshake affects no other connection


def log(line: str) -> None:
    """Write one line to standard error, which the sandbox redirects to ``DIR/service/error.log``."""
    print(line, file=sys.stderr, flush=True)


def main(argv: list[str]) -> int:
    """Serve, or check one directory; return the exit status."""
    if argv[:1] == ["--check"]:
        try:
            load_pair(Path(argv[1]))
        except (OSError, ssl.SSLError) as error:
            log(f"check failed: {error}")
            return 1
        return 0
    import trio

    trio.run(serve, json.loads(Path(argv[0]).read_text(encoding="utf-8")))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
