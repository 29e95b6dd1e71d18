"""Rules that choose an issuer by the names of a certificate. Pure.

A rule is for a domain and all names below it (``example.com``), for the names below it only (``*.example.com``), for an
address or a network (``192.0.2.0/24``), or for everything (``*``). The most specific rule applies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ipaddress import ip_address, ip_network

from certctrl.plane.ca.domains import clean_name, is_address
from certctrl.plane.errors import bad_request

EVERYTHING = "*"


def clean_domain(text: str) -> str:
    """Return the canonical form of a rule's domain; ErrorResponse 400 if it is not one."""
    stripped = text.strip()
    if stripped == EVERYTHING:
        return stripped
    if "/" in stripped:
        try:
            return str(ip_network(stripped))
        except ValueError:
            raise bad_request(f"{stripped[:100]!r} is not a network", field="domain") from None
    return clean_name(stripped)


def issuer_for(names: Sequence[str], rules: Mapping[str, str], default: str) -> str:
    """Return the issuer of canonical names; ErrorResponse 400 if rules give them to several issuers."""
    chosen = {name: _issuer_of(name, rules, default) for name in names}
    if len(set(chosen.values())) > 1:
        first, other = next((a, b) for a in names for b in names if chosen[a] != chosen[b])
        what = f"Rules give {first} to issuer {chosen[first]} and {other} to issuer {chosen[other]}: name one issuer"
        raise bad_request(what, field="issuer")
    return chosen[names[0]]


def _issuer_of(name: str, rules: Mapping[str, str], default: str) -> str:
    matching = [domain for domain in rules if _matches(domain, name)]
    return rules[max(matching, key=_specificity)] if matching else default


def _matches(domain: str, name: str) -> bool:
    if domain == EVERYTHING:
        return True
    if is_address(name):
        return ip_address(name) in ip_network(domain) if "/" in domain or is_address(domain) else False
    plain = name.removeprefix("*.")
    if domain.startswith("*."):
        return plain.endswith(domain[1:]) or (name.startswith("*.") and plain == domain[2:])
    return plain == domain or plain.endswith(f".{domain}")


def _specificity(domain: str) -> tuple[int, int, int]:
    if domain == EVERYTHING:
        return (0, 0, 0)
    if "/" in domain or is_address(domain):
        return (1, ip_network(domain).prefixlen, 0)
    return (1, domain.count(".") + (not domain.startswith("*.")), len(domain))
