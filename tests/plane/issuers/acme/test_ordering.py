"""Orders at a CA in this process: identifiers, proofs, the account, chains, profiles."""

from __future__ import annotations

import json
import re

import pytest
import trio
from acme_world import AcmeWorld, names_of, refused
from cryptography import x509
from scripted_ca import BASE, Reply, ScriptedCa
from trio.testing import MockClock


async def test_names_wildcards_and_addresses_in_one_certificate(
    world: AcmeWorld, ca: ScriptedCa, autojump_clock: MockClock
) -> None:
    names = ("www.example.com", "*.example.com", "192.0.2.7", "2001:db8::1")
    issued = await world.issuer().issue(world.request(*names))
    assert names_of(issued) == set(names)
    assert issued.chain_pem.count("BEGIN") == 1, "without the root"
    order = next(iter(ca.orders.values()))
    assert order["payload"]["identifiers"] == [
        {"type": "dns", "value": "www.example.com"},
        {"type": "dns", "value": "*.example.com"},
        {"type": "ip", "value": "192.0.2.7"},
        {"type": "ip", "value": "2001:db8::1"},
    ]
    presented = ("dns-01 www.example.com", "dns-01 example.com", "http-01 192.0.2.7", "http-01 2001:db8::1")
    assert world.solver.log == [("present", presented), ("clean_up", presented)]
    assert not world.solver.published


async def test_the_proof_is_the_token_with_the_thumbprint_of_the_account_key(
    world: AcmeWorld, ca: ScriptedCa, autojump_clock: MockClock
) -> None:
    await world.issuer().issue(world.request("a.test"))
    memo = next(json.loads(memo) for memo in world.memos if json.loads(memo)["proofs"])
    kind, identifier, token, authorization = memo["proofs"][0]
    assert (kind, identifier) == ("dns-01", "a.test")
    assert re.fullmatch(re.escape(token) + r"\.[A-Za-z0-9_-]{43}", authorization)


async def test_what_is_proven_already_is_not_proven_again(
    world: AcmeWorld, ca: ScriptedCa, autojump_clock: MockClock
) -> None:
    def prove(method: str, path: str, payload: object) -> None:
        for found in ca.authorizations.values():
            found["status"] = "valid"

    ca.hooks.append(prove)
    await world.issuer().issue(world.request("a.test", "b.test"))
    assert world.solver.log == [] and ca.count["chall"] == 0


async def test_one_registration_for_all_orders_and_all_processes(
    world: AcmeWorld, ca: ScriptedCa, autojump_clock: MockClock
) -> None:
    issuer = world.issuer(contact="ops@example.com")
    async with trio.open_nursery() as nursery:
        for number in range(5):
            nursery.start_soon(issuer.issue, world.request(f"{number}.test"))
    await world.issuer(contact="ops@example.com").issue(world.request("z.test"))
    assert ca.count["newAccount"] == 1
    account = ca.accounts[f"{BASE}/acct/1"]
    assert account["payload"] == {"contact": ["mailto:ops@example.com"], "termsOfServiceAgreed": True}
    assert ca.count["newNonce"] <= 7, "nonces of answers are used again"


async def test_a_changed_contact_is_sent_to_the_ca(world: AcmeWorld, ca: ScriptedCa, autojump_clock: MockClock) -> None:
    await world.issuer(contact="old@example.com").issue(world.request("a.test"))
    await world.issuer(contact=["new@example.com"]).issue(world.request("b.test"))
    assert ca.accounts[f"{BASE}/acct/1"]["payload"]["contact"] == ["mailto:new@example.com"]


async def test_a_wildcard_that_the_ca_leaves_in_the_name(
    world: AcmeWorld, ca: ScriptedCa, autojump_clock: MockClock
) -> None:
    def shown(method: str, path: str, payload: object) -> Reply | None:
        if not path.startswith("/authz/"):
            return None
        status, headers, found = ca._authorization(path.removeprefix("/authz/"), payload, {})
        return status, headers, {**found, "identifier": {"type": "dns", "value": "*.a.test"}, "wildcard": None}

    ca.hooks.append(shown)
    assert names_of(await world.issuer().issue(world.request("*.a.test"))) == {"*.a.test"}
    assert world.solver.log[0] == ("present", ("dns-01 a.test",))


async def test_the_pause_after_the_certificate_request(
    world: AcmeWorld, ca: ScriptedCa, autojump_clock: MockClock
) -> None:
    def slow(method: str, path: str, payload: object) -> Reply | None:
        if not path.startswith("/finalize/"):
            return None
        ca.polls_until_issued = 2
        status, headers, found = ca._finalize(path.removeprefix("/finalize/"), payload, {})
        return status, headers | {"Retry-After": "40"}, found

    ca.hooks.append(slow)
    began = trio.current_time()
    await world.issuer().issue(world.request("a.test"))
    assert trio.current_time() - began >= 40


@pytest.mark.parametrize("path", ["/authz/", "/order/"])
async def test_a_ca_that_asks_for_a_day_is_asked_each_minute(
    world: AcmeWorld, ca: ScriptedCa, autojump_clock: MockClock, path: str
) -> None:
    """As ZeroSSL does while it validates for seconds; the proofs stay published."""
    usual = ca._post
    ca._post = lambda asked, payload, header: (  # type: ignore[method-assign]
        reply[0], reply[1] | {"Retry-After": "86400"}, reply[2]
    ) if (reply := usual(asked, payload, header)) and asked.startswith(path) else reply  # fmt: skip
    ca.polls_until_decided = ca.polls_until_issued = 3
    began = trio.current_time()
    await world.issuer().issue(world.request("a.test"))
    assert 60 <= trio.current_time() - began < 200
    assert len(ca.orders) == 1
    ca.polls_until_decided, ca.polls_until_issued = (10**9 if path == "/authz/" else 1), 10**9
    assert (await refused(world)).retry_after == 3600


async def test_the_chain_of_the_preferred_root(world: AcmeWorld, ca: ScriptedCa, autojump_clock: MockClock) -> None:
    for wanted, got in (("", "root A"), ("root B", "root B"), ("root C", "root A")):
        issued = await world.issuer(preferred_chain=wanted).issue(world.request("a.test"))
        above = x509.load_pem_x509_certificate(issued.chain_pem.encode())
        assert above.issuer.rfc4514_string() == f"CN={got}"


async def test_profiles(world: AcmeWorld, ca: ScriptedCa, autojump_clock: MockClock) -> None:
    error = await refused(world, profile="short")
    assert str(error) == "the CA has no profile short; it announces: none" and error.is_permanent
    ca.meta["profiles"] = {"classic": "https://ca.test/classic", "shortlived": "six days"}
    issuer = world.issuer(profile="shortlived")
    error = await refused(world, issuer=issuer, profile="short")
    assert str(error) == "the CA has no profile short; it announces: classic, shortlived"
    assert "300 of 300" in (await issuer.check())["orders left"], "nothing was ordered yet"
    await issuer.issue(world.request("a.test"))
    await issuer.issue(world.request("a.test", profile="classic"))
    assert [one["payload"]["profile"] for one in ca.orders.values()] == ["shortlived", "classic"]
