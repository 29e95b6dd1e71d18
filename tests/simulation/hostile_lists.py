"""What a hostile or broken plane may answer where it has ETags and revisions: to the list and to the material of one."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import attrs
from simulation.hostile_planes import WRONG, Tamper, by_turns, materials, only, with_body
from simulation.network import MATERIALS_PATH, Exchange

from certctrl.model.answer import Answer

LIST_PATH = "/apiv1/devices/self/certificates"
INVENTED = [{"id": 10**6 + n, "domain_name": f"i{n}.example", "serial_number": "0a"} for n in range(10)]
ETAGS = ("", '"', '""', "W/", "*", '"a"b"', "\t", "x" * 70_000, '"' + "y" * 4096 + '"', "\N{SNOWMAN}", '"same"')


def lists(change: Tamper) -> Tamper:
    return only(lambda exchange: exchange.path == LIST_PATH, change)


def singles(change: Tamper) -> Tamper:
    return only(lambda exchange: exchange.path.endswith(MATERIALS_PATH) and exchange.method == "GET", change)


def etags(change: Callable[[Exchange], str]) -> Tamper:
    """Return a change of the ETag of successes."""

    def changed(exchange: Exchange, answer: Answer) -> Answer:
        if answer.status not in (200, 304):
            return answer
        return attrs.evolve(answer, headers={**answer.headers, "etag": change(exchange)})

    return changed


def unchanged(exchange: Exchange, answer: Answer) -> Answer:
    """Answer that what the request knows is current; honest if it knows nothing."""
    known = exchange.headers.get("if-none-match")
    return answer if known is None else Answer(304, {"etag": known}, b"")


def always_unchanged(etag: str, body: bytes = b"") -> Tamper:
    return lambda exchange, answer: Answer(304, {"etag": etag, "content-type": "application/json"}, body)


def replayed(kept: Callable[[Exchange], Any]) -> Tamper:
    """Return a change that repeats the first success for each key, with its ETag."""
    first: dict[Any, Answer] = {}

    def changed(exchange: Exchange, answer: Answer) -> Answer:
        return first.setdefault(kept(exchange), answer) if answer.status == 200 else answer

    return changed


def in_list(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Tamper:
    """Return a change of the whole body of a list."""

    def changed(_: Exchange, answer: Answer) -> Answer:
        return with_body(answer, change(json.loads(answer.body))) if answer.status == 200 else answer

    return lists(changed)


def as_changes(data: Callable[[list[Any]], list[Any]], of: object = 1, parts: object = (0,)) -> Tamper:
    """Return a change of each list into changes of some parts."""

    def changed(exchange: Exchange, answer: Answer) -> Answer:
        rows = json.loads(answer.body)["data"] if answer.status == 200 else []
        body = {"data": data(rows), "complete": False, "replaced": {"of": of, "parts": parts}}
        return with_body(answer, body, etag=f'"r{exchange.sent_at}"')

    return lists(changed)


def list_changes() -> dict[str, Tamper]:
    strange, numbers = by_turns(WRONG), iter(range(10**9))
    odd_etags = by_turns(ETAGS)
    batches = by_turns(({"id": "a", "size": 2}, {"id": "a", "size": 100}, {"id": "../..", "size": 2}, *WRONG))
    return {
        "a list that is always unchanged": lists(unchanged),
        "304 to a list that was not known": lists(always_unchanged('"r1"')),
        "304 with another revision": lists(lambda exchange, answer: Answer(304, {"etag": '"other"'}, b"")),
        "304 without a revision": lists(lambda exchange, answer: Answer(304, {}, b"")),
        "304 with the list as its body": lists(always_unchanged('"r1"', b'{"data": [], "complete": true}')),
        "revisions that cannot be sent back": lists(etags(lambda exchange: odd_etags())),
        "another revision each time": lists(etags(lambda exchange: f'"{next(numbers)}"')),
        "one revision for all lists": lists(etags(lambda exchange: '"same"')),
        "a list that goes back to its first revision": lists(replayed(lambda exchange: "list")),
        "a list without certificates": in_list(lambda body: body | {"data": [], "complete": True}),
        "changes to a list that was not known": as_changes(lambda rows: rows, 1, [0]),
        "changes that remove all certificates": as_changes(lambda rows: [], 1, [0]),
        "changes that name unknown certificates": as_changes(lambda rows: INVENTED, 1, [0]),
        "changes of parts that do not exist": as_changes(lambda rows: rows, 4, [4]),
        "changes of no part": as_changes(lambda rows: rows, 4, []),
        "certificates that are in none of the changed parts": as_changes(lambda rows: rows, 2, [1]),
        "a million parts": as_changes(lambda rows: rows, 10**6, [0]),
        "parts of wrong types": lists(
            lambda exchange, answer: with_body(
                answer, {"data": [], "complete": False, "replaced": {"of": strange(), "parts": strange()}}
            )
        ),
        "complete of wrong types": in_list(lambda body: body | {"complete": strange()}),
        "complete, with changes nevertheless": in_list(
            lambda body: body | {"complete": True, "replaced": {"of": 1, "parts": [0]}}
        ),
        "the list is of a wrong type": in_list(lambda body: body | {"data": strange()}),
        "each certificate twice": in_list(lambda body: body | {"data": body["data"] * 2}),
        "batches of wrong types in the list": in_list(
            lambda body: body | {"data": [one | {"batch": batches()} for one in body["data"]]}
        ),
        "all certificates of the list in one batch of two": in_list(
            lambda body: body | {"data": [one | {"batch": {"id": "a", "size": 2}} for one in body["data"]]}
        ),
    }


def material_etags() -> dict[str, Tamper]:
    odd_etags, numbers = by_turns(ETAGS), iter(range(10**9))

    def items(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Tamper:
        def changed(_: Exchange, answer: Answer) -> Answer:
            if answer.status != 200:
                return answer
            return with_body(answer, {"data": [change(one) for one in json.loads(answer.body)["data"]]})

        return materials(changed)

    return {
        "material that is always unchanged": singles(unchanged),
        "304 to material that was not known": singles(always_unchanged('"e1"')),
        "304 with the material as its body": singles(
            lambda exchange, answer: attrs.evolve(unchanged(exchange, answer), body=answer.body)
        ),
        "304 for each of many materials": items(lambda one: {"cert_id": one["cert_id"], "status": 304, "etag": "e1"}),
        "304 for many materials, with them": items(lambda one: one | {"status": 304}),
        "304 to a request for many": materials(always_unchanged('"e1"')),
        "ETags of material that cannot be sent back": singles(etags(lambda exchange: odd_etags())),
        "another ETag of material each time": singles(etags(lambda exchange: f'"{next(numbers)}"')),
        "one ETag for all material": singles(etags(lambda exchange: '"same"')),
        "ETags of wrong types in many materials": items(lambda one: one | {"etag": WRONG[next(numbers) % len(WRONG)]}),
        "material that goes back to its first ETag": singles(replayed(lambda exchange: exchange.path)),
    }
