"""Proofs that an order, a plane or a failure leaves are removed later, on both engines and two planes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import trio
from fake_dns import SECONDARY
from proof_fleet import Fleet, proof, txt

from certctrl.errors import DiskError
from certctrl.plane.challenges import leftovers
from certctrl.plane.challenges import published as module
from certctrl.plane.challenges.published import (
    FIRST_PAUSE,
    GIVE_UP_SECONDS,
    HOLD_SECONDS,
    MAX_PAUSE,
    REMOVAL_SECONDS,
)
from certctrl.plane.challenges.solver import Proof
from certctrl.plane.health.problems import ProblemName
from certctrl.plane.storage.database import Database


@pytest.fixture
def fleet(open_database: Callable[[], Database]) -> Fleet:
    return Fleet(open_database)


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
    assert max(pauses) == pytest.approx(MAX_PAUSE) and fleet.texts()
    fleet.refuse(False)
    again = fleet.started()  # it survives a restart
    fleet.now += MAX_PAUSE
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
    monkeypatch.setattr(module, "MAX_EXPIRED", 3)
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
