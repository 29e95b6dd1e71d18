"""Proof that a device has the secret key of the public key that it registers.

The plane seals 32 bytes to the public key; only the owner of the secret key can open them. The bytes are derived from
the registration and the time, with a key that all planes of a database share, so that any of them can check the answer
and none has to store it. A registration starts the device's next session, for which the answer is void.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Callable

import attrs
from nacl.public import PublicKey, SealedBox

from certctrl import lean
from certctrl.plane.storage.keyring import Keyring, digest
from certctrl.protocol.wire.registration import key_proof

CHALLENGE_SECONDS = 60
_AHEAD_SECONDS = 5
"""How far ahead the clock of the plane that made a challenge may be."""


@lean.frozen
class Claim:
    """The registration that a challenge is for."""

    credential: str = attrs.field(converter=digest)
    """Digest of the registration code or the enrolment token."""
    device_public_id: str
    public_key: bytes
    session: int
    """Number of the device's current session, 0 before the first."""


class KeyProofs:
    """Makes challenges and checks their answers."""

    def __init__(self, keyring: Keyring, wall_now: Callable[[], float]) -> None:
        self._key = keyring.derived("key proofs")
        self._wall_now = wall_now

    def challenge(self, claim: Claim) -> str:
        """Return a challenge in base64."""
        secret = self._secret(claim, int(self._wall_now()))
        return base64.b64encode(SealedBox(PublicKey(claim.public_key)).encrypt(secret)).decode("ascii")

    def check(self, claim: Claim, answer: str) -> bool:
        """Return whether this answers a challenge of the last minute."""
        now, given = int(self._wall_now()), answer.encode("utf-8", "replace")
        return any(
            hmac.compare_digest(key_proof(self._secret(claim, second)).encode(), given)
            for second in range(now - CHALLENGE_SECONDS + 1, now + _AHEAD_SECONDS + 1)
        )

    def _secret(self, claim: Claim, second: int) -> bytes:
        """Return the bytes that a challenge of this second contains; all parts but the id have a fixed form."""
        text = f"{second} {claim.session} {claim.credential} {claim.public_key.hex()} {claim.device_public_id}"
        return hmac.new(self._key, text.encode(), hashlib.sha256).digest()
