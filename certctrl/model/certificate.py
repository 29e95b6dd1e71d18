"""CertFacts: what identifies one certificate; carried through the pipeline, never copied."""

from __future__ import annotations

import attrs


@attrs.frozen(kw_only=True)
class CertFacts:
    """The facts of one certificate that need no parsing once they are known; all but the first two may be unknown."""

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
    """Seconds since the epoch."""
