"""The plane's own TLS certificate: issued by the CA in ``Plane.anchor``, stored in two files, renewed while serving."""

from __future__ import annotations

import ssl
from collections.abc import Sequence

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from certctrl.errors import DiskError
from certctrl.plane.ca.domains import clean_names, is_address
from certctrl.plane.ca.x509 import KEY_TYPES, PrivateKey, key_pem
from certctrl.plane.core import Plane
from certctrl.plane.problems import ProblemName
from certctrl.plane.settings import DAY
from certctrl.plane.storage.data_dir import DataDir, write_file

_VALIDITY = 90 * DAY
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

    async def load(self) -> None:
        """Load the certificate into the context; issue one first if none is usable, or if the files can be written."""
        if self._is_due():
            try:
                await self._renew()
            except DiskError as error:
                if not self._data.tls_certificate.exists():
                    raise
                self._plane.problems.report(ProblemName.TLS_CERTIFICATE, str(error))
        self._load()

    async def renew_when_due(self) -> bool:
        """Replace the certificate if it expires soon; open connections are kept. Return whether it was replaced."""
        due = self._is_due()
        if due:
            await self._renew()
            self._load()
        return due

    def _load(self) -> None:
        try:
            self.context.load_cert_chain(self._data.tls_certificate, self._data.tls_key)
        except (OSError, ssl.SSLError) as error:
            path = str(self._data.tls_certificate)
            raise DiskError(
                f"{path}: {error}", path=path, fix="delete tls.pem and tls.key; the plane creates new ones"
            ) from None

    async def _renew(self) -> None:
        issued = await self._plane.anchor.ca.issue(self._names, key_type=KEY_TYPES[0], validity_seconds=_VALIDITY)
        key = serialization.load_der_private_key(issued.private_key_der, None)
        assert isinstance(key, PrivateKey)  # the CA made it
        # A crash between the two writes leaves a mismatched pair; the next start detects and replaces it.
        write_file(self._data.tls_key, key_pem(key), mode=0o600)
        write_file(self._data.tls_certificate, (issued.certificate_pem + issued.chain_pem).encode(), mode=0o644)

    def _is_due(self) -> bool:
        try:
            certificate = x509.load_pem_x509_certificate(self._data.tls_certificate.read_bytes())
            key = serialization.load_pem_private_key(self._data.tls_key.read_bytes(), None)
            sans = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except (OSError, ValueError, TypeError, x509.ExtensionNotFound):
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
