"""What is renewed in waves, on both engines: keys made at devices, renewals that are due, sets, and what is refused."""

from __future__ import annotations

import base64
from collections.abc import Callable

import pytest
from csrs import csr
from engine_plane import WALL
from renewing_fleet import CERT, Fleet, renewing_fleet

from certctrl.errors import PlaneError
from certctrl.model.features import CSR
from certctrl.model.plan import OutcomeKind
from certctrl.plane.audit.log import Filter
from certctrl.plane.devices.acks import Ack
from certctrl.plane.orders.orders import OrderRequest
from certctrl.plane.rollouts.rollouts import RolloutRules
from certctrl.plane.settings import DAY
from certctrl.plane.storage.database import Database


@pytest.fixture
async def fleet(open_database: Callable[[], Database]) -> Fleet:
    return await renewing_fleet(open_database)


async def test_waves_order_which_keys_made_at_devices_are_renewed_when(fleet: Fleet) -> None:
    for device in fleet.devices[:3]:
        sql = "UPDATE devices SET features = ? WHERE id = ?"
        await fleet.plane.work(fleet.plane.database.run, sql, f'["{CSR}"]', device)
    made = await fleet.plane.certificates.issue(
        1, ["own.example.com"], device_ids=fleet.devices[:3], key_origin="device"
    )
    ids = [made["id"], *made["made_for_others"]]
    assert len(ids) == 3
    with pytest.raises(PlaneError, match="is not issued yet"):
        await fleet.start(certs=(made["id"],))
    sql = "UPDATE certificates SET serial_number = 'a' || id, not_before = ?, not_after = ? WHERE id > 1"
    await fleet.plane.work(fleet.plane.database.run, sql, WALL, WALL + 90 * DAY)
    await fleet.plane.work(lambda: [fleet.plane.orders.cancel_of(one, "") for one in ids])
    rollout = await fleet.start("1", certs=(made["id"],))
    await fleet.plane.rollout_runner.round()
    assert await asked(fleet, ids) == ids[:1]
    ack = Ack(
        type="cert.csr_wanted", ts_ms=1, ref={"cert_id": ids[0], "order_id": await order_of(fleet, ids[0])},
        outcome=OutcomeKind.FAILED, detail="no entropy",
    )  # fmt: skip
    await fleet.plane.work(fleet.plane.reports.store, fleet.devices[0], [ack])
    await fleet.plane.rollout_runner.round()
    assert await fleet.state(rollout) == ("halted", "1 device failed, none may fail")
    assert await asked(fleet, ids) == ids[:1]


async def test_a_device_that_has_made_its_key_gets_the_certificate_for_it(fleet: Fleet) -> None:
    """It was ordered before the rollout. Told the former one, the device would remove the key as unwanted."""
    sql = "UPDATE devices SET features = ?"
    await fleet.plane.work(fleet.plane.database.run, sql, f'["{CSR}"]')
    made = await fleet.plane.certificates.issue(1, ["own.example.com"], device_ids=fleet.devices, key_origin="device")
    ids = [made["id"], *made["made_for_others"]]
    for place, cert_id in enumerate(ids):
        await send_csr(fleet, place, cert_id)
    first = await fleet.serial(ids[4])
    await fleet.plane.certificates.renew(1, ids[4])
    await fleet.start("1", certs=(made["id"],))
    await send_csr(fleet, 4, ids[4])
    assert await fleet.serial(ids[4]) != first
    assert await fleet.told(4, ids[4]) == await fleet.serial(ids[4])
    page = await fleet.plane.work(fleet.plane.stream.read, fleet.devices[4], None, 100)
    assert page.signals[-1]["ref"] == {"cert_id": ids[4], "serial": await fleet.serial(ids[4])}


async def send_csr(fleet: Fleet, place: int, cert_id: int) -> None:
    """Answer the open order of a certificate with a request for a new key, and have it issued."""
    text = base64.b64encode(csr(["own.example.com"])).decode()
    pem = f"-----BEGIN CERTIFICATE REQUEST-----\n{text}\n-----END CERTIFICATE REQUEST-----\n"
    order = await order_of(fleet, cert_id)
    await fleet.plane.work(fleet.plane.device_keys.receive, fleet.devices[place], cert_id, order, pem)
    await fleet.plane.order_runner.run_once()


