"""Requests of several devices in one unit of work do not affect each other; with both engines."""

from __future__ import annotations

import base64
import random
from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing
from engine_plane import WALL, new_device, plane_on, registered
from nacl.public import PrivateKey, SealedBox

from certctrl.plane.certificates.views import Material
from certctrl.plane.core import Plane, Poll
from certctrl.plane.devices.devices import DeviceFacts
from certctrl.plane.devices.sessions import DeviceSession
from certctrl.plane.errors import ErrorResponse
from certctrl.plane.http.authentication import ForDevices
from certctrl.plane.storage.database import Database
from certctrl.plane.storage.gathering import _TRANSACTIONS, Gathering


@pytest.fixture
def plane(open_database: Callable[[], Database]) -> Plane:
    return plane_on(open_database())


async def device_with_key(plane: Plane, name: str) -> tuple[int, PrivateKey]:
    device_id, key = await new_device(plane, name), PrivateKey.generate()
    facts = DeviceFacts(device_public_id=name, name=name)
    await plane.work(plane.devices.activate, device_id, facts, bytes(key.public_key))
    return device_id, key


async def test_each_fetch_opens_with_the_key_of_its_device_only(plane: Plane) -> None:
    devices = [await device_with_key(plane, f"device-{number}") for number in range(4)]
    certificates = [
        (await plane.certificates.issue(1, [f"{number}.test"], device_ids=[devices[place][0] for place in places]))[
            "id"
        ]
        for number, places in enumerate([(0,), (1, 2), (0, 1, 2), (3,)])
    ]
    pairs = [(place, cert_id) for place in range(4) for cert_id in [*certificates, 2**53 - 1]] * 2
    random.Random(7).shuffle(pairs)
    wanted = [(DeviceSession(devices[place][0], 1, 1), (cert_id, "")) for place, cert_id in pairs]
    found = await plane.database.work_read(plane.certificates.materials_of, wanted)
    for (place, cert_id), one in zip(pairs, found, strict=True):
        device_id, key = devices[place]
        try:
            alone = await plane.work(plane.certificates.materials, device_id, cert_id)
        except ErrorResponse as error:
            assert isinstance(one, ErrorResponse) and one.key == error.key
            continue
        assert isinstance(one, Material) and one.data is not None
        assert one.data["certificate_pem"] == alone["certificate_pem"]
        assert len(SealedBox(key).decrypt(base64.b64decode(one.data["enc_data_key_b64"]))) == 32


async def test_a_poll_never_gets_the_page_of_another_device(plane: Plane) -> None:
    devices = [await registered(plane, f"device-{number}") for number in range(5)]
    heads = []
    for number, (device_id, _) in enumerate(devices):
        for _ in range(number):
            await plane.work(plane.stream.append, device_id, f"type-{number}", {"cert_id": number})
        heads.append((await plane.work(plane.stream.read, device_id, None, 9)).cursor)
    polls = [(place, cursor) for place in range(5) for cursor in (*heads, None)]
    random.Random(7).shuffle(polls)
    items = [(devices[place][1], Poll(cursor=cursor)) for place, cursor in polls]
    plane._polls.burst = 1000
    found = await plane.database.work_read(ForDevices(plane, plane.begin_polls), items)
    for (place, cursor), one in zip(polls, found, strict=True):
        assert not isinstance(one, ErrorResponse) and one.session.device_id == devices[place][0]
        try:
            alone = await plane.work(plane.stream.read, devices[place][0], cursor, 20)
        except ErrorResponse as error:
            assert isinstance(one.result, ErrorResponse) and one.result.key == error.key
            continue
        assert not isinstance(one.result, ErrorResponse) and one.result.page == alone


async def test_sightings_are_stored_after_the_clock_was_set_back(open_database: Callable[[], Database]) -> None:
    now: Any = int(WALL) + 1000
    plane = plane_on(open_database(), wall_now=lambda: now)
    devices = [await new_device(plane, f"device-{number}") for number in range(230)]

    async def stored(address: str) -> set[tuple[float, str, str]]:
        for device_id in devices:
            plane.devices.seen(device_id, address, "")
        await plane.work(plane.devices.save_sightings)
        rows = await plane.work(plane.database.all, "SELECT last_seen_at, last_address, last_cursor FROM devices")
        return {(row["last_seen_at"], row["last_address"], row["last_cursor"]) for row in rows}

    assert await stored("fe80::1%eth0") == {(now, "fe80::1%eth0", "")}
    now -= 30
    assert await stored("2") == {(now + 30, "fe80::1%eth0", "")}, "another plane's sighting is newer"
    now -= 500.25
    assert await stored("3") == {(now, "3", "")}, "the clock was set back"
    now += 1
    assert await stored("") == {(now, "", "")}


async def test_a_cancelled_request_leaves_no_unit_behind(plane: Plane) -> None:
    for reads in (False, True):
        gathering = Gathering(plane.database, reads=reads)
        for first_cancelled in (False, True):
            ran: list[int] = []

            async def run(
                number: int, scope: trio.CancelScope, gathering: Gathering = gathering, ran: list[int] = ran
            ) -> None:
                with scope:
                    await gathering.work(ran.append, number)

            scopes = [trio.CancelScope() for _ in range(3)]
            scopes[0 if first_cancelled else 1].cancel()
            with trio.fail_after(30):
                async with trio.open_nursery() as nursery:
                    for number, scope in enumerate(scopes):
                        nursery.start_soon(run, number, scope)
            assert sorted(ran) == [0, 1, 2]
            with trio.fail_after(30):
                assert await gathering.work(lambda: 7) == 7
        assert gathering._transactions.borrowed_tokens == 0 and not gathering._waiting


async def test_a_request_cancelled_while_all_transactions_are_busy_leaves_no_unit_behind(plane: Plane) -> None:
    gathering = Gathering(plane.database)
    busy = [object() for _ in range(_TRANSACTIONS)]
    for borrower in busy:
        gathering._transactions.acquire_on_behalf_of_nowait(borrower)
    ran: list[int] = []
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            scope = trio.CancelScope()

            async def first() -> None:
                with scope:
                    await gathering.work(ran.append, 0)

            nursery.start_soon(first)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(gathering.work, ran.append, 1)
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
            await trio.testing.wait_all_tasks_blocked()
            assert not ran
            for borrower in busy:
                gathering._transactions.release_on_behalf_of(borrower)
    assert ran == [0, 1] and gathering._transactions.borrowed_tokens == 0
