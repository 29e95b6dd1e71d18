"""Issuer: who makes certificates. The built-in CA: root → intermediate → leaf.

The root signs intermediates only, and is what agents and clients trust. Keys of both rest sealed in the database.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

import attrs
from cryptography import x509
from cryptography.exceptions import InvalidSignature

from certctrl.plane.ca.x509 import (
    Authority,
    fingerprint,
    key_der,
    new_intermediate,
    new_key,
    new_root,
    pem_of,
    serial_text,
    sign_leaf,
)
from certctrl.plane.settings import DAY
from certctrl.plane.storage.database import Database
from certctrl.plane.storage.keyring import Keyring

Offload = Callable[..., Awaitable[Any]]
"""``await offload(function, *args)``: slow computing off the event loop; inline under a virtual clock."""

_ROOT_LIFE = 20 * 365 * DAY
_INTERMEDIATE_LIFE = 5 * 365 * DAY
_INTERMEDIATE_RENEWAL = 2 * 366 * DAY
"""A new intermediate comes this long before the old one ends: no leaf (366 days at most) outlives its issuer."""
_BACKDATE = 300


@attrs.frozen(kw_only=True)
class Issued:
    """A fresh certificate with its key."""

    private_key_der: bytes = attrs.field(repr=False)
    """PKCS#8, not encrypted."""
    certificate_pem: str
    chain_pem: str
    """What lies between leaf and root, leaf's issuer first; the root is not in it."""
    serial_number: str
    fingerprint_sha256: str
    not_before: float
    not_after: float


class Issuer(Protocol):
    """Makes certificates; an ACME issuer is another of these."""

    async def issue(self, names: Sequence[str], *, key_type: str, validity_seconds: int) -> Issued:
        """Return a new certificate with a new key for canonical names."""


class BuiltinCa:
    """The plane's own CA."""

    def __init__(self, database: Database, keyring: Keyring, wall_now: Callable[[], float], offload: Offload) -> None:
        """Load the root, or make it the first time."""
        self._db = database
        self._keyring = keyring
        self._wall_now = wall_now
        self._offload = offload
        self._root = self._load("ca-root") or self._store("ca-root", self._make_root())
        self._intermediate = self._load("ca-intermediate")

    @property
    def root_pem(self) -> str:
        """Return the certificate to trust."""
        return self._root.pem

    def signs(self, certificate: x509.Certificate) -> bool:
        """Say whether a leaf is of the intermediate that issues now."""
        issuer = self._intermediate
        if issuer is None:
            return False
        try:
            certificate.verify_directly_issued_by(issuer.certificate)
        except (ValueError, TypeError, InvalidSignature):
            return False
        return True

    async def issue(self, names: Sequence[str], *, key_type: str, validity_seconds: int) -> Issued:
        """Return a leaf that is valid from a little before now (clocks differ) for ``validity_seconds``."""
        key = await self._offload(new_key, key_type) if key_type.startswith("rsa") else new_key(key_type)
        now = self._wall_now()
        issuer = self._current_intermediate(now)
        not_before = now - min(_BACKDATE, validity_seconds // 10)
        not_after = min(now + validity_seconds, issuer.not_after)
        certificate = sign_leaf(issuer, key, names, not_before=not_before, not_after=not_after)
        return Issued(
            private_key_der=key_der(key),
            certificate_pem=pem_of(certificate),
            chain_pem=issuer.pem,
            serial_number=serial_text(certificate),
            fingerprint_sha256=fingerprint(certificate),
            not_before=certificate.not_valid_before_utc.timestamp(),
            not_after=certificate.not_valid_after_utc.timestamp(),
        )

    def _current_intermediate(self, now: float) -> Authority:
        current = self._intermediate
        if current is None or current.not_after - now < _INTERMEDIATE_RENEWAL:
            end = min(now + _INTERMEDIATE_LIFE, self._root.not_after)
            if current is None or current.not_after < end:
                made = new_intermediate(self._root, "certctrl intermediate CA", not_before=now - DAY, not_after=end)
                current = self._store("ca-intermediate", made)
                self._intermediate = current
        return current

    def _make_root(self) -> Authority:
        now = self._wall_now()
        name = f"certctrl root CA {secrets.token_hex(4)}"  # two planes' roots may meet in one trust store
        return new_root(name, not_before=now - DAY, not_after=now + _ROOT_LIFE)

    def _load(self, name: str) -> Authority | None:
        row = self._db.one("SELECT value_enc FROM secrets WHERE name = ?", name)
        return None if row is None else Authority.from_sealed_form(self._keyring.unseal(name, row["value_enc"]))

    def _store(self, name: str, authority: Authority) -> Authority:
        sealed = self._keyring.seal(name, authority.sealed_form())
        self._db.run("INSERT OR REPLACE INTO secrets VALUES (?, ?)", name, sealed)
        return authority


async def inline(function: Callable[..., Any], *args: Any) -> Any:
    """Run on the event loop: the offload of tests and of a virtual clock."""
    return function(*args)
