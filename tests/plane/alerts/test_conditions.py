"""Each event from the rows that cause it, on both engines, and when it is over."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pytest
from engine_plane import WALL, plane_on, registered

from certctrl.plane.alerts.conditions import Condition, Event
from certctrl.plane.alerts.settings import ChannelSettings
from certctrl.plane.core import Plane
from certctrl.plane.health.problems import ProblemName
from certctrl.plane.storage.database import Database

DAY = 86_400.0


@attrs.define
class Site:
    plane: Plane
    now: list[float]

    async def run(self, sql: str, *parameters: Any) -> None:
        await self.plane.work(self.plane.database.run, sql, *parameters)

    async def read(self, event: Event) -> list[Condition]:
        found = await self.plane.work_long(self.plane.alerts.comparison.conditions.read)
        assert len({(one.group, one.key) for one in found}) == len(found), "keys are unique in their group"
        return [one for one in found if one.event is event]

    async def certificate(self, name: str, device_id: int | None = None) -> int:
        ids = () if device_id is None else (device_id,)
        return int((await self.plane.certificates.issue(1, [name], device_ids=ids))["id"])


@pytest.fixture
def site(open_database: Callable[[], Database]) -> Site:
    now = [WALL]
    return Site(plane_on(open_database(), wall_now=lambda: now[0]), now)


async def test_nothing_is_wrong(site: Site) -> None:
    device_id, _ = await registered(site.plane)
    await site.certificate("a.test", device_id)
    for event in Event:
        assert await site.read(event) == []


async def test_a_silent_device(site: Site) -> None:
    await registered(site.plane, "web-device-1")
    site.now[0] += 800
    assert await site.read(Event.DEVICE_SILENT) == []
    site.now[0] += 200
    (one,) = await site.read(Event.DEVICE_SILENT)
    assert (one.name, one.group, one.is_critical, one.since) == ("web-device-1", "device-silent", False, WALL)
    channel = ChannelSettings()
    assert not channel.wants(one, WALL + 3599, WALL)
    assert channel.wants(one, WALL + 3600, WALL)


async def test_a_certificate_that_is_stuck_and_one_that_has_expired_on_its_device(site: Site) -> None:
    device_id, _ = await registered(site.plane, "web-device-1")
    cert_id = await site.certificate("a.test", device_id)
    sql = (
        "INSERT INTO deployments VALUES (?, 'cert', ?, 'failed', 'probe', 'no-tls', 'said no', 1, 3, ?, ?, ?, '', NULL)"
    )
    await site.run(sql, device_id, cert_id, WALL, WALL, WALL)
    (one,) = await site.read(Event.CERTIFICATE_STUCK)
    assert one.group == "certificate-stuck.stuck.probe.no-tls"
    assert (one.name, one.what) == ("a.test on web-device-1", "a.test on web-device-1 is stuck: said no")
    assert not one.is_critical
    serials = "(SELECT serial_number FROM certificates WHERE id = ?)"
    await site.run(f"UPDATE deployments SET failing = 0, reason = '', serial_number = {serials}", cert_id)
    assert await site.read(Event.CERTIFICATE_STUCK) == []
    await site.run("UPDATE certificates SET not_after = ?", WALL - 5)
    (one,) = await site.read(Event.CERTIFICATE_STUCK)
    assert (one.cause, one.is_critical) == ("the certificate has expired", True)


async def test_an_order_that_fails(site: Site) -> None:
    cert_id = await site.certificate("a.test")
    sql = (
        "INSERT INTO orders (cert_id, issuer, action, state, attempts, problem, fix, created_at, updated_at)"
        " VALUES (?, 'le', 'renew', 'ready', ?, 'the CA is away', '', ?, ?)"
    )
    await site.run(sql, cert_id, 2, WALL, WALL)
    assert await site.read(Event.RENEWAL_FAILED) == []
    await site.run("UPDATE orders SET attempts = 3")
    (one,) = await site.read(Event.RENEWAL_FAILED)
    assert (one.group, one.name) == ("renewal-failed.le", "a.test")
    assert one.what.endswith("(a.test): the CA is away")
    await site.run("UPDATE orders SET state = 'done'")
    assert await site.read(Event.RENEWAL_FAILED) == []


async def test_a_certificate_near_its_end(site: Site) -> None:
    device_id, _ = await registered(site.plane)
    await site.certificate("a.test", device_id)
    await site.certificate("unused.test")
    await site.run("UPDATE certificates SET not_before = ?, not_after = ?", WALL - 70 * DAY, WALL + 20 * DAY)
    (one,) = await site.read(Event.CERTIFICATE_ENDING)
    assert (one.name, one.group, one.is_critical) == ("a.test", "certificate-ending.renewals_late", False)
    await site.run("UPDATE certificates SET not_after = ?", WALL + DAY)
    (one,) = await site.read(Event.CERTIFICATE_ENDING)
    assert (one.group, one.is_critical) == ("certificate-ending.renewals_ending", True)
    assert one.since <= site.now[0]


async def test_a_revocation_is_told_to_channels_that_were_there(site: Site) -> None:
    cert_id = await site.certificate("a.test")
    await site.plane.certificates.revoke(1, cert_id, reason="key lost")
    (one,) = await site.read(Event.REVOCATION)
    assert (one.name, one.is_critical, one.has_end) == ("a.test", True, False)
    channel = ChannelSettings()
    assert channel.wants(one, WALL, since=WALL - 1)
    assert not channel.wants(one, WALL, since=WALL + 1)
    site.now[0] += 8 * DAY
    assert await site.read(Event.REVOCATION) == []


async def test_two_copies_of_a_device(site: Site) -> None:
    device_id, _ = await registered(site.plane, "web-device-1")
    await site.run("UPDATE devices SET copies_at = ? WHERE id = ?", WALL, device_id)
    (one,) = await site.read(Event.DEVICE_COPIES)
    assert one.name == "web-device-1"
    site.now[0] += 901
    assert await site.read(Event.DEVICE_COPIES) == []


async def test_a_halted_rollout(site: Site) -> None:
    await site.run("INSERT INTO profiles (user_id, name, version) VALUES (1, 'nginx', 2)")
    sql = (
        "INSERT INTO rollouts (user_id, profile_id, version, state, rules, reason, created_at, updated_at)"
        " VALUES (1, 1, 2, ?, '{}', '2 devices have failed', ?, ?)"
    )
    await site.run(sql, "halted", WALL, WALL)
    (one,) = await site.read(Event.ROLLOUT_HALTED)
    assert (one.group, one.name, one.cause) == (
        "rollout-halted.1", "rollout 1 of profile nginx", "2 devices have failed",
    )  # fmt: skip
    assert one.what == "rollout 1 of profile nginx, version 2, has halted"
    await site.run("UPDATE rollouts SET profile_id = NULL")
    (one,) = await site.read(Event.ROLLOUT_HALTED)
    assert (one.name, one.what) == ("rollout 1 of renewals", "rollout 1 of renewals has halted")
    await site.run("UPDATE rollouts SET state = 'running'")
    assert await site.read(Event.ROLLOUT_HALTED) == []


async def test_a_problem_of_a_plane_is_known_to_the_plane_that_compares(site: Site) -> None:
    plane = site.plane
    await plane.work(plane.alerts.comparison.note_problems)
    plane.problems.report(ProblemName.DISK_LOW, "60 MiB are left")
    plane.problems.report(ProblemName.ORDERS, "has an event of its own")
    await plane.work(plane.alerts.comparison.note_problems)
    (one,) = await site.read(Event.PLANE_PROBLEM)
    assert (one.group, one.cause) == (
        "plane-problem.disk_low", "The disk of the data directory is almost full",
    )  # fmt: skip
    assert one.what.endswith(": 60 MiB are left")
    site.now[0] += 121
    assert await site.read(Event.PLANE_PROBLEM) == [], "nobody has confirmed it"
    await plane.work(plane.alerts.comparison.note_problems)
    assert len(await site.read(Event.PLANE_PROBLEM)) == 1
    plane.problems.clear(ProblemName.DISK_LOW)
    await plane.work(plane.alerts.comparison.note_problems)
    assert await site.read(Event.PLANE_PROBLEM) == []


def test_quiet_hours_follow_the_time_zone() -> None:
    noon_utc = 1_790_000_000 - 1_790_000_000 % 86_400 + 43_200  # in September: Berlin is two hours ahead
    assert not ChannelSettings(quiet=("22:00-06:00",)).is_quiet(noon_utc)
    assert ChannelSettings(quiet=("13:30-14:30",), time_zone="Europe/Berlin").is_quiet(noon_utc)
    assert not ChannelSettings(quiet=("11:30-12:30",), time_zone="Europe/Berlin").is_quiet(noon_utc)
    assert ChannelSettings(quiet=("22:00-06:00",), time_zone="Europe/Berlin").is_quiet(noon_utc + 8.5 * 3600)
    assert not ChannelSettings().is_quiet(noon_utc)
