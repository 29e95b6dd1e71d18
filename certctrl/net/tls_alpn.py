"""Answer tls-alpn-01 challenges of certificate authorities (RFC 8737; for addresses RFC 8738).

The answer is a self-signed certificate for the name, with the digest of the key authorization in a critical extension.
Nothing else is served: the handshake fails for names without a challenge, and the connection ends after it.
"""

from __future__ import annotations

import ssl
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from ipaddress import ip_address

import trio
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from certctrl.net.admission import Admission, peer_of

PROTOCOL = "acme-tls/1"
ACME_IDENTIFIER = x509.ObjectIdentifier("1.3.6.1.5.5.7.1.31")
HANDSHAKE_SECONDS = 10.0
CONNECTIONS = 64
CONNECTIONS_PER_ADDRESS = 16
_OCTET_STRING_OF_32 = b"\x04\x20"

FindContext = Callable[[str], ssl.SSLContext | None]
"""Returns the context for a server name; None if there is no challenge for it."""


def challenge_pem(identifier: str, key_authorization: str, now: float) -> bytes:
    """Return key and certificate that answer a challenge, as PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ACME challenge")])
    digest = sha256(key_authorization.encode("ascii")).digest()
    at = datetime.fromtimestamp(now, UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(at - timedelta(days=1))
        .not_valid_after(at + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([_general_name(identifier)]), critical=False)
        .add_extension(x509.UnrecognizedExtension(ACME_IDENTIFIER, _OCTET_STRING_OF_32 + digest), critical=True)
        .sign(key, SHA256())
    )
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return private + certificate.public_bytes(Encoding.PEM)


def _general_name(identifier: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(identifier))
    except ValueError:
        return x509.DNSName(identifier)


def challenge_context(pem_file: str) -> ssl.SSLContext:
    """Return the server context of one challenge; ``pem_file`` is not needed afterwards."""
    context = _context()
    context.load_cert_chain(pem_file)
    return context


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols([PROTOCOL])
    return context


async def listen_tls_alpn01(
    host: str | None, port: int, find: FindContext, *, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED
) -> None:
    """Complete the handshakes of authorities until cancelled.

    ``host`` None: all addresses. Connections are limited as ``Admission`` says; none counts as asking before the end of
    its handshake. ``started`` with the bound port. Raises OSError if it cannot bind.
    """
    listeners = await trio.open_tcp_listeners(port, host=host)
    task_status.started(listeners[0].socket.getsockname()[1])
    context, admission = _context(), Admission(CONNECTIONS, CONNECTIONS_PER_ADDRESS)

    def choose(connection: ssl.SSLObject, name: str | None, _context: ssl.SSLContext) -> int | None:
        found = find(name.lower()) if name else None
        if found is None:
            return int(ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME)
        connection.context = found
        return None

    context.sni_callback = choose

    async def answer(stream: trio.SocketStream) -> None:
        try:
            with admission.admitted(peer_of(stream)) as place:
                if place is not None:
                    with trio.move_on_after(HANDSHAKE_SECONDS):
                        tls = trio.SSLStream(stream, context, server_side=True)
                        await tls.do_handshake()
                        await tls.unwrap()  # nothing else is served (RFC 8737, section 4)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return
        finally:
            await trio.aclose_forcefully(stream)

    with _no_traceback_for_names():
        async with trio.open_nursery() as nursery:
            await trio.serve_listeners(answer, listeners, handler_nursery=nursery)


@contextmanager
def _no_traceback_for_names() -> Iterator[None]:
    """Suppress the traceback that Python prints for each server name that is not ASCII, which it refuses."""
    before = sys.unraisablehook

    def hook(problem: sys.UnraisableHookArgs) -> None:
        if not (isinstance(problem.exc_value, UnicodeDecodeError) and isinstance(problem.object, bytes)):
            before(problem)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        if sys.unraisablehook is hook:
            sys.unraisablehook = before
