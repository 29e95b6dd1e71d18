"""Crashes and cancellation at any step of an order: the next attempt continues it."""

from __future__ import annotations

import json
from collections.abc import Iterator

import attrs
import pytest
import trio
from acme_world import AcmeWorld, CrashError, names_of, once, refused
from scripted_ca import ScriptedCa, new_csr, problem
from trio.testing import MockClock

from certctrl.plane.issuers.issuer import IssuerError


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

        def crash(method: str, path: str, payload: object, steps: Iterator[int] = steps, at: int = crash_at) -> None:
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
