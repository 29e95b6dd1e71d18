"""What an operator approves is what happens, and only the holder of a key can register it (docs/protocol.md)."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from earlier import earlier_data_dir
from nacl.public import PrivateKey
from plane_world import Device, World
from proving import answered, registration

from certctrl.plane.core import Plane
from certctrl.plane.devices.devices import DeviceFacts
from certctrl.plane.devices.key_proofs import CHALLENGE_SECONDS
from certctrl.plane.errors import ErrorResponse

REGISTER = "/apiv1/device/registration"
PUBLIC_ID = "23229bf7-5172-02c7-59a2-76d5b4a40090"


async def approved(world: World, public_id: str = "", name: str = "web-1", user_id: int = 1) -> str:
    """Start a grant, approve it, and return its registration code."""
    asked = {"action": "device_start", "name": name, "platform": "Debian 12"}
    grant = (await world.stranger("POST", "/auth/device", asked | {"device_public_id": public_id})).data
    decision = {"approve": True, "user_id": user_id}
    assert (await world.operator("POST", f"/apiv1/device-grants/{grant['user_code']}", decision)).status == 200
    polled = {"action": "device_poll", "device_code": grant["device_code"]}
    return str((await world.stranger("POST", "/auth/device", polled)).data["registration_code"])


def by_code(public_id: str, secret: PrivateKey, code: str, name: str = "web-1", user_id: int = 1) -> dict[str, Any]:
    return registration(public_id, secret, name) | {"user_id": user_id, "registration_code": code}


# --- the approved device ------------------------------------------------------------------------------------------


async def test_an_approval_that_names_no_device_restores_none(world: World) -> None:
    """Found by review: a revoked device asked again without its id, under a new name, and was approved as a new one."""
    device = await world.device()
    world.plane.devices.revoke(1, device.id, "stolen")
    world.clock.advance(1)
    code = await approved(world, name="web-9")
    reply = await world.register(by_code(device.public_id, device.secret, code, "web-9"))
    assert (reply.status, reply.key) == (403, "DEVICE_NOT_NAMED")
    assert "update the agent" in reply.what
    assert world.plane.devices.show(1, device.id)["status"] == "revoked"
    reply = await world.register(by_code("another-device", PrivateKey.generate(), code))
    assert reply.status == 200, "the approval is not used up: a new device may register"


async def test_a_known_device_needs_an_approval_that_names_it(world: World) -> None:
    device = await world.device()
    reply = await world.register(by_code(device.public_id, device.secret, await approved(world)))
    assert (reply.status, reply.key) == (403, "DEVICE_NOT_NAMED")
    assert (await device.poll()).status == 204, "its session is unchanged"
    world.plane.devices.expect(1, DeviceFacts(device_public_id="expected-1"))
    reply = await world.register(by_code("expected-1", device.secret, await approved(world)))
    assert reply.key == "DEVICE_NOT_NAMED", "nor may anyone take the place of an expected device"


async def test_a_device_that_is_revoked_after_its_approval_stays_revoked(world: World) -> None:
    device = await world.device()
    code = await approved(world, device.public_id)
    world.clock.advance(1)
    world.plane.devices.revoke(1, device.id, "stolen")
    reply = await world.register(by_code(device.public_id, device.secret, code))
    assert (reply.status, reply.key) == (403, "DEVICE_REVOKED")


async def test_a_revoked_device_does_not_come_back_under_another_id_or_user(world: World) -> None:
    world.plane.devices.add_user("team")
    device = await world.device()
    world.plane.devices.revoke(1, device.id, "stolen")
    world.clock.advance(1)
    code = await approved(world, "another-device")
    assert (await world.register(by_code("another-device", device.secret, code))).key == "DEVICE_REVOKED"
    code = await approved(world, device.public_id, user_id=2)
    assert (await world.register(by_code(device.public_id, device.secret, code, user_id=2))).key == "DEVICE_REVOKED"
    token = world.plane.enrolment.new_token(2)["token"]
    for public_id, secret in (("another-device", device.secret), (device.public_id, PrivateKey.generate())):
        reply = await world.register(registration(public_id, secret) | {"enrolment_token": token})
        assert (reply.status, reply.key) == (403, "DEVICE_REVOKED")


async def test_a_device_registers_under_the_name_that_was_approved(world: World) -> None:
    code = await approved(world, PUBLIC_ID, name="web-1")
    reply = await world.register(by_code(PUBLIC_ID, PrivateKey.generate(), code, name="db-1"))
    assert reply.data["device"]["name"] == "web-1"


async def test_operators_see_which_known_devices_ask(world: World) -> None:
    world.plane.devices.add_user("team")
    world.plane.devices.expect(2, DeviceFacts(device_public_id=PUBLIC_ID, name="old"))
    world.plane.devices.expect(1, DeviceFacts(device_public_id="device-2", name="web-1"))
    asked = {"action": "device_start", "name": "web-1", "device_public_id": PUBLIC_ID}
    grant = (await world.stranger("POST", "/auth/device", asked)).data
    shown = (await world.operator("GET", f"/apiv1/device-grants/{grant['user_code']}")).data
    assert shown["known_devices"] == [
        {"id": 1, "user_id": 2, "user": "team", "name": "old", "status": "expected", "same_id": True},
        {"id": 2, "user_id": 1, "user": "operator", "name": "web-1", "status": "expected", "same_id": False},
    ]


# --- possession of the key -------------------------------------------------------------------------------------------


@pytest.fixture
def credential(world: World, by: str) -> Callable[[], Any]:
    async def make() -> dict[str, Any]:
        if by == "token":
            return {"enrolment_token": world.plane.enrolment.new_token(1)["token"]}
        return {"user_id": 1, "registration_code": await approved(world, PUBLIC_ID)}

    return make


@pytest.mark.parametrize("by", ["token", "code"])
async def test_a_key_is_registered_by_its_holder_only(world: World, credential: Callable[[], Any]) -> None:
    """Found by review: anyone with an approval or token could register the public key of somebody else."""
    body = registration(PUBLIC_ID, PrivateKey.generate()) | await credential()
    challenge = (await world.stranger("POST", REGISTER, body)).data
    assert set(challenge) == {"challenge_b64"}
    assert len(base64.b64decode(challenge["challenge_b64"])) == 32 + 48
    for wrong in ("x", challenge["challenge_b64"], base64.b64encode(bytes(32)).decode()):
        reply = await world.stranger("POST", REGISTER, body | {"challenge_response": wrong[:100]})
        assert (reply.status, reply.key) == (403, "KEY_PROOF_FAILED")
    assert world.plane.devices.show_all(1) == []
    assert (await world.register(body)).status == 200, "nothing was used up"


async def test_a_device_registers_with_the_answer_to_a_challenge_once(world: World) -> None:
    """An enrolment token may be used again, so a copy of the second request must not start a new session."""
    secret = PrivateKey.generate()
    body = registration(PUBLIC_ID, secret) | {"enrolment_token": world.plane.enrolment.new_token(1)["token"]}
    answer = answered(body, (await world.stranger("POST", REGISTER, body)).data)
    first, again = [await world.stranger("POST", REGISTER, answer) for _ in range(2)]
    assert (first.status, again.key) == (200, "KEY_PROOF_FAILED")
    assert (await Device(world.app, first.data["session"]["access_token"]).poll()).status == 204
    assert (await world.register(body)).status == 200, "a new challenge is answered"


@pytest.mark.parametrize("by", ["token", "code"])
async def test_a_challenge_is_for_one_registration_and_one_minute(world: World, credential: Callable[[], Any]) -> None:
    body = registration(PUBLIC_ID, PrivateKey.generate()) | await credential()
    challenge = (await world.stranger("POST", REGISTER, body)).data
    other = {"dev_pk": registration(PUBLIC_ID, PrivateKey.generate())["dev_pk"]}
    reply = await world.stranger("POST", REGISTER, answered(body, challenge) | other)
    assert reply.key == "KEY_PROOF_FAILED", "another key"
    world.clock.advance(CHALLENGE_SECONDS + 0.1)
    reply = await world.stranger("POST", REGISTER, answered(body, challenge))
    assert reply.key == "KEY_PROOF_FAILED", "too late"
    assert (await world.register(body)).status == 200


async def test_a_wrong_credential_gets_no_challenge(world: World) -> None:
    body = registration(PUBLIC_ID, PrivateKey.generate())
    assert (await world.stranger("POST", REGISTER, body | {"enrolment_token": "et_guess"})).key == "INVALID_TOKEN"
    code = {"user_id": 1, "registration_code": "guess"}
    assert (await world.stranger("POST", REGISTER, body | code)).key == "INVALID_TOKEN"


async def old_agent(world: World, public_id: str, secret: PrivateKey | None = None) -> Any:
    """Register as version 0.1 does, which knows no challenges."""
    body = registration(public_id, secret or PrivateKey.generate())
    del body["features"]
    token = world.plane.enrolment.new_token(1)["token"]
    return await world.stranger("POST", REGISTER, body | {"enrolment_token": token})


async def test_an_agent_without_proofs_is_told_to_update(world: World) -> None:
    reply = await old_agent(world, PUBLIC_ID)
    assert (reply.status, reply.key) == (403, "KEY_PROOF_REQUIRED")
    assert "update the agent" in reply.what


async def test_unproven_keys_are_for_new_devices_if_allowed(build: Callable[..., World]) -> None:
    world = build(allow_unproven_keys=True)
    secret = PrivateKey.generate()
    assert (await old_agent(world, PUBLIC_ID, secret)).status == 200
    assert (await old_agent(world, PUBLIC_ID, secret)).key == "KEY_PROOF_REQUIRED", "known by now"
    device = await world.device("device-number-2")
    assert (await old_agent(world, device.public_id, device.secret)).key == "KEY_PROOF_REQUIRED"


def test_a_data_directory_of_an_earlier_release_allows_unproven_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def register(plane: Plane) -> None:
        token = plane.enrolment.new_token(1)["token"]
        plane.enrolment.register_unattended(token, DeviceFacts(device_public_id="device-9"), bytes(range(1, 33)))

    earlier_data_dir(tmp_path / "old", monkeypatch)
    with Plane.open(tmp_path / "old", monotonic=lambda: 0.0) as plane:
        register(plane)
    with Plane.open(tmp_path / "new", monotonic=lambda: 0.0) as plane, pytest.raises(ErrorResponse) as caught:
        register(plane)
    assert caught.value.key == "KEY_PROOF_REQUIRED"
