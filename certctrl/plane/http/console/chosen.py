"""What a change of many is for: the rows that a filter of a list finds, and whether they are still the same."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.requests import Request

from certctrl import lean
from certctrl.plane.errors import bad_request
from certctrl.plane.fleet.fleet import Query
from certctrl.plane.http.console.devices import options_of
from certctrl.plane.http.console.frame import Asked
from certctrl.plane.http.console.parts import link
from certctrl.plane.http.fleet_api import query_of
from certctrl.plane.http.reading import clean_line, whole_number

_FILTERS = ("state", "reason", "tag", "q")
_MAX_TEXT = 200
NAMED = 20
"""Rows that a page names; the rest is counted."""


@lean.frozen(kw_only=True)
class Chosen:
    """The rows that are changed by one request, of those that a filter finds."""

    asked: Asked
    """The list, with its filter."""
    rows: Sequence[Mapping[str, Any]]
    left_out: Sequence[Mapping[str, Any]] = ()
    """Rows that fit the filter, and cannot be changed so."""
    later: int = 0
    """How many are left for further requests."""
    beyond: int = 0
    """The id of the last row of the request before."""
    last: int = 0
    """The id of the last row of this one."""

    @property
    def digest(self) -> str:
        """What is the same as long as the same rows are chosen."""
        ids = ",".join(str(row["id"]) for row in self.rows)
        return hashlib.sha256(f"{ids};{self.later}".encode()).hexdigest()[:32]

    def url(self, **more: object) -> str:
        """Return the page that asks before this change."""
        return link(f"{self.asked.path}/confirm", {**self.asked.filters(), **more})

    @property
    def is_by_tags(self) -> bool:
        """Whether tags alone choose the rows, all of them in one request."""
        return set(self.asked.filters()) == {"tag"} and not (self.beyond or self.later or self.left_out)

    def named(self, kind: str) -> str:
        """Return the rows as arguments of a command: their ids, or of many the command that prints these."""
        if len(self.rows) <= NAMED:
            return " ".join(str(row["id"]) for row in self.rows)
        after = f"--after '[\"id\",{self.beyond},{self.beyond}]' " if self.beyond else ""
        most = f"{after}--sort id --limit {len(self.rows) + len(self.left_out)} --json"
        listed = " ".join(["cert-ctrl plane", kind, *options_of(self.asked), most])
        return f"$({listed} | jq '.{kind}[].id')"


def query_of_set(request: Request, most: int) -> Query:
    """Return the query of the rows that a change of many is for, up to ``most`` of them.

    ErrorResponse 400 without a filter: a change of all devices is never meant.
    """
    asked = {name: clean_line(request.query_params.get(name, ""), _MAX_TEXT) for name in _FILTERS}
    if not any(asked.values()):
        raise bad_request("Choose some of them first: a change of many is for what a filtered list shows")
    found = query_of({name: value for name, value in asked.items() if value} | {"sort": "id", "limit": str(most)})
    return Query(
        states=found.states,
        reason=found.reason,
        tags=found.tags,
        search=found.search,
        sort=found.sort,
        limit=found.limit,
        beyond=whole_number(request.query_params.get("beyond", "0"), "beyond", 0),
    )


def asked_of(path: str, query: Query) -> Asked:
    """Return the list that a query is of."""
    shown = {"state": ",".join(query.states), "reason": query.reason, "tag": ",".join(query.tags), "q": query.search}
    return Asked(path, shown)
