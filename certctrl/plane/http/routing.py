"""Routes of the HTTP API: several methods of one path, and the ids in paths."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from certctrl.plane.http.reading import whole_number

Endpoint = Callable[[Request], Awaitable[Response]]

USER = "/apiv1/users/{uid}"
DEVICE = f"{USER}/devices/{{did}}"
CERTIFICATE = f"{USER}/certificates/{{cid}}"


def routes_of(table: Iterable[tuple[str, str, Endpoint]]) -> list[Route]:
    """Return one route per path of a table of (method, path, endpoint), so that 405 lists all methods."""
    paths: dict[str, dict[str, Endpoint]] = {}
    for method, path, endpoint in table:
        paths.setdefault(path, {})[method] = endpoint
    return [Route(path, _by_method(methods), methods=list(methods)) for path, methods in paths.items()]


def _by_method(methods: dict[str, Endpoint]) -> Endpoint:
    async def endpoint(request: Request) -> Response:
        return await methods["GET" if request.method == "HEAD" else request.method](request)

    return endpoint


def number(request: Request, name: str) -> int:
    """Return an id from the path; ErrorResponse 400 if it is not a number."""
    return whole_number(request.path_params[name], "id", 1)


def user_and_device(request: Request) -> tuple[int, int]:
    """Return the ids of ``DEVICE``."""
    return number(request, "uid"), number(request, "did")


def user_and_certificate(request: Request) -> tuple[int, int]:
    """Return the ids of ``CERTIFICATE``."""
    return number(request, "uid"), number(request, "cid")
