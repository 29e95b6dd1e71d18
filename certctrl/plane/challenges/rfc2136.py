"""Rfc2136Solver: prove names by dns-01, with dynamic updates (RFC 2136) signed by TSIG (RFC 8945).

Each update adds or deletes single TXT values, so that proofs of a wildcard and its base, of other orders and of other
programs coexist. CNAME records of ``_acme-challenge`` are followed first: the record may be in another
zone, at another server.
"""

from __future__ import annotations

from collections.abc import Sequence

import dns.message
import dns.name
import dns.rcode
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.tsig
import dns.update

from certctrl import lean
from certctrl.errors import CertctrlError
from certctrl.plane.challenges import explain
from certctrl.plane.challenges.dns_lookup import DnsLookup, Zone, name_of, shown
from certctrl.plane.challenges.dns_network import DnsServer, DnsSilenceError, Silence, server_of
from certctrl.plane.challenges.propagation import wait_until_published
from certctrl.plane.challenges.solver import DNS_01, Failures, Proof, dns_record_name, dns_record_value
from certctrl.plane.challenges.tsig_keys import TsigKey, key_for
from certctrl.plane.issuers.issuer import IssuerError

Wanted = dict[dns.name.Name, list[str]]
"""The TXT values of each name."""

_TSIG_FAULTS = (Silence.BAD_KEY, Silence.BAD_SIGNATURE, Silence.BAD_TIME, Silence.UNSIGNED)


@lean.frozen(kw_only=True)
class Rfc2136Settings:
    """How to change the DNS."""

    server: str = ""
    """Address or host name of the primary, with a port if it is not 53; empty: as the zone's SOA record says."""
    zone: str = ""
    """The zone of the records; empty: found by SOA."""
    authoritative: tuple[DnsServer, ...] = ()
    """The servers that must have the records before the CA validates; empty: those of the zone's NS records."""
    port: int = 53
    """The port of servers that the DNS names."""
    ttl: int = 60
    propagation_seconds: float = 120.0


@lean.frozen
class _Record:
    """Where the TXT record of a name is."""

    name: dns.name.Name
    zone: Zone


class Rfc2136Solver:
    """Answers dns-01 by dynamic updates."""

    kinds: tuple[str, ...] = (DNS_01,)

    def __init__(self, settings: Rfc2136Settings, keys: Sequence[TsigKey], lookup: DnsLookup) -> None:
        self._settings = settings
        self._keys = tuple(keys)
        self._lookup = lookup
        self._found: dict[str, _Record] = {}
        """Identifier -> record, so that a value is deleted where it was added."""

    def solves(self, kind: str, identifier: str, wildcard: bool) -> bool:
        """Return whether it is dns-01, which proves any name."""
        return kind == DNS_01

    async def present(self, proofs: Sequence[Proof]) -> None:
        """Add the records, and wait for every authoritative server to have them. Raises IssuerError."""
        by_zone: dict[Zone, Wanted] = {}
        for proof in dict.fromkeys(proofs):
            await self._add_to(by_zone, proof)
        for zone, wanted in by_zone.items():
            await self._update(zone, wanted, add=True)
        for zone, wanted in by_zone.items():
            servers = await self._servers(zone.name)
            await wait_until_published(self._lookup.network, servers, wanted, self._settings.propagation_seconds)

    async def clean_up(self, proofs: Sequence[Proof]) -> Failures:
        """Delete the values; return why some could not be deleted."""
        by_zone: dict[Zone, Wanted] = {}
        zones: dict[Zone, list[Proof]] = {}
        failures: dict[Proof, CertctrlError] = {}
        for proof in dict.fromkeys(proofs):
            try:
                zones.setdefault(await self._add_to(by_zone, proof), []).append(proof)
            except IssuerError as error:
                failures[proof] = error
        for proof in proofs:
            self._found.pop(proof.identifier, None)  # the delegation may change until the next order
        for zone, wanted in by_zone.items():
            try:
                await self._update(zone, wanted, add=False)
            except IssuerError as error:
                failures |= dict.fromkeys(zones[zone], error)
        return failures

    async def explain(self, proof: Proof) -> str:
        """Return what the DNS answers for the record of a proof."""
        return await explain.explain_dns(self._lookup, proof, self._settings.authoritative)

    async def _add_to(self, by_zone: dict[Zone, Wanted], proof: Proof) -> Zone:
        """Add the value of a proof to its zone, which is returned. Raises IssuerError."""
        record = await self._record(proof.identifier)
        by_zone.setdefault(record.zone, {}).setdefault(record.name, []).append(dns_record_value(proof))
        return record.zone

    async def _record(self, identifier: str) -> _Record:
        if identifier not in self._found:
            self._found[identifier] = await self._find(identifier)
        return self._found[identifier]

    async def _find(self, identifier: str) -> _Record:
        """Return where the record of a name belongs. Raises IssuerError."""
        name = name_of(dns_record_name(identifier))
        aliases = await self._lookup.follow(name)
        if not aliases.is_complete:
            raise IssuerError(
                f"the CNAME records of {shown(name)} form a loop or are too many",
                fix="let it lead to the record in at most 8 steps",
            )
        target = aliases.target
        given = self._settings.zone
        zone = Zone(name_of(given)) if given else await self._lookup.zone_of(target)
        if zone is None or not target.is_subdomain(zone.name):
            where = f"is not in the zone {given}" if given else "is in no zone of the DNS"
            raise IssuerError(f"{shown(target)} {where}", fix="check the delegation of the domain, or set zone")
        return _Record(target, zone)

    async def _servers(self, zone: dns.name.Name) -> Sequence[DnsServer]:
        servers = self._settings.authoritative or await self._lookup.servers_of(zone)
        if not servers:
            raise IssuerError(
                f"the zone {shown(zone)} has no name server with an address", fix="check its NS records and their hosts"
            )
        return servers

    async def _primaries(self, zone: Zone) -> Sequence[DnsServer]:
        """Return the addresses of the server that accepts updates."""
        host: dns.name.Name | None
        given = self._settings.server
        if given:
            try:
                return [server_of(given)]
            except ValueError:
                host = name_of(given)
        else:
            found = zone if zone.primary is not None else await self._lookup.zone_of(zone.name)
            host = None if found is None else found.primary
        servers = [] if host is None else await self._lookup.addresses(host)
        if not servers:
            name = "" if host is None else f" {shown(host)}"
            what = f"the primary server{name} of {shown(zone.name)} has no address"
            raise IssuerError(what, fix="set server to ADDRESS:PORT")
        return servers

    async def _update(self, zone: Zone, wanted: Wanted, *, add: bool) -> None:
        """Send one update to the first server of the zone that answers. Raises IssuerError."""
        key = key_for(self._keys, shown(zone.name))
        silences: list[DnsSilenceError] = []
        for server in await self._primaries(zone):
            update = make_update(zone.name, wanted, key, ttl=self._settings.ttl, add=add)
            try:
                answer = await self._lookup.network.exchange(update, server, tcp=True)
            except DnsSilenceError as error:
                silences.append(error)
                if error.silence in _TSIG_FAULTS:
                    break
                continue
            check_answer(answer, server, zone.name, key)
            return
        raise _no_update(silences[-1], zone.name, key)


