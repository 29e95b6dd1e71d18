"""The floors of the fleet: servers that hold polls and answer the plane's bytes, without tokens, database and rules.

``python fleet_floors.py KIND JSON`` with ``cert``, ``key`` and ``database``, a new SQLite file; KIND is ``bare`` (h11 on Trio) or ``hypercorn``
(hypercorn's Trio worker and starlette). It prints its port and ends with standard input.

- ``GET /apiv1/devices/self/updates?wait=W``: 204 after W seconds, or 200 once a signal is published.
- ``POST /publish?device=N``: one signal to the device with the token N, committed to the SQLite file before it wakes the
  poll; without N, to all, and stored nowhere.
"""

from __future__ import annotations

import json
import resource
import socket
import sqlite3
import ssl
import sys
import time
from functools import partial
from typing import Any
from urllib.parse import parse_qs

import h11
import trio

DATE = b"Sun, 29 Nov 2026 10:00:00 GMT"


class Streams:
    """Who waits for what, and the signals to single devices."""

    def __init__(self, database: str) -> None:
        self._database = sqlite3.connect(database, isolation_level=None)
        self._database.executescript(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;"
            "CREATE TABLE signals (id INTEGER PRIMARY KEY, device TEXT NOT NULL, signal TEXT NOT NULL)"
        )
        self.all = trio.Event()
        self.one: dict[str, trio.Event] = {}

    def publish(self, device: str | None) -> None:
        """Store a signal to one device and answer its held poll, or answer all without storing."""
        if device is not None:
            self._database.execute("INSERT INTO signals (device, signal) VALUES (?, ?)", (device, json.dumps(signal())))
            self.one[device].set()
            return
        waiting, self.one = self.one, {}
        for event in waiting.values():
            event.set()

    async def poll(self, device: str, wait: float) -> tuple[int, bytes, bytes]:
        """Return status, body and ETag."""
        tag = b"%d-0" % int(time.time() * 1000)
        event = self.one[device] = trio.Event()
        with trio.move_on_after(wait):
            await event.wait()
            return 200, json.dumps({"data": {"cursor": tag.decode(), "signals": [signal()]}}).encode(), tag
        return 204, b"", tag


def signal() -> dict[str, Any]:
    """Return a signal of now."""
    return {"type": "cert.renewed", "ts_ms": int(time.time() * 1000), "ref": {"cert_id": 1, "serial": "0" * 40}}


def query_of(raw: bytes) -> dict[str, str]:
    """Return the first value of each field."""
    return {name: values[0] for name, values in parse_qs(raw.decode()).items()}


async def bare(streams: Streams, stream: trio.SSLStream[trio.SocketStream]) -> None:
    """Serve one connection with h11."""
    connection = h11.Connection(h11.SERVER)
    request: h11.Request | None = None
    try:
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                connection.receive_data(await stream.receive_some(16_384))
            elif isinstance(event, h11.Request):
                request = event
            elif isinstance(event, h11.EndOfMessage) and request is not None:
                await stream.send_all(await respond(streams, connection, request))
                connection.start_next_cycle()
            else:
                return
    except (h11.ProtocolError, trio.BrokenResourceError, trio.ClosedResourceError):
        pass
    finally:
        await trio.aclose_forcefully(stream)


async def respond(streams: Streams, connection: h11.Connection, request: h11.Request) -> bytes:
    """Return the bytes of one answer."""
    path, _, raw = request.target.partition(b"?")
    query = query_of(raw)
    status, body, tag = 200, b"{}", b""
    if path.endswith(b"/updates"):
        token = dict(request.headers)[b"authorization"].decode().split()[1]
        status, body, tag = await streams.poll(token, float(query.get("wait", 0)))
    else:
        streams.publish(query.get("device"))
    headers = [(b"cache-control", b"no-store"), (b"date", DATE), (b"etag", tag)]
    if body:
        headers += [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    data = connection.send(h11.Response(status_code=status, headers=headers)) or b""
    data += (connection.send(h11.Data(data=body)) or b"") if body else b""
    return data + (connection.send(h11.EndOfMessage()) or b"")


async def serve_bare(sock: socket.socket, facts: dict[str, Any]) -> None:
    """Serve with h11 on Trio."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(facts["cert"], facts["key"])
    listener = trio.SocketListener(trio.socket.from_stdlib_socket(sock))
    await trio.serve_listeners(
        partial(bare, Streams(facts["database"])), [trio.SSLListener(listener, context, https_compatible=True)]
    )


def starlette_app(streams: Streams) -> Any:
    """Return the same as an application."""
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    async def updates(request: Request) -> Response:
        token = request.headers["authorization"].split()[1]
        status, body, tag = await streams.poll(token, float(request.query_params.get("wait", 0)))
        headers = {"cache-control": "no-store", "date": DATE.decode(), "etag": tag.decode()}
        return Response(body or None, status, headers, "application/json" if body else None)

    async def publish(request: Request) -> Response:
        streams.publish(request.query_params.get("device"))
        return Response(b"{}")

    routes = [Route("/apiv1/devices/self/updates", updates), Route("/publish", publish, methods=["POST"])]
    return Starlette(routes=routes)


async def serve_hypercorn(sock: socket.socket, facts: dict[str, Any]) -> None:
    """Serve with hypercorn and starlette."""
    from hypercorn.config import Config
    from hypercorn.trio import serve

    config = Config()
    config.bind = [f"fd://{sock.fileno()}"]
    config.certfile, config.keyfile, config.alpn_protocols = facts["cert"], facts["key"], ["http/1.1"]
    config.keep_alive_timeout, config.accesslog, config.errorlog = 600, None, None
    config.include_date_header = config.include_server_header = False
    config.backlog, config.keep_alive_max_requests = 4096, 1_000_000
    await serve(starlette_app(Streams(facts["database"])), config)


async def main(kind: str, facts: dict[str, Any]) -> None:
    """Serve until standard input ends."""
    sock = socket.create_server(("127.0.0.1", 0), backlog=4096)
    async with trio.open_nursery() as nursery:
        nursery.start_soon({"bare": serve_bare, "hypercorn": serve_hypercorn}[kind], sock, facts)
        print(sock.getsockname()[1], flush=True)
        await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    trio.run(main, sys.argv[1], json.loads(sys.argv[2]))
