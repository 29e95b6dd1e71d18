"""Which entry answers for a name, and what is said if none does."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from certctrl.plane.challenges.chosen import ChosenSolver, Rule, choose_kind, matches
from certctrl.plane.challenges.solver import Failures, Proof
from certctrl.plane.issuers.issuer import IssuerError

ALL = ("http-01", "dns-01", "tls-alpn-01", "dns-account-01")


class Fake:
    def __init__(self, *kinds: str, fails: bool = False) -> None:
        self.kinds: tuple[str, ...] = kinds
        self.seen: list[tuple[str, list[str]]] = []
        self.fails = fails

    def solves(self, kind: str, identifier: str, wildcard: bool) -> bool:
        return kind in self.kinds

    async def present(self, proofs: Sequence[Proof]) -> None:
        self.seen.append(("present", [proof.identifier for proof in proofs]))

    async def clean_up(self, proofs: Sequence[Proof]) -> Failures:
        self.seen.append(("clean_up", [proof.identifier for proof in proofs]))
        if self.fails:
            raise IssuerError("no")
        return {}

    async def explain(self, proof: Proof) -> str:
        return f"{self.kinds[0]} of {proof.identifier}"


def proof(kind: str, identifier: str) -> Proof:
    return Proof(kind=kind, identifier=identifier, token="t", key_authorization="t.k")


@pytest.mark.parametrize(
    ("pattern", "covered", "others"),
    [
        ("example.com", ["example.com", "a.b.example.com"], ["badexample.com", "com", "192.0.2.1"]),
        ("*.example.com", ["a.example.com", "a.b.example.com"], ["example.com"]),
        ("*", ["example.com", "192.0.2.1", "2001:db8::1"], []),
        ("192.0.2.0/24", ["192.0.2.200"], ["192.0.3.1", "2001:db8::1", "example.com"]),
        ("2001:db8::/32", ["2001:db8::1"], ["192.0.2.1"]),
        ("192.0.2.1", ["192.0.2.1"], ["192.0.2.10"]),
    ],
)
def test_patterns(pattern: str, covered: list[str], others: list[str]) -> None:
    assert [name for name in [*covered, *others] if matches(pattern, name)] == covered


@pytest.fixture
def rules() -> dict[str, Fake]:
    return {"http": Fake("http-01"), "dns": Fake("dns-01"), "alpn": Fake("tls-alpn-01", fails=True)}


@pytest.fixture
def chosen(rules: dict[str, Fake]) -> ChosenSolver:
    """Web servers by http-01, a zone by dns-01, addresses by tls-alpn-01."""
    return ChosenSolver(
        [
            Rule("agent-tls-alpn", ("192.0.2.0/24",), rules["alpn"]),
            Rule("agent-http", ("www.example.com", "192.0.2.0/24"), rules["http"]),
            Rule("rfc2136", ("example.com", "example.net"), rules["dns"]),
        ]
    )


@pytest.mark.parametrize(
    ("identifier", "wildcard", "kind"),
    [
        ("www.example.com", False, "http-01"), ("www.example.com", True, "dns-01"), ("example.com", False, "dns-01"),
        ("example.com", True, "dns-01"), ("192.0.2.7", False, "tls-alpn-01"),
    ],
)  # fmt: skip
def test_the_first_entry_that_can_answers(chosen: ChosenSolver, identifier: str, wildcard: bool, kind: str) -> None:
    assert choose_kind(chosen, identifier, wildcard, ALL) == kind
    assert [one for one in chosen.kinds if chosen.solves(one, identifier, wildcard)] == [kind]


def test_a_ca_that_does_not_offer_the_first(chosen: ChosenSolver) -> None:
    assert choose_kind(chosen, "www.example.com", False, ["dns-01"]) == "dns-01"
    assert choose_kind(chosen, "192.0.2.7", False, ["http-01"]) == "http-01"


@pytest.mark.parametrize(
    ("identifier", "wildcard", "offered", "what", "fix"),
    [
        ("example.org", False, ALL, "no entry of challenges is for example.org", 'add example.org to "domains" of an entry'),
        ("203.0.113.9", False, ALL, "no entry of challenges is for 203.0.113.9", 'add 203.0.113.9 to "domains" of an entry'),
        (
            "www.example.com", False, ["tls-alpn-01", "x"],
            "nothing can prove www.example.com to the CA, which offers tls-alpn-01, x; configured for it: agent-http, rfc2136",
            "add an entry to challenges that answers one of these",
        ),
        (
            "192.0.2.7", False, ["dns-01"],
            "192.0.2.7 is an IP address, which dns-01 cannot prove; configured for it: agent-tls-alpn, agent-http",
            "add an entry of type plane-http, agent-http or agent-tls-alpn to challenges",
        ),
    ],
)  # fmt: skip
def test_a_name_that_nothing_proves(
    chosen: ChosenSolver, identifier: str, wildcard: bool, offered: Sequence[str], what: str, fix: str
) -> None:
    with pytest.raises(IssuerError) as caught:
        choose_kind(chosen, identifier, wildcard, offered)
    assert (str(caught.value), caught.value.fix, caught.value.is_permanent) == (what, fix, True)


def test_a_wildcard_without_dns() -> None:
    only_http = ChosenSolver([Rule("plane-http", (), Fake("http-01"))])
    with pytest.raises(IssuerError) as caught:
        choose_kind(only_http, "example.com", True, ALL)
    assert str(caught.value) == "*.example.com is a wildcard, which only dns-01 proves; configured for it: plane-http"
    assert caught.value.fix == 'add an entry of type rfc2136 or command with "domains": ["example.com"] to challenges'


def test_any_other_solver() -> None:
    assert choose_kind(Fake("dns-01"), "example.com", True, ALL) == "dns-01"
    with pytest.raises(IssuerError, match=r"nothing can prove a\.test to the CA, which offers x"):
        choose_kind(Fake("dns-01"), "a.test", False, ["x"])


async def test_each_solver_gets_its_own_proofs(chosen: ChosenSolver, rules: dict[str, Fake]) -> None:
    proofs = [proof("dns-01", "example.com"), proof("http-01", "www.example.com"), proof("dns-01", "www.example.com")]
    await chosen.present(proofs)
    assert rules["dns"].seen == [("present", ["example.com", "www.example.com"])]
    assert rules["http"].seen == [("present", ["www.example.com"])]
    assert await chosen.explain(proofs[2]) == "dns-01 of www.example.com"
    assert await chosen.explain(proof("dns-01", "example.org")) == ""


async def test_cleaning_up_goes_on_after_a_failure(chosen: ChosenSolver, rules: dict[str, Fake]) -> None:
    failing, other, unknown = (
        proof("tls-alpn-01", "192.0.2.7"),
        proof("dns-01", "example.com"),
        proof("dns-01", "a.org"),
    )
    failures = await chosen.clean_up([failing, other, unknown])
    assert {one: str(error) for one, error in failures.items()} == {
        failing: "no", unknown: "no entry of challenges is for it any longer",
    }  # fmt: skip
    assert rules["dns"].seen == [("clean_up", ["example.com"])]
