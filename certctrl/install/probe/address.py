"""Ask one address of an endpoint for its leaf, by the kind of key that is wanted.

A server with an RSA and an ECDSA certificate for one name answers with the one that it prefers. So the probe offers
only TLS 1.2 with the cipher suites of the wanted kind, then TLS 1.3 with its signature algorithms. If both fail, it
examines what the server sends to a client that accepts everything.
"""

from __future__ import annotations

import hashlib
import ipaddress
import socket
import ssl
from collections.abc import Awaitable, Callable
from functools import cache, partial

import trio
from cryptography import x509
from cryptography.x509.oid import PublicKeyAlgorithmOID

from certctrl import lean
from certctrl.errors import ProbeError, ProbeFault
from certctrl.install.probe.handshake import RecordingStream
from certctrl.install.probe.starttls import start_tls
from certctrl.install.probe.tls13 import leaf_of_kind
from certctrl.model.certificate import KeyKind
from certctrl.model.plan import VerifyTls
from certctrl.text import ascii_name, one_line, serial_text

_SUITES = {KeyKind.RSA: "aRSA:!NULL", KeyKind.ECDSA: "aECDSA:!NULL"}
_RSA = (PublicKeyAlgorithmOID.RSAES_PKCS1_v1_5, PublicKeyAlgorithmOID.RSASSA_PSS)
_UNUSED = {socket.AF_INET: "192.0.2.1", socket.AF_INET6: "2001:db8::1"}
"""Addresses that no host has (RFC 5737, RFC 3849)."""


@lean.frozen(kw_only=True)
class Seen:
    """The answer of one address."""

    address: str
    """``127.0.0.1:443`` or ``[::1]:443``."""
    fingerprint: str = ""
    """SHA-256 of the served leaf, lower-case hex; empty: none."""
    kind: KeyKind | None = None
    """Its kind of key; None: unknown."""
    serial: str = ""
    """Its serial number, as in `CertFacts`; empty: unknown."""
    not_after: float = 0.0
    """When it ends, in seconds since the epoch; 0: unknown."""
    fault: str = ""
    """Why it served none, for this host's log: it may quote the server."""
    fault_class: ProbeFault = ProbeFault.NO_ANSWER


def kind_of(leaf: bytes) -> KeyKind | None:
    """Return the kind of key of a certificate (DER); None if it cannot be read."""
    try:
        algorithm = x509.load_der_x509_certificate(leaf).public_key_algorithm_oid
    except (ValueError, x509.InvalidVersion):
        return None
    return KeyKind.RSA if algorithm in _RSA else KeyKind.ECDSA


async def ask_address(family: int, host: str, address: str, verify: VerifyTls, kind: KeyKind | None) -> Seen:
    """Return what one address serves to a client that wants this kind of key; None: any.

    If it has none of that kind, the answer is what it serves instead. Failures are returned, not raised.
    """
    if kind is not None:
        for how in (partial(_leaf_of, context=_context(kind)), partial(leaf_of_kind, kind=kind)):
            seen = await _ask(family, host, address, verify, how)
            if seen.fault_class is not ProbeFault.NO_TLS:
                return seen
    return await _ask(family, host, address, verify, partial(_leaf_of, context=_context(None)))


async def _ask(
    family: int, host: str, address: str, verify: VerifyTls, leaf_of: Callable[..., Awaitable[bytes]]
) -> Seen:
    try:
        with trio.socket.socket(family, trio.socket.SOCK_STREAM) as plain:
            await plain.connect((host, verify.port))
            stream = trio.SocketStream(plain)
            if verify.starttls is not None:
                await start_tls(stream, verify.starttls, verify.server_name or verify.host)
            leaf = await leaf_of(stream, _server_name(verify))
    except ProbeError as error:
        return Seen(address=address, fault=str(error), fault_class=error.fault)
    except ConnectionRefusedError as error:
        return Seen(address=address, fault=_why(error), fault_class=ProbeFault.REFUSED)
    except (trio.BrokenResourceError, ssl.SSLError) as error:
        return Seen(address=address, fault=_why(error), fault_class=ProbeFault.NO_TLS)
    except (OSError, ValueError) as error:  # the latter for names that TLS cannot ask for
        return Seen(address=address, fault=_why(error))
    serial, not_after = _serial_and_end(leaf)
    return Seen(
        address=address,
        fingerprint=hashlib.sha256(leaf).hexdigest(),
        kind=kind_of(leaf),
        serial=serial,
        not_after=not_after,
    )


def _serial_and_end(leaf: bytes) -> tuple[str, float]:
    """Return the serial number of a certificate (DER) and when it ends; nothing if they cannot be read."""
    try:
        certificate = x509.load_der_x509_certificate(leaf)
        return serial_text(certificate.serial_number), certificate.not_valid_after_utc.timestamp()
    except (ValueError, x509.InvalidVersion):
        return "", 0.0


async def _leaf_of(stream: trio.SocketStream, server_name: str | None, *, context: ssl.SSLContext) -> bytes:
    recorded = RecordingStream(stream)
    tls = trio.SSLStream(recorded, context, server_hostname=server_name)
    leaf: bytes | None
    try:
        await tls.do_handshake()
        leaf = tls.getpeercert(binary_form=True)
    except trio.BrokenResourceError as error:
        leaf = recorded.leaf_after(error)
        if leaf is None:
            raise
    await trio.aclose_forcefully(tls)
    if leaf is None:
        raise ProbeError("the server sent no certificate", fault=ProbeFault.NO_TLS)
    return leaf


@cache
def _context(kind: KeyKind | None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # the fingerprint is compared, which is stricter than any chain
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if kind is not None:
        context.maximum_version = ssl.TLSVersion.TLSv1_2  # the suites of TLS 1.3 say nothing about the key
        context.set_ciphers(_SUITES[kind])
    return context


def _server_name(verify: VerifyTls) -> str | None:
    """Return the name for SNI: the given one, otherwise the host; no address."""
    name = verify.server_name or verify.host
    try:
        ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return ascii_name(name)
    return None


def _why(error: BaseException) -> str:
    """Return the innermost cause in a few words: Trio wraps the TLS library's errors."""
    while (deeper := error.__cause__ or error.__context__) is not None and not getattr(error, "strerror", None):
        error = deeper
    if isinstance(error, ssl.SSLError):
        return f"TLS: {(error.reason or 'failed').lower().replace('_', ' ')}"
    return one_line(str(getattr(error, "strerror", None) or str(error) or type(error).__name__))


# --- whose address ------------------------------------------------------------------------------------------------


def is_own(host: str) -> bool:
    """Return whether an address belongs to this host, without sending anything."""
    address = ipaddress.ip_address(host.partition("%")[0])
    address = getattr(address, "ipv4_mapped", None) or address
    if address.is_loopback or address.is_unspecified:
        return True
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    text = str(address) if address.version == 4 else host
    if _source_for(family, text) == text:  # the way to an own address begins at that address
        return True
    # a second address of an interface: its way begins at the first one
    return _can_bind(family, text) and not _can_bind(family, _UNUSED[family])


def _source_for(family: int, host: str) -> str:
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((host, 9))
        except OSError:
            return ""
        return str(probe.getsockname()[0])


def _can_bind(family: int, host: str) -> bool:
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((host, 0))
        except OSError:
            return False
        return True
