"""Rollouts of renewals together, on both engines: in each wave, a device gets its whole batch or nothing of it."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from functools import partial
from time import sleep
from typing import Any

import pytest
import trio
from engine_plane import WALL, registered
from renewing_fleet import CERT, Fleet, renewing_fleet

from certctrl.errors import PlaneError
from certctrl.model.features import ATOMIC_BATCH, CSR
from certctrl.model.plan import OutcomeKind
from certctrl.plane.rollouts.rollouts import RolloutRules
from certctrl.plane.settings import DAY
from certctrl.plane.storage.database import Database

OTHER = 2


@pytest.fixture
async def fleet(open_database: Callable[[], Database]) -> Fleet:
    """Five devices with two certificates, which switch batches together."""
    found = await renewing_fleet(open_database)
    sql = "UPDATE devices SET features = ?"
    await found.plane.work(found.plane.database.run, sql, f'["{ATOMIC_BATCH}"]')
    await found.plane.certificates.issue(1, ["other.example.com"], device_ids=found.devices)
    await found.ack(*range(5), cert_id=OTHER)
    return found


async def start(fleet: Fleet, *waves: str, certs: tuple[int, ...] = (CERT, OTHER), together: bool = True) -> int:
    unit = partial(fleet.plane.renewal_rollouts.start, 1, certs, RolloutRules(waves=waves or ("1",)), together=together)
    return int((await fleet.plane.work_long(unit))["id"])


async def told(fleet: Fleet) -> list[tuple[str, str]]:
    """Return the serial numbers that each device is told."""
    return [(await fleet.told(place), await fleet.told(place, OTHER)) for place in range(len(fleet.devices))]


async def newest(fleet: Fleet) -> tuple[str, str]:
    return await fleet.serial(), await fleet.serial(OTHER)


async def last_signals(fleet: Fleet, place: int) -> list[dict[str, Any]]:
    page = await fleet.plane.work(fleet.plane.stream.read, fleet.devices[place], None, 100)
    return [one["ref"] for one in page.signals[-2:]]


def whole(batch: list[dict[str, Any]], serials: tuple[str, str]) -> bool:
    """Return whether signals are those of one batch with two certificates."""
    (name,) = {one.get("batch", {}).get("id") for one in batch}
    size = {one.get("batch", {}).get("size") for one in batch}
    return (
        bool(name)
        and size == {2}
        and [(one["cert_id"], one["serial"]) for one in batch]
        == [
            (CERT, serials[0]),
            (OTHER, serials[1]),
        ]
    )


async def test_each_wave_gets_the_whole_batch(fleet: Fleet) -> None:
    rollout, former = await start(fleet, "1", "2"), await newest(fleet)
    await fleet.round()
    new = await newest(fleet)
    assert not {*new} & {*former}
    assert await told(fleet) == [new, *[former] * 4]
    assert whole(await last_signals(fleet, 0), new)
    listed = await fleet.plane.work(fleet.plane.certificates.page, fleet.devices[0], 0, 100)
    assert [row["batch"]["size"] for row in listed] == [2, 2]
    held = await fleet.plane.work(fleet.plane.certificates.page, fleet.devices[1], 0, 100)
    assert not any(row.get("batch") for row in held), "the former ones are of no batch"
    await fleet.ack(0)
    await fleet.round()
    assert await fleet.state(rollout) == ("running", "the proof of 1 device of wave 1"), "one of two is no proof"
    await fleet.ack(0, cert_id=OTHER)
    await fleet.round()
    assert await told(fleet) == [new, new, new, former, former]
    assert whole(await last_signals(fleet, 1), new), "a later wave gets one batch, too"
    for cert_id in (CERT, OTHER):
        await fleet.ack(1, 2, cert_id=cert_id)
    await fleet.round()
    for cert_id in (CERT, OTHER):
        await fleet.ack(3, 4, cert_id=cert_id)
    await fleet.round()
    assert await fleet.state(rollout) == ("done", "")
    assert (await newest(fleet), await fleet.keys()) == (new, 0), "each was issued once"


async def test_nothing_of_a_batch_is_delivered_before_all_of_it_is_issued(fleet: Fleet) -> None:
    rollout, former = await start(fleet), await newest(fleet)
    await fleet.plane.rollout_runner.round()
    order = await fleet.plane.work(fleet.plane.orders.open_of, OTHER)
    assert order is not None
    await fleet.plane.work(fleet.plane.orders.cancel, 1, order["id"])
    await fleet.plane.order_runner.run_once()
    assert await told(fleet) == [former] * 5
    await fleet.plane.rollout_runner.round()
    assert (await fleet.state(rollout))[0] == "halted"
    await fleet.plane.work(fleet.plane.rollouts.abort, 1, rollout)
    assert (await fleet.keys(), await newest(fleet)) == (0, former)
    assert await fleet.plane.work(fleet.plane.batches.open_batches, 1) == [], "its batch has ended with it"


async def test_a_set_is_renewed_whole_and_only_on_devices_of_the_wave(fleet: Fleet) -> None:
    await fleet.plane.work(fleet.plane.batches.mark, 1, "pair", [CERT, OTHER])
    former = await newest(fleet)
    await start(fleet, certs=(OTHER,), together=False)
    await fleet.round()
    new = await newest(fleet)
    assert await told(fleet) == [new, *[former] * 4]
    assert whole(await last_signals(fleet, 0), new)


async def test_due_sets_follow_the_plan_of_renewals(fleet: Fleet) -> None:
    await fleet.plane.work(fleet.plane.batches.mark, 1, "pair", [CERT, OTHER])
    await fleet.plane.work(fleet.plane.renewal_rollouts.set_default, 1, 4, RolloutRules(waves=("1",)))
    former = await newest(fleet)
    fleet.now[0] = WALL + 62 * DAY
    await fleet.plane.renewals.round()
    (shown,) = await fleet.plane.work(fleet.plane.rollouts.show_all, 1)
    assert [one["id"] for one in shown["certificates"]] == [CERT, OTHER]
    await fleet.plane.order_runner.run_once()
    assert await newest(fleet) == former, "neither is ordered before a device is released"
    await fleet.heard()
    await fleet.round()
    assert await told(fleet) == [await newest(fleet), *[former] * 4]


async def test_a_revoked_former_one_gives_its_devices_the_whole_batch(fleet: Fleet) -> None:
    await start(fleet)
    await fleet.round()
    new = await newest(fleet)
    await fleet.plane.certificates.revoke(1, CERT, serial_number=fleet.first)
    assert await told(fleet) == [new] * 5
    assert whole(await last_signals(fleet, 4), new)


async def test_a_device_that_asks_for_one_gets_the_whole_batch(fleet: Fleet) -> None:
    await start(fleet)
    former = await newest(fleet)
    await fleet.plane.certificates.renew(1, CERT, device_id=fleet.devices[3])
    await fleet.plane.order_runner.run_once()
    new = await newest(fleet)
    assert not {*new} & {*former}
    assert [place for place, serials in enumerate(await told(fleet)) if serials == new] == [3]
    await fleet.round()
    assert await newest(fleet) == new
    await fleet.plane.certificates.renew(1, OTHER, device_id=fleet.devices[2])
    assert await told(fleet) == [new, former, new, new, former]


async def test_the_end_of_a_life_releases_the_whole_batch(fleet: Fleet) -> None:
    rollout = await start(fleet)
    await fleet.round()
    new = await newest(fleet)
    await fleet.plane.work(fleet.plane.rollouts.abort, 1, rollout)
    fleet.now[0] = WALL + 81.5 * DAY
    await fleet.round()
    assert await told(fleet) == [new] * 5
    assert whole(await last_signals(fleet, 4), new)


async def test_a_failure_of_one_halts_and_forward_gives_all_of_it(fleet: Fleet) -> None:
    rollout = await start(fleet)
    await fleet.round()
    former, new = (await told(fleet))[1], await newest(fleet)
    await fleet.ack(0)
    await fleet.ack(0, cert_id=OTHER, outcome=OutcomeKind.ROLLED_BACK)
    await fleet.round()
    assert await fleet.state(rollout) == ("halted", "1 device failed, none may fail")
    assert await told(fleet) == [new, *[former] * 4]
    await fleet.plane.work(partial(fleet.plane.rollouts.abort, 1, rollout, forward=True))
    assert await told(fleet) == [new] * 5
    assert whole(await last_signals(fleet, 4), new)


async def test_hosts_that_share_nothing_do_not_wait_for_each_other(fleet: Fleet) -> None:
    alone, _ = await registered(fleet.plane, "alone")
    names = ["three.example.com", "four.example.com"]
    three, four = [int((await fleet.plane.certificates.issue(1, [one], device_ids=[alone]))["id"]) for one in names]
    await fleet.heard()
    former = await fleet.serial(three)
    await start(fleet, certs=(CERT, OTHER, three, four))
    await fleet.plane.rollout_runner.round()
    first, later = [await fleet.plane.work(fleet.plane.orders.open_of, cert_id) for cert_id in (CERT, three)]
    assert first is not None
    assert first["batch"]
    assert later is None, "its host is in a later wave"
    await fleet.round()
    assert await fleet.serial(three) == former
    assert await fleet.new() == [0]


async def test_keys_made_at_devices_are_not_renewed_with_a_shared_certificate(fleet: Fleet) -> None:
    """Devices of later waves would be told the one for their new key, and the former one of the shared certificate."""
    sql = "UPDATE devices SET features = ?"
    await fleet.plane.work(fleet.plane.database.run, sql, f'["{CSR}"]')
    for name in ("own.example.com", "mine.example.com"):
        await fleet.plane.certificates.issue(1, [name], device_ids=fleet.devices[:2], key_origin="device")
    sql = "UPDATE certificates SET serial_number = 'a' || id, not_before = ?, not_after = ? WHERE id > 2"
    await fleet.plane.work(fleet.plane.database.run, sql, WALL, WALL + 90 * DAY)
    await fleet.plane.work(lambda: [fleet.plane.orders.cancel_of(one, "") for one in range(3, 7)])
    with pytest.raises(PlaneError, match="Certificate 1 is on several devices"):
        await start(fleet, certs=(CERT, 3))
    await start(fleet, certs=(3, 5))
    await fleet.plane.rollout_runner.round()
    orders = [await fleet.plane.work(fleet.plane.orders.open_of, one) for one in range(3, 7)]
    wanted = [order["batch"] for order in orders if order is not None]
    assert (len(wanted), len(set(wanted))) == (2, 1), "those of the first device, as one batch"


async def test_what_cannot_be_renewed_together_is_refused(fleet: Fleet) -> None:
    with pytest.raises(PlaneError, match="A batch has 2 to"):
        await start(fleet, certs=(CERT,))
    assert await fleet.plane.work(fleet.plane.rollouts.show_all, 1) == []


@pytest.mark.parametrize("open_database", ["postgresql"], indirect=True)
async def test_a_release_and_another_change_do_not_wait_for_each_other(fleet: Fleet) -> None:
    """All certificates are locked, in one order, before the streams of devices; a deadlock would repeat one of the two."""
    await start(fleet)
    await fleet.round()
    plane, other = fleet.planes
    locked, runs = threading.Event(), Counter[str]()
    (rollout,) = await plane.work(plane.database.all, "SELECT * FROM rollouts")

    def waits() -> bool:
        other.database.one("SELECT pg_stat_clear_snapshot()")
        sql = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock' LIMIT 1"
        return other.database.one(sql) is not None

    def signal() -> None:
        runs["signal"] += 1
        other.certificates._table.locked(1, OTHER)
        locked.set()
        while not waits():
            sleep(0.01)
        other.stream.append(fleet.devices[1], "cert.renewed", {"cert_id": OTHER, "serial": "a"})

    def release() -> None:
        runs["release"] += 1
        assert locked.wait(60)
        plane.renewal_rollouts.release(rollout, fleet.devices[1:3])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other.work_long, signal)
        nursery.start_soon(plane.work_long, release)
    assert runs == {"signal": 1, "release": 1}
    assert await told(fleet) == [await newest(fleet)] * 3 + (await told(fleet))[3:]
