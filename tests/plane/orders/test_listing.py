"""`plane orders list`, page by page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import pytest

from certctrl.cli.plane.connection import OperatorApi
from certctrl.cli.plane.orders import pages

ORDERS = [{"id": number, "issuer": f"ca-{number % 2}"} for number in range(1, 1203)]


class Paging:
    """Answer with at most 500 of many orders, as a control plane does."""

    def __init__(self) -> None:
        self.queries: list[Mapping[str, str]] = []

    async def call(self, method: str, path: str, *, query: Mapping[str, str]) -> list[dict[str, Any]]:
        assert (method, path) == ("GET", "orders")
        self.queries.append(query)
        return [row for row in ORDERS if row["id"] > int(query["after_id"])][: min(500, int(query["limit"]))]  # type: ignore[operator]


@pytest.mark.parametrize(("limit", "after_id", "found", "asked"), [(0, 0, 1202, 3), (2, 0, 2, 1), (0, 1200, 2, 1)])
async def test_more_orders_than_one_answer_holds(limit: int, after_id: int, found: int, asked: int) -> None:
    plane = Paging()
    rows = await pages(cast(OperatorApi, plane), {"open": "1"}, lambda row: True, limit, after_id)
    assert ([row["id"] for row in rows], len(plane.queries)) == (
        list(range(after_id + 1, after_id + found + 1)),
        asked,
    )
    assert all(query["open"] == "1" for query in plane.queries)


async def test_a_limit_counts_what_fits() -> None:
    limit = 400
    plane = Paging()
    rows = await pages(cast(OperatorApi, plane), {}, lambda row: row["issuer"] == "ca-0", limit, 0)
    assert [row["id"] for row in rows] == list(range(2, 2 * limit + 1, 2))
