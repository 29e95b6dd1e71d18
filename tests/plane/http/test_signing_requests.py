"""POST …/certificates/{id}/csr: who may send what, and how much."""

from __future__ import annotations

from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from csrs import csr
from plane_world import Device, World

NAMES = ["www.example"]


async def ordered(world: World) -> tuple[Device, str, dict[str, Any]]:
    """Return a device, the path of its order's request, and the body of a good one."""
    device = await world.device()
    notify = {"schema": "certctrl.device.notify.v1", "events": [{"type": "agent_version", "features": ["csr"]}]}
    assert (await device("POST", "/apiv1/devices/self/notify", notify)).status == 204
    row = await world.operator(
        "POST", "/apiv1/users/1/certificates",
        {"domain_name": NAMES[0], "device_ids": [device.id], "key_origin": "auto"},
    )  # fmt: skip
    assert (row.status, row.data["key_origin"]) == (202, "device")
    pem = x509.load_der_x509_csr(csr(NAMES)).public_bytes(Encoding.PEM).decode()
    path = f"/apiv1/devices/self/certificates/{row.data['id']}/csr"
    return device, path, {"order_id": row.data["order_id"], "csr_pem": pem}


async def test_a_request_is_taken_once(world: World) -> None:
    device, path, body = await ordered(world)
    for _ in range(2):
        reply = await device("POST", path, body)
        assert (reply.status, reply.data) == (202, {"order_id": body["order_id"], "state": "ready"})


async def test_bad_requests_change_nothing(world: World) -> None:
    device, path, body = await ordered(world)
    for changed, key in (
        ({"csr_pem": "no PEM"}, "CSR_REFUSED"), ({"csr_pem": body["csr_pem"] * 2}, "CSR_REFUSED"),
        ({"csr_pem": ""}, "BAD_REQUEST"), ({"csr_pem": 7}, "BAD_REQUEST"), ({"order_id": "x"}, "BAD_REQUEST"),
        ({"order_id": 99}, "NOT_FOUND"), ({"csr_pem": "x" * 200_000}, "BAD_REQUEST"),
    ):  # fmt: skip
        assert (await device("POST", path, body | changed)).key == key
    assert (await device("POST", path, body)).status == 202


async def test_strangers_and_operators_may_not_send_one(world: World) -> None:
    _, path, body = await ordered(world)
    assert (await world.stranger("POST", path, body)).status == 401
    assert (await world.operator("POST", path, body)).status == 401


async def test_requests_are_limited_per_device(world: World) -> None:
    device, path, body = await ordered(world)
    statuses = [(await device("POST", path, body | {"order_id": 99})).status for _ in range(52)]
    assert (statuses[0], statuses[-1]) == (404, 429)
    world.clock.advance(60)
    assert (await device("POST", path, body)).status == 202
