"""What a hostile or broken plane may answer to the newer requests: one entry per kind, by the feature that it abuses.

Each is a function of a request and the honest answer. `test_hostile_planes.py` runs the whole agent against each for a
while: it must live, keep what it serves, and converge as soon as the plane is honest again.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import attrs
from simulation.network import MATERIALS_PATH, REFRESH_PATH, Exchange, error_body

from certctrl.model.answer import Answer
from certctrl.net.http import json_bytes

Tamper = Callable[[Exchange, Answer], Answer]
HUGE = 10**9
WRONG: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    1.5,
    10**30,
    "",
    "x",
    "\0",
    "x" * 70_000,
    [],
    [[]],
    {},
    {"a": {"b": []}},
    [None],
)
"""Values of wrong types and sizes for any field."""


def only(wanted: Callable[[Exchange], bool], change: Tamper) -> Tamper:
    """Return a change of some answers."""
    return lambda exchange, answer: change(exchange, answer) if wanted(exchange) else answer


def with_body(answer: Answer, body: object, status: int = 200, **headers: str) -> Answer:
    """Return an answer with another body, as JSON."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    kept = {name: value for name, value in answer.headers.items() if name not in ("content-length",)}
    return attrs.evolve(
        answer, status=status, body=json_bytes(body), headers={**kept, "content-type": "application/json", **named}
    )


def in_data(change: Callable[[Any], Any]) -> Tamper:
    """Return a change of the ``data`` of successful answers."""

    def changed(_: Exchange, answer: Answer) -> Answer:
        if answer.status != 200 or not answer.body:
            return answer
        body = json.loads(answer.body)
        return with_body(answer, body | {"data": change(body.get("data"))})

    return changed


def in_pages(change: Callable[[list[dict[str, Any]]], list[Any]]) -> Tamper:
    """Return a change of the signals of each page, all together."""

    def changed(data: object) -> Any:
        return data | {"signals": change(data["signals"])} if isinstance(data, dict) and "signals" in data else data

    return in_data(changed)


def in_signals(change: Callable[[int, dict[str, Any]], Any]) -> Tamper:
    """Return a change of each signal of a page."""

    def changed(data: object) -> Any:
        if not isinstance(data, dict) or "signals" not in data:
            return data
        return data | {"signals": [change(number, one) for number, one in enumerate(data["signals"])]}

    return in_data(changed)


def polls(change: Tamper) -> Tamper:
    return only(lambda exchange: exchange.is_poll, change)


def looks(change: Tamper) -> Tamper:
    return only(lambda exchange: exchange.is_look, change)


def materials(change: Tamper) -> Tamper:
    return only(lambda exchange: exchange.path.endswith(MATERIALS_PATH) and exchange.method == "POST", change)


def refreshes(change: Tamper) -> Tamper:
    return only(lambda exchange: exchange.path == REFRESH_PATH, change)


def by_turns(values: tuple[Any, ...]) -> Callable[[], Any]:
    """Return a function that returns one value after the other, again and again."""
    count = iter(range(10**9))
    return lambda: values[next(count) % len(values)]


# --- priorities ------------------------------------------------------------------------------------------------------


