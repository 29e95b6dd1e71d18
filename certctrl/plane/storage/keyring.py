"""Keyring: the storage key, which seals stored secrets, and the operator key.

Private keys are stored in SQLite as AES-256-GCM under ``storage.key``, with their purpose as associated data, so that
rows cannot be swapped. The storage key is a separate file: a copy of the database alone decrypts nothing.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from certctrl.errors import ConfigError
from certctrl.plane.storage.data_dir import DataDir, GivenKey, secret_file

OPERATOR_KEY_DIGEST = "operator_key_digest"
"""Setting with the digest of the current operator key; empty: it is the one in the file."""
_NONCE_BYTES = 12
_STORAGE_KEY_BYTES = 32
_MIN_OPERATOR_KEY = 20


class Keyring:
    """The two keys of one plane; neither appears in a repr."""

    def __init__(self, storage_key: bytes, operator_key: str, file: Path | None = None) -> None:
        """``file`` is that of the storage key, for messages."""
        self._file = file
        self._storage = AESGCM(storage_key)
        self._key = storage_key
        self.operator_key = operator_key

    @classmethod
    def open(cls, data: DataDir | None, *, create: bool = True) -> Self:
        """Read both keys, or create those that are not given; None: new ones in memory.

        Without ``create``, missing ones are an error: all planes of a database share them.
        """
        if data is None:
            return cls(_new_storage_key(), new_operator_key())
        if not create:
            require_files((data.storage_key, data.operator_key))
        elif data.database.exists() and data.database.stat().st_size and not data.storage_key.exists():
            raise ConfigError(
                "is missing, and the database cannot be read without it",
                file=str(data.storage_key),
                fix="restore it from the backup that the database came from",
            )
        own, given = data.root / "storage.key", data.given
        storage = storage_key_in(_text(own, given.storage, new_storage_text), data.storage_key)
        raw = _text(data.root / "operator.key", given.operator, lambda: f"{new_operator_key()}\n".encode())
        fix = "write it to the file" if given.operator else "delete it; the next start creates a new one"
        return cls(storage, operator_key_in(raw.decode("ascii", "replace"), data.operator_key, fix), data.storage_key)

    def seal(self, purpose: str, plain: bytes) -> bytes:
        """Return nonce and ciphertext of ``plain``, bound to ``purpose``."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return nonce + self._storage.encrypt(nonce, plain, purpose.encode())

    def unseal(self, purpose: str, sealed: bytes) -> bytes:
        """Return the plaintext of ``seal``; raises ConfigError if key or purpose differ, or the value is damaged."""
        try:
            return self._storage.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], purpose.encode())
        except (InvalidTag, ValueError):
            raise ConfigError(
                f"does not decrypt the stored {purpose}",
                file=str(self._file or "storage.key"),
                fix="use the storage.key that belongs to the database, or repeat an interrupted plane rotate storage-key",
            ) from None

    def derived(self, purpose: str) -> bytes:
        """Return a secret key for one purpose, the same at all planes that share the storage key."""
        return hmac.digest(self._key, f"certctrl {purpose}".encode(), "sha256")

    def is_operator(self, key: str) -> bool:
        """Compare with the operator key in constant time."""
        return hmac.compare_digest(key.encode("utf-8", "replace"), self.operator_key.encode())

    def has_key_of(self, other: Keyring) -> bool:
        """Return whether both have the same storage key."""
        return hmac.compare_digest(self._key, other._key)

    @property
    def operator_key_id(self) -> str:
        """A digest of the operator key; sessions under another key are void."""
        return hashlib.sha256(b"certctrl operator mark" + self.operator_key.encode()).hexdigest()[:16]


def digest(secret: str) -> str:
    """Return the hash that is stored for a random secret; these are long, so they need no salt or stretching."""
    return hashlib.sha256(secret.encode("utf-8", "replace")).hexdigest()


def require_files(paths: Sequence[Path]) -> None:
    """Raise ConfigError unless the files of keys exist."""
    for path in paths:
        if not path.exists():
            raise ConfigError(
                "is missing; all control planes on one database share it",
                file=str(path),
                fix="copy it, mode 0600, from the data directory that was moved into the database",
            )


def _text(own: Path, given: GivenKey | None, make: Callable[[], bytes]) -> bytes:
    """Return the text of a key that is given, or of the one in the data directory."""
    if given is None:
        return secret_file(own, make)
    text = given.text.encode()
    if own.exists() and secret_file(own, make).strip() != text.strip():
        raise ConfigError(
            f"differs from {own}", file=str(given.path), fix="remove the one that does not belong to the database"
        )
    return text


def storage_key_in(text: bytes, file: Path) -> bytes:
    """Return the storage key in the text of a file. Raises ConfigError."""
    try:
        key = base64.b64decode(text, validate=False)
    except ValueError:
        key = b""
    if len(key) != _STORAGE_KEY_BYTES:
        raise ConfigError("is not a 32-byte key in base64", file=str(file), fix="restore it")
    return key


def storage_keyring(text: bytes, file: Path) -> Keyring:
    """Return a keyring that only seals and unseals, with the storage key in the text of a file. Raises ConfigError."""
    return Keyring(storage_key_in(text, file), "", file)


def new_storage_text() -> bytes:
    """Return the text of a file with a new storage key."""
    return base64.b64encode(_new_storage_key()) + b"\n"


def _new_storage_key() -> bytes:
    return secrets.token_bytes(_STORAGE_KEY_BYTES)


def operator_key_in(text: str, file: Path, fix: str = "write it to the file") -> str:
    """Return the operator key in the text of a file. Raises ConfigError."""
    key = text.strip()
    if len(key) < _MIN_OPERATOR_KEY:
        raise ConfigError("contains no operator key", file=str(file), fix=fix)
    return key


def new_operator_key() -> str:
    """Return a new operator key."""
    return f"ok_{secrets.token_urlsafe(32)}"