async def asked(fleet: Fleet, ids: list[int]) -> list[int]:
    """Return the certificates with an open order."""
    return [one for one in ids if await fleet.plane.work(fleet.plane.orders.open_of, one)]


async def order_of(fleet: Fleet, cert_id: int) -> int:
    order = await fleet.plane.work(fleet.plane.orders.open_of, cert_id)
    assert order is not None
    return int(order["id"])


async def test_renewals_that_are_due_follow_a_plan_if_many_devices_share_them(fleet: Fleet) -> None:
    plan = RolloutRules(waves=("1",), canary="nowhere", max_failures=1)
    await fleet.plane.work(fleet.plane.renewal_rollouts.set_default, 1, 4, plan)
    await fleet.plane.certificates.issue(1, ["few.example.com"], device_ids=fleet.devices[:4])
    fleet.now[0] = WALL + 62 * DAY
    for plane in fleet.planes:
        await plane.renewals.round()
    (shown,) = await fleet.plane.work(fleet.plane.rollouts.show_all, 1)
    assert (shown["kind"], shown["what"]) == ("renewal", "the renewal of certificate 1 (www.example.com)")
    assert [wave["devices"] for wave in shown["waves"]] == [1, 4]
    (entry,) = await fleet.plane.work(fleet.plane.audit.page, Filter(what="rollout.start"), 0, 9)
    assert (entry["who"], entry["via"], entry["detail"]) == ("plane", "renewals", {"note": "due"})
    assert [(one["kind"], one["id"]) for one in entry["objects"]] == [("rollout", "1"), ("certificate", "1")]
    few = await fleet.serial(2)
    await fleet.plane.order_runner.run_once()
    assert (await fleet.serial(2)) != few
    assert await fleet.serial() == fleet.first
    await fleet.heard()
    await fleet.round()
    assert await fleet.new() == [0]
    off = await fleet.plane.work(fleet.plane.renewal_rollouts.set_default, 1, None, RolloutRules())
    assert off == {"over": None}


async def test_what_cannot_go_in_waves_is_refused_and_nothing_starts(fleet: Fleet) -> None:
    await fleet.plane.certificates.issue(1, ["none.example.com"])
    await fleet.plane.certificates.issue(1, ["set.example.com"], device_ids=fleet.devices)
    for certs, what in (((2,), "No device has any"), ((99,), "No such certificate")):
        with pytest.raises(PlaneError, match=what):
            await fleet.start(certs=certs)
    await fleet.plane.certificates.revoke(1, 3)
    with pytest.raises(PlaneError, match="is revoked"):
        await fleet.start(certs=(3,))
    with pytest.raises(PlaneError, match="matches the canary"):
        await fleet.start(canary="nowhere")
    assert await fleet.plane.work(fleet.plane.rollouts.show_all, 1) == []
    assert await fleet.keys() == 0
    preview = fleet.plane.renewal_rollouts.start
    done = await fleet.plane.work(lambda: preview(1, [CERT], RolloutRules(waves=("2",)), dry_run=True))
    assert (done["id"], [wave["devices"] for wave in done["waves"]]) == (None, [2, 3])
    assert await fleet.plane.work(fleet.plane.rollouts.show_all, 1) == []


async def test_what_is_renewed_together_and_what_is_renewed_in_waves_exclude_each_other(fleet: Fleet) -> None:
    other = await fleet.plane.certificates.issue(1, ["other.example.com"], device_ids=fleet.devices)
    request = OrderRequest(action="renew")
    await fleet.plane.work(fleet.plane.batches.start, 1, [CERT, other["id"]], request)
    with pytest.raises(PlaneError, match="is being renewed together with others"):
        await fleet.start()
    await fleet.plane.order_runner.run_once()
    first = await fleet.serial()
    await fleet.start("1")
    await fleet.plane.work(fleet.plane.batches.mark, 1, "pair", [CERT, other["id"]])
    await fleet.plane.certificates.renew(1, other["id"])
    await fleet.plane.order_runner.run_once()
    assert await fleet.serial() == first, "its rollout has released no device"
    assert await fleet.serial(other["id"]) != other["serial_number"]
