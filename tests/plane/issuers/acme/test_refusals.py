"""Orders that a CA refuses, and challenges that cannot be met."""

from __future__ import annotations

import pytest
from acme_world import AcmeWorld, always, once, refused
from scripted_ca import BASE, ScriptedCa, problem
from trio.testing import MockClock

from certctrl.plane.issuers.issuer import IssuerError


async def test_a_refused_name_is_explained(world: AcmeWorld, ca: ScriptedCa, autojump_clock: MockClock) -> None:
    caa = {"type": "urn:ietf:params:acme:error:caa", "detail": "CAA record for b.test prevents issuance"}
    ca.verdict = lambda kind, name: caa if name == "b.test" else None
    error = await refused(world, "a.test", "b.test")
    assert str(error) == (
        "the CA refused b.test by dns-01: CAA record for b.test prevents issuance (caa) – asked b.test, nothing came"
    )
    assert error.fix == "allow this CA in the CAA records of the domain, or remove them" and not error.is_permanent
    assert world.solver.log[-1][0] == "clean_up" and not world.solver.published
    ca.verdict = lambda kind, name: None
    await world.issuer().issue(world.request("a.test", "b.test", memo=world.memos[-1]))
    assert len(ca.orders) == 2


async def test_the_words_of_a_ca_are_safe_for_one_line(
    world: AcmeWorld, ca: ScriptedCa, autojump_clock: MockClock
) -> None:
    evil = "\x1b[31mred\n\u202e" + "x" * 100_000
    subs = [{"type": evil, "detail": evil, "identifier": {"type": "dns", "value": evil}} for _ in range(1000)]
    ca.hooks.append(once("/newOrder", problem("rejectedIdentifier", evil, 400, subproblems=subs)))
    error = await refused(world)
    assert len(str(error)) < 5000 and error.is_permanent


async def test_subproblems_name_their_names(world: AcmeWorld, ca: ScriptedCa, autojump_clock: MockClock) -> None:
    subs = [
        {
            "type": "urn:ietf:params:acme:error:caa",
            "detail": "forbidden",
            "identifier": {"type": "dns", "value": "a.test"},
        },
        {"type": "urn:ietf:params:acme:error:dns", "detail": "no A", "identifier": {"type": "dns", "value": "b.test"}},
    ]
    ca.hooks.append(once("/newOrder", problem("compound", "several names", 400, subproblems=subs)))
    error = await refused(world)
    assert str(error) == (
        "the CA refused the order: several names (compound); a.test: forbidden (caa); b.test: no A (dns)"
    )
    assert error.fix == "allow this CA in the CAA records of the domain, or remove them"


@pytest.mark.parametrize("kind", ["userActionRequired", "agreementRequired"])
async def test_terms_of_service_are_a_permanent_refusal(
    world: AcmeWorld, ca: ScriptedCa, autojump_clock: MockClock, kind: str
) -> None:
    error = await refused(world, issuer=world.issuer(terms_agreed=False))
    assert error.is_permanent and error.fix == (
        "read the CA's terms of service at https://ca.test/terms; if you agree, set terms_agreed to true"
    )
    assert ca.count["newAccount"] == 0
    ca.hooks.append(once("/newOrder", problem(kind, "new terms", 403, instance="https://ca.test/terms/2")))
    error = await refused(world)
    assert error.is_permanent and error.fix and "at https://ca.test/terms/2;" in error.fix


async def test_a_binding_is_missing_or_wrong(world: AcmeWorld, ca: ScriptedCa, autojump_clock: MockClock) -> None:
    ca.meta["externalAccountRequired"] = True
    error = await refused(world)
    assert error.is_permanent and "eab_kid" in str(error.fix) and ca.count["newAccount"] == 0
    ca.hooks.append(once("/newAccount", problem("unauthorized", "unknown key id", 401)))
    secrets = {"eab_hmac_key": b"zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W"}
    error = await refused(world, issuer=world.issuer(secrets, eab_kid="kid-1"))
    assert error.is_permanent and "eab_kid" in str(error.fix) and "unknown key id" in str(error)


async def test_an_account_that_is_gone_is_registered_by_the_next_attempt(
    world: AcmeWorld, ca: ScriptedCa, autojump_clock: MockClock
) -> None:
    issuer = world.issuer()
    await issuer.issue(world.request("a.test"))
    key = ca.accounts.pop(f"{BASE}/acct/1")["key"]
    error = await refused(world, issuer=issuer)
    assert not error.is_permanent, "a first order is not given up, and a renewal does not wait for a day"
    assert str(error.fix) == "wait; the order is tried again with a new account of the same key"
    await issuer.issue(world.request("a.test"))
    assert [one["key"] for one in ca.accounts.values()] == [key]


@pytest.mark.parametrize("name", ["victim.test", "b.a.test", "192.0.2.8"])
async def test_a_ca_has_nothing_published_for_names_that_were_not_ordered(
    world: AcmeWorld, ca: ScriptedCa, autojump_clock: MockClock, name: str
) -> None:
    challenge = {"type": "dns-01", "url": f"{BASE}/chall/dns-01/1", "token": "abc", "status": "pending"}
    other = {"status": "pending", "identifier": {"type": "dns", "value": name}, "challenges": [challenge]}
    ca.hooks.append(always("/authz/", (200, {}, other)))
    error = await refused(world, "a.test", "192.0.2.7")
    assert f"it has an authorization for {name}, which was not ordered" in str(error)
    assert [entry for entry in world.solver.log if entry[0] == "present"] == []


async def test_nothing_fits_the_challenges_that_are_offered(
    world: AcmeWorld, ca: ScriptedCa, autojump_clock: MockClock
) -> None:
    ca.challenge_kinds = ["future-42", "dns-account-01"]
    error = await refused(world)
    assert "a.test" in str(error) and "future-42, dns-account-01" in str(error)
    assert error.is_permanent
    ca.challenge_kinds = ["http-01"]
    world.solver.refused = frozenset({"a.test"})
    error = await refused(world)
    assert "http-01" in str(error) and error.is_permanent


async def test_a_solver_that_fails_is_cleaned_up(world: AcmeWorld, ca: ScriptedCa, autojump_clock: MockClock) -> None:
    world.solver.troubles["present"] = [IssuerError("the DNS server refuses", fix="allow the key", is_permanent=True)]
    error = await refused(world)
    assert str(error) == "the DNS server refuses" and ca.count["chall"] == 0
    assert world.solver.log[-1][0] == "clean_up"
