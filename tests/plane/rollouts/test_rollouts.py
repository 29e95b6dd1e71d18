"""Rollouts on both engines: waves by proof, halts, pause, abort, freeze, several planes, and kill -9."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pytest
import trio
from engine_plane import WALL, new_device, plane_on

from certctrl.errors import CertctrlError, PlaneError
from certctrl.model.plan import OutcomeKind
from certctrl.plane.audit.log import Filter
from certctrl.plane.core import Plane
from certctrl.plane.devices.reports import Ack
from certctrl.plane.profiles.profiles import ProfileChange
from certctrl.plane.rollouts.rollouts import RolloutRules
from certctrl.plane.rollouts.runner import IDLE_SECONDS, ROUND_SECONDS
from certctrl.plane.storage.database import Database
from certctrl.plane.storage.keyring import Keyring

FILES = {
    "id": "files", "type": "copy", "ob_name": "www.example.com", "from": ["combined.pem"], "to": ["/etc/tls/www.pem"],
}  # fmt: skip
NEW = FILES | {"to": ["/etc/tls/new.pem"]}


@attrs.define
class Fleet:
    """Devices that have the first version of a profile, and the planes that they use."""

    planes: list[Plane]
    devices: list[int]
    now: list[float]

    @property
    def plane(self) -> Plane:
        return self.planes[0]

    async def start(self, *waves: str, **rules: Any) -> int:
        given = RolloutRules(waves=waves or ("1", "10%"), **rules)
        done = await self.plane.rollouts.start(1, "p", ProfileChange(installs=[NEW]), given)
        return int(done["id"])

    async def round(self) -> None:
        for plane in self.planes:
            await plane.rollout_runner.round()

    async def ack(self, *devices: int, outcome: OutcomeKind = OutcomeKind.APPLIED) -> None:
        """Report an outcome of the newest config of devices, as their agents do."""
        for device in devices:
            version = (await self.plane.work(self.plane.installs.versions, [device]))[device]
            ack = Ack(
                type="install.updated", ts_ms=version, ref={"version": version}, outcome=outcome, detail="because"
            )
            await self.plane.work(self.plane.reports.store, device, [ack])

    async def heard(self, *devices: int) -> None:
        for device in devices:
            self.plane.devices.seen(device, "192.0.2.7", "", self.now[0])
        await self.plane.work(self.plane.devices.save_sightings)

    async def new(self) -> list[int]:
        """Return the devices that have the new version, by their place."""
        found = []
        for place, device in enumerate(self.devices):
            document = await self.plane.work(self.plane.installs.document, device)
            if document["installs"] == [NEW]:
                found.append(place)
        return found

    async def show(self, rollout: int) -> dict[str, Any]:
        return await self.plane.work(self.plane.rollouts.show, 1, rollout)

    async def recorded(self) -> list[tuple[str, dict[str, Any]]]:
        """Return what the planes have recorded of their own work, the oldest first."""
        entries = await self.plane.work(self.plane.audit.page, Filter(who="plane"), 0, 100)
        return [(entry["action"], entry["detail"]) for entry in reversed(entries)]

    async def state(self, rollout: int) -> tuple[str, str]:
        shown = await self.show(rollout)
        return shown["state"], shown["reason"] or shown["waits"]


@pytest.fixture
async def fleet(open_database: Callable[[], Database]) -> Fleet:
    keyring, now = Keyring.open(None), [WALL]
    planes = [plane_on(open_database(), keyring, wall_now=lambda: now[0]) for _ in range(2)]
    devices = [await new_device(planes[0], f"d{number}") for number in range(6)]
    found = Fleet(planes, devices, now)
    await planes[0].profiles.put(1, "p", ProfileChange(devices="*", installs=[FILES]))
    await found.heard(*devices)
    return found


async def test_each_wave_is_released_by_the_proof_of_the_one_before(fleet: Fleet) -> None:
    rollout = await fleet.start("1", "2")
    assert [(wave["wave"], wave["devices"]) for wave in (await fleet.show(rollout))["waves"]] == [
        (1, 1),
        (2, 2),
        (3, 3),
    ]
    assert await fleet.new() == []
    await fleet.round()
    assert await fleet.new() == [0]
    fleet.now[0] += 600  # time alone releases nothing
    await fleet.round()
    assert (await fleet.new(), await fleet.state(rollout)) == ([0], ("running", "the proof of 1 device of wave 1"))
    await fleet.ack(fleet.devices[0])
    await fleet.round()
    assert await fleet.new() == [0, 1, 2]
    await fleet.ack(fleet.devices[1])
    await fleet.round()
    assert await fleet.new() == [0, 1, 2]
    await fleet.ack(fleet.devices[2], outcome=OutcomeKind.UNCHANGED)
    await fleet.heard(*fleet.devices)
    await fleet.round()
    assert await fleet.new() == [0, 1, 2, 3, 4, 5]
    await fleet.ack(*fleet.devices[3:])
    versions = await fleet.plane.work(fleet.plane.installs.versions, fleet.devices)
    await fleet.round()
    assert await fleet.state(rollout) == ("done", "")
    assert await fleet.plane.work(fleet.plane.installs.versions, fleet.devices) == versions, "the end signals nothing"
    (row,) = await fleet.plane.work(fleet.plane.profiles.show_all, 1)
    assert row["version"] == 2
    assert await fleet.recorded() == [
        ("rollout.release", {"waves": [1], "devices": 1}),
        ("rollout.release", {"waves": [2], "devices": 2}),
        ("rollout.release", {"waves": [3], "devices": 3}),
        ("rollout.end", {}),
    ]
    (end,) = await fleet.plane.work(fleet.plane.audit.page, Filter(what="rollout.end"), 0, 9)
    assert (end["who"], end["via"], end["address"]) == ("plane", f"rollout {rollout}", "")
    assert [(shown["kind"], shown["id"], shown["name"], shown["before"], shown["after"]) for shown in end["objects"]] == [
        ("rollout", str(rollout), "p", {"state": "running"}, {"state": "done"}),
        (
            "profile", "1/p", "p",
            {"version": 1, "items": {"files": {"to": FILES["to"]}}}, {"version": 2, "items": {"files": {"to": NEW["to"]}}},
        ),
    ]  # fmt: skip


async def test_a_failure_halts_and_the_rest_keeps_the_old_version(fleet: Fleet) -> None:
    rollout = await fleet.start("2")
    await fleet.round()
    await fleet.ack(fleet.devices[0])
    await fleet.ack(fleet.devices[1], outcome=OutcomeKind.ROLLED_BACK)
    await fleet.round()
    assert await fleet.state(rollout) == ("halted", "1 device failed, none may fail")
    (failed,) = [row for row in (await fleet.show(rollout))["devices"] if row["state"] == "failed"]
    assert failed == {
        "id": fleet.devices[1], "name": "d1", "wave": 1, "state": "failed", "detail": "because",
        "released_at": "2026-09-21T14:13:20Z",
    }  # fmt: skip
    assert [one.name for one in fleet.plane.problems.now()] == ["rollout_halted"]
    (halt,) = await fleet.plane.work(fleet.plane.audit.page, Filter(what="rollout.halt"), 0, 9)
    assert [(shown["kind"], shown["before"], shown["after"]) for shown in halt["objects"]] == [
        (
            "rollout",
            {"state": "running", "reason": ""},
            {"state": "halted", "reason": "1 device failed, none may fail"},
        ),
        ("profile", {}, {}),
    ]
    await fleet.round()
    assert await fleet.new() == [0, 1]
    with pytest.raises(PlaneError, match="Rollout 1 of this profile is halted: abort it first"):
        await fleet.plane.profiles.put(1, "p", ProfileChange(installs=[]))
    await fleet.plane.work(fleet.plane.rollouts.resume, 1, rollout)
    await fleet.round()
    assert await fleet.new() == [0, 1, 2, 3, 4, 5], "the operator has accepted the failure"
    assert fleet.plane.problems.now() == []
    await fleet.ack(*fleet.devices[2:])
    await fleet.round()
    assert (await fleet.state(rollout))[0] == "done"


async def test_a_device_that_succeeds_later_no_longer_counts_as_failed(fleet: Fleet) -> None:
    rollout = await fleet.start("2", max_failures=1)
    await fleet.round()
    await fleet.ack(fleet.devices[0])
    await fleet.ack(fleet.devices[1], outcome=OutcomeKind.FAILED)
    await fleet.round()
    assert len(await fleet.new()) == 6
    await fleet.ack(fleet.devices[1])
    await fleet.ack(fleet.devices[2], outcome=OutcomeKind.FAILED)
    await fleet.round()
    assert (await fleet.state(rollout))[0] == "running"


async def test_new_devices_get_the_proven_version(fleet: Fleet) -> None:
    rollout = await fleet.start("1")
    await fleet.round()
    fleet.devices.append(await new_device(fleet.plane, "new"))
    assert await fleet.new() == [0]
    await fleet.plane.work(fleet.plane.rollouts.abort, 1, rollout)
    await fleet.round()
    assert (await fleet.new(), (await fleet.state(rollout))[0]) == ([0], "aborted")
    with pytest.raises(PlaneError, match="Rollout 1 is aborted"):
        await fleet.plane.work(fleet.plane.rollouts.resume, 1, rollout)
    await fleet.plane.work(fleet.plane.rollouts.abort, 1, rollout)
    (row,) = await fleet.plane.work(fleet.plane.profiles.show_all, 1)
    assert (row["version"], row["device_count"], row["pinned_count"]) == (1, 7, 1)
    await fleet.plane.profiles.put(1, "p", ProfileChange(installs=[FILES]))
    assert await fleet.new() == [], "a put ends what an abort has left"


async def test_pause_freeze_and_windows_hold_back(fleet: Fleet) -> None:
    rollout = await fleet.start("1", windows=("00:00-00:01",))
    await fleet.round()
    assert (await fleet.new(), (await fleet.state(rollout))[1]) == ([], "the window 00:00-00:01 UTC")
    fleet.now[0] += 86_400 - fleet.now[0] % 86_400
    await fleet.heard(*fleet.devices)
    await fleet.plane.work(fleet.plane.rollouts.freeze, 1, "shopping season")
    await fleet.round()
    assert (await fleet.new(), (await fleet.state(rollout))[1]) == ([], "the end of the freeze: shopping season")
    await fleet.plane.work(fleet.plane.rollouts.freeze, 1, "")
    await fleet.plane.work(fleet.plane.rollouts.pause, 1, rollout)
    await fleet.round()
    assert (await fleet.new(), (await fleet.state(rollout))[0]) == ([], "paused")
    assert (await fleet.plane.work(fleet.plane.rollouts.pause, 1, rollout))["waits"] == "", "twice is no error"
    await fleet.plane.work(fleet.plane.rollouts.freeze, 1, "again")
    assert (await fleet.state(rollout)) == ("paused", "")
    await fleet.plane.work(fleet.plane.rollouts.freeze, 1, "")
    await fleet.plane.work(fleet.plane.rollouts.resume, 1, rollout)
    await fleet.round()
    assert await fleet.new() == [0]


async def test_a_device_that_is_not_heard_from_is_skipped_and_catches_up(fleet: Fleet) -> None:
    fleet.now[0] += 3600
    await fleet.heard(*fleet.devices[1:])
    rollout = await fleet.start("2")
    await fleet.round()
    await fleet.ack(fleet.devices[1])
    await fleet.round()
    assert await fleet.new() == [1, 2, 3, 4, 5]
    assert (await fleet.show(rollout))["waves"][0]["states"] == {"proven": 1, "skipped": 1}
    await fleet.heard(fleet.devices[0])
    await fleet.ack(*fleet.devices[2:5])
    await fleet.round()
    assert await fleet.new() == [0, 1, 2, 3, 4, 5]
    await fleet.plane.work(fleet.plane.devices.revoke, 1, fleet.devices[5], "")
    await fleet.ack(fleet.devices[0])
    await fleet.round()
    assert (await fleet.state(rollout))[0] == "done", "a revoked device is not waited for"
    assert [action for action, _ in await fleet.recorded()] == ["rollout.release"] * 2 + ["rollout.end"]


async def test_a_wave_is_recorded_once_with_its_first_devices(fleet: Fleet) -> None:
    """Devices that are released later than others of their wave, or before it, add no entries."""
    fleet.now[0] += 3600
    await fleet.heard(fleet.devices[0])
    await fleet.start("3")
    await fleet.round()
    await fleet.ack(fleet.devices[0])
    for place in (1, 4, 2, 3, 5):
        await fleet.heard(fleet.devices[place])
        await fleet.round()
        await fleet.ack(fleet.devices[place])
    await fleet.round()
    assert len(await fleet.new()) == 6
    recorded = await fleet.recorded()
    assert recorded[0] == ("rollout.release", {"waves": [1], "devices": 3})
    assert [action for action, _ in recorded].count("rollout.release") == 2


async def test_nothing_is_released_by_an_outage(fleet: Fleet) -> None:
    """It skipped each wave, and gave all devices the version at the end, as the first wave had proven it."""
    rollout = await fleet.start("1", "2")
    await fleet.round()
    await fleet.ack(fleet.devices[0])
    fleet.now[0] += 1000
    await fleet.round()
    assert (await fleet.new(), await fleet.state(rollout)) == ([0], ("running", "a device that is heard from: none is"))
    await fleet.heard(*fleet.devices)
    await fleet.round()
    assert await fleet.new() == [0, 1, 2]


async def test_a_plane_that_has_just_started_skips_nobody(fleet: Fleet) -> None:
    rollout = await fleet.start("1", "2")
    await fleet.round()
    await fleet.ack(fleet.devices[0])
    fleet.now[0] += 1000
    await fleet.heard(fleet.devices[0])
    for plane in fleet.planes:
        plane.rollout_runner.begun = trio.current_time()
    await fleet.round()
    assert await fleet.state(rollout) == ("running", "devices of wave 2 that were not heard from yet")
    for plane in fleet.planes:
        plane.rollout_runner.begun -= 900
    await fleet.round()
    assert (await fleet.show(rollout))["waves"][1]["states"] == {"skipped": 2}


async def test_revoking_the_first_wave_is_no_proof(fleet: Fleet) -> None:
    rollout = await fleet.start("1", "2")
    await fleet.round()
    await fleet.plane.work(fleet.plane.devices.revoke, 1, fleet.devices[0], "gone")
    await fleet.round()
    assert await fleet.new() == [0]
    state, why = await fleet.state(rollout)
    assert state == "halted" and why.startswith("no device before wave 2 has proven the change")


async def test_a_device_that_was_revoked_after_its_proof_has_proven_the_change(fleet: Fleet) -> None:
    await fleet.start("1", "2", pause_seconds=60)
    await fleet.round()
    await fleet.ack(fleet.devices[0])
    await fleet.round()
    await fleet.plane.work(fleet.plane.devices.revoke, 1, fleet.devices[0], "gone")
    fleet.now[0] += 60
    await fleet.round()
    assert await fleet.new() == [0, 1, 2]


async def test_a_comparison_proves_nothing(fleet: Fleet) -> None:
    """Its outcome is ``applied`` as soon as the differences are known, before they are carried out."""
    rollout = await fleet.start("1", "2")
    await fleet.round()
    fleet.now[0] += 1
    ack = Ack(type="state.resync_required", ts_ms=1, ref={}, outcome=OutcomeKind.APPLIED, detail="1 difference")
    await fleet.plane.work(fleet.plane.reports.store, fleet.devices[0], [ack])
    await fleet.round()
    assert (await fleet.new(), await fleet.state(rollout)) == ([0], ("running", "the proof of 1 device of wave 1"))


@pytest.mark.parametrize("version", ["²", "9" * 4000, "-1", 1.5, True, None, [3], {"a": 1}, "3x", 2, "", 10**30])
async def test_a_report_without_the_version_proves_nothing(fleet: Fleet, version: object) -> None:
    rollout = await fleet.start("1")
    await fleet.round()
    ack = Ack(type="install.updated", ts_ms=1, ref={"version": version}, outcome=OutcomeKind.APPLIED)
    await fleet.plane.work(fleet.plane.reports.store, fleet.devices[0], [ack])
    await fleet.round()
    assert (await fleet.show(rollout))["waves"][0]["states"] == {"released": 1}


async def test_canaries_and_serial_groups(fleet: Fleet) -> None:
    await fleet.plane.work(fleet.plane.devices.tags.change, 1, fleet.devices[4:], add=["canary"])
    await fleet.plane.work(fleet.plane.devices.tags.change, 1, fleet.devices[:3], add=["cluster=a"])
    await fleet.start("1", canary="canary", serial="cluster=")
    await fleet.round()
    assert await fleet.new() == [4, 5]
    await fleet.ack(*fleet.devices[4:])
    await fleet.round()
    assert await fleet.new() == [0, 4, 5]
    await fleet.ack(fleet.devices[0])
    await fleet.round()
    assert await fleet.new() == [0, 1, 3, 4, 5]
    await fleet.ack(fleet.devices[1])
    await fleet.round()
    assert len(await fleet.new()) == 6


async def test_planes_that_run_rounds_at_a_time_release_once(fleet: Fleet) -> None:
    rollout = await fleet.start("2", "2")
    for devices in (fleet.devices[:0], fleet.devices[:2], fleet.devices[2:4], fleet.devices[4:]):
        await fleet.ack(*devices)
        async with trio.open_nursery() as nursery:
            for plane in fleet.planes * 2:
                nursery.start_soon(plane.rollout_runner.round)
    await fleet.round()
    assert (await fleet.state(rollout))[0] == "done"
    assert [action for action, _ in await fleet.recorded()] == ["rollout.release"] * 3 + ["rollout.end"]
    for device in fleet.devices:
        page = await fleet.plane.work(fleet.plane.stream.read, device, None, 100)
        assert [signal["ref"]["version"] for signal in page.signals] == [2, 3]


async def test_a_round_that_dies_leaves_nothing_half_done(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    rollout = await fleet.start("3")

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(fleet.plane.installs, "problems", killed)
    with pytest.raises(BaseException):  # noqa: B017
        await fleet.plane.rollout_runner.round()
    assert (await fleet.new(), await fleet.recorded()) == ([], [])
    await fleet.planes[1].rollout_runner.round()
    assert await fleet.new() == [0, 1, 2]
    assert (await fleet.show(rollout))["waves"][0]["states"] == {"released": 3}


async def test_a_device_that_does_not_fit_when_released_fails(fleet: Fleet) -> None:
    rollout = await fleet.start("1")
    await fleet.plane.installs.put(fleet.devices[0], [FILES | {"id": "own", "to": ["/etc/tls/new.pem"]}])
    await fleet.round()
    await fleet.round()
    assert (await fleet.state(rollout))[0] == "halted"
    (row,) = (await fleet.show(rollout))["devices"]
    assert "item own of the device itself writes /etc/tls/new.pem" in row["detail"]


async def test_a_device_that_has_nothing_to_change_when_released_needs_no_report(fleet: Fleet) -> None:
    tags = fleet.plane.devices.tags
    await fleet.plane.work(tags.change, 1, fleet.devices, add=["web"])
    change = ProfileChange(devices="web", installs=[FILES | {"id": "q", "to": ["/q"]}])
    rollout = (await fleet.plane.rollouts.start(1, "q", change, RolloutRules(waves=("2", "1"))))["id"]
    await fleet.plane.work(tags.change, 1, fleet.devices[:1], remove=["web"])
    await fleet.round()
    shown = await fleet.show(rollout)
    assert shown["waves"][0]["states"] == {"proven": 1, "released": 1}
    await fleet.ack(fleet.devices[1])
    await fleet.round()
    assert (await fleet.show(rollout))["waves"][1]["states"] == {"released": 1}


async def test_rounds_go_on_after_a_failure_and_when_woken(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    runner, begun = fleet.plane.rollout_runner, trio.current_time()
    times: list[float] = []
    results = [CertctrlError("the disk is full"), 1, 0, 0, 0]

    async def one_round() -> int:
        times.append(trio.current_time() - begun)
        result = results[len(times) - 1]
        if isinstance(result, CertctrlError):
            raise result
        return result

    monkeypatch.setattr(runner, "round", one_round)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(runner.run)
        await trio.sleep(30)
        runner.wake()
        await trio.sleep(19)
        nursery.cancel_scope.cancel()
    assert times == pytest.approx([0, ROUND_SECONDS, 2 * ROUND_SECONDS, 2 * ROUND_SECONDS + IDLE_SECONDS, 30])
    assert runner.begun == begun
    assert "a round of the rollouts failed: the disk is full" in caplog.text


async def test_a_new_profile_can_be_rolled_out(fleet: Fleet) -> None:
    change, rules = (
        ProfileChange(devices="*", installs=[FILES | {"id": "q", "to": ["/q"]}]),
        RolloutRules(waves=("50%",)),
    )
    plan = await fleet.plane.rollouts.start(1, "q", change, rules, dry_run=True)
    assert ([wave["devices"] for wave in plan["waves"]], plan["id"]) == ([3, 3], None)
    done = await fleet.plane.rollouts.start(1, "q", change, rules)
    await fleet.round()
    items = [len((await fleet.plane.work(fleet.plane.installs.document, one))["installs"]) for one in fleet.devices]
    assert items == [2, 2, 2, 1, 1, 1]
    with pytest.raises(PlaneError, match="abort it first"):
        await fleet.plane.rollouts.start(1, "q", ProfileChange(devices="*", installs=[NEW | {"id": "z"}]), rules)
    await fleet.plane.work(fleet.plane.rollouts.abort, 1, done["id"])


@pytest.mark.parametrize(
    ("rules", "says"),
    [
        ({"waves": ("0",)}, "waves: '0' is not the size of a wave"),
        ({"windows": ("22-6",)}, "windows: '22-6' is not a window"),
        ({"canary": "web &&"}, "canary: character 5"),
        ({"canary": "nothing"}, "No device of this rollout matches the canary nothing"),
        ({"serial": "a or b"}, "serial: use one tag"),
        ({"serial": "*"}, "serial: "),
        ({"serial": "and"}, "serial: "),
        ({"serial": "or"}, "serial: "),
        ({"serial": "not"}, "serial: "),
        ({"serial": "Web"}, "serial: character 1"),
        ({"pause_seconds": -1}, "pause_seconds"),
    ],
)
async def test_rules_that_are_refused(fleet: Fleet, rules: dict[str, Any], says: str) -> None:
    with pytest.raises(PlaneError) as refused:
        await fleet.plane.rollouts.start(1, "p", ProfileChange(installs=[NEW]), RolloutRules(**rules))
    assert (refused.value.status, says in str(refused.value)) == (400, True), refused.value
    assert set(rules) == {refused.value.params["field"]}
    assert await fleet.plane.work(fleet.plane.rollouts.show_all, 1) == []


async def test_a_change_that_changes_nothing_is_no_rollout(fleet: Fleet) -> None:
    with pytest.raises(PlaneError, match="there is nothing to roll out"):
        await fleet.plane.rollouts.start(1, "p", ProfileChange(installs=[FILES]), RolloutRules())
    with pytest.raises(PlaneError, match="No such rollout: 7"):
        await fleet.plane.work(fleet.plane.rollouts.abort, 1, 7)
