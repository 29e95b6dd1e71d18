"""DnsNetwork: send one DNS message to one server and return its answer, within a time limit.

The library's exceptions stop here: a server that does not answer usably is a ``DnsSilenceError`` with its reason.
"""

from __future__ import annotations

import errno
from enum import StrEnum
from ipaddress import ip_address
from typing import Protocol

import dns.asyncbackend
import dns.asyncquery
import dns.exception
import dns.message
import dns.tsig

from certctrl import lean
from certctrl.errors import CertctrlError

ANSWER_SECONDS = 5.0
"""Time limit of one exchange; an answer over UDP gets half of it before the question is repeated."""
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
        address, _, port = text[1:].partition("]")
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
    BAD_KEY = "does not know the TSIG key"
    BAD_SIGNATURE = "knows the TSIG key with another secret or algorithm"
    BAD_TIME = "has a clock that differs from this control plane's by more than five minutes"
    UNSIGNED = "does not sign its answer with the TSIG key"


class DnsSilenceError(CertctrlError):
    """A server that did not answer usably."""

    def __init__(self, server: DnsServer, silence: Silence) -> None:
        super().__init__(f"the DNS server {server.place} {silence.value}")
        self.server = server
        self.silence = silence


class DnsNetwork(Protocol):
    """The network; tests replace it."""

    async def exchange(
        self, query: dns.message.Message, server: DnsServer, *, tcp: bool = False
    ) -> dns.message.Message:
        """Return the answer; over TCP if asked to, or if it does not fit into UDP. Raises DnsSilenceError."""
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
            if tcp:
                return await dns.asyncquery.tcp(
                    query, server.address, timeout=self._seconds, port=server.port, backend=self._backend
                )
            return await self._over_udp(query, server)
        except (dns.exception.DNSException, OSError, EOFError, ValueError) as error:
            raise DnsSilenceError(server, _silence_of(error)) from None

    async def _over_udp(self, query: dns.message.Message, server: DnsServer) -> dns.message.Message:
        for last in (False, True):
            try:
                answer, _ = await dns.asyncquery.udp_with_fallback(
                    query,
                    server.address,
                    timeout=self._seconds / 2,
                    port=server.port,
                    ignore_unexpected=True,
                    ignore_errors=True,
                    backend=self._backend,
                )
            except dns.exception.Timeout:
                if last:
                    raise
            else:
                return answer
        raise AssertionError("the last attempt returns or raises")


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
    if isinstance(error, dns.exception.Timeout):
        return Silence.TIMEOUT
    if isinstance(error, ConnectionRefusedError):
        return Silence.REFUSED
    if isinstance(error, OSError) and error.errno in _UNREACHABLE:
        return Silence.UNREACHABLE
    return Silence.BROKEN
