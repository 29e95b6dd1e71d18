"""Watch that requests reach the database in units of work only."""

from __future__ import annotations

import contextvars
from collections import Counter
from collections.abc import Callable
from typing import Any, cast

from certctrl.plane.core import Plane

_request: contextvars.ContextVar[str] = contextvars.ContextVar("request", default="")


class Units:
    """Counts the units of work of each request; a statement of a request outside of them fails the request."""

    def __init__(self, plane: Plane) -> None:
        self.of: Counter[str] = Counter()
        """Method and path -> units of work since the last ``clear``."""
        self._database = cast(Any, plane.database)
        for name in ("one", "all", "run", "insert"):
            setattr(self._database, name, self._checked(getattr(self._database, name)))
        work, read = self._database._once, self._database._read

        async def counted(*args: object, **kwargs: object) -> Any:
            self.of[_request.get()] += 1
            return await work(*args, **kwargs)

        def counted_read(*args: object) -> Any:
            self.of[_request.get()] += not self._database._connection.in_transaction
            return read(*args)

        self._database._once, self._database._read = counted, counted_read  # one of which each kind of work calls

    def around(self, app: Callable[..., Any]) -> Callable[..., Any]:
        """Return the application with its requests watched."""

        async def watched(scope: Any, receive: Any, send: Any) -> None:
            token = _request.set(f"{scope.get('method', '')} {scope.get('path', '')}")
            try:
                await app(scope, receive, send)
            finally:
                _request.reset(token)

        return watched

    def _checked(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def checked(sql: str, *parameters: object) -> Any:
            in_unit = self._database._connection.in_transaction or self._database._reading
            if _request.get() and not in_unit and sql != "BEGIN":
                raise AssertionError(f"outside of a unit of work: {sql}")
            return method(sql, *parameters)

        return checked
