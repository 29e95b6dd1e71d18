"""Normalise domain names and match them against SAN entries. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection

from certctrl.text import ascii_name


def plain_domain(domain: str) -> str:
    """Return a name as a SAN contains it: lower case, no final dot, international labels as ``xn--``."""
    text = domain.strip().rstrip(".").lower()
    if ":" in text or text[-1:].isdigit():  # no public domain ends in a digit
        try:
            return str(ipaddress.ip_address(text))
        except ValueError:
            pass
    return ascii_name(text).lower()


def is_covered(domain: str, names: Collection[str]) -> bool:
    """Return whether SAN entries (fastest as a set) cover a name; a wildcard matches exactly one label."""
    label, _, parent = domain.partition(".")
    return domain in names or (label not in ("", "*") and f"*.{parent}" in names)
