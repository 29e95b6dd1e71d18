"""What a rollout changes at its devices. All in the caller's unit of work."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple, Protocol

from certctrl.model.plan import OutcomeKind
from certctrl.plane.errors import bad_request
from certctrl.plane.installs import Installs
from certctrl.plane.profiles.profiles import Profiles
from certctrl.plane.profiles.stored import StoredProfiles
from certctrl.plane.rollouts.decision import Member
from certctrl.plane.storage.database import Database, Row, marks

PROOFS = (OutcomeKind.APPLIED, OutcomeKind.UNCHANGED)
FAILURES = (OutcomeKind.FAILED, OutcomeKind.ROLLED_BACK)
SET_BACK_SECONDS = 86_400.0
"""By which a clock may be set back without hiding reports; earlier ones, of a whole fleet, take seconds to read."""
DEVICES_PER_STATEMENT = 500
MAX_RELEASED = 200
"""Devices that one unit of work releases."""
_VERSION = re.compile(r"\d{1,16}", re.ASCII)
_SIGNAL = "install.updated"
"""Its outcome is proof; that of ``state.resync_required`` says only that a device has compared, not that it has changed."""


class Settled(NamedTuple):
    """What a device has proven, or why it has failed."""

    state: Member
    detail: str = ""


class Change(Protocol):
    """What the rollouts of one kind change."""

    def settled(self, rollout: Row, rows: Sequence[Row]) -> Mapping[int, Settled]:
        """Return which of the released devices have proven the change or have failed, by their last report."""

    def release(self, rollout: Row, device_ids: Sequence[int]) -> Mapping[int, Settled]:
        """Give devices the new version, and signal them; return those that are settled immediately."""

    def go_on(self, rollout: Row) -> bool:
        """Before the end, give the new version to some other devices if there are many; return whether there were."""

    def finish(self, rollout: Row) -> None:
        """Give all other devices the new version."""

    def abort(self, rollout: Row, *, forward: bool) -> None:
        """End the rollout: the other devices keep the present version, or with ``forward`` get the new one.

        Raises ErrorResponse 400 where that is refused.
        """

    def obstacle(self, rollout: Row) -> str:
        """Return what hinders the devices that are released; empty: nothing is known."""

    def void(self, rollout: Row) -> str:
        """Return why there is nothing left to change; empty: there is."""


class ProfileChanges:
    """Rollouts of new versions of profiles."""

    def __init__(self, database: Database, profiles: Profiles, stored: StoredProfiles, installs: Installs) -> None:
        self._db = database
        self._profiles = profiles
        self._stored = stored
        self._installs = installs

    def settled(self, rollout: Row, rows: Sequence[Row]) -> Mapping[int, Settled]:
        """Return what released devices have reported about their released config, or a later one."""
        found = {}
        for device_id, report in self._reported(rows).items():
            state = Member.PROVEN if report["outcome"] in PROOFS else Member.FAILED
            found[device_id] = Settled(state, report["detail"])
        return found

    def _reported(self, rows: Sequence[Row]) -> dict[int, Row]:
        """Return the newest final outcome of each device that is about its released config, or a later one."""
        released = {row["device_id"]: row for row in rows}
        ids, found = list(released), {}
        for start in range(0, len(ids), DEVICES_PER_STATEMENT):
            some = ids[start : start + DEVICES_PER_STATEMENT]
            sql = (
                "SELECT device_id, ref, outcome, detail, at FROM outcomes"
                f" WHERE device_id IN ({marks(some)}) AND type = ? AND at > ? ORDER BY at, ts_ms"
            )
            since = min(released[one]["released_at"] for one in some) - SET_BACK_SECONDS
            for outcome in self._db.all(sql, *some, _SIGNAL, since):
                if _is_about(outcome, released[outcome["device_id"]]):
                    found[outcome["device_id"]] = outcome
        return found

    def release(self, rollout: Row, device_ids: Sequence[int]) -> Mapping[int, Settled]:
        """Give devices the new version, and signal them; those whose config cannot be made have failed."""
        values = ", ".join(["(?, ?, ?)"] * len(device_ids))
        self._db.run(
            f"INSERT INTO profile_pins VALUES {values}"
            " ON CONFLICT (profile_id, device_id) DO UPDATE SET version = excluded.version",
            *(value for one in device_ids for value in (rollout["profile_id"], one, rollout["version"])),
        )
        changed: Collection[int] = set(self._stored.refresh(device_ids, strict=False))
        problems = self._installs.problems(device_ids)
        same = Settled(Member.PROVEN, "nothing to change")
        return {one: same for one in device_ids if one not in changed} | {
            one: Settled(Member.FAILED, problem) for one, problem in problems.items()
        }

    def go_on(self, rollout: Row) -> bool:
        """Return False: the version is made that of all devices at once."""
        return False

    def finish(self, rollout: Row) -> None:
        """Make the new version that of all devices."""
        self._profiles.make_current(rollout["user_id"], rollout["profile_id"], rollout["version"])

    def abort(self, rollout: Row, *, forward: bool) -> None:
        """Do nothing: what was not released keeps the present version."""
        if forward:
            what = "Only a rollout of renewals is aborted forward: put the version, which all devices get then"
            raise bad_request(what, field="forward")

    def obstacle(self, rollout: Row) -> str:
        """Return nothing: a config is there when it is released."""
        return ""

    def void(self, rollout: Row) -> str:
        """Return nothing: a profile stays."""
        return ""


def _is_about(outcome: Row, released: Row) -> bool:
    """Return whether an outcome is a final one of the released config, or of a later one."""
    if outcome["outcome"] not in (*PROOFS, *FAILURES):
        return False
    version = str(json.loads(outcome["ref"]).get("version"))  # whatever the device has sent
    return _VERSION.fullmatch(version) is not None and int(version) >= released["config_version"]
