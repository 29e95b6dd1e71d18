"""Nonces, pauses and rate limits of a CA, and our own budget."""

from __future__ import annotations

import pytest
import trio
from acme_world import AcmeWorld, always, once, refused
from scripted_ca import Reply, ScriptedCa, problem
from trio.testing import MockClock


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

    def note(method: str, path: str, payload: object) -> Reply | None:
        if not path.startswith("/authz/") or not world.solver.published:
            return None
        times.append(trio.current_time())
        status, headers, found = ca._authorization(path.removeprefix("/authz/"), payload, {})
        return status, headers | {"Retry-After": header}, found

    ca.polls_until_decided = 2
    ca.hooks.append(note)
    await world.issuer().issue(world.request("a.test"))
    assert times[1] - times[0] == pytest.approx(pause, abs=1.0 if pause > 1 else 0.04)
