"""TLS to the plane: 1.2 or newer, host name and CA always checked, the environment ignored.

``ssl.create_default_context`` and ``load_default_certs`` are not used: the first obeys ``SSLKEYLOGFILE``, the second
``SSL_CERT_FILE`` and ``SSL_CERT_DIR``. An attacker who controls the environment could decrypt or redirect the traffic.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import re
import ssl
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path

from certctrl import lean
from certctrl.errors import ConfigError
from certctrl.model.config import HttpClientConfig
from certctrl.model.paths import NEXT_PLANE_CA, PLANE_CA, STATE_DIR

log = logging.getLogger("certctrl.Http")

_FILE = "httpclient_config.json"
_BUNDLES = (  # after OpenSSL's built-in path: the paths of the distributions
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)
_DIRECTORIES = ("/etc/ssl/certs",)
_HASHED = re.compile(r"[0-9a-f]{8}\.\d+")


@lean.frozen
class PlaneCa:
    """The operator's file with the plane's CA, and the CAs that the plane has announced in place of it.

    The latter is in the state directory, because the configuration is read-only to the daemon. Its first line is the
    digest of the operator's file that it replaces: once the operator changes that file, the operator's is used again.
    """

    configured: Path
    taken: Path
    """Used in place of the configured one."""
    next: Path
    """Used in addition, until a connection has proven it."""

    @classmethod
    def below(cls, root: Path) -> PlaneCa:
        """Return the paths in the config directory ``root``."""
        state = root / STATE_DIR
        return cls(root / PLANE_CA, state / PLANE_CA, state / NEXT_PLANE_CA)

    def stamp(self) -> bytes:
        """Return the first line of files that replace the current configured one."""
        digest = hashlib.sha256(_bytes(self.configured)).hexdigest()
        return f"# in place of {self.configured.name} with sha256 {digest}\n".encode()

    def in_use(self) -> tuple[Path, Path | None]:
        """Return the file that is used, and the one that is used in addition, if there is one."""
        stamp = self.stamp()
        taken = self.taken if _bytes(self.taken).startswith(stamp) else self.configured
        return taken, self.next if _bytes(self.next).startswith(stamp) else None


class Trust:
    """The trusted CAs and the client certificate, reloaded when a file changes so that a rotation needs no restart.

    The CA that the plane has announced is used in addition to `plane-ca.pem`, later in place of it (`PlaneCa`).
    """

    def __init__(self, config: HttpClientConfig, root: Path) -> None:
        """Load the configured files; relative paths start at the config directory ``root``.

        Raises ConfigError.
        """
        self._ca_files = tuple(root / name for name in config.ca_files)
        self._plane_ca = PlaneCa.below(root) if PLANE_CA in config.ca_files else None
        self._certificate = root / config.client_certificate if config.client_certificate else None
        self._key = root / config.client_key if config.client_key else None
        self._seen = self._fingerprint()
        self._context = self._load()

    def context(self) -> ssl.SSLContext:
        """Return the context for new connections; if changed files do not load, the previous one."""
        seen = self._fingerprint()
        if seen != self._seen:
            self._seen = seen
            try:
                self._context = self._load()
            except ConfigError as error:
                log.warning("Keeping the previous TLS files: %s", error)
        return self._context

    def _load(self) -> ssl.SSLContext:
        if self._plane_ca is None:
            return client_context(self._ca_files, self._certificate, self._key)
        used, added = self._plane_ca.in_use()
        own = [used if path == self._plane_ca.configured else path for path in self._ca_files]
        try:
            return client_context([*own, *([added] if added else [])], self._certificate, self._key)
        except ConfigError as error:
            if [*own] == [*self._ca_files] and added is None:
                raise
            log.warning("Not trusting the CA that the control plane has announced: %s", error)
            return client_context(self._ca_files, self._certificate, self._key)

    def _fingerprint(self) -> tuple[tuple[int, int, int], ...]:
        handed_out = () if self._plane_ca is None else (self._plane_ca.taken, self._plane_ca.next)
        files = (*self._ca_files, *handed_out, self._certificate, self._key)
        return tuple(_stat(path) for path in files if path is not None)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _stat(path: Path) -> tuple[int, int, int]:
    try:
        facts = path.stat()
    except OSError:
        return (0, 0, 0)
    return (facts.st_mtime_ns, facts.st_ino, facts.st_size)


def client_context(ca_files: Sequence[Path], certificate: Path | None, key: Path | None) -> ssl.SSLContext:
    """Return a client context that verifies the server; without ``ca_files``, by the system trust store.

    Raises ConfigError, which names the file that does not load.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # includes CERT_REQUIRED and check_hostname
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if ca_files:
        # Each named certificate is an anchor, even an intermediate or the plane's own certificate.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        for path in ca_files:
            _load_ca(context, path)
    else:
        _load_system_store(context)
    if certificate is not None:
        _load_identity(context, certificate, key)
    return context


def unverified_context() -> ssl.SSLContext:
    """Return a client context that accepts any server, for what is verified in another way."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def _load_ca(context: ssl.SSLContext, path: Path) -> None:
    fix = "set it to a readable PEM file (cert-ctrl init --ca FILE writes one)"
    try:
        _require_file(path)
        context.load_verify_locations(cafile=path)
    except ssl.SSLError:
        raise ConfigError(f"{path} contains no PEM certificate", file=_FILE, path="ca_files", fix=fix) from None
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", file=_FILE, path="ca_files", fix=fix) from None


def _require_file(path: Path) -> None:
    """Raise OSError for what OpenSSL reports without a reason, or would wait for forever, such as a FIFO."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))


def _load_identity(context: ssl.SSLContext, certificate: Path, key: Path | None) -> None:
    def no_password() -> str:  # otherwise OpenSSL would prompt on the terminal of the daemon
        raise ValueError

    try:
        _require_file(certificate)
        if key is not None:
            _require_file(key)
        context.load_cert_chain(certificate, key, password=no_password)
    except ValueError:
        why = "the key is encrypted"
    except ssl.SSLError as error:
        why = "certificate and key do not match" if "MISMATCH" in str(error.reason) else "not PEM"
    except OSError as error:
        why = f"{error.filename or certificate}: {error.strerror or 'cannot be read'}"
    else:
        return
    raise ConfigError(
        f"cannot use {certificate}{f' with {key}' if key else ''}: {why}",
        file=_FILE,
        path="client_certificate",
        fix="set it to an unencrypted PEM certificate and its key",
    ) from None


def _load_system_store(context: ssl.SSLContext) -> None:
    built_in = ssl.get_default_verify_paths()
    for directory in _existing((built_in.openssl_capath, *_DIRECTORIES)):
        if _is_hashed(directory):  # loaded on demand: 20 ms and 1 MiB less than the whole bundle
            context.load_verify_locations(capath=directory)
            return
    for bundle in _existing((built_in.openssl_cafile, *_BUNDLES)):
        context.load_verify_locations(cafile=bundle)
        return
    raise ConfigError(
        "this host has no system trust store",
        file=_FILE,
        path="ca_files",
        fix="install the package ca-certificates, or set ca_files to the plane's CA (init --ca FILE)",
    )


def _existing(paths: Iterable[str | None]) -> list[Path]:
    return [Path(path) for path in paths if path and Path(path).exists()]


def _is_hashed(directory: Path) -> bool:
    try:
        return any(_HASHED.fullmatch(entry.name) for entry in directory.iterdir())
    except OSError:
        return False
