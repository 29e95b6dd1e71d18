"""The public CA of the plane's own certificate: ``GET /ca.pem``.

A host fetches it before it can verify the plane, and compares its fingerprint with what `plane serve` prints.
"""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from certctrl.plane.core import Plane
from certctrl.protocol.wire.anchor import CA_PATH


class AnchorApi:
    """The endpoint."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [Route(CA_PATH, self.ca)]

    async def ca(self, request: Request) -> Response:
        """Return the root certificate in PEM, from memory."""
        return Response(self._plane.anchor.ca.root_pem, 200, {"cache-control": "no-store"}, "application/x-pem-file")
