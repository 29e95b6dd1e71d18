"""Rollouts: start, show, pause, resume and abort them. Methods run in the caller's unit of work, except ``start``.

A rollout is one of a profile, or one of renewals (`rollouts.renewals`). A device that is released gets the new version of
the profile by a pin; all others keep the present one, also new devices, until the rollout is done.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from certctrl import lean
from certctrl.plane.clock import when
from certctrl.plane.devices.devices import Devices, require_user
from certctrl.plane.errors import bad_request, conflict, not_found
from certctrl.plane.profiles.expression import ExpressionError, parse
from certctrl.plane.profiles.previews import preview_id, refuse_other
from certctrl.plane.profiles.profiles import Candidate, ProfileChange, Profiles, described, refuse_problems
from certctrl.plane.rollouts.changes import Change
from certctrl.plane.rollouts.plan import (
    DEFAULT_WAVES,
    FROZEN,
    RulesError,
    serial_group,
    wave_sizes,
    waves_of,
    windows_of,
)
from certctrl.plane.storage.database import Database, Row, marks
from certctrl.text import counted, nearest, one_line

OPEN = ("running", "paused", "halted")
STATES = (*OPEN, "done", "aborted")
MAX_LISTED = 500
"""Rollouts of a list."""
_MAX_CERTIFICATES = 100
"""Certificates of each, in a list."""
PROFILE, RENEWAL = "profile", "renewal"
"""Kinds of rollouts."""
MAX_PAUSE = 30 * 86_400
_DEVICES_PER_STATEMENT = 200
_FIRST = 5
"""Devices of a wave that a preview names."""

log = logging.getLogger("certctrl.Plane")


@lean.frozen(kw_only=True)
class RolloutRules:
    """The rules that an operator gives a rollout."""

    waves: Sequence[str] = DEFAULT_WAVES
    canary: str = ""
    """A tag expression; these devices are the first wave."""
    max_failures: int = 0
    pause_seconds: int = 0
    windows: Sequence[str] = ()
    serial: str = ""
    """A tag or ``key=``: of its devices, or of those with the same value, never two are under way."""


class Rollouts:
    """The tables of rollouts and their devices."""

    def __init__(self, database: Database, profiles: Profiles, devices: Devices, wall_now: Callable[[], float]) -> None:
        self._db = database
        self._profiles = profiles
        self._devices = devices
        self._wall_now = wall_now
        self.changes: dict[str, Change] = {}
        """What the rollouts of each kind change."""
        self.on_started: Callable[[], object] = lambda: None
        """Called after the commit when a rollout may have something to do."""

    # --- start ----------------------------------------------------------------------------------------------------

    async def start(
        self,
        user_id: int,
        name: str,
        change: ProfileChange,
        rules: RolloutRules,
        *,
        expected: str = "",
        dry_run: bool = False,
    ) -> dict[str, Any]:
        """Store a version of a profile and start its rollout; return it with ``changes``, as a preview of the profile.

        ErrorResponse 400 as from ``Profiles.put``, and 409 if no config changes, or the profile has an open rollout.
        ``expected``: the ``preview_id`` of a dry run; 409 if it would do something else by now.
        """
        check_rules(rules)
        candidate, changes = await self._profiles.prepare(user_id, name, change)
        await self._db.work_long(self._profiles.refuse_rollout, candidate.version.profile_id)
        if not dry_run:
            refuse_problems(name, changes)
        chosen = [row["id"] for row in changes["devices"] if not row["problem"]]
        if not chosen:
            raise conflict(f"The change of profile {name} changes no config: there is nothing to roll out")
        planned = await self._db.work_long(self.planned, chosen, rules)
        number = candidate.version.version + (not candidate.version.profile_id)  # a new one begins without items
        summary = {"profile": name, "version": number, "changes": changes, "dry_run": dry_run}
        preview = preview_id(user_id, described(candidate.version), changes, planned, rules_json(rules))
        if dry_run:
            waves = await self._db.work_long(self.planned_waves, planned)
            return summary | {"id": None, "waves": waves, "preview_id": preview}
        refuse_other(expected, preview)
        rollout_id = await self._db.work_long(self._start, user_id, candidate, change.note, planned, rules)
        log.info("rollout %d of profile %s has started, for %s", rollout_id, name, counted(len(planned), "device"))
        shown = await self._db.work_long(self.show, user_id, rollout_id)
        return summary | {key: shown[key] for key in ("id", "version", "waves", "state")}

    def planned(self, device_ids: Sequence[int], rules: RolloutRules) -> list[tuple[int, int, str]]:
        """Return the wave and the serial group of each device; ErrorResponse 400 if none is a canary."""
        tags, first = self._tags(device_ids), self.canaries(device_ids, rules)
        if rules.canary and not first:
            raise bad_request(f"No device of this rollout matches the canary {rules.canary}", field="canary")
        waves = waves_of(device_ids, wave_sizes(rules.waves), set(first))
        return [(one, waves[one], serial_group(rules.serial, tags.get(one, ()))) for one in device_ids]

    def planned_waves(self, planned: Sequence[tuple[int, int, str]]) -> list[dict[str, Any]]:
        """Return the waves of a rollout that has not started, each with the names of its ``first`` devices."""
        waves: dict[int, list[int]] = {}
        for device_id, wave, _ in planned:
            waves.setdefault(wave, []).append(device_id)
        shown = [one for ids in waves.values() for one in ids[:_FIRST]]
        sql = f"SELECT id, name FROM devices WHERE id IN ({marks(shown)})"
        names = {row["id"]: row["name"] or str(row["id"]) for row in self._db.all(sql, *shown)}
        return [
            {
                "wave": wave,
                "devices": len(waves[wave]),
                "states": {"held": len(waves[wave])},
                "first": [names[one] for one in waves[wave][:_FIRST]],
            }
            for wave in sorted(waves)
        ]

    def canaries(self, device_ids: Sequence[int], rules: RolloutRules) -> list[int]:
        """Return the devices that are the first wave."""
        if not rules.canary:
            return []
        tags, canary = self._tags(device_ids), parse(rules.canary)
        return [one for one in device_ids if canary.matches(tags.get(one, ()))]

    def _tags(self, device_ids: Sequence[int]) -> dict[int, list[str]]:
        tags: dict[int, list[str]] = {}
        for start in range(0, len(device_ids), _DEVICES_PER_STATEMENT):
            tags |= self._devices.tags.of(device_ids[start : start + _DEVICES_PER_STATEMENT])
        return tags

    def _start(
        self,
        user_id: int,
        candidate: Candidate,
        note: str,
        planned: Sequence[tuple[int, int, str]],
        rules: RolloutRules,
    ) -> int:
        profile_id, version = self._profiles.store(user_id, candidate, note, current=False)
        return self.insert(user_id, profile_id, version, planned, rules, note)

    def insert(
        self,
        user_id: int,
        profile_id: int | None,
        version: int,
        planned: Sequence[tuple[int, int, str]],
        rules: RolloutRules,
        note: str,
    ) -> int:
        """Store a rollout that is running, of a profile or, without one, of renewals; return its id."""
        now = self._wall_now()
        rollout_id = self._db.insert(
            "INSERT INTO rollouts (user_id, profile_id, version, state, rules, note, created_at, updated_at)"
            " VALUES (?, ?, ?, 'running', ?, ?, ?, ?)",
            *(user_id, profile_id, version, rules_json(rules), note, now, now),
        )
        for start in range(0, len(planned), _DEVICES_PER_STATEMENT):
            some = planned[start : start + _DEVICES_PER_STATEMENT]
            values = ", ".join(["(?, ?, ?, ?, 'held')"] * len(some))
            self._db.run(
                f"INSERT INTO rollout_devices (rollout_id, device_id, wave, serial_group, state) VALUES {values}",
                *(value for one, wave, group in some for value in (rollout_id, one, wave, group)),
            )
        self._db.after_commit(self.on_started)
        return rollout_id

    # --- shown ----------------------------------------------------------------------------------------------------

    def show_all(
        self, user_id: int, states: Sequence[str] = (), before_id: int = 0, limit: int = MAX_LISTED
    ) -> list[dict[str, Any]]:
        """Return a user's last rollouts, or those in some states, the newest first, without their devices, with up to 100 certificates.

        ``before_id``: only those with lower ids, unless it is 0. ErrorResponse 400 for an unknown state.
        """
        require_user(self._db, user_id)
        for state in states:
            if state not in STATES:
                meant = nearest(state, STATES)
                fix = f"did you mean {meant}?" if meant else f"use {', '.join(STATES)}"
                raise bad_request(f"{one_line(state, 40)!r} is not a state of rollouts; {fix}", field="state")
        chosen = f" AND r.state IN ({marks(states)})" if states else ""
        chosen += " AND r.id < ?" if before_id else ""
        sql = f"{_ROLLOUTS} WHERE r.user_id = ?{chosen} ORDER BY r.id DESC LIMIT ?"
        rows = self._db.all(sql, user_id, *states, *([before_id] if before_id else []), limit)
        counts = self._counts([row["id"] for row in rows])
        frozen, renewed = self.frozen(user_id), self._renewed([row["id"] for row in rows])
        shown = [_shown(row, counts.get(row["id"], {}), renewed.get(row["id"], []), frozen) for row in rows]
        return [row | {"certificates": row["certificates"][:_MAX_CERTIFICATES]} for row in shown]

    def show_recent(self, user_id: int, limit: int = MAX_LISTED) -> list[dict[str, Any]]:
        """Return the last rollouts, and earlier ones that are still open, as `show_all`."""
        rows = self.show_all(user_id, limit=limit)
        last = rows[-1]["id"] if len(rows) == limit else 0
        return rows + (self.show_all(user_id, OPEN, last) if last else [])

    def show(self, user_id: int, rollout_id: int) -> dict[str, Any]:
        """Return a rollout with the devices of each state, except those that are held or have proven the change."""
        row = self._row(user_id, rollout_id)
        notable = self._db.all(
            "SELECT m.device_id, d.name, m.wave, m.state, m.detail, m.released_at FROM rollout_devices m"
            " JOIN devices d ON d.id = m.device_id WHERE m.rollout_id = ? AND m.state NOT IN ('held', 'proven')"
            " ORDER BY m.wave, m.device_id",
            rollout_id,
        )
        devices = [
            {
                "id": one["device_id"],
                "name": one["name"],
                "wave": one["wave"],
                "state": one["state"],
                "detail": one["detail"],
                "released_at": when(one["released_at"]),
            }
            for one in notable
        ]
        counts, renewed = self._counts([rollout_id]), self._renewed([rollout_id])
        shown = _shown(row, counts.get(rollout_id, {}), renewed.get(rollout_id, []), self.frozen(user_id))
        return shown | {"rules": json.loads(row["rules"]), "devices": devices}

    def _counts(self, rollout_ids: Sequence[int]) -> dict[int, dict[int, dict[str, int]]]:
        """Return rollout -> wave -> state -> number of devices."""
        found: dict[int, dict[int, dict[str, int]]] = {}
        sql = (
            "SELECT rollout_id, wave, state, count(*) AS n FROM rollout_devices"
            f" WHERE rollout_id IN ({marks(rollout_ids)}) GROUP BY rollout_id, wave, state ORDER BY rollout_id, wave, state"
        )
        for row in self._db.all(sql, *rollout_ids) if rollout_ids else ():
            found.setdefault(row["rollout_id"], {}).setdefault(row["wave"], {})[row["state"]] = int(row["n"])
        return found

    def _renewed(self, rollout_ids: Sequence[int]) -> dict[int, list[dict[str, Any]]]:
        """Return rollout -> the certificates that it renews."""
        found: dict[int, list[dict[str, Any]]] = {}
        sql = (
            "SELECT t.rollout_id, c.id, c.domain_name FROM rollout_certificates t JOIN certificates c ON c.id = t.cert_id"
            f" WHERE t.rollout_id IN ({marks(rollout_ids)}) ORDER BY t.rollout_id, c.id"
        )
        for row in self._db.all(sql, *rollout_ids) if rollout_ids else ():
            found.setdefault(row["rollout_id"], []).append({"id": row["id"], "name": row["domain_name"]})
        return found

    def _row(self, user_id: int, rollout_id: int) -> Row:
        row = self._db.one(f"{_ROLLOUTS} WHERE r.user_id = ? AND r.id = ?", user_id, rollout_id)
        if row is None:
            raise not_found(f"No such rollout: {rollout_id}; see plane rollout list")
        return row

    # --- changes --------------------------------------------------------------------------------------------------

    def pause(self, user_id: int, rollout_id: int) -> dict[str, Any]:
        """Release nothing more until the rollout is resumed; devices that are released go on. Idempotent."""
        return self._set_state(user_id, rollout_id, "paused", allowed=("running", "paused"))

    def resume(
        self, user_id: int, rollout_id: int, *, check: Callable[[dict[str, Any]], object] | None = None
    ) -> dict[str, Any]:
        """Go on after a pause, or after a halt, whose failures are accepted. Idempotent.

        ``check``: called with the rollout while no plane stores reports of its devices; may refuse it.
        """
        self._locked(user_id, rollout_id)
        if check is not None:
            check(self.show(user_id, rollout_id))
        self._db.run(
            "UPDATE rollout_devices SET state = 'accepted' WHERE rollout_id = ? AND state = 'failed'", rollout_id
        )
        return self._set_state(user_id, rollout_id, "running", allowed=OPEN)

    def abort(self, user_id: int, rollout_id: int, *, forward: bool = False) -> dict[str, Any]:
        """End a rollout: devices that are released keep the new version, the others the present one. Idempotent.

        ``forward``: all get the new one, which only a rollout of renewals can do.
        """
        row = self._locked(user_id, rollout_id)
        if row["state"] in (*OPEN, "aborted"):
            self.changes[kind_of(row)].abort(row, forward=forward)
        return self._set_state(user_id, rollout_id, "aborted", allowed=(*OPEN, "aborted"))

    def _set_state(self, user_id: int, rollout_id: int, state: str, *, allowed: Sequence[str]) -> dict[str, Any]:
        row = self._locked(user_id, rollout_id)
        if row["state"] not in allowed:
            raise conflict(f"Rollout {rollout_id} is {row['state']}")
        if row["state"] != state:
            now = self._wall_now()
            finished = now if state == "aborted" else None
            sql = "UPDATE rollouts SET state = ?, reason = '', waits = '', updated_at = ?, finished_at = ? WHERE id = ?"
            self._db.run(sql, state, now, finished, rollout_id)
            self._db.after_commit(partial(log.info, "rollout %d is %s", rollout_id, state))
        self._db.after_commit(self.on_started)
        return self.show(user_id, rollout_id)

    def _locked(self, user_id: int, rollout_id: int) -> Row:
        row = self._db.one_locked("SELECT * FROM rollouts WHERE user_id = ? AND id = ?", user_id, rollout_id)
        if row is None:
            raise not_found(f"No such rollout: {rollout_id}; see plane rollout list")
        return row

    # --- freeze ---------------------------------------------------------------------------------------------------

    def frozen(self, user_id: int) -> str:
        """Return why no rollout of a user releases anything; empty: they do."""
        return self._db.setting(f"{FROZEN}{user_id}")

    def freeze(self, user_id: int, reason: str) -> dict[str, Any]:
        """Release nothing in all rollouts of a user, for a reason; empty: end that. Idempotent."""
        require_user(self._db, user_id)
        if reason != self.frozen(user_id):
            self._db.run(
                "INSERT INTO settings VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value",
                *(f"{FROZEN}{user_id}", reason),
            )
            what = f"frozen: {one_line(reason)}" if reason else "no longer frozen"
            self._db.after_commit(partial(log.info, "rollouts of user %d are %s", user_id, what))
            self._db.after_commit(self.on_started)
        return {"frozen": bool(reason), "reason": reason}


_ROLLOUTS = "SELECT r.*, coalesce(p.name, '') AS profile FROM rollouts r LEFT JOIN profiles p ON p.id = r.profile_id"


def kind_of(row: Row) -> str:
    """Return what a rollout changes: ``profile`` or ``renewal``."""
    return RENEWAL if row["profile_id"] is None else PROFILE


def _what(row: Row, renewed: Sequence[Mapping[str, Any]]) -> str:
    """Return what a rollout changes, in words."""
    if kind_of(row) == PROFILE:
        return f"profile {row['profile']}, version {row['version']}"
    if len(renewed) == 1:
        return f"the renewal of certificate {renewed[0]['id']} ({renewed[0]['name']})"
    return f"the renewal of {counted(len(renewed), 'certificate')}"


def _shown(
    row: Row, counts: Mapping[int, Mapping[str, int]], renewed: Sequence[Mapping[str, Any]], frozen: str
) -> dict[str, Any]:
    waits = f"the end of the freeze: {frozen}" if frozen and row["state"] == "running" else row["waits"]
    return {
        "id": row["id"],
        "kind": kind_of(row),
        "what": _what(row, renewed),
        "certificates": list(renewed),
        "profile": row["profile"],
        "version": row["version"],
        "state": row["state"],
        "reason": row["reason"],
        "waits": waits,
        "note": row["note"],
        "created_at": when(row["created_at"]),
        "updated_at": when(row["updated_at"]),
        "finished_at": when(row["finished_at"]),
        "waves": [
            {"wave": wave, "devices": sum(states.values()), "states": dict(states)} for wave, states in counts.items()
        ],
    }


def check_rules(rules: RolloutRules) -> None:
    """Raise ErrorResponse 400 for rules that are not valid."""
    checks: list[tuple[str, Callable[[], object]]] = [
        ("waves", lambda: wave_sizes(rules.waves)),
        ("windows", lambda: windows_of(rules.windows)),
        ("canary", lambda: parse(rules.canary) if rules.canary else None),
        ("serial", lambda: parse(f"{rules.serial}*" if rules.serial.endswith("=") else rules.serial or "*")),
    ]
    for field, check in checks:
        try:
            check()
        except (RulesError, ExpressionError) as error:
            raise bad_request(f"{field}: {error}", field=field) from None
    if not 0 <= rules.pause_seconds <= MAX_PAUSE:
        raise bad_request(f"pause_seconds must be 0 to {MAX_PAUSE}", field="pause_seconds")
    if " " in rules.serial or rules.serial in ("*", "and", "or", "not"):
        raise bad_request("serial: use one tag, such as db, or a key, such as cluster=", field="serial")


def rules_json(rules: RolloutRules) -> str:
    """Return rules as they are stored."""
    return json.dumps(
        {
            "waves": list(rules.waves),
            "canary": rules.canary,
            "max_failures": rules.max_failures,
            "pause_seconds": rules.pause_seconds,
            "windows": list(rules.windows),
            "serial": rules.serial,
        }
    )
