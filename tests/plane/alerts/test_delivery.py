"""From conditions to real receivers, on both engines: one message for many, retries, order, dead letters, crashes."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import pytest
import trio
from alert_receivers import HttpsReceiver, https_receiver
from engine_plane import WALL, plane_on

from certctrl.plane.alerts import webhook
from certctrl.plane.alerts.channels import NewChannel
from certctrl.plane.alerts.outbox import LEASE_SECONDS
from certctrl.plane.core import Plane
from certctrl.plane.errors import ErrorResponse
from certctrl.plane.storage.database import Database
from certctrl.plane.storage.keyring import Keyring

Open = Callable[[], Database]


@attrs.define
class Site:
    """Planes on one database, with one clock."""

    open_database: Open
    now: float = WALL
    planes: list[Plane] = attrs.field(factory=list)
    keyring: Keyring = attrs.field(factory=lambda: Keyring.open(None))
    secret: str = ""

    def add_plane(self) -> Plane:
        plane = plane_on(self.open_database(), self.keyring, wall_now=lambda: self.now)
        self.planes.append(plane)
        return plane

    @property
    def plane(self) -> Plane:
        return self.planes[0]

    async def channel(self, receiver: HttpsReceiver, name: str = "ops", kind: str = "webhook", **changes: Any) -> None:
        base: dict[str, Any] = {"allow_local": True, "ca_pem": receiver.ca_pem, "silent_seconds": 900}
        secrets = {"url": receiver.url} | ({"routing_key": "r" * 32} if kind == "pagerduty" else {})
        new = NewChannel(name=name, kind=kind, settings=base | changes, secrets=secrets)
        shown = await self.plane.work(self.plane.alerts.channels.put, new)
        self.secret = shown.get("signing_secret", "")

    async def hosts(self, count: int, last_seen_at: float) -> None:
        def add() -> None:
            for number in range(count):
                self.plane.database.run(
                    "INSERT INTO devices (user_id, device_public_id, status, name, created_at, registered_at, last_seen_at)"
                    " VALUES (1, ?, 'active', ?, ?, ?, ?)",
                    *(f"id-{number}", f"web-{number}", last_seen_at, last_seen_at, last_seen_at),
                )

        await self.plane.work(add)

    async def seen(self) -> None:
        await self.plane.work(self.plane.database.run, "UPDATE devices SET last_seen_at = ?", self.now)

    async def rounds(self, seconds: float, *, step: float = 15.0, plane: Plane | None = None) -> None:
        """Let time pass, with a round of the runner in each step."""
        runner = (plane or self.plane).alerts.runner
        end = self.now + seconds
        while self.now < end:
            self.now = min(self.now + step, end)
            runner.begun = -1e9
            await runner.run_once()

    async def messages(self, state: str = "") -> list[dict[str, Any]]:
        page = self.plane.alerts.outbox.page
        return await self.plane.work(lambda: page(state=state, channel="", before_id=None, limit=500))

    def problems(self) -> list[str]:
        return [str(one.name) for one in self.plane.problems.now()]


@pytest.fixture
def site(open_database: Open) -> Site:
    found = Site(open_database)
    found.add_plane()
    return found


@pytest.fixture
def receiver() -> Iterator[HttpsReceiver]:
    with https_receiver() as found:
        yield found


def is_signed(received: Any, secret: str) -> bool:
    """Check a request as a receiver does, by the specification of Standard Webhooks."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    head = received.headers
    signed = f"{head['webhook-id']}.{head['webhook-timestamp']}.".encode() + received.body
    expected = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    return f"v1,{expected}" == head["webhook-signature"]


async def test_an_outage_of_500_hosts_is_one_signed_message_and_its_end_another(
    site: Site, receiver: HttpsReceiver
) -> None:
    await site.channel(receiver)
    await site.hosts(500, site.now)
    await site.rounds(890, step=200)
    assert receiver.received == []
    await site.rounds(120)
    (request,) = receiver.received
    assert is_signed(request, site.secret)
    assert request.path == "/hooks/secret-path"
    body = request.json
    assert (body["event"], body["kind"], body["count"], body["new"], body["more"]) == (
        "device-silent", "firing", 500, 500, 480,
    )  # fmt: skip
    assert body["title"] == "device silent: 500 (web-0, web-1, web-2, …)"
    assert body["id"] == request.headers["webhook-id"]
    await site.seen()
    await site.rounds(15)
    assert [one.json["kind"] for one in receiver.received] == ["firing", "resolved"]
    assert receiver.received[1].json["count"] == 500
    await site.rounds(700, step=100)
    assert len(receiver.received) == 2
    groups = await site.plane.work(site.plane.database.all, "SELECT * FROM alert_groups")
    assert groups == []
    assert [row["state"] for row in await site.messages()] == ["sent", "sent"]


