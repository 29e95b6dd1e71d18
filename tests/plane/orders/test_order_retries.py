"""Failed orders: growing pauses, refusals, the end of a first order, and what is shown meanwhile."""

from __future__ import annotations

import pytest
from issuer_scene import Scene
from scripted_issuer import WALL

from certctrl.plane.health.problems import ProblemName
from certctrl.plane.issuers.issuer import IssuerError
from certctrl.plane.orders.attempts import FIRST_PAUSE, GIVE_UP_SECONDS, REFUSED_PAUSE
from certctrl.plane.settings import DAY


@pytest.mark.parametrize("renewal", [False, True])
async def test_failures_are_retried_with_growing_pauses(scene: Scene, renewal: bool) -> None:
    row = await scene.issued() if renewal else await scene.issue()
    before = await scene.certificate(row["id"])
    order_id = row["order_id"]
    if renewal:
        order_id = (await scene.plane.certificates.renew(1, row["id"]))["order_id"]
    scene.ca.script = [IssuerError(f"the CA is down ({number})", fix="wait") for number in range(5)]
    pauses = []
    for number in range(5):
        assert await scene.plane.order_runner.run_once() == 1
        order = await scene.plane.work(scene.plane.database.one, "SELECT * FROM orders WHERE id = ?", order_id)
        assert order is not None
        assert (order["state"], order["attempts"]) == ("ready", number + 1)
        assert (order["problem"], order["fix"]) == (f"the CA is down ({number})", "wait")
        pauses.append(order["next_at"] - scene.now)
        assert await scene.plane.order_runner.run_once() == 0
        scene.now = order["next_at"]
    assert all(FIRST_PAUSE * 2**n / 2 <= pause <= FIRST_PAUSE * 2**n for n, pause in enumerate(pauses))
    of_the_order = {"order_id": order_id, "order_state": "ready", "problem": "the CA is down (4)"}
    assert await scene.certificate(row["id"]) == before | of_the_order, "the certificate in use is untouched"
    shown = await scene.plane.work(scene.plane.issuers.show, "le")
    assert shown["problem"] == "the CA is down (4)"
    await scene.plane.order_runner.run_once()
    assert (await scene.certificate(row["id"]))["status"] == "active"
    assert (await scene.plane.work(scene.plane.issuers.show, "le"))["problem"] == ""
    csrs = {request.csr_der for request in scene.ca.requests[-6:]}
    assert len(csrs) == 1, "all attempts of an order have one key"


async def test_retry_after_counts(scene: Scene) -> None:
    row = await scene.issue()
    scene.ca.script = [IssuerError("too many orders", retry_after=7200.0)]
    await scene.plane.order_runner.run_once()
    order = await scene.plane.work(scene.plane.database.one, "SELECT next_at FROM orders WHERE id = ?", row["order_id"])
    assert order is not None
    assert 7200 <= order["next_at"] - scene.now <= 7200 * 1.05


async def test_a_refusal_ends_a_first_order(scene: Scene) -> None:
    row = await scene.issue()
    scene.ca.script = [IssuerError("CAA forbids it", fix="change the CAA record", is_permanent=True)]
    await scene.plane.order_runner.run_once()
    order = await scene.order(row["order_id"])
    assert (order["state"], order["problem"], order["fix"]) == ("failed", "CAA forbids it", "change the CAA record")
    assert (await scene.certificate(row["id"]))["status"] == "pending"
    again = await scene.plane.work(scene.plane.orders.retry, 1, order["id"])
    assert (again["state"], again["id"] > order["id"]) == ("ready", True)
    await scene.plane.order_runner.run_once()
    assert (await scene.certificate(row["id"]))["status"] == "active"


async def test_a_refused_renewal_is_tried_again_daily_with_a_new_key(scene: Scene) -> None:
    row = await scene.issued()
    await scene.plane.certificates.renew(1, row["id"])
    scene.ca.script = [IssuerError("refused", is_permanent=True), IssuerError("refused", is_permanent=True)]
    for _ in range(2):
        assert await scene.plane.order_runner.run_once() == 1
        assert (await scene.certificate(row["id"]))["serial_number"] == row["serial_number"]
        scene.now += REFUSED_PAUSE
    await scene.plane.order_runner.run_once()
    assert (await scene.certificate(row["id"]))["serial_number"] != row["serial_number"]
    assert len({request.csr_der for request in scene.ca.requests[1:]}) == 3


async def test_a_first_order_is_given_up_after_a_week(scene: Scene) -> None:
    row = await scene.issue()
    scene.ca.script = [IssuerError("down")] * 2
    await scene.plane.order_runner.run_once()
    scene.now += GIVE_UP_SECONDS + 1
    await scene.plane.order_runner.run_once()
    assert (await scene.order(row["order_id"]))["state"] == "failed"


async def test_failing_orders_are_a_problem_until_they_are_done(scene: Scene) -> None:
    await scene.issue()
    problems = scene.plane.order_runner._problems
    scene.ca.script = [IssuerError("down")] * 3
    for count in range(3):
        assert ProblemName.ORDERS not in scene.plane.problems, count
        await scene.plane.order_runner.run_once()
        scene.now += DAY
        problems._next = 0.0
        await problems.update()
    (problem,) = scene.plane.problems.now()
    assert (problem.name, problem.what) == (ProblemName.ORDERS, "order 1 (www.example.com, issuer le): down")
    await scene.plane.order_runner.run_once()
    problems._next = 0.0
    await problems.update()
    assert scene.plane.problems.now() == []


async def test_a_clock_that_was_set_back_delays_no_order(scene: Scene) -> None:
    row = await scene.issued()
    scene.now += 365 * DAY
    await scene.plane.certificates.renew(1, row["id"])
    scene.ca.script = [IssuerError("down")]
    assert await scene.plane.order_runner.run_once() == 1
    scene.now -= 365 * DAY
    assert await scene.plane.order_runner.run_once() == 1
    assert (await scene.certificate(row["id"]))["serial_number"] != row["serial_number"]


async def test_a_refused_renewal_of_a_short_life_is_tried_again_before_its_end(scene: Scene) -> None:
    row = await scene.issued(validity_seconds=86_400)
    order_id = (await scene.plane.certificates.renew(1, row["id"]))["order_id"]
    scene.now += DAY / 2
    tries = 0
    while scene.now < WALL + DAY:
        scene.ca.script = [IssuerError("forbidden", is_permanent=True)]
        assert await scene.plane.order_runner.run_once() == 1
        due = await scene.plane.work(scene.plane.database.one, "SELECT next_at FROM orders WHERE id = ?", order_id)
        assert due is not None
        assert due["next_at"] > scene.now + FIRST_PAUSE
        scene.now, tries = due["next_at"] + 1, tries + 1
    assert 5 < tries < 30
    for _ in range(10):
        scene.ca.script = [IssuerError("forbidden", is_permanent=True)]
        scene.now += DAY
        assert await scene.plane.order_runner.run_once() == 1
    due = await scene.plane.work(scene.plane.database.one, "SELECT next_at FROM orders WHERE id = ?", order_id)
    assert due is not None
    assert due["next_at"] >= scene.now + REFUSED_PAUSE / 2, "and not so often after its end"
