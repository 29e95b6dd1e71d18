"""Proofs that several orders share, and those that an order leaves, on both engines and two planes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import attrs
import pytest
import trio
from engine_plane import WALL, plane_on
from fake_dns import PRIMARY, RESOLVER, SECONDARY, FakeDns
from shared_solver import shared

from certctrl.errors import CertctrlError, DiskError
from certctrl.plane.challenges import leftovers
from certctrl.plane.challenges import published as module
from certctrl.plane.challenges.dns_lookup import DnsLookup
from certctrl.plane.challenges.leftovers import Leftovers
from certctrl.plane.challenges.published import (
    FIRST_PAUSE,
    GIVE_UP_SECONDS,
    HOLD_SECONDS,
    LONGEST_PAUSE,
    REMOVAL_SECONDS,
    PublishedProofs,
)
from certctrl.plane.challenges.rfc2136 import Rfc2136Settings, Rfc2136Solver
from certctrl.plane.challenges.shared import SharedSolver
from certctrl.plane.challenges.solver import Proof, dns_record_value
from certctrl.plane.core import Plane
from certctrl.plane.health.problems import ProblemName
from certctrl.plane.issuers.issuer import Issuer, IssuerError
from certctrl.plane.storage.database import Database
from certctrl.plane.storage.keyring import Keyring

NAME = "_acme-challenge.www.example.com"


def proof(token: str = "t1", identifier: str = "www.example.com") -> Proof:
    return Proof(kind="dns-01", identifier=identifier, token=token, key_authorization=f"{token}.account")


@attrs.define(eq=False)
class DnsIssuer:
    """An issuer whose proofs are in a DNS in memory."""

    fleet: Fleet
    plane: Plane

    async def take_back(self, proofs: Sequence[Proof]) -> None:
        await self.fleet.solver(self.plane, "").clean_up(proofs)


class Fleet:
    """Two planes on one database that publish in one DNS, and their clock."""

    def __init__(self, open_database: Callable[[], Database]) -> None:
        self.now = WALL
        self.dns = FakeDns().zone("example.com", PRIMARY)
        self._open, self._keyring = open_database, Keyring.open(None)
        self.one, self.other = self.started(), self.started()

    def started(self) -> Plane:
        return plane_on(self._open(), self._keyring, lambda: self.now)

    def solver(self, plane: Plane, holder: str | None = None) -> SharedSolver:
        inner = Rfc2136Solver(Rfc2136Settings(propagation_seconds=1), [], DnsLookup(self.dns, [RESOLVER]))
        return shared(inner, plane.database, lambda: self.now, holder=holder)

    def published(self, plane: Plane) -> PublishedProofs:
        return PublishedProofs(plane.database, lambda: self.now)

    def leftovers(self, plane: Plane, issuer: Any = None) -> Leftovers:
        async def issuer_of(name: str) -> Issuer:
            assert name == "le"
            return issuer or DnsIssuer(self, plane)  # type: ignore[return-value]

        return Leftovers(plane.database, self.published(plane), issuer_of, plane.problems)

    def texts(self) -> list[str]:
        return self.dns.records.get((NAME, "TXT"), [])

    async def rows(self, table: str = "published_proofs") -> list[Any]:
        return await self.one.work(self.one.database.all, f"SELECT * FROM {table}")

    def refuse(self, refused: bool = True) -> None:
        if refused:
            self.dns.rcodes[PRIMARY.address, "UPDATE"] = "REFUSED"
        else:
            self.dns.rcodes.clear()


@pytest.fixture
def fleet(open_database: Callable[[], Database]) -> Fleet:
    return Fleet(open_database)


def txt(one: Proof) -> str:
    return f'"{dns_record_value(one)}"'


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
    """As by an order of an earlier release."""
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


# --- left by an order -------------------------------------------------------------------------------------------------


async def test_a_refused_removal_is_tried_again_with_growing_pauses(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    solver = fleet.solver(fleet.one, "order 1")
    await solver.present([proof()])
    fleet.refuse()
    (failure,) = (await solver.clean_up([proof()])).values()
    assert "refuses an update" in str(failure)
    pauses = []
    for _ in range(12):
        (row,) = await fleet.rows()
        pauses.append(row["due"] - fleet.now)
        fleet.now = row["due"] - 1
        assert await fleet.leftovers(fleet.other).run_once() == 0, "not before its time"
        fleet.now += 1
        assert await fleet.leftovers(fleet.other).run_once() == 1
        assert fleet.other.problems and ProblemName.PROOFS in fleet.other.problems
    assert pauses[:3] == pytest.approx([FIRST_PAUSE, 2 * FIRST_PAUSE, 4 * FIRST_PAUSE])
    assert max(pauses) == pytest.approx(LONGEST_PAUSE) and fleet.texts()
    fleet.refuse(False)
    again = fleet.started()  # it survives a restart
    fleet.now += LONGEST_PAUSE
    assert await fleet.leftovers(again).run_once() == 1
    assert fleet.texts() == [] and not await fleet.rows()
    await fleet.leftovers(fleet.other).run_once()
    assert ProblemName.PROOFS not in fleet.other.problems
    assert "REFUSED; " in caplog.text and "next attempt in 60 s" in caplog.text


async def test_a_removal_that_fails_for_a_week_is_given_up(fleet: Fleet, caplog: pytest.LogCaptureFixture) -> None:
    solver = fleet.solver(fleet.one, "order 1")
    await solver.present([proof()])
    fleet.refuse()
    await solver.clean_up([proof()])
    fleet.now += GIVE_UP_SECONDS
    assert await fleet.leftovers(fleet.one).run_once() == 1
    assert not await fleet.rows() and ProblemName.PROOFS not in fleet.one.problems
    assert "given up after 2 attempts: remove it by hand" in caplog.text
    assert await fleet.leftovers(fleet.one).run_once() == 0


async def test_only_what_failed_is_tried_again(fleet: Fleet) -> None:
    fleet.dns.zone("example.org", SECONDARY)
    good, bad = proof(), proof(identifier="www.example.org")
    solver = fleet.solver(fleet.one, "order 1")
    await solver.present([good, bad])
    fleet.dns.rcodes[SECONDARY.address, "UPDATE"] = "REFUSED"
    assert {*await solver.clean_up([good, bad])} == {bad}
    assert [row["identifier"] for row in await fleet.rows()] == ["www.example.org"]


async def test_a_new_order_publishes_again_what_could_not_be_removed(fleet: Fleet) -> None:
    first, second = fleet.solver(fleet.one, "order 1"), fleet.solver(fleet.other, "order 2")
    await first.present([proof()])
    fleet.refuse()
    await first.clean_up([proof()])
    fleet.refuse(False)
    await second.present([proof()])
    fleet.now += FIRST_PAUSE + 1
    assert await fleet.leftovers(fleet.one).run_once() == 0, "it is needed again"
    assert fleet.texts() == [txt(proof())] and ProblemName.PROOFS not in fleet.one.problems
    await second.clean_up([proof()])
    assert fleet.texts() == []


# --- left by a plane that ended ---------------------------------------------------------------------------------------


async def test_what_a_crash_leaves_is_taken_back_after_a_bounded_time(fleet: Fleet) -> None:
    await fleet.solver(fleet.one, "order 1").present([proof()])  # and no other attempt: the order was cancelled
    fleet.now += HOLD_SECONDS - 1
    assert await fleet.leftovers(fleet.other).run_once() == 0 and fleet.texts()
    fleet.now += 2
    assert await fleet.leftovers(fleet.other).run_once() == 1
    assert fleet.texts() == [] and not await fleet.rows() and not await fleet.rows("proof_holds")


async def test_a_leaked_need_does_not_keep_a_record_that_another_order_has_given_back(fleet: Fleet) -> None:
    await fleet.solver(fleet.one, "order 1").present([proof()])  # crashes
    fleet.now += 3600
    second = fleet.solver(fleet.other, "order 2")
    await second.present([proof()])
    await second.clean_up([proof()])
    assert fleet.texts(), "the first one may still need it"
    fleet.now += HOLD_SECONDS
    await fleet.leftovers(fleet.other).run_once()
    assert fleet.texts() == [] and not await fleet.rows("proof_holds")


async def test_a_need_that_is_younger_keeps_the_record(fleet: Fleet) -> None:
    await fleet.solver(fleet.one, "order 1").present([proof()])  # crashes
    fleet.now += HOLD_SECONDS / 2
    await fleet.solver(fleet.other, "order 2").present([proof()])
    fleet.now += HOLD_SECONDS / 2 + 1
    assert await fleet.leftovers(fleet.one).run_once() == 0
    assert fleet.texts() == [txt(proof())]


async def test_a_plane_that_ends_while_it_removes_is_followed_by_another(fleet: Fleet) -> None:
    await fleet.solver(fleet.one, "order 1").present([proof()])
    published = fleet.published(fleet.one)
    await fleet.one.work(published.give_back, "le", "order 1", [proof()])  # and it ends
    assert await fleet.leftovers(fleet.other).run_once() == 0
    fleet.now += REMOVAL_SECONDS + 1
    assert await fleet.leftovers(fleet.other).run_once() == 1
    assert fleet.texts() == []


async def test_two_planes_do_not_remove_the_same_record(fleet: Fleet) -> None:
    await fleet.solver(fleet.one, "order 1").present([proof()])
    fleet.now += HOLD_SECONDS + 1
    published = [fleet.published(plane) for plane in (fleet.one, fleet.other)]
    assert await fleet.one.work(published[0].claim) == {"le": [proof()]}
    assert await fleet.other.work(published[1].claim) == {}


async def test_many_leftovers_are_taken_back_in_parts(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TOGETHER", 3)
    proofs = [proof(f"t{number}") for number in range(5)]
    await fleet.solver(fleet.one, "order 1").present(proofs)
    fleet.now += HOLD_SECONDS + 1
    assert [await fleet.leftovers(fleet.one).run_once() for _ in range(3)] == [3, 2, 0]
    assert fleet.texts() == []


async def test_a_clock_that_was_set_back_keeps_nothing_forever(fleet: Fleet) -> None:
    await fleet.solver(fleet.one, "order 1").present([proof()])
    fleet.now -= 365 * 86_400
    assert await fleet.leftovers(fleet.one).run_once() == 1
    assert fleet.texts() == []


# --- issuers and databases that fail ----------------------------------------------------------------------------------


async def test_an_issuer_that_fails_is_a_problem_and_tried_again(fleet: Fleet) -> None:
    class Broken:
        async def take_back(self, proofs: Sequence[Proof]) -> None:
            raise RuntimeError("bug")

    await fleet.solver(fleet.one, "order 1").present([proof()])
    fleet.now += HOLD_SECONDS + 1
    for broken, says in (
        (Broken(), "unexpected RuntimeError in issuer le"),
        (object(), "publishes no proofs any longer"),
    ):
        assert await fleet.leftovers(fleet.one, broken).run_once() == 1
        (row,) = await fleet.rows()
        assert says in row["problem"] and row["busy_until"] == 0
        fleet.now = row["due"]
    assert ProblemName.PROOFS in fleet.one.problems


async def test_an_issuer_that_hangs_is_left(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    class Hanging:
        async def take_back(self, proofs: Sequence[Proof]) -> None:
            await trio.sleep_forever()

    monkeypatch.setattr(leftovers, "ATTEMPT_SECONDS", 0.1)
    await fleet.solver(fleet.one, "order 1").present([proof()])
    fleet.now += HOLD_SECONDS + 1
    assert await fleet.leftovers(fleet.one, Hanging()).run_once() == 1
    (row,) = await fleet.rows()
    assert row["problem"].startswith("no end within ") and row["attempts"] == 1


async def test_a_database_that_is_away_loses_no_proof(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    solver = fleet.solver(fleet.one, "order 1")
    await solver.present([proof()])

    async def away(*_: object) -> None:
        raise DiskError("away")

    with monkeypatch.context() as patched:
        patched.setattr(fleet.one.database, "work", away)
        with pytest.raises(DiskError):
            await solver.clean_up([proof()])
    assert fleet.texts() == [txt(proof())]
    assert not await solver.clean_up([proof()])
    assert fleet.texts() == []


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
    monkeypatch.setattr(module, "LONGEST_PAUSE", 0.0)
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
