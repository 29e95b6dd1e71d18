"""RequestParser: requests do not depend on how their bytes are split, and what is refused stays refused."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterable

import pytest
from hostile_requests import ALL, GET
from hypothesis import given
from hypothesis import strategies as st

from certctrl.plane.http.parsing import END, LARGEST_HEAD, Refusal, Request, RequestParser

Shown = tuple[object, ...]


class Forgetful(RequestParser):
    """Parses the same bytes again."""

    def _remember(self, data: bytes, before: int) -> None:
        pass


def shown(pieces: Iterable[bytes], kind: type[RequestParser] = RequestParser) -> list[Shown]:
    """Return the events of bytes in a form that can be compared; parts of one body are one."""
    parser, events = kind(), list[Shown]()
    for piece in pieces:
        parser.feed(piece)
        while (event := parser.next_event()) is not None:
            if isinstance(event, Request):
                asks = event.keep_alive, event.expects_100, event.is_websocket
                events.append((event.method, event.target, event.version, tuple(event.headers), *asks))
            elif isinstance(event, bytes):
                before = events.pop()[1] if events[-1][0] == "body" else b""
                assert isinstance(before, bytes)
                events.append(("body", before + event))
            elif isinstance(event, Refusal):
                events.append(("refused", event.status))
            else:
                assert event is END
                events.append(("end",))
    return events


def split_at(data: bytes, places: Iterable[int]) -> list[bytes]:
    ends = [*sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in zip([0, *ends], ends, strict=False)]


TOKENS = st.text("abcXYZ019-_", min_size=1, max_size=12).map(lambda name: f"x-{name}".encode())
VALUES = st.text("abc 019;=\"'\xff\t", max_size=20).map(lambda value: value.strip().encode("latin-1"))
TARGETS = st.text("abc/?=&%20-._~", max_size=30).map(lambda target: f"/{target}".encode())
PLACES = st.lists(st.integers(0, 10_000), max_size=12)


@st.composite
def requests(draw: st.DrawFn) -> tuple[bytes, list[Shown]]:
    """A request as bytes and as events."""
    method, target = draw(st.sampled_from(("GET", "POST", "PUT", "DELETE", "HEAD"))), draw(TARGETS)
    headers = [(b"host", b"x"), *draw(st.lists(st.tuples(TOKENS, VALUES), max_size=6))]
    body, framing = draw(st.binary(max_size=60)), draw(st.sampled_from(("none", "length", "chunked")))
    if framing == "none":
        body, data = b"", b""
    elif framing == "length":
        data = body
        headers.append((b"content-length", b"%d" % len(body)))
    else:
        parts = [part for part in split_at(body, draw(PLACES)) if part]
        extension = draw(st.sampled_from((b"", b";a", b";a=b", b';a="b"')))
        data = b"".join(b"%x%b\r\n%b\r\n" % (len(part), extension, part) for part in parts)
        data += b"0\r\n" + draw(st.sampled_from((b"", b"Trailer: x\r\n"))) + b"\r\n"
        headers.append((b"transfer-encoding", b"chunked"))
    lines = b"".join(draw(st.sampled_from((b"%b: %b\r\n", b"%b:%b \r\n"))) % header for header in headers)
    lower = tuple((name.lower(), value) for name, value in headers)
    events: list[Shown] = [(method, target, "1.1", lower, True, False, False)]
    events += [("body", body)] if body else []
    return b"%b %b HTTP/1.1\r\n%b\r\n%b" % (method.encode(), target, lines, data), [*events, ("end",)]


@given(st.lists(requests(), min_size=1, max_size=5), PLACES)
def test_any_split_of_pipelined_requests_gives_these_requests(
    sent: list[tuple[bytes, list[Shown]]], places: list[int]
) -> None:
    pieces = split_at(b"".join(data for data, _ in sent), places)
    assert shown(pieces) == [event for _, events in sent for event in events]


@given(st.sampled_from(sorted(name for name, row in ALL.items() if len(row[0]) < 2000)), PLACES)
def test_any_split_of_a_hostile_request_gives_the_same(name: str, places: list[int]) -> None:
    data = ALL[name][0]
    assert shown(split_at(data, places)) == shown([data])


@given(st.lists(st.binary(max_size=60), max_size=20))
def test_no_bytes_raise(pieces: list[bytes]) -> None:
    shown(pieces)


@pytest.mark.parametrize("size", [1, 7, 1000, LARGEST_HEAD])
@pytest.mark.parametrize("begin", [GET + b"A: ", b"GET /", b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 50 + b"B"])
def test_a_head_without_end_is_refused_at_the_limit(begin: bytes, size: int) -> None:
    parser = RequestParser()
    parser.feed(begin)
    fed = len(begin)
    while (event := parser.next_event()) is None:
        parser.feed(b"a" * size)
        fed += size
    assert isinstance(event, Refusal)
    assert event.status == 431
    assert LARGEST_HEAD <= fed + 64 <= 2 * LARGEST_HEAD + 512


def test_nothing_follows_a_refusal_and_an_upgrade() -> None:
    refused = RequestParser()
    refused.feed(b"\0")
    assert isinstance(refused.next_event(), Refusal)
    refused.feed(GET + b"\r\n")
    assert refused.next_event() is None
    asked = GET + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    (request, end) = shown([asked + GET + b"\r\n", GET + b"\r\n"])
    assert request[-3:] == (False, False, True)
    assert end == ("end",)


def test_a_head_is_begun_from_its_first_byte_to_its_last() -> None:
    parser = RequestParser()
    states = []
    for byte in b"\r\n" + GET + b"\r\n":
        parser.feed(bytes([byte]))
        states.append(parser.in_head)
    assert states == [False, False, *[True] * (len(states) - 3), False]


def test_a_closed_parser_is_gone_without_the_collector() -> None:
    gc.disable()
    try:
        parser = RequestParser()
        parser.feed(GET)
        parser.close()
        gone = weakref.ref(parser)
        del parser
        assert gone() is None
    finally:
        gc.enable()


# --- requests that repeat ---------------------------------------------------------------------------------------------


@given(st.lists(requests(), min_size=1, max_size=3), PLACES, st.integers(2, 4), st.booleans())
def test_what_is_remembered_changes_no_event(
    sent: list[tuple[bytes, list[Shown]]], places: list[int], times: int, each: bool
) -> None:
    pieces = split_at(b"".join(data for data, _ in sent), places)
    if each:
        repeated = [piece for piece in pieces for _ in range(times)]
        assert shown(repeated) == shown(repeated, Forgetful)
    else:
        assert shown(pieces * times) == [event for _, events in sent * times for event in events]


@given(st.lists(st.sampled_from(sorted(name for name, row in ALL.items() if len(row[0]) < 2000)), max_size=2), PLACES)
def test_what_is_remembered_changes_no_event_of_a_hostile_request(names: list[str], places: list[int]) -> None:
    pieces = [POLL, *split_at(b"".join(ALL[name][0] for name in names), places), POLL]
    assert shown(pieces * 2) == shown(pieces * 2, Forgetful)


POLL = GET + b"Authorization: Bearer a\r\n\r\n"
OTHER = GET + b"Authorization: Bearer b\r\n\r\n"
UPGRADE = GET + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n"


def requests_in(*pieces: bytes) -> list[Request]:
    parser, found = RequestParser(), []
    for piece in pieces:
        parser.feed(piece)
        while (event := parser.next_event()) is not None:
            found += [event] if isinstance(event, Request) else []
    return found


def test_a_request_of_the_same_bytes_is_the_same() -> None:
    first, second, other, back = requests_in(POLL, POLL, OTHER, POLL)
    assert first is second
    assert len({id(first), id(other), id(back)}) == 3, "only the last one is remembered"
    assert dict(other.headers)[b"authorization"] == b"Bearer b"


@pytest.mark.parametrize(
    "pieces",
    [
        (POLL[:9], POLL[9:]) * 2, (POLL + POLL,) * 2, (POLL + POLL[:-1], POLL[-1:]), (POLL + b"G", POLL[1:]),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\na",) * 2,
        (POLL[:-2] + b"Expect: 100-continue\r\n\r\n",) * 2, (POLL[:-2] + b"A: " + b"a" * 2048 + b"\r\n\r\n",) * 2,
    ],
)  # fmt: skip
def test_no_other_request_is_remembered(pieces: tuple[bytes, ...]) -> None:
    found = requests_in(*pieces)
    assert len({id(request) for request in found}) == len(found) >= 2


@pytest.mark.parametrize("last", [UPGRADE, POLL[:-2] + b"Connection: close\r\n\r\n", POLL.replace(b"1.1", b"1.0")])
def test_nothing_follows_the_last_request_if_it_repeats(last: bytes) -> None:
    assert shown([POLL, last, last]) == shown([POLL, last, last], Forgetful)
    assert len({id(request) for request in requests_in(POLL, last, last)}) == len(requests_in(POLL, last, last))
