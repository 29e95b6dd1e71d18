"""Who asks: bearer tokens, the operator key, addresses, and the two headers that carry a cursor or version."""

from __future__ import annotations

import re

from starlette.requests import Request
from starlette.responses import Response

from certctrl.plane.core import Plane
from certctrl.plane.errors import forbidden, invalid_token
from certctrl.plane.http.routing import Endpoint
from certctrl.plane.sessions import DeviceSession

_ETAG = re.compile(r'(?:W/)?"?([^"]*)"?')


class Caller:
    """Tells operators from devices, and lets in those an endpoint is for."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane

    def device(self, request: Request) -> DeviceSession:
        """Return the device that asks; Refused 401 or 403 for anybody else."""
        return self._plane.sessions.authenticate(bearer_token(request))

    def is_operator(self, request: Request) -> bool:
        """Say whether the operator key was sent."""
        return self._plane.keyring.is_operator(bearer_token(request))

    def require_operator(self, request: Request) -> None:
        """Let the operator in; Refused 403 for a device, 401 for anything else."""
        token = bearer_token(request)
        if not self._plane.keyring.is_operator(token):
            if token.count(".") == 2:
                self._plane.sessions.authenticate(token)
                raise forbidden("This is for operators")
            raise invalid_token("This is not the operator key")

    def operators_only(self, endpoint: Endpoint) -> Endpoint:
        """Return the endpoint behind the operator's door."""

        async def guarded(request: Request) -> Response:
            self.require_operator(request)
            return await endpoint(request)

        return guarded


def bearer_token(request: Request) -> str:
    """Return the bearer token of a request; Refused 401 without one."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    token = token.strip()
    if scheme.lower() != "bearer" or not token:
        raise invalid_token("Send Authorization: Bearer …")
    return token


def address_of(request: Request) -> str:
    """Return the address a request came from."""
    return request.client.host if request.client is not None else ""


def etag_of(request: Request) -> str:
    """Return the text inside ``If-None-Match``: quoted, weak or bare; empty when absent or ``*``."""
    match = _ETAG.fullmatch(request.headers.get("if-none-match", "").strip())
    return match[1] if match is not None and match[1] != "*" else ""
