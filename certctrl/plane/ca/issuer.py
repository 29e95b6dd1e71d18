"""The interface of issuers, and the built-in CA: root → intermediate → leaf.

Agents and clients trust the root, which only signs intermediates. Both keys are stored sealed in the database.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import attrs
import trio
from cryptography import x509
from cryptography.exceptions import InvalidSignature

from certctrl import lean
from certctrl.model.offload import Offload
from certctrl.plane.ca.constraints import Constraints, constraints_of
from certctrl.plane.ca.crl import key_id
from certctrl.plane.ca.csr import NONE_DENIED, check_csr, key_digest
from certctrl.plane.ca.denied_keys import DeniedKeys
from certctrl.plane.ca.intermediates import Intermediates
from certctrl.plane.ca.x509 import (
    Authority,
    PrivateKey,
    PublicKey,
    fingerprint,
    key_der,
    new_key,
    new_root,
    pem_of,
    serial_text,
    sign_leaf,
)
from certctrl.plane.errors import conflict
from certctrl.plane.settings import DAY
from certctrl.plane.storage.database import Database, without_act
from certctrl.plane.storage.keyring import Keyring

_ROOT_VALIDITY = 20 * 365 * DAY
_BACKDATE_SECONDS = 300
_MAX_KEYS_IN_MAKING = 8
"""RSA keys made at a time, so that a wave of renewals leaves threads for the database."""


@lean.frozen(kw_only=True)
class Issued:
    """A new certificate, with its key if the key is new, too."""

    private_key_der: bytes = attrs.field(repr=False)
    """Unencrypted PKCS#8; empty if the key was made elsewhere."""
    certificate_pem: str
    chain_pem: str
    """The certificates between leaf and root, the leaf's issuer first; without the root."""
    serial_number: str
    fingerprint_sha256: str
    not_before: float
    not_after: float
    public_key_sha256: str = ""
    """Digest of its public key (``csr.key_digest``); empty: unknown."""


class Issuer(Protocol):
    """Issues certificates with new keys, within a request."""

    async def issue(self, names: Sequence[str], *, key_type: str, validity_seconds: int) -> Issued:
        """Return a new certificate with a new key for canonical names."""


@lean.frozen
class Purpose:
    """The purpose of a CA of the plane."""

    secret: str
    """Prefix of the names under which its keys are stored."""
    subject: str
    """Start of the common names of its certificates."""

    @property
    def intermediate_name(self) -> str:
        """The common name of its intermediates, which issue its certificates."""
        return f"{self.subject} intermediate CA"


ISSUING = Purpose("ca", "certctrl")
"""The certificates of devices."""
PLANE_TLS = Purpose("tls", "certctrl plane")
"""The plane's own TLS certificate, and nothing else."""


