"""Rollouts on both engines: waves by proof, halts, pause, abort, freeze, several planes, and kill -9."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from engine_plane import new_device
from profile_fleet import FILES, NEW, Fleet, profile_fleet

from certctrl.errors import PlaneError
from certctrl.model.plan import OutcomeKind
from certctrl.plane.audit.log import Filter
from certctrl.plane.devices.reports import Ack
from certctrl.plane.profiles.profiles import ProfileChange
from certctrl.plane.rollouts.rollouts import RolloutRules
from certctrl.plane.storage.database import Database


@pytest.fixture
async def fleet(open_database: Callable[[], Database]) -> Fleet:
    return await profile_fleet(open_database)


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
    (problem,) = fleet.plane.problems.now()
    assert problem.name == "rollout_halted"
    assert problem.what.endswith(f"see cert-ctrl plane rollout status {rollout}")
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


async def test_reports_are_seen_while_it_is_halted(fleet: Fleet) -> None:
    rollout = await fleet.start("4")
    await fleet.round()
    await fleet.ack(fleet.devices[0], outcome=OutcomeKind.FAILED)
    await fleet.round()
    await fleet.ack(fleet.devices[0], fleet.devices[1])
    await fleet.ack(fleet.devices[2], outcome=OutcomeKind.FAILED)
    await fleet.round()
    shown = await fleet.show(rollout)
    assert (shown["state"], shown["reason"]) == ("halted", "1 device failed, none may fail")
    assert shown["waves"][0]["states"] == {"proven": 2, "failed": 1, "released": 1}
    assert await fleet.new() == [0, 1, 2, 3]
    await fleet.plane.work(fleet.plane.rollouts.resume, 1, rollout)
    await fleet.ack(fleet.devices[3])
    await fleet.round()
    assert len(await fleet.new()) == 6


async def test_too_many_failures_halt_it_while_it_is_paused(fleet: Fleet) -> None:
    rollout = await fleet.start("3", max_failures=1)
    await fleet.round()
    await fleet.plane.work(fleet.plane.rollouts.pause, 1, rollout)
    await fleet.ack(fleet.devices[0])
    await fleet.ack(fleet.devices[1], outcome=OutcomeKind.FAILED)
    await fleet.round()
    assert await fleet.state(rollout) == ("paused", "")
    await fleet.ack(fleet.devices[2], outcome=OutcomeKind.FAILED)
    await fleet.round()
    assert await fleet.state(rollout) == ("halted", "2 devices failed, 1 may fail")
    assert [one.name for one in fleet.plane.problems.now()] == ["rollout_halted"]
    assert await fleet.new() == [0, 1, 2]


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


async def test_a_halted_rollout_is_listed_behind_many_later_ones(fleet: Fleet) -> None:
    rollout = await fleet.start("1")
    await fleet.round()
    await fleet.ack(fleet.devices[0], outcome=OutcomeKind.FAILED)
    await fleet.round()
    work, rollouts = fleet.plane.work, fleet.plane.rollouts
    await work(_copied, fleet, rollout, 4)
    everything = [row["id"] for row in await work(rollouts.show_all, 1)]
    assert (len(everything), everything[-1]) == (5, rollout)
    assert [row["id"] for row in await work(rollouts.show_all, 1, ("halted", "paused"), 0, 2)] == [rollout]
    assert [row["id"] for row in await work(rollouts.show_all, 1, (), everything[1], 2)] == everything[2:4]
    with pytest.raises(PlaneError, match="'haltd' is not a state of rollouts; did you mean halted"):
        await work(rollouts.show_all, 1, ("haltd",))
    assert [row["id"] for row in await work(rollouts.show_recent, 1, 2)] == [*everything[:2], rollout]


def _copied(fleet: Fleet, rollout: int, times: int) -> None:
    """Add later rollouts that are done."""
    columns = "user_id, profile_id, version, rules, reason, waits, note, created_at, updated_at, finished_at, forward"
    sql = f"INSERT INTO rollouts (state, {columns}) SELECT 'done', {columns} FROM rollouts WHERE id = ?"
    for _ in range(times):
        fleet.plane.database.run(sql, rollout)
