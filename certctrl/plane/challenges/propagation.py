"""Ask every authoritative server for records until all of them answer with the new ones.

A CA may ask any of them, so one lagging secondary makes it refuse. A server that never answers is ignored as long as
others answer: the CA's resolver avoids it, too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from enum import StrEnum

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import trio

from certctrl import lean
from certctrl.plane.challenges.dns_lookup import records_in, shown
from certctrl.plane.challenges.dns_network import DnsNetwork, DnsServer, DnsSilenceError
from certctrl.plane.issuers.issuer import IssuerError
from certctrl.text import one_line

FIRST_PAUSE = 0.5
MAX_PAUSE = 5.0
MAX_SERVERS = 32
SILENT_ATTEMPTS = 2
"""Failed attempts after which a server is no longer waited for."""
_MAX_CONCURRENT_NAMES = 8
_SHOWN_VALUES = 5
_MAX_VALUES = 200


class Seen(StrEnum):
    """The kind of a server's answer for a name."""

    RECORDS = "records"
    NO_NAME = "the name does not exist"
    NO_RECORDS = "the name has no TXT record"
    LAME = "is not authoritative for the zone"
    FAILURE = "failure"
    SILENT = "silent"


@lean.frozen(kw_only=True)
class Observation:
    """The TXT records of a name, as one server has them."""

    server: DnsServer
    seen: Seen
    values: tuple[str, ...] = ()
    detail: str = ""
    """Why the server failed or did not answer."""

    @property
    def answers(self) -> bool:
        """Whether a CA accepts this answer."""
        return self.seen in (Seen.RECORDS, Seen.NO_NAME, Seen.NO_RECORDS)

    def missing(self, values: Iterable[str]) -> list[str]:
        """Return the values that the server does not have."""
        return [value for value in values if value not in self.values]

    def describe(self) -> str:
        """Describe the server and its answer for operators."""
        match self.seen:
            case Seen.RECORDS:
                listed = ", ".join(f'"{one_line(value, 60)}"' for value in self.values[:_SHOWN_VALUES])
                more = len(self.values) - _SHOWN_VALUES
                return f"{self.server.place} answers {listed}" + (f" and {more} more" if more > 0 else "")
            case Seen.NO_NAME:
                return f"{self.server.place} answers that {self.seen.value} (NXDOMAIN)"
            case Seen.NO_RECORDS:
                return f"{self.server.place} answers that {self.seen.value}"
            case Seen.LAME:
                return f"{self.server.place} {self.seen.value} ({self.detail})"
            case Seen.FAILURE:
                return f"{self.server.place} answers {self.detail}"
            case Seen.SILENT:
                return f"{self.server.place} {self.detail}"


async def observe(network: DnsNetwork, server: DnsServer, name: dns.name.Name) -> Observation:
    """Ask one authoritative server for the TXT records of a name."""
    query = dns.message.make_query(name, dns.rdatatype.TXT)
    query.flags &= ~dns.flags.RD
    try:
        answer = await network.exchange(query, server)
    except DnsSilenceError as error:
        return Observation(server=server, seen=Seen.SILENT, detail=error.silence.value)
    return read_observation(server, name, answer)


def read_observation(server: DnsServer, name: dns.name.Name, answer: dns.message.Message) -> Observation:
    """Return the records in an answer."""
    rcode, is_authority = answer.rcode(), bool(answer.flags & dns.flags.AA)
    if rcode in (dns.rcode.REFUSED, dns.rcode.NOTAUTH) or (rcode == dns.rcode.NOERROR and not is_authority):
        return Observation(server=server, seen=Seen.LAME, detail=dns.rcode.to_text(rcode))
    if rcode == dns.rcode.NXDOMAIN:
        return Observation(server=server, seen=Seen.NO_NAME)
    if rcode != dns.rcode.NOERROR:
        return Observation(server=server, seen=Seen.FAILURE, detail=dns.rcode.to_text(rcode))
    found = records_in(answer, name, dns.rdatatype.TXT)[:_MAX_VALUES]
    values = tuple(b"".join(rdata.strings).decode("ascii", "backslashreplace") for rdata in found)  # type: ignore[attr-defined]
    return Observation(server=server, seen=Seen.RECORDS if values else Seen.NO_RECORDS, values=values)


async def observe_all(network: DnsNetwork, servers: Sequence[DnsServer], name: dns.name.Name) -> list[Observation]:
    """Ask all servers concurrently; the answers are in the order of the servers."""
    found: dict[int, Observation] = {}

    async def ask(index: int, server: DnsServer) -> None:
        found[index] = await observe(network, server, name)

    async with trio.open_nursery() as nursery:
        for index, server in enumerate(servers[:MAX_SERVERS]):
            nursery.start_soon(ask, index, server)
    return [found[index] for index in sorted(found)]


async def wait_until_published(
    network: DnsNetwork, servers: Sequence[DnsServer], wanted: Mapping[dns.name.Name, Collection[str]], seconds: float
) -> None:
    """Return once all servers answer with all values of all names. Raises IssuerError after ``seconds``."""
    last: dict[dns.name.Name, list[Observation]] = {}
    published: set[dns.name.Name] = set()
    limiter = trio.CapacityLimiter(_MAX_CONCURRENT_NAMES)

    async def wait_for(name: dns.name.Name, values: Collection[str]) -> None:
        silent: Counter[DnsServer] = Counter()
        pause = FIRST_PAUSE
        while True:
            async with limiter:
                last[name] = found = await observe_all(network, servers, name)
            silent.update(one.server for one in found if not one.answers)
            if is_published(found, values, given_up={one for one, n in silent.items() if n >= SILENT_ATTEMPTS}):
                published.add(name)
                return
            await trio.sleep(pause)
            pause = min(MAX_PAUSE, pause * 1.5)

    with trio.move_on_after(seconds):
        async with trio.open_nursery() as nursery:
            for name, values in wanted.items():
                nursery.start_soon(wait_for, name, values)
    for name, values in wanted.items():
        if name not in published:
            raise _not_published(name, values, last.get(name, ()), seconds)


def is_published(found: Sequence[Observation], values: Collection[str], given_up: Collection[DnsServer] = ()) -> bool:
    """Return whether all servers that are not given up have all values, and at least one of them is left."""
    counting = [one for one in found if one.answers or one.server not in given_up]
    return bool(counting) and all(one.answers and not one.missing(values) for one in counting)


def _not_published(
    name: dns.name.Name, values: Collection[str], found: Sequence[Observation], seconds: float
) -> IssuerError:
    lagging = [one for one in found if not one.answers or one.missing(values)]
    words = "; ".join(one.describe() for one in lagging[:4]) or "no authoritative server answered"
    return IssuerError(
        f"TXT {shown(name)} is not on every authoritative server after {seconds:g} s: {words}",
        fix="check the transfer to the secondaries (NOTIFY, allow-transfer), or raise propagation_seconds",
    )
