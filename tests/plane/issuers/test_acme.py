"""The ACME issuer, against a CA in this process whose answers the tests replace."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import attrs
import pytest
import trio
from acme_world import AcmeWorld, CrashError, make_world
from cryptography import x509
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted_ca import BASE, DIRECTORY_URL, Reply, ScriptedCa, new_csr, problem, self_signed
from trio.testing import MockClock

from certctrl.plane.issuers import acme
from certctrl.plane.issuers.issuer import IssuedChain, IssuerError

WALL = 1_790_000_000.0


@pytest.fixture
async def world() -> AsyncIterator[AcmeWorld]:
    made = make_world(lambda: WALL + trio.current_time())
    yield made
    made.plane.close()


@pytest.fixture
def ca(monkeypatch: pytest.MonkeyPatch) -> ScriptedCa:
    made = ScriptedCa(WALL)

    @contextlib.asynccontextmanager
    async def connected(*args: object) -> AsyncIterator[ScriptedCa]:
        yield made

    monkeypatch.setattr(acme, "connected", connected)
    return made


async def refused(world: AcmeWorld, *names: str, issuer: Any = None, **more: Any) -> IssuerError:
    """Return the error of an order."""
    with pytest.raises(IssuerError) as caught:
        await (issuer or world.issuer()).issue(world.request(*(names or ("a.test",)), **more))
    assert str(caught.value).isprintable() and caught.value.fix
    return caught.value


def names_of(issued: IssuedChain) -> set[str]:
    found = x509.load_pem_x509_certificate(issued.certificate_pem.encode())
    sans = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return {*sans.get_values_for_type(x509.DNSName), *map(str, sans.get_values_for_type(x509.IPAddress))}


def once(path: str, reply: Reply) -> Callable[[str, str, Any], Reply | None]:
    """Return a hook that replaces the first answer to a path."""
    left = [reply]
    return lambda method, asked, payload: left.pop() if asked.startswith(path) and left else None


def always(path: str, reply: Reply) -> Callable[[str, str, Any], Reply | None]:
    return lambda method, asked, payload: reply if asked.startswith(path) else None


# --- the usual way ---------------------------------------------------------------------------------------------------


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
    def prove(method: str, path: str, payload: Any) -> None:
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
    def shown(method: str, path: str, payload: Any) -> Reply | None:
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
    def slow(method: str, path: str, payload: Any) -> Reply | None:
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


# --- nonces, pauses, limits ------------------------------------------------------------------------------------------


async def test_rejected_nonces_are_replaced(world: AcmeWorld, ca: ScriptedCa, autojump_clock: MockClock) -> None:
    count = iter(range(10_000))
    ca.hooks.append(lambda method, path, payload: problem("badNonce") if method == "POST" and next(count) % 3 else None)
    await world.issuer().issue(world.request("a.test"))


async def test_a_ca_that_rejects_all_nonces_is_given_up(
    world: AcmeWorld, ca: ScriptedCa, autojump_clock: MockClock
) -> None:
    ca.hooks.append(always("/newOrder", problem("badNonce")))
    error = await refused(world)
    assert "rejected 12 nonces in a row" in str(error) and not error.is_permanent
    assert ca.count["newOrder"] == 12


async def test_a_short_pause_is_waited_for(world: AcmeWorld, ca: ScriptedCa, autojump_clock: MockClock) -> None:
    busy = problem("serverInternal", "busy", 503)
    ca.hooks.append(once("/newOrder", (busy[0], {"Retry-After": "7"}, busy[2])))
    began = trio.current_time()
    await world.issuer().issue(world.request("a.test"))
    assert trio.current_time() - began >= 7


async def test_a_rate_limit_stops_the_issuer_until_its_end(
    world: AcmeWorld, ca: ScriptedCa, autojump_clock: MockClock
) -> None:
    limit = problem("rateLimited", "too many orders", 429)
    ca.hooks.append(once("/newOrder", (limit[0], {"Retry-After": "1800"}, limit[2])))
    error = await refused(world)
    assert str(error) == "the CA refused the order: too many orders (rateLimited)"
    assert (error.retry_after, error.is_permanent) == (1800, False)
    asked = len(ca.requests)
    error = await refused(world)
    assert "has asked for a pause until" in str(error) and error.retry_after == pytest.approx(1800, abs=5)
    assert len(ca.requests) == asked, "another process does not ask, either"
    await trio.sleep(1801)
    await world.issuer().issue(world.request("a.test"))


async def test_a_long_rate_limit_may_be_about_one_name_and_stops_the_others_for_an_hour(
    world: AcmeWorld, ca: ScriptedCa, autojump_clock: MockClock
) -> None:
    limit = problem("rateLimited", "too many certificates for this set", 429)
    ca.hooks.append(once("/newOrder", (limit[0], {"Retry-After": "80000"}, limit[2])))
    assert (await refused(world)).retry_after == 80_000
    await trio.sleep(3601)
    await world.issuer().issue(world.request("b.test"))


async def test_a_rate_limit_without_retry_after(world: AcmeWorld, ca: ScriptedCa, autojump_clock: MockClock) -> None:
    ca.hooks.append(once("/newOrder", problem("rateLimited", "slow down", 429)))
    error = await refused(world)
    assert (error.retry_after, error.is_permanent) == (900, False)


async def test_the_budget_is_kept_before_the_ca_has_to_say_so(
    world: AcmeWorld, ca: ScriptedCa, autojump_clock: MockClock
) -> None:
    issuer = world.issuer(budget="2/h")
    for name in ("a.test", "b.test"):
        await issuer.issue(world.request(name))
    error = await refused(world, issuer=world.issuer(budget="2/h"))
    assert str(error) == "the budget of le is used up: 2 orders per 1h" and not error.is_permanent
    assert error.retry_after is not None and 3500 < error.retry_after <= 3600
    assert ca.count["newOrder"] == 2
    await trio.sleep(error.retry_after)
    await issuer.issue(world.request("c.test"))


async def test_endless_processing_ends_with_a_later_attempt_of_the_same_order(
    world: AcmeWorld, ca: ScriptedCa, autojump_clock: MockClock
) -> None:
    ca.polls_until_issued = 10**9
    request = world.request("a.test")
    error = await refused(world, "a.test", csr_der=request.csr_der)
    assert str(error) == "the CA has not finished the order within 600 s" and error.retry_after
    assert not world.solver.published
    ca.polls_until_issued = 1
    await world.issuer().issue(world.request("a.test", csr_der=request.csr_der, memo=world.memos[-1]))
    assert len(ca.orders) == 1 and ca.count["finalize"] == 1


async def test_endless_validation_ends_too(world: AcmeWorld, ca: ScriptedCa, autojump_clock: MockClock) -> None:
    ca.polls_until_decided = 10**9
    error = await refused(world)
    assert str(error) == "the CA has not finished the validation of a.test within 600 s" and not error.is_permanent
    assert not world.solver.published
    assert ca.count["authz"] < 100, "with growing pauses"


@pytest.mark.parametrize(
    ("header", "pause"), [("30", 30), ("Mon, 21 Sep 2026 14:14:20 GMT", 60), ("soon", 0.05), ("-5", 0.05)]
)
async def test_the_pause_that_a_ca_asks_for(
    world: AcmeWorld, ca: ScriptedCa, autojump_clock: MockClock, header: str, pause: float
) -> None:
    """WALL is 14:13:20 UTC of that day."""
    times: list[float] = []

    def note(method: str, path: str, payload: Any) -> Reply | None:
        if not path.startswith("/authz/") or not world.solver.published:
            return None
        times.append(trio.current_time())
        status, headers, found = ca._authorization(path.removeprefix("/authz/"), payload, {})
        return status, headers | {"Retry-After": header}, found

    ca.polls_until_decided = 2
    ca.hooks.append(note)
    await world.issuer().issue(world.request("a.test"))
    assert times[1] - times[0] == pytest.approx(pause, abs=1.0 if pause > 1 else 0.04)


# --- a crash anywhere ------------------------------------------------------------------------------------------------


async def test_a_crash_at_any_request_or_memo_loses_nothing(
    world: AcmeWorld, ca: ScriptedCa, autojump_clock: MockClock
) -> None:
    """The next attempt, in another process, uses the same account and order, and takes back what was published."""
    await world.issuer().check()
    left_behind = False
    for crash_at in range(1, 40):
        ca.orders.clear()
        ca.authorizations.clear()
        ca.certificates.clear()
        ca.requests.clear()
        world.memos.clear()
        csr = new_csr(("a.test", "*.a.test"))
        steps = iter(range(1, 10_000))

        def crash(method: str, path: str, payload: Any, steps: Iterator[int] = steps, at: int = crash_at) -> None:
            if next(steps) >= at:
                world.solver.dead = True
                raise CrashError

        ca.hooks[:] = [crash]
        request = world.request("a.test", "*.a.test", csr_der=csr)
        try:
            await world.issuer().issue(request)
        except* CrashError:
            pass
        else:
            break
        made = len(ca.orders)
        ca.hooks.clear()
        world.solver.dead = False
        left_behind |= bool(world.solver.published)
        memo = world.memos[-1] if world.memos else ""
        issued = await world.issuer().issue(world.request("a.test", "*.a.test", csr_der=csr, memo=memo))
        assert names_of(issued) == {"a.test", "*.a.test"}
        assert len(ca.orders) == max(made, 1), "the same order"
        assert not world.solver.published
    else:
        raise AssertionError("the loop did not reach the end of an order")
    assert crash_at > 10 and left_behind
    assert len(ca.accounts) == 1


@pytest.mark.parametrize("stored", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("crash_at", [1, 2, 3])
async def test_a_crash_around_a_memo(
    world: AcmeWorld, ca: ScriptedCa, autojump_clock: MockClock, crash_at: int, stored: bool
) -> None:
    """The memos are the order, its proofs, and that they are taken back; only an order without memo is made again."""
    request, kept = world.request("a.test"), [""]

    async def remember(memo: str) -> None:
        await trio.lowlevel.checkpoint()
        if len(kept) < crash_at or stored:
            kept.append(memo)
        if len(kept) > crash_at or (not stored and len(kept) == crash_at):
            raise CrashError

    with pytest.raises(CrashError):
        await world.issuer().issue(attrs.evolve(request, remember=remember))
    assert len(kept) == crash_at + stored
    await world.issuer().issue(world.request("a.test", csr_der=request.csr_der, memo=kept[-1]))
    assert len(ca.orders) == (2 if (crash_at, stored) == (1, False) else 1)
    assert not world.solver.published


async def test_the_proofs_of_a_crash_are_taken_back_by_the_next_attempt(
    world: AcmeWorld, ca: ScriptedCa, autojump_clock: MockClock
) -> None:
    """The crash is after publishing; the memo of the attempt that follows has the proofs."""
    world.solver.troubles["clean_up"] = [IssuerError("the DNS server does not answer")]
    ca.hooks.append(once("/finalize", problem("serverInternal", "busy", 500)))
    request = world.request("a.test")
    await refused(world, "a.test", csr_der=request.csr_der)
    assert world.solver.published
    await world.issuer().issue(world.request("a.test", csr_der=request.csr_der, memo=world.memos[-1]))
    assert not world.solver.published
    assert json.loads(world.memos[-1])["proofs"] == []


async def test_a_cancelled_attempt_takes_its_proofs_back(
    world: AcmeWorld, ca: ScriptedCa, autojump_clock: MockClock
) -> None:
    ca.polls_until_decided = 10**9
    with trio.move_on_after(30) as scope:
        await world.issuer().issue(world.request("a.test"))
    assert scope.cancelled_caught and not world.solver.published
    assert world.solver.log[-1][0] == "clean_up"


async def test_a_cancelled_attempt_does_not_wait_long_for_a_solver(
    world: AcmeWorld, ca: ScriptedCa, autojump_clock: MockClock
) -> None:
    """A control plane that stops; the next attempt takes back what is left."""
    ca.polls_until_decided = 10**9

    world.solver.hangs = True
    with trio.move_on_after(30):
        await world.issuer().issue(request := world.request("a.test"))
    assert trio.current_time() < 34
    world.solver.hangs = False
    ca.polls_until_decided = 1
    await world.issuer().issue(world.request("a.test", csr_der=request.csr_der, memo=world.memos[-1]))
    assert not world.solver.published and len(ca.orders) == 1


async def test_an_order_with_another_key_is_not_the_same(
    world: AcmeWorld, ca: ScriptedCa, autojump_clock: MockClock
) -> None:
    await world.issuer().issue(world.request("a.test"))
    done = next(memo for memo in reversed(world.memos))
    await world.issuer().issue(world.request("a.test", memo=done))
    assert len(ca.orders) == 2, "the first one is valid for another key"


@pytest.mark.parametrize("spoiled", ["gone", "invalid", "old", "elsewhere", "garbage"])
async def test_an_order_that_leads_nowhere_is_made_again(
    world: AcmeWorld, ca: ScriptedCa, autojump_clock: MockClock, spoiled: str
) -> None:
    ca.hooks.append(once("/finalize", problem("serverInternal", "busy", 500)))
    request = world.request("a.test")
    await refused(world, "a.test", csr_der=request.csr_der)
    memo = json.loads(world.memos[-1])
    if spoiled == "gone":
        ca.orders.clear()
    elif spoiled == "invalid":
        next(iter(ca.orders.values()))["status"] = "invalid"
    elif spoiled == "old":
        memo["at"] -= 90_000
    elif spoiled == "elsewhere":
        memo["directory"] = "https://other.test/directory"
    text = "{garbage" if spoiled == "garbage" else json.dumps(memo)
    await world.issuer().issue(world.request("a.test", csr_der=request.csr_der, memo=text))
    assert ca.count["newOrder"] == 2


# --- refusals --------------------------------------------------------------------------------------------------------


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


# --- ARI, revocation, the account ------------------------------------------------------------------------------------


async def test_an_order_replaces_the_certificate_before(
    world: AcmeWorld, ca: ScriptedCa, autojump_clock: MockClock
) -> None:
    issuer = world.issuer()
    first = await issuer.issue(world.request("a.test"))
    await issuer.issue(world.request("a.test", replaces_pem=first.certificate_pem))
    replaced = list(ca.orders.values())[-1]["payload"]["replaces"]
    window = await issuer.renewal_window(first.certificate_pem, first.chain_pem)
    assert ca.requests[-1][:2] == ("GET", f"/renewalInfo/{replaced}")
    assert window is not None and (window.start, window.end) == (WALL + 864_000, WALL + 1_036_800)
    assert window.check_again_at == pytest.approx(WALL + trio.current_time() + 7200)


@pytest.mark.parametrize("kind", ["alreadyReplaced", "malformed", "unauthorized"])
async def test_what_cannot_be_replaced_is_ordered_without(
    world: AcmeWorld, ca: ScriptedCa, autojump_clock: MockClock, kind: str
) -> None:
    first = await world.issuer().issue(world.request("a.test"))
    ca.hooks.append(
        lambda method, path, payload: problem(kind, "no", 409) if payload and "replaces" in payload else None
    )
    await world.issuer().issue(world.request("a.test", replaces_pem=first.certificate_pem))
    assert "replaces" not in list(ca.orders.values())[-1]["payload"]


async def test_without_ari_nothing_is_replaced_and_no_window_known(
    world: AcmeWorld, ca: ScriptedCa, autojump_clock: MockClock
) -> None:
    ca.with_ari = False
    issuer = world.issuer()
    first = await issuer.issue(world.request("a.test"))
    await issuer.issue(world.request("a.test", replaces_pem=first.certificate_pem))
    assert all("replaces" not in one["payload"] for one in ca.orders.values())
    assert await issuer.renewal_window(first.certificate_pem, first.chain_pem) is None


async def test_a_certificate_that_ari_does_not_know(
    world: AcmeWorld, ca: ScriptedCa, autojump_clock: MockClock
) -> None:
    first = await world.issuer().issue(world.request("a.test"))
    ca.hooks.append(always("/renewalInfo/", problem("malformed", "not ours", 404)))
    assert await world.issuer().renewal_window(first.certificate_pem, first.chain_pem) is None


@pytest.mark.parametrize(
    "body",
    [b"no", [], {}, {"suggestedWindow": {}}, {"suggestedWindow": {"start": "2026-01-02T00:00:00Z", "end": 5}},
     {"suggestedWindow": {"start": "2026-01-02T00:00:00Z", "end": "2026-01-01T00:00:00Z"}},
     {"suggestedWindow": {"start": "2026-01-02T00:00:00", "end": "2026-01-03T00:00:00"}}],
)  # fmt: skip
async def test_renewal_information_that_cannot_be_used(
    world: AcmeWorld, ca: ScriptedCa, autojump_clock: MockClock, body: Any
) -> None:
    first = await world.issuer().issue(world.request("a.test"))
    ca.hooks.append(always("/renewalInfo/", (200, {}, body)))
    with pytest.raises(IssuerError, match="renewal information cannot be used"):
        await world.issuer().renewal_window(first.certificate_pem, first.chain_pem)


async def test_revocation_with_a_reason_twice(world: AcmeWorld, ca: ScriptedCa, autojump_clock: MockClock) -> None:
    first = await world.issuer().issue(world.request("a.test"))
    for _ in range(2):
        await world.issuer().revoke(first.certificate_pem, first.chain_pem, "superseded")
    serial = x509.load_pem_x509_certificate(first.certificate_pem.encode()).serial_number
    assert ca.revoked == {serial: 4}


@pytest.mark.parametrize("kind", ["malformed", "unauthorized"])
async def test_an_account_key_that_another_plane_has_changed_fails_no_order_for_good(
    world: AcmeWorld, ca: ScriptedCa, autojump_clock: MockClock, kind: str
) -> None:
    issuer = world.issuer()
    await issuer.issue(world.request("a.test"))
    await world.issuer().change_key()
    error = await refused(world, issuer=issuer)
    assert "JWS verification error" in str(error)
    assert (error.is_permanent, error.fix) == (False, "wait; the order is tried again with the present account")
    await issuer.issue(world.request("a.test"))
    ca.hooks.append(once("/newOrder", problem(kind, "really", 400)))
    assert (await refused(world, issuer=issuer)).is_permanent


async def test_a_new_account_key_also_after_a_crash(
    world: AcmeWorld, ca: ScriptedCa, autojump_clock: MockClock
) -> None:
    await world.issuer().issue(world.request("a.test"))
    before = ca.accounts[f"{BASE}/acct/1"]["key"]
    await world.issuer().change_key()
    second = ca.accounts[f"{BASE}/acct/1"]["key"]
    assert second != before
    for crash_after in (False, True):  # before the CA has changed it, and after

        def crash(method: str, path: str, payload: Any, after: bool = crash_after) -> None:
            if path == "/keyChange":
                if after:
                    ca._key_change("", payload, {"kid": f"{BASE}/acct/1"})
                raise CrashError

        ca.hooks[:] = [crash]
        with pytest.raises(CrashError):
            await world.issuer().change_key()
        ca.hooks.clear()
        await world.issuer().issue(world.request("b.test"))
        assert (ca.accounts[f"{BASE}/acct/1"]["key"] != second) is crash_after
    assert len(ca.accounts) == 1


async def test_a_key_that_another_plane_has_changed(
    world: AcmeWorld, ca: ScriptedCa, autojump_clock: MockClock
) -> None:
    """The CA refuses the old key once; after that it is the new one."""
    ours, theirs = world.issuer(), world.issuer()
    await ours.issue(world.request("a.test"))
    await theirs.change_key()
    assert "JWS verification error" in str(await refused(world, issuer=ours))
    await ours.issue(world.request("a.test"))


async def test_urls_of_the_directory_that_have_changed(
    world: AcmeWorld, ca: ScriptedCa, autojump_clock: MockClock
) -> None:
    issuer = world.issuer()
    await issuer.issue(world.request("a.test"))
    ca.hooks.append(once("/newOrder", problem("malformed", "no such resource", 404)))
    await refused(world, issuer=issuer)
    await issuer.issue(world.request("a.test"))
    assert ca.count["directory"] == 2


async def test_the_end_of_an_account(world: AcmeWorld, ca: ScriptedCa, autojump_clock: MockClock) -> None:
    issuer = world.issuer()
    await issuer.deactivate()
    error = await refused(world, issuer=issuer)
    assert error.is_permanent and "is deactivated" in str(error)


async def test_check_tells_what_an_operator_wants_to_know(
    world: AcmeWorld, ca: ScriptedCa, autojump_clock: MockClock
) -> None:
    ca.meta["profiles"] = {"classic": ""}
    issuer = world.issuer(budget="50/d")
    await issuer.issue(world.request("a.test"))
    assert await issuer.check() == {
        "directory": DIRECTORY_URL,
        "account": f"{BASE}/acct/1 (valid)",
        "orders left": "49 of 50 orders per 1d",
        "renewal information": "yes",
        "profiles": "classic",
    }
    ca.accounts[f"{BASE}/acct/1"]["status"] = "deactivated"
    with pytest.raises(IssuerError, match="the account is deactivated"):
        await issuer.check()


# --- hostile answers -------------------------------------------------------------------------------------------------

WRONG = [b"", b"<html>", b"\xff", [], None, 7, "text", {}, {"status": "valid"}, {"status": 7}, {"status": "\x1b[1m"}]


@pytest.mark.parametrize(
    "path", ["/directory", "/newAccount", "/newOrder", "/authz/", "/chall/", "/finalize/", "/order/"]
)
@pytest.mark.parametrize("body", WRONG, ids=repr)
async def test_an_answer_of_the_wrong_shape(
    world: AcmeWorld, ca: ScriptedCa, autojump_clock: MockClock, path: str, body: Any
) -> None:
    """An empty answer to newAccount is none: CAs may leave out the object."""
    ca.hooks.append(always(path, (200, {"Location": f"{BASE}/acct/9"}, body)))
    error = await refused(world)
    assert "cannot be used" in str(error) or "account" in str(error)
    assert not world.solver.published


@pytest.mark.parametrize(
    "url",
    ["http://ca.test/x", "https://evil.test/x", "https://ca.test:444/x", "file:///etc/passwd", "https://ca.test@evil.test/",
     "//evil.test/x", "https://ca.test\r\nX: y/", "https://[::1", "https://" + "a" * 5000, "", 7],
)  # fmt: skip
async def test_urls_at_other_hosts_are_not_requested(
    world: AcmeWorld, ca: ScriptedCa, autojump_clock: MockClock, url: Any
) -> None:
    for path, change in (
        ("/newOrder", {"finalize": url}),
        ("/newOrder", {"authorizations": [url]}),
        ("/newOrder", {"certificate": url}),
    ):
        order = {"status": "valid", "identifiers": [{"type": "dns", "value": "a.test"}], "authorizations": [],
                 "finalize": f"{BASE}/finalize/1"} | change  # fmt: skip
        ca.hooks[:] = [always(path, (201, {"Location": f"{BASE}/order/1"}, order))]
        error = await refused(world)
        assert "cannot be used" in str(error) or "at another host" in str(error), str(error)
    ca.hooks[:] = [always("/newOrder", (201, {"Location": str(url)}, order | {"certificate": None}))]
    await refused(world)


async def test_an_order_for_other_names(world: AcmeWorld, ca: ScriptedCa, autojump_clock: MockClock) -> None:
    def other(method: str, path: str, payload: Any) -> Reply | None:
        if path != "/newOrder":
            return None
        status, headers, order = ca._new_order("", payload, {})
        return status, headers, order | {"identifiers": [{"type": "dns", "value": "evil.test"}]}

    ca.hooks.append(other)
    assert "it is for other names than those ordered" in str(await refused(world))


async def test_too_many_of_anything(world: AcmeWorld, ca: ScriptedCa, autojump_clock: MockClock) -> None:
    order = {"status": "pending", "identifiers": [{"type": "dns", "value": "a.test"}],
             "authorizations": [f"{BASE}/authz/1"] * 101, "finalize": f"{BASE}/finalize/1"}  # fmt: skip
    ca.hooks[:] = [always("/newOrder", (201, {"Location": f"{BASE}/order/1"}, order))]
    assert "101 authorizations; at most 100 are read" in str(await refused(world))


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"", "0 certificates"),
        (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "not PEM"),
        (b"x" * 1000, "0 certificates"),
        (self_signed("a", WALL) * 12, "12 certificates"),
        (self_signed("a", WALL) + self_signed("b", WALL), "1 of the certificates after it are not its issuers"),
        (self_signed("a.test", WALL), "another key"),
    ],
)
async def test_a_certificate_that_is_not_the_one(
    world: AcmeWorld, ca: ScriptedCa, autojump_clock: MockClock, body: bytes, why: str
) -> None:
    ca.hooks.append(always("/cert/", (200, {}, body)))
    assert why in str(await refused(world))


async def test_a_certificate_for_other_names(world: AcmeWorld, ca: ScriptedCa, autojump_clock: MockClock) -> None:
    usual = ca.leaf
    ca.leaf = lambda number, order, index=0: usual(  # type: ignore[method-assign]
        number, order | {"identifiers": [{"type": "dns", "value": "evil.test"}]}, index
    )
    assert "its names differ from those ordered: a.test, evil.test" in str(await refused(world))


async def test_an_order_that_the_ca_ends(world: AcmeWorld, ca: ScriptedCa, autojump_clock: MockClock) -> None:
    def end(method: str, path: str, payload: Any) -> Reply | None:
        if not path.startswith("/order/") or not any("csr" in one for one in ca.orders.values()):
            return None
        order = ca._shown(f"{BASE}{path}")
        error = {"type": "urn:ietf:params:acme:error:badCSR", "detail": "weak key"}
        return 200, {}, order | {"status": "invalid", "error": error}

    ca.polls_until_issued = 3
    ca.hooks.append(end)
    error = await refused(world)
    assert str(error) == "the CA refused the order: weak key (badCSR)" and error.is_permanent
    assert json.loads(world.memos[-1])["order"] == ""


# --- any answer, at any step -----------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 10**20)
    | st.text(max_size=20)
    | st.sampled_from(
        ["valid", "pending", "invalid", "processing", f"{BASE}/order/1", f"{BASE}/authz/1", "https://evil.test/"]
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=6,
)
CHANGES = st.tuples(
    st.integers(0, 14),  # which answer
    st.sampled_from(["status", "field", "body", "header", "drop"]),
    st.integers(0, 20),  # which field
    JSON,
    st.sampled_from([200, 201, 204, 400, 403, 404, 429, 500, 503]),
)


class ChangingCa(ScriptedCa):
    """Changes some of its answers."""

    def __init__(self, changes: list[Any]) -> None:
        super().__init__(WALL)
        self.changes = {change[0]: change for change in changes}
        self.answered = -1

    def _answered(self, method: str, path: str, payload: Any, usual: Callable[[], Reply]) -> Reply:
        status, headers, found = super()._answered(method, path, payload, usual)
        self.answered += 1
        change = self.changes.get(self.answered)
        if change is None:
            return status, headers, found
        _, how, number, value, code = change
        if how == "status":
            return code, headers, found
        if how == "body":
            return status, headers, value
        if how == "header":
            text = json.dumps(value)
            return status, headers | {"Location": text, "Link": text, "Retry-After": text, "Content-Type": text}, found
        if isinstance(found, dict) and found:
            name = sorted(found)[number % len(found)]
            return (
                status,
                headers,
                {key: one for key, one in found.items() if key != name} | ({name: value} if how == "field" else {}),
            )
        return status, headers, value


@settings(max_examples=120)
@given(changes=st.lists(CHANGES, min_size=1, max_size=4))
def test_any_changed_answers_end_in_a_certificate_or_a_clear_error(changes: list[Any]) -> None:
    async def main() -> None:
        world = make_world(lambda: WALL + trio.current_time())
        ca = ChangingCa(changes)

        @contextlib.asynccontextmanager
        async def connected(*args: object) -> AsyncIterator[ScriptedCa]:
            yield ca

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(acme, "connected", connected)
            try:
                issued = await world.issuer().issue(world.request("a.test", "*.a.test"))
            except IssuerError as error:
                assert str(error).isprintable() and len(str(error)) < 3000
            else:
                assert names_of(issued) == {"a.test", "*.a.test"}
            assert not world.solver.published
            assert trio.current_time() < 3 * 3600
        world.plane.close()

    trio.run(main, clock=MockClock(autojump_threshold=0))
