"""Answer http-01 challenges of certificate authorities (RFC 8555, section 8.3)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import h11
import trio

from certctrl.model.challenges import WELL_KNOWN
from certctrl.net.admission import Admission, Place, peer_of

HEAD_SECONDS = 5.0
"""For a client to send the head of its request."""
REQUEST_SECONDS = 10.0
"""For the whole request."""
CONNECTIONS = 64
CONNECTIONS_PER_ADDRESS = 16
LARGEST_REQUEST = 16 * 1024
LARGEST_ANSWER = 1024
_LINGER_SECONDS = 0.5

Respond = Callable[[str], Awaitable[tuple[int, bytes]]]
"""Returns status and body of the answer for a token."""


async def listen_http01(
    host: str | None,
    port: int,
    find: Callable[[str], str | None],
    *,
    task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Answer with the key authorizations that ``find`` returns for tokens, until cancelled.

    ``host`` None: all addresses. Connections are limited as ``Admission`` says. ``started`` with the bound port. Raises
    OSError if it cannot bind.
    """

    async def respond(token: str) -> tuple[int, bytes]:
        found = find(token)
        return (404, b"") if found is None else (200, found.encode("ascii"))

    listeners = await trio.open_tcp_listeners(port, host=host)
    task_status.started(listeners[0].socket.getsockname()[1])
    await answer_http01(listeners, respond, connections=CONNECTIONS, per_address=CONNECTIONS_PER_ADDRESS)


async def answer_http01(
    listeners: Sequence[trio.SocketListener], respond: Respond, *, connections: int, per_address: int
) -> None:
    """Answer at these listeners until cancelled; disconnect clients beyond the limits, in total and per address."""
    admission = Admission(connections, per_address)

    async def answer(stream: trio.SocketStream) -> None:
        try:
            with admission.admitted(peer_of(stream)) as place:
                if place is not None:
                    with trio.move_on_after(REQUEST_SECONDS):
                        await _answer(stream, respond, place)
        except (trio.BrokenResourceError, trio.ClosedResourceError, h11.RemoteProtocolError):
            return
        finally:
            await trio.aclose_forcefully(stream)

    async with trio.open_nursery() as nursery:
        await trio.serve_listeners(answer, list(listeners), handler_nursery=nursery)


async def _answer(stream: trio.SocketStream, respond: Respond, place: Place) -> None:
    """Answer one request and close."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=LARGEST_REQUEST)
    event: object = h11.NEED_DATA
    with trio.move_on_after(HEAD_SECONDS):
        while (event := connection.next_event()) is h11.NEED_DATA:
            connection.receive_data(await stream.receive_some(4096))
    if not isinstance(event, h11.Request):
        return
    place.is_idle = False
    status, body = await _answer_to(event, respond)
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
    await stream.send_eof()
    place.is_idle = True
    with trio.move_on_after(_LINGER_SECONDS):  # a reset would discard what the client has not read yet
        await stream.receive_some(1)


async def _answer_to(request: h11.Request, respond: Respond) -> tuple[int, bytes]:
    if request.method not in (b"GET", b"HEAD"):
        return 405, b""
    path = request.target.decode("ascii", "replace")
    return await respond(path.removeprefix(WELL_KNOWN)) if path.startswith(WELL_KNOWN) else (404, b"")
