"""make_plain_app: the public endpoints that a plane serves without TLS.

Clients fetch revocation lists without TLS, because a list must be readable before a certificate can be trusted, and
CAs fetch the answers of http-01, because the name has no certificate yet.
"""

from __future__ import annotations

from starlette.routing import Router

from certctrl.plane.core import Plane
from certctrl.plane.http.acme_challenge_api import AcmeChallengeApi
from certctrl.plane.http.crl_api import CrlApi
from certctrl.plane.http.middleware import App, Middleware


def make_plain_app(plane: Plane) -> App:
    """Return the application of the listener without TLS."""
    routes = [*CrlApi(plane).routes(), *AcmeChallengeApi(plane).routes()]
    return Middleware(plane, Router(routes, redirect_slashes=False), (route.path for route in routes))
