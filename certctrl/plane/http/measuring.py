"""Measured: count all requests by method, route and status, around the whole application.

Labels are bounded: methods and routes that the plane does not have are ``other``.
"""

from __future__ import annotations

from collections.abc import Iterable
from time import perf_counter

from certctrl.plane.health.counters import PlaneCounters
from certctrl.plane.http.middleware import App, Message, Receive, Scope, Send

OTHER = "other"
_METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "DELETE"))


class Routes:
    """Finds the route of a path."""

    def __init__(self, paths: Iterable[str]) -> None:
        """``paths`` are those of the routes, with parameters as ``{name}``."""
        self._plain: dict[str, str] = {}
        self._by_length: dict[int, list[tuple[tuple[str, ...], str]]] = {}
        for path in dict.fromkeys(paths):
            self._plain[path] = path
            if "{" in path:
                words = tuple("" if word.startswith("{") else word for word in path.split("/")[1:])
                self._by_length.setdefault(len(words), []).append((words, path))

    def route_of(self, path: str) -> str:
        """Return the route of a path, or ``other``."""
        known = self._plain.get(path)
        if known is not None:
            return known
        words = path.split("/")[1:]
        for route, name in self._by_length.get(len(words), ()):
            if all(word in ("", given) for word, given in zip(route, words, strict=True)):
                return name
        return OTHER


class Measured:
    """An application whose requests are counted."""

    def __init__(self, counters: PlaneCounters, inner: App, paths: Iterable[str]) -> None:
        self._counters = counters
        self._inner = inner
        self._routes = Routes(paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._inner(scope, receive, send)
            return
        status, started = "none", perf_counter()

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
            await send(message)

        try:
            await self._inner(scope, receive, sending)
        finally:
            seconds = None if b"wait=" in scope.get("query_string", b"") else perf_counter() - started
            method = scope["method"] if scope["method"] in _METHODS else OTHER
            self._counters.request(method, self._routes.route_of(scope["path"]), status, seconds)
