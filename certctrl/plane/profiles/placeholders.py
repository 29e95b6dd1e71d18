"""Placeholders in the items of profiles, such as ``{device.name}``, and the values that a device has for them."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from certctrl import lean
from certctrl.text import nearest, one_line

KNOWN = ("device.name", "device.id", "device.public_id", "device.tag.KEY", "cert.name", "cert.id")
"""For the documentation and for suggestions; ``KEY`` stands for the key of a tag such as ``env=prod``."""
OF_CERTIFICATE = ("cert.name", "cert.id")
_TAG = "device.tag."
_STAGED = "staged"
"""The agent's own placeholder, in ``check``."""
_WITHOUT = ("id", "type", "depends_on")
"""Keys of an item that contain no placeholders: items are known by their ids."""
_PLACEHOLDER = re.compile(r"\{\{([\w.=-]+)\}\}|(?<!\$)\{([\w.=-]+)\}", re.ASCII)
"""``{{name}}`` is the literal ``{name}``; ``${name}`` belongs to the shell."""
_SAFE = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._:@+=-]{0,252}[A-Za-z0-9_])?", re.ASCII)
"""Values that are safe in a path and as an argument: no separator, no option, no ``..``."""


class PlaceholderError(ValueError):
    """A placeholder is unknown, or a device has no usable value for it; ``path`` is that of the text in its item."""

    def __init__(self, what: str, path: str = "") -> None:
        super().__init__(what)
        self.path = path


@lean.frozen(kw_only=True)
class DeviceValues:
    """The values of a device."""

    id: int
    name: str
    public_id: str
    tags: Collection[str]
    certificates: Sequence[tuple[int, str]]
    """Id and primary name of each certificate that is assigned to it, by id."""


def used_in(item: Mapping[str, Any]) -> frozenset[str]:
    """Return the placeholders of an item. Raises PlaceholderError for an unknown one, and in a key that has none."""
    found = set()
    for path, text in _texts(item, ""):
        for match in _PLACEHOLDER.finditer(text):
            name = match[2]
            if name is None or (name == _STAGED and path.startswith(".check")):
                continue
            if any(path == f".{key}" or path.startswith(f".{key}[") for key in _WITHOUT):
                raise PlaceholderError("contains a placeholder, which is not possible here", path)
            if name not in OF_CERTIFICATE and not _is_of_device(name):
                meant = nearest(name, [*KNOWN, _STAGED])
                hint = (
                    f"did you mean {{{meant}}}?" if meant else f"there are {', '.join(KNOWN)}; {{{{…}}}} is plain text"
                )
                raise PlaceholderError(f"unknown placeholder {{{one_line(name, 40)}}}; {hint}", path)
            found.add(name)
    return frozenset(found)


def _is_of_device(name: str) -> bool:
    return name in KNOWN[:3] or (name.startswith(_TAG) and len(name) > len(_TAG))


def _texts(value: Any, path: str) -> Iterator[tuple[str, str]]:
    """Yield each text in a JSON value with its path."""
    match value:
        case str():
            yield path, value
        case list():
            for number, one in enumerate(value):
                yield from _texts(one, f"{path}[{number}]")
        case dict():
            for key, one in value.items():
                yield from _texts(one, f"{path}.{one_line(str(key), 40)}")


def filled(item: Mapping[str, Any], value_of: Callable[[str], str]) -> dict[str, Any]:
    """Return an item with values in place of its placeholders."""
    return {key: one if key in _WITHOUT else _filled(one, value_of, key) for key, one in item.items()}


def _filled(value: Any, value_of: Callable[[str], str], key: str) -> Any:
    match value:
        case str():
            return _PLACEHOLDER.sub(lambda match: _replaced(match, value_of, key), value)
        case list():
            return [_filled(one, value_of, key) for one in value]
        case dict():
            return {name: _filled(one, value_of, key) for name, one in value.items()}
        case _:
            return value


def _replaced(match: re.Match[str], value_of: Callable[[str], str], key: str) -> str:
    if match[2] is None:
        return f"{{{match[1]}}}"
    return match[0] if match[2] == _STAGED and key == "check" else value_of(match[2])


def values_of(device: DeviceValues, certificate: tuple[int, str] | None = None) -> Callable[[str], str]:
    """Return a function of the value of each placeholder. It raises PlaceholderError if there is no usable one."""

    def value_of(name: str) -> str:
        value = _value(device, certificate, name)
        if not _SAFE.fullmatch(value) or ".." in value:
            what = f"{one_line(value, 60)!r} cannot be the value of {{{name}}}" if value else f"it has no {name}"
            raise PlaceholderError(f"{what}: letters, digits and inner . _ : @ + = - are possible")
        return value

    return value_of


def _value(device: DeviceValues, certificate: tuple[int, str] | None, name: str) -> str:
    if name.startswith(_TAG):
        key = name.removeprefix(_TAG) + "="
        found = next((tag for tag in device.tags if tag.startswith(key)), None)
        if found is None:
            raise PlaceholderError(f"it has no tag {key}…, which {{{name}}} needs")
        return found.removeprefix(key)
    cert_id, domain = certificate or (0, "")
    values = {
        "device.name": device.name,
        "device.id": str(device.id),
        "device.public_id": device.public_id,
        "cert.id": str(cert_id),
        "cert.name": f"_wildcard.{domain[2:]}" if domain.startswith("*.") else domain,
    }
    return values[name]