def priorities() -> dict[str, Tamper]:
    strange = by_turns(("urgent", "REVOCATION", *WRONG))
    numbers = iter(range(1, 10**9))

    def invented(kind: str, count: int) -> Tamper:
        def made(exchange: Exchange, answer: Answer) -> Answer:
            ts = int(exchange.sent_at * 1000) + 1_790_000_000_000
            signals = [{"type": kind, "ts_ms": ts, "ref": {"cert_id": 10**6 + next(numbers)}} for _ in range(count)]
            return with_body(answer, {"data": {"cursor": "1-1", "signals": signals}}, etag='"1-1"')

        return made

    return {
        "unknown classes, and classes of wrong types": polls(in_signals(lambda n, one: one | {"priority": strange()})),
        "all signals are revocations by class": polls(in_signals(lambda n, one: one | {"priority": "revocation"})),
        "all signals are configuration by class": polls(in_signals(lambda n, one: one | {"priority": "config"})),
        "a look ahead shows other classes than asked for": looks(invented("cert.renewed", 50)),
        "a look ahead shows a thousand invented revocations, each time others": looks(invented("cert.revoked", 1000)),
        "a look ahead shows more signals than a page may have": looks(invented("cert.revoked", 1001)),
        "a look ahead moves the cursor": looks(
            lambda exchange, answer: with_body(answer, {"data": {"cursor": "9-9", "signals": []}}, etag='"9-9"')
        ),
        "a look ahead is malformed": looks(
            lambda exchange, answer: with_body(answer, {"data": {"cursor": strange(), "signals": strange()}})
        ),
        "a look ahead says that the device is revoked": looks(
            lambda exchange, answer: Answer(
                403, {"content-type": "application/json"}, error_body(4003, "DEVICE_REVOKED")
            )
        ),
        "a look ahead says that the cursor expired": looks(
            lambda exchange, answer: Answer(
                409, {"content-type": "application/json"}, error_body(40901, "CURSOR_EXPIRED")
            )
        ),
        "a look ahead is not there": looks(
            lambda exchange, answer: Answer(404, {"content-type": "application/json"}, error_body(404, "NOT_FOUND"))
        ),
        "a look ahead asks for long pauses": looks(
            lambda exchange, answer: attrs.evolve(answer, headers={**answer.headers, "retry-after": str(HUGE)})
        ),
    }


# --- batch fetch -----------------------------------------------------------------------------------------------------


def batch_fetch() -> dict[str, Tamper]:
    def rows(change: Callable[[list[Any]], Any]) -> Tamper:
        return materials(in_data(lambda data: change(data) if isinstance(data, list) else data))

    def each(change: Callable[[dict[str, Any]], Any]) -> Tamper:
        return rows(lambda found: [change(one) for one in found])

    strange = by_turns(WRONG)
    other = {"code": 404, "what": "x", "key": "NOT_FOUND"}
    return {
        "material in another order": rows(lambda found: found[::-1]),
        "material is missing": rows(lambda found: found[::2]),
        "no material at all": rows(lambda found: []),
        "each material twice": rows(lambda found: found + found),
        "a thousand times the same material": rows(lambda found: found[:1] * 1000),
        "material of certificates that nobody asked for": each(lambda one: one | {"cert_id": one["cert_id"] + 10**6}),
        "material of one certificate under the id of another": rows(
            lambda found: [a | {"data": b.get("data")} for a, b in zip(found, found[1:] + found[:1], strict=True)]
        ),
        "ids of wrong types": each(lambda one: one | {"cert_id": strange()}),
        "statuses of wrong types": each(lambda one: one | {"status": strange()}),
        "items of wrong types": each(lambda one: strange()),
        "data of wrong types": each(lambda one: {**one, "status": 200, "data": strange()}),
        "errors of wrong types": each(lambda one: {"cert_id": one["cert_id"], "status": 409, "error": strange()}),
        "both data and an error": each(lambda one: one | {"error": other}),
        "always full": each(
            lambda one: {"cert_id": one["cert_id"], "status": 503, "error": other | {"key": "ANSWER_FULL"}}
        ),
        "all items are gone": each(lambda one: {"cert_id": one["cert_id"], "status": 404, "error": other}),
        "the list is of a wrong type": materials(in_data(lambda data: strange())),
        "an item of 300 KiB": each(lambda one: one | {"padding": "x" * 300_000}),
        "an answer of 8 MiB": materials(lambda exchange, answer: with_body(answer, {"data": ["x" * 8_000_000]})),
        "no such endpoint": materials(
            lambda exchange, answer: Answer(404, {"content-type": "application/json"}, error_body(404, "NOT_FOUND"))
        ),
        "not implemented, in HTML": materials(
            lambda exchange, answer: Answer(501, {"content-type": "text/html"}, b"<html>no</html>")
        ),
        "a poll's answer": materials(lambda exchange, answer: Answer(204, {"etag": '"1-1"'}, b"")),
    }


# --- features --------------------------------------------------------------------------------------------------------


