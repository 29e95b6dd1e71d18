"""Requests of several devices in one unit of work: polls, fetches, outcomes; with both engines."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from typing import Any

import jwt
import pytest
import trio
from engine_plane import WALL, new_device, plane_on, registered

from certctrl.errors import ConfigError
from certctrl.model.plan import OutcomeKind
from certctrl.plane.core import Plane
from certctrl.plane.devices.reports import FEW_EVENTS, Ack, AgentVersion, OtherEvent, is_few_acks
from certctrl.plane.devices.sessions import DeviceSession
from certctrl.plane.errors import ErrorResponse, conflict
from certctrl.plane.http.authentication import ForDevices
from certctrl.plane.polls import HeldPoll, Poll
from certctrl.plane.storage.database import Database
from certctrl.plane.storage.gathering import Gathering


@pytest.fixture
def plane(open_database: Callable[[], Database]) -> Plane:
    return plane_on(open_database())


def shown(results: Sequence[Any]) -> list[Any]:
    return [one.key if isinstance(one, ErrorResponse) else one for one in results]


def ack(number: int, outcome: OutcomeKind = OutcomeKind.APPLIED) -> Ack:
    return Ack(type="cert.renewed", ts_ms=number, ref={"cert_id": 1}, outcome=outcome)


async def statements(plane: Plane, function: Callable[..., Any], *args: object) -> tuple[Any, int]:
    """Return the result of a unit of work that reads, and the number of its statements."""
    count, read = 0, plane.database.all

    def counted(sql: str, *parameters: object) -> Any:
        nonlocal count
        count += 1
        return read(sql, *parameters)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plane.database, "all", counted)
        return await plane.database.work_read(function, *args), count


async def test_each_token_of_many_is_answered_as_alone(plane: Plane) -> None:
    devices = [await registered(plane, f"device-{number}") for number in range(4)]
    await plane.work(plane.devices.revoke, 1, devices[1][0], "lost")
    await plane.work(plane.sessions.start, devices[2][0])
    tokens = [*(token for _, token in devices), "no.such.token", devices[0][1]]

    def alone(token: str) -> Any:
        try:
            return plane.sessions.authenticate(token)
        except ErrorResponse as error:
            return error

    expected = [await plane.work(alone, token) for token in tokens]
    found, count = await statements(plane, plane.sessions.authenticate_many, tokens)
    assert count == 1 and shown(found) == shown(expected)
    assert [one.device_id for one in found if isinstance(one, DeviceSession)] == [
        devices[0][0], devices[3][0], devices[0][0],
    ]  # fmt: skip
    assert shown(found)[1] == "DEVICE_REVOKED" and found[2].status == found[4].status == 401


async def test_a_token_that_nests_too_deeply_is_refused_alone(plane: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyJWT 2.9 lets the RecursionError of the JSON reader through."""
    _, token = await registered(plane)
    nested = base64.urlsafe_b64encode(b"[" * 2500).decode() + ".e30.AAAA"
    decode = jwt.decode

    def older(text: str, *args: Any, **options: Any) -> Any:
        if text == nested:
            raise RecursionError
        return decode(text, *args, **options)

    monkeypatch.setattr(jwt, "decode", older)
    found = await plane.work(plane.sessions.authenticate_many, [token, nested])
    assert isinstance(found[0], DeviceSession) and shown(found)[1] == "INVALID_TOKEN"


async def test_an_expired_token_among_many(open_database: Callable[[], Database]) -> None:
    now = WALL
    plane = plane_on(open_database(), wall_now=lambda: now, access_token_seconds=60)
    _, early = await registered(plane, "early")
    now += 61
    _, late = await registered(plane, "late")
    found = await plane.work(plane.sessions.authenticate_many, [early, late])
    assert isinstance(found[0], ErrorResponse) and isinstance(found[1], DeviceSession)


