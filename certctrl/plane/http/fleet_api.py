"""Operator endpoints for the state of a fleet: causes, devices, certificates (docs/protocol.md)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from certctrl.plane.core import Plane
from certctrl.plane.errors import bad_request
from certctrl.plane.fleet.fleet import MAX_PAGE, Query
from certctrl.plane.http.answers import json_answer, json_of
from certctrl.plane.http.authentication import Authenticator
from certctrl.plane.http.reading import whole_number
from certctrl.plane.http.routing import USER, Endpoint, number, routes_of
from certctrl.plane.http.scopes import tags_of
from certctrl.text import one_line

_ASKED = frozenset({"state", "reason", "tag", "q", "sort", "after", "limit"})


class FleetApi:
    """The endpoints, one method each; none changes anything."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane
        self._authenticator = Authenticator(plane)

    def routes(self) -> list[Route]:
        """Return the routes."""
        guarded: list[tuple[str, str, Endpoint]] = [
            ("GET", f"{USER}/fleet/causes", self.causes),
            ("GET", f"{USER}/fleet/devices", self.devices),
            ("GET", f"{USER}/fleet/certificates", self.certificates),
        ]
        only = self._authenticator.operators_only
        return routes_of([(method, path, only(endpoint)) for method, path, endpoint in guarded])

    async def causes(self, request: Request) -> Response:
        """Return all that needs an operator, grouped by cause."""
        user_id, scope = number(request, "uid"), tags_of(request)
        return await self._read(lambda: self._plane.fleet.causes(user_id, scope))

    async def devices(self, request: Request) -> Response:
        """Return a page of devices: ``?state=&reason=&tag=&q=&sort=&after=&limit=``."""
        user_id, query, scope = number(request, "uid"), query_of_list(request), tags_of(request)
        return await self._read(lambda: self._plane.fleet.devices(user_id, query, scope))

    async def certificates(self, request: Request) -> Response:
        """Return a page of certificates, as ``devices``."""
        user_id, query, scope = number(request, "uid"), query_of_list(request), tags_of(request)
        return await self._read(lambda: self._plane.fleet.certificates(user_id, query, scope))

    async def _read(self, read: Callable[[], dict[str, Any]]) -> Response:
        """Read in a thread, and make the text there."""
        text = await self._plane.work_long(lambda: json_of({"data": read()}))
        return json_answer(text)


def query_of_list(request: Request) -> Query:
    """Return the query of a list; ErrorResponse 400 for an unknown parameter, which would be taken for a filter."""
    return query_of(request.query_params)


def query_of(asked: Mapping[str, str]) -> Query:
    """Return the query that parameters name, as ``query_of_list``."""
    if unknown := sorted(set(asked) - _ASKED):
        raise bad_request(
            f"{one_line(unknown[0], 40)!r} is not a filter: use {', '.join(sorted(_ASKED))}", field="query"
        )

    def words(name: str) -> tuple[str, ...]:
        return tuple(dict.fromkeys(word for word in asked.get(name, "").split(",") if word))

    return Query(
        states=words("state"),
        reason=asked.get("reason", ""),
        tags=words("tag"),
        search=asked.get("q", ""),
        sort=asked.get("sort", "worst"),
        after=asked.get("after", ""),
        limit=whole_number(asked.get("limit", "50"), "limit", 1, MAX_PAGE),
    )
