"""Profiles on both engines: what devices get, when they are signalled, what is refused, history and preview."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import trio
from engine_plane import new_device, plane_on

from certctrl.errors import PlaneError
from certctrl.plane.core import Plane
from certctrl.plane.profiles import profiles as profiles_module
from certctrl.plane.profiles.profiles import ProfileChange
from certctrl.plane.storage.database import Database
from certctrl.plane.storage.keyring import Keyring

FILES = {
    "id": "files", "type": "copy", "ob_name": "www.example.com", "from": ["combined.pem"], "to": ["/etc/tls/www.pem"],
}  # fmt: skip
EACH = {"id": "each", "type": "copy", "from": ["combined.pem"], "to": ["/etc/tls/{cert.name}.pem"]}
RELOAD = {"id": "reload", "type": "exec", "cmd_argv": ["reload", "{device.name}"], "depends_on": ["files"]}


@pytest.fixture
def plane(open_database: Callable[[], Database]) -> Plane:
    return plane_on(open_database())


async def tag(plane: Plane, *devices: int, **tags: Any) -> None:
    await plane.work(plane.devices.tags.change, 1, devices, **tags)


async def put(
    plane: Plane, name: str, *items: dict[str, Any], devices: str | None = None, user: int = 1, **options: Any
) -> dict[str, Any]:
    dry_run = options.pop("dry_run", False)
    change = ProfileChange(devices=devices, installs=list(items) if items else None, **options)
    return await plane.profiles.put(user, name, change, dry_run=dry_run)


async def config(plane: Plane, device_id: int) -> tuple[int, list[str]]:
    """Return the version and the ids of the items of a device."""
    document = await plane.work(plane.installs.document, device_id)
    assert json.loads(document["installs_json"]) == document["installs"]
    return document["version"], [item["id"] for item in document["installs"]]


async def signals(plane: Plane, device_id: int) -> list[int]:
    """Return the versions of configs that a device was signalled."""
    page = await plane.work(plane.stream.read, device_id, None, 100)
    return [signal["ref"]["version"] for signal in page.signals if signal["type"] == "install.updated"]


async def test_devices_with_matching_tags_get_the_items(plane: Plane) -> None:
    web, db = await new_device(plane, "web-1"), await new_device(plane, "db-1")
    await tag(plane, web, add=["web", "env=prod"])
    done = await put(plane, "nginx", FILES, RELOAD, devices="web and env=prod")
    assert (done["version"], done["changes"]["matched"]) == (1, 1)
    assert done["changes"]["devices"] == [
        {"id": web, "name": "web-1", "added": ["files", "reload"], "removed": [], "changed": [], "reordered": False,
         "problem": ""},
    ]  # fmt: skip
    assert await config(plane, web) == (2, ["files", "reload"])
    assert (await plane.work(plane.installs.document, web))["installs"][1]["cmd_argv"] == ["reload", "web-1"]
    assert await config(plane, db) == (1, [])
    assert (await signals(plane, web), await signals(plane, db)) == ([2], [])


async def test_only_a_changed_config_is_signalled(plane: Plane) -> None:
    one, two = await new_device(plane, "d1"), await new_device(plane, "d2")
    await tag(plane, one, add=["web"])
    await put(plane, "nginx", FILES, devices="web")
    assert (await put(plane, "nginx", FILES))["unchanged"]
    await put(plane, "nginx", FILES, devices="web or db", order=7, note="for db, too")
    assert (await signals(plane, one), await signals(plane, two)) == ([2], [])
    await tag(plane, two, add=["db"])
    await tag(plane, two, add=["other"])
    assert await signals(plane, two) == [2]
    await tag(plane, two, remove=["db"])
    assert (await config(plane, two), await signals(plane, two)) == ((3, []), [2, 3])


async def test_own_items_stay_own(plane: Plane) -> None:
    device = await new_device(plane)
    await put(plane, "all", FILES, devices="*")
    own = RELOAD | {"id": "own", "depends_on": []}
    await plane.installs.put(device, [own])
    assert await config(plane, device) == (3, ["files", "own"])
    assert await plane.work(plane.installs.own, device) == [own]
    with pytest.raises(
        PlaneError, match="item files of the device itself has the same id as item files of profile all"
    ):
        await plane.installs.put(device, [FILES])
    done = await put(plane, "all", FILES | {"to": ["/etc/tls/other.pem"]})
    (row,) = done["changes"]["devices"]
    assert row["changed"] == [{"id": "files", "keys": ["to"]}]
    await plane.installs.put(device, [])
    assert await config(plane, device) == (5, ["files"])
    await plane.profiles.delete(1, "all")
    assert await config(plane, device) == (6, [])
    document = await plane.work(plane.installs.document, device)
    assert document["installs_json"] == "[]"


async def test_profiles_are_merged_in_order(plane: Plane) -> None:
    device = await new_device(plane)
    await put(plane, "b", RELOAD | {"id": "b", "depends_on": []}, devices="*")
    await put(plane, "c", RELOAD | {"id": "c", "depends_on": ["b"]}, devices="*", order=100)
    await put(plane, "a", RELOAD | {"id": "a", "depends_on": []}, devices="*", order=200)
    assert (await config(plane, device))[1] == ["b", "c", "a"]
    await put(plane, "a", order=0)
    assert (await config(plane, device))[1] == ["a", "b", "c"]
    assert [row["name"] for row in await plane.work(plane.profiles.show_all, 1)] == ["a", "b", "c"]


async def test_a_change_that_does_not_fit_a_device_is_refused_and_changes_nothing(plane: Plane) -> None:
    good, bad = await new_device(plane, "good"), await new_device(plane, "not/good")
    await tag(plane, good, bad, add=["web"])
    with pytest.raises(
        PlaneError, match=r"Profile p does not fit 1 device: device 2 \(not/good\): item reload"
    ) as refused:
        await put(plane, "p", FILES, RELOAD, devices="web")
    assert refused.value.status == 400
    assert await config(plane, good) == (1, [])
    assert await plane.work(plane.profiles.show_all, 1) == []
    await tag(plane, bad, remove=["web"])
    await put(plane, "p", FILES, RELOAD, devices="web")
    with pytest.raises(PlaneError, match=r"Device 2 \(not/good\): item reload of profile p"):
        await tag(plane, bad, add=["web"])
    await plane.work(plane.devices.revoke, 1, bad, "")
    await put(plane, "p", FILES, RELOAD, devices="*")  # a revoked device does not count


async def test_a_new_device_that_does_not_fit_keeps_its_config_with_the_reason(plane: Plane) -> None:
    await put(plane, "p", FILES, RELOAD, devices="*")
    device = await new_device(plane, "not good")
    assert await config(plane, device) == (1, [])
    problem = (await plane.work(plane.devices.show, 1, device))["install_problem"]
    assert "'not good' cannot be the value of {device.name}" in problem
    (row,) = await plane.work(plane.profiles.show_all, 1)
    assert (row["device_count"], row["problem_count"]) == (1, 1)
    shown = await plane.work(plane.profiles.show, 1, "p")
    assert shown["problems"] == [{"id": device, "problem": problem}]
    await put(plane, "q", EACH, devices="*")  # an old problem refuses no other change
    await put(plane, "p", FILES, devices="*")
    assert (await config(plane, device))[1] == ["files"]
    assert (await plane.work(plane.devices.show, 1, device))["install_problem"] == ""


async def test_the_tags_of_a_device_with_a_problem_can_be_changed(plane: Plane) -> None:
    await put(plane, "p", FILES, RELOAD, devices="not sick")
    device = await new_device(plane, "not good")
    await tag(plane, device, add=["web"])
    problem = (await plane.work(plane.devices.show, 1, device))["install_problem"]
    assert "'not good' cannot be the value of {device.name}" in problem
    await tag(plane, device, add=["sick"])
    shown = await plane.work(plane.devices.show, 1, device)
    assert (shown["tags"], shown["install_problem"]) == (["sick", "web"], "")


async def test_items_follow_the_certificates_of_a_device(plane: Plane) -> None:
    device = await new_device(plane)
    await put(plane, "each", EACH, devices="*")
    cert = await plane.certificates.issue(1, ["a.example"], device_ids=[device])
    assert (await config(plane, device))[1] == [f"each:{cert['id']}"]
    page = await plane.work(plane.stream.read, device, None, 10)
    assert [signal["type"] for signal in page.signals] == ["install.updated", "cert.renewed"]
    await plane.certificates.unassign(1, device, cert["id"])
    assert (await config(plane, device))[1] == []
    await put(plane, "each", EACH | {"to": ["/etc/{cert.name}"]})
    assert await signals(plane, device) == [2, 3]


async def test_a_preview_changes_nothing(plane: Plane) -> None:
    device = await new_device(plane)
    done = await put(plane, "p", FILES, devices="*", dry_run=True)
    assert (done["dry_run"], done["changes"]["devices"][0]["added"]) == (True, ["files"])
    assert await plane.work(plane.profiles.show_all, 1) == []
    await put(plane, "p", FILES, devices="*")
    done = await plane.profiles.delete(1, "p", dry_run=True)
    assert done["changes"]["devices"][0]["removed"] == ["files"]
    assert await config(plane, device) == (2, ["files"])
    bad = await put(plane, "q", FILES | {"id": "x"}, devices="*", dry_run=True)
    assert bad["changes"]["problems"] == 1


async def test_history_survives_deletion(plane: Plane) -> None:
    await put(plane, "p", FILES, devices="a", note="first")
    await put(plane, "p", RELOAD | {"depends_on": []}, note="second")
    await plane.profiles.delete(1, "p", note="gone")
    rows = await plane.work(plane.profiles.history, 1, "p")
    assert [(row["version"], row["current"], row["deleted"], row["note"]) for row in rows] == [
        (3, True, True, "gone"), (2, False, False, "second"), (1, False, False, "first"),
    ]  # fmt: skip
    assert (await plane.work(plane.profiles.show, 1, "p", 1))["installs"] == [FILES]
    for wrong, says in (("p", "was deleted"), ("q", "No such profile: q"), ("pp", "did you mean p")):
        with pytest.raises(PlaneError, match=says):
            await plane.work(plane.profiles.show, 1, wrong)
    with pytest.raises(PlaneError, match="Profile p is new: give the devices"):
        await put(plane, "p", FILES)
    assert (await put(plane, "p", FILES, devices="b"))["version"] == 4


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("Web", {"devices": "*", "installs": []}, "1 to 64 lower-case letters"),
        ("p", {"installs": []}, "is new: give the devices"),
        ("p", {"devices": "web"}, "is new: give its items"),
        ("p", {"devices": "web &&", "installs": []}, "devices: character 5: expected and"),
        ("p", {"devices": "*", "installs": [], "order": 10_000}, "order must be"),
        ("p", {"devices": "*", "installs": {"installs": []}}, "installs: expected a list"),
        ("p", {"devices": "*", "installs": [RELOAD | {"cmd_argw": ["x"]}]}, "did you mean cmd_argv"),
    ],
)
async def test_what_is_refused(plane: Plane, name: str, change: dict[str, Any], says: str) -> None:
    with pytest.raises(PlaneError) as refused:
        await plane.profiles.put(1, name, ProfileChange(**change))
    assert says in str(refused.value)
    assert refused.value.status == 400


async def test_users_do_not_share_profiles(plane: Plane) -> None:
    other = (await plane.work(plane.devices.add_user, "other"))["id"]
    device = await new_device(plane)
    await put(plane, "p", FILES, devices="*", user=other)
    assert await config(plane, device) == (1, [])
    with pytest.raises(PlaneError, match="No such profile"):
        await plane.profiles.delete(1, "p")


async def test_another_plane_finishes_what_one_has_stored(
    open_database: Callable[[], Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after kill -9 between storing a version and bringing the configs up to date."""
    keyring = Keyring.open(None)
    first, second = (plane_on(open_database(), keyring) for _ in range(2))
    devices = [await new_device(first, f"d{number}") for number in range(5)]

    class Killed(BaseException):
        pass

    async def killed() -> None:
        raise Killed

    monkeypatch.setattr(first.profiles, "apply", killed)
    with pytest.raises(Killed):
        await put(first, "p", FILES, devices="*")
    assert {(await config(first, device))[0] for device in devices} == {1}
    monkeypatch.setattr(profiles_module, "DEVICES_PER_UNIT", 2)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(second.profiles.apply)
        nursery.start_soon(second.profiles.apply)
    assert [await config(second, device) for device in devices] == [(2, ["files"])] * 5
    assert [await signals(second, device) for device in devices] == [[2]] * 5


