"""dns-01 by dynamic update, without a network: what is sent where, and what is waited for."""

from __future__ import annotations

import pytest
import trio
from fake_dns import PRIMARY, RESOLVER, SECONDARY, FakeDns

from certctrl.plane.challenges.dns_lookup import DnsLookup
from certctrl.plane.challenges.dns_network import DnsServer, Silence
from certctrl.plane.challenges.rfc2136 import Rfc2136Settings, Rfc2136Solver
from certctrl.plane.challenges.solver import Proof, dns_record_value
from certctrl.plane.issuers.issuer import IssuerError

NAME = "_acme-challenge.www.example.com"


def proof(identifier: str = "www.example.com", token: str = "t1") -> Proof:
    return Proof(kind="dns-01", identifier=identifier, token=token, key_authorization=f"{token}.account")


def txt(one: Proof) -> str:
    return f'"{dns_record_value(one)}"'


@pytest.fixture
def dns() -> FakeDns:
    return FakeDns().zone("example.com", PRIMARY, SECONDARY)


def solver(dns: FakeDns, **settings: object) -> Rfc2136Solver:
    lookup = DnsLookup(dns, [RESOLVER])
    return Rfc2136Solver(Rfc2136Settings(**settings), [], lookup)  # type: ignore[arg-type]


async def test_one_update_for_all_names_of_a_zone(dns: FakeDns, autojump_clock: trio.testing.MockClock) -> None:
    answers, proofs = solver(dns), [proof(), proof(token="t2"), proof("a.b.example.com")]
    await answers.present([*proofs, proofs[0]])
    assert dns.records[NAME, "TXT"] == [txt(proofs[0]), txt(proofs[1])]
    assert dns.records["_acme-challenge.a.b.example.com", "TXT"] == [txt(proofs[2])]
    assert len(dns.updates) == 1
    assert {(address, name) for address, name, kind in dns.asked if kind == "TXT"} == {
        (server.address, name) for server in (PRIMARY, SECONDARY) for name in (NAME, "_acme-challenge.a.b.example.com")
    }
    await answers.clean_up(proofs)
    assert dns.records[NAME, "TXT"] == [] and len(dns.updates) == 2


async def test_a_record_in_another_zone(dns: FakeDns, autojump_clock: trio.testing.MockClock) -> None:
    other = DnsServer("2001:db8::53")
    dns.zone("acme.example.net", other)
    dns.records[NAME, "CNAME"] = ["one.example.org."]
    dns.records["one.example.org", "CNAME"] = ["x.acme.example.net."]
    await solver(dns).present([proof()])
    assert dns.records["x.acme.example.net", "TXT"] == [txt(proof())]
    assert (NAME, "TXT") not in dns.records
    assert [address for address, _, kind in dns.asked if kind == "TXT"] == [other.address]


@pytest.mark.parametrize("length", [2, 20])
async def test_a_loop_of_aliases_is_an_error(dns: FakeDns, length: int) -> None:
    names = [NAME, *(f"a{n}.example.com" for n in range(length - 1))]
    for name, target in zip(names, [*names[1:], names[0]], strict=True):
        dns.records[name, "CNAME"] = [f"{target}."]
    with pytest.raises(IssuerError, match=f"the CNAME records of {NAME} form a loop or are too many"):
        await solver(dns).present([proof()])
    assert len(dns.asked) <= 12 and not dns.updates


async def test_a_name_in_no_zone() -> None:
    with pytest.raises(IssuerError, match=f"{NAME} is in no zone of the DNS") as caught:
        await solver(FakeDns()).present([proof()])
    assert caught.value.fix == "check the delegation of the domain, or set zone"


async def test_a_name_outside_of_the_given_zone(dns: FakeDns) -> None:
    with pytest.raises(IssuerError, match=f"{NAME} is not in the zone example.net"):
        await solver(dns, zone="example.net").present([proof()])


async def test_a_given_server_and_zone_need_no_soa(dns: FakeDns, autojump_clock: trio.testing.MockClock) -> None:
    given = {"zone": "example.com", "server": "192.0.2.99:5353", "authoritative": (PRIMARY,)}
    await solver(dns, **given).present([proof()])
    assert not [kind for _, _, kind in dns.asked if kind in ("SOA", "NS", "A", "AAAA")]


async def test_a_given_zone_names_its_primary(dns: FakeDns, autojump_clock: trio.testing.MockClock) -> None:
    await solver(dns, zone="example.com").present([proof()])
    assert (RESOLVER.address, "ns1.example.com", "A") in dns.asked