async def test_a_plane_that_has_just_started_does_not_know_who_is_silent(site: Site, receiver: HttpsReceiver) -> None:
    await site.channel(receiver, wait_seconds=0)
    await site.hosts(3, site.now - 5000)
    runner = site.plane.alerts.runner
    runner.begun = trio.current_time()
    await runner.run_once()
    assert receiver.received == []
    await site.rounds(30)
    assert len(receiver.received) == 1
    runner.begun = trio.current_time()
    await site.seen()
    site.now += 100
    await runner.run_once()
    assert len(receiver.received) == 1, "nor that they are back"


async def test_a_receiver_that_fails_gets_each_message_later_and_in_order(
    site: Site, receiver: HttpsReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhook, "SECONDS", 0.5)
    await site.channel(receiver, wait_seconds=0, events=["device-silent"])
    await site.hosts(1, site.now - 5000)
    receiver.script = ["500", "hang", "redirect", "garbage", "404"]
    await site.rounds(15)
    (row,) = await site.messages("due")
    assert (row["attempts"], "answered with 500" in row["problem"]) == (1, True)
    assert "secret-path" not in json.dumps(row)
    await site.seen()
    await site.rounds(20, step=10)  # the end is stored meanwhile; the third attempt is not due yet
    assert [row["kind"] for row in await site.messages("due")] == ["resolved", "firing"]
    assert "alerts" not in site.problems()
    await site.rounds(60)
    assert "alerts" in site.problems(), "three attempts have failed"
    await site.rounds(400)
    assert await site.messages("due") == []
    assert "alerts" not in site.problems()
    kinds = [one.json["kind"] for one in receiver.received]
    assert kinds == ["firing"] * 6 + ["resolved"]
    assert len({one.headers["webhook-id"] for one in receiver.received[:6]}) == 1, "an attempt is not a new message"


async def test_a_dead_letter_is_visible_and_can_be_sent_again(site: Site, receiver: HttpsReceiver) -> None:
    await site.channel(receiver, wait_seconds=0, repeat_seconds=0, events=["device-silent"])
    await site.hosts(1, site.now - 5000)
    receiver.script = ["503"] * 100
    await site.rounds(86_400 + 4000, step=600)
    (row,) = await site.messages()
    assert (row["state"], row["next_at"]) == ("dead", None)
    assert 25 < row["attempts"] < 60
    attempts = len(receiver.received)
    assert attempts == row["attempts"]
    await site.rounds(7200, step=600)
    assert len(receiver.received) == attempts, "it is not retried"
    assert "alerts" in site.problems()
    receiver.script = []
    resend = site.plane.alerts.outbox.resend
    shown = await site.plane.work(resend, row["id"])
    assert shown["state"] == "due"
    await site.rounds(30)
    assert [one["state"] for one in await site.messages()] == ["sent"]
    assert "alerts" not in site.problems()
    with pytest.raises(ErrorResponse, match="was sent at"):
        await site.plane.work(resend, row["id"])
    with pytest.raises(ErrorResponse, match="no alert message 99"):
        await site.plane.work(resend, 99)


async def test_a_dismissed_message_is_no_problem(site: Site, receiver: HttpsReceiver) -> None:
    await site.channel(receiver, wait_seconds=0, repeat_seconds=0, events=["device-silent"])
    await site.hosts(1, site.now - 5000)
    receiver.script = ["503"] * 100
    await site.rounds(15)
    outbox, channels = site.plane.alerts.outbox, site.plane.alerts.channels
    (row,) = await site.messages()
    with pytest.raises(ErrorResponse, match=f"Message {row['id']} is still tried, at 20.* again"):
        await site.plane.work(outbox.dismiss, row["id"])
    await site.rounds(86_400 + 4000, step=600)
    assert "alerts" in site.problems()
    assert (await site.plane.work(channels.show, "ops"))["dead"] == 1
    shown = await site.plane.work(outbox.dismiss, row["id"])
    assert shown["state"] == "dismissed"
    site.now += 60
    assert await site.plane.work(outbox.dismiss, row["id"]) == shown, "a repetition changes nothing"
    await site.rounds(30)
    assert "alerts" not in site.problems()
    channel = await site.plane.work(channels.show, "ops")
    assert (channel["dead"], channel["problem"]) == (0, "")
    assert await site.messages("dead") == []
    assert [one["id"] for one in await site.messages("dismissed")] == [row["id"]]
    receiver.script = []
    again = await site.plane.work(outbox.resend, row["id"])
    assert (again["state"], again["dismissed_at"]) == ("due", None)
    await site.rounds(30)
    assert [one["state"] for one in await site.messages()] == ["sent"]
    with pytest.raises(ErrorResponse, match="was sent at"):
        await site.plane.work(outbox.dismiss, row["id"])
    with pytest.raises(ErrorResponse, match="no alert message 99"):
        await site.plane.work(outbox.dismiss, 99)


