"""The table of the audit log, on each engine: filters, pages, retention; and the command that lists it."""

from __future__ import annotations

import csv
import io
import json
import logging

import pytest
from plane_commands import PlaneSite
from plane_world import World

from certctrl.cli.plane.audit import _entries
from certctrl.net.operator import CAP
from certctrl.plane.access.roles import Caller, Role
from certctrl.plane.audit.log import AuditLog, Change, Filter
from certctrl.plane.http.answers import json_of
from certctrl.plane.settings import DAY
from certctrl.plane.storage.database import Database

NOW = 1_790_000_000.0
ALICE = Caller(who="alice", role=Role.ADMIN, via="token ci", address="192.0.2.7")


class Log:
    """An audit log, its database and its clock."""

    def __init__(self, database: Database) -> None:
        self.database, self.now = database, NOW
        self.audit = AuditLog(database, lambda: self.now, days=100)

    async def add(self, action: str = "device.tag", who: Caller = ALICE, device_id: int = 1, **after: object) -> int:
        def unit() -> int:
            entry = self.audit.add(who, action, {"reason": "ä"})
            change = Change(kind="device", object_id=str(device_id), name="web-1", before={}, after=after)
            self.audit.add_change(entry, change)
            return entry

        return await self.database.work(unit)

    async def ids(self, before_id: int = 0, limit: int = 100, **chosen: object) -> list[int]:
        rows = await self.database.work(self.audit.page, Filter(**chosen), before_id, limit)  # type: ignore[arg-type]
        return [row["id"] for row in rows]


@pytest.fixture
def log(database: Database) -> Log:
    return Log(database)


async def test_entries_are_filtered_and_listed_in_pages(log: Log) -> None:
    bob = Caller(who="bob", role=Role.OPERATOR)
    one, two = await log.add("device.tag"), await log.add("device.revoke", bob, 2)
    log.now += 100
    three, four = await log.add("devices.tag", device_id=2), await log.add("certificate.renew")
    assert await log.ids() == [four, three, two, one]
    assert await log.ids(limit=2) == [four, three]
    assert await log.ids(before_id=three) == [two, one]
    assert await log.ids(what="device") == [two, one]
    assert await log.ids(what="device.tag") == [one]
    assert await log.ids(who="bob") == [two]
    assert await log.ids(device_id=2) == [three, two]
    assert await log.ids(since=NOW + 50) == [four, three]
    assert await log.ids(until=NOW + 50, who="alice") == [one]
    assert await log.ids(who="' OR 1=1 --", what="%") == []


async def test_an_entry_is_shown_whole(log: Log) -> None:
    await log.add(tags=["web"])
    (row,) = await log.database.work(log.audit.page, Filter(), 0, 1)
    assert row == {
        "id": row["id"], "at": "2026-09-21T14:13:20Z", "who": "alice", "via": "token ci", "address": "192.0.2.7",
        "action": "device.tag", "detail": {"reason": "ä"},
        "objects": [{"kind": "device", "id": "1", "name": "web-1", "before": {}, "after": {"tags": ["web"]}}],
    }  # fmt: skip


async def test_long_values_are_shortened(log: Log) -> None:
    await log.add(installs="x" * 1_000_000, name="web-1")
    (row,) = await log.database.work(log.audit.page, Filter(), 0, 1)
    after = row["objects"][0]["after"]
    assert (after["name"], after["shortened"], len(after["installs"])) == ("web-1", True, 1024)


async def test_a_long_page_has_every_entry_with_its_objects(log: Log) -> None:
    def unit() -> None:
        for number in range(1200):
            entry = log.audit.add(ALICE, "device.tag")
            log.audit.add_change(entry, Change(kind="device", object_id=str(number), before={}, after={"n": number}))

    await log.database.work(unit)
    page = await log.database.work(log.audit.page, Filter(), 0, 1100)
    assert [entry["objects"][0]["after"]["n"] for entry in page] == list(range(1199, 99, -1))


