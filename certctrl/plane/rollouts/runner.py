"""The runner of rollouts: reads what devices have reported, decides, and releases. Safe with several planes and after kill -9.

Each round of a rollout is one unit of work that locks its row, so that no two planes decide about it at a time; a plane that
dies leaves either the whole round or nothing.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from math import inf
from typing import Any

import attrs
import trio

from certctrl.errors import CertctrlError
from certctrl.plane.access.roles import Caller
from certctrl.plane.audit.acts import Act
from certctrl.plane.audit.log import AuditLog
from certctrl.plane.devices.devices import Devices
from certctrl.plane.errors import DatabaseAwayError
from certctrl.plane.health.problems import ProblemName, Problems
from certctrl.plane.installs import PROFILES_GUARD
from certctrl.plane.profiles.profiles import Profiles
from certctrl.plane.rollouts.changes import DEVICES_PER_STATEMENT, MAX_RELEASED, Change, Settled
from certctrl.plane.rollouts.decision import Decision, Member, MemberFacts, Rules, decide
from certctrl.plane.rollouts.plan import closed, windows_of
from certctrl.plane.rollouts.renewals import RenewalRollouts
from certctrl.plane.rollouts.rollouts import PROFILE, Rollouts, kind_of
from certctrl.plane.storage.database import Database, Row, marks
from certctrl.text import counted, one_line

STALE_SECONDS = 900.0
"""A device that was not heard from for so long is skipped; the console calls it stale, too."""
ROUND_SECONDS = 2.0
IDLE_SECONDS = 20.0
"""Without a running rollout; one that another plane starts is noticed then, if not earlier."""

log = logging.getLogger("certctrl.Plane")
_REPORTING = (Member.RELEASED, Member.FAILED, Member.ACCEPTED)
"""States that a report of the device changes."""


class RolloutRunner:
    """Runs the rollouts of all users."""

    def __init__(
        self,
        database: Database,
        rollouts: Rollouts,
        renewals: RenewalRollouts,
        profiles: Profiles,
        devices: Devices,
        problems: Problems,
        audit: AuditLog,
        wall_now: Callable[[], float],
    ) -> None:
        self._db = database
        self._rollouts = rollouts
        self._renewals = renewals
        self._profiles = profiles
        self._devices = devices
        self._problems = problems
        self._audit = audit
        self._wall_now = wall_now
        self._any = trio.Event()
        self.begun = -inf
        """When this plane began to hear devices."""
        rollouts.on_started = self.wake

    def wake(self) -> None:
        """Run a round soon."""
        self._any.set()

    async def run(self) -> None:
        """Run rounds, forever."""
        self.begun = trio.current_time()
        while True:
            running = 1
            try:
                running = await self.round()
            except CertctrlError as error:  # the next round retries
                log.error("a round of the rollouts failed: %s", error)
            with trio.move_on_after(ROUND_SECONDS if running else IDLE_SECONDS):
                await self._any.wait()
            self._any = trio.Event()

    async def round(self) -> int:
        """Run one round of each running rollout; return their number."""
        for rollout_id, device_ids in (await self._db.work(self._renewals.near_end)).items():
            for start in range(0, len(device_ids), MAX_RELEASED):
                await self._work(self._release_ending, rollout_id, device_ids[start : start + MAX_RELEASED])
        for rollout_id in await self._db.work(self._renewals.going_forward):
            while await self._work(self._forward, rollout_id):
                await trio.lowlevel.checkpoint()
        ids = await self._db.work(self._running)
        for rollout_id, kind in ids:
            may_skip = trio.current_time() >= self.begun + STALE_SECONDS
            while await self._work(self._round, rollout_id, kind, may_skip):
                await trio.lowlevel.checkpoint()
        for rollout_id in await self._db.work(self._quiet):
            await self._work(self._listen, rollout_id)
        if ids:
            await self._profiles.apply()  # of rollouts that are done
        self._report(await self._db.work(self._halted))
        return len(ids)

    async def _work(self, unit: Callable[..., bool | None], rollout_id: int, *args: Any) -> bool:
        """Return the result of a unit of work on one rollout; its failure holds up no other. Raises DatabaseAwayError."""
        try:
            return bool(await self._db.work_long(unit, rollout_id, *args))
        except DatabaseAwayError:
            raise
        except CertctrlError as error:  # the next round retries
            log.error("rollout %d cannot go on: %s", rollout_id, error)
            return False

    def _halted(self) -> list[int]:
        return [row["id"] for row in self._db.all("SELECT id FROM rollouts WHERE state = 'halted' ORDER BY id")]

    def _report(self, halted: Sequence[int]) -> None:
        if halted:
            what = f"halted: rollout {', '.join(map(str, halted[:5]))}; see cert-ctrl plane rollout status {halted[0]}"
            self._problems.report(ProblemName.ROLLOUT_HALTED, what)
        else:
            self._problems.clear(ProblemName.ROLLOUT_HALTED)

    def _running(self) -> list[tuple[int, str]]:
        rows = self._db.all("SELECT id, profile_id FROM rollouts WHERE state = 'running' ORDER BY id")
        return [(row["id"], kind_of(row)) for row in rows]

    def _quiet(self) -> list[int]:
        """Return the rollouts that release nothing now, and have devices whose reports count."""
        rows = self._db.all(
            "SELECT r.id FROM rollouts r WHERE r.state IN ('paused', 'halted') AND EXISTS (SELECT 1 FROM rollout_devices m"
            " WHERE m.rollout_id = r.id AND m.state IN (?, ?, ?)) ORDER BY r.id",
            *(one.value for one in _REPORTING),
        )
        return [row["id"] for row in rows]

    def _listen(self, rollout_id: int) -> None:
        """Store what the devices of a quiet rollout have reported; a paused one with too many failures halts."""
        sql = "SELECT * FROM rollouts WHERE id = ? AND state IN ('paused', 'halted')"
        for rollout in self._db.all_unlocked(sql, rollout_id):
            rules, members = json.loads(rollout["rules"]), self._observed(rollout)
            decision = decide(members, _limits(rules), self._wall_now())
            if rollout["state"] == "paused" and decision.halt:
                self._carry_out(rollout, decision)

    def _release_ending(self, rollout_id: int, device_ids: Sequence[int]) -> None:
        """Release devices that are held at a certificate near its end, whatever the state of their rollout."""
        for rollout in self._db.all_unlocked("SELECT * FROM rollouts WHERE id = ?", rollout_id):
            detail = {"near_end": len(device_ids)}
            self._recorded(rollout, "rollout.release", lambda: self._release(rollout, device_ids), detail)  # noqa: B023

    def _forward(self, rollout_id: int) -> bool:
        """Release some devices of a rollout that was aborted forward, unless another plane does; return whether more are left."""
        found = self._db.all_unlocked("SELECT * FROM rollouts WHERE id = ? AND forward != 0", rollout_id)
        return bool(found) and self._renewals.forward(found[0])

    def _round(self, rollout_id: int, kind: str, may_skip: bool) -> bool:
        """Run one round of a rollout, unless another plane does; return whether the next one may release more.

        ``may_skip``: this plane has run for long enough to have heard from each device that is up.
        """
        if kind == PROFILE:
            self._db.guard(PROFILES_GUARD, alone=True)
        found = self._db.all_unlocked("SELECT * FROM rollouts WHERE id = ? AND state = 'running'", rollout_id)
        if not found:
            return False
        rollout, rules = found[0], json.loads(found[0]["rules"])
        members = self._observed(rollout)
        now = self._wall_now()
        may_release = self._held_back(rollout, rules, now)
        if reason := self._change(rollout).void(rollout):
            self._recorded(rollout, "rollout.end", lambda: self._end(rollout_id, "aborted", reason))
            return False
        decision = decide(members, _limits(rules), now, may_release=may_release, may_skip=may_skip)
        if decision.waits and (obstacle := self._change(rollout).obstacle(rollout)):
            decision = attrs.evolve(decision, waits=f"{decision.waits}; {obstacle}")
        return self._carry_out(rollout, decision)

    def _change(self, rollout: Row) -> Change:
        return self._rollouts.changes[kind_of(rollout)]

    def _held_back(self, rollout: Row, rules: Mapping[str, Any], now: float) -> str:
        """Return why nothing may be released at present; empty: it may."""
        if reason := self._rollouts.frozen(rollout["user_id"]):
            return f"the end of the freeze: {reason}"
        if closed(windows_of(rules["windows"]), now):
            return f"the window {', '.join(rules['windows'])} UTC"
        return ""

    # --- what is known --------------------------------------------------------------------------------------------

    def _observed(self, rollout: Row) -> list[MemberFacts]:
        """Return the devices of a rollout, after storing what those under way have reported.

        Revoked ones are left out, unless they had proven the change before.
        """
        rows = self._db.all(
            "SELECT m.*, d.last_seen_at, d.registered_at FROM rollout_devices m JOIN devices d ON d.id = m.device_id"
            " WHERE m.rollout_id = ? AND (d.status != 'revoked' OR m.state IN (?, ?)) ORDER BY m.wave, m.device_id",
            *(rollout["id"], Member.PROVEN.value, Member.ACCEPTED.value),
        )
        waiting = [row for row in rows if row["state"] in _REPORTING]
        reported = self._change(rollout).settled(rollout, waiting)
        stale_before = self._wall_now() - STALE_SECONDS
        opened = self._opened([row["device_id"] for row in rows])
        found = []
        for row in rows:
            state, settled_at = Member(row["state"]), row["settled_at"]
            if report := reported.get(row["device_id"]):
                state, settled_at = self._settle(rollout["id"], row, report)
            last = max(row["last_seen_at"] or 0.0, row["registered_at"] or 0.0)
            heard = row["device_id"] in opened or last > stale_before
            facts = MemberFacts(
                id=row["device_id"],
                wave=row["wave"],
                state=state,
                stale=not heard,
                group=row["serial_group"],
                settled_at=settled_at,
            )
            found.append(facts)
        return found

    def _opened(self, device_ids: Sequence[int]) -> Collection[int]:
        """Return the devices with an open push socket."""
        found: set[int] = set()
        for start in range(0, len(device_ids), DEVICES_PER_STATEMENT):
            found |= self._devices.opened(device_ids[start : start + DEVICES_PER_STATEMENT]).keys()
        return found

    def _settle(self, rollout_id: int, row: Row, report: Settled) -> tuple[Member, float]:
        """Store what a device has reported, if it is new; return its state, and when it was settled."""
        former, state = Member(row["state"]), report.state
        if state is former or (state is Member.FAILED and former is Member.ACCEPTED):
            return former, row["settled_at"]
        at = self._wall_now()
        self._set([row["device_id"]], rollout_id, state, detail=one_line(report.detail, 500), settled_at=at)
        return state, at

    # --- what is done ---------------------------------------------------------------------------------------------

    def _carry_out(self, rollout: Row, decision: Decision) -> bool:
        """Do what was decided; return whether the next round may release more immediately."""
        rollout_id = rollout["id"]
        if decision.halt:
            self._recorded(rollout, "rollout.halt", lambda: self._end(rollout_id, "halted", decision.halt))
            log.warning("rollout %d has halted: %s", rollout_id, decision.halt)
            return False
        if decision.done:
            if self._change(rollout).go_on(rollout):
                return True
            self._recorded(rollout, "rollout.end", lambda: self._finish(rollout))
            log.info("rollout %d is done", rollout_id)
            return False
        if decision.skip:
            self._set(decision.skip, rollout_id, Member.SKIPPED)
        release = decision.release[:MAX_RELEASED]
        if release:
            self._release_recorded(rollout, release)
        if decision.waits != rollout["waits"]:
            self._db.run("UPDATE rollouts SET waits = ? WHERE id = ?", decision.waits, rollout_id)
        return bool(decision.skip or release)

    def _recorded(
        self, rollout: Row, action: str, unit: Callable[[], None], detail: Mapping[str, Any] | None = None
    ) -> None:
        """Run a part of the round, and write an entry of what the plane has changed by itself to the audit log."""
        rollout_id = rollout["id"]
        act = Act(self._audit, Caller.of_plane(f"rollout {rollout_id}"), action, {"profile": "profile"}, detail)
        profile = self._db.one("SELECT name FROM profiles WHERE id = ?", rollout["profile_id"] or 0)
        act.note_fields({"rid": rollout_id, "uid": rollout["user_id"], "profile": profile and profile["name"]})
        act.around(self._db, unit)

    def _release_recorded(self, rollout: Row, device_ids: Sequence[int]) -> None:
        """Release devices; only the first ones of a wave are recorded, with the number of all its devices."""
        begun = self._db.all(
            "SELECT wave, count(*) AS devices FROM rollout_devices WHERE rollout_id = ? AND wave IN"
            f" (SELECT wave FROM rollout_devices WHERE rollout_id = ? AND device_id IN ({marks(device_ids)}))"
            " GROUP BY wave HAVING max(released_at) IS NULL ORDER BY wave",
            *(rollout["id"], rollout["id"], *device_ids),
        )
        if not begun:
            self._release(rollout, device_ids)
            return
        detail = {"waves": [row["wave"] for row in begun], "devices": sum(row["devices"] for row in begun)}
        self._recorded(rollout, "rollout.release", lambda: self._release(rollout, device_ids), detail)

    def _finish(self, rollout: Row) -> None:
        self._change(rollout).finish(rollout)
        self._end(rollout["id"], "done", "")

    def _end(self, rollout_id: int, state: str, reason: str) -> None:
        now = self._wall_now()
        sql = "UPDATE rollouts SET state = ?, reason = ?, waits = '', updated_at = ?, finished_at = ? WHERE id = ?"
        self._db.run(sql, state, reason, now, now if state in ("done", "aborted") else None, rollout_id)

    def _release(self, rollout: Row, device_ids: Sequence[int]) -> None:
        """Give devices the new version, and signal them; those that are settled immediately wait for no report."""
        settled, now = self._change(rollout).release(rollout, device_ids), self._wall_now()
        self._db.run(
            "UPDATE rollout_devices SET state = ?, detail = '', released_at = ?, config_version = (SELECT i.version FROM"
            " install_configs i WHERE i.device_id = rollout_devices.device_id) WHERE rollout_id = ? AND device_id IN"
            f" ({marks(device_ids)})",
            *(Member.RELEASED.value, now, rollout["id"], *device_ids),
        )
        for device_id, (state, detail) in settled.items():
            self._set([device_id], rollout["id"], state, detail=detail, settled_at=now)
        self._db.run("UPDATE rollouts SET updated_at = ? WHERE id = ?", now, rollout["id"])
        log.info("rollout %d: %s released", rollout["id"], counted(len(device_ids), "device"))

    def _set(self, device_ids: Sequence[int], rollout_id: int, state: Member, **values: Any) -> None:
        columns = "".join(f", {name} = ?" for name in values)
        self._db.run(
            f"UPDATE rollout_devices SET state = ?{columns} WHERE rollout_id = ? AND device_id IN ({marks(device_ids)})",
            *(state.value, *values.values(), rollout_id, *device_ids),
        )


def _limits(rules: Mapping[str, Any]) -> Rules:
    return Rules(max_failures=rules["max_failures"], pause_seconds=rules["pause_seconds"])
