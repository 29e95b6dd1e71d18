"""The materials of many certificates for several devices: as each alone, in two statements; with both engines."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import pytest
from engine_plane import new_device, plane_on, registered
from nacl.public import PrivateKey, SealedBox

from certctrl.plane.certificates import batch as batches
from certctrl.plane.certificates.batch import batch
from certctrl.plane.core import Plane
from certctrl.plane.devices.devices import DeviceFacts
from certctrl.plane.devices.sessions import DeviceSession
from certctrl.plane.errors import ErrorResponse
from certctrl.plane.http.answers import json_of
from certctrl.plane.http.middleware import error_response_of
from certctrl.plane.storage.database import Database


@pytest.fixture
def plane(open_database: Callable[[], Database]) -> Plane:
    return plane_on(open_database())


async def with_key(plane: Plane, name: str) -> tuple[DeviceSession, PrivateKey]:
    device_id, key = await new_device(plane, name), PrivateKey.generate()
    facts = DeviceFacts(device_public_id=name, name=name)
    await plane.work(plane.devices.activate, device_id, facts, bytes(key.public_key))
    return DeviceSession(device_id, 1, 1), key


async def issued(plane: Plane, name: str, *sessions: DeviceSession) -> int:
    return int((await plane.certificates.issue(1, [name], device_ids=[one.device_id for one in sessions]))["id"])


def plain(*ids: int) -> list[tuple[int, str]]:
    return [(cert_id, "") for cert_id in ids]


def answer(found: Any) -> list[dict[str, Any]]:
    return list(json.loads(batch(found, json_of, error_response_of))["data"])


async def test_each_of_many_is_answered_as_alone_with_two_statements(
    plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    (first, key), (second, other) = [await with_key(plane, name) for name in ("device-a", "device-b")]
    shared, own = await issued(plane, "shared.test", first, second), await issued(plane, "own.test", first)
    revoked = await issued(plane, "revoked.test", first)
    await plane.certificates.revoke(1, revoked)
    statements, read = [], plane.database.all
    monkeypatch.setattr(plane.database, "all", lambda *args: statements.append(args[0]) or read(*args))  # type: ignore[func-returns-value]
    wanted = [(first, plain(own, 2**53 - 1, revoked, shared)), (second, plain(shared, own))]
    found = await plane.database.work_read(plane.certificates.batches_of, wanted)
    assert len(statements) == 2
    items = [answer(one) for one in found]
    assert [(one["cert_id"], one["status"]) for one in items[0]] == [
        (own, 200), (2**53 - 1, 404), (revoked, 410), (shared, 200),
    ]  # fmt: skip
    assert [(one["cert_id"], one["status"]) for one in items[1]] == [(shared, 200), (own, 404)]
    assert items[0][2]["error"]["key"] == "CERT_REVOKED"
    for item, box in ((items[0][3], key), (items[1][0], other)):
        alone = await plane.work(plane.certificates.materials, first.device_id, shared)
        assert item["data"]["certificate_pem"] == alone["certificate_pem"] and item["data"].keys() == alone.keys()
        assert len(SealedBox(box).decrypt(base64.b64decode(item["data"]["enc_data_key_b64"]))) == 32


async def test_a_device_without_a_key_and_a_damaged_key_fail_alone(
    plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = await with_key(plane, "device-a")
    keyless = DeviceSession(await new_device(plane, "keyless"), 1, 1)
    good, damaged = await issued(plane, "good.test", first, keyless), await issued(plane, "damaged.test", first)
    unseal = plane.certificates._table.key_of
    monkeypatch.setattr(
        plane.certificates._table, "key_of", lambda row: unseal({**row, "private_key_enc": b"x" * 60})  # type: ignore[dict-item]
        if row["id"] == damaged else unseal(row)
    )  # fmt: skip
    wanted = [(first, plain(damaged, good)), (keyless, plain(good))]
    found = [answer(one) for one in await plane.database.work_read(plane.certificates.batches_of, wanted)]
    assert [one["status"] for one in found[0]] == [500, 200]
    assert found[1][0]["error"]["key"] == "WRAP_PENDING"


async def test_what_the_device_has_is_not_sent_again(plane: Plane) -> None:
    session, _ = await with_key(plane, "device-a")
    ids = [await issued(plane, f"{number}.test", session) for number in range(2)]
    (found,) = await plane.database.work_read(plane.certificates.batches_of, [(session, plain(*ids))])
    etags = [one["etag"] for one in answer(found)]
    wanted = [(ids[0], etags[0]), (ids[1], etags[0])]
    (found,) = await plane.database.work_read(plane.certificates.batches_of, [(session, wanted)])
    assert answer(found)[0] == {"cert_id": ids[0], "status": 304, "etag": etags[0]}
    assert answer(found)[1]["status"] == 200 and answer(found)[1]["etag"] == etags[1]


async def test_as_many_as_a_unit_of_work_may_hold(plane: Plane) -> None:
    session, _ = await with_key(plane, "device-a")
    cert_id = await issued(plane, "one.test", session)
    wanted = [(session, plain(cert_id, *range(10_000 * n, 10_000 * n + 99))) for n in range(1, 5)]
    found = await plane.database.work_read(plane.certificates.batches_of, wanted)
    assert [[one["status"] for one in answer(each)].count(200) for each in found] == [1] * 4


async def test_an_answer_is_bounded_and_the_rest_is_full(plane: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    session, _ = await with_key(plane, "device-a")
    ids = [await issued(plane, f"{number}.test", session) for number in range(6)]
    (found,) = await plane.database.work_read(plane.certificates.batches_of, [(session, plain(*ids))])
    size = len(batch(found[:1], json_of, error_response_of))
    monkeypatch.setattr(batches, "MAX_ANSWER_BYTES", 3 * size)
    text = batch(found, json_of, error_response_of)
    items = json.loads(text)["data"]
    statuses = [one["status"] for one in items]
    assert len(text) <= 3 * size and [one["cert_id"] for one in items] == ids
    assert 1 <= statuses.count(200) < 6 and statuses == sorted(statuses), "those from the first that does not fit"
    assert {one["error"]["key"] for one in items if one["status"] == 503} == {"ANSWER_FULL"}


async def test_the_token_decides_before_the_body(plane: Plane) -> None:
    from certctrl.plane.http.authentication import ForDevices

    _, token = await registered(plane)
    refused = ErrorResponse("no", status=400, key="BAD_REQUEST", code=4000)
    found = await plane.database.work_read(
        ForDevices(plane, plane.certificates.batches_of, plane.read_alone),
        [("no.such.token", refused), (token, refused), (token, plain(7))],
    )
    assert found[0].status == 401 and found[1].result is refused and len(found[2].result) == 1
