"""make_app: a plane as an ASGI application."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router

from certctrl import __version__
from certctrl.plane.clock import rfc3339
from certctrl.plane.core import Plane
from certctrl.plane.errors import unavailable
from certctrl.plane.http.answers import data_answer
from certctrl.plane.http.device_api import DeviceApi
from certctrl.plane.http.faults import Faults
from certctrl.plane.http.middleware import App, Middleware
from certctrl.plane.http.operator_api import OperatorApi
from certctrl.plane.http.operator_resources import OperatorResources
from certctrl.plane.http.pages.approval import ApprovalPage
from certctrl.plane.problems import ProblemName

__all__ = ["Plane", "make_app"]


def make_app(plane: Plane, *, faults: Faults | None = None) -> App:
    """Return the application; the caller owns the plane. It starts no tasks or threads.

    ``faults`` injects scripted faults before all routes, for tests.
    """

    async def health(request: Request) -> Response:
        if plane.draining:
            raise unavailable("The plane is stopping", 5)
        problems = [problem.name for problem in await plane.check()]
        if ProblemName.DATABASE_AWAY in problems:
            raise unavailable("The plane's database does not answer", 5)
        status = "degraded" if problems else "ok"
        answer = {"status": status, "version": __version__, "time": rfc3339(plane.wall_now()), "problems": problems}
        return data_answer(answer)

    routes = [
        *DeviceApi(plane).routes(),
        *OperatorApi(plane).routes(),
        *OperatorResources(plane).routes(),
        *ApprovalPage(plane).routes(),
        Route("/health", health),
    ]
    app: App = Middleware(plane, Router(routes, redirect_slashes=False))
    return app if faults is None else faults.around(app)
