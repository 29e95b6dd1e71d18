"""The public revocation lists of the built-in CA: ``GET /crl/KEY-ID.crl`` (RFC 5280 §4.2.1.13)."""

from __future__ import annotations

import re
from email.utils import formatdate

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from certctrl.plane.core import Plane
from certctrl.plane.errors import not_found
from certctrl.plane.revocation.crls import Crl

PATH = "/crl"
_NAME = re.compile(r"([0-9a-f]{40})\.crl", re.ASCII)
_MAX_AGE = 300
"""Seconds for which caches may keep a list; revocations reach clients behind them that much later."""


class CrlApi:
    """The endpoint."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [Route(f"{PATH}/{{name}}", self.crl)]

    async def crl(self, request: Request) -> Response:
        """Return the DER of a list; 304 if the client has it."""
        found = _NAME.fullmatch(request.path_params["name"])
        crl = None if found is None else await self._plane.crls.get(found[1])
        if crl is None:
            raise not_found("No such revocation list")
        headers = {
            "etag": crl.etag,
            "cache-control": f"public, max-age={_MAX_AGE}",
            "last-modified": formatdate(crl.this_update, usegmt=True),
            "expires": formatdate(min(crl.next_update, self._plane.wall_now() + _MAX_AGE), usegmt=True),
        }
        if _has(request, crl):
            return Response(None, 304, headers)
        return Response(crl.der, 200, headers, "application/pkix-crl")


def _has(request: Request, crl: Crl) -> bool:
    """Return whether the client has this list."""
    asked = request.headers.get("if-none-match", "")[:1000]
    return crl.etag in [tag.strip().removeprefix("W/") for tag in asked.split(",")] or asked.strip() == "*"
