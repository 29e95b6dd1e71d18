"""Tags of devices on both engines: changes, limits, tags of enrolment tokens, and lists by tag."""

from __future__ import annotations

import base64
import logging
from collections.abc import Callable
from typing import Any

import pytest
import trio
from engine_plane import new_device, plane_on
from hypothesis import given
from hypothesis import strategies as st
from nacl.public import PrivateKey, SealedBox

from certctrl.errors import PlaneError
from certctrl.plane.core import Plane
from certctrl.plane.devices.devices import DeviceFacts
from certctrl.plane.devices.enrolment import Proof
from certctrl.plane.devices.tags import MAX_CHARACTERS, MAX_TAGS, checked_tags
from certctrl.plane.errors import ErrorResponse
from certctrl.plane.storage.database import Database
from certctrl.plane.storage.keyring import Keyring
from certctrl.protocol.wire.registration import key_proof

MANY = [f"t{number:02d}" for number in range(MAX_TAGS)]


@pytest.fixture
def plane(open_database: Callable[[], Database]) -> Plane:
    return plane_on(open_database())


async def change(plane: Plane, *devices: int, user: int = 1, **tags: Any) -> list[dict[str, Any]]:
    return await plane.work(plane.devices.tags.change, user, devices, **tags)


async def tags_of(plane: Plane, device_id: int) -> list[str]:
    shown = await plane.work(plane.devices.show, 1, device_id)
    tags: list[str] = shown["tags"]
    return tags


async def enrol(plane: Plane, token: str, name: str, key: PrivateKey | None = None) -> int:
    facts, secret = DeviceFacts(device_public_id=name, name=name), key or PrivateKey.generate()

    async def request(proof: Proof) -> dict[str, Any]:
        enrolment = plane.enrolment.register_unattended
        return await plane.work(enrolment, token, facts, bytes(secret.public_key), proof)

    challenge = await request(Proof(offered=True))
    opened = SealedBox(secret).decrypt(base64.b64decode(challenge["challenge_b64"]))
    answer = await request(Proof(offered=True, answer=key_proof(opened)))
    return int(answer["device"]["id"])


