"""Structure parsed JSON as frozen values with strict cattrs converters.

Operators' files and journals use a converter that refuses unknown keys; state files (`certctrl.store.state.converter`)
and manifests use tolerant ones. cattrs alone would accept ``"12"``, ``1.9`` and ``True`` as integers, and text as a
list. Errors name the JSON path, the expected and the actual kind, never the value, which may be a secret.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from functools import cache
from typing import Any, get_args, get_origin, get_type_hints

import attrs
from cattrs import BaseValidationError, ClassValidationError, Converter, ForbiddenExtraKeysError
from cattrs.gen import make_dict_structure_fn, make_dict_unstructure_fn, override

from certctrl.text import kind_of, nearest

Hook = Callable[[Any, Any], Any]
"""Structures one value; the second argument is its type."""

_HUGE = 1e300


class Mismatch(ValueError):
    """A value that does not fit; ``path`` is its JSON path, which is relative to the value inside a hook."""

    def __init__(self, path: str, what: str, fix: str | None = None) -> None:
        super().__init__(f"{path or 'top'}: {what}")
        self.path = path
        self.what = what
        self.fix = fix


def structure(kind: Any, raw: Any, path: str = "", *, converter: Converter | None = None) -> Any:
    """Return ``raw`` as ``kind``; unknown keys are refused unless another converter is given.

    Raises Mismatch whose path begins with ``path``.
    """
    try:
        return (converter or strict_converter()).structure(raw, kind)
    except (BaseValidationError, Mismatch) as error:
        raise _mismatch(error, path) from None


@cache
def strict_converter() -> Converter:
    """Return the converter that refuses unknown keys, built once."""
    return _converter(forbid_extra_keys=True)


def tolerant_converter() -> Converter:
    """Return a new converter that ignores unknown keys."""
    return _converter(forbid_extra_keys=False)


def _converter(*, forbid_extra_keys: bool) -> Converter:
    converter = Converter(forbid_extra_keys=forbid_extra_keys, unstruct_collection_overrides={tuple: list})
    converter.register_structure_hook(int, _integer)
    converter.register_structure_hook(float, _number)
    converter.register_structure_hook(bool, _flag)
    converter.register_structure_hook(str, _text)
    converter.register_structure_hook(StrEnum, _choice)
    converter.register_structure_hook_factory(_is_list, _list_hook)
    converter.register_structure_hook_factory(_is_mapping, _mapping_hook)
    converter.register_structure_hook_factory(attrs.has, _class_hook)
    converter.register_unstructure_hook(StrEnum, str)
    converter.register_unstructure_hook_factory(attrs.has, _class_unstructure_hook)
    return converter


# --- hooks: one kind of value each -----------------------------------------------------------------------


def _integer(raw: Any, _: Any) -> int:
    _need(type(raw) is int, "a whole number", raw)
    return int(raw)


def _number(raw: Any, _: Any) -> float:
    _need(type(raw) in (int, float), "a number", raw)
    _need(-_HUGE < raw < _HUGE, "a number of sensible size", raw)  # refuses NaN, too
    return float(raw)


def _flag(raw: Any, _: Any) -> bool:
    _need(type(raw) is bool, "true or false", raw)
    return bool(raw)


def _text(raw: Any, _: Any) -> str:
    _need(type(raw) is str, "text", raw)
    _need("\0" not in raw, "text without NUL", raw)
    return str(raw)


def _choice(raw: Any, kind: type[StrEnum]) -> StrEnum:
    return kind(check_choice(_text(raw, str), tuple(member.value for member in kind), ""))


def _is_list(kind: Any) -> bool:
    return get_origin(kind) is tuple


def _is_mapping(kind: Any) -> bool:
    return get_origin(kind) in (dict, Mapping)


def _list_hook(kind: Any, converter: Converter) -> Hook:
    item = get_args(kind)[0]
    hook = converter.get_structure_hook(item)

    def structure_list(raw: Any, _: Any) -> tuple[Any, ...]:
        _need(type(raw) is list, "a list", raw)
        found = []
        for number, each in enumerate(raw):
            try:
                found.append(hook(each, item))
            except (BaseValidationError, Mismatch) as error:
                raise _mismatch(error, f"[{number}]") from None
        return tuple(found)

    return structure_list


def _mapping_hook(kind: Any, converter: Converter) -> Hook:
    item = get_args(kind)[1]
    hook = converter.get_structure_hook(item)

    def structure_mapping(raw: Any, _: Any) -> dict[str, Any]:
        _need(type(raw) is dict, "an object", raw)
        found = dict(raw)
        for key, each in raw.items() if item is not Any else ():
            try:
                found[key] = hook(each, item)
            except (BaseValidationError, Mismatch) as error:
                raise _mismatch(error, join("", key)) from None
        return found

    return structure_mapping


def _class_hook(kind: Any, converter: Converter) -> Hook:
    """Return the hook of an attrs class, with bounds checked and trailing underscores removed from names.

    A field with ``key`` metadata has that key. One with ``inline`` metadata has none: its own fields are next to those
    of its owner.
    """
    fields = hints(kind)
    overrides: dict[str, Any] = {
        field.name: override(rename=key, struct_hook=_bounded(converter.get_structure_hook(hint), field.metadata))
        for key, (field, hint) in fields.items()
    }
    build = make_dict_structure_fn(kind, converter, _cattrs_use_linecache=False, **overrides)
    inline = [key for key, (field, _) in fields.items() if field.metadata.get("inline")]

    def structure_class(raw: Any, _: Any) -> Any:
        _need(type(raw) is dict, "an object", raw)
        return build(raw | dict.fromkeys(inline, raw) if inline else raw, kind)

    return structure_class


def _bounded(hook: Hook, metadata: Mapping[Any, Any]) -> Hook:
    if not any(metadata.get(name) is not None for name in ("ge", "le", "choices")):
        return hook

    def structure_bounded(raw: Any, kind: Any) -> Any:
        value = hook(raw, kind)
        check_bounds(value, metadata, "")
        return value

    return structure_bounded


def _class_unstructure_hook(kind: Any, converter: Converter) -> Callable[[Any], dict[str, Any]]:
    fields = hints(kind)
    overrides: dict[str, Any] = {field.name: override(rename=key) for key, (field, _) in fields.items()}
    to_row: Callable[[Any], dict[str, Any]] = make_dict_unstructure_fn(
        kind, converter, _cattrs_use_linecache=False, **overrides
    )
    inline = [key for key, (field, _) in fields.items() if field.metadata.get("inline")]
    if not inline:
        return to_row

    def unstructure_class(value: Any) -> dict[str, Any]:
        row = to_row(value)
        for key in inline:
            row = row.pop(key) | row
        return row

    return unstructure_class


@cache
def hints(kind: Any) -> dict[str, tuple[Any, Any]]:
    """Return JSON key -> (attrs field, resolved type)."""
    types_by_name = get_type_hints(kind)
    return {_key_of(field): (field, types_by_name[field.name]) for field in attrs.fields(kind)}


def _key_of(field: Any) -> str:
    key: str = field.metadata.get("key", field.name.rstrip("_"))
    return key


# --- bounds and choices ------------------------------------------------------------------------------------


def check_bounds(value: Any, meta: Mapping[str, Any], path: str) -> None:
    """Check a value, or each value of a mapping, against the ``ge``, ``le`` and ``choices`` of its field."""
    if isinstance(value, Mapping):
        for key, each in value.items():
            check_bounds(each, meta, join(path, key))
        return
    low, high, choices = meta.get("ge"), meta.get("le"), meta.get("choices")
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number and ((low is not None and value < low) or (high is not None and value > high)):
        raise Mismatch(path, f"expected {_range(low, high)}, found {str(value)[:24]}")
    if choices and isinstance(value, str):
        check_choice(value, choices, path)


def _range(low: float | None, high: float | None) -> str:
    if low is not None and high is not None:
        return f"{low:.12g} to {high:.12g}"
    return f"at least {low:.12g}" if low is not None else f"at most {high:.12g}"


def check_choice(value: str, choices: tuple[str, ...], path: str) -> str:
    """Return the value if it is one of the choices. Raises Mismatch."""
    if value not in choices:
        near = nearest(value, choices)
        fix = f"did you mean {near!r}?" if near else None
        raise Mismatch(path, f"expected one of {', '.join(choices)}, found another text", fix)
    return value


# --- errors ------------------------------------------------------------------------------------------------


def _mismatch(error: Exception, path: str) -> Mismatch:
    """Return the first failure below a cattrs error, an unknown key before others, with its path."""
    while isinstance(error, ClassValidationError):
        below, alone = error.group_exceptions()
        if alone:
            error = alone[0]
            break
        cause, note = below[0]
        field = attrs.fields_dict(error.cl)[note.name]
        if not field.metadata.get("inline"):
            path = join(path, _key_of(field))
        error = cause
        if isinstance(error, KeyError):
            return Mismatch(path, "is missing", f"add {_key_of(field)!r}")
    if isinstance(error, ForbiddenExtraKeysError):
        return unknown_key(min(error.extra_fields), hints(error.cl), path)
    if isinstance(error, Mismatch):
        separator = "." if path and error.path and not error.path.startswith("[") else ""
        return Mismatch(path + separator + error.path, error.what, error.fix)
    return Mismatch(path, str(error))


def unknown_key(key: str, known: Iterable[str], path: str) -> Mismatch:
    """Return the error for a key that does not exist, with the one that was probably meant."""
    names = list(known)
    near = nearest(key, names)
    fix = f"did you mean {near!r}?" if near else f"remove it; known keys: {', '.join(names)}"
    return Mismatch(join(path, key), "unknown key", fix)


def join(path: str, key: str) -> str:
    """Return the path of a key inside an object."""
    shown = key if key.isprintable() and len(key) <= 80 else ascii(key)[:80]
    return f"{path}.{shown}" if path else shown


def _need(fits: bool, expected: str, raw: Any) -> None:
    if not fits:
        raise Mismatch("", f"expected {expected}, found {kind_of(raw)}")
