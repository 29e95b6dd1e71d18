"""Define attrs classes whose methods are shared instead of generated; use these decorators instead of those of attrs.

attrs compiles ``__repr__``, ``__eq__`` and ``__hash__`` for each class, and keeps for each a second class with a
property per field; and each ``__init__`` has global names of its own. For the two hundred classes of an idle daemon
that was two megabytes of memory, and a seventh of the time of its imports. Everything else is as with attrs: slots,
validators, ``field(repr=False)``; only weak references need ``weakref_slot=True``.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from types import CodeType, FunctionType
from typing import TYPE_CHECKING, Any

import attrs

if TYPE_CHECKING:
    from attrs import define as define
    from attrs import frozen as frozen
else:

    def frozen(cls: type | None = None, /, **options: Any) -> Any:
        """Make a class of immutable values; with arguments, return the decorator."""
        return _lean(attrs.frozen, cls, options)

    def define(cls: type | None = None, /, **options: Any) -> Any:
        """Make a class of changeable values; with arguments, return the decorator."""
        return _lean(attrs.define, cls, options)


def _lean(make: Callable[..., type], cls: type | None, options: dict[str, Any]) -> Any:
    if cls is None:
        return lambda cls: _lean(make, cls, options)
    by_value = options.get("eq", True) and "__eq__" not in vars(cls)
    shared: dict[str, Any] = {} if "__repr__" in vars(cls) else {"__repr__": _represent}
    if by_value:
        shared |= {"__eq__": _is_equal, "__hash__": _hash if make is attrs.frozen else None}
        shared["__compared__"] = _COMPARED
    made: Any = make(**{"weakref_slot": False} | options | {"eq": False, "repr": False, "getstate_setstate": False})(
        cls
    )
    for name, method in shared.items():
        setattr(made, name, method)
    made.__attrs_attrs__ = tuple(made.__attrs_attrs__)
    made.__attrs_props__ = _props.setdefault(repr(made.__attrs_props__), made.__attrs_props__)
    if "__init__" not in vars(cls):
        made.__init__ = _lean_init(made.__init__)
    return made


_props: dict[str, Any] = {}
_codes: dict[CodeType, CodeType] = {}
_global_names: dict[tuple[Any, ...], dict[str, Any]] = {}
_set_any = object.__setattr__.__get__


def _lean_init(made: Any) -> Any:
    """Return a generated ``__init__`` that shares its code and its global names with all others that have the same."""
    code = made.__code__.replace(co_filename="<attrs>")
    code = _codes.setdefault(code, code)
    names = {name: made.__globals__[name] for name in code.co_names if name in made.__globals__}
    if names.get("_cached_setattr_get") == _set_any:  # attrs makes one for each class
        names["_cached_setattr_get"] = _set_any
    shared = _global_names.setdefault(tuple((name, id(value)) for name, value in names.items()), names)
    shared.setdefault("__builtins__", made.__globals__["__builtins__"])
    lean: Any = FunctionType(code, shared, "__init__", made.__defaults__, made.__closure__)
    lean.__kwdefaults__ = made.__kwdefaults__
    return lean


class _Compared:
    """Makes the function that returns a class's compared values when it is first needed; most are never."""

    def __get__(self, _: Any, kind: Any) -> Any:
        owner = next(
            one for one in kind.__mro__ if "__compared__" in vars(one)
        )  # another thread may have made it by now
        fields = [field.name for field in owner.__attrs_attrs__ if field.eq]
        owner.__compared__ = compared = attrgetter(*fields) if fields else type
        return compared


_COMPARED = _Compared()


def _represent(self: Any) -> str:
    shown = [f"{field.name}={getattr(self, field.name)!r}" for field in self.__attrs_attrs__ if field.repr]
    name = type(self).__qualname__.rsplit(">.", 1)[-1]
    return f"{name}({', '.join(shown)})"


def _is_equal(self: Any, other: Any) -> Any:
    if type(other) is not type(self):
        return NotImplemented
    return self.__compared__(self) == self.__compared__(other)


def _hash(self: Any) -> int:
    return hash(self.__compared__(self))
