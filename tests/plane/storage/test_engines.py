"""What every engine of the plane's database does: one suite for SQLite and PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio
from engine_plane import WALL, new_device, plane_on, registered
from nacl.public import PrivateKey

from certctrl.model.plan import OutcomeKind
from certctrl.plane.core import Plane
from certctrl.plane.devices.devices import DeviceFacts
from certctrl.plane.devices.grants import GrantRequest
from certctrl.plane.devices.reports import Ack, AgentVersion
from certctrl.plane.errors import ErrorResponse
from certctrl.plane.storage.database import Database
from certctrl.plane.storage.keyring import Keyring

Open = Callable[[], Database]


@pytest.fixture
def database(open_database: Open) -> Database:
    return open_database()


@pytest.fixture
def plane(database: Database) -> Plane:
    return plane_on(database)


# --- units of work ----------------------------------------------------------------------------------------------------


async def test_a_unit_is_stored_whole_or_not_at_all(database: Database, plane: Plane) -> None:
    def fail() -> None:
        plane.devices.add_user("a")
        raise ZeroDivisionError

    called: list[str] = []

    def succeed() -> int:
        plane.devices.add_user("b")
        with database.transaction():
            plane.devices.add_user("c")
        database.after_commit(lambda: called.append("after"))
        assert not called
        return 7

    with pytest.raises(ZeroDivisionError):
        await database.work(fail)
    assert await database.work(succeed) == 7
    assert called == ["after"]
    assert [user["name"] for user in await plane.work(plane.devices.users)] == ["operator", "b", "c"]


async def test_callbacks_of_a_failed_unit_are_dropped(database: Database, plane: Plane) -> None:
    called: list[str] = []

    def fail() -> None:
        database.after_commit(lambda: called.append("never"))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await database.work(fail)
    await database.work(database.after_commit, lambda: called.append("later"))
    assert called == ["later"]


async def test_statements_that_change_rows_are_counted(database: Database, plane: Plane) -> None:
    def counts() -> list[int]:
        start, found = database.changes(), []
        for sql in ("UPDATE users SET name = name", "UPDATE users SET name = name WHERE id = 77"):
            database.run(sql)
            found.append(database.changes() - start)
        database.insert("INSERT INTO users (name, created_at) VALUES (?, ?)", "a", WALL)
        found.append(database.changes() - start)
        database.all("SELECT * FROM users")
        database.one_locked("SELECT * FROM users")
        return [*found, database.changes() - start]

    for work in (database.work, database.work_long):
        assert await work(counts) == [1, 1, 2, 2]
        await database.work(database.run, "DELETE FROM users WHERE name = ?", "a")


async def test_values_come_back_as_they_were_stored(database: Database, plane: Plane) -> None:
    device_id = await new_device(plane)
    key, name = bytes(range(32)), "übel ' \" % ? \\ 🦊"

    def store() -> None:
        database.run(
            "UPDATE devices SET public_key = ?, name = ?, last_seen_at = ?, revoked_at = NULL, session = ? WHERE id = ?",
            key, name, WALL, 2**53, device_id,
        )  # fmt: skip

    await database.work(store)
    row = await database.work(database.one, "SELECT * FROM devices WHERE id = ?", device_id)
    assert row is not None
    assert (row["public_key"], row["name"], row["last_seen_at"]) == (key, name, WALL)
    assert (row["session"], row["revoked_at"]) == (2**53, None)


async def test_a_text_with_nul_is_no_error(plane: Plane) -> None:
    with pytest.raises(ErrorResponse) as caught:
        await plane.work(plane.sessions.refresh, "rt_\0.secret", "device-1")
    assert caught.value.status == 401


async def test_the_database_outlives_its_process(open_database: Open) -> None:
    keyring, first = Keyring.open(None), open_database()
    plane = plane_on(first, keyring)
    device_id = await new_device(plane)
    await plane.resync(1, device_id)
    root = plane.ca.root_pem
    before = await plane.work(plane.stream.read, device_id, None, 10)
    first.close()
    again = plane_on(open_database(), keyring)
    assert again.ca.root_pem == root
    assert await again.work(again.stream.read, device_id, None, 10) == before
    assert await again.work(again.devices.users) == [{"id": 1, "name": "operator"}]


# --- signals ------------------------------------------------------------------------------------------------------------


async def test_signals_are_read_in_order_and_trimmed(database: Database) -> None:
    plane = plane_on(database, stream_length=5)
    device_id = await new_device(plane)
    start = (await plane.work(plane.stream.read, device_id, None, 10)).cursor

    async def append(count: int) -> None:
        for number in range(count):
            await plane.work(plane.stream.append, device_id, "cert.renewed", {"cert_id": number})

    await append(3)
    page = await plane.work(plane.stream.read, device_id, start, 2)
    assert [signal["ref"]["cert_id"] for signal in page.signals] == [0, 1]
    rest = await plane.work(plane.stream.read, device_id, page.cursor, 2)
    assert [signal["ref"]["cert_id"] for signal in rest.signals] == [2]
    assert await plane.work(plane.stream.read, device_id, rest.cursor, 2) == type(rest)(rest.cursor, ())
    assert await plane.work(plane.stream.waiting, {device_id: page.cursor}) == {device_id: 1}
    await append(5)
    with pytest.raises(ErrorResponse) as caught:
        await plane.work(plane.stream.read, device_id, start, 10)
    assert caught.value.key == "CURSOR_EXPIRED"
    fresh = await plane.work(plane.stream.read, device_id, None, 10)
    assert [signal["ref"]["cert_id"] for signal in fresh.signals] == [0, 1, 2, 3, 4]


async def test_concurrent_appends_lose_nothing_and_repeat_nothing(open_database: Open) -> None:
    keyring = Keyring.open(None)
    planes = [plane_on(open_database(), keyring)]
    if "Postgres" in type(planes[0].database).__name__:
        planes.append(plane_on(open_database(), keyring))
    device_id = await new_device(planes[0])
    start = (await planes[0].work(planes[0].stream.read, device_id, None, 1)).cursor
    seen: list[int] = []

    async def follow(nursery: trio.Nursery) -> None:
        cursor = start
        while len(seen) < 120:
            page = await planes[-1].work(planes[-1].stream.read, device_id, cursor, 100)
            seen.extend(signal["ref"]["cert_id"] for signal in page.signals)
            cursor = page.cursor
            await trio.lowlevel.checkpoint()

    async def append(first: int) -> None:
        for number in range(first, first + 20):
            plane = planes[number % len(planes)]
            await plane.work(plane.stream.append, device_id, "cert.renewed", {"cert_id": number})

    with trio.fail_after(120):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(follow, nursery)
            for first in range(0, 120, 20):
                nursery.start_soon(append, first)
    assert sorted(seen) == list(range(120))


# --- the tables -----------------------------------------------------------------------------------------------------------


async def test_certificates_are_issued_renewed_and_revoked(plane: Plane) -> None:
    device_id, _ = await registered(plane)
    row = await plane.certificates.issue(1, ["a.example"], device_ids=[device_id])
    renewal = await plane.certificates.renew(1, row["id"], device_id=device_id)
    materials = await plane.work(plane.certificates.materials, device_id, row["id"])
    assert materials["serial_number"] == renewal["serial_number"] != row["serial_number"]
    await plane.certificates.revoke(1, row["id"], reason="stolen")
    with pytest.raises(ErrorResponse, match="revoked"):
        await plane.certificates.renew(1, row["id"], device_id=device_id)
    await plane.certificates.unassign(1, device_id, row["id"])
    page = await plane.work(plane.stream.read, device_id, None, 10)
    kinds = [signal["type"] for signal in page.signals]
    assert kinds == ["cert.renewed", "cert.renewed", "cert.revoked", "cert.unassigned"]
    assert (await plane.work(plane.certificates.page_of_user, 1, 0, 500))[0]["device_ids"] == []


async def test_install_configs_and_cas_reach_a_device(plane: Plane) -> None:
    device_id = await new_device(plane)
    config = await plane.installs.put(device_id, [], user_id=1)
    assert config["version"] == 1
    items = [{"id": "no", "type": "exec", "cmd_argv": ["/bin/true"]}]
    assert (await plane.installs.put(device_id, items, check=False))["version"] == 2
    ca = await plane.work(plane.authorities.add, 1, "root")
    await plane.authorities.assign(1, device_id, ca["id"])
    await plane.authorities.assign(1, device_id, ca["id"])
    assert [row["id"] for row in await plane.work(plane.authorities.of_device, device_id)] == [ca["id"]]
    await plane.authorities.unassign(1, device_id, ca["id"])


async def test_outcomes_are_replaced_by_later_ones_of_the_same_signal(database: Database) -> None:
    plane = plane_on(database, outcomes_kept=2)
    device_id = await new_device(plane)
    for outcome in (OutcomeKind.FAILED, OutcomeKind.APPLIED):
        ack = Ack(type="cert.renewed", ts_ms=1, ref={"cert_id": 1}, outcome=outcome)
        await plane.work(plane.reports.store, device_id, [ack, AgentVersion("9.9")])
    (found,) = await plane.work(plane.reports.outcomes, device_id)
    assert found["outcome"] == "applied"
    shown = await plane.work(plane.devices.show, 1, device_id)
    assert (shown["outcomes"], shown["app_version"]) == ({"applied": 1}, "9.9")


async def test_sightings_are_saved(plane: Plane) -> None:
    device_id = await new_device(plane)
    plane.devices.seen(device_id, "192.0.2.7", "1-0")
    await plane.work(plane.housekeeping.tidy)
    assert plane.devices._sightings == {}
    row = await plane.work(plane.devices.row, 1, device_id)
    assert (row["last_seen_at"], row["last_address"]) == (WALL, "192.0.2.7")


async def test_a_device_registers_by_approval_and_by_token(plane: Plane) -> None:
    device_id, token = await registered(plane, "device-0")
    assert (await plane.work(plane.sessions.authenticate, token)).device_id == device_id
    grant = await plane.work(plane.grants.start, GrantRequest(name="web", device_public_id="device-1"), "caller")
    assert [shown["name"] for shown in await plane.work(plane.grants.pending)] == ["web"]
    await plane.work(plane.decide, grant["user_code"], approve=True, user_id=1)
    ready = await plane.work(plane.grants.poll, grant["device_code"], "caller")
    facts, key = DeviceFacts(device_public_id="device-1", name="web"), bytes(PrivateKey.generate().public_key)
    code = ready["registration_code"]
    with pytest.raises(ErrorResponse, match="proof"):
        await plane.work(plane.enrolment.register_approved, 1, code, facts, key)
    assert await plane.work(plane.devices.similar, "device-0", "") != []
    secret = (await plane.work(plane.enrolment.new_token, 1))["token"]
    with pytest.raises(ErrorResponse, match="proof"):
        await plane.work(plane.enrolment.register_unattended, secret, facts, key)


async def test_the_operator_signs_in_and_out(plane: Plane) -> None:
    session = await plane.operators.sign_in(plane.operator_key, "caller")
    assert await plane.work(plane.operators.is_signed_in, session)
    await plane.work(plane.operators.sign_out, session)
    assert not await plane.work(plane.operators.is_signed_in, session)


async def test_only_one_of_two_concurrent_decisions_counts(plane: Plane) -> None:
    grant = await plane.work(plane.grants.start, GrantRequest(name="web"), "caller")
    results: list[str] = []

    async def decide(approve: bool) -> None:
        try:
            decided = await plane.work(plane.decide, grant["user_code"], approve=approve, user_id=1)
            results.append(decided["status"])
        except ErrorResponse as error:
            results.append(error.key)

    async with trio.open_nursery() as nursery:
        for number in range(6):
            nursery.start_soon(decide, number % 2 == 0)
    assert sorted(results)[:5] == ["ALREADY_DECIDED"] * 5
    shown = await plane.work(plane.grants.show, grant["user_code"])
    assert shown["status"] in results


async def test_a_renewal_never_restores_a_certificate_that_is_revoked_meanwhile(plane: Plane) -> None:
    device_id, _ = await registered(plane)
    row = await plane.certificates.issue(1, ["a.example"], device_ids=[device_id])
    issue = plane.certificates._issuer.issue

    async def revoked_meanwhile(*args: Any, **kwargs: Any) -> Any:
        issued = await issue(*args, **kwargs)
        await plane.certificates.revoke(1, row["id"])
        return issued

    plane.certificates._issuer.issue = revoked_meanwhile  # type: ignore[method-assign]
    with pytest.raises(ErrorResponse, match="revoked"):
        await plane.certificates.renew(1, row["id"], device_id=device_id)
    assert (await plane.work(plane.certificates.show, 1, row["id"]))["status"] == "revoked"
