"""Rollouts of imports, on both engines: an imported certificate reaches its devices as a renewed one does."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from device_key_site import NAMES, Site
from engine_plane import WALL
from made_chains import Made, made, pki
from plane_world import World
from renewing_fleet import CERT, Fleet, renewing_fleet

from certctrl.errors import PlaneError
from certctrl.plane.audit.log import Filter
from certctrl.plane.certificates.imports import ImportRequest
from certctrl.plane.rollouts.rollouts import RolloutRules
from certctrl.plane.settings import DAY
from certctrl.plane.storage.database import Database, Row

ROOT, MIDDLE = pki()
NAME = "www.example.com"


def leaf(name: str = NAME, age: float = 0, **options: Any) -> Made:
    return made(name, MIDDLE, names=[name], start=WALL - 60 - age, **options)


def request(one: Made) -> ImportRequest:
    return ImportRequest(certificate_pem=one.pem, private_key_pem=one.key_pem, chain_pem=MIDDLE.pem)


@pytest.fixture
async def fleet(open_database: Callable[[], Database]) -> Fleet:
    return await renewing_fleet(open_database)


async def bring_in(fleet: Fleet, one: Made, *waves: str, **options: Any) -> dict[str, Any]:
    """Import a certificate, in waves if there are any."""

    def roll_out(certificate: Row) -> dict[str, Any]:
        return fleet.plane.renewal_rollouts.begin_import(certificate, RolloutRules(waves=waves), "")

    return await fleet.plane.imports.add(1, request(one), roll_out=roll_out if waves else None, **options)


async def test_each_wave_gets_the_imported_one_by_the_proof_of_the_one_before(fleet: Fleet) -> None:
    done = await bring_in(fleet, leaf(), "1", "2", cert_id=CERT)
    rollout, new = done["rollout"]["id"], done["serial_number"]
    assert (done["issuer"], await fleet.new()) == ("import", [])
    await fleet.round()
    assert await fleet.new() == [0]
    assert [(await fleet.signals(place))[-1] for place in (0, 1)] == [
        ("cert.renewed", new),
        ("cert.renewed", fleet.first),
    ]
    await fleet.round()
    assert await fleet.state(rollout) == ("running", "the proof of 1 device of wave 1")
    await fleet.ack(0)
    await fleet.round()
    assert (await fleet.new(), await fleet.keys()) == ([0, 1, 2], 1)
    await fleet.ack(1, 2)
    await fleet.round()
    await fleet.ack(3, 4)
    await fleet.round()
    assert await fleet.state(rollout) == ("done", "")
    assert ([await fleet.told(place) for place in range(5)], await fleet.keys()) == ([new] * 5, 0)


async def test_the_next_import_renews_the_former_one_in_waves(fleet: Fleet) -> None:
    first = await bring_in(fleet, leaf(age=100), cert_id=CERT)
    fleet.first = first["serial_number"]
    assert [await fleet.told(place) for place in range(5)] == [fleet.first] * 5
    again = await bring_in(fleet, newer := leaf(), "2")
    assert again["id"] == CERT
    await fleet.round()
    assert await fleet.new() == [0, 1]
    same = await bring_in(fleet, newer, "2")
    assert (same["rollout"], same["notes"][-1]) == (None, "this certificate was imported already")
    with pytest.raises(PlaneError, match="Rollout 1 renews certificate 1, and is running: abort it first"):
        await bring_in(fleet, leaf())
    assert await fleet.new() == [0, 1], "nothing was imported"


async def test_abort_and_forward(fleet: Fleet) -> None:
    done = await bring_in(fleet, leaf(), "1", cert_id=CERT)
    await fleet.round()
    rollout = done["rollout"]["id"]
    await fleet.plane.work(fleet.plane.rollouts.abort, 1, rollout)
    assert await fleet.new() == [0]
    await fleet.plane.work(lambda: fleet.plane.rollouts.abort(1, rollout, forward=True))
    assert (await fleet.new(), await fleet.keys()) == ([0, 1, 2, 3, 4], 0)


async def test_an_import_after_an_abort_reaches_all_devices(fleet: Fleet) -> None:
    done = await bring_in(fleet, leaf(age=100), "1", cert_id=CERT)
    await fleet.round()
    await fleet.plane.work(fleet.plane.rollouts.abort, 1, done["rollout"]["id"])
    newest = (await bring_in(fleet, leaf()))["serial_number"]
    assert ([await fleet.told(place) for place in range(5)], await fleet.keys()) == ([newest] * 5, 0)


async def test_the_end_of_a_life_and_a_revocation_do_not_wait(fleet: Fleet) -> None:
    done = await bring_in(fleet, leaf(end=WALL + 360 * DAY), "1", cert_id=CERT)
    await fleet.round()
    fleet.now[0] = WALL + 82 * DAY
    await fleet.round()
    assert await fleet.new() == [0, 1, 2, 3, 4]
    await fleet.plane.certificates.revoke(1, CERT)
    assert [(await fleet.signals(place))[-1][0] for place in range(5)] == ["cert.revoked"] * 5
    await fleet.round()
    assert await fleet.state(done["rollout"]["id"]) == ("aborted", "its certificates are revoked")


async def test_what_renews_nothing_is_imported_without_waves(fleet: Fleet) -> None:
    with pytest.raises(PlaneError, match=r"no certificate for new\.example\.com that it renews"):
        await bring_in(fleet, leaf("new.example.com"), "1")
    await bring_in(fleet, leaf("new.example.com", age=100))
    with pytest.raises(PlaneError, match="No device has any"):
        await bring_in(fleet, leaf("new.example.com"), "1")
    with pytest.raises(PlaneError, match="is older than the certificate in use"):
        await bring_in(fleet, leaf(age=20 * DAY), "1", cert_id=CERT)
    assert await fleet.plane.work(fleet.plane.rollouts.show_all, 1) == []


async def test_a_key_that_a_device_has_made_is_replaced_without_waves(open_database: Callable[[], Database]) -> None:
    site = Site(open_database())
    device, other = [await site.device(name, "csr") for name in ("web-1", "web-2")]
    cert_id = (await site.issue(device))["id"]
    former = await site.meets(device, cert_id)
    one = made(NAMES[0], MIDDLE, names=NAMES, start=site.now - 60)

    def roll_out(certificate: Row) -> dict[str, Any]:
        return site.plane.renewal_rollouts.begin_import(certificate, RolloutRules(waves=("1",)), "")

    add = partial(site.plane.imports.add, 1, request(one), cert_id=cert_id, device_ids=[other])
    with pytest.raises(PlaneError, match="is made at its only device: import it without waves"):
        await add(roll_out=roll_out)
    shown = await site.shown(cert_id)
    assert (shown["serial_number"], shown["device_ids"]) == (former["serial_number"], [device])
    new = (await add())["serial_number"]
    assert [(await site.detail(each, cert_id))["serial_number"] for each in (device, other)] == [new, new]


async def test_operators_import_in_waves_and_try_it_first(world: World) -> None:
    device = await world.device()
    await world.operator("POST", "/apiv1/users/1/certificates", {"domain_name": NAME, "device_ids": [device.id]})
    now = world.clock.wall
    one = made(NAME, MIDDLE, names=[NAME], start=now - 60, end=now + 90 * DAY)
    body = {
        "imported": {"certificate_pem": one.pem, "private_key_pem": one.key_pem, "chain_pem": MIDDLE.pem, "cert_id": 1},
        "waves": ["1"],
    }
    rollouts, wanted = "/apiv1/users/1/rollouts", [{"wave": 1, "devices": 1, "states": {"held": 1}}]
    tried = await world.operator("POST", f"{rollouts}?dry_run=1", body)
    assert (tried.status, tried.data["id"], tried.data["waves"], tried.data["dry_run"]) == (200, None, wanted, True)
    assert "preview_id" not in tried.data
    unlike = await world.operator("POST", rollouts, body | {"preview_id": "0" * 32})
    assert (unlike.status, unlike.key) == (400, "BAD_REQUEST"), "it is not started as if that had been compared"
    assert (await world.operator("GET", rollouts)).data == []
    done = await world.operator("POST", rollouts, body)
    assert (done.status, done.data["waves"], done.data["certificate"]["issuer"]) == (201, wanted, "import")
    entries = await world.plane.work(world.plane.audit.page, Filter(what="rollout.start"), 0, 9)
    assert [{one["kind"] for one in entry["objects"]} for entry in entries] == [{"rollout", "certificate"}]
    assert "PRIVATE" not in str(entries)
    both = await world.operator("POST", rollouts, body | {"together": [1, 2]})
    assert both.status == 400
