"""DnsNetwork: send one DNS message to one server and return its answer, within a time limit.

The library's exceptions stop here: a server without a usable answer is a ``DnsSilenceError`` with the reason.
"""

from __future__ import annotations

import contextlib
import errno
from enum import StrEnum
from ipaddress import ip_address
from typing import Protocol

import dns.asyncbackend
import dns.asyncquery
import dns.exception
import dns.message
import dns.tsig
import trio

from certctrl import lean
from certctrl.errors import CertctrlError

ANSWER_SECONDS = 5.0
"""Time limit of an exchange over TCP; one over UDP has half of it before TCP is tried."""
DNS_PORT = 53


@lean.frozen
class DnsServer:
    """A DNS server."""

    address: str
    port: int = DNS_PORT
    name: str = ""
    """Its host name, if it is known by one."""

    @property
    def place(self) -> str:
        """The server for messages: ``ns1.example.com (192.0.2.1)``."""
        where = self.address
        if self.port != DNS_PORT:
            where = f"[{where}]:{self.port}" if ":" in where else f"{where}:{self.port}"
        return f"{self.name} ({where})" if self.name else where


def server_of(text: str) -> DnsServer:
    """Return the server of ``ADDRESS``, ``ADDRESS:PORT`` or ``[ADDRESS]:PORT``. Raises ValueError."""
    address, port = text, ""
    if text.startswith("["):
        address, bracket, port = text[1:].partition("]")
        if not bracket or (port and not port.startswith(":")):
            raise ValueError(f"{text!r} is not [ADDRESS]:PORT")
        port = port.removeprefix(":")
    elif text.count(":") == 1:
        address, _, port = text.partition(":")
    number = int(port) if port.isascii() and port.isdigit() else (0 if port else DNS_PORT)
    if not 0 < number <= 65_535:
        raise ValueError(f"{port!r} is not a port")
    return DnsServer(str(ip_address(address)), number)


class Silence(StrEnum):
    """Why there is no usable answer."""

    TIMEOUT = "does not answer in time"
    REFUSED = "refuses the connection"
    UNREACHABLE = "cannot be reached from this control plane"
    BROKEN = "sends an answer that is not DNS"
    BAD_KEY = "does not accept the TSIG key"
    BAD_SIGNATURE = "knows the TSIG key with another secret or algorithm"
    BAD_TIME = "has a clock that differs from this control plane's by more than five minutes"
    UNSIGNED = "does not sign its answer with the TSIG key"


class DnsSilenceError(CertctrlError):
    """A server gave no usable answer."""

    def __init__(self, server: DnsServer, silence: Silence) -> None:
        super().__init__(f"the DNS server {server.place} {silence.value}")
        self.server = server
        self.silence = silence


class DnsNetwork(Protocol):
    """The network; tests replace it."""

    async def exchange(
        self, query: dns.message.Message, server: DnsServer, *, tcp: bool = False
    ) -> dns.message.Message:
        """Return the answer; over TCP if asked to, or if UDP fails. Raises DnsSilenceError."""
        ...


class RealDnsNetwork:
    """The network through dnspython on Trio."""

    def __init__(self, seconds: float = ANSWER_SECONDS) -> None:
        self._seconds = seconds
        self._backend = dns.asyncbackend.get_backend("trio")

    async def exchange(
        self, query: dns.message.Message, server: DnsServer, *, tcp: bool = False
    ) -> dns.message.Message:
        """Return the answer; see ``DnsNetwork.exchange``."""
        try:
            if not tcp:
                with contextlib.suppress(dns.exception.Timeout):
                    return await self._over_udp(query, server)
            with trio.fail_after(self._seconds):
                return await _over_tcp(query, server)
        except (dns.exception.DNSException, trio.TooSlowError, trio.BrokenResourceError, OSError, ValueError) as error:
            raise DnsSilenceError(server, _silence_of(error)) from None

    async def _over_udp(self, query: dns.message.Message, server: DnsServer) -> dns.message.Message:
        """Return the answer, over TCP if it does not fit. Raises exceptions of the library and OSError."""
        answer, _ = await dns.asyncquery.udp_with_fallback(
            query,
            server.address,
            timeout=self._seconds / 2,
            port=server.port,
            ignore_unexpected=True,
            ignore_errors=True,
            backend=self._backend,
        )
        return answer


async def _over_tcp(query: dns.message.Message, server: DnsServer) -> dns.message.Message:
    """Return the answer; raises exceptions of the library, OSError and ValueError.

    The library's own function hides the reason of a refusal that is not signed.
    """
    wire = query.to_wire()
    family = trio.socket.AF_INET6 if ":" in server.address else trio.socket.AF_INET
    with trio.socket.socket(family, trio.socket.SOCK_STREAM) as sock:
        await sock.connect((server.address, server.port))
        stream = trio.SocketStream(sock)
        await stream.send_all(len(wire).to_bytes(2, "big") + wire)
        length = int.from_bytes(await _exactly(stream, 2), "big")
        data = await _exactly(stream, length)
    answer = _parsed(query, data)
    if not query.is_response(answer):
        raise ValueError("the answer is to another question")
    return answer


async def _exactly(stream: trio.SocketStream, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        part = await stream.receive_some(size - len(data))
        if not part:
            raise ValueError("the connection ended within the answer")
        data += part
    return bytes(data)


def _parsed(query: dns.message.Message, data: bytes) -> dns.message.Message:
    """Return an answer, verified if the query is signed; one without a signature has ``had_tsig`` False."""
    try:
        return dns.message.from_wire(data, keyring=query.keyring, request_mac=query.mac or b"")
    except dns.exception.FormError:
        if query.keyring is None:
            raise
        return dns.message.from_wire(data)  # raises again if there is a signature


_UNREACHABLE = frozenset(
    {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EACCES, errno.EPERM}
)
_TSIG_FAULTS = (
    (dns.tsig.PeerBadKey, Silence.BAD_KEY),
    (dns.tsig.PeerBadTime, Silence.BAD_TIME),
    (dns.tsig.BadTime, Silence.BAD_TIME),
    (dns.tsig.PeerError, Silence.BAD_SIGNATURE),
    (dns.tsig.BadSignature, Silence.BAD_SIGNATURE),
    (dns.tsig.BadAlgorithm, Silence.BAD_SIGNATURE),
    (dns.tsig.BadKey, Silence.BAD_KEY),
    (dns.message.UnknownTSIGKey, Silence.BAD_KEY),
)


def _silence_of(error: Exception) -> Silence:
    """Return what an exception of the library or the system means."""
    for kind, silence in _TSIG_FAULTS:
        if isinstance(error, kind):
            return silence
    if isinstance(error, dns.exception.Timeout | trio.TooSlowError):
        return Silence.TIMEOUT
    if isinstance(error, ConnectionRefusedError):
        return Silence.REFUSED
    if isinstance(error, OSError) and error.errno in _UNREACHABLE:
        return Silence.UNREACHABLE
    return Silence.BROKEN
