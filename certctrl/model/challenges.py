"""Challenges of certificate authorities (ACME) that an agent answers on its host.

Control plane and agent check what they send and receive with the same rules: a token becomes a file name and a part of
a URL, and the host publishes key authorizations.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from enum import StrEnum
from ipaddress import ip_address

import attrs

from certctrl import lean

MAX_CHALLENGES = 100
"""Most challenges that one host answers at a time."""
MAX_LIFE = 3600.0
"""Seconds after which an agent withdraws an answer, even without a signal to stop."""
WELL_KNOWN = "/.well-known/acme-challenge/"
MAX_IDENTIFIER = 253

_TOKEN = re.compile(r"[A-Za-z0-9_-]{16,128}", re.ASCII)
_THUMBPRINT = re.compile(r"[A-Za-z0-9_-]{43}", re.ASCII)
_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)", re.ASCII)


class ChallengeKind(StrEnum):
    """Types of challenges that an agent can answer."""

    HTTP_01 = "http-01"
    TLS_ALPN_01 = "tls-alpn-01"


@lean.frozen(kw_only=True)
class Challenge:
    """One challenge of an authority, and the answer to it."""

    kind: ChallengeKind
    token: str
    key_authorization: str = attrs.field(repr=False)
    identifier: str
    """Canonical name, or IP address as text."""
    until: float
    """Wall-clock seconds since the epoch when the answer is withdrawn."""
    directory: str = ""
    """Directory of the file with the answer; empty: a listener answers."""

    @property
    def key(self) -> tuple[ChallengeKind, str]:
        """Type and token, by which signals start and stop it."""
        return (self.kind, self.token)


def token_fault(token: str) -> str:
    """Return what is wrong with a token; empty if it is valid."""
    return "" if _TOKEN.fullmatch(token) else "expected 16 to 128 characters of base64url"


def key_authorization_fault(token: str, text: str) -> str:
    """Return what is wrong with a key authorization, which begins with its token (RFC 8555, section 8.1)."""
    start, _, thumbprint = text.partition(".")
    return "" if start == token and _THUMBPRINT.fullmatch(thumbprint) else "expected the token, a dot and a thumbprint"


def identifier_fault(identifier: str) -> str:
    """Return what is wrong with the name of a challenge; empty: it is canonical, and without a wildcard."""
    if (address := _address(identifier)) is not None:
        return "" if address == identifier else f"expected the address as {address}"
    labels = identifier.split(".")
    if len(identifier) > MAX_IDENTIFIER or not all(map(_LABEL.fullmatch, labels)) or labels[-1].isdigit():
        return "expected a DNS name in lower case, or an IP address"
    return ""


def pattern_fault(pattern: str) -> str:
    """Return what is wrong with an entry of a list of names, such as ``*.example.com``; empty if it is valid."""
    name = pattern.removeprefix("*.")
    if name != pattern and _address(name) is not None:
        return "an address has no names below it"
    return identifier_fault(name)


def covers(patterns: Collection[str], identifier: str) -> bool:
    """Return whether a list of names allows a name, literally or by a wildcard; an empty list allows all."""
    above = identifier.split(".")[1:] if _address(identifier) is None else []
    domains = {"*." + ".".join(above[number:]) for number in range(len(above))}
    return not patterns or identifier in patterns or not domains.isdisjoint(patterns)


def server_name(identifier: str) -> str:
    """Return the server name of a tls-alpn-01 challenge: for an address, its reverse name (RFC 8738, section 6)."""
    return identifier if _address(identifier) is None else ip_address(identifier).reverse_pointer


def _address(text: str) -> str | None:
    """Return the canonical form of an IP address; None for anything else."""
    try:
        return None if "%" in text else str(ip_address(text))
    except ValueError:
        return None
