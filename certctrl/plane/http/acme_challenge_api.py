"""The plane's http-01 answers for CAs: ``GET /.well-known/acme-challenge/TOKEN`` (RFC 8555, section 8.3)."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from certctrl.model.challenges import WELL_KNOWN
from certctrl.plane.challenges.plane_http import is_token, stored_answer
from certctrl.plane.core import Plane
from certctrl.plane.errors import not_found


class AcmeChallengeApi:
    """The endpoint."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [Route(f"{WELL_KNOWN}{{token}}", self.answer)]

    async def answer(self, request: Request) -> Response:
        """Return the key authorization of a token."""
        token, plane = request.path_params["token"], self._plane
        found = ""
        if is_token(token):
            found = await plane.work(stored_answer, plane.database, token, plane.wall_now())
        if not found:
            raise not_found("No such challenge")
        return Response(found, 200, {"cache-control": "no-store"}, "application/octet-stream")
