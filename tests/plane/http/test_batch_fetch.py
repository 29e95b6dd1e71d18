"""``POST /apiv1/devices/self/deploy-materials`` and its refusals."""

from __future__ import annotations

import pytest
from plane_world import World

PATH = "/apiv1/devices/self/deploy-materials"


async def test_items_come_in_the_order_of_the_request(world: World) -> None:
    device = await world.device()
    ids = [
        (await world.plane.certificates.issue(1, [f"{number}.test"], device_ids=[device.id]))["id"]
        for number in range(3)
    ]
    asked = [ids[2], 99, ids[0]]
    reply = await device("POST", PATH, {"cert_ids": asked})
    assert [(item["cert_id"], item["status"]) for item in reply.data] == list(zip(asked, (200, 404, 200), strict=True))
    alone = await device("GET", f"/apiv1/devices/self/certificates/{ids[2]}/deploy-materials")
    assert reply.data[0]["data"]["certificate_pem"] == alone.data["certificate_pem"]
    assert reply.data[1]["error"]["key"] == "NOT_FOUND"
    assert reply.headers["cache-control"] == "no-store"


async def test_etags_of_a_request(world: World) -> None:
    device = await world.device()
    cert_id = (await world.plane.certificates.issue(1, ["a.test"], device_ids=[device.id]))["id"]
    reply = await device("POST", PATH, {"cert_ids": [cert_id]})
    etag = reply.data[0]["etag"]
    for etags, status in (
        ({str(cert_id): etag}, 304), ({str(cert_id): "other"}, 200), ({str(cert_id): [etag]}, 200), (None, 200),
        ({"x": etag}, 200),
    ):  # fmt: skip
        reply = await device("POST", PATH, {"cert_ids": [cert_id], "etags": etags})
        assert reply.data[0]["status"] == status
    assert (await device("POST", PATH, {"cert_ids": [cert_id], "etags": [etag]})).status == 400


@pytest.mark.parametrize(
    "ids", [[], [1, 1], list(range(1, 102)), [0], [-1], [2**53 + 1], ["1"], [True], [1.5], [None], "1", None, {}]
)
async def test_only_up_to_a_hundred_different_ids_are_accepted(world: World, ids: object) -> None:
    device = await world.device()
    reply = await device("POST", PATH, {"cert_ids": ids})
    assert (reply.status, reply.key) == (400, "BAD_REQUEST")
    assert len((await device("POST", PATH, {"cert_ids": list(range(1, 101))})).data) == 100


async def test_strangers_and_revoked_devices_get_nothing(world: World) -> None:
    device = await world.device()
    assert (await world.stranger("POST", PATH, {"cert_ids": [1]})).status == 401
    assert (await world.operator("POST", PATH, {"cert_ids": [1]})).status == 401
    await world.plane.work(world.plane.devices.revoke, 1, device.id, "lost")
    for ids in ([1], []):  # the session's error takes precedence
        assert (await device("POST", PATH, {"cert_ids": ids})).key == "DEVICE_REVOKED"
