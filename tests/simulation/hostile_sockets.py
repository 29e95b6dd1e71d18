"""What a hostile or broken plane may say on a push socket: one entry per kind.

Each is a function of what the honest plane has said (a text, or the end) and returns what arrives instead of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from simulation.hostile_planes import HUGE, WRONG, by_turns

from certctrl.net.stream import Closed
from certctrl.protocol.wire import push as wire

Meddle = Callable[[Any], list[Any]]
CODES = (1000, 1001, 1002, 1003, 1005, 1006, 1007, 1008, 1009, 1011, 1012, 1013, 1015, 3000, 4000, 4401, 4409, 4999)
REASONS = ("", "x" * 123, '{"retry_after": 1}', '{"retry_after": -1}', '{"retry_after": "soon"}', "[[", "\N{SNOWMAN}\n")


def instead_of(kind: str, change: Callable[[dict[str, Any]], list[Any]]) -> Meddle:
    """Return a change of the messages of one type into others: objects, texts or ends."""

    def meddle(received: object) -> list[Any]:
        message = json.loads(received) if isinstance(received, str) else {}
        if message.get("type") != kind:
            return [received]
        return [json.dumps(one) if isinstance(one, dict) else one for one in change(message)]

    return meddle


def pages(change: Callable[[dict[str, Any]], list[Any]]) -> Meddle:
    return instead_of(wire.SIGNALS, change)


def with_data(message: dict[str, Any], **data: object) -> dict[str, Any]:
    return message | {"data": message["data"] | data}


def error(status: object, key: str = "", **more: object) -> dict[str, Any]:
    body = {"code": status, "what": "simulated", "key": key, "params": more}
    return {"type": wire.ERROR, "data": {"status": status, "error": body}}


def of_pages() -> dict[str, Meddle]:
    strange, numbers = by_turns(WRONG), iter(range(10**9))
    one = {"type": "cert.renewed", "ts_ms": 1, "ref": {"cert_id": 10**6}}
    return {
        "each page twice": pages(lambda m: [m, m]),
        "another page before the ack of the last one": pages(lambda m: [m, with_data(m, cursor="9-9") | {"id": "9-9"}]),
        "a page without signals": pages(lambda m: [with_data(m, signals=[])]),
        "a page without a cursor": pages(lambda m: [{"type": m["type"], "data": {"signals": m["data"]["signals"]}}]),
        "cursors of wrong types": pages(lambda m: [with_data(m, cursor=strange()) | {"id": strange()}]),
        "cursors that the plane does not know": pages(
            lambda m: [with_data(m, cursor=f"7-{next(numbers)}") | {"id": "7"}]
        ),
        "signals of wrong types": pages(lambda m: [with_data(m, signals=strange())]),
        "pages of wrong types": pages(lambda m: [m | {"data": strange()}]),
        "1 001 signals in a page": pages(lambda m: [with_data(m, signals=[one] * 1001)]),
        "a thousand invented signals in a page": pages(
            lambda m: [with_data(m, signals=[*m["data"]["signals"], *({"type": "k", "ts_ms": n} for n in range(990))])]
        ),
        "there is always more": pages(lambda m: [with_data(m, more=True)]),
    }


def of_answers() -> dict[str, Meddle]:
    strange = by_turns(WRONG)
    statuses = by_turns((400, 401, 403, 404, 409, 410, 429, 500, 503, 599, 0, -1, 10**9, "503", None))
    return {
        "no greeting": instead_of(wire.HELLO_ACK, lambda m: []),
        "greetings of wrong types": instead_of(
            wire.HELLO_ACK, lambda m: [m | {"data": {"resume_token": strange(), "ping_seconds": strange()}}]
        ),
        "a ping each nanosecond": instead_of(wire.HELLO_ACK, lambda m: [with_data(m, ping_seconds=1e-9)]),
        "a ping each million years": instead_of(wire.HELLO_ACK, lambda m: [with_data(m, ping_seconds=3e13)]),
        "a hundred greetings": instead_of(wire.HELLO_ACK, lambda m: [m] * 100),
        "each hello is refused": instead_of(wire.HELLO_ACK, lambda m: [error(statuses(), "TROUBLE")]),
        "each cursor has expired": instead_of(wire.HELLO_ACK, lambda m: [error(409, "CURSOR_EXPIRED")]),
        "each token has expired": instead_of(wire.HELLO_ACK, lambda m: [error(401, "TOKEN_EXPIRED")]),
        "each hello is too much, for nearly ever": instead_of(
            wire.HELLO_ACK, lambda m: [error(429, "RATE_LIMITED", retry_after=HUGE)]
        ),
        "errors of wrong types": pages(lambda m: [m, {"type": wire.ERROR, "id": "1", "data": strange()}]),
        "errors that nothing asked for": pages(lambda m: [m, *[error(statuses()) | {"id": "x"} for _ in range(50)]]),
        "outcomes are never confirmed": instead_of(wire.OUTCOMES_ACK, lambda m: []),
        "outcomes are refused": instead_of(wire.OUTCOMES_ACK, lambda m: [error(statuses()) | {"id": m["id"]}]),
        "other outcomes are confirmed": instead_of(wire.OUTCOMES_ACK, lambda m: [m | {"id": str(n)} for n in "ax1"]),
    }


def of_the_rest() -> dict[str, Meddle]:
    strange, codes, reasons = by_turns(WRONG), by_turns(CODES), by_turns(REASONS)
    names = by_turns(("status", "doctor", "plan", "history", "rm -rf /", *WRONG))
    junk = by_turns(("", "{", "[]", "7", "null", '"x"', "{}", '{"type": 1}', "[" * 5000, '{"type": "\\ud800"}'))

    def question(number: int) -> dict[str, Any]:
        return {"type": wire.QUESTION, "id": f"q{number}", "data": {"question": names(), "expires_ms": strange()}}

    return {
        "texts that are not messages": pages(lambda m: [junk()]),
        "types and ids of wrong types": pages(lambda m: [m | {"type": strange(), "id": strange()}]),
        "unknown messages by the hundred": pages(
            lambda m: [*[{"type": f"new.{n}", "id": "1", "data": [n]} for n in range(300)], m]
        ),
        "messages that only an agent sends": pages(
            lambda m: [*[m | {"type": one} for one in (wire.HELLO, wire.ACK, wire.OUTCOMES, wire.TOKEN)], m]
        ),
        "a text of a megabyte": pages(lambda m: [with_data(m, padding="x" * 1_000_000)]),
        "the socket is closed with each code": pages(lambda m: [Closed(codes(), reasons())]),
        "the socket is closed after each greeting": instead_of(wire.HELLO_ACK, lambda m: [m, Closed(1006)]),
        "the socket is closed as that of an expired token": instead_of(wire.HELLO_ACK, lambda m: [m, Closed(4401)]),
        "a restart that takes nearly forever": pages(lambda m: [Closed(1012, '{"retry_after": 1e300}')]),
        "hundreds of questions": pages(lambda m: [*map(question, range(200)), m]),
    }


SOCKET_CASES: dict[str, Callable[[], dict[str, Meddle]]] = {
    "pages on a socket": of_pages,
    "answers on a socket": of_answers,
    "messages on a socket": of_the_rest,
}
