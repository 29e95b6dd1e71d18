"""Rollouts of renewals on both engines: what devices are told, proof, halts, aborts, revocations, and the end of a life."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import attrs
import pytest
from csrs import csr
from engine_plane import WALL, plane_on, registered

from certctrl.errors import CertctrlError, PlaneError
from certctrl.model.causes import Cause, Reason, Step
from certctrl.model.features import CSR
from certctrl.model.plan import OutcomeKind
from certctrl.plane.audit.log import Filter
from certctrl.plane.core import Plane
from certctrl.plane.devices.acks import Ack
from certctrl.plane.devices.sessions import DeviceSession
from certctrl.plane.orders.orders import OrderRequest
from certctrl.plane.rollouts.rollouts import RolloutRules
from certctrl.plane.settings import DAY
from certctrl.plane.storage.database import Database
from certctrl.plane.storage.keyring import Keyring

CERT = 1


@attrs.define
class Fleet:
    """Five devices that share a certificate, and two planes that they use."""

    planes: list[Plane]
    devices: list[int]
    now: list[float]
    first: str = ""
    """Serial number of the certificate at the start."""

    @property
    def plane(self) -> Plane:
        return self.planes[0]

    async def start(self, *waves: str, certs: tuple[int, ...] = (CERT,), **rules: Any) -> int:
        given = RolloutRules(waves=waves or ("1", "2"), **rules)
        done = await self.plane.work_long(self.plane.renewal_rollouts.start, 1, certs, given)
        return int(done["id"])

    async def round(self) -> None:
        for plane in self.planes:
            await plane.rollout_runner.round()
            await plane.order_runner.run_once()

    async def serial(self, cert_id: int = CERT) -> str:
        return str((await self.plane.work(self.plane.certificates.show, 1, cert_id))["serial_number"])

    async def told(self, place: int, cert_id: int = CERT) -> str:
        """Return the serial number that a device is told, after checking that all answers agree."""
        device, certificates = self.devices[place], self.plane.certificates
        detail = await self.plane.work(certificates.detail, device, cert_id)
        (row,) = [one for one in await self.plane.work(certificates.page, device, 0, 100) if one["id"] == cert_id]
        (listed,) = [one for one in (await self.plane.work(certificates.list_of, device)).rows if one["id"] == cert_id]
        serials = {detail["serial_number"], row["serial_number"], listed["serial_number"]}
        if row["status"] != "revoked":
            material = await self.plane.work(certificates.materials, device, cert_id)
            assert material["certificate_pem"] == detail["certificate_pem"]
            serials.add(material["serial_number"])
        (serial,) = serials
        return str(serial)

    async def new(self) -> list[int]:
        """Return the devices that are told another certificate than the first, by their place."""
        return [place for place in range(len(self.devices)) if await self.told(place) != self.first]

    async def signals(self, place: int) -> list[tuple[str, str]]:
        """Return the signals of a device about its certificate, with their serial numbers."""
        page = await self.plane.work(self.plane.stream.read, self.devices[place], None, 100)
        return [
            (one["type"], one["ref"].get("serial", "")) for one in page.signals if one["ref"].get("cert_id") == CERT
        ]

    async def ack(
        self, *places: int, outcome: OutcomeKind = OutcomeKind.APPLIED, serial: str = "", cert_id: int = CERT
    ) -> None:
        serial = serial or await self.serial(cert_id)
        good = outcome in (OutcomeKind.APPLIED, OutcomeKind.UNCHANGED)
        for place in places:
            ack = Ack(
                type="cert.renewed", ts_ms=int(self.now[0] * 1000), ref={"cert_id": cert_id, "serial": serial},
                outcome=outcome, detail="" if good else "because",
                deployed=[{"cert_id": cert_id, "serial": serial, "served": True}] if good else [],
            )  # fmt: skip
            self.now[0] += 1
            await self.plane.work(self.plane.reports.store, self.devices[place], [ack])

    async def heard(self) -> None:
        for device in self.devices:
            self.plane.devices.seen(device, "192.0.2.7", "", self.now[0])
        await self.plane.work(self.plane.devices.save_sightings)

    async def state(self, rollout: int) -> tuple[str, str]:
        shown = await self.plane.work(self.plane.rollouts.show, 1, rollout)
        return shown["state"], shown["reason"] or shown["waits"]

    async def keys(self) -> int:
        """Return the number of former versions that the plane keeps."""
        rows = await self.plane.work(self.plane.database.all, "SELECT 1 FROM held_certificates")
        return len(rows)


@pytest.fixture
async def fleet(open_database: Callable[[], Database]) -> Fleet:
    keyring, now = Keyring.open(None), [WALL]
    planes = [plane_on(open_database(), keyring, wall_now=lambda: now[0]) for _ in range(2)]
    devices = [(await registered(planes[0], f"d{number}"))[0] for number in range(5)]
    found = Fleet(planes, devices, now)
    await planes[0].certificates.issue(1, ["www.example.com"], device_ids=devices)
    found.first = await found.serial()
    now[0] += 100
    await found.ack(*range(5))
    await found.heard()
    return found


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
    await fleet.plane.work(fleet.plane.batches.mark, 1, "pair", [CERT, 3])
    for certs, what in (((2,), "No device has any"), ((3,), "in the set pair"), ((99,), "No such certificate")):
        with pytest.raises(PlaneError, match=what):
            await fleet.start(certs=certs)
    await fleet.plane.work(fleet.plane.batches.mark, 1, "pair", [])
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
