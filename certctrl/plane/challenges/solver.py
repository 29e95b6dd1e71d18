"""Proofs of names that CAs ask for, and the interface of the solvers that publish them."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from typing import Protocol

import attrs

from certctrl import lean
from certctrl.errors import CertctrlError

DNS_01, HTTP_01, TLS_ALPN_01 = "dns-01", "http-01", "tls-alpn-01"


@lean.frozen(kw_only=True)
class Asker:
    """The CA that asks for a proof, and for which certificate; used to explain refusals."""

    identities: tuple[str, ...] = ()
    """The CA's domains in CAA records; empty: unknown."""
    account_url: str = ""
    wildcard: bool = False
    """Whether the certificate is for ``*.`` and the name."""


@lean.frozen(kw_only=True)
class Proof:
    """One challenge of a CA for one name (RFC 8555, section 8)."""

    kind: str
    """``dns-01``, ``http-01`` or ``tls-alpn-01``."""
    identifier: str
    """The name without ``*.``, or an IP address as text."""
    token: str
    key_authorization: str = attrs.field(repr=False)
    asker: Asker = attrs.field(factory=Asker, eq=False, repr=False)


Failures = Mapping[Proof, CertctrlError]
"""Why answers could not be taken back; those that could are not in it."""


class Solver(Protocol):
    """Publishes the answers to challenges; failures are raised as ``IssuerError``."""

    kinds: tuple[str, ...]
    """The challenge types that it can answer."""

    def solves(self, kind: str, identifier: str, wildcard: bool) -> bool:
        """Return whether it answers this type of challenge for this name."""
        ...

    async def present(self, proofs: Sequence[Proof]) -> None:
        """Publish the answers; return once the CA may validate."""
        ...

    async def clean_up(self, proofs: Sequence[Proof]) -> Failures:
        """Withdraw the answers; always called, even if only some or none were published."""
        ...

    async def explain(self, proof: Proof) -> str:
        """Explain a refusal by the CA: the question, the answers, and the servers that gave them."""
        ...


def dns_record_name(identifier: str) -> str:
    """Return the name of the TXT record that proves a name (RFC 8555, section 8.4)."""
    return f"_acme-challenge.{identifier}"


def dns_record_value(proof: Proof) -> str:
    """Return the text of the TXT record: the SHA-256 of the key authorization, in base64url without padding."""
    digest = hashlib.sha256(proof.key_authorization.encode("ascii")).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode("ascii")
