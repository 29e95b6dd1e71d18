"""Random secrets with a checksum under a key of the control planes, so that made-up ones are known without the database."""

from __future__ import annotations

import base64
import hmac
import secrets

_RANDOM_BYTES, _CHECK_BYTES = 32, 12
_RANDOM, _CHECK = 43, 16
"""Characters of both in base64."""
_MAX_PREFIX = 8


class MarkedSecrets:
    """Makes secrets, and recognises them; which of them count now only the database knows."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def new(self, prefix: str = "") -> str:
        """Return a new secret of 256 random bits."""
        text = prefix + secrets.token_urlsafe(_RANDOM_BYTES)
        return text + self._check(text)

    def is_own(self, text: str) -> bool:
        """Return whether a text was made with this key."""
        if not (_RANDOM + _CHECK <= len(text) <= _MAX_PREFIX + _RANDOM + _CHECK and text.isascii()):
            return False
        return hmac.compare_digest(text[-_CHECK:], self._check(text[:-_CHECK]))

    def _check(self, text: str) -> str:
        return base64.urlsafe_b64encode(hmac.digest(self._key, text.encode(), "sha256")[:_CHECK_BYTES]).decode()
