"""Refusals in words: what was asked, what came, and from which server."""

from __future__ import annotations

import attrs
import h11
import pytest
from fake_dns import PRIMARY, RESOLVER, SECONDARY, FakeDns

from certctrl.plane.challenges.caa import CaaRecord, CaaSet, find_caa, refusal
from certctrl.plane.challenges.dns_lookup import DnsLookup
from certctrl.plane.challenges.dns_network import DnsServer, Silence
from certctrl.plane.challenges.explain import explain_dns
from certctrl.plane.challenges.explain_http import HttpObservation, HttpSeen, describe_http, judge
from certctrl.plane.challenges.solver import Asker, Proof, dns_record_value

NAME = "_acme-challenge.www.example.com"
PROOF = Proof(kind="dns-01", identifier="www.example.com", token="t1", key_authorization="t1.account")
VALUE = dns_record_value(PROOF)
ASKED = f"asked for TXT {NAME} with the value {VALUE}"
NS1, NS2 = "ns1.example.com (192.0.2.53)", "ns2.example.com (192.0.2.54)"
LE = ["letsencrypt.org"]


@pytest.fixture
def dns() -> FakeDns:
    return FakeDns().zone("example.com", PRIMARY, SECONDARY)


async def explained(dns: FakeDns) -> str:
    text = await explain_dns(DnsLookup(dns, [RESOLVER]), PROOF)
    assert text.isprintable() and text.startswith(ASKED)
    return text.removeprefix(ASKED)


async def test_no_record(dns: FakeDns) -> None:
    nothing = "answers that the name does not exist (NXDOMAIN)"
    assert await explained(dns) == f": {NS1} {nothing}; {NS2} {nothing}"


async def test_a_name_with_other_records(dns: FakeDns) -> None:
    dns.records[NAME, "A"] = ["192.0.2.80"]
    nothing = "answers that the name has no TXT record"
    assert await explained(dns) == f": {NS1} {nothing}; {NS2} {nothing}"


async def test_other_values(dns: FakeDns) -> None:
    dns.records[NAME, "TXT"] = [f'"{n}\\010x"' for n in range(7)]
    text = await explained(dns)
    assert text.startswith(f': {NS1} answers "0\\x0ax", "1\\x0ax"'.replace("\\x0a", "\\n")) and " and 2 more; " in text
    assert text.endswith("; other values are there, but not this one")


async def test_one_server_is_stale(dns: FakeDns) -> None:
    dns.records[NAME, "TXT"] = [f'"{VALUE}"']
    dns.own[SECONDARY.address] = {**dns.records, (NAME, "TXT"): ['"old"']}
    assert await explained(dns) == (
        f': {NS2} answers "old"; only {NS1} has the value: the others lag, check the transfer to them'
    )


async def test_everything_is_there_now(dns: FakeDns) -> None:
    dns.records[NAME, "TXT"] = [f'"{VALUE}"']
    assert await explained(dns) == (
        ": 2 authoritative servers answer with this value now; the CA may have asked before, or sees other servers"
    )


async def test_a_cname_to_somewhere_else(dns: FakeDns) -> None:
    dns.zone("example.net", SECONDARY).records[NAME, "CNAME"] = ["acme.example.net."]
    assert await explained(dns) == (
        ", which CNAME records lead to acme.example.net: "
        "ns1.example.net (192.0.2.54) answers that the name does not exist (NXDOMAIN)"
    )


async def test_a_loop(dns: FakeDns) -> None:
    dns.records[NAME, "CNAME"], dns.records["b.example.com", "CNAME"] = ["b.example.com."], [f"{NAME}."]
    assert (await explained(dns)).endswith(": its CNAME records form a loop or are more than 8")


async def test_a_lame_delegation(dns: FakeDns) -> None:
    dns.lame = {PRIMARY.address, SECONDARY.address}
    assert await explained(dns) == (
        f": {NS1} is not authoritative for the zone (REFUSED); {NS2} is not authoritative for the zone (REFUSED)"
        "; the delegation names a server that does not have the zone: correct the NS records"
    )


async def test_servers_that_fail(dns: FakeDns) -> None:
    dns.rcodes[PRIMARY.address, "TXT"], dns.silent[SECONDARY.address] = "SERVFAIL", Silence.TIMEOUT
    assert await explained(dns) == f": {NS1} answers SERVFAIL; {NS2} does not answer in time"


async def test_broken_dnssec(dns: FakeDns) -> None:
    """The authoritative servers answer, a resolver that validates does not."""
    dns.records[NAME, "TXT"] = [f'"{VALUE}"']
    dns.rcodes[RESOLVER.address, "TXT"] = "SERVFAIL"
    text = await explained(dns)
    assert text.endswith("the resolver 192.0.2.1 answers SERVFAIL; if the zone is signed, check its DNSSEC")