def features() -> dict[str, Tamper]:
    flapping = by_turns(([], ["batch-fetch", "delta", "priority", "push"], ["priority"], ["batch-fetch"]))
    strange = by_turns((*WRONG, "push", ["push", 1], [["push"]], {"push": True}))

    def announced(value: Callable[[], Any]) -> Tamper:
        return refreshes(in_data(lambda data: data | {"features": value()} if isinstance(data, dict) else data))

    return {
        "features of wrong types": announced(strange),
        "100 000 features": announced(lambda: [f"feature-{number}" for number in range(100_000)]),
        "names of 100 000 characters": announced(lambda: ["x" * 100_000, "priority"]),
        "names with control characters": announced(lambda: ["a\0b", "\ud800", "priority\n", " push", ""]),
        "features that come and go": announced(flapping),
        "features that the plane does not have": announced(lambda: ["batch-fetch", "delta", "priority", "time-travel"]),
    }


# --- batches ---------------------------------------------------------------------------------------------------------


def batches() -> dict[str, Tamper]:
    def batch(value: Callable[[int], Any]) -> Tamper:
        def marked(number: int, one: dict[str, Any]) -> dict[str, Any]:
            return one | {"ref": one["ref"] | {"batch": value(number)}} if one["type"] == "cert.renewed" else one

        return polls(in_signals(marked))

    def doubled(first: object, second: object) -> Tamper:
        """Announce each renewal twice, a millisecond apart."""

        def both(signals: list[dict[str, Any]]) -> list[Any]:
            found: list[Any] = []
            for one in signals:
                found.append(one | {"ref": one["ref"] | {"batch": first}} if one["type"] == "cert.renewed" else one)
                if one["type"] == "cert.renewed":
                    found.append(one | {"ts_ms": one["ts_ms"] + 1, "ref": one["ref"] | {"batch": second}})
            return found

        return polls(in_pages(both))

    numbers = iter(range(10**9))
    strange, sizes = by_turns(WRONG), by_turns((2, 3, 100, 4))
    return {
        "a member twice": doubled({"id": "a", "size": 2}, {"id": "a", "size": 2}),
        "a member twice that lacks another": doubled({"id": "a", "size": 100}, {"id": "a", "size": 100}),
        "two batches that overlap": doubled({"id": "a", "size": 3}, {"id": "b", "size": 3}),
        "two batches that overlap, and never end": doubled({"id": "a", "size": 90}, {"id": "b", "size": 80}),
        "a batch that shrinks as it arrives": doubled({"id": "a", "size": 50}, {"id": "a", "size": 2}),
        "a batch and none": doubled({"id": "a", "size": 50}, None),
        "a batch of none": batch(lambda n: {"id": "a", "size": 0}),
        "a batch of one": batch(lambda n: {"id": "a", "size": 1}),
        "a batch of a thousand million": batch(lambda n: {"id": "a", "size": HUGE}),
        "a batch of less than none": batch(lambda n: {"id": "a", "size": -5}),
        "sizes of wrong types": batch(lambda n: {"id": "a", "size": strange()}),
        "ids of wrong types": batch(lambda n: {"id": strange(), "size": 2}),
        "ids that are paths": batch(lambda n: {"id": "../../etc/passwd", "size": 2}),
        "batches of wrong types": batch(lambda n: strange()),
        "sizes that contradict each other": batch(lambda n: {"id": "a", "size": sizes()}),
        "members that never come": batch(lambda n: {"id": f"b{next(numbers)}", "size": 2}),
        "one batch of all, again and again": batch(lambda n: {"id": "always", "size": 2}),
        "more members than the batch has": batch(lambda n: {"id": "few", "size": 2}),
    }


# --- pauses ----------------------------------------------------------------------------------------------------------


def pauses() -> dict[str, Tamper]:
    def asked(text: str) -> Tamper:
        def changed(exchange: Exchange, answer: Answer) -> Answer:
            return (
                attrs.evolve(answer, headers={**answer.headers, "retry-after": text})
                if answer.status == 204
                else answer
            )

        return polls(changed)

    return {
        "a Retry-After on 204 of nearly forever": asked("9" * 30),
        "a Retry-After on 204 before now": asked("-5"),
        "a Retry-After on 204 of zero": asked("0"),
        "a Retry-After on 204 that is no number": asked("soon"),
        "a Retry-After on 204 far in the past": asked("Thu, 01 Jan 1970 00:00:00 GMT"),
        "a Retry-After on 204 that is not finite": asked("inf"),
    }


CASES: dict[str, Callable[[], dict[str, Tamper]]] = {
    "priorities": priorities,
    "batch fetch": batch_fetch,
    "features": features,
    "batches": batches,
    "pauses": pauses,
}
