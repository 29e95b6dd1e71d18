"""serve_metrics: a small listener for Prometheus that answers only ``GET /metrics``."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import h11
import trio

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
REQUEST_SECONDS = 5.0
CONNECTIONS = 16  # a scraper needs one
LARGEST_REQUEST = 16 * 1024


async def serve_metrics(
    host: str,
    port: int,
    text: Callable[[], Awaitable[bytes]],
    ready: Callable[[str], None] = lambda _address: None,
    *,
    task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Answer scrapes until cancelled; ``started`` with the bound port. Raises OSError if it cannot bind."""
    listeners = await trio.open_tcp_listeners(port, host=host)
    bound = listeners[0].socket.getsockname()[1]
    ready(f"[{host}]:{bound}" if ":" in host else f"{host}:{bound}")
    task_status.started(bound)
    await answer_scrapes(listeners, text)


async def answer_scrapes(listeners: list[trio.SocketListener], text: Callable[[], Awaitable[bytes]]) -> None:
    """Answer scrapes at these listeners until cancelled."""
    limiter = trio.CapacityLimiter(CONNECTIONS)

    async def answer(stream: trio.SocketStream) -> None:
        async with limiter, stream:
            with trio.move_on_after(REQUEST_SECONDS):
                try:
                    await _answer(stream, text)
                except (trio.BrokenResourceError, trio.ClosedResourceError, h11.RemoteProtocolError):
                    return

    async with trio.open_nursery() as nursery:
        await trio.serve_listeners(answer, listeners, handler_nursery=nursery)


async def _answer(stream: trio.SocketStream, text: Callable[[], Awaitable[bytes]]) -> None:
    """Answer one request and close; keep-alive would not help rare scrapes."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=LARGEST_REQUEST)
    while (event := connection.next_event()) is h11.NEED_DATA:
        connection.receive_data(await stream.receive_some(4096))
    if not isinstance(event, h11.Request):
        return
    path = event.target.partition(b"?")[0]
    status, body = 200, b""
    if event.method not in (b"GET", b"HEAD"):
        status, body = 405, b"only GET\n"
    elif path != b"/metrics":
        status, body = 404, b"only /metrics\n"
    else:
        body = await text()
    headers = [
        ("Content-Type", CONTENT_TYPE),
        ("Content-Length", str(len(body))),
        ("Connection", "close"),
        ("Cache-Control", "no-store"),
    ]
    data = connection.send(h11.Response(status_code=status, headers=headers))
    if event.method != b"HEAD":
        data = (data or b"") + (connection.send(h11.Data(body)) or b"")
    await stream.send_all(data or b"")
