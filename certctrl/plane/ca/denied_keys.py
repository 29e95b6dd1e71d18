"""DeniedKeys: keys that no certificate may have, from the operator's files.

A line is the SHA-256 of a public key (64 hexadecimal digits), or a key in the lists of Debian's package
openssl-blacklist (20 digits: the end of the SHA-1 of ``Modulus=…``), which contain the publicly known keys of
CVE-2008-0166. Lines that begin with ``#`` are comments.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import rsa

from certctrl.errors import ConfigError
from certctrl.plane.ca.x509 import PublicKey

MAX_BYTES = 64 * 1024 * 1024
"""Limit for all files together; Debian's lists have 10 MiB."""
_SHA256, _DEBIAN = 32, 10
"""Bytes of an entry."""


class DeniedKeys:
    """A set of keys, stored as two sorted byte strings: hundreds of thousands of objects would need too much memory."""

    def __init__(self, entries: Iterable[bytes] = ()) -> None:
        every = sorted(set(entries))
        self._by_length = {
            length: b"".join(entry for entry in every if len(entry) == length) for length in (_SHA256, _DEBIAN)
        }

    def __len__(self) -> int:
        return sum(len(text) // length for length, text in self._by_length.items())

    def has(self, public_key: PublicKey, sha256: str) -> bool:
        """Return whether a key, with this digest of its SubjectPublicKeyInfo, is in the lists."""
        if self._contains(bytes.fromhex(sha256)):
            return True
        return isinstance(public_key, rsa.RSAPublicKey) and self._contains(debian_entry(public_key.public_numbers().n))

    def _contains(self, entry: bytes) -> bool:
        length = len(entry)
        text = self._by_length[length]
        low, high = 0, len(text) // length
        while low < high:
            middle = (low + high) // 2
            if text[middle * length : (middle + 1) * length] < entry:
                low = middle + 1
            else:
                high = middle
        return text[low * length : (low + 1) * length] == entry


def debian_entry(modulus: int) -> bytes:
    """Return the entry of an RSA key in the lists of openssl-blacklist."""
    # Not used for security: the lists are in this format.
    return hashlib.sha1(f"Modulus={modulus:X}\n".encode(), usedforsecurity=False).digest()[-_DEBIAN:]


def read_denied_keys(folder: Path) -> DeniedKeys:
    """Return the keys of all files in a directory, none if it does not exist; ConfigError names file and line."""
    try:
        paths = sorted(path for path in folder.iterdir() if path.is_file())
    except (FileNotFoundError, NotADirectoryError):
        return DeniedKeys()
    entries, left = [], MAX_BYTES
    for path in paths:
        try:
            with path.open("rb") as file:
                data = file.read(left + 1)
        except OSError as error:
            raise ConfigError(f"cannot be read: {error.strerror}", file=str(path), fix="make it readable") from None
        left -= len(data)
        if left < 0:
            raise ConfigError(f"all files have more than {MAX_BYTES} bytes", file=str(path), fix="remove some")
        entries += [entry for number, line in enumerate(data.splitlines(), 1) if (entry := _entry(path, number, line))]
    return DeniedKeys(entries)


def _entry(path: Path, number: int, line: bytes) -> bytes:
    """Return the entry of a line; empty if it has none."""
    text = line.strip()
    if not text or text.startswith(b"#"):
        return b""
    try:
        entry = bytes.fromhex(text.decode("ascii"))
    except ValueError:
        entry = b""
    if len(entry) not in (_SHA256, _DEBIAN):
        what = f"line {number} is not a key: 64 hexadecimal digits (SHA-256), or 20 of openssl-blacklist"
        raise ConfigError(what, file=str(path), fix="correct or remove the line")
    return entry
