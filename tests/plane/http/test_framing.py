"""ResponseFraming: length, chunks or the end of the connection, and no way out of a header."""

from __future__ import annotations

import h11
import pytest

from certctrl.plane.http.framing import CONTINUE, ResponseFraming, refusal

TEXT = (b"content-type", b"text/plain")


def framed(
    *parts: bytes,
    method: str = "GET",
    version: str = "1.1",
    status: int = 200,
    headers: tuple[tuple[bytes, bytes], ...] = (),
    keep_alive: bool = True,
) -> tuple[bytes, bool]:
    """Return the bytes of a response with these parts, and whether the connection may stay open."""
    framing = ResponseFraming(method, version, keep_alive=keep_alive)
    first, *rest = parts
    data = framing.first(status, headers, first, is_last=not rest)
    for number, part in enumerate(rest, 1):
        data += framing.part(part, is_last=number == len(rest))
    return data, framing.keep_alive


@pytest.mark.parametrize("headers", [(), (TEXT,), (TEXT, (b"content-length", b"6"))])
@pytest.mark.parametrize("parts", [(b"abcdef",), (b"abc", b"def"), (b"", b"abcdef", b""), (b"abcdef", b"")])
@pytest.mark.parametrize(("method", "status"), [("GET", 200), ("HEAD", 200), ("GET", 404)])
@pytest.mark.parametrize("version", ["1.1", "1.0"])
def test_another_library_reads_the_same_response(
    headers: tuple[tuple[bytes, bytes], ...], parts: tuple[bytes, ...], method: str, status: int, version: str
) -> None:
    data, keep_alive = framed(*parts, method=method, status=status, headers=headers, version=version)
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method=method, target="/", headers=[("host", "x")]))
    client.send(h11.EndOfMessage())
    client.receive_data(data)
    response = client.next_event()
    assert isinstance(response, h11.Response)
    assert response.status_code == status
    assert set(headers) <= set(response.headers)
    body = b""
    if not keep_alive:
        client.receive_data(b"")
    while not isinstance(event := client.next_event(), h11.EndOfMessage):
        assert isinstance(event, h11.Data)
        body += bytes(event.data)
    assert body == (b"" if method == "HEAD" else b"abcdef")
    assert (client.their_state is h11.DONE) == keep_alive
    assert client.trailing_data[0] == b""


@pytest.mark.parametrize("status", [204, 304])
def test_answers_without_body_have_none(status: int) -> None:
    etag = (b"etag", b'"1"')
    data, keep_alive = framed(b"", status=status, headers=(etag,))
    assert data == b'HTTP/1.1 %d \r\netag: "1"\r\n\r\n' % status
    assert keep_alive
    assert framed(b"text", status=status)[0] == b"HTTP/1.1 %d \r\n\r\n" % status


def test_either_side_can_end_the_connection() -> None:
    ended = b"HTTP/1.1 204 \r\nconnection: close\r\n\r\n"
    assert framed(b"", status=204, keep_alive=False) == (ended, False)
    assert framed(b"", status=204, headers=((b"connection", b"Close"),)) == (ended.replace(b"close", b"Close"), False)
    assert framed(b"", status=204, headers=((b"connection", b"close"),), keep_alive=False) == (ended, False)


@pytest.mark.parametrize("value", [b"a\r\nb: c", b"a\nb: c", b"a\rb", b"a\0b", b"\r\n\r\nHTTP/1.1 200 \r\n"])
def test_no_value_leaves_its_header(value: bytes) -> None:
    for headers in (((b"x-user", value),), ((value, b"x"),)):
        with pytest.raises(ValueError, match="a header contains"):
            framed(b"", headers=headers)


@pytest.mark.parametrize("parts", [(b"abc",), (b"abcdefg",), (b"abcd", b"efg"), (b"abc", b"de"), (b"abc", b"")])
def test_a_body_that_does_not_fit_its_length_is_an_error(parts: tuple[bytes, ...]) -> None:
    with pytest.raises(ValueError, match="does not fit"):
        framed(*parts, headers=((b"content-length", b"6"),))


def test_refusals_end_the_connection() -> None:
    assert refusal(431) == b"HTTP/1.1 431 \r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
    assert CONTINUE == b"HTTP/1.1 100 \r\n\r\n"
