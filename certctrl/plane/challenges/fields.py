"""Fields: read one entry of an issuer's ``challenges`` strictly; every error names the field and how to fix it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from certctrl.errors import ConfigError
from certctrl.text import kind_of, nearest, one_line

_MAX_TEXT = 500
_MAX_TEXTS = 100


class Fields:
    """The fields of one JSON object; each may be read once, ``finish`` refuses the others."""

    def __init__(self, entry: Any, path: str) -> None:
        """``path``: the place of the entry, for messages."""
        self.path = path
        if not isinstance(entry, Mapping):
            raise ConfigError(f"is {kind_of(entry)}", path=path, fix='use an object such as {"type": "rfc2136"}')
        self._entry = entry
        self._known: list[str] = []

    def error(self, field: str, what: str, fix: str) -> ConfigError:
        """Return an error about a field."""
        return ConfigError(what, path=f"{self.path}.{field}", fix=fix)

    def text(self, field: str, default: str = "") -> str:
        """Return a text of one line."""
        value = self._take(field, default)
        if not isinstance(value, str) or len(value) > _MAX_TEXT or not value.isprintable():
            raise self.error(field, f"is {kind_of(value)}", f"use a text of one line, at most {_MAX_TEXT} characters")
        return value

    def choice(self, field: str, choices: Collection[str], default: str = "") -> str:
        """Return one of several texts; without a default, it is required."""
        value = self._take(field, default)
        if value in choices:
            return str(value)
        listed = ", ".join(choices)
        meant = nearest(value, choices) if isinstance(value, str) else None
        what = f"is {one_line(value, 40)!r}" if isinstance(value, str) and value else "is missing"
        raise self.error(field, what, f"use {meant!r}" if meant else f"use one of {listed}")

    def number(self, field: str, default: float, low: float, high: float) -> float:
        """Return a number within bounds."""
        value = self._take(field, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            shown = kind_of(value) if isinstance(value, bool) or not isinstance(value, int | float) else f"{value:g}"
            raise self.error(field, f"is {shown}", f"use a number from {low:g} to {high:g}")
        return value

    def whole(self, field: str, default: int, low: int, high: int) -> int:
        """Return a whole number within bounds."""
        value = self.number(field, default, low, high)
        if value != int(value):
            raise self.error(field, f"is {value:g}", "use a whole number")
        return int(value)

    def texts(self, field: str) -> list[str]:
        """Return a list of texts; a single text counts as a list."""
        value = self._take(field, [])
        listed = [value] if isinstance(value, str) else value
        if not isinstance(listed, list) or not all(isinstance(one, str) and one.isprintable() for one in listed):
            raise self.error(field, f"is {kind_of(value)}", "use a list of texts")
        if len(listed) > _MAX_TEXTS or any(not 0 < len(one) <= _MAX_TEXT for one in listed):
            raise self.error(field, "is too long or has empty texts", f"use at most {_MAX_TEXTS} texts")
        return [str(one) for one in listed]

    def objects(self, field: str) -> list[Fields]:
        """Return a list of objects."""
        value = self._take(field, [])
        if not isinstance(value, list) or len(value) > _MAX_TEXTS:
            raise self.error(field, f"is {kind_of(value)}", f"use a list of at most {_MAX_TEXTS} objects")
        return [Fields(one, f"{self.path}.{field}[{index}]") for index, one in enumerate(value)]

    def finish(self) -> None:
        """Raise ConfigError if there are fields that were not read."""
        for field in self._entry:
            if field not in self._known:
                meant = nearest(str(field), self._known)
                fix = f"use {meant!r}" if meant else f"use {', '.join(self._known)}"
                raise self.error(one_line(str(field), 40), "is not a field of this type", fix)

    def _take(self, field: str, default: Any) -> Any:
        self._known.append(field)
        return self._entry.get(field, default)
