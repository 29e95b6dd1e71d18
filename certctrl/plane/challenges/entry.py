"""One entry of an issuer's ``challenges``: the fields that all types have, and how they are read."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_network
from typing import TypeVar

from certctrl import lean
from certctrl.plane.setting_hooks import Hook, SettingsClass, line, texts_like
from certctrl.text import ascii_name, is_name


@lean.frozen(kw_only=True)
class Entry:
    """The fields of every type."""

    type: str = ""
    domains: tuple[str, ...] = ()
    """Names, wildcards and networks that it proves; empty: all."""


E = TypeVar("E", bound=Entry)


def entry_class(cls: type[E], hooks: Mapping[str, Hook]) -> SettingsClass[E]:
    """Return how entries of a type are structured; ``hooks``: of its own fields."""
    unknown = "is not a field of this type"
    return SettingsClass(cls, {**_HOOKS, **hooks}, unknown=unknown, example=EXAMPLE)


EXAMPLE = '{"type": "rfc2136"}'


def _pattern(text: str) -> str:
    """Return a name, a wildcard, a network or ``*``, in its usual form. Raises ValueError."""
    pattern = ascii_name(text.strip().rstrip(".").lower()).lower()
    try:
        return str(ip_network(pattern, strict=False))
    except ValueError:
        if pattern != "*" and not is_name(pattern.removeprefix("*.")):
            raise
    return pattern


_HOOKS: Mapping[str, Hook] = {
    "type": line(),
    "domains": texts_like(_pattern, "use for example example.com, *.example.com, 192.0.2.0/24 or *"),
}