async def test_nothing_is_sent_to_a_server_that_is_not_trusted_or_is_local(site: Site, receiver: HttpsReceiver) -> None:
    with https_receiver() as other:
        await site.channel(receiver, wait_seconds=0, ca_pem=other.ca_pem)
        answer = await site.plane.alerts.runner.test("ops")
    assert (answer["ok"], "certificate" in answer["problem"]) == (False, True)
    assert receiver.received == []
    with pytest.raises(ErrorResponse, match="an address of the control plane's own host"):
        await site.channel(receiver, "local", allow_local=False)
    backend = webhook.CheckedBackend(allow_local=False)  # a name is checked when it is connected to
    for host in ("localhost", "127.0.0.1", "169.254.169.254", "::ffff:127.0.0.1", "0.0.0.0"):
        with pytest.raises(webhook.DeliveryError, match=r"control plane's own host|link-local"):
            await backend.connect_tcp(host, 443)


@pytest.mark.parametrize("host", ["a..b", f"{'x' * 64}.example.com", "."])
async def test_a_host_that_is_no_name_is_a_problem_of_its_channel(site: Site, host: str) -> None:
    new = NewChannel(name="ops", kind="slack", settings={}, secrets={"url": f"https://{host}/hook"})
    await site.plane.work(site.plane.alerts.channels.put, new)
    answer = await site.plane.alerts.runner.test("ops")
    assert (answer["ok"], answer["problem"]) == (False, f"cannot resolve the host of {host}: it is no name of a host")


async def test_of_an_answer_that_is_not_http_nothing_is_shown(site: Site, receiver: HttpsReceiver) -> None:
    await site.channel(receiver)
    receiver.script = ["garbage"]
    answer = await site.plane.alerts.runner.test("ops")
    assert answer["ok"] is False and answer["problem"].endswith(" broke: no answer in HTTP")


async def test_of_two_planes_one_compares_and_one_sends(site: Site, receiver: HttpsReceiver) -> None:
    await site.channel(receiver, wait_seconds=0)
    await site.hosts(20, site.now - 5000)
    second = site.add_plane()
    for _ in range(3):
        site.now += 15
        async with trio.open_nursery() as nursery:
            for plane in (site.plane, second):
                plane.alerts.runner.begun = -1e9
                nursery.start_soon(plane.alerts.runner.run_once)
    assert len(receiver.received) == 1


async def test_a_message_of_a_plane_that_died_is_sent_by_another(site: Site, receiver: HttpsReceiver) -> None:
    await site.channel(receiver, wait_seconds=0)
    await site.hosts(1, site.now - 5000)
    await site.plane.work(site.plane.alerts.comparison.plan)
    await site.plane.work_long(lambda: site.plane.alerts.comparison.run(may_judge_silence=True))
    (claimed,) = await site.plane.work(
        site.plane.alerts.outbox.claim, 10
    )  # and then it dies, perhaps after it has sent
    second = site.add_plane()
    await site.rounds(30, plane=second)
    assert receiver.received == []
    await site.rounds(LEASE_SECONDS, plane=second)
    (request,) = receiver.received
    assert request.headers["webhook-id"].endswith(f"-{claimed[1].id}")
    await site.plane.work(site.plane.alerts.outbox.fail, claimed[0], "late")  # the first one was only slow
    assert [row["state"] for row in await site.messages()] == ["sent"]


