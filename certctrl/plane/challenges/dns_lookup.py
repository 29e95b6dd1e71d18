"""DnsLookup: locate a record through resolvers, with its aliases, zone, primary and name servers.

Everything is bounded: aliases, name servers, addresses, and the time of each question.
"""

from __future__ import annotations

from collections.abc import Sequence

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdata
import dns.rdatatype
import dns.resolver

from certctrl import lean
from certctrl.plane.challenges.dns_network import DNS_PORT, DnsNetwork, DnsServer, DnsSilenceError
from certctrl.plane.issuers.issuer import IssuerError

MAX_ALIASES = 8
MAX_NAME_SERVERS = 16
MAX_ADDRESSES = 4
"""Addresses of each kind that count for one host name."""
_MAX_RESOLVERS = 4
_UNUSED_LABEL = b"_certctrl-no-such-name"


@lean.frozen
class Zone:
    """A zone of the DNS."""

    name: dns.name.Name
    primary: dns.name.Name | None = None
    """The host name of its primary server, by its SOA record; None: not looked up."""


@lean.frozen
class Aliases:
    """Where the CNAME records of a name lead."""

    names: tuple[dns.name.Name, ...]
    """The name, and those that follow."""
    is_complete: bool = True
    """False if they form a loop or are too many."""

    @property
    def target(self) -> dns.name.Name:
        """The last name."""
        return self.names[-1]


class DnsLookup:
    """Questions to resolvers; raises IssuerError if none of them answers."""

    def __init__(self, network: DnsNetwork, resolvers: Sequence[DnsServer] = (), port: int = DNS_PORT) -> None:
        """``resolvers`` none: those of this host; ``port``: that of all name servers that are found."""
        self.network = network
        self._given = tuple(resolvers)
        self._port = port

    def resolvers(self) -> tuple[DnsServer, ...]:
        """Return the resolvers that are asked. Raises IssuerError if this host has none."""
        if self._given:
            return self._given
        try:
            found = dns.resolver.Resolver().nameservers
        except dns.exception.DNSException:
            found = []
        servers = tuple(DnsServer(address) for address in found if isinstance(address, str))
        if not servers:
            raise IssuerError(
                "this host has no DNS resolver", fix="add a nameserver to /etc/resolv.conf, or set resolvers"
            )
        self._given = servers[:_MAX_RESOLVERS]
        return self._given

    async def ask(self, name: dns.name.Name, kind: dns.rdatatype.RdataType) -> dns.message.Message:
        """Return the first answer of a resolver that is not a failure; NXDOMAIN is an answer."""
        found = []
        for resolver in self.resolvers():
            query = dns.message.make_query(name, kind)
            try:
                answer = await self.network.exchange(query, resolver)
            except DnsSilenceError as error:
                found.append(str(error))
                continue
            if answer.rcode() in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
                return answer
            found.append(f"the resolver {resolver.place} answers {dns.rcode.to_text(answer.rcode())}")
        raise IssuerError(
            f"cannot look up {kind.name} {shown(name)}: {'; '.join(found)}",
            fix="check the resolvers in /etc/resolv.conf or in the issuer's settings",
        )

    async def records(self, name: dns.name.Name, kind: dns.rdatatype.RdataType) -> list[dns.rdata.Rdata]:
        """Return the records of exactly this name."""
        return records_in(await self.ask(name, kind), name, kind)

    async def follow(self, name: dns.name.Name) -> Aliases:
        """Follow the CNAME records of a name."""
        names = [name]
        while len(names) <= MAX_ALIASES:
            found = await self.records(names[-1], dns.rdatatype.CNAME)
            if not found:
                return Aliases(tuple(names))
            target: dns.name.Name = found[0].target  # type: ignore[attr-defined]
            if len(names) == 1 and await self._is_wildcard(name, target):
                return Aliases(tuple(names))
            if target in names:
                break
            names.append(target)
        return Aliases(tuple(names), is_complete=False)

    async def _is_wildcard(self, name: dns.name.Name, target: dns.name.Name) -> bool:
        """Return whether a CNAME comes from a wildcard, which a record at the name itself replaces."""
        neighbour = dns.name.Name((_UNUSED_LABEL, *name.labels[1:]))
        found = await self.records(neighbour, dns.rdatatype.CNAME)
        return bool(found) and found[0].target == target  # type: ignore[attr-defined]

    async def zone_of(self, name: dns.name.Name) -> Zone | None:
        """Return the zone that contains a name; None if no name above it has a SOA record."""
        while name != dns.name.root:
            found = await self.records(name, dns.rdatatype.SOA)
            if found:
                return Zone(name, found[0].mname)  # type: ignore[attr-defined]
            name = name.parent()
        return None

    async def addresses(self, host: dns.name.Name, name: str = "") -> list[DnsServer]:
        """Return a host as servers, one per address; IPv6 first, as CAs prefer it."""
        found = []
        for kind in (dns.rdatatype.AAAA, dns.rdatatype.A):
            answer = await self.ask(host, kind)
            texts = [rdata.to_text() for rrset in answer.answer if rrset.rdtype == kind for rdata in rrset]
            found += [DnsServer(text, self._port, name or shown(host)) for text in texts[:MAX_ADDRESSES]]
        return found

    async def servers_of(self, zone: dns.name.Name) -> list[DnsServer]:
        """Return the authoritative servers of a zone; a name server without an address is left out."""
        servers: list[DnsServer] = []
        for record in (await self.records(zone, dns.rdatatype.NS))[:MAX_NAME_SERVERS]:
            servers += await self.addresses(record.target)  # type: ignore[attr-defined]
        return servers


def records_in(
    answer: dns.message.Message, name: dns.name.Name, kind: dns.rdatatype.RdataType
) -> list[dns.rdata.Rdata]:
    """Return the records of one name and type in an answer."""
    return [rdata for rrset in answer.answer if rrset.name == name and rrset.rdtype == kind for rdata in rrset]


def shown(name: dns.name.Name) -> str:
    """Return a name for messages, without its last dot."""
    return name.to_text(omit_final_dot=True)


def name_of(text: str) -> dns.name.Name:
    """Return an absolute name. Raises ValueError for a text that is not a name."""
    try:
        return dns.name.from_text(text)
    except dns.exception.DNSException as error:
        raise ValueError(str(error)) from None
