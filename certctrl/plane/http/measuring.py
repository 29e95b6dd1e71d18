"""Measuring: the labels under which requests are counted.

They are bounded: methods and routes that the plane does not have are ``other``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

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


def method_of(scope: Mapping[str, Any]) -> str:
    """Return the method of a request, or ``other``."""
    method: str = scope["method"]
    return method if method in _METHODS else OTHER
