"""Memo: the durable state of an order at an ACME CA, from which another attempt continues after a crash."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import attrs

from certctrl import lean
from certctrl.plane.challenges.solver import Proof
from certctrl.protocol.wire.reader import Misfit, bounded_list, texts, wire_class

MAX_AGE = 86_400.0
"""Age in seconds at which an order is abandoned and made again."""
_MAX_PROOFS = 200


@lean.frozen(kw_only=True)
class Memo:
    """The state of one order."""

    directory_url: str = ""
    order_url: str = ""
    made_at: float = 0.0
    """Seconds since the epoch."""
    csr_sha256: str = ""
    """Digest of the latest certificate request."""
    proofs: tuple[Proof, ...] = ()
    """Proofs that may be published and must be withdrawn."""

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
        """Return the memo in a text; empty if it cannot be read, such as another issuer's."""
        try:
            return _read_memo(json.loads(text or "{}"))
        except ValueError:  # Misfit is one, too
            return cls()

    def with_proofs(self, proofs: tuple[Proof, ...]) -> Memo:
        """Return the memo with more proofs, each once."""
        return attrs.evolve(self, proofs=tuple(dict.fromkeys((*self.proofs, *proofs))))


def _proofs(value: Any, _: Any = None) -> tuple[Proof, ...]:
    rows = [texts(row) for row in bounded_list(value)[:_MAX_PROOFS]]
    if any(len(row) != 4 for row in rows):
        raise Misfit("expected four texts for each proof")
    return tuple(
        Proof(kind=kind, identifier=name, token=token, key_authorization=authorization)
        for kind, name, token, authorization in rows
    )


_read_memo = wire_class(
    Memo,
    {"proofs": _proofs},
    names={"directory_url": "directory", "order_url": "order", "made_at": "at", "csr_sha256": "csr"},
)


def csr_digest(csr_der: bytes) -> str:
    """Return the digest that identifies a request."""
    return hashlib.sha256(csr_der).hexdigest()
