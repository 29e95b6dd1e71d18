"""Keyring: the key that opens what is stored, and the operator's key.

Private keys rest in SQLite as AES-256-GCM under ``storage.key``, bound by associated data to what they are the key
of, so that rows cannot be exchanged. The storage key is a file of its own: a copy of the database alone opens nothing.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from typing import Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from certctrl.errors import ConfigError
from certctrl.plane.storage.data_dir import DataDir, secret_file

_NONCE = 12


class Keyring:
    """Two secrets of one plane; neither ever appears in a repr."""

    def __init__(self, storage_key: bytes, operator_key: str) -> None:
        self._storage = AESGCM(storage_key)
        self.operator_key = operator_key

    @classmethod
    def open(cls, data: DataDir | None) -> Self:
        """Read both keys, making them the first time; None: fresh ones that live in memory."""
        if data is None:
            return cls(_new_storage_key(), _new_operator_key())
        if data.database.exists() and data.database.stat().st_size and not data.storage_key.exists():
            raise ConfigError(
                "is missing, and the database cannot be read without it",
                file=str(data.storage_key),
                fix="restore it from the backup that the database came from",
            )
        text = secret_file(data.storage_key, lambda: base64.b64encode(_new_storage_key()) + b"\n")
        try:
            storage = base64.b64decode(text, validate=False)
            AESGCM(storage)
        except ValueError:
            raise ConfigError("is not a 32-byte key in base64", file=str(data.storage_key), fix="restore it") from None
        raw = secret_file(data.operator_key, lambda: f"{_new_operator_key()}\n".encode())
        operator = raw.decode("ascii", "replace").strip()
        if len(operator) < 20:
            raise ConfigError(
                "holds no operator key",
                file=str(data.operator_key),
                fix="delete it: a new one is made at the next start",
            )
        return cls(storage, operator)

    def seal(self, purpose: str, plain: bytes) -> bytes:
        """Return nonce and ciphertext of ``plain``, bound to ``purpose``."""
        nonce = secrets.token_bytes(_NONCE)
        return nonce + self._storage.encrypt(nonce, plain, purpose.encode())

    def unseal(self, purpose: str, sealed: bytes) -> bytes:
        """Return what ``seal`` was given; ConfigError when key or purpose is another."""
        try:
            return self._storage.decrypt(sealed[:_NONCE], sealed[_NONCE:], purpose.encode())
        except InvalidTag:
            raise ConfigError(
                f"storage.key does not open the stored {purpose}", fix="restore storage.key and plane.db together"
            ) from None

    def is_operator(self, key: str) -> bool:
        """Compare in constant time."""
        return hmac.compare_digest(key.encode("utf-8", "replace"), self.operator_key.encode())

    @property
    def operator_mark(self) -> str:
        """Return a word that changes with the operator key: sessions made under another key are void."""
        return hashlib.sha256(b"certctrl operator mark" + self.operator_key.encode()).hexdigest()[:16]


def digest(secret: str) -> str:
    """Return the hash under which a random secret of ours is stored (they are long: no salt, no stretching)."""
    return hashlib.sha256(secret.encode("utf-8", "replace")).hexdigest()


def _new_storage_key() -> bytes:
    return secrets.token_bytes(32)


def _new_operator_key() -> str:
    return f"ok_{secrets.token_urlsafe(32)}"
