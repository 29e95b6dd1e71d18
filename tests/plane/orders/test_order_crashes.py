"""Planes that crash, stop or lose their claim or their database while they work on an order."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
import trio
import trio.testing
from issuer_scene import Scene

from certctrl.plane.issuers.issuer import CertificateRequest, IssuedChain
from certctrl.plane.orders.runner import LEASE_SECONDS
from certctrl.plane.settings import DAY


@attrs.frozen
class PausedIssue:
    """A step of the CA's script that issues once the test says so."""

    scene: Scene
    reached: trio.Event = attrs.field(factory=trio.Event)
    go_on: trio.Event = attrs.field(factory=trio.Event)

    async def __call__(self, request: CertificateRequest) -> IssuedChain:
        self.reached.set()
        await self.go_on.wait()
        return self.scene.ca.signed(request)


@pytest.mark.parametrize("crash", ["before the memo", "after the memo", "after the issue"])
async def test_an_order_survives_a_crash_of_the_plane(scene: Scene, crash: str) -> None:
    row = await scene.issue()
    reached = trio.Event()

    async def interrupted(request: CertificateRequest) -> IssuedChain:
        if crash != "before the memo":
            await request.remember("https://ca.example/order/7")
        reached.set()
        await trio.sleep_forever()
        raise AssertionError

    scene.ca.script = [interrupted]
    job = (await scene.plane.order_runner._claims.claim())[0][0]
    attempt = await scene.plane.work(scene.plane.order_runner._attempts.begin, job)
    assert attempt is not None
    async with trio.open_nursery() as nursery:  # it never gets to give its claim back
        nursery.start_soon(scene.plane.order_runner._attempt, attempt)
        await reached.wait()
        nursery.cancel_scope.cancel()

    other = scene.another()
    assert await other.order_runner.run_once() == 0, "the lease of the dead plane"
    scene.now += LEASE_SECONDS + 1
    assert await other.order_runner.run_once() == 1
    assert (await scene.certificate(row["id"]))["status"] == "active"
    first, second = scene.ca.requests
    assert second.memo == ("" if crash == "before the memo" else "https://ca.example/order/7")
    assert first.csr_der == second.csr_der


async def test_a_plane_that_lost_its_claim_stores_nothing(scene: Scene) -> None:
    row = await scene.issue()
    paused = PausedIssue(scene)
    scene.ca.script = [paused]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scene.plane.order_runner.run_once)
        await paused.reached.wait()
        scene.now += LEASE_SECONDS + 1
        assert await scene.another().order_runner.run_once() == 1
        serial = (await scene.certificate(row["id"]))["serial_number"]
        paused.go_on.set()
    assert serial
    assert (await scene.certificate(row["id"]))["serial_number"] == serial


async def test_a_stopping_plane_gives_its_orders_back(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("certctrl.plane.orders.runner.DRAIN_SECONDS", 0.05)
    row = await scene.issue()
    reached = trio.Event()

    async def slow(request: CertificateRequest) -> IssuedChain:
        await request.remember("memo")
        reached.set()
        await trio.sleep_forever()
        raise AssertionError

    scene.ca.script = [slow]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scene.plane.order_runner.run)
        await reached.wait()
        nursery.cancel_scope.cancel()
    assert await scene.another().order_runner.run_once() == 1, "at once, without waiting for the lease"
    assert (await scene.certificate(row["id"]))["status"] == "active"
    assert scene.ca.requests[-1].memo == "memo"


async def test_a_stopping_plane_lets_an_attempt_end(scene: Scene) -> None:
    row = await scene.issue()
    paused = PausedIssue(scene)
    scene.ca.script = [paused]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scene.plane.order_runner.run)
        await paused.reached.wait()
        nursery.cancel_scope.cancel()
        paused.go_on.set()
    assert (await scene.certificate(row["id"]))["status"] == "active"


