"""Requests about many certificates, on both engines: checks that issue nothing, and renewals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from engine_plane import plane_on, registered

from certctrl.plane.core import Plane
from certctrl.plane.storage.database import Database


@pytest.fixture
def plane(open_database: Callable[[], Database]) -> Plane:
    return plane_on(open_database())


async def check(plane: Plane, *wanted: dict[str, Any]) -> list[tuple[str, str, Any]]:
    rows = await plane.bulk.check(1, wanted)
    return [(row["field"], row["problem"][:24], row["known"]) for row in rows]


async def test_checks_find_what_issue_would_refuse(plane: Plane) -> None:
    await plane.work(plane.certificates.reserve, ["plane.example"])
    assert await check(
        plane,
        {"domains": ["good.example"]},
        {"domains": ["bad_name"]},
        {"domains": ["good.example"], "key_type": "rsa-512"},
        {"domains": ["good.example"], "validity_seconds": 1},
        {"domains": ["good.example"], "issuer": "absent"},
        {"domains": ["plane.example"]},
        {"domains": ["good.example"], "device_ids": [99]},
    ) == [
        ("", "", None),
        ("domains", "'bad_name' is not a DNS ", None),
        ("key_type", "key_type must be one of ", None),
        ("validity_seconds", "validity_seconds must be", None),
        ("issuer", "There is no issuer 'abse", None),
        ("", "plane.example is, or cov", None),
        ("", "No such device", None),
    ]
    assert await plane.work(plane.certificates.page_of_user, 1, 0, 10) == []


async def test_checks_find_the_same_certificate(plane: Plane) -> None:
    device, _ = await registered(plane)
    row = await plane.certificates.issue(1, ["a.example", "b.example"], device_ids=[device])
    known = {"id": row["id"], "device_ids": [device]}
    revoked = await plane.certificates.issue(1, ["revoked.example"])
    await plane.certificates.revoke(1, revoked["id"])
    assert await check(
        plane,
        {"domains": ["B.example", "a.example"]},
        {"domains": ["a.example"]},
        {"domains": ["a.example", "b.example"], "key_type": "rsa-2048"},
        {"domains": ["a.example", "b.example"], "profile": "short"},
        {"domains": ["revoked.example"]},
    ) == [("", "", known), *[("", "", None)] * 4]


async def test_renewals_are_ordered_or_refused_one_by_one(plane: Plane) -> None:
    rows = [await plane.certificates.issue(1, [f"{number}.example"]) for number in range(25)]
    sql = "UPDATE certificates SET issuer = 'import' WHERE id = ?"
    await plane.work(plane.database.run, sql, rows[3]["id"])
    ids = [row["id"] for row in rows]
    answers = await plane.bulk.renew(1, [*ids, 999], "drill")
    assert [answer["cert_id"] for answer in answers] == [*ids, 999]
    problems = {answer["cert_id"]: answer["problem"] for answer in answers if answer["problem"]}
    assert problems.pop(999) == "No such certificate"
    assert [cert_id for cert_id, why in problems.items() if "was imported" in why] == [rows[3]["id"]]
    again = await plane.bulk.renew(1, ids, "drill")
    assert [answer["order_id"] for answer in again] == [answer["order_id"] for answer in answers[:-1]]
    while await plane.order_runner.run_once():
        pass
    orders = await plane.work(plane.orders.page_of_user, 1, 0, 100)
    assert {(order["state"], order["reason"]) for order in orders} == {("done", "drill")}
    assert len(orders) == 24
