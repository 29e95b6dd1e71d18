"""Proof that a device has the secret key of the public key that it registers.

The plane seals random bytes to the public key; only the holder of the secret key can open them. A challenge is for one
registration (credential, device and key), can be answered once, and expires after a minute. Challenges are kept in
memory; their number is bounded.
"""

from __future__ import annotations

import base64
import hmac
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable

import attrs
from nacl.public import PublicKey, SealedBox

from certctrl import lean
from certctrl.plane.storage.keyring import digest
from certctrl.protocol.wire.registration import key_proof

CHALLENGE_SECONDS = 60.0
_MAX_CHALLENGES = 10_000
"""Unanswered challenges; the oldest are forgotten."""


@lean.frozen
class Claim:
    """The registration that a challenge is for."""

    credential: str = attrs.field(converter=digest)
    """Digest of the registration code or the enrolment token."""
    device_public_id: str
    public_key: bytes


class KeyProofs:
    """The challenges that wait for their answer."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._pending: OrderedDict[Claim, tuple[str, float]] = OrderedDict()
        """Registration -> expected answer and its deadline."""
        self._lock = threading.Lock()

    def challenge(self, claim: Claim) -> str:
        """Return a new challenge in base64, in place of an earlier one for this registration."""
        secret = secrets.token_bytes(32)
        with self._lock:
            self._pending.pop(claim, None)
            self._pending[claim] = (key_proof(secret), self._monotonic() + CHALLENGE_SECONDS)
            if len(self._pending) > _MAX_CHALLENGES:
                self._pending.popitem(last=False)
        return base64.b64encode(SealedBox(PublicKey(claim.public_key)).encrypt(secret)).decode("ascii")

    def check(self, claim: Claim, answer: str) -> bool:
        """Return whether this answers the challenge in time; a wrong answer ends it, `end` ends an answered one."""
        expected, deadline = self._pending.get(claim, ("", 0.0))
        right = hmac.compare_digest(expected.encode(), answer.encode("utf-8", "replace"))
        proven = bool(expected) and right and self._monotonic() <= deadline
        if not proven:
            self.end(claim)
        return proven

    def end(self, claim: Claim) -> None:
        """Forget the challenge of a registration."""
        self._pending.pop(claim, None)
