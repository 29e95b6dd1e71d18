"""The outbox with many messages, on both engines."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import trio
from engine_plane import WALL, plane_on, registered

from certctrl.plane.alerts.channels import NewChannel
from certctrl.plane.alerts.outbox import MAX_PER_CHANNEL
from certctrl.plane.core import Plane
from certctrl.plane.storage.database import Database
from certctrl.plane.storage.keyring import Keyring
from certctrl.plane.storage.sqlite import SqliteDatabase

Open = Callable[[], Database]


@pytest.fixture
def plane(open_database: Open) -> Plane:
    return plane_on(open_database(), Keyring.open(None), wall_now=lambda: WALL)


async def stored(plane: Plane, channel: str, groups: int, count: int) -> None:
    """Add a channel with messages that are due, in groups."""
    new = NewChannel(name=channel, kind="slack", settings={}, secrets={"url": "https://chat.example/hook"})

    def add() -> None:
        plane.alerts.channels.put(new)
        channel_id = plane.alerts.channels.named(channel).id
        for number in range(count):
            message = {"group": f"g.{number % groups}", "kind": "firing", "title": "a title"}
            plane.alerts.outbox.add(channel_id, message)

    await plane.work(add)


async def test_a_claim_reads_each_message_by_its_key(plane: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    if not isinstance(plane.database, SqliteDatabase):
        pytest.skip("plans of the other engine read otherwise")
    await stored(plane, "ops", 50, 100)
    db, plans = plane.database, list[str]()
    read = db.all_unlocked

    def explained(sql: str, *parameters: Any) -> Any:
        plans.extend(str(row["detail"]) for row in db.all(f"EXPLAIN QUERY PLAN {sql}", *parameters))
        return read(sql, *parameters)

    monkeypatch.setattr(db, "all_unlocked", explained)
    assert len(await plane.work(plane.alerts.outbox.claim, 20)) == MAX_PER_CHANNEL
    assert [line for line in plans if line.startswith("SEARCH m USING INTEGER PRIMARY KEY")], plans
    assert not [line for line in plans if line.startswith("SCAN")], plans


async def test_a_receiver_that_hangs_leaves_room_for_others(plane: Plane) -> None:
    await stored(plane, "hangs", 50, 60)
    await stored(plane, "works", 1, 3)
    claimed = await plane.work(plane.alerts.outbox.claim, 20)
    assert [delivery.id for _, delivery in claimed] == [1, 2, 61]
    first = claimed[0][1].channel_id
    assert await plane.work(plane.alerts.outbox.claim, 20, {first: 2}) == [], (
        "its next waits for the former of its group"
    )
    await plane.work(plane.alerts.outbox.succeed, claimed[2][0])
    again = await plane.work(plane.alerts.outbox.claim, 20, {first: 1})
    assert [delivery.id for _, delivery in again] == [3, 62]


async def test_a_channel_is_removed_while_another_plane_stores_a_message(open_database: Open) -> None:
    keyring = Keyring.open(None)
    planes = [plane_on(open_database(), keyring, wall_now=lambda: WALL) for _ in range(3)]
    if isinstance(planes[0].database, SqliteDatabase):
        pytest.skip("its planes do not write at the same time")
    secrets = {"url": "https://chat.example/hook"}
    new = NewChannel(name="ops", kind="slack", settings={"wait_seconds": 0}, secrets=secrets)
    await planes[0].work(planes[0].alerts.channels.put, new)
    await registered(planes[0])
    await planes[0].work(planes[0].database.run, "UPDATE devices SET last_seen_at = ?", WALL - 5000)
    has_stored, may_end = threading.Event(), threading.Event()

    def store_slowly() -> None:
        assert planes[0].alerts.comparison.compare() == 1
        has_stored.set()
        may_end.wait(10)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(planes[0].work_long, store_slowly)
        await trio.to_thread.run_sync(has_stored.wait, 10)
        nursery.start_soon(planes[1].work, planes[1].alerts.channels.remove, "ops")
        with trio.move_on_after(5):  # until it waits for the other one
            while not await planes[2].work(planes[2].database.all, "SELECT 1 FROM pg_locks WHERE NOT granted"):
                await trio.sleep(0.01)
        may_end.set()
    for table in ("alert_channels", "alert_messages", "alert_groups", "jobs WHERE kind = 'alert'"):
        assert await planes[0].work(planes[0].database.all, f"SELECT * FROM {table}") == [], table
