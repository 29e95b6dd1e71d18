"""Bodies of requests that the server does not read to their end."""

from __future__ import annotations

import gc
import socket
import struct
import warnings
from collections.abc import Iterator

import pytest
import trio

from certctrl.errors import DeadlineError, TransportError

CAP = 1 << 20
BODY = {"text": "x" * (8 << 20)}
"""More than the buffers of two sockets can hold."""


@pytest.fixture(autouse=True)
def no_leak() -> Iterator[None]:
    """Fail if an async generator is left to the garbage collector."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
        gc.collect()
    assert not [str(one.message) for one in caught if "enerator" in str(one.message)]


async def answering(nursery: trio.Nursery, answer: bytes) -> str:
    """Return the URL of a server that reads nothing of a body: it answers early and resets the connection."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")

    async def serve(stream: trio.SocketStream) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            head += await stream.receive_some(1024)
        await stream.send_all(answer)
        if not answer:
            await trio.sleep_forever()
        stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await trio.aclose_forcefully(stream)

    nursery.start_soon(trio.serve_listeners, serve, [listener])
    return f"http://127.0.0.1:{listener.socket.getsockname()[1]}"


async def test_a_server_that_answers_before_it_has_read_the_body(connect, nursery: trio.Nursery) -> None:
    url = await answering(nursery, b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")
    http = connect(url, allow_http_loopback=True, ca_files=())
    try:
        answer = await http.request("POST", "/", json=BODY, deadline=60, cap=CAP)
    except TransportError:
        pass  # the reset may overtake the answer
    else:
        assert answer.status == 413


async def test_a_server_that_reads_no_body_in_time(connect, nursery: trio.Nursery) -> None:
    url = await answering(nursery, b"")
    http = connect(url, allow_http_loopback=True, ca_files=())
    with pytest.raises(DeadlineError):
        await http.request("POST", "/", json=BODY, deadline=0.5, cap=CAP)