async def test_a_page_has_a_limited_length_and_the_next_one_continues_it(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("certctrl.plane.audit.log.MAX_PAGE_CHARACTERS", 5000)
    added = [await log.add(installs="x" * length) for length in (1000, 9000, 2000, 2000, 2000, 10, 10)]
    pages = [await log.ids()]
    while pages[-1]:
        pages.append(await log.ids(before_id=pages[-1][-1]))
    assert [len(page) for page in pages] == [3, 1, 1, 1, 1, 0], "a longer entry is alone on its page"
    assert [one for page in pages for one in page] == added[::-1], "each once, in order"
    (longest,) = await log.database.work(log.audit.page, Filter(), added[2], 1)
    assert longest["objects"][0]["after"] == {"shortened": True}


async def test_clients_accept_the_longest_page(log: Log) -> None:
    def unit() -> None:
        for _ in range(6):
            entry = log.audit.add(ALICE, "devices.tag")
            for number in range(150):
                values = {"tags": "\N{GRINNING FACE}" * 10_000}
                log.audit.add_change(entry, Change(kind="device", object_id=str(number), before=values, after=values))

    await log.database.work(unit)
    page = await log.database.work(log.audit.page, Filter(), 0, 1000)
    assert len(page) == 1 and 1024**2 < len(json_of({"data": page})) < CAP
    assert len(page[0]["objects"]) == 150, "all are named"


class PagedApi:
    """Entries as of a control plane whose pages have two at most."""

    def __init__(self, count: int) -> None:
        self.left, self.asked = list(range(count, 0, -1)), list[int]()

    async def call(self, method: str, path: str, *, query: dict[str, str]) -> list[dict[str, int]]:
        self.asked.append(int(query["limit"]))
        before = int(query["before_id"]) or self.left[0] + 1
        return [{"id": one} for one in self.left if one < before][: min(2, int(query["limit"]))]


@pytest.mark.parametrize(
    ("limit", "ids"), [(0, [5, 4, 3, 2, 1]), (4, [5, 4, 3, 2]), (3, [5, 4, 3]), (9, [5, 4, 3, 2, 1])]
)
async def test_the_command_continues_after_short_pages(limit: int, ids: list[int]) -> None:
    api = PagedApi(5)
    rows = await _entries(api, {}, limit, 0)  # type: ignore[arg-type]
    assert [row["id"] for row in rows] == ids
    assert not limit or max(api.asked) <= limit


async def test_old_entries_are_deleted_with_an_entry_and_a_log_line(log: Log, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    await log.add()
    log.now += 50 * DAY
    kept = await log.add()
    log.now += 49 * DAY
    await log.database.work(log.audit.delete_expired)
    assert len(await log.ids()) == 2, "none has expired"
    log.now += 1.5 * DAY
    await log.database.work(log.audit.delete_expired)
    assert len(await log.ids()) == 2, "at most once a day"
    log.now += DAY
    await log.database.work(log.audit.delete_expired)
    (row, other) = await log.database.work(log.audit.page, Filter(), 0, 9)
    assert (row["who"], row["action"], other["id"]) == ("plane", "audit.expire", kept)
    assert row["detail"] == {"entries": 1, "older_than": "2026-09-23T02:13:20Z", "days": 100}
    assert "audit log: deleted 1 change from before 2026-09-23T02:13:20Z" in caplog.text
    await log.database.work(log.audit.delete_expired)
    assert len(await log.ids()) == 2


async def test_the_endpoint_suggests_a_name(world: World) -> None:
    reply = await world.operator("GET", "/apiv1/audit?what=certificat.revoke")
    assert (reply.status, reply.what) == (
        400, "No action is called 'certificat.revoke'; did you mean certificate.revoke?",
    )  # fmt: skip
    assert (await world.operator("GET", "/apiv1/audit?what=devices")).status == 400
    assert (await world.operator("GET", "/apiv1/audit?what=device&limit=1")).data == []
    assert (await world.operator("GET", "/apiv1/audit?limit=1001")).status == 400


def test_the_command(site: PlaneSite, device: str) -> None:
    site("tag", device, "--add", "web")
    site("revoke-device", device, "--reason", "=HYPERLINK(stolen)")
    shown = site("audit", "--device", device, "--since", "1h").output
    assert "device.revoke" in shown and f"({device})" in shown and "tags [] -> " in shown
    rows = site("audit", "--device", device, "--what", "device", "--json").json
    assert [row["action"] for row in rows] == ["device.revoke", "device.tag"]
    assert rows[1]["objects"][0]["after"] == {"tags": ["web"]}
    table = list(csv.DictReader(io.StringIO(site("audit", "--device", device, "--csv").output)))
    assert json.loads(table[0]["after"])[table[0]["objects"]]["revoke_reason"] == "=HYPERLINK(stolen)"
    first = site("audit", "--device", device, "--limit", "1")
    assert f"older entries: --before-id {rows[0]['id']}" in first.output
    following = site("audit", "--device", device, "--limit", "1", "--before-id", str(rows[0]["id"]), "--json")
    assert [row["id"] for row in following.json] == [rows[1]["id"]]
    assert site("audit", "--who", "nobody").output.strip() == "no changes"


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("--since", "soon"), "--since 'soon' is not a time"),
        (("--since", "3x"), "is not a time"),
        (("--what", "certificat"), "did you mean certificate?"),
        (("--csv", "--json"), "--csv and --json are given"),
        (("--device", "nothing-here"), "has no device 'nothing-here'"),
    ],
)
def test_wrong_options(site: PlaneSite, argv: tuple[str, ...], said: str) -> None:
    found = site("audit", *argv)
    assert found.status != 0 and said in found.err and len(found.err.splitlines()) <= 2
