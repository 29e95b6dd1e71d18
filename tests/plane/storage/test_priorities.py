"""The class of each signal in a stream: who gets it, and what is shown ahead of a cursor. On each engine."""

from __future__ import annotations

from typing import Any

import pytest

from certctrl.model.features import PRIORITY
from certctrl.model.priority import Priority
from certctrl.plane.devices.features import stored
from certctrl.plane.errors import ErrorResponse
from certctrl.plane.storage.database import Database
from certctrl.plane.storage.signal_stream import Page, SignalStream

WALL = 1_790_000_000.0
EVERY = [
    ("cert.renewed", None), ("cert.revoked", None), ("cert.renewed", Priority.EXPIRING), ("install.updated", None),
    ("cert.unassigned", None), ("cert.csr_wanted", None), ("cert.renewed", Priority.REVOCATION), ("ca.assigned", None),
    ("cert.renewed", Priority.RENEWAL), ("something.new", None),
]  # fmt: skip
CLASSES = [
    "renewal", "revocation", "expiring", "config", "revocation", "expiring", "revocation", "config", "renewal", "renewal",
]  # fmt: skip


class Site:
    """A database with two devices, whose agents announced classes or not."""

    def __init__(self, database: Database) -> None:
        self.wall = WALL
        self.database = database
        self.stream = SignalStream(database, length=1000, wall_now=lambda: self.wall)

    async def begin(self) -> None:
        self.new = await self.database.work(self._device, "new", [PRIORITY, "other"])
        self.old = await self.database.work(self._device, "old", ["other"])

    def _device(self, name: str, features: list[str]) -> int:
        user = self.database.one("SELECT id FROM users WHERE name = 'u'")
        if user is None:
            self.database.run("INSERT INTO users (name, created_at) VALUES ('u', 0)")
        device_id = self.database.insert(
            "INSERT INTO devices (user_id, device_public_id, status, created_at, features)"
            " VALUES ((SELECT id FROM users WHERE name = 'u'), ?, 'active', 0, ?)",
            *(name, stored(features)),
        )
        self.stream.create(device_id)
        return device_id

    async def append(self, *signals: tuple[str, Priority | None]) -> None:
        def append() -> None:
            for number, (kind, priority) in enumerate(signals, 1):
                self.wall += 0.001
                self.stream.append_to_all([self.new, self.old], kind, {"cert_id": number}, priority)

        await self.database.work(append)

    async def read(self, device_id: int, after: str | None = None, limit: int = 100) -> Page:
        return await self.database.work(self.stream.read, device_id, after, limit)

    async def ahead(self, device_id: int, after: str | None, *classes: str, limit: int = 100) -> Page:
        chosen = [Priority(one) for one in classes]
        return await self.database.work(self.stream.read_ahead, device_id, after, limit, chosen)


@pytest.fixture
async def site(database: Database) -> Site:
    site = Site(database)
    await site.begin()
    return site


async def test_only_an_agent_that_announced_classes_gets_them(site: Site) -> None:
    await site.append(*EVERY)
    new, old = await site.read(site.new), await site.read(site.old)
    assert [signal["priority"] for signal in new.signals] == CLASSES
    assert [{name: signal[name] for name in ("type", "ts_ms", "ref")} for signal in new.signals] == [*old.signals]
    assert all(signal["ref"] == {"cert_id": n} for n, signal in enumerate(old.signals, 1)), "the reference is as it was"


async def test_many_devices_are_read_in_the_same_form(site: Site) -> None:
    cursors = {one: (await site.read(one)).cursor for one in (site.new, site.old)}
    await site.append(*EVERY)
    found = await site.database.work(site.stream.read_many, [(one, cursor, 100) for one, cursor in cursors.items()])
    assert [one.page for one in found] == [await site.read(one, cursor) for one, cursor in cursors.items()]


async def test_ahead_are_the_signals_of_the_classes_and_the_cursor_stays(site: Site) -> None:
    start = (await site.read(site.new)).cursor
    await site.append(*EVERY)
    for classes in (
        ("revocation",),
        ("expiring",),
        ("config",),
        ("renewal",),
        ("revocation", "expiring"),
        tuple(Priority),
    ):
        page = await site.ahead(site.new, start, *classes)
        assert [signal["priority"] for signal in page.signals] == [one for one in CLASSES if one in classes]
        assert page.cursor == start
        assert page.signals == tuple(s for s in (await site.read(site.new)).signals if s["priority"] in classes)


async def test_ahead_is_only_what_follows_the_cursor(site: Site) -> None:
    await site.append(*EVERY)
    cursor = (await site.read(site.new, limit=3)).cursor
    page = await site.ahead(site.new, cursor, "revocation")
    assert [signal["ref"]["cert_id"] for signal in page.signals] == [5, 7]
    assert [
        signal["ref"]["cert_id"] for signal in (await site.ahead(site.new, cursor, "revocation", limit=1)).signals
    ] == [5]
    end = (await site.read(site.new)).cursor
    assert await site.ahead(site.new, end, *Priority) == Page(end, ())


async def test_without_a_cursor_all_kept_signals_are_ahead(site: Site) -> None:
    floor = (await site.read(site.new)).cursor
    await site.append(*EVERY)
    page = await site.ahead(site.new, None, "revocation")
    assert (len(page.signals), page.cursor) == (3, floor)


async def test_a_void_cursor_is_refused(site: Site) -> None:
    await site.append(*EVERY)
    for cursor in ("1-1", "x", "99999999999999-0"):
        with pytest.raises(ErrorResponse) as caught:
            await site.ahead(site.new, cursor, "revocation")
        assert caught.value.status == 409


async def test_a_reference_that_contains_the_word_is_no_class(site: Site) -> None:
    refs: list[dict[str, Any]] = [
        {"ca_name": '"priority":"revocation"'},
        {"ca_name": "priority"},
        {"ca_name": '\\"priority\\":'},
    ]

    def append() -> None:
        for ref in refs:
            site.stream.append_to_all([site.new], "ca.assigned", ref)

    start = (await site.read(site.new)).cursor
    await site.database.work(append)
    assert [signal["ref"] for signal in (await site.ahead(site.new, start, "config")).signals] == refs
    assert (await site.ahead(site.new, start, "revocation")).signals == ()