async def test_no_resolver_answers(dns: FakeDns) -> None:
    dns.silent[RESOLVER.address] = Silence.TIMEOUT
    assert await explained(dns) == (f": cannot look up CNAME {NAME}: the DNS server 192.0.2.1 does not answer in time")


async def test_no_zone() -> None:
    assert await explained(FakeDns()) == ": no zone contains the name"


async def test_a_caa_record_that_forbids_it(dns: FakeDns) -> None:
    dns.records["example.com", "CAA"] = ['0 issue "ca.example.net; policy=ev"', '0 iodef "mailto:a@example.com"']
    assert (await explained(dns)).endswith(
        "; the CAA issue records of example.com allow only ca.example.net: if the CA is another one, it refuses"
    )


async def test_a_caa_record_and_who_asks(dns: FakeDns) -> None:
    dns.records["example.com", "CAA"] = ['0 issue "letsencrypt.org; validationmethods=http-01"', '0 issuewild ";"']
    lookup = DnsLookup(dns, [RESOLVER])
    asker = Asker(identities=("letsencrypt.org",), wildcard=True)
    assert (await explain_dns(lookup, attrs.evolve(PROOF, asker=asker))).endswith(
        "; the CAA issuewild records (they count for wildcards) of example.com forbid every CA"
    )
    assert (await explain_dns(lookup, attrs.evolve(PROOF, asker=attrs.evolve(asker, wildcard=False)))).endswith(
        "; the CAA records of example.com allow only the validation http-01, not dns-01"
    )
    dns.rcodes[RESOLVER.address, "CAA"] = "SERVFAIL"
    assert (await explained(dns)).endswith("answers SERVFAIL; a CA that cannot look it up refuses, too")


async def test_given_servers_need_no_zone(dns: FakeDns) -> None:
    dns.rcodes[RESOLVER.address, "SOA"] = "REFUSED"
    text = await explain_dns(DnsLookup(dns, [RESOLVER]), PROOF, [SECONDARY])
    assert text == f"{ASKED}: 192.0.2.54 answers that the name does not exist (NXDOMAIN)"


# --- CAA (RFC 8659) -------------------------------------------------------------------------------------------------


def caa(*records: tuple[str, str]) -> CaaSet:
    return CaaSet("example.com", tuple(CaaRecord(0, tag, value) for tag, value in records))


@pytest.mark.parametrize(
    ("found", "wildcard", "words"),
    [
        (caa(), False, ""),
        (caa(("iodef", "mailto:x")), False, ""),
        (caa(("issue", "letsencrypt.org")), False, ""),
        (caa(("issue", "LetsEncrypt.org.; validationmethods=dns-01")), True, ""),
        (caa(("issue", "ca.test"), ("issue", "letsencrypt.org")), False, ""),
        (caa(("issue", ";")), False, "the CAA issue records of example.com forbid every CA"),
        (caa(("issue", "")), True, "the CAA issue records of example.com forbid every CA"),
        (caa(("issue", "ca.test")), False, "the CAA issue records of example.com allow only ca.test: not letsencrypt.org"),
        (
            caa(("issue", "letsencrypt.org"), ("issuewild", "ca.test")), True,
            "the CAA issuewild records (they count for wildcards) of example.com allow only ca.test: not letsencrypt.org",
        ),
        (caa(("issue", "letsencrypt.org"), ("issuewild", ";")), False, ""),
        (
            caa(("issuewild", ";")), True,
            "the CAA issuewild records (they count for wildcards) of example.com forbid every CA",
        ),
        (caa(("issuewild", "ca.test")), False, ""),
    ],
)  # fmt: skip
def test_who_may_issue(found: CaaSet, wildcard: bool, words: str) -> None:
    assert refusal(found, LE, wildcard=wildcard) == words


def test_an_unknown_critical_tag() -> None:
    found = CaaSet("example.com", (CaaRecord(128, "future", "x"), CaaRecord(0, "issue", "letsencrypt.org")))
    assert refusal(found, LE, wildcard=False) == (
        "the CAA records of example.com have a critical tag 'future' that CAs do not know"
    )


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("validationmethods=dns-01,http-01; accounturi=https://ca.test/1", ""),
        ("validationmethods=dns-01", "the CAA records of example.com allow only the validation dns-01, not http-01"),
        ("accounturi=https://ca.test/2", "the CAA records of example.com allow only the account https://ca.test/2"),
    ],
)
def test_parameters_of_rfc_8657(value: str, words: str) -> None:
    found = caa(("issue", f"letsencrypt.org; {value}"))
    assert refusal(found, LE, wildcard=False, method="http-01", account_url="https://ca.test/1") == words


