"""Operator endpoints for the built-in CA (docs/protocol.md)."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from certctrl.plane.core import Plane
from certctrl.plane.http import operator_bodies
from certctrl.plane.http.answers import data_answer
from certctrl.plane.http.authentication import Authenticator
from certctrl.plane.http.bodies import read_as
from certctrl.plane.http.routing import routes_of

PATH = "/apiv1/plane/ca"


class CaApi:
    """The endpoints, one method each."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane
        self._authenticator = Authenticator(plane)

    def routes(self) -> list[Route]:
        """Return the routes."""
        only = self._authenticator.operators_only
        return routes_of([("GET", PATH, only(self.show)), ("POST", f"{PATH}/constraints", only(self.constrain))])

    async def show(self, request: Request) -> Response:
        """Return the root and the intermediates with their domains and the URLs of their CRLs."""
        return data_answer(await self._plane.work_long(self._plane.issuing_ca.show))

    async def constrain(self, request: Request) -> Response:
        """Constrain the names to issue for: ``{"domains"?, "networks"?}``; without any: all names."""
        body = await read_as(operator_bodies.Constraints, request)
        return data_answer(await self._plane.issuing_ca.constrain(body.domains, body.networks))
