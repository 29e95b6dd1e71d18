"""Strict reading of untrusted JSON: bounded text in, typed values out, and a path for whatever does not fit.

A converter that guesses is worse than none: ``True``, ``1.9`` and ``"12"`` are not integers of their own
accord. What api.md §8 tolerates is written out here (integers as ASCII digits in text, ``null`` and empty
text for "unset", epoch seconds for times) and nothing else. A message names the path and the kinds, never
the value: a value may be a secret.
"""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from typing import Any, NoReturn

from certctrl.errors import BadAnswerError

INT64 = 2**63 - 1
SAFE_INT = 2**53 - 1
MAX_DEPTH = 32
MAX_TEXT = 262_144

_DIGITS = re.compile(r"-?[0-9]{1,19}", re.ASCII)
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_LONE = re.compile("[\ud800-\udfff]")
_YEAR_9999 = 253_402_300_799


class Misfit(ValueError):
    """A value of the wrong kind or out of bounds; ``str()`` is ``path: expected …, got …``."""


def kind_of(value: object) -> str:
    """Return the JSON word for a value's kind, for messages that must not show the value."""
    if value is None:
        return "null"
    words = {bool: "true/false", str: "text", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return words.get(type(value), type(value).__name__)


def parse_json(body: bytes | str) -> Any:
    """Parse UTF-8 JSON, bounded in depth, without NaN; lone surrogates become U+FFFD. Raises BadAnswerError."""
    try:
        text = body if isinstance(body, str) else body.decode("utf-8")
        value = json.loads(text, parse_constant=_no_constant)
    except RecursionError:
        raise BadAnswerError("the answer is nested too deeply") from None
    except ValueError:  # also UnicodeDecodeError, and integers beyond Python's digit limit
        raise BadAnswerError("the answer is not valid JSON") from None
    _check_depth(value)
    raw = body.encode("utf-8", "replace") if isinstance(body, str) else body
    return _scrubbed(value) if _SURROGATE.search(raw) else value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for node in level
            for child in (node.values() if type(node) is dict else node if type(node) is list else ())
            if type(child) is dict or type(child) is list
        ]
        if not level:
            return
    raise BadAnswerError("the answer is nested too deeply")


def _scrubbed(value: Any) -> Any:
    """Replace what no file, log or header could carry: text that has no UTF-8 form."""
    if isinstance(value, str):
        return _LONE.sub("�", value)
    if isinstance(value, list):
        return [_scrubbed(item) for item in value]
    if isinstance(value, dict):
        return {_scrubbed(key): _scrubbed(item) for key, item in value.items()}
    return value


def integer_of(value: object, path: str, *, ge: int = 0, le: int = INT64) -> int:
    """Return an integer, also from ASCII digits in text; refuse booleans, floats and what is out of bounds."""
    if type(value) is str and _DIGITS.fullmatch(value):
        number = int(value)
    elif type(value) is int:
        number = value
    else:
        raise Misfit(f"{path}: expected an integer, got {kind_of(value)}")
    if not ge <= number <= le:
        raise Misfit(f"{path}: expected an integer from {ge} to {le}")
    return number


def text_of(value: object, path: str, *, limit: int = MAX_TEXT) -> str:
    """Return text of at most ``limit`` characters."""
    if not isinstance(value, str):
        raise Misfit(f"{path}: expected text, got {kind_of(value)}")
    if len(value) > limit:
        raise Misfit(f"{path}: longer than {limit} characters")
    return value


class Reader:
    """Read one JSON object field by field; every method takes aliases and uses the first that is set.

    Unset is: absent, ``null``, and ``""``.
    """

    __slots__ = ("path", "raw")

    def __init__(self, raw: object, path: str = "data") -> None:
        if not isinstance(raw, dict):
            raise Misfit(f"{path}: expected an object, got {kind_of(raw)}")
        self.raw: dict[str, Any] = raw
        self.path = path

    def at(self, name: str) -> str:
        """Return the path of a field."""
        return f"{self.path}.{name}"

    def find(self, *names: str) -> tuple[str, Any]:
        """Return the first name that is set and its value; else the first name and None."""
        for name in names:
            value = self.raw.get(name)
            if value is not None and value != "":
                return name, value
        return names[0], None

    def required(self, *names: str) -> tuple[str, Any]:
        """Return as ``find``, raise Misfit when nothing is set."""
        name, value = self.find(*names)
        if value is None:
            raise Misfit(f"{self.at(name)}: missing")
        return name, value

    def integer(self, *names: str, ge: int = 0, le: int = INT64) -> int:
        """Return a required integer."""
        name, value = self.required(*names)
        return integer_of(value, self.at(name), ge=ge, le=le)

    def maybe_integer(self, *names: str, ge: int = 0, le: int = INT64) -> int | None:
        """Return an integer or None when unset."""
        name, value = self.find(*names)
        return None if value is None else integer_of(value, self.at(name), ge=ge, le=le)

    def text(self, *names: str, limit: int = MAX_TEXT) -> str:
        """Return required, non-empty text."""
        name, value = self.required(*names)
        return text_of(value, self.at(name), limit=limit)

    def maybe_text(self, *names: str, limit: int = MAX_TEXT) -> str | None:
        """Return text or None when unset."""
        name, value = self.find(*names)
        return None if value is None else text_of(value, self.at(name), limit=limit)

    def texts(self, *names: str) -> tuple[str, ...]:
        """Return a list of non-empty texts; unset is empty."""
        name, value = self.find(*names)
        if value is None:
            return ()
        if not isinstance(value, list):
            raise Misfit(f"{self.at(name)}: expected a list, got {kind_of(value)}")
        found = tuple(text_of(item, f"{self.at(name)}[{i}]") for i, item in enumerate(value))
        if "" in found:
            raise Misfit(f"{self.at(name)}[{found.index('')}]: empty")
        return found

    def flag(self, name: str, default: bool) -> bool:
        """Return true or false."""
        value = self.raw.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise Misfit(f"{self.at(name)}: expected true or false, got {kind_of(value)}")
        return value

    def moment(self, *names: str) -> str:
        """Return a time as RFC 3339 text, also from epoch seconds; unset is empty."""
        name, value = self.find(*names)
        if value is None:
            return ""
        if type(value) is int or type(value) is float:
            if not 0 <= value <= _YEAR_9999:
                raise Misfit(f"{self.at(name)}: not a time")
            return datetime.fromtimestamp(int(value), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return text_of(value, self.at(name), limit=64)

    def child(self, name: str) -> Reader:
        """Return a reader of a required object."""
        return Reader(self.required(name)[1], self.at(name))
