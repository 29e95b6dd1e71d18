"""The operator endpoint for the audit log (docs/protocol.md)."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from certctrl.plane.audit.log import MAX_PAGE, Filter
from certctrl.plane.core import Plane
from certctrl.plane.errors import bad_request
from certctrl.plane.http.answers import json_answer, json_of
from certctrl.plane.http.authentication import Authenticator
from certctrl.plane.http.permissions import actions
from certctrl.plane.http.reading import clean_line, whole_number
from certctrl.plane.http.routing import routes_of
from certctrl.text import nearest, one_line

PATH = "/apiv1/audit"


class AuditApi:
    """The endpoint."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane
        self._authenticator = Authenticator(plane)

    def routes(self) -> list[Route]:
        """Return the routes."""
        return routes_of([("GET", PATH, self._authenticator.operators_only(self.entries))])

    async def entries(self, request: Request) -> Response:
        """Return entries, the newest first: ``?who=&what=&device=ID&since=&until=&before_id=&limit=``.

        Times are seconds since the epoch; ``what`` is an action or the part before its dot.
        """
        asked = request.query_params
        seconds = {name: float(whole_number(asked[name], name, 0)) for name in ("since", "until") if name in asked}
        chosen = Filter(
            who=clean_line(asked.get("who", ""), 100),
            what=known_action(asked.get("what", "")),
            device_id=whole_number(asked["device"], "device", 1) if "device" in asked else None,
            since=seconds.get("since"),
            until=seconds.get("until"),
        )
        before_id = whole_number(asked.get("before_id", "0"), "before_id", 0)
        limit = whole_number(asked.get("limit", "100"), "limit", 1, MAX_PAGE)

        def text() -> bytes:
            return json_of({"data": self._plane.audit.page(chosen, before_id, limit)})

        return json_answer(await self._plane.work_long(text))  # a page may have many megabytes: not on the event loop


def known_action(what: str) -> str:
    """Return a filter for actions; ErrorResponse 400 if none has this name, with the nearest."""
    known = actions()
    groups = sorted({action.partition(".")[0] for action in known})
    if not what or what in known or what in groups or " " in what:
        return what
    meant = nearest(what, [*groups, *known])
    fix = f"did you mean {meant}?" if meant else f"use one of {', '.join(groups)}"
    raise bad_request(f"No action is called {one_line(what, 60)!r}; {fix}", field="what")
