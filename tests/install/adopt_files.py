"""The files of a host in memory, and certificates for them."""

from __future__ import annotations

import datetime
import posixpath
from collections.abc import Callable, Mapping, Sequence
from functools import cache

import attrs
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from certctrl.install.adopt.sources import Kind, Sources, UnreadableError
from certctrl.install.adopt.uses import Use

BEGIN = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
END = datetime.datetime(2036, 1, 1, tzinfo=datetime.UTC)


@attrs.define
class FakeFiles:
    """Files by absolute path; directories follow from them."""

    files: dict[str, bytes]
    links: dict[str, str] = attrs.field(factory=dict)
    """Path of a link -> where it leads, an absolute path."""

    def read(self, path: str, limit: int) -> bytes:
        data = self.files.get(self.real(path))
        if data is None:
            raise UnreadableError("No such file or directory")
        if len(data) > limit:
            raise UnreadableError(f"it has more than {limit} bytes")
        return data

    def names(self, directory: str, limit: int) -> list[str]:
        base = self.real(directory).rstrip("/") + "/"
        paths = (*self.files, *self.links)
        return sorted({path.removeprefix(base).partition("/")[0] for path in paths if path.startswith(base)})[:limit]

    def kind(self, path: str) -> Kind:
        real = self.real(path)
        if real in self.files:
            return Kind.FILE
        return Kind.DIR if self.names(real, 1) or real == "/" else Kind.MISSING

    def real(self, path: str) -> str:
        path = posixpath.normpath(path)
        return self.real(self.links[path]) if path in self.links else path


def host(texts: Mapping[str, str | bytes], links: Mapping[str, str] | None = None) -> Sources:
    """Return a host with these files."""
    files = {path: text if isinstance(text, bytes) else text.encode() for path, text in texts.items()}
    return Sources(FakeFiles(files, dict(links or {})))


def found_in(reader: Callable[[Sources, str], list[Use]], path: str, texts: Mapping[str, str]) -> list[Use]:
    """Return what a reader finds in some files."""
    return reader(host(texts), path)


def files_of(uses: Sequence[Use]) -> list[dict[str, str]]:
    """Return the files of each use, by virtual file."""
    return [dict(use.files) for use in uses]


def places(uses: Sequence[Use]) -> list[str]:
    """Return the endpoint of each use as ``host:port name starttls``."""
    return [
        ""
        if (end := use.endpoint) is None
        else " ".join(filter(None, [f"{end.host}:{end.port}", end.server_name or "", end.starttls or ""]))
        for use in uses
    ]


@cache
def _key(number: int, kind: str) -> ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048) if kind == "rsa" else ec.generate_private_key(ec.SECP256R1())


@cache
def certificate(*names: str, number: int = 0, kind: str = "ec", ca: bool = False) -> bytes:
    """Return a certificate in PEM, for the key with this number."""
    key = _key(number, kind)
    common = [x509.NameAttribute(x509.NameOID.COMMON_NAME, names[0] if names else "Nobody, Inc.")]
    issuer = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "Test CA")])
    builder = x509.CertificateBuilder(issuer, x509.Name(common), key.public_key(), 7 + number, BEGIN, END)
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(list(map(x509.DNSName, names))), critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca, None), critical=True)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)


def private_key(number: int = 0, kind: str = "ec", password: bytes = b"") -> bytes:
    """Return the key with this number in PEM."""
    how = BestAvailableEncryption(password) if password else NoEncryption()
    return _key(number, kind).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, how)
