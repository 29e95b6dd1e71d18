"""The list of a device by revision, and materials by ETag: on a real plane, with the agent's client."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import pytest
from plane_world import Device, World

from certctrl.plane.devices.reports import AgentVersion

LIST = "/apiv1/devices/self/certificates"
DAY = 86_400


class Follower:
    """A device that follows its list by revision, as the agent does."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.revision = ""
        self.rows: dict[int, Any] = {}
        self.sent = 0

    async def follow(self) -> str:
        """Fetch what has changed; return how the plane answered."""
        headers = {"if-none-match": f'"{self.revision}"'} if self.revision else {}
        reply = await self.device("GET", f"{LIST}?updated_since={self.revision}", headers=headers)
        revision = reply.headers["etag"].strip('"')
        if reply.status == 304:
            assert (revision, reply.body) == (self.revision, b"")
            return "unchanged"
        assert reply.status == 200 and revision != self.revision
        body, self.sent = reply.json, len(reply.data)
        if body["complete"]:
            assert "replaced" not in body
            self.rows = {}
        else:
            divisor, parts = body["replaced"]["of"], body["replaced"]["parts"]
            self.rows = {number: row for number, row in self.rows.items() if number % divisor not in parts}
        self.rows |= {row["id"]: row for row in body["data"]}
        self.revision = revision
        return "complete" if body["complete"] else "changed"

    async def whole(self) -> dict[int, Any]:
        return {row["id"]: row for row in (await self.device("GET", LIST)).data}


@pytest.fixture
async def follower(world: World) -> Follower:
    return Follower(await world.device())


async def issue(world: World, follower: Follower, name: str, **more: Any) -> int:
    row = await world.plane.certificates.issue(1, [name], device_ids=[follower.device.id], **more)
    return int(row["id"])


async def test_an_empty_list_has_a_revision_too(follower: Follower) -> None:
    assert await follower.follow() == "complete"
    assert await follower.follow() == "unchanged"


async def test_each_kind_of_change_is_followed(world: World, follower: Follower) -> None:
    plane, device = world.plane, follower.device
    ids = [await issue(world, follower, f"c{number}.example") for number in range(6)]
    assert await follower.follow() == "complete"

    async def expire() -> None:
        world.clock.advance(2 * DAY)
        body = {"refresh_token": device.refresh_token, "device_public_id": device.public_id}
        device.token = (await world.stranger("POST", "/auth/token/refresh", body)).data["access_token"]

    changes: dict[str, Callable[[], Any]] = {
        "renewed": lambda: plane.certificates.renew(1, ids[0]),
        "revoked": lambda: plane.certificates.revoke(1, ids[1]),
        "unassigned": lambda: plane.certificates.unassign(1, device.id, ids[2]),
        "assigned again": lambda: plane.certificates.assign(1, device.id, ids[2]),
        "one more": lambda: issue(world, follower, "more.example"),
        "renewed after its revocation": lambda: plane.certificates.renew(1, ids[1]),
        "nearly expired": lambda: issue(world, follower, "short.example", validity_seconds=DAY),
        "expired": expire,
    }
    for what, change in changes.items():
        await change()
        assert await follower.follow() == "changed", what
        assert follower.rows == await follower.whole(), what
        assert await follower.follow() == "unchanged", what


async def test_orders_for_keys_of_the_host_are_part_of_the_list(world: World, follower: Follower) -> None:
    plane = world.plane
    await plane.work(plane.reports.store, follower.device.id, [AgentVersion("9", ("csr",))])
    await follower.follow()
    cert_id = await issue(world, follower, "own.example", key_origin="device")
    assert await follower.follow() == "changed"
    assert follower.rows == await follower.whole()
    assert follower.rows[cert_id]["order"]["state"] == "csr_wanted"
    await plane.work(plane.orders.cancel_of, cert_id, "not any more")
    assert await follower.follow() == "changed"
    assert follower.rows == await follower.whole() and follower.rows[cert_id]["order"] is None


@pytest.mark.parametrize("seed", range(4))
async def test_no_change_is_missed(world: World, follower: Follower, seed: int) -> None:
    """Random operations; the device follows from any of its earlier revisions, as after a restored backup of either side."""
    chance, plane, device = random.Random(seed), world.plane, follower.device
    ids = [await issue(world, follower, f"c{number}.example") for number in range(3)]
    earlier: list[tuple[str, dict[int, Any]]] = [("", {})]
    for step in range(40):
        cert_id = chance.choice(ids)
        assigned = cert_id in await follower.whole()
        match chance.choice(["issue", "renew", "unassign", "assign", "revoke", "wait"]):
            case "issue":
                ids.append(await issue(world, follower, f"n{step}.example"))
            case "renew":
                await plane.certificates.renew(1, cert_id)
            case "unassign" if assigned:
                await plane.certificates.unassign(1, device.id, cert_id)
            case "assign" if not assigned and plane.certificates.show(1, cert_id)["status"] == "active":
                await plane.certificates.assign(1, device.id, cert_id)
            case "revoke":
                await plane.certificates.revoke(1, cert_id)
            case _:
                world.clock.advance(5)
        follower.revision, follower.rows = chance.choice(earlier)
        await follower.follow()
        assert follower.rows == await follower.whole(), f"step {step}"
        earlier.append((follower.revision, follower.rows))


async def test_a_known_list_of_a_thousand_gets_one_part_of_it(world: World, follower: Follower) -> None:
    ids = await many(world, follower.device, 300)
    whole = await follower.whole()
    page = await follower.device("GET", f"{LIST}?updated_since=&limit=500")
    follower.rows, follower.revision = {row["id"]: row for row in page.data}, page.headers["etag"].strip('"')
    assert follower.rows == whole
    await world.plane.certificates.renew(1, ids[100])
    assert await follower.follow() == "changed"
    assert 1 <= follower.sent <= 5
    assert follower.rows == await follower.whole()