async def test_a_round_is_stored_as_a_whole_or_not_at_all(
    site: Site, receiver: HttpsReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    await site.channel(receiver, wait_seconds=0)
    await site.hosts(2, site.now - 5000)
    await site.plane.work(site.plane.database.run, "UPDATE devices SET copies_at = ? WHERE name = 'web-1'", site.now)
    add, calls = site.plane.alerts.outbox.add, list[int]()

    def fail_at_the_second(channel_id: int, message: Any) -> int:
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("killed")
        return add(channel_id, message)

    monkeypatch.setattr(site.plane.alerts.outbox, "add", fail_at_the_second)
    with pytest.raises(RuntimeError):
        await site.plane.work_long(site.plane.alerts.comparison.compare)
    assert await site.messages() == []
    await site.plane.work_long(site.plane.alerts.comparison.compare)
    assert sorted(row["group"] for row in await site.messages()) == ["device-copies", "device-silent"]


async def test_a_change_of_the_cause_is_not_told_as_an_end(site: Site, receiver: HttpsReceiver) -> None:
    await site.channel(receiver, wait_seconds=0, events=["certificate-stuck"])
    await site.hosts(1, site.now)
    sql = (
        "INSERT INTO deployments VALUES (1, 'install', 1, 'failed', 'reload', 'command-failed', 'nginx: \u202e[emerg]',"
        " 1, 3, ?, ?, ?, '', NULL)"
    )
    await site.plane.work(site.plane.database.run, sql, site.now, site.now, site.now)
    await site.rounds(15)
    await site.plane.work(site.plane.database.run, "UPDATE deployments SET reason = 'disk-full'")
    await site.rounds(15)
    first, *later = [one.json for one in receiver.received]
    assert first["cause"] == "a command of an item fails"
    assert "\u202e" not in json.dumps(first, ensure_ascii=False)
    changed = next(one for one in later if one["kind"] == "resolved")
    assert changed["title"].startswith("another cause now: certificate stuck")
    assert changed["with_another_cause"] == ["web-0"]
    assert next(one for one in later if one["kind"] == "firing")["cause"] == "the host's disk is full"


async def test_forms_of_slack_and_pagerduty(site: Site, receiver: HttpsReceiver) -> None:
    await site.channel(receiver, "slack", "slack", wait_seconds=0)
    await site.channel(receiver, "pager", "pagerduty", wait_seconds=0)
    await site.hosts(1, site.now - 5000)
    await site.plane.work(site.plane.database.run, "UPDATE devices SET name = '<!channel> *web*'")
    await site.rounds(15)
    await site.seen()
    await site.rounds(15)
    bodies = [one.json for one in receiver.received]
    slack = [body["text"] for body in bodies if "text" in body]
    assert [text.split(":")[1] for text in slack] == ["warning", "white_check_mark"]
    assert "<!channel>" not in slack[0]
    assert "&lt;!channel&gt;" in slack[0]
    trigger, resolve = [body for body in bodies if "routing_key" in body]
    assert (trigger["event_action"], resolve["event_action"]) == ("trigger", "resolve")
    assert trigger["dedup_key"] == resolve["dedup_key"]
    assert trigger["payload"]["severity"] == "warning"
    stored = json.dumps(await site.messages(), ensure_ascii=False)
    assert "r" * 32 not in stored
    assert "secret-path" not in stored


async def test_a_removed_channel_leaves_nothing(site: Site, receiver: HttpsReceiver) -> None:
    await site.channel(receiver, wait_seconds=0)
    await site.hosts(1, site.now - 5000)
    receiver.script = ["500"]
    await site.rounds(15)
    await site.plane.work(site.plane.alerts.channels.remove, "ops")
    for table in ("alert_channels", "alert_groups", "alert_messages"):
        assert await site.plane.work(site.plane.database.all, f"SELECT * FROM {table}") == []
    assert await site.plane.work(site.plane.database.all, "SELECT * FROM jobs WHERE kind = 'alert'") == []


async def test_what_a_later_release_has_stored_is_left_alone(site: Site, receiver: HttpsReceiver) -> None:
    await site.channel(receiver, wait_seconds=0, events=["device-silent"])
    await site.hosts(1, site.now - 5000)
    run = site.plane.database.run
    columns = "name, kind, settings, secrets_enc, created_at, updated_at"
    await site.plane.work(run, f"INSERT INTO alert_channels ({columns}) VALUES ('z', 'pigeon', '{{}}', ?, 0, 0)", b"?")
    await site.plane.work(run, "INSERT INTO alert_groups VALUES (1, 'moon-full.1', ?)", '{"event": "moon-full"}')
    await site.rounds(30)
    assert [one.json["event"] for one in receiver.received] == ["device-silent"]
    assert "alerts" in site.problems(), "an operator is told that z is not served"
    groups = await site.plane.work(site.plane.database.all, "SELECT name FROM alert_groups WHERE name = 'moon-full.1'")
    assert len(groups) == 1


async def test_a_clock_that_is_set_back_stops_nothing(site: Site, receiver: HttpsReceiver) -> None:
    await site.channel(receiver, wait_seconds=0)
    await site.rounds(30)
    site.now -= 40_000
    await site.hosts(1, site.now - 5000)
    await site.rounds(30)
    assert len(receiver.received) == 1
