"""Structure request bodies with cattrs: strict types, unknown fields ignored, errors as 400 with the JSON path.

Fields of body classes are annotated with a rule where the type alone is not enough.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from enum import Enum
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import attrs
from cattrs import BaseValidationError, Converter, transform_error
from cattrs.gen import make_dict_structure_fn

from certctrl import lean
from certctrl.plane.errors import bad_request
from certctrl.plane.http.reading import MAX_ID, clean_line

T = TypeVar("T")

_PUBLIC_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{7,63}", re.ASCII)


class Rule(ABC):
    """The values that a field accepts."""

    @property
    @abstractmethod
    def expected(self) -> str:
        """The accepted values, for the error message."""

    @abstractmethod
    def read(self, value: Any) -> Any:
        """Return the value to keep; raises ValueError if it does not fit."""


@lean.frozen
class Line(Rule):
    """Text for display, made one clean line; null counts as empty."""

    limit: int
    expected = "a text"

    def read(self, value: Any) -> str:
        """Return the line; raises ValueError for anything but text and null."""
        _require(value is None or isinstance(value, str))
        return clean_line(value or "", self.limit)


@lean.frozen
class Text(Rule):
    """Text of 1 to ``limit`` characters, kept unchanged; ``optional``: any empty value counts as None."""

    limit: int
    optional: bool = False

    @property
    def expected(self) -> str:
        """The accepted lengths."""
        return f"a text of 1 to {self.limit} characters"

    def read(self, value: Any) -> str | None:
        """Return the text; raises ValueError if it is not text, empty or too long."""
        if self.optional and not value:
            return None
        _require(isinstance(value, str) and 0 < len(value) <= self.limit)
        return str(value)


@lean.frozen
class DeviceId(Rule):
    """The id that a device chose for itself, usually a UUID; ``optional``: any empty value counts as ``""``."""

    optional: bool = False
    expected = "a UUID"

    def read(self, value: Any) -> str:
        """Return the id; raises ValueError unless it is 8 to 64 plain characters."""
        if self.optional and not value:
            return ""
        _require(isinstance(value, str) and _PUBLIC_ID.fullmatch(value) is not None)
        return str(value)


@lean.frozen
class Whole(Rule):
    """A whole number from 1, or ``least``, to 2**53; ``nullable``: null is kept as None."""

    nullable: bool = False
    least: int = 1

    @property
    def expected(self) -> str:
        """The bounds."""
        return f"a whole number from {self.least} to {MAX_ID}"

    def read(self, value: Any) -> int | None:
        """Return the number; raises ValueError if it is out of bounds, a boolean or not a number."""
        if self.nullable and value is None:
            return None
        number = value if isinstance(value, int) and not isinstance(value, bool) else -1
        _require(self.least <= number <= MAX_ID)
        return number


@lean.frozen
class Between(Rule):
    """A whole number within bounds."""

    least: int
    most: int

    @property
    def expected(self) -> str:
        """The bounds."""
        return f"a whole number from {self.least} to {self.most}"

    def read(self, value: Any) -> int:
        """Return the number; raises ValueError if it is out of bounds, a boolean or not a number."""
        _require(type(value) is int and self.least <= value <= self.most)
        return int(value)


@lean.frozen
class LooseLine(Rule):
    """A line for display from a report: numbers become text, anything else that is not text becomes empty."""

    limit: int
    expected = "a text"

    def read(self, value: Any) -> str:
        """Return the line; never raises."""
        shown = isinstance(value, str | int | float) and not isinstance(value, bool)
        return clean_line(str(value), self.limit) if shown else ""


@lean.frozen
class Loose(Rule):
    """A value from a report that becomes an empty one of its kind if it does not fit."""

    kind: type
    expected = "any value"

    def read(self, value: Any) -> Any:
        """Return the value if it is of the kind, and a number within 0 and 2**53; otherwise an empty one."""
        fits = type(value) is self.kind and (not isinstance(value, int) or 0 <= value < MAX_ID)
        return value if fits else self.kind()


@lean.frozen
class Table(Rule):
    """An object whose members are checked elsewhere; null counts as empty."""

    expected = "an object"

    def read(self, value: Any) -> dict[str, Any]:
        """Return the object; raises ValueError for another type."""
        _require(value is None or isinstance(value, dict))
        return dict(value or {})


@lean.frozen
class Raw(Rule):
    """Any JSON value, checked elsewhere."""

    expected = "any value"

    def read(self, value: Any) -> Any:
        """Return the value."""
        return value


@lean.frozen
class AtMost(Rule):
    """A list of at most ``limit`` items, each structured by its own type; null counts as empty unless ``required``."""

    limit: int
    required: bool = False

    @property
    def expected(self) -> str:
        """The highest number of items."""
        return f"a list of at most {self.limit} items"

    def read(self, value: Any) -> list[Any]:
        """Return the raw items; raises ValueError for another type or too many."""
        if value is None and not self.required:
            return []
        _require(isinstance(value, list) and len(value) <= self.limit)
        return list(value)


Name = Annotated[str, Line(100)]
Reason = Annotated[str, Line(200)]
Secret = Annotated[str, Text(1024)]
Id = Annotated[int, Whole()]
Tags = Annotated[tuple[Annotated[str, Text(200)], ...], AtMost(100)]


def new_converter() -> Converter:
    """Return a converter for body classes: no coercion, defaults for absent fields, unknown fields ignored."""
    converter = Converter(detailed_validation=True)
    for kind in (str, int, bool):
        converter.register_structure_hook(kind, _exactly)
    converter.register_structure_hook_factory(attrs.has, lambda kind: _object_hook(kind, converter))
    converter.register_structure_hook_factory(
        lambda kind: _rule_of(kind) is not None, lambda kind: _ruled_hook(kind, converter)
    )
    return converter


def structured(converter: Converter, value: Any, kind: type[T]) -> T:
    """Return ``value`` as ``kind``; ErrorResponse 400 with the JSON path of the first field that does not fit."""
    try:
        return converter.structure(value, kind)
    except BaseValidationError as error:
        first = transform_error(error, path="", format_exception=lambda _, wanted: _expected(wanted))[0]
        expected, _, path = first.rpartition(" @ ")
        path = path.removeprefix(".")
        raise bad_request(f"{path}: expected {expected}", field=path) from None


def _exactly(value: Any, kind: type) -> Any:
    if issubclass(kind, Enum):  # cattrs uses the hook of str for a StrEnum, too
        return kind(value)
    _require(type(value) is kind)
    return value


def _object_hook(kind: Any, converter: Converter) -> Callable[[Any, Any], Any]:
    fields = make_dict_structure_fn(kind, converter)

    def structure(value: Any, wanted: Any) -> Any:
        _require(isinstance(value, dict))
        return fields(value, wanted)

    return structure


def _ruled_hook(kind: Any, converter: Converter) -> Callable[[Any, Any], Any]:
    rule = _rule_of(kind)
    assert rule is not None  # the condition under which the hook is chosen
    if not isinstance(rule, AtMost):
        return lambda value, _: rule.read(value)
    plain = get_args(kind)[0]
    return lambda value, _: converter.structure(rule.read(value), plain)


def _rule_of(kind: Any) -> Rule | None:
    if get_origin(kind) is not Annotated:
        return None
    return next((item for item in get_args(kind)[1:] if isinstance(item, Rule)), None)


def _expected(kind: Any) -> str:
    rule = _rule_of(kind)
    if rule is not None:
        return rule.expected
    if isinstance(kind, type) and issubclass(kind, Enum):
        return _listed([str(member.value) for member in kind])
    if get_origin(kind) is Literal:
        return _listed(list(get_args(kind)))
    plain = {str: "a text", int: "a whole number", bool: "true or false"}
    return plain.get(kind, "an object")


def _listed(choices: list[str]) -> str:
    *others, last = choices
    return f"{', '.join(others)} or {last}" if others else last


def _require(fits: bool) -> None:
    if not fits:
        raise ValueError("the value does not fit")