async def many(world: World, device: Device, count: int) -> list[int]:
    """Assign copies of one certificate, which costs no keys, and return their ids."""
    first = (await world.plane.certificates.issue(1, ["c.example"], device_ids=[device.id]))["id"]
    database = world.plane.database

    def copy() -> list[int]:
        names = [name for name in dict(database.one("SELECT * FROM certificates WHERE id = ?", first)) if name != "id"]
        ids = [first]
        for number in range(1, count):
            columns = ", ".join(names)
            wanted = ", ".join("?" if name in ("domain_name", "sans") else name for name in names)
            domain = f"c{number}.example"
            ids.append(
                database.insert(
                    f"INSERT INTO certificates ({columns}) SELECT {wanted} FROM certificates WHERE id = ?",
                    domain, json.dumps([domain]), first,
                )
            )  # fmt: skip
            database.run("INSERT INTO assignments VALUES (?, ?, ?)", device.id, ids[-1], 0)
        return ids

    return await world.plane.work(copy)


async def test_pages_of_the_whole_list_have_the_same_revision(world: World, follower: Follower) -> None:
    ids = await many(world, follower.device, 25)
    pages = [
        await follower.device("GET", f"{LIST}?updated_since=&after_id={after}&limit=10")
        for after in (0, ids[9], ids[19])
    ]
    assert [len(page.data) for page in pages] == [10, 10, 5]
    assert len({page.headers["etag"] for page in pages}) == 1
    assert all(page.json["complete"] is True for page in pages)


async def test_without_updated_since_nothing_has_changed_for_older_agents(world: World, follower: Follower) -> None:
    await issue(world, follower, "a.example")
    reply = await follower.device("GET", LIST, headers={"if-none-match": '"AAAA"'})
    assert {*reply.json} == {"data"} and "etag" not in reply.headers


@pytest.mark.parametrize("query", ["limit=0", "limit=501", "after_id=-1", "after_id=x", "limit=1.5"])
async def test_pages_that_do_not_fit_are_refused(follower: Follower, query: str) -> None:
    assert (await follower.device("GET", f"{LIST}?updated_since=&{query}")).status == 400


@pytest.mark.parametrize(
    "revision",
    ["x", "A" * 11, "A" * 1366, "A" * 12_000, "%00", "%FF%FE", "%0d%0aSet-Cookie:a=b", "%C3%A9", "..%2f..", "'--", "*",
     "AAAAAAAAAAA&updated_since=", "A&A&A=", '"'],
)  # fmt: skip
async def test_whatever_is_sent_as_revision_the_list_is_right(world: World, follower: Follower, revision: str) -> None:
    cert_id = await issue(world, follower, "a.example")
    reply = await follower.device(
        "GET", f"{LIST}?updated_since={revision}", headers={"if-none-match": '"' + "A" * 4000 + '"'}
    )
    body = reply.json
    assert reply.status == 200 and [row["id"] for row in body["data"]] == [cert_id]
    assert body["complete"] or body["replaced"] == {"of": 1, "parts": [0]} or len(body["replaced"]["parts"]) == 128
    assert set(reply.headers) >= {"etag"} and "set-cookie" not in reply.headers


async def test_a_device_without_a_valid_token_gets_no_list(follower: Follower) -> None:
    follower.device.token = "x.y.z"
    assert (await follower.device("GET", f"{LIST}?updated_since=")).status == 401


async def test_two_devices_with_equal_lists_may_share_a_revision_and_nothing_else(world: World) -> None:
    one, other = Follower(await world.device()), Follower(await world.device("another-device-1", "web-2"))
    await issue(world, one, "a.example")
    await one.follow()
    other.revision, other.rows = one.revision, dict(one.rows)
    assert await other.follow() in ("complete", "changed")
    assert other.rows == await other.whole() == {}


# --- materials ----------------------------------------------------------------------------------------------------


async def test_material_has_an_etag_that_the_seal_does_not_change(world: World, follower: Follower) -> None:
    cert_id = await issue(world, follower, "a.example")
    path = f"{LIST}/{cert_id}/deploy-materials"
    one, again = await follower.device("GET", path), await follower.device("GET", path)
    assert one.data != again.data, "each answer is sealed anew"
    etag = one.headers["etag"]
    assert again.headers["etag"] == etag and len(etag) <= 66
    same = await follower.device("GET", path, headers={"if-none-match": etag})
    assert (same.status, same.body, same.headers["etag"]) == (304, b"", etag)
    await world.plane.certificates.renew(1, cert_id)
    renewed = await follower.device("GET", path, headers={"if-none-match": etag})
    assert renewed.status == 200 and renewed.headers["etag"] != etag
    await world.plane.certificates.revoke(1, cert_id)
    assert (await follower.device("GET", path, headers={"if-none-match": renewed.headers["etag"]})).status == 410


async def test_another_key_of_the_device_means_another_etag(world: World) -> None:
    """What was sealed to the key that the device no longer has is of no use to it."""
    one, other = await world.device(), await world.device("another-device-1", "web-2")
    row = await world.plane.certificates.issue(1, ["a.example"], device_ids=[one.id, other.id])
    path = f"{LIST}/{row['id']}/deploy-materials"
    etag = (await one("GET", path)).headers["etag"]
    reply = await other("GET", path, headers={"if-none-match": etag})
    assert reply.status == 200 and reply.headers["etag"] != etag
