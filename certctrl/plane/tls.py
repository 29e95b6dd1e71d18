"""The plane's TLS certificate: issued by the CA in ``Plane.anchor``, stored in two files, renewed while serving.

A certificate of another CA in these files belongs to the operator: it is used, and never replaced.
"""

from __future__ import annotations

import ssl
from collections.abc import Sequence

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from certctrl.errors import ConfigError, DiskError
from certctrl.plane.ca.domains import clean_names, is_address
from certctrl.plane.ca.issuer import ISSUING, PLANE_TLS
from certctrl.plane.ca.x509 import KEY_TYPES, PrivateKey, key_pem
from certctrl.plane.clock import rfc3339
from certctrl.plane.core import Plane
from certctrl.plane.health.problems import ProblemName
from certctrl.plane.settings import DAY
from certctrl.plane.storage.data_dir import DataDir, write_file

_VALIDITY = 90 * DAY
_OPERATORS_WARNING = 7 * DAY
_OUR_ISSUERS = tuple(purpose.intermediate_name for purpose in (ISSUING, PLANE_TLS))
LOOPBACK = ("localhost", "127.0.0.1", "::1")
"""Names in the certificate of every plane."""
_ALL_INTERFACES = ("0.0.0.0", "::", "")


def names_of(host: str, hostnames: Sequence[str]) -> tuple[str, ...]:
    """Return the names in the certificate: the operator's, then the listening address, then loopback."""
    listened = [] if host in _ALL_INTERFACES else [host]
    return clean_names([*hostnames, *listened, *LOOPBACK])


class ServerCertificate:
    """The certificate, its key, and the TLS context that uses them."""

    def __init__(self, plane: Plane, data: DataDir, names: Sequence[str]) -> None:
        """``plane`` issues it, ``data`` has the files' paths, ``names`` are those that clients connect to."""
        self._plane = plane
        self._data = data
        self._names = tuple(names)
        self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.context.set_alpn_protocols(["http/1.1"])

    def names(self) -> tuple[str, ...]:
        """Return the names that clients connect to, and those that an operator's certificate has without wildcard."""
        certificate = self._certificate() if self._is_operators() else None
        return tuple(dict.fromkeys((*self._names, *(() if certificate is None else _plain_names(certificate)))))

    async def load(self) -> None:
        """Load the files into the context, for new connections; issue a certificate first if none is usable.

        Raises DiskError, and ConfigError for an unusable certificate of the operator's; the context is unchanged then.
        """
        if self._is_operators():
            self._load("put a certificate with its chain into tls.pem and its key into tls.key, or delete both")
            self._note_end()
            return
        if self._is_due():
            try:
                await self._renew()
            except DiskError as error:
                if not self._data.tls_certificate.exists():
                    raise
                self._plane.problems.report(ProblemName.TLS_CERTIFICATE, str(error))
        self._load("delete tls.pem and tls.key; the plane creates new ones")

    async def renew_when_due(self) -> bool:
        """Replace the certificate if it expires soon; open connections are kept. Return whether it was replaced."""
        if self._is_operators():
            self._note_end()
            return False
        due = self._is_due()
        if due:
            await self._renew()
            self._load("delete tls.pem and tls.key; the plane creates new ones")
        self._plane.problems.clear(ProblemName.TLS_CERTIFICATE)
        return due

    def _load(self, fix: str) -> None:
        path = self._data.tls_certificate
        try:
            for context in (ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), self.context):  # the first is a test
                context.load_cert_chain(path, self._data.tls_key, password=lambda: b"")
        except (OSError, ssl.SSLError) as error:
            if self._is_operators():
                what = f"cannot be used with {self._data.tls_key.name}: {error.strerror or error}"
                raise ConfigError(what, file=str(path), fix=fix) from None
            raise DiskError(f"{path}: {error}", path=str(path), fix=fix) from None

    def _is_operators(self) -> bool:
        """Return whether the certificate was not issued by a CA of a plane."""
        certificate = self._certificate()
        if certificate is None:
            return False
        names = certificate.issuer.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
        return not any(name.value in _OUR_ISSUERS for name in names)

    def _certificate(self) -> x509.Certificate | None:
        try:
            return x509.load_pem_x509_certificate(self._data.tls_certificate.read_bytes())
        except (OSError, ValueError, x509.InvalidVersion):
            return None

    def _note_end(self) -> None:
        """Report or clear the problem that the operator's certificate ends soon."""
        certificate = self._certificate()
        if certificate is None:
            return
        end = certificate.not_valid_after_utc.timestamp()
        if end - self._plane.wall_now() > _OPERATORS_WARNING:
            self._plane.problems.clear(ProblemName.TLS_CERTIFICATE)
            return
        what = f"{self._data.tls_certificate} ends at {rfc3339(end)}; replace it and its key, then send SIGHUP"
        self._plane.problems.report(ProblemName.TLS_CERTIFICATE, what)

    async def _renew(self) -> None:
        issued = await self._plane.anchor.ca.issue(self._names, key_type=KEY_TYPES[0], validity_seconds=_VALIDITY)
        key = serialization.load_der_private_key(issued.private_key_der, None)
        assert isinstance(key, PrivateKey)  # made by the CA
        # A crash between the two writes leaves a mismatched pair; the next start detects and replaces it.
        write_file(self._data.tls_key, key_pem(key), mode=0o600)
        write_file(self._data.tls_certificate, (issued.certificate_pem + issued.chain_pem).encode(), mode=0o644)

    def _is_due(self) -> bool:
        try:
            certificate = x509.load_pem_x509_certificate(self._data.tls_certificate.read_bytes())
            key = serialization.load_pem_private_key(self._data.tls_key.read_bytes(), None)
            sans = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except (OSError, ValueError, TypeError, x509.ExtensionNotFound, x509.InvalidVersion):
            return True
        covered = {str(name.value) for name in sans}
        begin = certificate.not_valid_before_utc.timestamp()
        left = certificate.not_valid_after_utc.timestamp() - self._plane.wall_now()
        return (
            covered != set(self._names)
            or not self._plane.wall_now() - begin > 0
            or left < _VALIDITY / 3
            or key.public_key() != certificate.public_key()
            or not self._plane.anchor.ca.signs(certificate)
        )


def _plain_names(certificate: x509.Certificate) -> list[str]:
    """Return the canonical names of a certificate without wildcards, which do not identify the plane."""
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    names = [name.lower().rstrip(".") for name in found.get_values_for_type(x509.DNSName)]
    return [name for name in names if "*" not in name] + [str(ip) for ip in found.get_values_for_type(x509.IPAddress)]


def local_host(host: str) -> str:
    """Return the host for URLs on this machine; the plane's certificate contains it."""
    name = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{name}]" if ":" in name else name


def host_for_url(host: str, hostnames: Sequence[str]) -> str:
    """Return the host name of the plane's URL."""
    if hostnames and not hostnames[0].startswith("*"):
        return hostnames[0]
    name = "localhost" if host in _ALL_INTERFACES else host
    return f"[{name}]" if is_address(name) and ":" in name else name
