"""The names a certificate may carry: DNS names, one leading wildcard, IP addresses."""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import ip_address

from certctrl.plane.errors import bad_request

_LABEL = re.compile(r"(?!-)[a-z0-9-]{1,63}(?<!-)", re.ASCII)
_MOST = 100


def clean_name(text: str) -> str:
    """Return the canonical form of one name; Refused 400 when a certificate cannot carry it."""
    name = text.strip().rstrip(".").lower()
    try:
        return str(ip_address(name))
    except ValueError:
        pass
    if not name.isascii():
        raise bad_request("Write international names in their xn-- form", field="domains", value=text[:100])
    labels = name.removeprefix("*.").split(".")
    if len(name) > 253 or not all(_LABEL.fullmatch(label) for label in labels) or labels[-1].isdigit():
        raise bad_request("Not a DNS name or IP address", field="domains", value=text[:100])
    if name.startswith("*.") and len(labels) < 2:
        raise bad_request("A wildcard needs a domain of its own", field="domains", value=text[:100])
    return name


def clean_names(names: Iterable[str]) -> tuple[str, ...]:
    """Return canonical names without repeats, in order, the first being the primary; 1 to 100 of them."""
    cleaned = tuple(dict.fromkeys(clean_name(name) for name in names))
    if not cleaned:
        raise bad_request("At least one domain is needed", field="domains")
    if len(cleaned) > _MOST:
        raise bad_request(f"At most {_MOST} domains fit one certificate", field="domains")
    return cleaned


def is_address(name: str) -> bool:
    """Return True for an IP address."""
    try:
        ip_address(name)
    except ValueError:
        return False
    return True