async def test_two_operators_change_at_a_time(open_database: Callable[[], Database]) -> None:
    keyring = Keyring.open(None)
    planes = [plane_on(open_database(), keyring) for _ in range(2)]
    device = await new_device(planes[0])
    await put(planes[0], "p", FILES, devices="web")
    refused = []

    async def change(plane: Plane, number: int) -> None:
        try:
            await put(plane, "p", FILES | {"to": [f"/etc/tls/{number}"]})
        except PlaneError as error:
            refused.append(error.status)

    async with trio.open_nursery() as nursery:
        for number in range(6):
            nursery.start_soon(change, planes[number % 2], number)
        nursery.start_soon(tag, planes[0], device)
        for _ in range(3):
            await tag(planes[1], device, add=["web"])
            await tag(planes[1], device, remove=["web"])
        await tag(planes[1], device, add=["web"])
    rows = await planes[1].work(planes[1].profiles.history, 1, "p")
    assert len(rows) == 7 - len(refused)
    assert set(refused) <= {409}
    document = await planes[0].work(planes[0].installs.document, device)
    current = await planes[0].work(planes[0].profiles.show, 1, "p")
    assert document["installs"] == current["installs"]
    versions = await signals(planes[0], device)
    assert versions == sorted(set(versions))


async def test_an_older_release_puts_own_items_only(plane: Plane) -> None:
    """It stores own items as the whole config; the next change merges them again."""
    device = await new_device(plane)
    await put(plane, "p", FILES, devices="*")

    def as_older_release() -> None:
        plane.database.run(
            "UPDATE install_configs SET version = 9, installs_json = '[]', installs_hash_b64 = 'x' WHERE device_id = ?",
            device,
        )

    await plane.work(as_older_release)
    await plane.work(plane.profiles.recheck)
    await plane.profiles.apply()
    assert await config(plane, device) == (10, ["files"])
    await plane.work(as_older_release)
    await plane.installs.put(device, [RELOAD | {"depends_on": []}])
    assert await config(plane, device) == (10, ["files", "reload"])