async def test_tags_are_added_and_removed_and_a_key_has_one_value(
    plane: Plane, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    one, two = await new_device(plane, "device-1"), await new_device(plane, "device-2")
    assert [row["tags"] for row in await change(plane, two, one, add=["web", "env=prod", "web"])] == [
        ["env=prod", "web"]
    ] * 2
    (row,) = await change(plane, one, add=["env=test", "web"], remove=["db"])
    assert (row["tags"], row["added"], row["removed"]) == (["env=test", "web"], ["env=test"], ["env=prod"])
    assert (row["id"], row["name"]) == (one, "device-1")
    assert "tags of 1 device changed: +env=test +web -db" in caplog.messages
    (row,) = await change(plane, one, remove=["web", "Not A Tag"])
    assert (row["tags"], row["removed"]) == (["env=test"], ["web"])
    assert [await tags_of(plane, device) for device in (one, two)] == [["env=test"], ["env=prod", "web"]]
    used = await plane.work(plane.devices.tags.used, 1)
    assert used == [{"tag": tag, "devices": 1} for tag in ("env=prod", "env=test", "web")]


async def test_devices_whose_tags_have_changed_are_reported(plane: Plane) -> None:
    one, two = await new_device(plane, "device-1"), await new_device(plane, "device-2")
    await change(plane, two, add=["web"])
    reported: list[tuple[list[int], bool]] = []
    plane.devices.tags.on_changed = lambda device_ids, strict: reported.append((list(device_ids), strict))
    await change(plane, one, two, add=["web"])
    await change(plane, one, two, add=["web"], remove=["db"])
    await change(plane, two, remove=["web"])
    await change(plane, one, two, add=["env=a"], remove=["web"])
    await plane.work(plane.devices.tags.enrol, one, ["rack"])
    assert reported == [([one], True), ([], True), ([two], True), ([one, two], True), ([one], False)]


async def test_a_tag_is_not_both_added_and_removed(plane: Plane) -> None:
    device = await new_device(plane)
    with pytest.raises(ErrorResponse, match="web cannot be both added and removed") as refused:
        await change(plane, device, add=["db", "web"], remove=["web"])
    assert refused.value.params["field"] == "remove"
    with pytest.raises(ErrorResponse) as refused:
        await change(plane, device, add=["Web"])
    assert refused.value.params["field"] == "add"
    assert await tags_of(plane, device) == []


async def test_all_devices_are_changed_or_none(plane: Plane) -> None:
    one, full = await new_device(plane, "device-1"), await new_device(plane, "device-2")
    await change(plane, full, add=MANY)
    for devices, status, says in (((one, 99), 404, "No such device: 99"), ((one, full), 409, "device-2.* 33 tags")):
        with pytest.raises(PlaneError, match=says) as refused:
            await change(plane, *devices, add=["web"])
        assert refused.value.status == status
    assert (await tags_of(plane, one), await tags_of(plane, full)) == ([], MANY)
    assert (await change(plane, full, add=["web"], remove=["t00"]))[0]["tags"] == [*MANY[1:], "web"]


async def test_devices_of_another_user_are_not_found(plane: Plane) -> None:
    other = (await plane.work(plane.devices.add_user, "other"))["id"]
    device = await new_device(plane)
    with pytest.raises(PlaneError, match="No such device"):
        await change(plane, device, user=other, add=["web"])
    await change(plane, device, add=["web"])
    assert await plane.work(plane.devices.tags.used, other) == []
    assert await plane.work(plane.devices.page, other, 0, 10, ["web"]) == []


@pytest.mark.parametrize(
    "tag",
    ["", "Web", "-web", "web-", "a b", "a,b", "a=", "=a", "a=b=c", "ü", "１", "web\n", "a" * (MAX_CHARACTERS + 1)],
)
def test_what_is_not_a_tag(tag: str) -> None:
    with pytest.raises(ErrorResponse, match="is not a tag: use up to 64 lower-case letters") as refused:
        checked_tags([tag], "add")
    assert (refused.value.status, refused.value.params["field"]) == (400, "add")


def test_tags() -> None:
    assert checked_tags(["web", "a" * MAX_CHARACTERS, "env=prod", "rack-7.row_2", "web", "7"], "add") == (
        "7", "a" * MAX_CHARACTERS, "env=prod", "rack-7.row_2", "web",
    )  # fmt: skip
    for tags, says in (
        ([*MANY, "web"], "33 tags are more than 32"),
        (["env=test", "env-x=1", "web", "env=prod", "env"], "env=prod and env=test are two values of one key"),
    ):
        with pytest.raises(ErrorResponse, match=says) as refused:
            checked_tags(tags, "add")
        assert refused.value.params["field"] == "add"


@given(st.lists(st.text("ab=-.", max_size=6), max_size=4))
def test_any_texts_are_tags_or_refused(texts: list[str]) -> None:
    try:
        tags = checked_tags(texts, "add")
    except ErrorResponse:
        return
    assert set(tags) == set(texts)
    keys = [tag.partition("=")[0] for tag in tags if "=" in tag]
    assert len(keys) == len(set(keys))
    assert tuple(" ".join(tags).split()) == tags, "tokens store them so"


async def test_two_operators_do_not_exceed_the_limit(open_database: Callable[[], Database]) -> None:
    keyring = Keyring.open(None)
    planes = [plane_on(open_database(), keyring) for _ in range(2)]
    device = await new_device(planes[0])
    await change(planes[0], device, add=MANY[:-1])
    refused = []

    async def add(plane: Plane, tag: str) -> None:
        try:
            await change(plane, device, add=[tag])
        except PlaneError as error:
            refused.append(error.key)

    async with trio.open_nursery() as nursery:
        for number in range(8):
            nursery.start_soon(add, planes[number % 2], f"x{number}")
    assert refused == ["LIMIT"] * 7
    assert len(await tags_of(planes[1], device)) == MAX_TAGS


async def test_a_token_gives_its_tags_once(plane: Plane) -> None:
    token = await plane.work(plane.enrolment.new_token, 1, max_uses=None, tags=["web", "env=prod"])
    assert token["tags"] == ["env=prod", "web"]
    key = PrivateKey.generate()
    device = await enrol(plane, token["token"], "device-1", key)
    assert await tags_of(plane, device) == ["env=prod", "web"]
    await change(plane, device, remove=["web"])
    assert await enrol(plane, token["token"], "device-1", key) == device
    assert await tags_of(plane, device) == ["env=prod"], "what an operator removed does not come back"
    (shown,) = await plane.work(plane.enrolment.tokens, 1)
    assert shown["tags"] == ["env=prod", "web"]
    with pytest.raises(PlaneError, match="'Web' is not a tag"):
        await plane.work(plane.enrolment.new_token, 1, tags=["Web"])


async def test_what_an_operator_gave_an_expected_device_stays(plane: Plane, caplog: pytest.LogCaptureFixture) -> None:
    expected, full = await new_device(plane, "device-1"), await new_device(plane, "device-2")
    await change(plane, expected, add=["env=test", "web"])
    await change(plane, full, add=MANY[:-1])
    token = await plane.work(plane.enrolment.new_token, 1, max_uses=None, tags=["db", "env=prod", "web"])
    for name in ("device-1", "device-2"):
        await enrol(plane, token["token"], name)
    assert await tags_of(plane, expected) == ["db", "env=test", "web"]
    assert await tags_of(plane, full) == ["db", *MANY[:-1]]
    assert f"device {full} has {MAX_TAGS} tags: 2 of its token are left out" in caplog.text


async def test_lists_by_tag(plane: Plane) -> None:
    devices = [await new_device(plane, f"device-{number}") for number in range(6)]
    await change(plane, *devices[:4], add=["web"])
    await change(plane, *devices[2:], add=["env=prod"])
    certificates = [
        (await plane.certificates.issue(1, [f"{number}.example"], device_ids=devices[number : number + 2]))["id"]
        for number in range(5)
    ]

    async def ids(page: Callable[..., list[dict[str, Any]]], after: int, limit: int, *tags: str) -> list[int]:
        return [row["id"] for row in await plane.work(page, 1, after, limit, tags)]

    page = plane.devices.page
    assert await ids(page, 0, 10) == devices
    assert await ids(page, 0, 10, "web") == devices[:4]
    assert await ids(page, 0, 10, "web", "env=prod") == devices[2:4]
    assert await ids(page, devices[0], 2, "web") == devices[1:3]
    assert await ids(page, 0, 10, "db") == []
    page = plane.certificates.page_of_user
    assert await ids(page, 0, 10) == certificates
    assert await ids(page, 0, 10, "web") == certificates[:4]
    assert await ids(page, certificates[1], 1, "web") == [certificates[2]]
    assert await ids(page, 0, 10, "web", "env=prod") == certificates[1:4], "one device has both"
    with pytest.raises(PlaneError, match="'' is not a tag"):
        await ids(page, 0, 10, "")


async def test_many_devices_are_changed_with_a_few_statements(plane: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    """On PostgreSQL, each is a round trip."""
    devices = [await new_device(plane, f"device-{number}") for number in range(30)]
    await change(plane, *devices[:20], add=["web", "env=test", "old"])
    run, statements = plane.database.run, []

    def counted(sql: str, *parameters: object) -> int:
        statements.append(sql)
        return run(sql, *parameters)

    monkeypatch.setattr(plane.database, "run", counted)
    shown = await change(plane, *devices, add=["env=prod", "new", "web"], remove=["old"])
    assert sum("device_tags" in sql for sql in statements) <= 5, statements
    assert [row["tags"] for row in shown] == [["env=prod", "new", "web"]] * 30
    assert [await tags_of(plane, device) for device in devices] == [["env=prod", "new", "web"]] * 30
    assert shown[0]["added"] == ["env=prod", "new"] and shown[0]["removed"] == ["env=test", "old"]
    assert shown[-1]["added"] == ["env=prod", "new", "web"] and shown[-1]["removed"] == []