class BuiltinCa:
    """A CA of the plane."""

    def __init__(
        self,
        database: Database,
        keyring: Keyring,
        wall_now: Callable[[], float],
        offload: Offload,
        purpose: Purpose = ISSUING,
        crl_url: str = "",
        denied: DeniedKeys = NONE_DENIED,
    ) -> None:
        """Load the root, or create it; ``crl_url`` is the base URL of its CRLs.

        Requests for ``denied`` keys are refused.
        """
        self._db = database
        self._keyring = keyring
        self._wall_now = wall_now
        self._offload = offload
        self._making_keys = trio.CapacityLimiter(_MAX_KEYS_IN_MAKING)
        self._purpose = purpose
        self._root = self._load("root") or self._first_root(self._make_root())
        self.intermediates = Intermediates(database, keyring, purpose.secret, purpose.intermediate_name, self._root)
        self._intermediate = self.intermediates.stored()
        self._crl_url = crl_url
        self.denied = denied

    @property
    def root_pem(self) -> str:
        """The root certificate in PEM."""
        return self._root.pem

    @property
    def root_fingerprint(self) -> str:
        """The SHA-256 of the root certificate in lower-case hex."""
        return fingerprint(self._root.certificate)

    def signs(self, certificate: x509.Certificate) -> bool:
        """Return whether the current intermediate issued a leaf."""
        issuer = self._intermediate
        if issuer is None:
            return False
        try:
            certificate.verify_directly_issued_by(issuer.certificate)
        except (ValueError, TypeError, InvalidSignature):
            return False
        return True

    async def constrain(self, constraints: Constraints) -> None:
        """Constrain the names to issue for, with a new intermediate unless the current one has these constraints."""
        self._intermediate = await self._db.work(self.intermediates.constrain, constraints, self._wall_now())

    async def issue(self, names: Sequence[str], *, key_type: str, validity_seconds: int) -> Issued:
        """Return a leaf that is valid for ``validity_seconds``, starting slightly in the past: clocks differ."""
        key = await self._rsa_key(key_type) if key_type.startswith("rsa") else new_key(key_type)
        return await self._sign(key.public_key(), names, validity_seconds, private_key_der=key_der(key))

    async def sign_csr(
        self,
        csr_der: bytes,
        names: Sequence[str],
        *,
        validity_seconds: int,
        key_type: str = "",
        must_staple: bool = False,
    ) -> Issued:
        """Return a leaf for the key of a request; only the key is taken from it. ErrorResponse 400 if it is refused."""
        checked = check_csr(csr_der, names, key_type=key_type, must_staple=must_staple, denied=self.denied)
        return await self._sign(checked.public_key, names, validity_seconds, must_staple=must_staple)

    async def _sign(
        self,
        public_key: PublicKey,
        names: Sequence[str],
        validity_seconds: int,
        *,
        must_staple: bool = False,
        private_key_der: bytes = b"",
    ) -> Issued:
        now = self._wall_now()
        with without_act():  # a new intermediate stays, also if the request is tried only
            self._intermediate = issuer = await self._db.work(self.intermediates.current, self._intermediate, now)
        _refuse_outside(issuer, names)
        crl_url = f"{self._crl_url}/{key_id(issuer.certificate)}.crl" if self._crl_url else ""
        not_before = now - min(_BACKDATE_SECONDS, validity_seconds // 10)
        not_after = min(now + validity_seconds, issuer.not_after)
        certificate = sign_leaf(
            issuer,
            public_key,
            names,
            not_before=not_before,
            not_after=not_after,
            must_staple=must_staple,
            crl_url=crl_url,
        )
        return Issued(
            private_key_der=private_key_der,
            certificate_pem=pem_of(certificate),
            chain_pem=issuer.pem,
            serial_number=serial_text(certificate),
            fingerprint_sha256=fingerprint(certificate),
            not_before=certificate.not_valid_before_utc.timestamp(),
            not_after=certificate.not_valid_after_utc.timestamp(),
            public_key_sha256=key_digest(public_key),
        )

    def _make_root(self) -> Authority:
        now = self._wall_now()
        # unique: one trust store may contain the roots of several planes
        name = f"{self._purpose.subject} root CA {secrets.token_hex(4)}"
        return new_root(name, not_before=now - DAY, not_after=now + _ROOT_VALIDITY)

    async def _rsa_key(self, key_type: str) -> PrivateKey:
        async with self._making_keys:
            key: PrivateKey = await self._offload(new_key, key_type)
        return key

    def _load(self, part: str) -> Authority | None:
        name = f"{self._purpose.secret}-{part}"
        row = self._db.one("SELECT value_enc FROM secrets WHERE name = ?", name)
        return None if row is None else Authority.from_sealed_form(self._keyring.unseal(name, row["value_enc"]))

    def _first_root(self, made: Authority) -> Authority:
        """Store a root, and return it, or the one that another plane on the database has stored meanwhile."""
        self._store("root", made, "NOTHING")
        return self._load("root") or made

    def _store(
        self, part: str, authority: Authority, otherwise: str = "UPDATE SET value_enc = excluded.value_enc"
    ) -> Authority:
        name = f"{self._purpose.secret}-{part}"
        sealed = self._keyring.seal(name, authority.sealed_form())
        self._db.run(f"INSERT INTO secrets VALUES (?, ?) ON CONFLICT (name) DO {otherwise}", name, sealed)
        return authority


def _refuse_outside(issuer: Authority, names: Sequence[str]) -> None:
    """Refuse names outside of an intermediate's constraints; ErrorResponse 409."""
    outside = constraints_of(issuer.certificate).forbidden(names)
    if outside:
        what = (
            f"{outside[0]} is outside of the domains of this CA; issue it elsewhere, or: cert-ctrl plane ca constrain"
        )
        raise conflict(what, "NAME_OUTSIDE_CA", names=outside)


async def inline(function: Callable[..., Any], *args: Any) -> Any:
    """Run on the event loop, for tests and virtual clocks."""
    return function(*args)