def make_update(
    zone: dns.name.Name, wanted: Wanted, key: TsigKey | None, *, ttl: int, add: bool
) -> dns.update.UpdateMessage:
    """Return an update that adds or deletes single TXT values."""
    update = dns.update.UpdateMessage(zone)
    if key is not None:
        update.use_tsig(dns.tsig.Key(key.name, key.secret, key.algorithm))
    for name, value in ((name, value) for name, values in wanted.items() for value in values):
        rdata = dns.rdata.from_text(dns.rdataclass.IN, dns.rdatatype.TXT, f'"{value}"')
        if add:
            update.add(name, ttl, rdata)
        else:
            update.delete(name, rdata)
    return update


_NO_KEY_FIX = "give the issuer a TSIG key that the server accepts"
_FIXES = {
    dns.rcode.NOTAUTH: "set server to the primary of the zone, and check zone",
    dns.rcode.NOTZONE: "set zone to the zone that the server has",
    dns.rcode.NOTIMP: "set server to a server that accepts dynamic updates",
    dns.rcode.SERVFAIL: "read the server's log: often it cannot write the zone's journal",
    dns.rcode.FORMERR: "read the server's log",
}


def check_answer(answer: dns.message.Message, server: DnsServer, zone: dns.name.Name, key: TsigKey | None) -> None:
    """Raise IssuerError unless a server has accepted an update."""
    rcode = answer.rcode()
    if rcode == dns.rcode.NOERROR:
        if key is not None and not answer.had_tsig:
            raise _no_update(DnsSilenceError(server, Silence.UNSIGNED), zone, key)
        return
    signed = f"signed with the key {key.name}" if key else "without a TSIG key"
    fix = _FIXES.get(rcode, "read the server's log")
    if rcode == dns.rcode.REFUSED:
        grant = f"allow the key {key.name if key else ''} to update TXT _acme-challenge records of {shown(zone)}"
        fix = f"{grant} (BIND: update-policy, Knot: acl)" if key else _NO_KEY_FIX
    raise IssuerError(
        f"the DNS server {server.place} refuses an update of {shown(zone)} {signed}: {dns.rcode.to_text(rcode)}",
        fix=fix,
    )


def _no_update(error: DnsSilenceError, zone: dns.name.Name, key: TsigKey | None) -> IssuerError:
    """Return the error for an update without a usable answer."""
    name = key.name if key else ""
    code, fix = {
        Silence.BAD_KEY: (
            " (BADKEY)",
            f"add the key {name} to the server by this name; in Knot, also to an acl of the zone",
        ),
        Silence.BAD_SIGNATURE: (
            " (BADSIG)",
            f"give the issuer the secret and algorithm that the server has for {name}",
        ),
        Silence.BAD_TIME: (" (BADTIME)", "correct the clocks of this host and of the server, for example with NTP"),
        Silence.UNSIGNED: ("", "set server to the primary itself: something else answers there"),
    }.get(error.silence, ("", "check that the server runs and that TCP to it is open, or set server"))
    about = f" {name}" if error.silence in _TSIG_FAULTS else ""
    what = f"cannot update {shown(zone)}: the DNS server {error.server.place} {error.silence.value}{code}"
    return IssuerError(f"{what}; key{about}" if about else what, fix=fix)
