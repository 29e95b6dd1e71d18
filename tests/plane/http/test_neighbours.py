"""A hostile neighbour behind the same address: it uses up every limit, and keeps nobody out who has a right key."""

from __future__ import annotations

import pytest
from nacl.public import PrivateKey
from page_browser import Browser
from plane_world import Client, World
from proving import registration

UNKNOWN = {"action": "device_poll", "device_code": "unknown"}
START = {"action": "device_start", "device_public_id": "device-2"}


async def use_up_all_limits(neighbour: Client) -> set[int]:
    """Send what strangers can send until each limit answers; return the last statuses."""
    browser = Browser(neighbour)
    token = {"refresh_token": "rt_x.y", "device_public_id": "device-1"}
    last = set()
    for _ in range(30):
        last = {
            (await browser.sign_in("ok_wrong")).status,
            (await neighbour("POST", "/auth/device", START)).status,
            *[(await neighbour("POST", "/auth/device", UNKNOWN)).status for _ in range(20)][-1:],
        }
        form = registration("device-3", PrivateKey.generate()) | {"enrolment_token": "et_wrong"}
        await neighbour("POST", "/apiv1/device/registration", form)
        await neighbour("POST", "/auth/token/refresh", token)
        await Client(neighbour.app, "not.a.token", neighbour.address)("GET", "/apiv1/devices/self/updates")
        await Client(neighbour.app, "ok_wrong", neighbour.address)("GET", "/apiv1/users")
    return last


@pytest.mark.parametrize(
    ("address", "neighbour"),
    [("192.0.2.7", "192.0.2.7"), ("::ffff:192.0.2.7", "192.0.2.7"), ("2001:db8::1", "2001:db8::ffff:2")],
)
async def test_a_neighbour_keeps_no_right_key_out(world: World, address: str, neighbour: str) -> None:
    for client in (world.operator, world.stranger):
        client.address = address
    device = await world.device()
    device.address = address
    started = (await world.stranger("POST", "/auth/device", START)).data
    token = (await world.operator("POST", "/apiv1/users/1/enrolment-tokens", {})).data["token"]

    assert await use_up_all_limits(Client(world.app, address=neighbour)) == {429}

    assert (await world.operator("GET", "/apiv1/users")).status == 200
    assert (await Browser(world.stranger).sign_in(world.plane.operator_key)).status == 303
    assert (await device.poll()).status == 204
    body = {"refresh_token": device.refresh_token, "device_public_id": device.public_id}
    assert (await world.stranger("POST", "/auth/token/refresh", body)).status == 200
    form = registration("device-4", PrivateKey.generate()) | {"enrolment_token": token}
    assert (await world.register(form)).data["device"]["status"] == "active"
    poll = {"action": "device_poll", "device_code": started["device_code"]}
    assert (await world.stranger("POST", "/auth/device", poll)).data["status"] == "authorization_pending"
    assert (await world.stranger("POST", "/auth/device", START)).status == 429, "only strangers share their limits"
