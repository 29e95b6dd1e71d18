"""Define attrs classes whose methods are shared instead of generated; use these decorators instead of those of attrs.

attrs compiles ``__repr__``, ``__eq__`` and ``__hash__`` for each class, and keeps for each a second class with a
property per field; and each ``__init__`` has global names of its own. For the two hundred classes of an idle daemon
that was two megabytes of memory, and a seventh of the time of its imports. Everything else is as with attrs: slots,
validators, ``field(repr=False)``.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from types import FunctionType
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
    made: Any = make(**options | {"eq": False, "repr": False, "getstate_setstate": False})(cls)
    for name, method in shared.items():
        setattr(made, name, method)
    fields = made.__attrs_attrs__ = tuple(made.__attrs_attrs__)
    if by_value:
        compared = [field.name for field in fields if field.eq]
        made.__compared__ = attrgetter(*compared) if compared else type
    made.__attrs_props__ = _props.setdefault(repr(made.__attrs_props__), made.__attrs_props__)
    if "__init__" not in vars(cls):
        made.__init__ = _lean_init(made.__init__)
    return made


_props: dict[str, Any] = {}
_global_names: dict[tuple[Any, ...], dict[str, Any]] = {}


def _lean_init(made: Any) -> Any:
    """Return a generated ``__init__`` that shares its global names with all others that use the same."""
    code = made.__code__
    names = {name: made.__globals__[name] for name in code.co_names if name in made.__globals__}
    shared = _global_names.setdefault(tuple((name, id(value)) for name, value in names.items()), names)
    shared.setdefault("__builtins__", made.__globals__["__builtins__"])
    lean: Any = FunctionType(
        code.replace(co_filename="<attrs>"), shared, "__init__", made.__defaults__, made.__closure__
    )
    lean.__kwdefaults__ = made.__kwdefaults__
    return lean


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
