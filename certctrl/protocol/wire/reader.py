"""Read untrusted JSON into attrs values, through one converter that is built once.

The converter is tolerant where the wire contract is (unknown fields, integers as ASCII digits in text, ``null`` and
empty text for "unset", epoch seconds for times) and strict everywhere else: cattrs alone would accept ``True``,
``1.9`` and ``"12"`` as integers. Text, integers and lists are bounded. An error names the JSON path and the kinds,
never the value, which may be a secret.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime
from functools import cache
from typing import Any, NoReturn, Protocol, TypeVar

import attrs
from cattrs import BaseValidationError, ClassValidationError, Converter
from cattrs.gen import make_dict_structure_fn, override

from certctrl.errors import BadAnswerError, CertctrlError
from certctrl.text import kind_of

INT64 = 2**63 - 1
SAFE_INT = 2**53 - 1
"""The largest integer that every JSON implementation keeps exact."""
MAX_DEPTH = 32
MAX_TEXT = 262_144
"""Characters."""
MAX_LIST = 10_000
MAX_VALUES = 100_000
"""Approximate number of values in one text; a megabyte of tiny values would take thirty in memory."""

_DIGITS = re.compile(r"-?[0-9]{1,19}", re.ASCII)
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]|[\ud800-\udfff]")  # escaped, or in a text that was not decoded here
_LONE = re.compile("[\ud800-\udfff]")
_YEAR_9999 = 253_402_300_799

T = TypeVar("T", bound=attrs.AttrsInstance)
T_co = TypeVar("T_co", covariant=True)


class Hook(Protocol):
    """Function that structures one value; cattrs also passes its type."""

    def __call__(self, value: Any, kind: Any = ..., /) -> Any: ...


class Misfit(ValueError):
    """A value of the wrong kind or out of bounds; ``str()`` is ``path: expected …, got …``."""

    def __init__(self, what: str, path: str = "") -> None:
        super().__init__(f"{path}: {what}" if path else what)
        self.what = what
        self.path = path
        """JSON path; inside a hook, relative to the value (``[3]``)."""


def parse_json(body: bytes | str, most: int = MAX_VALUES) -> Any:
    """Parse UTF-8 JSON of bounded depth and ``most`` values, without NaN; lone surrogates become U+FFFD.

    Numbers beyond a float become the largest one: JSON could not repeat infinity. Raises BadAnswerError.
    """
    try:
        text = body if isinstance(body, str) else body.decode()
        if has_too_many_values(text, most):
            raise BadAnswerError(f"the answer has more than {most} values")
        value = _DECODER.decode(text)
    except RecursionError:
        raise BadAnswerError("the answer is nested too deeply") from None
    except ValueError:  # including UnicodeDecodeError, and integers beyond Python's digit limit
        raise BadAnswerError("the answer is not valid JSON") from None
    _check_depth(value)
    # decoding from UTF-8 leaves escaped surrogates only, and this search is slow
    may_have_any = not isinstance(body, bytes) or "\\u" in text
    return _scrubbed(value) if may_have_any and _SURROGATE.search(text) else value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def has_too_many_values(text: str, most: int = MAX_VALUES) -> bool:
    """Return whether JSON may have more than ``most`` values, before it is parsed.

    Each value except the first follows a bracket or comma; those inside of texts count, too.
    """
    return sum(map(text.count, "{[,")) > most


def _finite(text: str) -> float:
    return max(-sys.float_info.max, min(float(text), sys.float_info.max))


_DECODER = json.JSONDecoder(parse_constant=_no_constant, parse_float=_finite)


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
    """Replace lone surrogates, which have no UTF-8 form for files, logs and headers."""
    if isinstance(value, str):
        return _LONE.sub("�", value)
    if isinstance(value, list):
        return [_scrubbed(item) for item in value]
    if isinstance(value, dict):
        return {_scrubbed(key): _scrubbed(item) for key, item in value.items()}
    return value


# --- hooks: one value each ---------------------------------------------------------------------------------


def integer(ge: int = 0, le: int = INT64, *, digits: bool = True) -> Hook:
    """Return a hook for integers, with ``digits`` also as ASCII digits in text; booleans and floats are refused."""

    def structure(value: Any, _: Any = None) -> int:
        if digits and type(value) is str and _DIGITS.fullmatch(value):
            value = int(value)
        elif type(value) is not int:
            raise Misfit(f"expected an integer, got {kind_of(value)}")
        if not ge <= value <= le:
            raise Misfit(f"expected an integer from {ge} to {le}")
        return int(value)

    return structure


def text(limit: int = MAX_TEXT) -> Hook:
    """Return a hook for text of at most ``limit`` characters."""

    def structure(value: Any, _: Any = None) -> str:
        if not isinstance(value, str):
            raise Misfit(f"expected text, got {kind_of(value)}")
        if len(value) > limit:
            raise Misfit(f"longer than {limit} characters")
        return value

    return structure


def printable(limit: int) -> Hook:
    """Return a hook for printable text of at most ``limit`` characters."""
    bounded = text(limit)

    def structure(value: Any, _: Any = None) -> str:
        found: str = bounded(value)
        if not found.isprintable():
            raise Misfit("expected printable text")
        return found

    return structure


def bounded_list(value: Any, limit: int = MAX_LIST) -> list[Any]:
    """Return a list of at most ``limit`` values of any kind."""
    if not isinstance(value, list):
        raise Misfit(f"expected a list, got {kind_of(value)}")
    if len(value) > limit:
        raise Misfit(f"more than {limit} items")
    return value


def json_object(value: Any, _: Any = None) -> dict[str, Any]:
    """Return an object whose members are read later, or by others."""
    if not isinstance(value, dict):
        raise Misfit(f"expected an object, got {kind_of(value)}")
    return value


def unread(value: Any, _: Any = None) -> Any:
    """Return a value of any kind, which is read later."""
    return value


def or_default(hook: Callable[[Any], Any], default: Any = None) -> Hook:
    """Return a hook that reads a value as the default if it does not fit, because it must not refuse the rest."""

    def structure(value: Any, _: Any = None) -> Any:
        try:
            return hook(value)
        except Misfit:
            return default

    return structure


_any_text = text()


def texts(value: Any, _: Any = None) -> tuple[str, ...]:
    """Return a list of non-empty texts."""
    for i, item in enumerate(bounded_list(value)):
        try:
            _any_text(item)
        except Misfit as misfit:
            raise Misfit(misfit.what, f"[{i}]") from None
        if not item:
            raise Misfit("empty", f"[{i}]")
    return tuple(value)


def flag(value: Any, _: Any = None) -> bool:
    """Return true or false."""
    if not isinstance(value, bool):
        raise Misfit(f"expected true or false, got {kind_of(value)}")
    return value


def moment(value: Any, _: Any = None) -> str:
    """Return a time as RFC 3339 text; seconds or, above the year 9999, milliseconds since the epoch are converted."""
    if type(value) is int or type(value) is float:
        value = value / 1000 if _YEAR_9999 < value <= 1000 * _YEAR_9999 else value
        if not 0 <= value <= _YEAR_9999:
            raise Misfit("not a time")
        return datetime.fromtimestamp(int(value), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    found: str = _moment_text(value)
    return found


_moment_text = text(64)


def number(value: Any, _: Any = None) -> float:
    """Return a JSON number as a float."""
    if type(value) is not int and type(value) is not float:
        raise Misfit(f"expected a number, got {kind_of(value)}")
    if not -SAFE_INT <= value <= SAFE_INT:
        raise Misfit(f"expected a number from {-SAFE_INT} to {SAFE_INT}")
    return float(value)


# --- the converter -----------------------------------------------------------------------------------------


def _converter() -> Converter:
    converter = Converter(detailed_validation=True)
    converter.register_structure_hook(int, integer())
    converter.register_structure_hook(str, _any_text)
    converter.register_structure_hook(bool, flag)
    converter.register_structure_hook(float, number)
    converter.register_structure_hook_func(lambda kind: kind == tuple[str, ...], texts)
    return converter


CONVERTER = _converter()
_NAMES: dict[type, Mapping[str, str]] = {}
_NONE: Mapping[str, Any] = {}


class Read(Protocol[T_co]):
    """Function that structures a JSON object; raises Misfit with the JSON path, which begins with ``path``."""

    def __call__(self, raw: object, path: str = ...) -> T_co: ...


def wire_class(
    cls: type[T],
    fields: Mapping[str, Hook] = _NONE,
    *,
    names: Mapping[str, str] = _NONE,
    shown: Mapping[str, str] = _NONE,
    omit: Collection[str] = (),
    prepare: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
    check: Callable[[T], T] | None = None,
) -> Read[T]:
    """Register how the converter structures a class, and return a function that does so.

    Unset fields (absent, ``null`` or ``""``) get the default of their attribute, or are reported as missing.
    ``fields``: hooks by attribute, where the hook of its type is not strict enough. ``names``: wire names by attribute,
    where they differ. ``shown``: names in errors, likewise. ``omit``: attributes that are never read. ``prepare`` may
    change the JSON object before, without its unset fields; ``check`` the value after.
    """
    _NAMES[cls] = {**names, **shown}

    @cache
    def built() -> tuple[Hook, frozenset[str]]:  # at the first use: most classes are never read by most processes
        attributes = attrs.fields(attrs.resolve_types(cls))
        overrides: dict[str, Any] = {
            one.name: override(omit=True)
            if one.name in omit
            else override(rename=names.get(one.name), struct_hook=fields.get(one.name))
            for one in attributes
        }
        build = make_dict_structure_fn(cls, CONVERTER, _cattrs_use_linecache=False, **overrides)
        return build, frozenset(one.name for one in attributes if one.type is bool)

    def structure(raw: Any, _: Any = None) -> T:
        if not isinstance(raw, dict):
            raise Misfit(f"expected an object, got {kind_of(raw)}")
        build, flags = built()
        row = {name: value for name, value in raw.items() if value is not None and (value != "" or name in flags)}
        value: T = build(row if prepare is None else prepare(row), cls)
        return value if check is None else check(value)

    def read(raw: object, path: str = "data") -> T:
        try:
            return structure(raw)
        except (BaseValidationError, Misfit) as error:
            raise _as_ours(error, path) from None

    CONVERTER.register_structure_hook(cls, structure)
    return read


def from_answer(read: Read[T], data: object, path: str) -> T:
    """Structure a part of an answer; raises BadAnswerError with the JSON path if it does not fit."""
    try:
        return read(data, path)
    except Misfit as misfit:
        raise BadAnswerError(str(misfit)) from None


def object_in(data: object, path: str) -> dict[str, Any]:
    """Return an object in an answer, whose members are read later; raises BadAnswerError with the JSON path."""
    try:
        return json_object(data)
    except Misfit as misfit:
        raise BadAnswerError(f"{path}: {misfit.what}") from None


def objects_in(data: object, path: str, limit: int = MAX_LIST) -> list[dict[str, Any]]:
    """Return a list of such objects."""
    try:
        rows = bounded_list(data, limit)
    except Misfit as misfit:
        raise BadAnswerError(f"{path}: {misfit.what}") from None
    return [object_in(row, f"{path}[{number}]") for number, row in enumerate(rows)]


def alias(name: str, other: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Return a ``prepare`` that reads a field from another name if its own is unset."""

    def prepare(row: dict[str, Any]) -> dict[str, Any]:
        if name not in row and other in row:
            row[name] = row[other]
        return row

    return prepare


def _as_ours(error: Exception, path: str) -> CertctrlError | Misfit:
    """Return the first failure in a cattrs error as one of our errors, with its JSON path."""
    while isinstance(error, ClassValidationError):
        inner, note = error.group_exceptions()[0][0]
        path += f".{_NAMES[error.cl].get(note.name, note.name)}"
        error = inner
    if isinstance(error, Misfit):
        return type(error)(error.what, path + error.path)
    if isinstance(error, KeyError):
        return Misfit("missing", path)
    if isinstance(error, CertctrlError):
        return error
    raise error
