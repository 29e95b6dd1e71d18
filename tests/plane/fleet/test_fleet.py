"""The state of a fleet from what its devices report, on both engines: words, causes, lists, pages, bounds."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from fleet_site import APPLIED, FAILED, ROLLED_BACK, Site, fleet_site, names

from certctrl.model.plan import OutcomeKind
from certctrl.plane.errors import ErrorResponse
from certctrl.plane.fleet.fleet import CERTIFICATE_SORTS, DEVICE_SORTS
from certctrl.plane.storage.database import Database


@pytest.fixture
def site(open_database: Callable[[], Database]) -> Site:
    return fleet_site(open_database)


# --- words ------------------------------------------------------------------------------------------------------------


async def test_each_word_of_a_certificate_on_a_device(site: Site) -> None:
    device = await site.device("web-1")
    cert = await site.certificate("a.test", device)
    first = await site.serial(cert)
    assert await site.word(cert) == "waiting"
    await site.report(device, cert, serial=first)
    assert await site.word(cert) == "deployed"
    await site.report(device, cert, serial=first, served=True)
    assert await site.word(cert) == "served"
    await site.report(device, cert, OutcomeKind.UNCHANGED, serial=first)
    assert await site.word(cert) == "served", "a report that looked at nothing takes no proof away"
    await site.plane.certificates.renew(1, cert)
    assert await site.word(cert) == "waiting"
    await site.report(device, cert, ROLLED_BACK, "probe other-certificate", serial=first)
    assert await site.word(cert) == "stuck"
    site.now[0] += 91 * 86_400
    site.plane.devices.seen(device, "", "", site.now[0])
    assert await site.word(cert) == "expired"


async def test_a_revoked_certificate_is_withdrawn_or_still_served(site: Site) -> None:
    device = await site.device("web-1")
    cert = await site.certificate("a.test", device)
    await site.report(device, cert, serial=await site.serial(cert), served=True)
    await site.plane.certificates.revoke(1, cert)
    assert await site.word(cert) == "waiting"
    await site.report(device, cert, FAILED, "withdraw still-served", kind="cert.revoked")
    assert await site.word(cert) == "still served"
    await site.report(device, cert, APPLIED, "withdraw kept", kind="cert.revoked")
    assert await site.word(cert) == "still served", "by the host's policy"
    await site.report(device, cert, kind="cert.revoked")
    assert await site.word(cert) == "withdrawn"


@pytest.mark.parametrize("codes", ["switch window", "switch held"])
async def test_what_waits_is_not_stuck(site: Site, codes: str) -> None:
    device = await site.device("web-1")
    cert = await site.certificate("a.test", device)
    await site.report(device, cert, APPLIED, codes, serial="00:01")
    assert (await site.word(cert), await site.causes()) == ("waiting", [])


@pytest.mark.parametrize("codes", ["fetch plane-lagging", "fetch pending", "verify not-yet-valid"])
async def test_what_only_time_cures_is_not_stuck(site: Site, codes: str) -> None:
    device = await site.device("web-1")
    cert = await site.certificate("a.test", device)
    await site.report(device, cert, FAILED, codes)
    assert (await site.word(cert), await site.causes()) == ("waiting", [])


async def test_each_word_of_a_device(site: Site) -> None:
    await site.plane.work(site.plane.devices.expect, 1, facts("expected"))
    healthy, degraded = await site.device("healthy"), await site.device("degraded")
    revoked, stale = await site.device("revoked"), await site.device("stale")
    cert = await site.certificate("a.test", degraded)
    await site.report(degraded, cert, FAILED, "run command-failed")
    await site.plane.work(site.plane.devices.revoke, 1, revoked, "lost")
    site.now[0] += 1000
    for one in (healthy, degraded):
        site.plane.devices.seen(one, "", "", site.now[0])
    await site.plane.work(site.plane.devices.save_sightings)
    answer = await site.devices()
    assert names(answer) == ["degraded", "stale", "expected", "healthy", "revoked"], "the worst first"
    assert [row["state"] for row in answer["devices"]] == names(answer)
    assert answer["counts"] == dict.fromkeys(sorted(names(answer)), 1)
    why = {row["name"]: row["why"] and row["why"]["reason"] for row in answer["devices"]}
    assert why == {
        "degraded": "command-failed",
        "stale": "not-heard",
        "expected": None,
        "healthy": None,
        "revoked": None,
    }
    await site.report(stale, cert := await site.certificate("b.test", stale), FAILED, "run command-failed")
    (row,) = (await site.devices(states=("stale",)))["devices"]
    assert (row["id"], row["why"]["reason"]) == (stale, "not-heard"), "what it reported before is less important"
    assert await site.word(cert) == "stuck"


def facts(name: str) -> Any:
    from certctrl.plane.devices.devices import DeviceFacts

    return DeviceFacts(device_public_id=f"{name}-0001", name=name)


# --- causes -----------------------------------------------------------------------------------------------------------


async def test_hosts_that_fail_alike_are_one_cause(site: Site) -> None:
    devices = [await site.device(f"web-{number}") for number in range(5)]
    cert = await site.certificate("a.test", *devices)
    serial = await site.serial(cert)
    for device in devices:
        await site.report(device, cert, serial=serial)
    for device in devices[:4]:
        await site.report(device, cert, FAILED, "run service-down", detail=f"on {device}")
        site.now[0] += 1
    await site.report(devices[4], cert, FAILED, "write disk-full")
    await site.report(devices[4], 0, FAILED, "plan item-refused", kind="install.updated", ref={})
    found = await site.causes()
    assert {(one["id"], one["devices"], one["certificates"]) for one in found} == {
        ("stuck.run.service-down", 4, 1),
        ("stuck.write.disk-full", 1, 1),
        ("stuck.plan.item-refused", 1, 0),
    }
    first = found[0]
    assert (first["reason"], first["example"]["device"], first["example"]["message"]) == (
        "service-down", "web-0", f"on {devices[0]}",
    )  # fmt: skip
    assert first["fix"] == "start the service" and first["ends_first"]["certificate"] == "a.test"
    assert names(await site.devices(reason="service-down", sort="name")) == ["web-0", "web-1", "web-2", "web-3"]


async def test_causes_of_other_users_are_not_shown(site: Site) -> None:
    await site.plane.work(site.plane.devices.add_user, "other")
    await site.device("web-1")
    site.now[0] += 1000
    assert [one["reason"] for one in await site.causes()] == ["not-heard"]
    assert (await site.plane.work_long(site.plane.fleet.causes, 2))["causes"] == []
    with pytest.raises(ErrorResponse, match="No such user"):
        await site.plane.work_long(site.plane.fleet.causes, 3)


# --- lists ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sort", DEVICE_SORTS)
async def test_pages_of_devices_are_the_whole_list(site: Site, sort: str) -> None:
    devices = [await site.device(f"web-{number % 3}-{'x' * number}") for number in range(7)]
    cert = await site.certificate("a.test", *devices[:4])
    for device in devices[:4]:
        await site.report(device, cert, serial=await site.serial(cert))
    await site.report(devices[3], cert, FAILED, "run service-down")
    whole, after, found = (await site.devices(sort=sort))["devices"], "", []
    assert len(whole) == 7
    for _ in range(4):
        answer = await site.devices(sort=sort, limit=2, after=after)
        found += answer["devices"]
        assert answer["total"] == 7
        after = answer["next"] or ""
    assert (found, after) == (whole, "")


@pytest.mark.parametrize("sort", CERTIFICATE_SORTS)
async def test_pages_of_certificates_are_the_whole_list(site: Site, sort: str) -> None:
    device = await site.device("web-1")
    for number in range(5):
        cert = await site.certificate(f"c{number % 2}.test", device)
        if number % 2:
            await site.report(device, cert, serial=await site.serial(cert), served=True)
    whole = (await site.certificates(sort=sort))["certificates"]
    first = await site.certificates(sort=sort, limit=3)
    second = await site.certificates(sort=sort, limit=3, after=first["next"])
    assert [*first["certificates"], *second["certificates"]] == whole and second["next"] is None
    assert {row["state"] for row in whole} == {"valid", "renewing"}
    assert sum(row["newest_served"] for row in whole) == 2


async def test_lists_are_filtered_by_tag(site: Site) -> None:
    web, mail = await site.device("web-1"), await site.device("mail-1")
    await site.plane.work(site.plane.devices.tags.change, 1, [web], add=["web"])
    await site.certificate("a.test", web)
    await site.certificate("b.test", mail)
    assert names(await site.devices(tags=("web",))) == ["web-1"]
    assert names(await site.certificates(tags=("web",)), "certificates") == ["a.test"]


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"states": ("stuk",)}, "did you mean stuck?"),
    ({"reason": "disk-ful"}, "did you mean disk-full?"),
    ({"sort": "wurst"}, "did you mean worst?"),
    ({"states": ("x' OR 1=1 --",)}, "is not a state"),
    ({"limit": 0}, "limit must be"),
    ({"limit": 501}, "limit must be"),
    ({"tags": ("UPPER",)}, "is not a tag"),
    *(
        ({"after": after, "sort": sort}, "after must be")
        for sort in ("worst", "name")
        for after in (
            "x", "[]", "null", "{}", '["worst"]', '["worst",true,1]', '["worst",NaN,1]', '["worst",1e999,1]',
            '["worst",-1,1]', '["worst",1,0]', '["worst",1,99999999999999999999]', '["name",1,1]', '["name","\\u0000",1]',
            '["name","\\ud800",1]', "[" * 5000, '["worst",1,true]', '["worst","1",1]',
        )
    ),
]  # fmt: skip


async def test_queries_that_do_not_fit_are_refused(site: Site) -> None:
    for query, what in MISTAKES:
        for read in (site.devices, site.certificates):
            with pytest.raises(ErrorResponse) as caught:
                await read(**query)
            assert (caught.value.status, what in caught.value.what) == (400, True), query


async def test_an_answer_is_json(site: Site) -> None:
    await site.device("web-1")
    for read in (site.devices, site.certificates):
        assert json.loads(json.dumps(await read()))["at"] == "2026-09-21T14:13:20Z"


# --- one device, one certificate, all numbers, searches ---------------------------------------------------------------


async def test_one_device_is_as_in_the_list(site: Site) -> None:
    other, device = await site.device("web-1"), await site.device("web-2")
    cert, second = await site.certificate("a.test", device, other), await site.certificate("b.test", device)
    await site.report(device, second, serial=await site.serial(second), served=True)
    for one in (device, other):
        await site.report(one, cert, FAILED, "run command-failed")
    await site.report(device, cert, FAILED, "plan policy", kind="install.updated", ref={})
    answer = await site.plane.work_long(site.plane.fleet.device, 1, device)
    (row,) = [row for row in (await site.devices())["devices"] if row["id"] == device]
    assert answer["device"] == row
    assert [(one["certificate"], one["state"]) for one in answer["copies"]] == [
        ("a.test", "stuck"),
        ("b.test", "served"),
    ]
    assert [(one["step"], one["reason"]) for one in answer["others"]] == [("plan", "policy")]
    assert await site.plane.work_long(site.plane.fleet.alike, 1, "stuck", "run", "command-failed") == 2
    for missing in (device + 99, 2**53):
        with pytest.raises(ErrorResponse, match="No such device"):
            await site.plane.work_long(site.plane.fleet.device, 1, missing)


async def test_one_certificate_has_its_worst_devices_first(site: Site) -> None:
    devices = [await site.device(f"web-{number}") for number in range(5)]
    cert = await site.certificate("a.test", *devices)
    for device in devices[:3]:
        await site.report(device, cert, serial=await site.serial(cert))
    await site.report(devices[3], cert, FAILED, "run command-failed")
    seen, after = [], 0
    while True:
        answer = await site.plane.work_long(site.plane.fleet.certificate, 1, cert, after, 2)
        seen += [(one["device"], one["state"]) for one in answer["copies"]]
        if answer["next"] is None:
            break
        after = answer["next"]
    assert seen == [
        ("web-3", "stuck"),
        ("web-4", "waiting"),
        ("web-0", "deployed"),
        ("web-1", "deployed"),
        ("web-2", "deployed"),
    ]
    assert answer["counts"] == {"deployed": 3, "stuck": 1, "waiting": 1}
    assert [answer["certificate"]] == (await site.certificates())["certificates"]
    with pytest.raises(ErrorResponse, match="No such certificate"):
        await site.plane.work_long(site.plane.fleet.certificate, 1, cert + 1, 0, 2)


async def test_the_summary_has_what_ends(site: Site) -> None:
    device = await site.device("web-1")
    cert = await site.certificate("a.test", device)
    await site.report(device, cert, serial=await site.serial(cert))
    found = await site.plane.work_long(site.plane.fleet.summary, 1, 30)
    assert found == {"copies": {"deployed": 1}, "ends": []}
    (end,) = (await site.plane.work_long(site.plane.fleet.summary, 1, 91))["ends"]
    assert (end["id"], end["certificate"], end["devices"], end["stuck"]) == (cert, "a.test", 1, 0)


@pytest.mark.parametrize(
    ("search", "devices", "certificates"),
    [
        ("WEB-", ["web-1", "web-2"], []),
        ("*-1", ["Übung-1", "web-1", "db-1"], []),
        ("b.test", ["db-1"], ["b.test"]),
        ("%", [], []),
        ("web_1", [], []),
        ("Übung", ["Übung-1"], []),
    ],
)
async def test_rows_are_found_by_a_text(site: Site, search: str, devices: list[str], certificates: list[str]) -> None:
    for name in ("Übung-1", "web-1", "web-2", "db-1"):
        last = await site.device(name)
    await site.certificate("a.test")
    await site.certificate("b.test", last)
    answer = await site.devices(search=search, sort="id")
    assert (names(answer), answer["total"]) == (devices, len(devices))
    assert names(await site.certificates(search=search), "certificates") == certificates
