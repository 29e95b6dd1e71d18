"""Bad days of a fleet: a rollout halts at its limit, nothing else is touched, and a revocation is everywhere in time.

Also that the days find mistakes that are made in rollouts, and in what holds certificates back.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import attrs
import pytest
from simulation.bad_day import Day, live

from certctrl.plane.certificates import views
from certctrl.plane.certificates.holds import Holds
from certctrl.plane.certificates.table import CertificateTable
from certctrl.plane.orders.batches import Batches
from certctrl.plane.revocation.revoking import Revoking
from certctrl.plane.rollouts import decision
from certctrl.plane.rollouts.changes import ProfileChanges
from certctrl.plane.rollouts.decision import Member
from certctrl.plane.rollouts.runner import RolloutRunner

FEW, MANY = 40, 1000
SEEDS = 4
CAMPAIGN = int(os.environ.get("CERTCTRL_TEST_DAYS", "10"))
TRIES = 6
"""Days within which a mistake is found."""


def story(day: Day) -> str:
    return f"seed {day.seed}, {day.size} devices:\n" + "\n".join(day.broken[:10])


@pytest.mark.parametrize("seed", range(SEEDS))
def test_a_bad_day_of_few_devices(seed: int, tmp_path: Path) -> None:
    day = live(seed, FEW, tmp_path)
    assert not day.broken, story(day)


@pytest.mark.campaign
@pytest.mark.parametrize("seed", range(CAMPAIGN))
def test_a_bad_day_of_a_thousand_devices(seed: int, tmp_path: Path) -> None:
    day = live(seed, MANY, tmp_path)
    assert not day.broken, story(day)
    print(
        f"seed {seed}: {len(day.failed_at)} failed, {len(day.touched)} of {day.size} touched, halted {day.halted_at:.0f} s"
    )


# --- the days find these mistakes -------------------------------------------------------------------------------------


def no_limit(members: Any, rules: Any, now: float, **more: Any) -> Any:
    return DECIDE(members, attrs.evolve(rules, max_failures=10**6), now, **more)


def by_time(members: Any, rules: Any, now: float, **more: Any) -> Any:
    """Take a device that is released for one that has proven the change."""
    said = [attrs.evolve(one, state=Member.PROVEN) if one.state is Member.RELEASED else one for one in members]
    return DECIDE(said, rules, now, **more)


def first_proof_is_enough(members: Any, rules: Any, now: float, **more: Any) -> Any:
    proven = {one.wave for one in members if one.state is Member.PROVEN}
    open_ones = (Member.RELEASED, Member.HELD)
    said = [
        attrs.evolve(one, state=Member.PROVEN) if one.wave in proven and one.state is open_ones[0] else one
        for one in members
    ]
    return DECIDE(said, rules, now, **more)


def all_at_once(self: ProfileChanges, rollout: Any, device_ids: Any) -> Any:
    rows = self._db.all("SELECT device_id FROM rollout_devices WHERE rollout_id = ? ORDER BY device_id", rollout["id"])
    return PROFILE_RELEASE(self, rollout, [row["device_id"] for row in rows])


def no_groups(ready: Any, members: Any) -> Any:
    return tuple(one.id for one in ready), ""


def deaf(self: ProfileChanges, rollout: Any, rows: Any) -> Any:
    """Count what has not failed only."""
    return {one: settled for one, settled in SETTLED(self, rollout, rows).items() if settled.state is Member.PROVEN}


def to_all(self: CertificateTable, cert_id: int, *, held: bool = True) -> list[int]:
    return HOLDERS(self, cert_id)


def to_released_only(self: Revoking, row: Any, reason: str, code: str) -> None:
    free = HOLDERS(self._table, row["id"], held=False)
    with patch.object(self._table, "holders", lambda cert_id: free):
        WITHDRAW(self, row, reason, code)


def order_ends_holds(self: Batches, cert_ids: Any, device_ids: Any, **more: Any) -> Any:
    found = BATCH_RELEASE(self, cert_ids, device_ids, **more)
    for cert_id in found:
        self._table.holds.end(cert_id)
    return found


def part_of_set(self: Batches, cert_ids: Any, device_ids: Any, **more: Any) -> Any:
    """Release a device from the last certificate one round later than from the others."""
    *first, last = sorted(cert_ids)
    found = BATCH_RELEASE(self, first or [last], device_ids, **more)
    return found | ({last: self._table.locked_by_id(last)} if first else {})


def one_by_one(self: Batches, rows: Any, device_ids: Any, request: Any) -> None:
    for row in rows:
        self._orders.start(row, request)


def import_to_all(self: Holds, cert_id: int, action: str) -> None:
    NOTE_STORED(self, cert_id, "" if action == "import" else action)


def tell_no_one(self: Holds, cert_id: int, device_ids: Any = None) -> list[int]:
    END(self, cert_id, device_ids)
    return []


def never_ends(self: Holds, cert_id: int, device_ids: Any = None) -> list[int]:
    return []


DECIDE, SETTLED = decision.decide, ProfileChanges.settled
PROFILE_RELEASE, HOLDERS, BATCH_RELEASE = ProfileChanges.release, CertificateTable.holders, Batches.release
END, NOTE_STORED, WITHDRAW = Holds.end, Holds.note_stored, Revoking._withdraw
BATCHES = "certctrl.plane.orders.batches.Batches"
HOLDS = "certctrl.plane.certificates.holds.Holds"
MISTAKES: dict[str, tuple[str, Any]] = {
    "failures do not halt": ("certctrl.plane.rollouts.runner.decide", no_limit),
    "failures are not counted": ("certctrl.plane.rollouts.changes.ProfileChanges.settled", deaf),
    "a halt is forgotten": ("certctrl.plane.rollouts.runner.RolloutRunner._end", lambda *_: None),
    "waves are released by time": ("certctrl.plane.rollouts.runner.decide", by_time),
    "the first proof of a wave is enough": ("certctrl.plane.rollouts.runner.decide", first_proof_is_enough),
    "the first wave is all devices": ("certctrl.plane.rollouts.changes.ProfileChanges.release", all_at_once),
    "serial groups are ignored": ("certctrl.plane.rollouts.decision._without_conflicts", no_groups),
    "all devices are silent after a moment": ("certctrl.plane.rollouts.runner.STALE_SECONDS", 5.0),
    "lists show the renewed certificate": (
        "certctrl.plane.certificates.views._OF_DEVICE", views._OF_DEVICE.replace("'active'", "'never'"),
    ),
    "material is the renewed one": (f"{HOLDS}.versions", lambda self, wanted: {}),
    "the signal goes to all devices": ("certctrl.plane.certificates.table.CertificateTable.holders", to_all),
    "a revocation is told to released devices only": (
        "certctrl.plane.revocation.revoking.Revoking._withdraw", to_released_only,
    ),
    "the first renewal ends all holds": (f"{BATCHES}.release", order_ends_holds),
    "a device is released from a part of a set": (f"{BATCHES}.release", part_of_set),
    "certificates of a set are renewed one by one": (f"{BATCHES}.order_group", one_by_one),
    "an import is given to all devices": (f"{HOLDS}.note_stored", import_to_all),
    "released devices are not told": (f"{HOLDS}.end", tell_no_one),
    "holds do not end": (f"{HOLDS}.end", never_ends),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_found(name: str, tmp_path: Path) -> None:
    where, mistake = MISTAKES[name]
    with patch(where, mistake):
        assert any(live(seed, FEW, tmp_path).broken for seed in range(TRIES)), f"not found in {TRIES} days"


def test_a_lost_plane_that_was_the_only_one_to_run_rollouts_is_found(tmp_path: Path) -> None:
    run: Callable[..., Any] = RolloutRunner.run
    number = 0

    async def first_only(self: RolloutRunner) -> None:
        nonlocal number
        number += 1
        if number % 2:
            await run(self)

    with patch.object(RolloutRunner, "run", first_only):
        assert any(live(seed, FEW, tmp_path).broken for seed in range(TRIES))
