"""A DNS in memory: resolvers that know all records, and authoritative servers that may lag, be lame or silent."""

from __future__ import annotations

from typing import Any

import attrs
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.rrset
import dns.update
import trio

from certctrl.plane.challenges.dns_network import DnsServer, DnsSilenceError, Silence

RESOLVER = DnsServer("192.0.2.1")
PRIMARY, SECONDARY = DnsServer("192.0.2.53"), DnsServer("192.0.2.54")


@attrs.define
class FakeDns:
    """Implements `DnsNetwork`; all servers have the same records unless ``own`` says otherwise."""

    records: dict[tuple[str, str], list[str]] = attrs.field(factory=dict)
    """(name, type) -> texts."""
    own: dict[str, dict[tuple[str, str], list[str]]] = attrs.field(factory=dict)
    """Address -> records that this server has instead."""
    silent: dict[str, Silence] = attrs.field(factory=dict)
    rcodes: dict[tuple[str, str], str] = attrs.field(factory=dict)
    """(address, opcode or type) -> the answer's code."""
    lame: set[str] = attrs.field(factory=set)
    lag: dict[str, float] = attrs.field(factory=dict)
    """Address -> seconds after which it gets updates."""
    asked: list[tuple[str, str, str]] = attrs.field(factory=list)
    updates: list[dns.update.UpdateMessage] = attrs.field(factory=list)

    def zone(self, name: str, *servers: DnsServer) -> FakeDns:
        """Add a zone with name servers."""
        self.records[name, "SOA"] = [f"ns1.{name}. hostmaster.{name}. 1 3600 600 86400 60"]
        self.records[name, "NS"] = [f"ns{number}.{name}." for number in range(1, len(servers) + 1)]
        for number, server in enumerate(servers, 1):
            self.records[f"ns{number}.{name}", "AAAA" if ":" in server.address else "A"] = [server.address]
        return self

    def of(self, server: DnsServer) -> dict[tuple[str, str], list[str]]:
        return self.own.get(server.address, self.records)

    async def exchange(
        self, query: dns.message.Message, server: DnsServer, *, tcp: bool = False
    ) -> dns.message.Message:
        await trio.lowlevel.checkpoint()
        if server.address in self.silent:
            raise DnsSilenceError(server, self.silence_of(server))
        if query.opcode() == dns.opcode.UPDATE:
            return self.updated(query, server)
        (question,) = query.question
        name, kind = question.name.to_text(True).lower(), dns.rdatatype.to_text(question.rdtype)
        self.asked.append((server.address, name, kind))
        answer = dns.message.make_response(query)
        code = self.rcodes.get((server.address, kind))
        if code:
            answer.set_rcode(dns.rcode.from_text(code))
            return answer
        if server.address in self.lame:
            answer.set_rcode(dns.rcode.REFUSED)
            return answer
        answer.flags |= dns.flags.AA
        known = self.of(server)
        while kind != "CNAME" and (alias := known.get((name, "CNAME"))):
            if len(answer.answer) > 8:
                answer.set_rcode(dns.rcode.SERVFAIL)  # as resolvers end a loop
                return answer
            answer.answer.append(self.rrset(name, "CNAME", alias))
            name = alias[0].rstrip(".")
        texts = known.get((name, kind), [])
        if texts:
            answer.answer.append(self.rrset(name, kind, texts))
        elif not any(owner == name or owner.endswith(f".{name}") for owner, _ in known):
            answer.set_rcode(dns.rcode.NXDOMAIN)
        return answer

    def silence_of(self, server: DnsServer) -> Silence:
        return self.silent[server.address]

    @staticmethod
    def rrset(name: str, kind: str, texts: list[str]) -> dns.rrset.RRset:
        return dns.rrset.from_text_list(f"{name}.", 60, "IN", kind, texts)

    def updated(self, query: Any, server: DnsServer) -> dns.message.Message:
        self.updates.append(query)
        answer = dns.message.make_response(query)
        code = self.rcodes.get((server.address, "UPDATE"))
        if code:
            answer.set_rcode(dns.rcode.from_text(code))
            return answer
        for rrset in query.update:
            key = rrset.name.to_text(True), "TXT"
            for rdata in rrset:
                values = self.records.setdefault(key, [])
                if rrset.deleting == dns.rdataclass.NONE:
                    if rdata.to_text() in values:
                        values.remove(rdata.to_text())
                elif rdata.to_text() not in values:
                    values.append(rdata.to_text())
        for address, seconds in self.lag.items():
            self.own.setdefault(address, {key: list(texts) for key, texts in self.records.items() if key[1] != "TXT"})
            trio.lowlevel.spawn_system_task(self._catch_up, address, seconds)
        return answer

    async def _catch_up(self, address: str, seconds: float) -> None:
        await trio.sleep(seconds)
        self.own[address] = {key: list(texts) for key, texts in self.records.items()}
