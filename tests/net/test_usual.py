"""The usual request and answer: what is recognised without a parser means the same to h11."""

from __future__ import annotations

import h11
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from certctrl.net.usual import usual_head, usual_request

ANSWER = b"HTTP/1.1 200 OK\r\ndate: today\r\nContent-Length: 2\r\n\r\n{}"
REQUEST = h11.Request(method="GET", target="/", headers=[("host", "plane.test")])


def seen_by_h11(data: bytes) -> tuple[int, list[tuple[bytes, bytes]], bytes, bool] | None:
    """Return status, headers, body, and whether the connection can be used again; None if it is no whole answer."""
    parser = h11.Connection(h11.CLIENT)
    parser.send(REQUEST)
    parser.send(h11.EndOfMessage())
    parser.receive_data(data)
    body = b""
    try:
        head = parser.next_event()
        if not isinstance(head, h11.Response):
            return None
        while isinstance(event := parser.next_event(), h11.Data):
            body += event.data
    except h11.RemoteProtocolError:
        return None
    if not isinstance(event, h11.EndOfMessage):
        return None
    may_follow = {parser.our_state, parser.their_state} == {h11.DONE} and not any(parser.trailing_data)
    return head.status_code, list(head.headers.raw_items()), body, may_follow


NAMES = st.sampled_from(
    [b"Content-Length", b"content-length", b"Transfer-Encoding", b"Connection", b"ETag", b"x", b"", b"a b", b"Upgrade"]
)
VALUES = st.sampled_from(
    [b"2", b"0", b"02", b"+2", b"2, 2", b"3", b"", b"chunked", b"close", b"keep-alive", b"Keep-Alive, close", b'"tag"',
     b" a  b ", b"\xe9", b"a\tb", b"a\x00", b"h2c", b"9" * 30]
)  # fmt: skip
LINES = st.builds(
    lambda name, colon, value, end: name + colon + value + end,
    NAMES, st.sampled_from([b": ", b":", b" : ", b":  "]), VALUES, st.sampled_from([b"\r\n", b"\r\n", b"\n", b"\r\n "]),
)  # fmt: skip
FIRST = st.sampled_from(
    [b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 \r\n", b"HTTP/1.1 200\r\n", b"HTTP/1.0 200 OK\r\n", b"HTTP/1.1 204 No\r\n",
     b"HTTP/1.1 304 Same\r\n", b"HTTP/1.1 100 Go\r\n", b"HTTP/1.1 101 Switch\r\n", b"HTTP/1.1 599 \xe9\r\n",
     b"HTTP/1.1 0200 OK\r\n", b"http/1.1 200 OK\r\n", b"HTTP/1.1 404 Not Found\n"]
)  # fmt: skip
ANSWERS = st.builds(
    lambda first, lines, end, body: first + b"".join(lines) + end + body,
    FIRST, st.lists(LINES, max_size=4), st.sampled_from([b"\r\n", b"\n", b""]), st.sampled_from([b"", b"{}", b"{}{}"]),
)  # fmt: skip


@given(ANSWERS)
@example(ANSWER)
def test_a_recognised_answer_is_the_one_that_h11_sees(data: bytes) -> None:
    head = usual_head(data)
    if head is None:
        return
    seen, rest = seen_by_h11(data), data[head.size :]
    if len(rest) < head.length:
        assert seen is None
        return
    assert seen == (head.status, head.headers, rest[: head.length], len(rest) == head.length)


@pytest.mark.parametrize("data", [
    ANSWER,
    ANSWER.replace(b"date: today", b"Connection: keep-alive"),
    ANSWER.replace(b"date: today", b"x:"),
    b"HTTP/1.1 204 No Content\r\nServer: x\r\n\r\n",
    b"HTTP/1.1 304 Not Modified\r\nContent-Length: 500\r\nETag: \"a\"\r\n\r\n",
], ids=["length", "keep-alive", "an empty value", "204", "304"])  # fmt: skip
def test_answers_of_planes_and_proxies_are_recognised(data: bytes) -> None:
    assert usual_head(data) is not None
    assert seen_by_h11(data) is not None


@pytest.mark.parametrize("size", range(len(ANSWER) - 2))
def test_a_head_that_is_not_whole_is_not_recognised(size: int) -> None:
    assert usual_head(ANSWER[:size]) is None


def test_a_long_head_is_not_searched_to_its_end() -> None:
    assert usual_head(ANSWER.replace(b"today", b"y" * 65_536)) is None


HEADERS = st.lists(
    st.tuples(
        st.sampled_from([b"host", b"Host", b"etag", b"content-length", b"transfer-encoding", b"connection", b"a b", b""]),
        st.sampled_from([b"plane.test", b"2", b"0", b"chunked", b"close", b"a\r\nb: c", b"a\nb", b"", b" a", b"\xe9", b"a\x00"]),
    ),
    max_size=4,
)  # fmt: skip


@given(
    st.sampled_from([b"GET", b"POST", b"HEAD", b"CONNECT", b"G T", b""]),
    st.sampled_from([b"/", b"/a?b=c", b"/a b", b"", b"/a\r\nb: c", b"x"]),
    HEADERS,
    st.sampled_from([b"", b"{}"]),
)
@example(b"POST", b"/a", [(b"host", b"plane.test"), (b"content-length", b"2")], b"{}")
@example(b"GET", b"/a", [(b"host", b"plane.test"), (b"authorization", b"Bearer x")], b"")
@example(b"GET", b"/a", [(b"host", b"plane.test"), (b"etag", b"a\r\nb: c")], b"")
@example(b"POST", b"/a HTTP/1.1\r\nb: c", [(b"host", b"plane.test")], b"")
def test_a_recognised_request_is_the_one_that_h11_sends(
    method: bytes, target: bytes, headers: list[tuple[bytes, bytes]], body: bytes
) -> None:
    found = usual_request(method, target, headers, body)
    if found is None:
        return
    parser, server = h11.Connection(h11.CLIENT), h11.Connection(h11.SERVER)
    request = h11.Request(method=method, target=target, headers=headers)
    sent = [request, *([h11.Data(data=body)] if body else []), h11.EndOfMessage()]
    assert sorted(found.split(b"\r\n")) == sorted(b"".join(parser.send(one) or b"" for one in sent).split(b"\r\n"))
    server.receive_data(found)
    seen = server.next_event()
    assert isinstance(seen, h11.Request) and (seen.method, seen.target) == (method, target)


def test_requests_of_the_agent_are_recognised() -> None:
    headers = [(b"host", b"plane.test:8443"), (b"if-none-match", b'"abc"'), (b"authorization", b"Bearer a.b-c_d")]
    assert usual_request(b"GET", b"/apiv1/devices/self/updates?wait=25", headers, b"") is not None
    assert usual_request(b"POST", b"/apiv1", [*headers, (b"content-length", b"2")], b"{}") is not None
