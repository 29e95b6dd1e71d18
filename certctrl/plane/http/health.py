"""Health: liveness, readiness and problems of the plane; unauthenticated, and answered from memory.

Load balancers ask ``/health/ready`` and stop sending connections to a plane that is not; a supervisor asks
``/health/live``, which answers as long as the plane answers at all. ``/health`` is the summary for operators.
"""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from certctrl import __version__
from certctrl.plane.clock import rfc3339
from certctrl.plane.core import Plane
from certctrl.plane.errors import unavailable
from certctrl.plane.http.answers import data_answer

_RETRY_AFTER = 5


class Health:
    """The endpoints, one method each."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [Route("/health", self.summary), Route("/health/live", self.live), Route("/health/ready", self.ready)]

    async def live(self, request: Request) -> Response:
        """Return 200."""
        return data_answer({"status": "alive"})

    async def ready(self, request: Request) -> Response:
        """Return 200 if the plane is ready, otherwise 503 with the problems."""
        self._refuse_unready()
        return data_answer({"status": "ready"})

    async def summary(self, request: Request) -> Response:
        """Return status ``ok`` or ``degraded`` with the problems; 503 if the plane is not ready."""
        problems = self._refuse_unready()
        status = "degraded" if problems else "ok"
        time = rfc3339(self._plane.wall_now())
        return data_answer({"status": status, "version": __version__, "time": time, "problems": problems})

    def _refuse_unready(self) -> list[dict[str, str]]:
        """Return the problems as shown; ErrorResponse 503 if one of them prevents readiness."""
        present = self._plane.problems.now()
        shown = [problem.shown() for problem in present]
        if present and present[0].name.prevents_ready:
            error = unavailable(present[0].name.summary, _RETRY_AFTER)
            more: dict[str, Any] = {"status": "unavailable", "problems": shown}
            error.params |= more
            raise error
        return shown
