"""A hostile registered device, with both engines: it gets refusals, no data of others, and no more than its share."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from engine_plane import plane_on, registered
from plane_world import Client, Reply, World
from push_client import PushClient, memory_client, pushed

from certctrl.plane.core import Plane
from certctrl.plane.devices.reports import FEW_EVENTS
from certctrl.plane.http import reading, unread
from certctrl.plane.http.app import make_app
from certctrl.plane.polls import COSTLY_BURST
from certctrl.plane.storage.database import Database

SELF = "/apiv1/devices/self"
BATCH = f"{SELF}/deploy-materials"
NOTIFY = f"{SELF}/notify"
JSON = {"content-type": "application/json"}


@attrs.frozen
class Site:
    """A plane with a hostile device and another one, each with a certificate."""

    plane: Plane
    app: Callable[..., Any]
    hostile: Client
    other: Client
    ids: tuple[int, int]
    """Of the devices."""
    own: int
    theirs: int
    """Certificates."""

    async def require_others_unaffected(self) -> None:
        """Require that the other device gets its signals and its material, and has reported nothing."""
        page = await self.other("GET", f"{SELF}/updates")
        assert [one["ref"]["cert_id"] for one in page.data["signals"]] == [self.theirs]
        reply = await self.other("POST", BATCH, {"cert_ids": [self.theirs, self.own]})
        assert [item["status"] for item in reply.data] == [200, 404]
        assert await self.plane.work(self.plane.reports.outcomes, self.ids[1]) == []
        assert reading.arriving.used == unread.unread.used == 0


@pytest.fixture
async def site(open_database: Callable[[], Database]) -> Site:
    return await site_on(open_database(), poll_rate=1000.0, poll_burst=1000)


async def site_on(database: Database, **settings: Any) -> Site:
    plane = plane_on(database, **settings)
    app = make_app(plane)
    (hostile_id, hostile), (other_id, other) = [await registered(plane, f"device-{n}") for n in range(2)]
    own, theirs = [
        (await plane.certificates.issue(1, [name], device_ids=[device_id]))["id"]
        for name, device_id in (("own.example", hostile_id), ("secret.example", other_id))
    ]
    return Site(plane, app, Client(app, hostile), Client(app, other), (hostile_id, other_id), own, theirs)


def wanted(*ids: object, **more: object) -> bytes:
    return json.dumps({"cert_ids": list(ids), **more}).encode()


BOMB = gzip.compress(b" " * (32 * 1024 * 1024))
REFUSED: dict[str, tuple[bytes, dict[str, str], int]] = {
    "100 000 ids": (wanted(*range(1, 100_001)), {}, 413),
    "as many ids as fit": (wanted(*range(1, 10_001)), {}, 400),
    "101 ids": (wanted(*range(1, 102)), {}, 400),
    "one id twice": (wanted(1, 1), {}, 400),
    "one id a hundred times": (wanted(*[1] * 100), {}, 400),
    "ids as floats": (wanted(1.0, 2.0), {}, 400),
    "ids as exponents": (b'{"cert_ids": [1e0]}', {}, 400),
    "ids as texts": (wanted("1", "2"), {}, 400),
    "ids as SQL": (wanted("1) OR (1=1"), {}, 400),
    "ids beyond 53 bits": (wanted(2**53 + 1), {}, 400),
    "ids beyond 64 bits": (wanted(2**64), {}, 400),
    "ids of 5 000 digits": (b'{"cert_ids": [' + b"9" * 5000 + b"]}", {}, 400),
    "negative ids": (wanted(-1), {}, 400),
    "ids that are nothing": (wanted(None, True, [], {}), {}, 400),
    "ids in lists": (wanted([1], [[2]]), {}, 400),
    "an object for the ids": (b'{"cert_ids": {"1": 1}}', {}, 400),
    "a list for the ETags": (wanted(1, etags=["a"]), {}, 400),
    "no number": (b'{"cert_ids": [NaN]}', {}, 400),
    "no JSON": (b"cert_ids=1", {}, 400),
    "not UTF-8": ('{"cert_ids": [1]}'.encode("utf-16"), {}, 400),
    "lone surrogates": (b'{"cert_ids": [1], "etags": {"1": "\\ud800"}}', {}, 400),
    "deep nesting": (b'{"cert_ids": ' + b"[" * 20_000, {}, 400),
    "100 000 values": (b'{"cert_ids": [' + b"1," * 30_000 + b"1]}", {}, 400),
    "form data": (wanted(1), {"content-type": "application/x-www-form-urlencoded"}, 415),
    "compressed": (gzip.compress(wanted(1)), {"content-encoding": "gzip"}, 400),
    "32 MiB in a compressed body": (BOMB, {"content-encoding": "gzip"}, 400),
    "a body that is not as long as it says": (wanted(1), {"content-length": str(2**40)}, 413),
}


async def test_requests_for_many_materials_that_do_not_fit_are_refused(site: Site) -> None:
    for name, (body, headers, status) in REFUSED.items():
        reply = await site.hostile("POST", BATCH, body=body, headers=JSON | headers)
        assert reply.status == status, name
        assert b"secret" not in reply.body and len(reply.body) < 2000, name
    await site.require_others_unaffected()


async def test_etags_that_do_not_fit_are_ignored(site: Site) -> None:
    for etags in (
        {}, None, {str(site.own): 1}, {str(site.own): "x" * 60_000}, {"1" * 5000: "a", "": "", "-1": None},
        {str(n): "e" for n in range(5000)}, {f"0{site.own}": "a"}, {str(site.own): {"a": [1]}},
    ):  # fmt: skip
        reply = await site.hostile("POST", BATCH, body=wanted(site.own, etags=etags), headers=JSON)
        assert [item["status"] for item in reply.data] == [200]
    await site.require_others_unaffected()


def but_for_ids(reply: Reply, cert_id: int) -> tuple[int, bytes]:
    return reply.status, reply.body.replace(str(cert_id).encode(), b"ID")


async def test_what_another_device_has_is_as_if_it_were_not_there(site: Site) -> None:
    """Status, words and headers are those of a certificate that does not exist, with the ETag of the other, too."""
    etag = (await site.other("POST", BATCH, {"cert_ids": [site.theirs]})).data[0]["etag"]
    unknown = 2**50

    async def each(cert_id: int) -> list[Any]:
        path = f"{SELF}/certificates/{cert_id}"
        known = {"if-none-match": f'"{etag}"'}
        csr = {"order_id": 1, "csr_pem": "x"}
        many = {"cert_ids": [cert_id], "etags": {str(cert_id): etag}}
        issue = {"action": "renew", "key_lost": True}
        return [
            but_for_ids(await call, cert_id)
            for call in (
                site.hostile("GET", path),
                site.hostile("GET", f"{path}/deploy-materials"),
                site.hostile("GET", f"{path}/deploy-materials", headers=known),
                site.hostile("POST", BATCH, many),
                site.hostile("POST", f"{path}/csr", csr),
                site.hostile("POST", f"/apiv1/users/1/certificates/{cert_id}/issues", issue),
            )
        ]

    found = await each(site.theirs)
    assert found == await each(unknown)
    assert {status for status, _ in found} <= {200, 400, 403, 404, 409} and not any(
        b"secret" in body for _, body in found
    )
    for what in ("", "/install-config", "/certificates", "/outcomes", "/questions"):
        replies = [
            await site.hostile("GET", f"/apiv1/users/1/devices/{device_id}{what}") for device_id in (site.ids[1], 999)
        ]
        assert [one.status for one in replies] in ([403, 403], [404, 404]), what
    await site.require_others_unaffected()


async def test_the_list_of_a_device_has_its_certificates_whatever_revision_it_sends(site: Site) -> None:
    theirs = await site.other("GET", f"{SELF}/certificates?updated_since=")
    revision = theirs.headers["etag"].strip('"')
    for since in (revision, "", "A" * 11, "x" * 3000, "%00", "'; --", "*"):
        for headers in ({}, {"if-none-match": f'"{revision}"'}, {"if-none-match": "*"}, {"if-none-match": "x" * 9000}):
            reply = await site.hostile("GET", f"{SELF}/certificates?updated_since={since}", headers=headers)
            assert reply.status == 200
            assert [row["id"] for row in reply.data] == [site.own]
    await site.require_others_unaffected()


def ack(number: int, **more: object) -> dict[str, Any]:
    signal = {"type": "cert.renewed", "ts_ms": number, "ref": {"cert_id": number}}
    return {"type": "signal.ack", "signal": signal, "outcome": "applied"} | more


async def test_outcomes_of_signals_that_were_never_sent_stay_few_and_with_their_device(
    open_database: Callable[[], Database],
) -> None:
    site = await site_on(open_database(), poll_rate=1000.0, poll_burst=1000, outcomes_kept=40)
    for start in range(0, 1000, 100):
        events = [ack(number) for number in range(start, start + 100)]
        assert (
            await site.hostile("POST", NOTIFY, {"schema": "certctrl.device.notify.v1", "events": events})
        ).status == 204
    assert len(await site.plane.work(site.plane.reports.outcomes, site.ids[0], 1000)) <= 40
    await site.require_others_unaffected()


async def test_odd_outcomes_are_refused_or_stored_short(site: Site) -> None:
    huge, odd = "x" * 200_000, ["\0\x1b[2J", None, True, -1, 2**70, 1.5, [], {"a": {}}]
    events: list[Any] = [
        ack(1, detail=huge), ack(2, deployed=[{"serial": huge}]), ack(3, duration_ms=2**70),
        ack(4, signal={"type": huge, "ts_ms": 4, "ref": {"cert_id": huge, "\0": huge}}),
        ack(5, signal={"type": "a\0b", "ts_ms": -5, "ref": {"cert_id": "\0"}}), *[ack(6, detail=one) for one in odd],
        {"type": "agent_version", "version": huge, "features": ["\0", huge, *odd, *map(str, range(10_000))]},
        {"type": "no.such.event", "data": huge},
    ]  # fmt: skip
    report = {"schema": "certctrl.device.notify.v1"}
    for event in events:
        assert (await site.hostile("POST", NOTIFY, report | {"events": [event]})).status == 204, str(event)[:100]
    for bad in ([7], [{}], [{"type": 7}], [ack(1, outcome="great")], [ack(1)] * 101, {}, None, [ack(1, signal=[])]):
        assert (await site.hostile("POST", NOTIFY, report | {"events": bad})).status == 400, str(bad)[:100]
    stored = await site.plane.work(site.plane.reports.outcomes, site.ids[0], 1000)
    assert stored and len(json.dumps(stored)) < 50_000
    await site.require_others_unaffected()


async def test_requests_that_cost_much_are_limited_for_each_device(open_database: Callable[[], Database]) -> None:
    """Found by review: one device could keep the control plane busy with sealing keys and listing certificates."""
    site = await site_on(open_database(), poll_rate=0.001, poll_burst=1)
    acks = {"schema": "certctrl.device.notify.v1", "events": [ack(number) for number in range(50)]}
    requests: list[Any] = [
        ("POST", BATCH, {"cert_ids": [site.own]}), ("GET", f"{SELF}/certificates?updated_since="),
        ("GET", f"{SELF}/certificates"), ("POST", NOTIFY, acks),
    ]  # fmt: skip
    replies = [await site.hostile(*requests[number % 4]) for number in range(COSTLY_BURST)]
    assert {one.status for one in replies} == {200, 204}
    for request in requests:
        reply = await site.hostile(*request)
        assert (reply.status, reply.key) == (429, "RATE_LIMITED") and int(reply.headers["retry-after"]) >= 1
    few = acks | {"events": [ack(1)]}
    assert (await site.hostile("POST", NOTIFY, few)).status == 204, "what costs little is not counted"
    assert (await site.hostile("GET", f"{SELF}/certificates/{site.own}/deploy-materials")).status == 200
    await site.require_others_unaffected()


# --- on a socket ----------------------------------------------------------------------------------------------------


async def test_what_a_hostile_device_says_on_its_socket_concerns_nobody_else(site: Site) -> None:
    cursor = json.loads((await site.other("GET", f"{SELF}/updates")).body)["data"]["cursor"]
    messages: list[tuple[str, Any, str | None]] = [
        ("updates.ack", None, "1-1"), ("updates.ack", None, cursor), ("updates.ack", None, "x" * 1024),
        ("updates.outcomes", {"schema": "certctrl.device.notify.v1", "events": [ack(n) for n in range(100)]}, "1"),
        ("updates.outcomes", {"schema": "certctrl.device.notify.v1", "events": "all"}, "2"),
        ("session.token", {"access_token": site.other.token}, None), ("session.token", {"access_token": [1]}, None),
        ("ask.answer", {"answer": {"a": "x" * 100_000}}, "1"), ("ask.answer", {"answer": 5}, "2"),
        ("ask.answer", None, None), ("lifecycle.hello", {"cursor": "9-9", "limit": 100}, None),
        ("lifecycle.hello", {"cursor": "\0", "limit": 1}, None), ("no.such.type", {"a": 1}, "x"),
    ]  # fmt: skip
    async with memory_client(site.app, site.hostile.token) as client:
        assert await client.upgrade() == 101
        await client.hello()
        for type_, data, name in messages:
            await client.send(type_, data, name)
        answers = await until_quiet(client)
    assert b"secret" not in json.dumps(answers).encode()
    assert not [one for one in answers if one["type"] == "session.token_ack"], "another device's token"
    await site.plane.work(site.plane.devices.save_sightings)
    await site.require_others_unaffected()


async def until_quiet(client: PushClient) -> list[dict[str, Any]]:
    """Return all messages until the answer to a last one."""
    await client.send("updates.outcomes", {"schema": "certctrl.device.notify.v1", "events": []}, "last")
    found: list[dict[str, Any]] = []
    with trio.fail_after(60):
        while not found or found[-1].get("id") != "last":
            message = await client.receive()
            assert isinstance(message, dict), message
            found.append(message)
    return found


async def test_outcomes_on_a_socket_count_as_much_as_in_requests(open_database: Callable[[], Database]) -> None:
    site = await site_on(open_database(), poll_rate=0.001, poll_burst=2)
    async with memory_client(site.app, site.hostile.token) as client:
        assert await client.upgrade() == 101
        await client.hello()
        await client.page()
        statuses = []
        for number in range(2 * COSTLY_BURST + 1):
            answer = await client.outcomes([ack(one) for one in range(50)], str(number))
            assert isinstance(answer, dict)
            statuses.append(answer.get("data", {}).get("status", 204))
    assert statuses == [*[204] * 2 * COSTLY_BURST, 429]
    await site.require_others_unaffected()


async def test_a_storm_of_sockets_of_one_device_is_refused_and_leaves_one(
    build: Callable[..., World], autojump_clock: trio.abc.Clock
) -> None:
    world = build(virtual=True, poll_rate=1.0, poll_burst=5)
    hostile, other = await world.device(), await world.device("11111111-1111-4111-8111-111111111111", "web-2")
    statuses = []
    async with pushed(world, other) as quiet:
        for _ in range(50):
            async with memory_client(world.app, hostile.token) as client:
                statuses.append(await client.upgrade())
                if statuses[-1] == 101:
                    await client.hello()
        assert statuses == [*[101] * 5, *[429] * 45]
        await world.plane.certificates.issue(1, ["a.example"], device_ids=[other.id])
        assert (await quiet.page())["signals"]
        assert world.plane.push.count() == 1


# --- clients that do not read ---------------------------------------------------------------------------------------


async def test_responses_that_nobody_reads_are_bounded_together(
    build: Callable[..., World], autojump_clock: trio.abc.Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by review: a device could open any number of connections, and each kept a whole answer for 20 s."""
    monkeypatch.setattr(unread, "MAX_BYTES", 100_000)
    world = build(virtual=True, poll_rate=1000.0, poll_burst=1000)
    device, most = await world.device(), 0
    for number in range(40):
        await world.plane.certificates.issue(1, [f"{number}.example"], device_ids=[device.id])
    head = f"GET {SELF}/certificates HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {device.token}\r\n\r\n".encode()

    async def ask(ended: list[int], number: int) -> None:
        nonlocal most
        async with memory_client(world.app, device.token, capacity=1000) as client:
            await client.raw(head)
            await trio.sleep(10)
            most = max(most, unread.unread.used)
            while await client.stream.receive_some():
                await trio.sleep(1)
            ended.append(number)

    ended: list[int] = []
    async with trio.open_nursery() as nursery:
        for number in range(30):
            nursery.start_soon(ask, ended, number)
            await trio.sleep(0.1)
        assert 50_000 < unread.unread.used <= 100_000
        reply = await device("GET", f"{SELF}/certificates")
        assert len(reply.data) == 40, "a client that reads is served"
        await trio.sleep(0.1)
        async with memory_client(world.app, device.token) as client:
            await client.raw(head)
            assert (await client.stream.receive_some()).startswith(b"HTTP/1.1 200")
    assert most <= 100_000
    assert unread.unread.used == 0
    assert ended[:10] == sorted(ended[:10]), "those that had waited longest were closed first"


