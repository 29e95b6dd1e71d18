"""Structure the settings of issuers and their challenges with cattrs; every error names the field and how to fix it.

What an operator gives is read strictly. What a control plane has stored may have fields of a later release, which are
ignored: planes of a fleet are upgraded one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import cached_property
from typing import Any, Generic, TypeVar, get_args, get_origin

import attrs
from cattrs import BaseValidationError, ClassValidationError, Converter
from cattrs.gen import make_dict_structure_fn, override

from certctrl.errors import ConfigError
from certctrl.text import kind_of, nearest, one_line

Hook = Callable[[Any, Any], Any]
"""Structures one value; the second argument is its type."""
T = TypeVar("T", bound=attrs.AttrsInstance)

MAX_LINE = 500
MAX_ITEMS = 100
_HUGE = 10**300


class Unfit(ValueError):
    """A value that does not fit; ``path`` is relative to the value inside a hook."""

    def __init__(self, what: str, fix: str, path: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.fix = fix
        self.path = path


class SettingsClass(Generic[T]):
    """How objects are structured as an attrs class.

    ``hooks``: by attribute; ``unknown``: the error about a field that the class lacks; ``example``: an object, for the
    error about another value.
    """

    def __init__(self, cls: type[T], hooks: Mapping[str, Hook], *, unknown: str, example: str = "{}") -> None:
        self._cls = cls
        self._hooks = hooks
        self._unknown = unknown
        self._example = example
        for converter, strict in ((_GIVEN, True), (_STORED, False)):
            converter.register_structure_hook(cls, self._hook(strict=strict))

    def given(self, value: object, path: str = "") -> T:
        """Return what an operator gives. Raises ConfigError, whose path begins with ``path``."""
        return self._read(_GIVEN, value, path)

    def stored(self, value: object) -> T:
        """Return what was stored after such a check. Raises ConfigError."""
        return self._read(_STORED, value, "")

    def _read(self, converter: Converter, value: object, path: str) -> T:
        try:
            return converter.structure(value, self._cls)
        except (BaseValidationError, Unfit) as error:
            unfit = _first(error)
            raise ConfigError(unfit.what, path=joined(path, unfit.path), fix=unfit.fix) from None

    def _hook(self, *, strict: bool) -> Hook:
        def structure(value: Any, _: Any) -> T:
            if not isinstance(value, Mapping):
                raise Unfit(f"is {kind_of(value)}", f"use an object such as {self._example}")
            if strict:
                self._refuse_unknown(value)
            found: T = self._build[strict](value, self._cls)
            return found

        return structure

    def _refuse_unknown(self, value: Mapping[str, Any]) -> None:
        known = [field.name for field in attrs.fields(self._cls)]
        for name in value:
            if name not in known:
                meant = nearest(str(name), known)
                fix = f"use {meant!r}" if meant else f"use {', '.join(known)}"
                raise Unfit(self._unknown, fix, one_line(str(name), 40))

    @cached_property
    def _build(self) -> dict[bool, Hook]:
        overrides: dict[str, Any] = {name: override(struct_hook=hook) for name, hook in self._hooks.items()}
        attrs.resolve_types(self._cls)
        return {
            strict: make_dict_structure_fn(self._cls, converter, _cattrs_use_linecache=False, **overrides)
            for converter, strict in ((_GIVEN, True), (_STORED, False))
        }


# --- hooks: one kind of value each -------------------------------------------------------------------------------


def line(limit: int = MAX_LINE) -> Hook:
    """Return a hook for a text of one line; white space around it is removed."""

    def structure(value: Any, _: Any = None) -> str:
        if not isinstance(value, str) or len(value) > limit or not value.isprintable():
            what = "is too long, or not one line" if isinstance(value, str) else f"is {kind_of(value)}"
            raise Unfit(what, f"use a text of one line, at most {limit} characters")
        return value.strip()

    return structure


def choice(choices: Collection[str]) -> Hook:
    """Return a hook for one of several texts."""

    def structure(value: Any, _: Any = None) -> str:
        if value in choices:
            return str(value)
        meant = nearest(value, choices) if isinstance(value, str) else None
        what = f"is {one_line(value, 40)!r}" if isinstance(value, str) and value else "is missing"
        raise Unfit(what, f"use {meant!r}" if meant else f"use one of {', '.join(choices)}")

    return structure


def number(low: float, high: float) -> Hook:
    """Return a hook for a number within bounds."""
    return _within(low, high, "a number")


def whole(low: int, high: int) -> Hook:
    """Return a hook for a whole number within bounds."""
    within = _within(low, high, "a whole number")

    def structure(value: Any, _: Any = None) -> int:
        return int(within(value, int))

    return structure


def _within(low: float, high: float, what: str) -> Hook:
    def structure(value: Any, kind: Any = None) -> float:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not low <= value <= high or (kind is int and value != int(value)):
            is_huge = isinstance(value, int) and abs(value) > _HUGE  # beyond a float
            shown = "too large" if is_huge else f"{value:g}" if is_number else kind_of(value)
            raise Unfit(f"is {shown}", f"use {what} from {low:g} to {high:g}")
        found: float = value
        return found

    return structure


def flag(value: Any, _: Any = None) -> bool:
    """Return true or false, which may be written as a text."""
    if value in ("true", "false"):
        return bool(value == "true")
    if not isinstance(value, bool):
        raise Unfit(f"is {kind_of(value)}", "use true or false")
    return value


def texts(value: Any, _: Any = None) -> tuple[str, ...]:
    """Return a list of texts; a single text counts as a list."""
    listed = [value] if isinstance(value, str) else value
    if not isinstance(listed, list) or not all(isinstance(one, str) and one.isprintable() for one in listed):
        raise Unfit(f"is {kind_of(value)}", "use a list of texts")
    if len(listed) > MAX_ITEMS or any(not 0 < len(one) <= MAX_LINE for one in listed):
        raise Unfit("is too long or has empty texts", f"use at most {MAX_ITEMS} texts")
    return tuple(listed)


def texts_like(check: Callable[[str], str], fix: str) -> Hook:
    """Return a hook for a list of texts, each after a check that raises ValueError for others."""

    def structure(value: Any, _: Any = None) -> tuple[str, ...]:
        return tuple(text_like(check, fix, one) for one in texts(value))

    return structure


def text_like(check: Callable[[str], str], fix: str, text: str) -> str:
    """Return a text after a check that raises ValueError for others."""
    try:
        return check(text)
    except ValueError:
        raise Unfit(f"contains {one_line(text, 60)!r}", fix) from None


def unread(value: Any, _: Any = None) -> Any:
    """Return a value of any kind, which is read later."""
    return value


def _objects_hook(kind: Any, converter: Converter) -> Hook:
    """Return the hook of a list of objects of one class."""
    (item, *_) = get_args(kind)

    def structure(value: Any, _: Any = None) -> tuple[Any, ...]:
        if not isinstance(value, list) or len(value) > MAX_ITEMS:
            raise Unfit(f"is {kind_of(value)}", f"use a list of at most {MAX_ITEMS} objects")
        found = []
        for index, one in enumerate(value):
            try:
                found.append(converter.structure(one, item))
            except (BaseValidationError, Unfit) as error:
                unfit = _first(error)
                raise Unfit(unfit.what, unfit.fix, joined(f"[{index}]", unfit.path)) from None
        return tuple(found)

    return structure


def _are_objects(kind: Any) -> bool:
    return get_origin(kind) is tuple and attrs.has(get_args(kind)[0])


def _converter() -> Converter:
    converter = Converter(detailed_validation=True, unstruct_collection_overrides={tuple: list})
    converter.register_structure_hook_factory(_are_objects, _objects_hook)
    return converter


_GIVEN, _STORED = _converter(), _converter()


def to_store(value: attrs.AttrsInstance) -> dict[str, Any]:
    """Return the JSON object of structured settings."""
    found: dict[str, Any] = _STORED.unstructure(value)
    return found


# --- errors ------------------------------------------------------------------------------------------------------


def _first(error: Exception) -> Unfit:
    """Return the first failure in a cattrs error."""
    path = ""
    while isinstance(error, ClassValidationError):
        inner, note = error.group_exceptions()[0][0]
        path, error = joined(path, note.name), inner
    if isinstance(error, KeyError):
        return Unfit("is not set", "set it", path)
    if not isinstance(error, Unfit):
        raise error
    return Unfit(error.what, error.fix, joined(path, error.path))


def joined(path: str, rest: str) -> str:
    """Return the path of a part of a value."""
    return path + rest if not path or not rest or rest.startswith("[") else f"{path}.{rest}"


def field_error(path: str, field: str, what: str, fix: str) -> ConfigError:
    """Return an error about a field of the object at ``path``."""
    return ConfigError(what, path=joined(path, field), fix=fix)
