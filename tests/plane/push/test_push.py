"""A push socket: pages as they are committed, one at a time; outcomes, tokens, and every end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio
from device_polls import issue
from plane_world import Device, World
from push_client import Closed, memory_client, pushed

from certctrl.plane.errors import DatabaseAwayError
from certctrl.plane.http import conversation, websocket
from certctrl.plane.pace import Pace


async def quiet(client: Any, seconds: float) -> None:
    """Require that nothing arrives for a while."""
    with trio.move_on_after(seconds):
        raise AssertionError(await client.receive())


def types(page: dict[str, Any]) -> list[str]:
    return [signal["type"] for signal in page["signals"]]


# --- pages ----------------------------------------------------------------------------------------------------------


async def test_a_signal_is_pushed_when_it_is_committed(virtual: World, autojump_clock: trio.abc.Clock) -> None:
    device = await virtual.device()
    async with pushed(virtual, device) as client:
        await quiet(client, 10)
        await issue(virtual, device)
        page = await client.page()
        assert (types(page), page["more"]) == (["cert.renewed"], False)
        assert trio.current_time() == pytest.approx(10, abs=0.01)
        polled = await device.poll()
        assert polled.data == {"cursor": page["cursor"], "signals": page["signals"]}


async def test_signals_from_before_are_the_first_page(virtual: World, autojump_clock: trio.abc.Clock) -> None:
    device = await virtual.device()
    await issue(virtual, device)
    async with pushed(virtual, device) as client:
        assert types(await client.page()) == ["cert.renewed"]
        await quiet(client, 5)


async def test_a_socket_resumes_at_its_cursor(virtual: World, autojump_clock: trio.abc.Clock) -> None:
    device = await virtual.device()
    await issue(virtual, device)
    async with pushed(virtual, device) as client:
        cursor = (await client.page())["cursor"]
    await issue(virtual, device, "b.example.com")
    async with memory_client(virtual.app, device.token) as client:
        await client.upgrade()
        assert await client.hello(cursor) == cursor
        assert len((await client.page())["signals"]) == 1
        await quiet(client, 5)


async def test_the_next_page_follows_the_ack_only(virtual: World, autojump_clock: trio.abc.Clock) -> None:
    device = await virtual.device()
    for number in range(5):
        await issue(virtual, device, f"{number}.example.com")
    async with pushed(virtual, device, limit=2) as client:
        first = await client.expect("updates.signal")
        assert first["data"]["more"] is True
        await issue(virtual, device, "late.example.com")
        await quiet(client, 60)
        await client.send("updates.ack", name=first["id"])
        pages = [await client.page() for _ in range(2)]
        assert [len(page["signals"]) for page in pages] == [2, 2]
        await quiet(client, 5)


async def test_a_signal_while_a_page_is_on_its_way_is_not_missed(
    virtual: World, autojump_clock: trio.abc.Clock
) -> None:
    device = await virtual.device()
    await issue(virtual, device)
    async with pushed(virtual, device) as client:
        first = await client.expect("updates.signal")
        await issue(virtual, device, "late.example.com")
        await trio.sleep(1)
        await client.send("updates.ack", name=first["id"])
        assert len((await client.page())["signals"]) == 1


async def test_a_page_without_its_ack_is_sent_again_on_the_next_socket(
    virtual: World, autojump_clock: trio.abc.Clock
) -> None:
    device = await virtual.device()
    await issue(virtual, device)
    async with pushed(virtual, device) as client:
        first = await client.expect("updates.signal")
    async with pushed(virtual, device) as client:
        assert (await client.page())["cursor"] == first["id"]


async def test_an_ack_counts_once_and_for_its_page(virtual: World, autojump_clock: trio.abc.Clock) -> None:
    device = await virtual.device()
    await issue(virtual, device)
    async with pushed(virtual, device) as client:
        first = await client.expect("updates.signal")
        await client.send("updates.ack", name="1-0")
        error = await client.expect("lifecycle.error")
        assert (error["id"], error["data"]["status"]) == ("1-0", 400)
        await client.send("updates.ack", name=first["id"])
        await client.send("updates.ack", name=first["id"])
        await quiet(client, 5)


async def test_a_void_cursor_gets_409_and_the_socket_begins_again(
    virtual: World, autojump_clock: trio.abc.Clock
) -> None:
    device = await virtual.device()
    async with memory_client(virtual.app, device.token) as client:
        await client.upgrade()
        for cursor in ("12-0", "nonsense"):
            await client.send("lifecycle.hello", {"cursor": cursor, "limit": 20})
            error = (await client.expect("lifecycle.error"))["data"]
            assert (error["status"], error["error"]["key"], error["error"]["code"]) == (409, "CURSOR_EXPIRED", 40901)
        await issue(virtual, device)
        await quiet(client, 20)
        assert (await client.outcomes([]))["type"] == "updates.outcomes_ack"  # type: ignore[index]
        await client.hello()
        assert types(await client.page()) == ["cert.renewed"]


async def test_a_stream_that_was_trimmed_under_the_socket_gets_409(
    build: Callable[..., World], autojump_clock: trio.abc.Clock
) -> None:
    world = build(virtual=True, stream_length=3)
    device = await world.device()
    async with pushed(world, device) as client:
        await issue(world, device)
        first = await client.expect("updates.signal")
        for number in range(5):
            await issue(world, device, f"{number}.example.com")
        await client.send("updates.ack", name=first["id"])
        error = (await client.expect("lifecycle.error"))["data"]
        assert error["error"]["key"] == "CURSOR_EXPIRED"
        await client.hello()
        assert len((await client.page())["signals"]) == 3


async def test_a_page_that_is_too_large_comes_in_parts(
    virtual: World, autojump_clock: trio.abc.Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversation.wire, "MAX_RECEIVED", 500)
    device = await virtual.device()
    for number in range(8):
        await issue(virtual, device, f"{number}.example.com")
    async with pushed(virtual, device, limit=100) as client:
        found: list[Any] = []
        while len(found) < 8:
            page = await client.page()
            assert len(page["signals"]) <= 4
            found += page["signals"]
        await quiet(client, 5)
    assert found == (await device.poll(limit=100)).data["signals"]


async def test_a_burst_arrives_in_order_and_whole(virtual: World, autojump_clock: trio.abc.Clock) -> None:
    device = await virtual.device()
    received: list[Any] = []
    async with pushed(virtual, device, limit=7) as client:

        async def publish() -> None:
            for number in range(60):
                await virtual.plane.resync(1, device.id, str(number))
                await trio.sleep(0.01)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(publish)
            while len(received) < 60:
                received += (await client.page())["signals"]
    assert [signal["ref"]["reason"] for signal in received] == [str(number) for number in range(60)]


async def test_a_read_that_failed_is_tried_again(
    virtual: World, autojump_clock: trio.abc.Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = await virtual.device()
    push = virtual.plane.push
    async with pushed(virtual, device) as client:
        await quiet(client, 1)

        async def fails(*_: object) -> Any:
            monkeypatch.undo()
            raise DatabaseAwayError("away")

        monkeypatch.setattr(push, "next", fails)
        await issue(virtual, device)
        assert types(await client.page()) == ["cert.renewed"]


# --- outcomes and tokens --------------------------------------------------------------------------------------------


def ack(ts_ms: int, outcome: str = "applied") -> dict[str, Any]:
    return {"type": "signal.ack", "signal": {"type": "cert.renewed", "ts_ms": ts_ms, "ref": {}}, "outcome": outcome}


@pytest.mark.parametrize("count", [1, 5, 6, 100])
async def test_outcomes_are_stored_before_they_are_confirmed(
    virtual: World, autojump_clock: trio.abc.Clock, count: int
) -> None:
    device = await virtual.device()
    async with pushed(virtual, device) as client:
        answer = await client.outcomes([ack(number + 1) for number in range(count)], "17")
        assert answer == {"type": "updates.outcomes_ack", "id": "17"}
        stored = (await virtual.operator("GET", f"{device.home}/outcomes?limit=1000")).data
        assert len(stored) == count


async def test_an_announcement_is_stored(virtual: World, autojump_clock: trio.abc.Clock) -> None:
    device = await virtual.device()
    async with pushed(virtual, device) as client:
        event = {"type": "agent_version", "version": "9.9", "features": ["push"]}
        assert (await client.outcomes([event]))["type"] == "updates.outcomes_ack"  # type: ignore[index]
    shown = (await virtual.operator("GET", device.home)).data
    assert (shown["app_version"], shown["features"]) == ("9.9", ["push"])


@pytest.mark.parametrize(
    "data", [None, [], {}, {"schema": "x", "events": []}, {"schema": "certctrl.device.notify.v1", "events": [{}] * 101}]
)
async def test_invalid_outcomes_get_an_error_with_their_id(
    virtual: World, autojump_clock: trio.abc.Clock, data: object
) -> None:
    device = await virtual.device()
    async with pushed(virtual, device) as client:
        await client.send("updates.outcomes", data, "3")
        error = await client.expect("lifecycle.error")
        assert (error["id"], error["data"]["status"], error["data"]["error"]["key"]) == ("3", 400, "BAD_REQUEST")
        await issue(virtual, device)
        assert types(await client.page()) == ["cert.renewed"]


async def test_a_fresh_token_keeps_the_socket_open(virtual: World, autojump_clock: trio.abc.Clock) -> None:
    device = await virtual.device()
    async with pushed(virtual, device) as client:
        await quiet(client, 800)
        fresh = await virtual.plane.refresh(device.refresh_token, device.public_id, ())
        await client.send("session.token", {"access_token": fresh["access_token"]})
        await client.expect("session.token_ack")
        await quiet(client, 899)
        assert await client.closed() == Closed(4401, "the access token has expired")
        assert trio.current_time() == pytest.approx(1700, abs=1.5)


async def test_a_token_of_no_or_another_device_is_refused(virtual: World, autojump_clock: trio.abc.Clock) -> None:
    device, other = await virtual.device(), await virtual.device("device-number-2", "web-2")
    async with pushed(virtual, device) as client:
        for token in ("nonsense", other.token):
            await client.send("session.token", {"access_token": token}, "t")
            error = await client.expect("lifecycle.error")
            assert (error["id"], error["data"]["status"]) == ("t", 401)
        await issue(virtual, device)
        assert types(await client.page()) == ["cert.renewed"]


# --- ends -----------------------------------------------------------------------------------------------------------


async def test_an_expired_token_ends_with_4401(virtual: World, autojump_clock: trio.abc.Clock) -> None:
    device = await virtual.device()
    async with pushed(virtual, device) as client:
        assert (await client.closed()).code == 4401
        assert trio.current_time() == pytest.approx(900, abs=1)


async def test_a_revoked_device_ends_with_4403_even_while_idle_or_owing_an_ack(
    virtual: World, autojump_clock: trio.abc.Clock
) -> None:
    for number, owes in enumerate((False, True)):
        device = await virtual.device(f"device-number-{number}", f"web-{number}")
        async with pushed(virtual, device) as client:
            if owes:
                await issue(virtual, device)
                await client.expect("updates.signal")
            await trio.sleep(20)
            await virtual.operator("DELETE", device.home)
            with trio.fail_after(1):
                assert await client.closed() == Closed(4403, "DEVICE_REVOKED")


async def test_a_device_that_registers_again_ends_with_4401(virtual: World, autojump_clock: trio.abc.Clock) -> None:
    device = await virtual.device()
    async with pushed(virtual, device) as client:
        row = virtual.plane.devices.row(1, device.id)
        with virtual.plane.database.transaction():
            virtual.plane.sessions.start(row["id"])
            virtual.plane.stream.wake_after_commit(row["id"])
        with trio.fail_after(1):
            assert (await client.closed()).code == 4401


async def test_a_newer_socket_replaces_the_older_one(virtual: World, autojump_clock: trio.abc.Clock) -> None:
    device = await virtual.device()
    async with pushed(virtual, device) as old, pushed(virtual, device) as new:
        assert (await old.closed()).code == 4409
        await issue(virtual, device)
        assert types(await new.page()) == ["cert.renewed"]
        assert virtual.plane.push.count() == 1
    await trio.testing.wait_all_tasks_blocked()
    assert virtual.plane.push.count() == 0


async def test_a_stopping_plane_ends_with_1012_and_a_pause(virtual: World, autojump_clock: trio.abc.Clock) -> None:
    devices = [await virtual.device(f"device-number-{number}", f"web-{number}") for number in range(3)]
    pauses: list[float] = []

    async def stay(device: Device) -> None:
        async with pushed(virtual, device) as client:
            end = await client.closed()
            assert end.code == 1012
            pauses.append(end.retry_after)

    async with trio.open_nursery() as nursery:
        for device in devices:
            nursery.start_soon(stay, device)
        await trio.sleep(30)
        virtual.plane.polls.pace = Pace()
        virtual.plane.stop_polls()
    assert len(pauses) == 3
    assert all(5 <= pause <= 25 for pause in pauses), pauses


async def test_a_socket_without_hello_ends_when_the_plane_stops(virtual: World, autojump_clock: trio.abc.Clock) -> None:
    device = await virtual.device()
    async with memory_client(virtual.app, device.token) as client:
        await client.upgrade()
        await trio.sleep(1)
        virtual.plane.stop_polls()
        assert (await client.closed()).code == 1012


async def test_a_socket_without_hello_ends_after_ten_seconds(virtual: World, autojump_clock: trio.abc.Clock) -> None:
    device = await virtual.device()
    async with memory_client(virtual.app, device.token) as client:
        await client.upgrade()
        assert await client.closed() == Closed(1008, "no hello in time")
        assert trio.current_time() == pytest.approx(10, abs=0.5)


async def test_a_socket_without_hello_ends_in_time_even_if_it_was_woken(
    virtual: World, autojump_clock: trio.abc.Clock
) -> None:
    device = await virtual.device()
    async with memory_client(virtual.app, device.token) as client:
        await client.upgrade()
        await trio.sleep(1)
        await issue(virtual, device)
        assert await client.closed() == Closed(1008, "no hello in time")


async def test_an_end_by_the_agent_is_confirmed_and_leaves_nothing(
    virtual: World, autojump_clock: trio.abc.Clock
) -> None:
    from wsproto.events import CloseConnection

    device = await virtual.device()
    async with pushed(virtual, device) as client:
        await client.event(CloseConnection(1000))
        assert await client.closed() == Closed(1000)
        assert await client.stream.receive_some() == b""
    assert virtual.plane.push.count() == 0
    assert virtual.plane.counters.push_closes == {"1000": 1}


# --- silence --------------------------------------------------------------------------------------------------------


async def test_a_silent_agent_is_pinged_and_stays(virtual: World, autojump_clock: trio.abc.Clock) -> None:
    device = await virtual.device()
    async with pushed(virtual, device) as client:
        await quiet(client, 600)
        assert 600 / (websocket.PING_SECONDS * 1.2) - 1 <= client.pings <= 600 / websocket.PING_SECONDS


async def test_an_agent_that_pings_is_not_pinged(virtual: World, autojump_clock: trio.abc.Clock) -> None:
    from wsproto.events import Ping

    device = await virtual.device()
    async with pushed(virtual, device) as client:
        for _ in range(10):
            await quiet(client, 25)
            await client.event(Ping(b"abc"))
        assert client.pings == 0


async def test_a_half_open_socket_ends_after_two_pings(virtual: World, autojump_clock: trio.abc.Clock) -> None:
    device = await virtual.device()
    async with pushed(virtual, device) as client:
        client.answers_pings = False
        assert await client.closed() == Closed(1006)
        assert client.pings == 2
        assert trio.current_time() == pytest.approx(80, abs=1)
    assert virtual.plane.push.count() == 0


# --- what operators see ---------------------------------------------------------------------------------------------


async def test_a_device_is_online_while_its_socket_is_open(virtual: World, autojump_clock: trio.abc.Clock) -> None:
    device = await virtual.device()

    async def shown() -> dict[str, Any]:
        row: dict[str, Any] = (await virtual.operator("GET", device.home)).data
        return row

    assert (await shown())["online"] is False
    async with pushed(virtual, device) as client:
        await quiet(client, 500)
        row = await shown()
        assert row["online"] is True
        assert row["connected_at"] < row["last_seen_at"] or row["connected_at"] == row["last_seen_at"]
    await trio.sleep(100)
    row = await shown()
    assert (row["online"], row["connected_at"]) == (False, None)


async def test_a_device_is_online_within_the_wait_of_its_poll(virtual: World, autojump_clock: trio.abc.Clock) -> None:
    device = await virtual.device()
    await device.poll()
    row = (await virtual.operator("GET", device.home)).data
    assert (row["online"], row["connected_at"]) == (True, None)
    await trio.sleep(80)
    assert (await virtual.operator("GET", device.home)).data["online"] is False


async def test_last_contacts_of_open_sockets_are_kept(virtual: World, autojump_clock: trio.abc.Clock) -> None:
    device = await virtual.device()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(virtual.plane.push.run)
        async with pushed(virtual, device) as client:
            before = virtual.plane.devices._sightings[device.id].at
            await quiet(client, 420)
            assert virtual.plane.devices._sightings[device.id].at >= before + 240
            rows = virtual.plane.database.all("SELECT device_id FROM sockets")
            assert [row["device_id"] for row in rows] == [device.id]
        await trio.sleep(3)
        assert not virtual.plane.database.all("SELECT device_id FROM sockets")
        nursery.cancel_scope.cancel()
