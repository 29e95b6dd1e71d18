"""Rollouts of renewals on both engines: what devices are told, proof, halts, aborts, revocations, and the end of a life."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from engine_plane import WALL, registered
from renewing_fleet import CERT, Fleet, renewing_fleet

from certctrl.errors import CertctrlError, PlaneError
from certctrl.model.causes import Cause, Reason, Step
from certctrl.model.plan import OutcomeKind
from certctrl.plane.audit.log import Filter
from certctrl.plane.devices.acks import Ack
from certctrl.plane.devices.sessions import DeviceSession
from certctrl.plane.settings import DAY
from certctrl.plane.storage.database import Database


@pytest.fixture
async def fleet(open_database: Callable[[], Database]) -> Fleet:
    return await renewing_fleet(open_database)


async def test_each_wave_gets_the_renewed_certificate_by_the_proof_of_the_one_before(fleet: Fleet) -> None:
    rollout = await fleet.start("1", "2")
    assert await fleet.serial() == fleet.first, "nothing is issued before the first device is released"
    etags = [await etag(fleet, place) for place in range(5)]
    await fleet.round()
    new = await fleet.serial()
    assert new != fleet.first
    assert await fleet.new() == [0]
    assert [await etag(fleet, place) == etags[place] for place in range(5)] == [False, True, True, True, True]
    assert [(await fleet.signals(place))[-1] for place in (0, 1)] == [
        ("cert.renewed", new),
        ("cert.renewed", fleet.first),
    ]
    await fleet.round()
    assert await fleet.state(rollout) == ("running", "the proof of 1 device of wave 1")
    await fleet.ack(0, serial=fleet.first)
    await fleet.round()
    assert await fleet.new() == [0], "an outcome of the former one is no proof"
    await fleet.ack(0)
    await fleet.round()
    assert await fleet.new() == [0, 1, 2]
    assert await fleet.keys() == 1
    await fleet.ack(1, 2)
    await fleet.round()
    assert (await fleet.new(), await fleet.keys()) == ([0, 1, 2, 3, 4], 0), (
        "the former key is gone with its last device"
    )
    await fleet.ack(3, 4)
    await fleet.round()
    assert await fleet.state(rollout) == ("done", "")
    assert await fleet.serial() == new, "it was issued once"
    assert (await fleet.signals(4)).count(("cert.renewed", new)) == 1
    entries = await fleet.plane.work(fleet.plane.audit.page, Filter(who="plane"), 0, 100)
    assert [entry["action"] for entry in reversed(entries)] == [*["rollout.release"] * 3, "rollout.end"]


async def etag(fleet: Fleet, place: int) -> str:
    session = DeviceSession(fleet.devices[place], 1, 0)
    (found,) = await fleet.plane.work(fleet.plane.certificates.materials_of, [(session, (CERT, ""))])
    assert not isinstance(found, CertctrlError)
    return found.etag


async def test_a_failure_halts_and_the_others_keep_the_former_one(fleet: Fleet) -> None:
    rollout = await fleet.start("2")
    await fleet.round()
    await fleet.ack(0)
    await fleet.ack(1, outcome=OutcomeKind.ROLLED_BACK)
    await fleet.round()
    assert await fleet.state(rollout) == ("halted", "1 device failed, none may fail")
    await fleet.round()
    assert await fleet.new() == [0, 1]
    assert [one.name for one in fleet.plane.problems.now()] == ["rollout_halted"]
    with pytest.raises(PlaneError, match="Rollout 1 renews certificate 1, and is halted: abort it first"):
        await fleet.plane.certificates.renew(1, CERT)
    with pytest.raises(PlaneError, match="Rollout 1 renews certificate 1"):
        await fleet.start()
    (row,) = await fleet.plane.bulk.renew(1, [CERT], "")
    assert "Rollout 1 renews" in row["problem"]
    await fleet.plane.work(fleet.plane.rollouts.resume, 1, rollout)
    await fleet.round()
    assert await fleet.new() == [0, 1, 2, 3, 4]


async def test_a_maintenance_window_is_no_failure(fleet: Fleet) -> None:
    rollout = await fleet.start("1")
    await fleet.round()
    ack = Ack(
        type="cert.renewed", ts_ms=int(fleet.now[0] * 1000), outcome=OutcomeKind.FAILED,
        ref={"cert_id": CERT, "serial": await fleet.serial()}, detail="waits for its window",
        cause=Cause(Step.PLAN, Reason.WINDOW),
    )  # fmt: skip
    await fleet.plane.work(fleet.plane.reports.store, fleet.devices[0], [ack])
    await fleet.round()
    assert await fleet.state(rollout) == ("running", "the proof of 1 device of wave 1")


async def test_abort_leaves_devices_where_they_are_until_the_former_one_is_near_its_end(fleet: Fleet) -> None:
    rollout = await fleet.start("1")
    await fleet.round()
    new = await fleet.serial()
    await fleet.plane.work(fleet.plane.rollouts.abort, 1, rollout)
    fleet.now[0] = WALL + 80 * DAY
    await fleet.round()
    assert await fleet.new() == [0]
    fleet.now[0] = WALL + 81.01 * DAY
    await fleet.round()
    assert [await fleet.told(place) for place in range(5)] == [new] * 5
    assert ((await fleet.signals(4))[-1], await fleet.keys()) == (("cert.renewed", new), 0)


async def test_abort_forward_gives_all_devices_the_renewed_one(fleet: Fleet) -> None:
    rollout = await fleet.start("1")
    await fleet.round()
    await fleet.plane.work(fleet.plane.rollouts.abort, 1, rollout)
    assert await fleet.new() == [0]
    await fleet.plane.work(lambda: fleet.plane.rollouts.abort(1, rollout, forward=True))
    assert (await fleet.new(), await fleet.keys()) == ([0, 1, 2, 3, 4], 0)


async def test_abort_before_anything_is_issued_ends_the_order_and_all_holds(fleet: Fleet) -> None:
    rollout = await fleet.start("1")
    await fleet.plane.rollout_runner.round()
    await fleet.plane.work(fleet.plane.rollouts.abort, 1, rollout)
    await fleet.plane.order_runner.run_once()
    assert (await fleet.serial(), await fleet.keys()) == (fleet.first, 0)
    await fleet.plane.certificates.renew(1, CERT)
    assert await fleet.new() == [0, 1, 2, 3, 4]


async def test_a_renewal_after_an_abort_reaches_all_devices(fleet: Fleet) -> None:
    rollout = await fleet.start("1")
    await fleet.round()
    await fleet.plane.work(fleet.plane.rollouts.abort, 1, rollout)
    await fleet.plane.certificates.renew(1, CERT)
    newest = await fleet.serial()
    assert [await fleet.told(place) for place in range(5)] == [newest] * 5
    assert await fleet.keys() == 0


async def test_a_second_rollout_after_an_abort_holds_each_device_where_it_is(fleet: Fleet) -> None:
    first = await fleet.start("1")
    await fleet.round()
    second_serial = await fleet.serial()
    await fleet.plane.work(fleet.plane.rollouts.abort, 1, first)
    await fleet.start("1", canary="", serial="")
    assert [await fleet.told(place) for place in range(3)] == [second_serial, fleet.first, fleet.first]
    await fleet.round()
    third = await fleet.serial()
    assert len({fleet.first, second_serial, third}) == 3
    assert [await fleet.told(place) for place in range(3)] == [third, fleet.first, fleet.first]
    await fleet.ack(0)
    await fleet.round()
    assert [await fleet.told(place) for place in range(5)] == [third] * 5


async def test_a_revocation_reaches_all_devices_at_once(fleet: Fleet) -> None:
    rollout = await fleet.start("1")
    await fleet.round()
    await fleet.plane.certificates.revoke(1, CERT)
    assert [(await fleet.signals(place))[-1][0] for place in range(5)] == ["cert.revoked"] * 5
    for place in range(5):
        with pytest.raises(PlaneError, match="revoked"):
            await fleet.plane.work(fleet.plane.certificates.materials, fleet.devices[place], CERT)
    assert await fleet.keys() == 0, "the former key is gone"
    await fleet.round()
    assert await fleet.state(rollout) == ("aborted", "its certificates are revoked")


async def test_a_replacement_reaches_all_devices_at_once(fleet: Fleet) -> None:
    await fleet.start("1")
    await fleet.round()
    await fleet.plane.certificates.revoke(1, CERT, replace=True)
    newest = await fleet.serial()
    assert [(await fleet.signals(place))[-1] for place in range(5)] == [("cert.renewed", newest)] * 5
    assert [await fleet.told(place) for place in range(5)] == [newest] * 5


async def test_revoking_the_former_one_gives_its_devices_the_renewed_one(fleet: Fleet) -> None:
    await fleet.start("1")
    await fleet.round()
    new = await fleet.serial()
    await fleet.plane.certificates.revoke(1, CERT, serial_number=fleet.first)
    assert [await fleet.told(place) for place in range(5)] == [new] * 5
    assert (await fleet.signals(4))[-1] == ("cert.renewed", new)


async def test_a_freeze_and_a_pause_hold_back_but_not_the_end_of_a_life(fleet: Fleet) -> None:
    rollout = await fleet.start("1")
    await fleet.plane.work(fleet.plane.rollouts.freeze, 1, "the fair")
    await fleet.round()
    assert await fleet.state(rollout) == ("running", "the end of the freeze: the fair")
    await fleet.plane.work(fleet.plane.rollouts.pause, 1, rollout)
    fleet.now[0] = WALL + 70 * DAY
    await fleet.round()
    assert (await fleet.new(), await fleet.serial()) == ([], fleet.first)
    for plane in fleet.planes:
        await plane.renewals.round()
    await fleet.round()
    assert await fleet.serial() == fleet.first, "what a rollout is to renew is not renewed behind its back"
    (late,) = [one for one in fleet.plane.problems.now() if one.name == "renewals_late"]
    assert late.what.endswith("rollout 1 is to renew it: cert-ctrl plane rollout status 1")
    fleet.now[0] = WALL + 82 * DAY
    await fleet.round()
    assert await fleet.new() == [0, 1, 2, 3, 4]
    entries = await fleet.plane.work(fleet.plane.audit.page, Filter(what="rollout.release"), 0, 9)
    assert [entry["detail"] for entry in entries] == [{"near_end": 5}]


async def test_a_device_that_is_assigned_meanwhile_gets_the_proven_one(fleet: Fleet) -> None:
    rollout = await fleet.start("1")
    await fleet.round()
    added, _ = await registered(fleet.plane, "new")
    await fleet.plane.certificates.assign(1, added, CERT)
    fleet.devices.append(added)
    assert await fleet.new() == [0]
    assert await fleet.signals(5) == [("cert.renewed", fleet.first)]
    await fleet.plane.certificates.unassign(1, fleet.devices[4], CERT)
    fleet.devices.pop(4)
    await fleet.heard()
    await fleet.ack(0)
    await fleet.round()
    await fleet.ack(1, 2, 3)
    await fleet.round()
    assert await fleet.state(rollout) == ("done", "")
    assert (await fleet.new(), await fleet.keys()) == ([0, 1, 2, 3, 4], 0)


async def test_a_device_that_asks_for_a_renewal_gets_it(fleet: Fleet) -> None:
    await fleet.start("1")
    await fleet.round()
    new = await fleet.serial()
    done = await fleet.plane.certificates.renew(1, CERT, device_id=fleet.devices[3])
    assert (done["serial_number"], await fleet.new()) == (new, [0, 3])
    assert (await fleet.signals(3))[-1] == ("cert.renewed", new)


async def test_a_failed_order_fails_its_device(fleet: Fleet) -> None:
    rollout = await fleet.start("1")
    await fleet.plane.rollout_runner.round()
    order = await fleet.plane.work(fleet.plane.orders.open_of, CERT)
    assert order is not None
    await fleet.plane.work(fleet.plane.orders.cancel, 1, order["id"])
    await fleet.plane.rollout_runner.round()
    assert await fleet.state(rollout) == ("halted", "1 device failed, none may fail")
    (row,) = (await fleet.plane.work(fleet.plane.rollouts.show, 1, rollout))["devices"]
    assert (row["state"], row["detail"]) == ("failed", "cancelled by an operator")


async def test_a_round_that_is_lost_is_repeated(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    rollout = await fleet.start("1")
    await fleet.round()
    await fleet.ack(0)

    def crash(*_: Any, **__: Any) -> None:
        raise RuntimeError("killed")

    with monkeypatch.context() as killed:
        killed.setattr(fleet.plane.rollout_runner, "_set", crash)
        with pytest.raises(RuntimeError):
            await fleet.plane.rollout_runner.round()
    assert await fleet.new() == [0]
    await fleet.planes[1].rollout_runner.round()
    assert await fleet.new() == [0, 1, 2, 3, 4]
    assert (await fleet.state(rollout))[0] == "running"


async def test_many_devices_are_released_in_parts_that_another_plane_continues(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    rollout = await fleet.start("1")
    await fleet.round()
    monkeypatch.setattr("certctrl.plane.rollouts.changes.MAX_RELEASED", 2)
    await fleet.plane.work(lambda: fleet.plane.rollouts.abort(1, rollout, forward=True))
    assert await fleet.new() == [0, 1, 2], "the rest is for the runner"
    new = await fleet.serial()
    await fleet.planes[1].rollout_runner.round()  # the first one has died
    assert (await fleet.new(), await fleet.keys()) == ([0, 1, 2, 3, 4], 0)
    shown = await fleet.plane.work(fleet.plane.rollouts.show, 1, rollout)
    assert [wave["states"] for wave in shown["waves"]] == [{"released": 1}, {"released": 4}]
    assert [(await fleet.signals(place)).count(("cert.renewed", new)) for place in range(5)] == [1] * 5
    await fleet.plane.work(lambda: fleet.plane.rollouts.abort(1, rollout, forward=True))
    await fleet.planes[1].rollout_runner.round()
    assert [(await fleet.signals(place)).count(("cert.renewed", new)) for place in range(5)] == [1] * 5


async def test_the_end_of_a_rollout_gives_the_rest_the_renewed_one_in_parts(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("certctrl.plane.rollouts.changes.MAX_RELEASED", 2)
    rollout = await fleet.start("1")
    await fleet.round()
    for number in range(3):
        added, _ = await registered(fleet.plane, f"new-{number}")
        await fleet.plane.certificates.assign(1, added, CERT)
        fleet.devices.append(added)
    await fleet.heard()
    await fleet.ack(0)
    await fleet.round()
    await fleet.ack(1, 2, 3, 4)
    assert await fleet.new() == [0, 1, 2, 3, 4]
    await fleet.round()
    assert (await fleet.new(), await fleet.keys()) == (list(range(8)), 0)
    assert await fleet.state(rollout) == ("done", "")
    entries = await fleet.plane.work(fleet.plane.audit.page, Filter(what="rollout.end"), 0, 9)
    assert len(entries) == 1