async def test_a_primary_without_an_address(dns: FakeDns) -> None:
    del dns.records["ns1.example.com", "A"]
    with pytest.raises(IssuerError, match=r"the primary server ns1\.example\.com of example\.com has no address"):
        await solver(dns).present([proof()])


async def test_the_second_address_of_the_primary(dns: FakeDns, autojump_clock: trio.testing.MockClock) -> None:
    dns.records["ns1.example.com", "AAAA"] = ["2001:db8::1"]
    dns.silent["2001:db8::1"] = Silence.UNREACHABLE
    await solver(dns).present([proof()])
    assert dns.records[NAME, "TXT"] == [txt(proof())]


async def test_a_secondary_that_lags(dns: FakeDns, autojump_clock: trio.testing.MockClock) -> None:
    dns.lag[SECONDARY.address] = 40
    await solver(dns).present([proof()])
    assert 40 <= trio.current_time() <= 46


async def test_a_secondary_that_lags_too_long(dns: FakeDns, autojump_clock: trio.testing.MockClock) -> None:
    dns.lag[SECONDARY.address] = 4000
    with pytest.raises(IssuerError) as caught:
        await solver(dns).present([proof()])
    assert str(caught.value) == (
        f"TXT {NAME} is not on every authoritative server after 120 s: "
        f"ns2.example.com (192.0.2.54) answers that the name does not exist (NXDOMAIN)"
    )


@pytest.mark.parametrize("silence", [Silence.TIMEOUT, Silence.UNREACHABLE, Silence.REFUSED])
async def test_a_server_that_never_answers(
    dns: FakeDns, silence: Silence, autojump_clock: trio.testing.MockClock
) -> None:
    dns.silent[SECONDARY.address] = silence
    await solver(dns).present([proof()])
    dns.silent[PRIMARY.address] = silence
    with pytest.raises(IssuerError, match=r"cannot update example\.com: the DNS server"):
        await solver(dns).present([proof()])


async def test_no_server_answers(dns: FakeDns, autojump_clock: trio.testing.MockClock) -> None:
    """An update by a hidden primary, and name servers that are down."""
    dns.silent |= {PRIMARY.address: Silence.TIMEOUT, SECONDARY.address: Silence.TIMEOUT}
    with pytest.raises(
        IssuerError, match=r"is not on every authoritative server after 120 s: ns1.+ does not answer in"
    ):
        await solver(dns, server="192.0.2.99").present([proof()])


async def test_cleaning_up_goes_on_after_failures_and_returns_them(dns: FakeDns) -> None:
    dns.zone("example.org", SECONDARY).records["_acme-challenge.example.org", "TXT"] = [txt(proof("example.org"))]
    dns.rcodes[PRIMARY.address, "UPDATE"] = "REFUSED"
    failures = await solver(dns).clean_up([proof(), proof(token="t2"), proof("example.net"), proof("example.org")])
    assert dns.records["_acme-challenge.example.org", "TXT"] == []
    assert {*failures} == {proof(), proof(token="t2"), proof("example.net")}
    assert "is in no zone of the DNS" in str(failures[proof("example.net")])
    assert str(failures[proof()]).startswith("the DNS server ns1.example.com (192.0.2.53) refuses an update of")


async def test_a_solver_for_many_orders_remembers_nothing(dns: FakeDns, autojump_clock: trio.testing.MockClock) -> None:
    answers = solver(dns)
    for number in range(3):
        one = proof(f"host{number}.example.com")
        await answers.present([one])
        await answers.clean_up([one])
    assert not answers._found


@pytest.mark.parametrize(
    ("code", "fix"),
    [
        ("REFUSED", "give the issuer a TSIG key that the server accepts"),
        ("NOTAUTH", "set server to the primary of the zone, and check zone"),
        ("NOTZONE", "set zone to the zone that the server has"),
        ("NOTIMP", "set server to a server that accepts dynamic updates"),
        ("SERVFAIL", "read the server's log: often it cannot write the zone's journal"),
        ("YXDOMAIN", "read the server's log"),
    ],
)
async def test_a_refused_update(dns: FakeDns, code: str, fix: str) -> None:
    dns.rcodes[PRIMARY.address, "UPDATE"] = code
    with pytest.raises(IssuerError) as caught:
        await solver(dns).present([proof()])
    assert str(caught.value) == (
        "the DNS server ns1.example.com (192.0.2.53) refuses an update of example.com without a TSIG key: " + code
    )
    assert caught.value.fix == fix and not caught.value.is_permanent


async def test_only_dns_01(dns: FakeDns) -> None:
    answers = solver(dns)
    assert answers.solves("dns-01", "example.com", True) and not answers.solves("http-01", "example.com", False)
