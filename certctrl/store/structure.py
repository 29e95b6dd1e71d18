"""Turn parsed JSON into frozen values, strictly: no coercion, no unknown key, every complaint with its path.

One small walker instead of a converter library: the files it reads are the operator's, so what counts is that
a mistake is named precisely (path, what was expected, what kind was found, the key that was probably meant)
and that no value is ever echoed, because some of them are secrets.
"""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Mapping
from enum import Enum
from functools import cache
from typing import Any

import attrs

_HUGE = 1e300


class Mismatch(Exception):
    """A value does not fit; ``path`` is where, from the top of the document."""

    def __init__(self, path: str, what: str, fix: str | None = None) -> None:
        super().__init__(f"{path or 'top'}: {what}")
        self.path = path
        self.what = what
        self.fix = fix


def structure(kind: Any, raw: Any, path: str = "", *, spare_keys: bool = False) -> Any:
    """Return ``raw`` as ``kind``: attrs class, scalar, enum, ``tuple[X, ...]``, ``Mapping[str, X]`` or ``X | None``.

    ``spare_keys`` ignores keys that the attrs classes do not know. Raises Mismatch.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        if raw is None:
            return None
        inner = next(argument for argument in arguments if argument is not types.NoneType)
        return structure(inner, raw, path, spare_keys=spare_keys)
    if origin is tuple:
        _need(isinstance(raw, list), "a list", raw, path)
        return tuple(structure(arguments[0], item, f"{path}[{i}]", spare_keys=spare_keys) for i, item in enumerate(raw))
    if origin in (Mapping, dict):
        _need(isinstance(raw, dict), "an object", raw, path)
        return {key: structure(arguments[1], raw[key], join(path, key), spare_keys=spare_keys) for key in raw}
    if attrs.has(kind):
        return _structure_class(kind, raw, path, spare_keys)
    if isinstance(kind, type) and issubclass(kind, Enum):
        _need(isinstance(raw, str), "text", raw, path)
        return kind(check_choice(raw, tuple(str(member.value) for member in kind), path))
    return _structure_scalar(kind, raw, path)


def _structure_class(kind: Any, raw: Any, path: str, spare_keys: bool) -> Any:
    _need(isinstance(raw, dict), "an object", raw, path)
    known = hints(kind)
    if not spare_keys and (unknown := next((key for key in raw if key not in known), None)) is not None:
        raise unknown_key(unknown, known, path)
    values = {}
    for key, (field, hint) in known.items():
        if field.metadata.get("inline"):  # its fields are next to those of its owner
            values[field.name] = structure(hint, raw, path, spare_keys=True)
        elif key in raw:
            where = join(path, key)
            values[field.name] = structure(hint, raw[key], where, spare_keys=spare_keys)
            check_bounds(values[field.name], field.metadata, where)
        elif field.default is attrs.NOTHING:
            raise Mismatch(join(path, key), "is missing", f"add {key!r}")
    return kind(**values)


def _structure_scalar(kind: Any, raw: Any, path: str) -> Any:
    if kind is float:
        number = isinstance(raw, int | float) and not isinstance(raw, bool)
        _need(number, "a number", raw, path)
        _need(-_HUGE < raw < _HUGE, "a number of sensible size", raw, path)  # NaN fails this too
        return float(raw)
    if kind is int:
        _need(isinstance(raw, int) and not isinstance(raw, bool), "a whole number", raw, path)
    elif kind is bool:
        _need(isinstance(raw, bool), "true or false", raw, path)
    elif kind is str:
        _need(isinstance(raw, str), "text", raw, path)
        _need("\0" not in raw, "text without NUL", raw, path)
    elif kind is not Any:
        raise TypeError(f"no rule for {kind!r}")
    return raw


def check_bounds(value: Any, meta: Mapping[str, Any], path: str) -> None:
    """Check a value, or each value of a mapping, against the ``ge``, ``le`` and ``choices`` of its field."""
    if isinstance(value, Mapping):
        for key, each in value.items():
            check_bounds(each, meta, join(path, key))
        return
    low, high, choices = meta.get("ge"), meta.get("le"), meta.get("choices")
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number and ((low is not None and value < low) or (high is not None and value > high)):
        raise Mismatch(path, f"expected {_span(low, high)}, found {str(value)[:24]}")
    if choices and isinstance(value, str):
        check_choice(value, choices, path)


def _span(low: float | None, high: float | None) -> str:
    if low is not None and high is not None:
        return f"{low:.12g} to {high:.12g}"
    return f"at least {low:.12g}" if low is not None else f"at most {high:.12g}"


def check_choice(value: str, choices: tuple[str, ...], path: str) -> str:
    """Return the value when it is one of the choices."""
    if value not in choices:
        near = difflib.get_close_matches(value, choices, n=1)
        fix = f"did you mean {near[0]!r}?" if near else None
        raise Mismatch(path, f"expected one of {', '.join(choices)}, found another text", fix)
    return value


def unknown_key(key: str, known: typing.Iterable[str], path: str) -> Mismatch:
    """Return the complaint about a key that does not exist, with the one that was probably meant."""
    names = list(known)
    near = difflib.get_close_matches(key, names, n=1, cutoff=0.6)
    fix = f"did you mean {near[0]!r}?" if near else f"remove it; known keys: {', '.join(names)}"
    return Mismatch(join(path, key), "unknown key", fix)


def join(path: str, key: str) -> str:
    """Return the path of a key inside an object."""
    shown = key if key.isprintable() and len(key) <= 80 else ascii(key)[:80]
    return f"{path}.{shown}" if path else shown


def kind_of(raw: Any) -> str:
    """Return what kind of JSON a value is, never the value."""
    match raw:
        case None:
            return "null"
        case bool():
            return "true or false"
        case int():
            return "a whole number"
        case float():
            return "a number with a fraction"
        case str():
            return "text" if raw else "empty text"
        case list():
            return "a list"
        case _:
            return "an object"


def _need(fits: bool, expected: str, raw: Any, path: str) -> None:
    if not fits:
        raise Mismatch(path, f"expected {expected}, found {kind_of(raw)}")


@cache
def hints(kind: Any) -> dict[str, tuple[Any, Any]]:
    """Return JSON key -> (attrs field, resolved type); a trailing underscore only dodges a Python keyword."""
    types_by_name = typing.get_type_hints(kind)
    return {field.name.rstrip("_"): (field, types_by_name[field.name]) for field in attrs.fields(kind)}
