"""Answer a certificate authority over HTTP, for as long as it may ask (RFC 8555, section 8.3)."""

from __future__ import annotations

from collections.abc import Callable

import h11
import trio

from certctrl.model.challenges import WELL_KNOWN

REQUEST_SECONDS = 10.0
CONNECTIONS = 64
LARGEST_REQUEST = 16 * 1024
LARGEST_ANSWER = 1024


async def listen_http01(
    host: str | None,
    port: int,
    find: Callable[[str], str | None],
    *,
    task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Answer with the key authorizations that ``find`` returns for tokens, until cancelled.

    ``host`` None: all addresses. More than ``CONNECTIONS`` clients at once are turned away. ``started`` with the bound
    port. Raises OSError if it cannot bind.
    """
    listeners = await trio.open_tcp_listeners(port, host=host)
    task_status.started(listeners[0].socket.getsockname()[1])
    served = 0

    async def answer(stream: trio.SocketStream) -> None:
        nonlocal served
        if served >= CONNECTIONS:
            await trio.aclose_forcefully(stream)
            return
        served += 1
        try:
            async with stream:
                with trio.move_on_after(REQUEST_SECONDS):
                    await _answer(stream, find)
        except (trio.BrokenResourceError, trio.ClosedResourceError, h11.RemoteProtocolError):
            return
        finally:
            served -= 1

    async with trio.open_nursery() as nursery:
        await trio.serve_listeners(answer, listeners, handler_nursery=nursery)


async def _answer(stream: trio.SocketStream, find: Callable[[str], str | None]) -> None:
    """Answer one request and close."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=LARGEST_REQUEST)
    while (event := connection.next_event()) is h11.NEED_DATA:
        connection.receive_data(await stream.receive_some(4096))
    if not isinstance(event, h11.Request):
        return
    status, body = _answer_to(event, find)
    headers = [
        ("Content-Type", "application/octet-stream"),
        ("Content-Length", str(len(body))),
        ("Connection", "close"),
        ("Cache-Control", "no-store"),
    ]
    data = connection.send(h11.Response(status_code=status, headers=headers)) or b""
    if event.method != b"HEAD":
        data += connection.send(h11.Data(body)) or b""
    await stream.send_all(data)


def _answer_to(request: h11.Request, find: Callable[[str], str | None]) -> tuple[int, bytes]:
    if request.method not in (b"GET", b"HEAD"):
        return 405, b""
    path = request.target.decode("ascii", "replace")
    found = find(path.removeprefix(WELL_KNOWN)) if path.startswith(WELL_KNOWN) else None
    return (404, b"") if found is None else (200, found.encode("ascii"))
