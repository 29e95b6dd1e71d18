"""Classes of signals at the control plane: which one each change has, and the endpoint that looks ahead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from device_polls import UPDATES, issue
from plane_world import Device, World

from certctrl.model.features import PRIORITY

DAY = 86_400
ITEMS = [{"id": "ca", "type": "import_ca", "ob_id": 1, "enabled": False}]


async def announce(device: Device, *features: str) -> None:
    events = [{"type": "agent_version", "version": "9.9", "features": [*features]}]
    reply = await device(
        "POST", "/apiv1/devices/self/notify", {"schema": "certctrl.device.notify.v1", "events": events}
    )
    assert reply.status in (200, 204)


async def device_of(world: World) -> tuple[Device, str]:
    """Return a device whose agent knows classes, and its cursor."""
    device = await world.device()
    await announce(device, PRIORITY)
    return device, (await device.poll()).headers["etag"]


async def classes(device: Device, cursor: str) -> list[tuple[str, str | None]]:
    reply = await device.poll(cursor, limit=100)
    return [(one["type"], one.get("priority")) for one in reply.data["signals"]]


async def test_the_first_certificate_and_a_renewal_in_time_are_renewals(world: World) -> None:
    device, cursor = await device_of(world)
    row = await issue(world, device)
    await world.plane.certificates.renew(1, row["id"])
    assert await classes(device, cursor) == [("cert.renewed", "renewal")] * 2


@pytest.mark.parametrize(("left", "wanted"), [(0.35, "renewal"), (0.32, "expiring"), (0.01, "expiring")])
async def test_a_renewal_near_the_end_of_the_former_certificate_is_expiring(
    world: World, left: float, wanted: str
) -> None:
    device, _ = await device_of(world)
    row = await world.plane.certificates.issue(1, ["a.example"], device_ids=[device.id], validity_seconds=90 * DAY)
    cursor = (await device.poll()).headers["etag"]
    world.clock.advance(90 * DAY * (1 - left))
    await device("GET", UPDATES)
    await world.plane.certificates.renew(1, row["id"])
    device.token = (await world.stranger("POST", "/auth/token/refresh", {
        "refresh_token": device.refresh_token, "device_public_id": device.public_id})).data["access_token"]  # fmt: skip
    assert await classes(device, cursor) == [("cert.renewed", wanted)]
    await world.plane.certificates.renew(1, row["id"])
    assert (await classes(device, cursor))[-1] == ("cert.renewed", "renewal"), "the present one is new"


async def test_revocations_and_what_replaces_a_revoked_certificate(world: World) -> None:
    device, _ = await device_of(world)
    one, other, third = [await issue(world, device, f"{name}.example") for name in "abc"]
    cursor = (await device.poll(limit=100)).headers["etag"]
    await world.plane.certificates.revoke(1, one["id"])
    await world.plane.certificates.unassign(1, device.id, third["id"])
    await world.operator("POST", f"/apiv1/users/1/certificates/{other['id']}/revoke", {"replace": True})
    assert await classes(device, cursor) == [
        ("cert.revoked", "revocation"), ("cert.unassigned", "revocation"), ("cert.renewed", "revocation"),
    ]  # fmt: skip


async def test_an_install_config_is_configuration(world: World) -> None:
    device, cursor = await device_of(world)
    await world.plane.installs.put(device.id, ITEMS)
    assert await classes(device, cursor) == [("install.updated", "config")]


async def test_an_agent_that_did_not_announce_classes_gets_none(world: World) -> None:
    device, cursor = await device_of(world)
    await issue(world, device)
    assert await classes(device, cursor) == [("cert.renewed", "renewal")]
    await announce(device, "csr")
    assert await classes(device, cursor) == [("cert.renewed", None)], "a downgraded agent"


# --- looking ahead -----------------------------------------------------------------------------------------------


async def look(device: Device, cursor: str, ahead: str = "revocation,expiring,config", **more: int) -> Any:
    query = "".join(f"&{name}={value}" for name, value in more.items())
    return await device("GET", f"{UPDATES}?cursor={cursor}&ahead={ahead}{query}")


async def test_a_revocation_is_seen_behind_any_number_of_renewals(world: World) -> None:
    device, cursor = await device_of(world)
    rows = [await issue(world, device, f"n{n}.example") for n in range(40)]
    await world.plane.certificates.revoke(1, rows[7]["id"])
    reply = await look(device, cursor)
    assert reply.status == 200
    assert (reply.data["cursor"], reply.headers["etag"]) == (cursor, cursor)
    assert [(one["type"], one["ref"], one["priority"]) for one in reply.data["signals"]] == [
        ("cert.revoked", {"cert_id": rows[7]["id"]}, "revocation")
    ]
    assert len((await device.poll(cursor, limit=100)).data["signals"]) == 41, "nothing is acknowledged by it"


async def test_without_any_it_answers_at_once_even_with_a_wait(world: World) -> None:
    device, cursor = await device_of(world)
    await issue(world, device)
    reply = await look(device, cursor, wait=30)
    assert (reply.status, reply.headers["etag"], reply.body) == (204, cursor, b"")


async def test_unknown_classes_are_ignored_among_known_ones(world: World) -> None:
    device, cursor = await device_of(world)
    await world.plane.installs.put(device.id, ITEMS)
    assert len((await look(device, cursor, "urgent,config,,x")).data["signals"]) == 1
    for ahead in ("", "urgent", ",", "%00", "config%0a", "x" * 5000):
        reply = await look(device, cursor, ahead)
        assert (reply.status, reply.key) == (400, "BAD_REQUEST"), ahead


async def test_a_void_cursor_is_refused_as_for_a_poll(world: World) -> None:
    device, _ = await device_of(world)
    assert (await look(device, "1-1")).key == "CURSOR_EXPIRED"


async def test_looking_ahead_has_a_limit_of_its_own(build: Callable[..., World]) -> None:
    world = build()
    device = await world.device()
    await announce(device, PRIORITY)
    cursor = (await device.poll()).headers["etag"]
    statuses = [(await look(device, cursor)).status for _ in range(6)]
    assert statuses == [204] * 5 + [429]
    assert (await device.poll(cursor)).status == 204, "polls have theirs"


async def test_looking_ahead_does_not_use_up_the_free_page(build: Callable[..., World]) -> None:
    world = build()
    device = await world.device()
    start = (await device.poll()).headers["etag"]
    for number in range(45):
        await issue(world, device, f"n{number}.example")
    statuses = [(await device.poll(start)).status for _ in range(6)]
    assert statuses[-1] == 429, "no tokens are left"
    world.clock.advance(1)
    first = await device.poll(start, limit=20)
    assert first.headers["cert-ctrl-next-page"] == "free"
    await look(device, first.headers["etag"])
    assert (await device.poll(first.headers["etag"], limit=20)).status == 200