async def test_a_response_that_is_larger_than_all_may_be_ends_its_own_connection(
    build: Callable[..., World], autojump_clock: trio.abc.Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unread, "MAX_BYTES", 100)
    world = build(virtual=True)
    device = await world.device()
    await world.plane.certificates.issue(1, ["a.example"], device_ids=[device.id])
    head = f"GET {SELF}/certificates HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {device.token}\r\n\r\n".encode()
    async with memory_client(world.app, device.token, capacity=200) as client:
        await client.raw(head)
        received = b""
        while part := await client.stream.receive_some():
            received += part
        assert len(received) == 200 and trio.current_time() < 5
    assert unread.unread.used == 0


async def test_what_costs_much_is_counted_by_the_clock_of_a_served_plane(tmp_path: Path) -> None:
    """On SQLite, that is Trio's clock, which the threads of long units of work do not have."""
    with Plane.open(tmp_path / "plane", offload=trio.to_thread.run_sync) as plane:
        device_id, token = await registered(plane)
        await plane.certificates.issue(1, ["own.example"], device_ids=[device_id])
        device = Client(make_app(plane), token)
        acks = {"schema": "certctrl.device.notify.v1", "events": [ack(number) for number in range(2 * FEW_EVENTS)]}
        assert (await device("POST", NOTIFY, acks)).status == 204
        assert (await device("POST", BATCH, {"cert_ids": [1]})).status == 200
        for query in ("", "?updated_since="):
            assert (await device("GET", f"{SELF}/certificates{query}")).status == 200
        assert len(await plane.work(plane.reports.outcomes, device_id)) == 2 * FEW_EVENTS