async def test_polls_at_the_end_of_their_streams_are_one_statement(plane: Plane) -> None:
    devices = [await registered(plane, f"device-{number}") for number in range(3)]
    await plane.work(plane.stream.append, devices[1][0], "cert.renewed", {"cert_id": 1})
    cursors = [(await plane.work(plane.stream.read, device_id, None, 9)).cursor for device_id, _ in devices]
    many = ForDevices(plane, plane.polls.begin_all, plane.read_alike)
    items = [(token, Poll(cursor=cursor)) for (_, token), cursor in zip(devices, cursors, strict=True)]
    found, count = await statements(plane, many, items)
    assert count == 1 and [one.result.page.cursor for one in found] == cursors
    assert not any(one.result.page.signals for one in found)


async def test_each_poll_of_many_is_answered_as_alone(plane: Plane) -> None:
    devices = [await registered(plane, f"device-{number}") for number in range(5)]
    cursors: list[str | None] = [
        (await plane.work(plane.stream.read, device_id, None, 9)).cursor for device_id, _ in devices
    ]
    for _ in range(3):
        await plane.work(plane.stream.append, devices[1][0], "cert.renewed", {"cert_id": 1})
    cursors[2:] = ["1-1", None, cursors[4]]
    refused = conflict("This poll is not valid")
    items: list[Any] = [
        (token, Poll(cursor=cursor, limit=2)) for (_, token), cursor in zip(devices, cursors, strict=True)
    ]
    items[4] = (devices[4][1], refused)
    found = await plane.database.work_read(ForDevices(plane, plane.polls.begin_all, plane.read_alike), items)
    results = [one.result for one in found]
    assert [len(one.page.signals) if isinstance(one, HeldPoll) else one.key for one in results] == [
        0, 2, "CURSOR_EXPIRED", 0, refused.key,
    ]  # fmt: skip
    assert [one.session.device_id for one in found] == [device_id for device_id, _ in devices]


async def test_a_poll_after_a_trim_of_all_signals_keeps_its_cursor(plane: Plane) -> None:
    device_id, token = await registered(plane)
    await plane.work(plane.stream.append, device_id, "cert.renewed", {"cert_id": 1})
    cursor = (await plane.work(plane.stream.read, device_id, None, 9)).cursor
    await plane.work(plane.stream.trim, device_id, 0)
    (found,) = await plane.database.work_read(
        ForDevices(plane, plane.polls.begin_all, plane.read_alike), [(token, Poll(cursor=cursor))]
    )
    assert found.result.page == await plane.work(plane.stream.read, device_id, cursor, 9)


