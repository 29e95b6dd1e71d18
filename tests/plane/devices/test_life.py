"""The life of devices on both engines: another name, new hardware, the end; each step can be repeated."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import pytest
import trio
from engine_plane import new_device, plane_on
from nacl.public import PrivateKey, SealedBox

from certctrl.errors import PlaneError
from certctrl.plane.audit.log import Filter
from certctrl.plane.core import Plane
from certctrl.plane.device_life import Decommissioning
from certctrl.plane.devices.devices import DeviceFacts
from certctrl.plane.devices.enrolment import Proof
from certctrl.plane.devices.key_rotation import BothProofs
from certctrl.plane.devices.sessions import FormerHardwareError
from certctrl.plane.errors import ErrorResponse
from certctrl.plane.profiles.profiles import ProfileChange
from certctrl.plane.storage.database import Database
from certctrl.protocol.wire.registration import key_proof

RELOAD = {"id": "reload", "type": "exec", "cmd_argv": ["reload", "{device.name}"]}
RETIRED = Decommissioning(reason="retired")


@pytest.fixture
def plane(open_database: Callable[[], Database]) -> Plane:
    return plane_on(open_database())


class Host:
    """A host that registers with a token."""

    def __init__(self, plane: Plane, public_id: str, name: str = "from-the-host") -> None:
        self.plane, self.key = plane, PrivateKey.generate()
        self.facts = DeviceFacts(device_public_id=public_id, name=name, features=("csr",))
        self.session: dict[str, Any] = {}

    async def register(self, token: str) -> dict[str, Any]:
        async def request(proof: Proof) -> dict[str, Any]:
            enrol = self.plane.enrolment.register_unattended
            return await self.plane.work(enrol, token, self.facts, bytes(self.key.public_key), proof)

        challenge = await request(Proof(offered=True))
        opened = SealedBox(self.key).decrypt(base64.b64decode(challenge["challenge_b64"]))
        answer = await request(Proof(offered=True, answer=key_proof(opened)))
        self.session = answer["session"]
        device: dict[str, Any] = answer["device"]
        return device

    async def enrol(self) -> int:
        token = await self.plane.work(self.plane.enrolment.new_token, 1)
        return int((await self.register(token["token"]))["id"])

    async def refresh(self) -> Any:
        return await self.plane.refresh(self.session["refresh_token"], self.facts.device_public_id, ())


async def shown(plane: Plane, device_id: int) -> dict[str, Any]:
    return await plane.work(plane.devices.show, 1, device_id)


# --- names --------------------------------------------------------------------------------------------------------


async def test_a_name_stays_when_the_device_registers_again(plane: Plane) -> None:
    host = Host(plane, "public-id-1", "web-1")
    device = await host.enrol()
    done = await plane.life.rename(1, device, "shop-1")
    assert done == {
        "id": device, "name": "shop-1", "former_name": "web-1", "changed": True, "config_changed": False,
        "dry_run": False,
    }  # fmt: skip
    assert not (await plane.life.rename(1, device, "shop-1"))["changed"]
    assert await host.enrol() == device
    assert (await shown(plane, device))["name"] == "shop-1"


async def test_the_name_of_another_device_is_refused(plane: Plane) -> None:
    one, two = await new_device(plane, "web-one"), await new_device(plane, "web-two")
    for name in ("web-two", "WEB-TWO"):
        with pytest.raises(PlaneError, match=f"Device {two} has the name {name}") as refused:
            await plane.life.rename(1, one, name)
        assert isinstance(refused.value, ErrorResponse) and refused.value.key == "NAME_TAKEN"
    for name in ("", "17"):
        with pytest.raises(PlaneError, match="needs a name that is not a number"):
            await plane.life.rename(1, one, name)
    with pytest.raises(PlaneError, match="No such device"):
        await plane.life.rename(2, one, "web-3")
    await plane.life.rename(1, one, "Web-One")  # its own name
    await plane.life.decommission(1, two, RETIRED)
    assert (await plane.life.rename(1, one, "web-two"))["changed"]


async def test_two_devices_do_not_get_one_name(plane: Plane) -> None:
    refused: list[str] = []

    async def rename(device_id: int) -> None:
        try:
            await plane.life.rename(1, device_id, "shop")
        except ErrorResponse as error:
            refused.append(error.key)

    devices = [await new_device(plane, f"device-{number}") for number in range(4)]
    async with trio.open_nursery() as nursery:
        for device_id in devices:
            nursery.start_soon(rename, device_id)
    assert refused == ["NAME_TAKEN"] * 3


async def test_items_follow_the_name_and_a_preview_changes_nothing(plane: Plane) -> None:
    device = await new_device(plane, "web-1-id")
    await plane.profiles.put(1, "p", ProfileChange(devices="*", installs=[RELOAD]))
    preview = await plane.life.rename(1, device, "shop-1", dry_run=True)
    assert preview["config_changed"] and preview["dry_run"]
    assert (await shown(plane, device))["name"] == "web-1-id"
    with pytest.raises(PlaneError, match=r"'not good' cannot be the value of \{device.name\}"):
        await plane.life.rename(1, device, "not good")
    assert (await plane.life.rename(1, device, "shop-1"))["config_changed"]
    (item,) = (await plane.work(plane.installs.document, device))["installs"]
    assert item["cmd_argv"] == ["reload", "shop-1"]


# --- new hardware -------------------------------------------------------------------------------------------------


async def test_new_hardware_becomes_the_device(plane: Plane) -> None:
    old, new = Host(plane, "old-public-id", "web-1"), Host(plane, "new-public-id")
    device = await old.enrol()
    await plane.work(plane.devices.tags.change, 1, [device], add=["web"])
    made = await plane.certificates.issue(1, ["a.example"], device_ids=[device], key_origin="plane")
    own = await plane.certificates.issue(1, ["b.example"], device_ids=[device], key_origin="device")
    preview = await plane.life.replace(1, device, dry_run=True)
    assert "token" not in preview and [one["name"] for one in preview["certificates"]] == ["a.example", "b.example"]
    done = await plane.life.replace(1, device)
    assert done["new_keys"] == [own["id"]]
    assert (await new.register(done["token"]))["name"] == "web-1"
    assert (await new.register(done["token"]))["id"] == device  # the answer was lost
    row = await shown(plane, device)
    assert (row["device_public_id"], row["name"], row["tags"]) == ("new-public-id", "web-1", ["web"])
    assert (await plane.work(plane.devices.show_all, 1)) == [row]
    listed = await plane.work(plane.certificates.page, device, 0, 10)
    assert [one["id"] for one in listed] == [made["id"], own["id"]]
    entry, *_ = await plane.work(plane.audit.page, Filter(what="device.replaced"), 0, 10)
    assert entry["objects"][0]["before"]["device_public_id"] == "old-public-id"
    assert entry["objects"][0]["after"]["device_public_id"] == "new-public-id"
    assert "access_token" in await new.refresh()


async def test_replaced_hardware_is_recognised_and_stays_out(plane: Plane) -> None:
    old, new = Host(plane, "old-public-id"), Host(plane, "new-public-id")
    device = await old.enrol()
    await new.register((await plane.life.replace(1, device))["token"])
    assert (await shown(plane, device))["replaced_hardware_seen_at"] is None
    with pytest.raises(FormerHardwareError) as refused:
        await old.refresh()
    assert (refused.value.status, refused.value.key, refused.value.device_id) == (401, "INVALID_TOKEN", device)
    await plane.clones.note_former(device, "192.0.2.9")
    row = await shown(plane, device)
    assert (row["replaced_hardware_address"], row["copies_suspected"]) == ("192.0.2.9", True)
    assert row["replaced_hardware_seen_at"] is not None
    with pytest.raises(ErrorResponse, match=f"This host was replaced as device {device}") as again:
        await old.enrol()
    assert again.value.key == "REPLACED"
    back = (await plane.life.replace(1, device))["token"]
    assert (await old.register(back))["id"] == device  # the operator changes it back
    assert await old.enrol() == device
    with pytest.raises(FormerHardwareError):
        await new.refresh()


async def test_a_replacement_token_is_for_one_host_and_one_at_a_time(plane: Plane) -> None:
    device, other = await Host(plane, "old-public-id").enrol(), Host(plane, "other-public-id")
    await other.enrol()
    first = (await plane.life.replace(1, device))["token"]
    second = (await plane.life.replace(1, device))["token"]
    with pytest.raises(PlaneError, match="Replacement token was ended"):
        await Host(plane, "new-public-id").register(first)
    with pytest.raises(PlaneError, match="This host is registered as device 2"):
        await other.register(second)
    await Host(plane, "new-public-id").register(second)
    with pytest.raises(PlaneError, match="Replacement token was used by another host"):
        await Host(plane, "third-public-id").register(second)
    third = (await plane.life.replace(1, device))["token"]
    assert (await plane.life.cancel_replacement(1, device))["changed"]
    assert not (await plane.life.cancel_replacement(1, device))["changed"]
    with pytest.raises(PlaneError, match="Replacement token was ended"):
        await Host(plane, "third-public-id").register(third)
    with pytest.raises(PlaneError, match="Replacement token is unknown"):
        await Host(plane, "third-public-id").register("dr_unknown")
    with pytest.raises(PlaneError, match="expires_in must be"):
        await plane.life.replace(1, device, valid_seconds=10**9)


async def test_a_used_token_does_not_bring_back_a_key_that_was_replaced(plane: Plane) -> None:
    device, host = await Host(plane, "old-public-id").enrol(), Host(plane, "new-public-id")
    host.facts = DeviceFacts(device_public_id="new-public-id", features=("key-rotation",))
    token = (await plane.life.replace(1, device))["token"]
    await host.register(token)
    await plane.life.rotate_key(1, device)
    new, rotate = PrivateKey.generate(), plane.rotation.rotate
    asked = await plane.work(rotate, device, bytes(new.public_key), BothProofs())
    answers = [opened(host.key, asked["present_challenge_b64"]), opened(new, asked["new_challenge_b64"])]
    done = await plane.work(rotate, device, bytes(new.public_key), BothProofs(*answers))
    with pytest.raises(PlaneError, match="the device has another key since"):
        await host.register(token)
    assert (await shown(plane, device))["key_fingerprint"] == done["key_fingerprint"]
    host.key = new
    with pytest.raises(PlaneError, match="Replacement token was used by another host"):
        await host.register(token)


async def test_a_revoked_device_is_not_replaced(plane: Plane) -> None:
    device = await Host(plane, "old-public-id").enrol()
    token = (await plane.life.replace(1, device))["token"]
    await plane.work(plane.devices.revoke, 1, device, "stolen")
    with pytest.raises(PlaneError, match="Device has been revoked"):
        await Host(plane, "new-public-id").register(token)
    with pytest.raises(PlaneError, match="is revoked; approve its registration instead"):
        await plane.life.replace(1, device)


# --- its key ------------------------------------------------------------------------------------------------------


def opened(key: PrivateKey, sealed: str) -> str:
    return key_proof(SealedBox(key).decrypt(base64.b64decode(sealed)))


async def test_a_device_replaces_its_key_with_proof_of_both(plane: Plane) -> None:
    host, new = Host(plane, "public-id-1"), PrivateKey.generate()
    device = await host.enrol()
    rotate, public = plane.rotation.rotate, bytes(new.public_key)
    with pytest.raises(PlaneError, match="does not rotate its key"):
        await plane.life.rotate_key(1, device)
    host.facts = DeviceFacts(device_public_id="public-id-1", features=("key-rotation",))
    await host.enrol()
    assert "rotate_key" not in await host.refresh()
    with pytest.raises(PlaneError, match="No rotation of this device's key is wanted"):
        await plane.work(rotate, device, public, BothProofs())
    assert (await plane.life.rotate_key(1, device, dry_run=True))["changed"]
    assert "rotate_key" not in await host.refresh()
    assert (await plane.life.rotate_key(1, device))["changed"]
    assert not (await plane.life.rotate_key(1, device))["changed"]
    assert (await host.refresh())["rotate_key"] is True
    asked = await plane.work(rotate, device, public, BothProofs())
    answers = [opened(host.key, asked["present_challenge_b64"]), opened(new, asked["new_challenge_b64"])]
    for wrong in ((answers[1], answers[0]), (answers[0], answers[0])):
        with pytest.raises(PlaneError, match="An answer to the challenges is wrong"):
            await plane.work(rotate, device, public, BothProofs(*wrong))
    done = await plane.work(rotate, device, public, BothProofs(*answers))
    assert await plane.work(rotate, device, public, BothProofs()) == done  # the answer was lost
    row = await shown(plane, device)
    assert (row["key_fingerprint"], row["key_rotation_wanted_at"]) == (done["key_fingerprint"], None)
    assert "rotate_key" not in await host.refresh()
    (entry,) = await plane.work(plane.audit.page, Filter(what="device.key-rotated"), 0, 10)
    assert entry["objects"][0]["after"] == {"key_fingerprint": done["key_fingerprint"]}


async def test_the_key_of_another_device_is_refused(plane: Plane) -> None:
    host, other = Host(plane, "public-id-1"), Host(plane, "public-id-2")
    host.facts = DeviceFacts(device_public_id="public-id-1", features=("key-rotation",))
    device, _ = await host.enrol(), await other.enrol()
    await plane.life.rotate_key(1, device)
    with pytest.raises(PlaneError, match="This host is registered as device 2"):
        await plane.work(plane.rotation.rotate, device, bytes(other.key.public_key), BothProofs())
    await plane.life.decommission(1, device, RETIRED)
    with pytest.raises(PlaneError, match="is revoked; it has no key to rotate"):
        await plane.life.rotate_key(1, device)


# --- the end ------------------------------------------------------------------------------------------------------


async def test_a_decommissioned_device_has_nothing_left(plane: Plane) -> None:
    host = Host(plane, "public-id-1")
    device, other = await host.enrol(), await new_device(plane, "device-2")
    alone = await plane.certificates.issue(1, ["a.example"], device_ids=[device], key_origin="plane")
    shared = await plane.certificates.issue(1, ["b.example"], device_ids=[device, other], key_origin="plane")
    ca = await plane.work(plane.authorities.add, 1, "own")
    await plane.authorities.assign(1, device, ca["id"])
    how = Decommissioning(revoke=True, reason_code="cessationOfOperation")
    plan = await plane.life.decommission(1, device, how, dry_run=True)
    fates = [(one["id"], one["action"], one["other_devices"]) for one in plan["certificates"]]
    assert fates == [(alone["id"], "revoke", 0), (shared["id"], "withdraw", 1)]
    assert (plan["cas"], plan["changed"]) == ([ca["id"]], True)
    assert (await shown(plane, device))["status"] == "active"
    done = await plane.life.decommission(1, device, how)
    assert done["certificates"] == plan["certificates"] and done["decommissioned_at"]
    assert await plane.work(plane.certificates.page, device, 0, 10) == []
    states = [(await plane.work(plane.certificates.show, 1, one["id"]))["status"] for one in (alone, shared)]
    assert states == ["revoked", "active"]
    with pytest.raises(PlaneError, match="Device has been revoked"):
        await host.refresh()
    assert not (await plane.life.decommission(1, device, how))["changed"]


async def test_certificates_made_from_one_are_not_revoked_with_it(plane: Plane) -> None:
    one, two = await Host(plane, "public-id-1").enrol(), await Host(plane, "public-id-2").enrol()
    await plane.certificates.issue(1, ["a.example"], device_ids=[one, two], key_origin="device")
    plan = await plane.life.decommission(1, one, Decommissioning(revoke=True), dry_run=True)
    (row,) = plan["certificates"]
    assert (row["action"], row["other_devices"]) == ("withdraw", 1)
    await plane.life.decommission(1, one, Decommissioning(revoke=True))
    (left,) = await plane.work(plane.certificates.page, two, 0, 10)
    assert left["status"] != "revoked"


async def test_a_certificate_that_another_device_gets_meanwhile_is_not_revoked(
    plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    device, other = await Host(plane, "public-id-1").enrol(), await Host(plane, "public-id-2").enrol()
    made = await plane.certificates.issue(1, ["a.example"], device_ids=[device], key_origin="plane")
    lock_out = plane.life._lock_out

    def assigned(*arguments: Any) -> None:
        lock_out(*arguments)
        plane.certificates._assign(1, other, made["id"], ())

    monkeypatch.setattr(plane.life, "_lock_out", assigned)
    done = await plane.life.decommission(1, device, Decommissioning(revoke=True))
    (one,) = done["certificates"]
    assert (one["action"], one["other_devices"]) == ("withdraw", 1)
    shown_one = await plane.work(plane.certificates.show, 1, made["id"])
    assert (shown_one["status"], shown_one["device_ids"]) == ("active", [other])


@pytest.mark.parametrize("cut", ["_lock_out", "_withdraw", "_finish"])
async def test_an_interrupted_end_is_completed(plane: Plane, cut: str, monkeypatch: pytest.MonkeyPatch) -> None:
    device = await Host(plane, "public-id-1").enrol()
    for name in ("a.example", "b.example"):
        await plane.certificates.issue(1, [name], device_ids=[device], key_origin="plane")

    def die(*arguments: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as killed, pytest.raises(KeyboardInterrupt):
        killed.setattr(plane.life, cut, die)
        await plane.life.decommission(1, device, Decommissioning(revoke=True))
    assert (await shown(plane, device))["decommissioned_at"] is None
    done = await plane.life.decommission(1, device, Decommissioning(revoke=True))
    assert done["decommissioned_at"]
    states = {row["status"] for row in await plane.work(plane.certificates.page_of_user, 1, 0, 10)}
    assert states == {"revoked"}


async def test_a_decommissioned_device_comes_back_by_approval(plane: Plane) -> None:
    device = await Host(plane, "public-id-1").enrol()
    await plane.life.decommission(1, device, RETIRED)
    facts = DeviceFacts(device_public_id="public-id-1", name="web")
    await plane.work(plane.devices.activate, device, facts, bytes(PrivateKey.generate().public_key))
    row = await shown(plane, device)
    assert (row["status"], row["decommissioned_at"]) == ("active", None)
