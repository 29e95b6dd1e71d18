"""Normalise domain names and match them against SAN entries. Pure."""

from __future__ import annotations

import ipaddress

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


def covers(name: str, domain: str) -> bool:
    """Return whether a SAN entry covers a name; a wildcard matches exactly one label."""
    if name == domain:
        return True
    label, _, parent = domain.partition(".")
    return name.startswith("*.") and label not in ("", "*") and name[2:] == parent
