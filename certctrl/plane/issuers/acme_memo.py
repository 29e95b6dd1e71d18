"""What an order at an ACME CA remembers, so that another attempt continues it after a crash."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import attrs

from certctrl import lean
from certctrl.plane.challenges.solver import Proof

MAX_AGE = 86_400.0
"""An order that is older is given up and made again; seconds."""
_MAX_PROOFS = 200


@lean.frozen(kw_only=True)
class Memo:
    """The state of one order."""

    directory_url: str = ""
    order_url: str = ""
    made_at: float = 0.0
    """Seconds since the epoch."""
    csr_sha256: str = ""
    """Of the request that it was last worked on with."""
    proofs: tuple[Proof, ...] = ()
    """Those that may be published, and are to be taken back."""

    def dump(self) -> str:
        """Return the memo as text."""
        found = {
            "directory": self.directory_url,
            "order": self.order_url,
            "at": self.made_at,
            "csr": self.csr_sha256,
            "proofs": [[one.kind, one.identifier, one.token, one.key_authorization] for one in self.proofs],
        }
        return json.dumps(found)

    @classmethod
    def parse(cls, text: str) -> Memo:
        """Return the memo of a text; one that cannot be read, such as another issuer's, is empty."""
        try:
            found: Any = json.loads(text) if text else {}
            proofs = tuple(
                Proof(kind=str(kind), identifier=str(name), token=str(token), key_authorization=str(authorization))
                for kind, name, token, authorization in found.get("proofs", [])[:_MAX_PROOFS]
            )
            return cls(
                directory_url=str(found.get("directory", "")),
                order_url=str(found.get("order", "")),
                made_at=float(found.get("at", 0.0)),
                csr_sha256=str(found.get("csr", "")),
                proofs=proofs,
            )
        except (ValueError, TypeError, AttributeError):
            return cls()

    def with_proofs(self, proofs: tuple[Proof, ...]) -> Memo:
        """Return the memo with more proofs, each once."""
        return attrs.evolve(self, proofs=tuple(dict.fromkeys((*self.proofs, *proofs))))


def csr_digest(csr_der: bytes) -> str:
    """Return the digest by which a request is recognised."""
    return hashlib.sha256(csr_der).hexdigest()
