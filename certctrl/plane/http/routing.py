"""Routes of the HTTP API: several methods of one path, and the ids in paths."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router

from certctrl.plane.errors import bad_request
from certctrl.plane.http.middleware import App, Receive, Scope, Send
from certctrl.plane.http.reading import whole_number

Endpoint = Callable[[Request], Awaitable[Response]]

METHOD, ROUTE = "certctrl.method", "certctrl.route"
"""Keys of an ASGI scope: the method and the path of its route, as in the table of ``routes_of``."""
OPERATOR = "certctrl.operator"
"""Key of the `Caller` in an ASGI scope, if it is an operator."""
API, DRY_RUN = "/apiv1/", "/apiv1/dry-run/"
SELF = "/apiv1/devices/self"
USER = "/apiv1/users/{uid}"
DEVICE = f"{USER}/devices/{{did}}"
CERTIFICATE = f"{USER}/certificates/{{cid}}"


class DirectRoutes:
    """Finds the routes of devices by method and path; all other requests go to a router.

    Devices send nearly all requests, and a router tries its routes one by one and wraps each call twice.
    """

    def __init__(self, routes: Sequence[Route], others: App) -> None:
        self._others = others
        plain = [route for route in routes if not route.param_convertors]
        self._plain = {(method, route.path): route for route in plain for method in route.methods or ()}
        self._patterns = [route for route in routes if route.param_convertors]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        found = self._find(scope) if scope["type"] == "http" else None
        if found is None:
            await self._others(scope, receive, send)
            return
        route, scope["path_params"] = found
        scope["route"], scope["endpoint"] = route, route.endpoint
        response = await route.endpoint(Request(scope, receive, send))
        await response(scope, receive, send)

    def _find(self, scope: Scope) -> tuple[Route, dict[str, str]] | None:
        method, path = scope["method"], scope["path"]
        route = self._plain.get((method, path))
        if route is not None:
            return route, {}
        if path.startswith(SELF):
            for route in self._patterns:
                match = route.path_regex.match(path)
                if match is not None and method in (route.methods or ()):
                    return route, match.groupdict()
        return None


class DryRuns:
    """Answers requests to some routes below `DRY_RUN` as those without it and with ``?dry_run=1``.

    Earlier releases do not have these paths, whereas they ignore the query and carry out the request.
    """

    def __init__(self, routes: Sequence[Route], others: App) -> None:
        self._tried = Router(routes, redirect_slashes=False)
        self._others = others

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(DRY_RUN):
            await self._others(scope, receive, send)
            return
        query = b"&".join([*filter(None, [scope["query_string"]]), b"dry_run=1"])
        path = API + scope["path"].removeprefix(DRY_RUN)
        await self._tried({**scope, "path": path, "query_string": query}, receive, send)


def routes_of(table: Iterable[tuple[str, str, Endpoint]]) -> list[Route]:
    """Return one route per path of a table of (method, path, endpoint), so that 405 lists all methods."""
    paths: dict[str, dict[str, Endpoint]] = {}
    for method, path, endpoint in table:
        paths.setdefault(path, {})[method] = endpoint
    return [Route(path, _by_method(path, methods), methods=list(methods)) for path, methods in paths.items()]


def _by_method(path: str, methods: dict[str, Endpoint]) -> Endpoint:
    async def endpoint(request: Request) -> Response:
        request.scope[METHOD] = method = "GET" if request.method == "HEAD" else request.method
        request.scope[ROUTE] = path
        return await methods[method](request)

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


def is_dry_run(request: Request) -> bool:
    """Return whether a request asks only what would change; ErrorResponse 400 for an unclear one."""
    asked = request.query_params.get("dry_run", "0")
    if asked not in ("0", "1"):
        raise bad_request("dry_run must be 0 or 1", field="dry_run")
    return asked == "1"
