"""Certificates: their facts, and their material as received and as checked."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

import attrs

from certctrl import lean
from certctrl.model.signals import AtomicBatch

DEVICE_KEY = "device-key"
"""The ``enc_scheme`` of material without a key, because the key is made on this host."""


class KeyKind(StrEnum):
    """Kinds of certificate keys that a TLS client can ask for."""

    RSA = "RSA"
    ECDSA = "ECDSA"
    """Also Ed25519 and Ed448, which use the same cipher suites."""


Wanted = Mapping[str, KeyKind | None]
"""Fingerprint of an accepted leaf -> its kind of key; None: unknown."""


@lean.frozen(kw_only=True)
class CertFacts:
    """What identifies one certificate; carried through the pipeline, never copied.

    Nothing needs parsing once these are known; all but the first two may be unknown.
    """

    cert_id: int
    """The control plane's id."""
    name: str
    """Directory-safe name of the certificate (``example.com``, ``_wildcard.example.com``)."""
    domains: tuple[str, ...] = ()
    """DNS names and addresses of the SAN, the primary one first."""
    serial: str = ""
    """Lower-case hex, colon-separated pairs (``04:ab:…``)."""
    fingerprint_sha256: str = ""
    """Lower-case hex of the leaf's DER."""
    not_before: float = 0.0
    """Seconds since the epoch."""
    not_after: float = 0.0
    """Seconds since the epoch: when the leaf or the first certificate of its chain ends (the earlier one)."""

    def __str__(self) -> str:
        return f"certificate {self.cert_id} ({self.name})"


@lean.frozen(kw_only=True)
class CsrOrder:
    """An order of the plane for a certificate whose key is made on this host."""

    id: int
    state: str = ""
    """``csr_wanted``, or another state once the request has arrived."""
    key_type: str = ""
    """Empty: this host chooses."""
    names: tuple[str, ...] = ()
    """DNS names and addresses that the request has to contain, the primary one first."""
    must_staple: bool = False
    expires_ms: int = 0
    """Milliseconds since the epoch; 0: unknown."""

    @property
    def wants_csr(self) -> bool:
        """Whether the plane waits for the request."""
        return self.state == "csr_wanted"


@lean.frozen(kw_only=True)
class CertificateSummary:
    """One row of the plane's certificate list."""

    id: int
    domain_name: str
    sans: tuple[str, ...] = ()
    serial_number: str = ""
    fingerprint_sha256: str = ""
    not_before: str = ""
    not_after: str = ""
    status: str = ""
    """``active``, ``revoked``, ``expired``, ``pending``, …"""
    updated_at: str = ""
    key_origin: str = ""
    """``device``: the key is made on this host; otherwise by the plane."""
    public_key_sha256: str = ""
    """SHA-256 of the certificate's SubjectPublicKeyInfo (DER), lower-case hex; set if the key is from a host."""
    order: CsrOrder | None = None
    """The open order of a certificate with a key from this host."""
    batch: AtomicBatch | None = None
    """The atomic batch of the current certificate; its size: the number of its certificates on this device."""
    certificate_pem: str | None = None
    """Set in the detail answer only."""
    chain_pem: str | None = None


@lean.frozen(kw_only=True)
class DeployMaterials:
    """The answer of ``deploy-materials``; key fields are base64 text and may contain secrets."""

    enc_scheme: str
    """``aes256gcm``, ``plaintext`` or ``device-key``, normalized."""
    wrap_alg: str = "x25519"
    device_keyfp_b64: str | None = None
    enc_data_key_b64: str | None = None
    enc_privkey_b64: str | None = attrs.field(default=None, repr=False)
    privkey_nonce_b64: str | None = None
    privkey_tag_b64: str | None = None
    private_key_der_b64: str | None = attrs.field(default=None, repr=False)
    private_key_pem: str | None = attrs.field(default=None, repr=False)
    public_key_sha256: str = ""
    """With ``device-key``: identifies the key of this host; see `CertificateSummary`."""
    host_key_pem: bytes = attrs.field(default=b"", repr=False)
    """The key of this host, added here; never read from an answer."""
    etag: str = ""
    """The ETag of the answer; empty if it had none, or if the PEM texts are of another answer."""
    certificate_pem: str | None = None
    chain_pem: str | None = None
    serial_number: str = ""

    @property
    def size(self) -> int:
        """Characters of certificate, chain and key."""
        texts = (
            self.certificate_pem,
            self.chain_pem,
            self.enc_privkey_b64,
            self.private_key_der_b64,
            self.private_key_pem,
        )
        return sum(len(text) for text in texts if text is not None)


@lean.frozen(kw_only=True)
class CaBundle:
    """A private CA as the plane sends it."""

    id: int
    name: str = ""
    serial_number: str = ""
    status: str = ""
    ca_certificate_pem: str


@lean.frozen(kw_only=True)
class Bundle:
    """A leaf, its chain and its private key, opened and checked to belong together."""

    facts: CertFacts
    key_pem: bytes = attrs.field(repr=False)
    """PKCS#8 PEM."""
    certificate_pem: bytes
    chain_pem: bytes
