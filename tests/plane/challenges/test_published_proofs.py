"""Proofs that several orders share, on both engines and two planes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

import attrs
import pytest
import trio
from proof_fleet import NAME, Fleet, proof, txt
from shared_solver import shared

from certctrl.errors import CertctrlError
from certctrl.plane.challenges import published as module
from certctrl.plane.challenges.published import HOLD_SECONDS, REMOVAL_SECONDS
from certctrl.plane.challenges.shared import SharedSolver
from certctrl.plane.challenges.solver import Proof
from certctrl.plane.core import Plane
from certctrl.plane.issuers.issuer import IssuerError
from certctrl.plane.storage.database import Database


@pytest.fixture
def fleet(open_database: Callable[[], Database]) -> Fleet:
    return Fleet(open_database)


# --- shared by two orders ---------------------------------------------------------------------------------------------


async def test_orders_of_two_planes_share_a_record(fleet: Fleet) -> None:
    first, second = fleet.solver(fleet.one, "order 1"), fleet.solver(fleet.other, "order 2")
    await first.present([proof()])
    await second.present([proof()])
    await first.present([proof()])  # another attempt of the same order counts once
    assert not await first.clean_up([proof()])
    assert fleet.texts() == [txt(proof())], "the other order still needs it"
    assert not await first.clean_up([proof()])
    assert fleet.texts() == [txt(proof())], "even if the first one ends twice"
    assert not await second.clean_up([proof()])
    assert fleet.texts() == []
    assert not await fleet.rows() and not await fleet.rows("proof_holds")


async def test_the_next_attempt_may_be_at_another_plane(fleet: Fleet) -> None:
    await fleet.solver(fleet.one, "order 1").present([proof()])
    assert not await fleet.solver(fleet.started(), "order 1").clean_up([proof()])
    assert fleet.texts() == [] and not await fleet.rows()


async def test_a_proof_that_was_never_noted_is_taken_back(fleet: Fleet) -> None:
    """An order of an earlier release left such proofs."""
    fleet.dns.records[NAME, "TXT"] = [txt(proof())]
    assert not await fleet.solver(fleet.one).clean_up([proof()])
    assert fleet.texts() == [] and not await fleet.rows()


async def test_an_order_waits_while_another_plane_removes_its_record(fleet: Fleet) -> None:
    """Otherwise, a removal that is under way would take the new record."""
    published = fleet.published(fleet.one)
    first, second = fleet.solver(fleet.one, "order 1"), fleet.solver(fleet.other, "order 2")
    await first.present([proof()])
    unneeded = await fleet.one.work(published.give_back, "le", "order 1", [proof()])
    assert unneeded == [proof()]
    done = trio.Event()

    async def present() -> None:
        await second.present([proof()])
        done.set()

    before = len(fleet.dns.updates)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(present)
        for _ in range(30):
            await trio.sleep(0.01)
        assert not done.is_set() and len(fleet.dns.updates) == before
        await super(SharedSolver, first).clean_up(unneeded)
        await fleet.one.work(published.settle, unneeded, {})
        with trio.fail_after(30):
            await done.wait()
    assert fleet.texts() == [txt(proof())]


async def test_an_order_does_not_wait_for_a_plane_that_ended(fleet: Fleet) -> None:
    published, other = fleet.published(fleet.one), fleet.published(fleet.other)
    await fleet.one.work(published.give_back, "le", "order 1", [proof()])
    assert not await fleet.other.work(other.take, "le", "order 2", [proof()])
    fleet.now += REMOVAL_SECONDS + 1
    assert await fleet.other.work(other.take, "le", "order 2", [proof()])


# --- races --------------------------------------------------------------------------------------------------------------


async def test_an_order_leaves_a_removal_to_the_plane_that_has_begun_it(fleet: Fleet) -> None:
    """Otherwise the one that ends first would let other orders publish it, and the second removal take theirs away."""
    await fleet.solver(fleet.one, "order 1").present([proof()])
    fleet.now += HOLD_SECONDS + 1
    assert await fleet.one.work(fleet.published(fleet.one).claim) == {"le": [proof()]}
    other = fleet.published(fleet.other)
    assert await fleet.other.work(other.give_back, "le", "order 1", [proof()]) == []
    assert not await fleet.other.work(other.take, "le", "order 2", [proof()]), "it is being removed"
    assert await fleet.one.work(fleet.published(fleet.one).give_back, "le", "", [proof()]) == [proof()]


async def test_an_attempt_that_has_lost_its_claim_leaves_the_proofs_of_the_next_one(fleet: Fleet) -> None:
    """It notices only later, and cleans up while another plane works on the order."""
    late, present = fleet.solver(fleet.one, "order 1"), fleet.solver(fleet.other, "order 1")
    await late.present([proof()])
    fleet.now += 121
    await present.present([proof()])
    assert not await late.clean_up([proof()])
    assert fleet.texts() == [txt(proof())]
    assert not await present.clean_up([proof()])
    assert fleet.texts() == [] and not await fleet.rows("proof_holds")


@attrs.define(eq=False)
class SlowAnswers:
    """A solver that takes its time, and cannot remove each answer."""

    random: Random
    answers: set[Proof] = attrs.field(factory=set)
    kinds: tuple[str, ...] = ("dns-01",)

    def solves(self, kind: str, identifier: str, wildcard: bool) -> bool:
        return True

    async def present(self, proofs: Sequence[Proof]) -> None:
        await trio.sleep(self.random.random() * 0.01)
        self.answers.update(proofs)

    async def clean_up(self, proofs: Sequence[Proof]) -> dict[Proof, CertctrlError]:
        failures: dict[Proof, CertctrlError] = {}
        for one in proofs:
            await trio.sleep(self.random.random() * 0.01)
            if self.random.random() < 0.2:
                failures[one] = IssuerError("refused")
            else:
                self.answers.discard(one)
        return failures

    async def explain(self, proof: Proof) -> str:
        return ""


@pytest.mark.parametrize("seed", range(4))
async def test_orders_of_two_planes_never_lose_an_answer(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Even if an order gives its proofs back twice, as after a crash. The clock stands still: no removal takes too long."""
    monkeypatch.setattr("certctrl.plane.challenges.shared.PAUSE", 0.01)
    monkeypatch.setattr(module, "FIRST_PAUSE", 0.0)
    monkeypatch.setattr(module, "MAX_PAUSE", 0.0)
    random = Random(seed)
    dns, proofs = SlowAnswers(random), [proof(f"t{number}") for number in range(4)]
    lost: list[Proof] = []

    def solver(plane: Plane, holder: str) -> SharedSolver:
        return shared(dns, plane.database, lambda: fleet.now, holder=holder)

    @attrs.define(eq=False)
    class Taker:
        plane: Plane

        async def take_back(self, proofs: Sequence[Proof]) -> None:
            await solver(self.plane, "").clean_up(proofs)

    async def order(number: int) -> None:
        for _ in range(15):
            mine, some = solver(random.choice(planes), f"order {number}"), random.sample(proofs, random.randint(1, 3))
            await mine.present(some)
            for _ in range(3):
                await trio.sleep(random.random() * 0.01)
                lost.extend(one for one in some if one not in dns.answers)
            for _ in range(random.choice([1, 2])):
                await mine.clean_up(some)

    async def take_back_forever(plane: Plane) -> None:
        while True:
            await fleet.leftovers(plane, Taker(plane)).run_once()
            await trio.sleep(0.02)

    planes = fleet.one, fleet.other
    async with trio.open_nursery() as nursery:
        for plane in planes:
            nursery.start_soon(take_back_forever, plane)
        async with trio.open_nursery() as orders:
            for number in range(5):
                orders.start_soon(order, number)
        nursery.cancel_scope.cancel()
    assert not lost