async def test_the_closest_records_count(dns: FakeDns) -> None:
    lookup = DnsLookup(dns, [RESOLVER])
    dns.records["example.com", "CAA"] = ['0 issue "ca.test"']
    assert (await find_caa(lookup, "a.b.example.com")).owner == "example.com"
    dns.records["b.example.com", "CAA"] = ['0 issue "letsencrypt.org"']
    assert (await find_caa(lookup, "a.b.example.com")).owner == "b.example.com"
    assert (await find_caa(lookup, "www.example.com")).owner == "example.com"
    dns.records["www.example.com", "CNAME"] = ["b.example.com."]  # the target's records, as RFC 8659 says
    assert refusal(await find_caa(lookup, "www.example.com"), LE, wildcard=False) == ""
    assert await find_caa(lookup, "example.org") == CaaSet("")


# --- http-01 --------------------------------------------------------------------------------------------------------

WEB = Proof(kind="http-01", identifier="www.example.com", token="tok", key_authorization="tok.key")
WEB_ASKED = "asked for http://www.example.com/.well-known/acme-challenge/tok: "
SIX, FOUR = "2001:db8::80", "192.0.2.80"


@pytest.mark.parametrize(
    ("status", "headers", "body", "words"),
    [
        (200, [], b"tok.key\n", "answers with the right body"),
        (
            200,
            [("Server", "nginx")],
            b"<html>\x1b[31m",
            "answers with another body ('<html>\\\\x1b[31m', server: nginx)",
        ),
        (200, [], b"", "answers with another body (nothing)"),
        (404, [("Server", "Apa\tche")], b"x", "answers with an error (404, server: Apa\\tche)"),
        (301, [("Location", "https://x.test/a")], b"", "redirects (301 to https://x.test/a)"),
        (302, [], b"", "redirects (302 to nowhere)"),
    ],
)
def test_answers_of_web_servers(status: int, headers: list[tuple[str, str]], body: bytes, words: str) -> None:
    seen, detail = judge(h11.Response(status_code=status, headers=headers), body, WEB)
    assert HttpObservation(address=FOUR, seen=seen, detail=detail).describe() == f"{FOUR} {words}"


def seen(address: str, what: HttpSeen, detail: str = "") -> HttpObservation:
    return HttpObservation(address=address, seen=what, detail=detail)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ([], "www.example.com has no address in the DNS (A or AAAA record)"),
        (
            [seen(SIX, HttpSeen.STATUS, "404"), seen(FOUR, HttpSeen.RIGHT)],
            f"{SIX} answers with an error (404); {FOUR} answers with the right body;"
            " CAs prefer IPv6: correct the AAAA record, or remove it",
        ),
        (
            [seen(FOUR, HttpSeen.RIGHT), seen("192.0.2.81", HttpSeen.TIMEOUT)],
            f"{FOUR} answers with the right body; 192.0.2.81 does not answer in time;"
            " a CA may ask any of them: all addresses must answer",
        ),
        (
            [seen(FOUR, HttpSeen.RIGHT)],
            f"{FOUR} answers with the right body;"
            " the answer is there for this control plane; a firewall may stop the CA, or it asked before",
        ),
        ([seen(FOUR, HttpSeen.REFUSED)], f"{FOUR} refuses the connection; port 80 must be open for the CA"),
    ],
)
def test_what_the_addresses_mean(found: list[HttpObservation], words: str) -> None:
    assert describe_http(WEB, 80, found) == WEB_ASKED + words


def test_an_address_and_caa() -> None:
    proof = Proof(kind="http-01", identifier=SIX, token="tok", key_authorization="tok.key")
    text = describe_http(proof, 80, [seen(SIX, HttpSeen.UNREACHABLE)], "no CA may")
    assert text.startswith(f"asked for http://[{SIX}]/.well-known/") and text.endswith("; no CA may")


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("192.0.2.1", "192.0.2.1"), ("192.0.2.1:5353", "192.0.2.1:5353"), ("2001:db8::1", "2001:db8::1"),
        ("[2001:db8::1]:5353", "[2001:db8::1]:5353"),
    ],
)  # fmt: skip
def test_places_of_servers(text: str, place: str) -> None:
    from certctrl.plane.challenges.dns_network import server_of

    assert server_of(text).place == place
    assert DnsServer("192.0.2.1", 53, "ns1.test").place == "ns1.test (192.0.2.1)"


@pytest.mark.parametrize(
    "text", ["", "ns1.example.com", "192.0.2.1:0", "192.0.2.1:99999", "192.0.2.1:x", "[192.0.2.1", "[::1]53"]
)
def test_what_is_no_server(text: str) -> None:
    from certctrl.plane.challenges.dns_network import server_of

    with pytest.raises(ValueError):
        server_of(text)