async def test_a_runner_notices_new_orders_and_a_database_that_is_away(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    from certctrl.plane.errors import DatabaseAwayError

    monkeypatch.setattr("certctrl.plane.orders.runner.STORE_PAUSE", 0.01)
    row_of: dict[str, Any] = {}
    work, away = scene.plane.database.work_long, 3

    async def flaky(unit: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal away
        if away and row_of:
            away -= 1
            raise DatabaseAwayError("away")
        return await work(unit, *args, **kwargs)

    async def issue(request: CertificateRequest) -> IssuedChain:
        scene.plane.database.work_long = flaky  # type: ignore[method-assign]
        row_of["away"] = True
        return scene.ca.signed(request)

    scene.ca.script = [issue]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scene.plane.order_runner.run)
        await trio.testing.wait_all_tasks_blocked(0.05)
        row = await scene.issue()
        with trio.fail_after(30):
            while (await work(lambda: scene.plane.certificates.show(1, row["id"])))["status"] == "pending":
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    assert away == 0, "the certificate waited for the database"
    assert len(scene.ca.requests) == 1


async def test_a_clock_that_was_set_back_keeps_no_claim_of_a_plane_that_ended(scene: Scene) -> None:
    row = await scene.issued()
    await scene.plane.certificates.renew(1, row["id"])
    scene.now += DAY
    assert (await scene.plane.order_runner._claims.claim())[0] != [], "and then it is killed"
    scene.now -= DAY
    assert await scene.another().order_runner.run_once() == 1


async def test_what_a_ca_has_issued_outlives_a_database_that_is_away_for_longer_than_a_claim(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    from certctrl.plane.errors import DatabaseAwayError

    for name, seconds in (("STORE_PAUSE", 0.01), ("LEASE_SECONDS", 0.2), ("EXTEND_SECONDS", 0.1)):
        monkeypatch.setattr(f"certctrl.plane.orders.runner.{name}", seconds)
    work, returns = scene.plane.database.work_long, 0.0

    async def flaky(unit: Any, *args: Any, **kwargs: Any) -> Any:
        if trio.current_time() < returns:
            raise DatabaseAwayError("away")
        return await work(unit, *args, **kwargs)

    async def issue(request: CertificateRequest) -> IssuedChain:
        nonlocal returns
        returns = trio.current_time() + 0.8
        return scene.ca.signed(request)

    row = await scene.issue()
    monkeypatch.setattr(scene.plane.database, "work_long", flaky)
    scene.ca.script = [issue]
    with trio.fail_after(30):
        assert await scene.plane.order_runner.run_once() == 1
    assert (await scene.certificate(row["id"]))["status"] == "active"
    assert len(scene.ca.requests) == 1
    assert scene.plane.order_runner._unstored == set()


async def test_an_attempt_begins_only_with_its_claim(scene: Scene) -> None:
    """It may have waited so long for its turn that its lease ended, and another plane works on the order."""
    row = await scene.issue()
    runner, other = scene.plane.order_runner, scene.another()
    scene.ca.script = [ValueError("fails once")]  # from now on the order has its key
    await runner.run_once()
    scene.now += 60
    (late,), _ = await runner._claims.claim()
    scene.now += LEASE_SECONDS + 1
    (job,), _ = await other.order_runner._claims.claim()
    before = (await scene.order(row["order_id"]))["attempts"]
    assert await scene.plane.work(runner._attempts.begin, late) is None
    assert (await scene.order(row["order_id"]))["attempts"] == before
    assert await other.work(other.order_runner._attempts.begin, job) is not None, "the other plane goes on"


async def test_a_plane_claims_no_order_that_it_works_on(scene: Scene) -> None:
    """Its lease may end because the machine slept, or because the database was away."""
    row = await scene.issue()
    pause = PausedIssue(scene)
    scene.ca.script = [pause]
    runner = scene.plane.order_runner
    async with trio.open_nursery() as nursery:
        nursery.start_soon(runner.run_once)
        await pause.reached.wait()
        scene.now += LEASE_SECONDS + 1
        assert await runner.run_once() == 0
        pause.go_on.set()
    assert (await scene.certificate(row["id"]))["status"] == "active"
    assert len(scene.ca.requests) == 1
