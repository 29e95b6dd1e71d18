"""Renewals by devices, and replacement of the CA's intermediate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from cryptography import x509
from issued import CERTIFICATES, issue, materials, signals
from plane_world import World

from certctrl.plane.ca.x509 import new_key
from certctrl.plane.errors import ErrorResponse

# --- renewals requested by devices -----------------------------------------------------------------------------------


async def test_a_device_renews_assigned_certificates_only(world: World) -> None:
    device, other = await world.device(), await world.device("device-number-2")
    row = await issue(world, "example.com", device_ids=[device.id])
    path = f"{CERTIFICATES}/{row['id']}/issues"
    assert (await device("POST", path, {"action": "renew", "reason": "near its end"})).status == 202
    assert (await other("POST", path, {"action": "renew"})).status == 404
    elsewhere = path.replace("/users/1/", "/users/2/")
    assert (await device("POST", elsewhere, {"action": "renew"})).status == 404
    assert (await device("POST", path, {"action": "reissue"})).status == 400
    assert (await world.stranger("POST", path, {"action": "renew"})).status == 401
    assert len(await signals(device)) == 2


async def test_devices_that_share_a_certificate_share_a_renewal(build: Callable[..., Any]) -> None:
    world = build(shared_renewal_seconds=60)
    device, other = await world.device(), await world.device("device-number-2")
    row = await issue(world, "example.com", device_ids=[device.id, other.id])
    path = f"{CERTIFICATES}/{row['id']}/issues"
    first = (await device("POST", path, {"action": "renew"})).data
    assert (await other("POST", path, {"action": "renew"})).data == first
    assert (await device("POST", path, {"action": "renew"})).data != first, (
        "a repeated request by the same device renews again"
    )
    world.clock.advance(61)
    assert (await other("POST", path, {"action": "renew"})).data["id"] > first["id"]


async def test_renewals_by_a_device_are_rate_limited(world: World) -> None:
    device = await world.device()
    row = await issue(world, "example.com", device_ids=[device.id])
    path = f"{CERTIFICATES}/{row['id']}/issues"
    statuses = [(await device("POST", path, {"action": "renew"})).status for _ in range(6)]
    assert statuses == [202] * 5 + [429]
    world.clock.advance(10)
    assert (await device("POST", path, {"action": "renew"})).status == 202


# --- the CA itself -------------------------------------------------------------------------------------------------


async def test_the_intermediate_is_replaced_before_a_leaf_could_outlive_it(world: World) -> None:
    device = await world.device()
    row = await issue(world, "example.com", device_ids=[device.id])
    first = (await materials(device, row["id"]))["chain_pem"]
    world.clock.wall += 4 * 365 * 86_400
    await world.plane.certificates.renew(1, row["id"])
    detail = world.plane.certificates.detail(device.id, row["id"])
    assert detail["chain_pem"] != first
    leaf = x509.load_pem_x509_certificate(detail["certificate_pem"].encode())
    intermediate = x509.load_pem_x509_certificate(detail["chain_pem"].encode())
    root = x509.load_pem_x509_certificate(world.plane.ca.root_pem.encode())
    leaf.verify_directly_issued_by(intermediate)
    intermediate.verify_directly_issued_by(root)
    assert leaf.not_valid_after_utc <= intermediate.not_valid_after_utc <= root.not_valid_after_utc


async def test_slow_keys_are_generated_in_a_thread() -> None:
    from certctrl.plane.core import Plane

    ran: list[str] = []

    async def offload(function: Callable[..., Any], *args: Any) -> Any:
        if function is new_key:
            ran.append(args[0])
        return function(*args)

    with Plane.open(offload=offload) as plane:
        await plane.certificates.issue(1, ["a.example"])
        await plane.certificates.issue(1, ["b.example"], key_type="rsa-2048")
    assert ran == ["rsa-2048"]


async def test_a_revocation_wins_over_a_concurrent_renewal() -> None:
    """The operator revokes while a thread generates the key of the device's RSA renewal."""
    from certctrl.plane.core import Plane
    from certctrl.plane.devices.devices import DeviceFacts

    async def offload(function: Callable[..., Any], *args: object) -> Any:
        if issued and function is new_key:
            await plane.certificates.revoke(1, issued[0])
        return function(*args)

    issued: list[int] = []
    with Plane.open(offload=offload) as plane:
        device = plane.devices.expect(1, DeviceFacts(device_public_id="device-1"))["id"]
        issued.append(
            (await plane.certificates.issue(1, ["a.example"], key_type="rsa-2048", device_ids=[device]))["id"]
        )
        with pytest.raises(ErrorResponse) as caught:
            await plane.certificates.renew(1, issued[0], device_id=device)
        assert caught.value.key == "CERT_REVOKED"
        assert plane.certificates.show(1, issued[0])["status"] == "revoked"


async def test_materials_are_pending_for_a_device_without_a_key(world: World) -> None:
    from certctrl.plane.devices.devices import DeviceFacts

    device = world.plane.devices.expect(1, DeviceFacts(device_public_id="device-1"))["id"]
    row = await world.plane.certificates.issue(1, ["a.example"], device_ids=[device])
    with pytest.raises(ErrorResponse) as caught:
        world.plane.certificates.materials(device, row["id"])
    assert (caught.value.status, caught.value.key) == (409, "WRAP_PENDING")
