"""Names in certificates: DNS names, international ones as typed, one leading wildcard, IP addresses."""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import ip_address

from certctrl.plane.errors import bad_request
from certctrl.text import ascii_name

_LABEL = re.compile(r"(?!-)[a-z0-9-]{1,63}(?<!-)", re.ASCII)
_MAX_NAMES = 100


def clean_name(text: str) -> str:
    """Return the canonical form of one name, an international one as ``xn--``; ErrorResponse 400 if a certificate cannot contain it."""
    name = ascii_name(text.strip().rstrip(".").lower()).lower()
    try:
        return str(ip_address(name))
    except ValueError:
        pass
    labels = name.removeprefix("*.").split(".")
    if len(name) > 253 or not all(_LABEL.fullmatch(label) for label in labels) or labels[-1].isdigit():
        raise bad_request(f"{text[:100]!r} is not a DNS name or IP address", field="domains", value=text[:100])
    if name.startswith("*.") and len(labels) < 2:
        raise bad_request(f"{text[:100]!r} needs a domain after its wildcard", field="domains", value=text[:100])
    return name


def clean_names(names: Iterable[str]) -> tuple[str, ...]:
    """Return 1 to 100 canonical names without duplicates, in order; the first is the primary."""
    cleaned = tuple(dict.fromkeys(clean_name(name) for name in names))
    if not cleaned:
        raise bad_request("At least one domain is needed", field="domains")
    if len(cleaned) > _MAX_NAMES:
        raise bad_request(f"A certificate may have at most {_MAX_NAMES} domains", field="domains")
    return cleaned


def collides(name: str, reserved: str) -> bool:
    """Return whether a certificate for one of two canonical names is valid for the other, too."""
    return name == reserved or _covers(name, reserved) or _covers(reserved, name)


def _covers(wildcard: str, name: str) -> bool:
    return wildcard.startswith("*.") and not is_address(name) and name.partition(".")[2] == wildcard[2:]


def is_address(name: str) -> bool:
    """Return whether a name is an IP address."""
    try:
        ip_address(name)
    except ValueError:
        return False
    return True
