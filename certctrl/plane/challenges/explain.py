"""Explain why a CA refused dns-01: the question, the answers, and the servers that gave them.

``explain_dns`` collects the facts, ``describe_dns`` decides what they mean.
"""

from __future__ import annotations

from collections.abc import Sequence

import dns.name
import dns.rdatatype

from certctrl import lean
from certctrl.plane.challenges.caa import find_caa, refusal
from certctrl.plane.challenges.dns_lookup import MAX_ALIASES, Aliases, DnsLookup, name_of, shown
from certctrl.plane.challenges.dns_network import DnsServer
from certctrl.plane.challenges.propagation import Observation, Seen, observe_all
from certctrl.plane.challenges.solver import Proof, dns_record_name, dns_record_value
from certctrl.plane.issuers.issuer import IssuerError
from certctrl.text import one_line

_SHOWN_SERVERS = 4


@lean.frozen(kw_only=True)
class DnsFacts:
    """What the DNS answers for the record of a proof."""

    name: str
    """Of the TXT record."""
    value: str
    """Its expected text."""
    aliases: tuple[str, ...] = ()
    """Where its CNAME records lead, one after the other."""
    is_loop: bool = False
    zone: str = ""
    """The zone of the record; empty: none was found."""
    observations: tuple[Observation, ...] = ()
    """The answers of the zone's authoritative servers."""
    resolver: str = ""
    """Why a resolver does not answer; empty if it does."""
    caa: str = ""
    """Why CAA records forbid it; empty if they allow it."""


async def explain_dns(lookup: DnsLookup, proof: Proof, authoritative: Sequence[DnsServer] = ()) -> str:
    """Ask for the record of a dns-01 proof, and describe what is wrong with it; never raises IssuerError."""
    return describe_dns(await collect(lookup, proof, authoritative))


async def collect(lookup: DnsLookup, proof: Proof, authoritative: Sequence[DnsServer] = ()) -> DnsFacts:
    """Return the facts about the record of a proof."""
    name, value = dns_record_name(proof.identifier), dns_record_value(proof)
    facts = DnsFacts(name=name, value=value)
    try:
        aliases = await lookup.follow(name_of(name))
        if not aliases.is_complete:
            return DnsFacts(name=name, value=value, is_loop=True)
        zone = None if authoritative else await lookup.zone_of(aliases.target)
        servers = authoritative if zone is None else await lookup.servers_of(zone.name)
        seen = await observe_all(lookup.network, servers, aliases.target)
        facts = DnsFacts(
            name=name,
            value=value,
            aliases=tuple(shown(one) for one in aliases.names[1:]),
            zone="" if zone is None else shown(zone.name),
            observations=tuple(seen),
            resolver=await _asked_resolver(lookup, aliases),
            caa=await describe_caa(lookup, proof),
        )
    except IssuerError as error:
        facts = DnsFacts(name=name, value=value, resolver=str(error))
    return facts


async def describe_caa(lookup: DnsLookup, proof: Proof) -> str:
    """Return why CAA records forbid the CA to issue, or may; empty: they allow it."""
    asker = proof.asker
    try:
        found = await find_caa(lookup, proof.identifier)
    except IssuerError as error:
        return f"{error}; a CA that cannot look it up refuses, too"
    return refusal(found, asker.identities, wildcard=asker.wildcard, method=proof.kind, account_url=asker.account_url)


async def _asked_resolver(lookup: DnsLookup, aliases: Aliases) -> str:
    """Return why a resolver does not answer for a record that its servers may have, as with broken DNSSEC."""
    try:
        await lookup.ask(aliases.target, dns.rdatatype.TXT)
    except IssuerError as error:
        return str(error)
    return ""


def describe_dns(facts: DnsFacts) -> str:
    """Describe in one line the question, the answers, and their servers."""
    asked = f"asked for TXT {one_line(facts.name)} with the value {facts.value}"
    if facts.aliases:
        asked += f", which CNAME records lead to {' -> '.join(one_line(one) for one in facts.aliases[-3:])}"
    return f"{asked}: {'; '.join(_findings(facts))}"


def _findings(facts: DnsFacts) -> list[str]:
    if facts.is_loop:
        return [f"its CNAME records form a loop or are more than {MAX_ALIASES}"]
    if facts.resolver and not facts.observations:
        return [facts.resolver]
    if not facts.observations:
        return [
            f"the zone {facts.zone} has no name server with an address" if facts.zone else "no zone contains the name"
        ]
    answering = [one for one in facts.observations if one.answers]
    wrong = [one for one in answering if one.missing([facts.value])]
    mute = [one for one in facts.observations if not one.answers]
    found = [one.describe() for one in (*wrong, *mute)[:_SHOWN_SERVERS]]
    if wrong and len(wrong) < len(answering):
        right = next(one for one in answering if one not in wrong)
        found.append(f"only {right.server.place} has the value: the others lag, check the transfer to them")
    elif any(one.seen is Seen.RECORDS for one in wrong):
        found.append("other values are there, but not this one")
    elif mute and any(one.seen is Seen.LAME for one in mute):
        found.append("the delegation names a server that does not have the zone: correct the NS records")
    if not wrong and answering:
        found.append(f"{_all(len(answering))} with this value now; the CA may have asked before, or sees other servers")
    if facts.resolver and not wrong:
        found.append(f"{facts.resolver}; if the zone is signed, check its DNSSEC")
    return [*found, *([facts.caa] if facts.caa else [])]


def _all(count: int) -> str:
    return "its authoritative server answers" if count == 1 else f"{count} authoritative servers answer"