async def test_each_fetch_of_many_is_answered_as_alone(plane: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    devices = [(await registered(plane, f"device-{number}"))[0] for number in range(3)]
    keyless = await new_device(plane, "keyless")
    shared, revoked = [
        (await plane.certificates.issue(1, [name], device_ids=[*devices, keyless]))["id"]
        for name in ("shared.test", "revoked.test")
    ]
    foreign = (await plane.certificates.issue(1, ["foreign.test"], device_ids=devices[:1]))["id"]
    await plane.certificates.revoke(1, revoked)
    pairs = [
        (devices[0], shared),
        (devices[1], shared),
        (devices[1], revoked),
        (devices[2], foreign),
        (keyless, shared),
    ]
    wanted = [(DeviceSession(device_id, 1, 1), (cert_id, "")) for device_id, cert_id in pairs]
    unsealed: list[int] = []
    table = plane.certificates._table
    key_of = table.key_of
    monkeypatch.setattr(table, "key_of", lambda row: unsealed.append(row["id"]) or key_of(row))  # type: ignore[func-returns-value]
    found, count = await statements(plane, plane.certificates.materials_of, wanted)
    assert count == 2 and unsealed == [shared]
    fingerprints = [one.data["device_keyfp_b64"] for one in found[:2]]
    assert len(set(fingerprints)) == 2, "each is sealed to the key of its device"
    assert shown(found)[2:] == ["CERT_REVOKED", "NOT_FOUND", "WRAP_PENDING"]


async def test_outcomes_of_many_devices_are_stored_together(plane: Plane) -> None:
    devices = [await new_device(plane, f"device-{number}") for number in range(3)]
    reports = [
        (DeviceSession(devices[2], 1, 1), [ack(1), ack(2)]),
        (DeviceSession(devices[0], 1, 1), [ack(1, OutcomeKind.FAILED), ack(1), OtherEvent("later")]),
        (DeviceSession(devices[1], 1, 1), []),
    ]
    assert await plane.work(plane.reports.store_acks, reports) == [None] * 3
    outcomes = [await plane.work(plane.reports.outcomes, device_id) for device_id in devices]
    assert [[one["outcome"] for one in each] for each in outcomes] == [["applied"], [], ["applied", "applied"]]


async def test_outcomes_beyond_one_statement_are_all_stored(plane: Plane) -> None:
    devices = [await new_device(plane, f"device-{number}") for number in range(20)]
    reports = [(DeviceSession(device_id, 1, 1), [ack(1), ack(2)]) for device_id in devices]
    await plane.work(plane.reports.store_acks, reports)
    for device_id in devices:
        assert len(await plane.work(plane.reports.outcomes, device_id)) == 2


async def test_excess_outcomes_of_many_devices_are_dropped(open_database: Callable[[], Database]) -> None:
    now = WALL

    def wall_now() -> float:
        nonlocal now
        now += 1
        return now

    plane = plane_on(open_database(), wall_now=wall_now, outcomes_kept=3)
    devices = [await new_device(plane, f"device-{number}") for number in range(2)]
    for number in range(7):
        reports = [(DeviceSession(device_id, 1, 1), [ack(number)]) for device_id in devices]
        await plane.work(plane.reports.store_acks, reports)
    for device_id in devices:
        kept = await plane.work(plane.reports.outcomes, device_id)
        assert [one["signal"]["ts_ms"] for one in kept] == [6, 5, 4]


async def test_outcomes_exceed_their_limit_by_few_until_some_are_dropped(
    open_database: Callable[[], Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    plane = plane_on(open_database(), outcomes_kept=40)
    device_id = await new_device(plane)
    chances: list[int] = []

    def chance(below: int) -> int:
        chances.append(below)
        return 1

    monkeypatch.setattr("random.randrange", chance)
    session = DeviceSession(device_id, 1, 1)
    for number in range(0, 45, 1):
        await plane.work(plane.reports.store_acks, [(session, [ack(number)])])
    assert set(chances) == {2} and len(await plane.work(plane.reports.outcomes, device_id)) == 45
    await plane.work(plane.reports.store_acks, [(session, [ack(100), ack(101)])])
    assert len(await plane.work(plane.reports.outcomes, device_id)) <= 40


def test_announcements_and_long_reports_are_stored_alone() -> None:
    assert is_few_acks([ack(1)] * FEW_EVENTS) and is_few_acks([OtherEvent("later")])
    assert not is_few_acks([ack(1)] * (FEW_EVENTS + 1)) and not is_few_acks([ack(1), AgentVersion("1")])


async def test_a_refusal_that_is_raised_for_all_fails_only_the_unit_that_it_is_for(plane: Plane) -> None:
    refusal, gathering, results = conflict("This number is taken"), Gathering(plane.database), {}

    def doubled(numbers: Sequence[int]) -> list[int | ErrorResponse]:
        if 2 in numbers:
            raise refusal
        return [2 * number for number in numbers]

    async def run(number: int) -> None:
        try:
            results[number] = await gathering.work_alike(doubled, number)
        except ErrorResponse as error:
            results[number] = error

    async with trio.open_nursery() as nursery:
        for number in range(4):
            nursery.start_soon(run, number)
    assert results == {0: 0, 1: 2, 2: refusal, 3: 6}


@pytest.mark.parametrize("statement", ["run", "insert", "one_locked", "all_locked", "all_unlocked"])
async def test_a_unit_that_reads_cannot_change_or_lock(plane: Plane, statement: str) -> None:
    if plane.database.engine == "SQLite":
        pytest.skip("its units that read have a transaction, too")

    def change() -> Any:
        return getattr(plane.database, statement)("SELECT 1 AS id FROM users")

    with pytest.raises(RuntimeError, match="only read"):
        await plane.database.work_read(change)
    assert len(await plane.work(plane.devices.users)) == 1, "the connection is usable"


async def test_sightings_are_stored_with_one_statement_unless_a_later_one_is(plane: Plane) -> None:
    devices = [(await registered(plane, f"device-{number}"))[0] for number in range(3)]
    later = "UPDATE devices SET last_seen_at = ?, last_address = 'later' WHERE id = ?"
    await plane.work(plane.database.run, later, WALL + 1, devices[1])
    for number, device_id in enumerate(devices):
        plane.devices.seen(device_id, f"192.0.2.{number}", f"{number}-0")
    runs: list[str] = []
    run = plane.database._run
    plane.database._run = lambda sql, parameters: runs.append(sql) or run(sql, parameters)  # type: ignore[method-assign,func-returns-value]
    await plane.work(plane.devices.save_sightings)
    assert len([sql for sql in runs if "devices" in sql]) == 1 and plane.devices.sightings_waiting() == 0
    rows = [await plane.work(plane.devices.row, 1, device_id) for device_id in devices]
    assert [row["last_address"] for row in rows] == ["192.0.2.0", "later", "192.0.2.2"]
    assert [row["last_seen_at"] for row in rows] == [WALL, WALL + 1, WALL]


async def test_a_key_that_does_not_unseal_fails_only_its_own_fetch(open_database: Callable[[], Database]) -> None:
    plane = plane_on(open_database(), poll_burst=1, poll_rate=0.001)
    devices = [await registered(plane, f"device-{number}") for number in range(2)]
    good, damaged = [
        (await plane.certificates.issue(1, [name], device_ids=[device_id]))["id"]
        for name, (device_id, _) in zip(("good.test", "damaged.test"), devices, strict=True)
    ]
    await plane.work(plane.database.run, "UPDATE certificates SET private_key_enc = ? WHERE id = ?", b"x" * 64, damaged)
    fetches, polls = (
        ForDevices(plane, plane.certificates.materials_of, plane.read_alike),
        ForDevices(plane, plane.polls.begin_all, plane.read_alike),
    )
    results: list[Any] = [None] * 3

    async def ask(place: int, function: Any, token: str, item: Any) -> None:
        results[place] = (await plane.read_alike(function, (token, item))).result

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask, 0, polls, devices[0][1], Poll())
        nursery.start_soon(ask, 1, fetches, devices[0][1], (good, ""))
        nursery.start_soon(ask, 2, fetches, devices[1][1], (damaged, ""))
    assert isinstance(results[0], HeldPoll), "its poll was counted once"
    assert results[1].data["serial_number"] and isinstance(results[2], ConfigError)


async def test_an_error_of_one_unit_is_not_that_of_the_others(plane: Plane) -> None:
    def fail() -> None:
        raise ConfigError("does not decrypt", file="storage.key")

    results: list[Any] = [None] * 2
    gathering = Gathering(plane.database)

    async def run(place: int, call: Callable[[], Any]) -> None:
        try:
            results[place] = await gathering.work(call)
        except ConfigError as error:
            results[place] = error

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run, 0, lambda: 7)
        nursery.start_soon(run, 1, fail)
    assert results[0] == 7 and isinstance(results[1], ConfigError)


async def test_a_device_without_a_stream_has_no_page(plane: Plane) -> None:
    device_id, token = await registered(plane)
    await plane.work(plane.database.run, "DELETE FROM streams WHERE device_id = ?", device_id)
    polls = [(token, Poll(cursor=cursor)) for cursor in ("None-None", "0-0", None)]
    found = await plane.database.work_read(ForDevices(plane, plane.polls.begin_all, plane.read_alike), polls)
    assert [shown([one.result])[0] for one in found] == ["CURSOR_EXPIRED", "NOT_FOUND", "NOT_FOUND"]
