"""Profiles: preview, store and delete them, and bring the configs of devices up to date.

A change is previewed for all devices before it is stored, and refused if one of them would get a config that is not valid.
Then the configs of all devices are due, and are brought up to date in parts: by the request, or later by the runner of any
plane if the request does not come to its end.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import trio

from certctrl import lean
from certctrl.errors import CertctrlError
from certctrl.plane.audit.acts import aside
from certctrl.plane.devices.devices import require_user
from certctrl.plane.devices.tags import carried_by
from certctrl.plane.errors import bad_request, conflict
from certctrl.plane.installs import PROFILES_GUARD, Installs
from certctrl.plane.profiles.effective import EffectiveError, ProfileItems, checked_profile, json_of
from certctrl.plane.profiles.expression import ExpressionError, parse
from certctrl.plane.profiles.previews import preview_id, refuse_other
from certctrl.plane.profiles.scoped import require_seen, require_within
from certctrl.plane.profiles.stored import DEVICES_PER_UNIT, Loaded, StoredProfiles, Version, differences
from certctrl.plane.profiles.views import ProfileViews
from certctrl.plane.storage.database import Database, Row
from certctrl.text import counted, one_line

MAX_PROFILES = 200
"""Of one user, including deleted ones, which keep their history."""
MAX_POSITION = 9999
POSITION = 100
NO_ITEMS = ProfileItems("", (), ())
_SHOWN_PROBLEMS = 3
_SECONDS = 10.0
"""Between two looks for configs that a request has left due."""
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?", re.ASCII)

log = logging.getLogger("certctrl.Plane")


@lean.frozen(kw_only=True)
class ProfileChange:
    """A new version of a profile; None: as before."""

    devices: str | None = None
    """A tag expression."""
    order: int | None = None
    installs: Any = None
    note: str = ""


@lean.frozen(eq=False)
class Candidate:
    """A version that could be stored, and the state of the profiles for which it was checked."""

    version: Version
    is_same: bool
    """Whether the present version is the same."""
    state: tuple[int, ...]


class Profiles(ProfileViews):
    """The profiles of all users."""

    def __init__(
        self, database: Database, stored: StoredProfiles, installs: Installs, wall_now: Callable[[], float]
    ) -> None:
        super().__init__(database, stored)
        self._installs = installs
        self._wall_now = wall_now

    # --- changes --------------------------------------------------------------------------------------------------

    async def put(
        self,
        user_id: int,
        name: str,
        change: ProfileChange,
        *,
        expected: str = "",
        dry_run: bool = False,
        scope: Sequence[str] = (),
    ) -> dict[str, Any]:
        """Store a version of a profile, and bring the configs of its devices up to date; return what changes.

        ErrorResponse 400 for items or an expression that are not valid, or if a device would get a config that is not.
        Nothing happens if the present version is the same. ``expected``: the ``preview_id`` of a dry run; 409 if it
        would do something else by now. ``scope``: 403 unless the profile is for devices with all of these tags only, now
        and before.
        """
        candidate = await self._db.work_long(self._candidate, user_id, name, change, scope)
        return await self._change(user_id, candidate, change.note, expected=expected, dry_run=dry_run, scope=scope)

    async def prepare(self, user_id: int, name: str, change: ProfileChange) -> tuple[Candidate, dict[str, Any]]:
        """Return the version that ``put`` would store, and what it would change."""
        candidate = await self._db.work_long(self._candidate, user_id, name, change)
        return candidate, await self.preview(user_id, candidate.version)

    async def delete(
        self, user_id: int, name: str, *, note: str = "", dry_run: bool = False, scope: Sequence[str] = ()
    ) -> dict[str, Any]:
        """Delete a profile, and take its items from its devices; return what changes. Its history stays.

        ``scope``: ErrorResponse 404 unless the profile is for devices with all of these tags only, now and before.
        """
        candidate = await self._db.work_long(self._deletion, user_id, name, scope)
        return await self._change(user_id, candidate, note, dry_run=dry_run, scope=scope)

    async def _change(
        self,
        user_id: int,
        candidate: Candidate,
        note: str,
        *,
        expected: str = "",
        dry_run: bool,
        scope: Sequence[str],
    ) -> dict[str, Any]:
        changes = await self.preview(user_id, candidate.version, scope)
        version, preview = candidate.version, preview_id(user_id, described(candidate.version), changes)
        if not dry_run:
            refuse_other(expected, preview)
            refuse_problems(version.name, changes)
            if not candidate.is_same:
                _, number = await self._db.work_long(self.store, user_id, candidate, note)
                log.info(
                    "profile %s has version %d, for devices with %s", version.name, number, one_line(_text(version))
                )
                await self.apply()
        return {
            "name": version.name,
            "version": version.version,
            "devices": _text(version),
            "unchanged": candidate.is_same,
            "dry_run": dry_run,
            "changes": changes,
        } | ({"preview_id": preview} if dry_run else {})

    def _candidate(self, user_id: int, name: str, change: ProfileChange, scope: Sequence[str] = ()) -> Candidate:
        require_user(self._db, user_id)
        state = self._state(user_id)  # first: what is read afterwards may be newer, which `store` then refuses
        check_name(name)
        row = self._db.one("SELECT id, name, version FROM profiles WHERE user_id = ? AND name = ?", user_id, name)
        before = None if row is None else self._version(row, None)
        known = before if before is not None and before.devices is not None else None
        text = change.devices or ("" if known is None else _text(known))
        if not text:
            raise bad_request(
                f"Profile {name} is new: give the devices that have it, as a tag expression", field="devices"
            )
        position = change.order if change.order is not None else (known.position if known else POSITION)
        if not 0 <= position <= MAX_POSITION:
            raise bad_request(f"order must be 0 to {MAX_POSITION}", field="order")
        installs = change.installs if change.installs is not None else (list(known.items.items) if known else None)
        if installs is None:
            raise bad_request(f"Profile {name} is new: give its items", field="installs")
        try:
            version = Version(
                profile_id=0 if row is None else row["id"],
                name=name,
                version=self._next(row),
                position=position,
                devices=parse(text),
                items=checked_profile(name, installs),
            )
        except ExpressionError as error:
            raise bad_request(f"devices: {error}", field="devices") from None
        except EffectiveError as error:
            raise bad_request(str(error), field=error.path or "installs") from None
        require_within(self._db, user_id, name, parse(text), scope)
        is_same = known is not None and _contents(known) == _contents(version) and not self._pins(known.profile_id)
        return Candidate(version, is_same, state)

    def _deletion(self, user_id: int, name: str, scope: Sequence[str]) -> Candidate:
        require_seen(self._db, user_id, name, scope)
        state, row = self._state(user_id), self._row(user_id, name)
        before = self._version(row, None)
        items = checked_profile(name, [])
        version = Version(
            profile_id=row["id"],
            name=name,
            version=self._next(row),
            position=before.position,
            devices=None,
            items=items,
        )
        return Candidate(version, before.devices is None and not self._pins(row["id"]), state)

    def _next(self, row: Row | None) -> int:
        if row is None:
            return 1
        found = self._db.one("SELECT max(version) AS n FROM profile_versions WHERE profile_id = ?", row["id"])
        return 1 if found is None else int(found["n"]) + 1

    def _pins(self, profile_id: int) -> int:
        row = self._db.one("SELECT count(*) AS n FROM profile_pins WHERE profile_id = ?", profile_id)
        return 0 if row is None else int(row["n"])

    def _state(self, user_id: int) -> tuple[int, ...]:
        """Return numbers that differ after each change of a profile of a user."""
        rows = self._db.all(
            "SELECT p.id, p.version, max(v.version) AS n FROM profiles p JOIN profile_versions v ON v.profile_id = p.id"
            " WHERE p.user_id = ? GROUP BY p.id, p.version ORDER BY p.id",
            user_id,
        )
        return tuple(number for row in rows for number in (row["id"], row["version"], row["n"]))

    async def preview(self, user_id: int, candidate: Version, scope: Sequence[str] = ()) -> dict[str, Any]:
        """Return what changes for which devices with a version: ``devices``, ``matched`` and ``problems``.

        Revoked devices are left out, and those that lack a tag of ``scope``. A device that has a problem already has no new
        one.
        """
        found: dict[str, Any] = {"devices": [], "matched": 0, "problems": 0}
        after = 0
        while True:
            rows, after = await self._db.work_long(self._preview_some, user_id, candidate, after, scope)
            for matched, problem, row in rows:
                found["matched"] += matched
                found["problems"] += problem
                found["devices"] += [row] if row else []
            if not after:
                return found
            await trio.lowlevel.checkpoint()

    def _preview_some(
        self, user_id: int, candidate: Version, after: int, scope: Sequence[str]
    ) -> tuple[list[tuple[bool, bool, dict[str, Any] | None]], int]:
        """Return the changes of the next devices after an id, and the id to continue after; 0 if these were the last."""
        rows = self._db.all(
            "SELECT i.* FROM install_configs i JOIN devices d ON d.id = i.device_id WHERE d.user_id = ? AND d.id > ?"
            f" AND d.status != 'revoked' AND {carried_by('d.id', scope)} ORDER BY d.id LIMIT ?",
            *(user_id, after, *scope, DEVICES_PER_UNIT),
        )
        loaded = (self._stored.load(user_id) or Loaded({}, {})).with_version(candidate)
        devices = self._stored.values([row["device_id"] for row in rows])
        found = []
        for row in rows:
            device = devices[row["device_id"]]
            matched = candidate.devices is not None and candidate.devices.matches(device.tags)
            problem, changes, text = "", {}, row["installs_json"]
            try:
                text = self._stored.merged(loaded, device, self._installs.own_items(row))
                changes = differences(row["installs_json"], text) if text != row["installs_json"] else {}
            except EffectiveError as error:
                problem = "" if row["problem"] else str(error)
            shown = {"id": device.id, "name": device.name, **changes, "problem": problem}
            found.append((matched, bool(problem), shown if changes or problem else None))
        return found, rows[-1]["device_id"] if len(rows) == DEVICES_PER_UNIT else 0

    def store(self, user_id: int, candidate: Candidate, note: str, *, current: bool = True) -> tuple[int, int]:
        """Store a version; return the profile and the version. ``current``: all devices get it, and their configs are due.

        ErrorResponse 409 if a profile has changed since the candidate was made, or has an open rollout.
        """
        self._db.guard(PROFILES_GUARD, alone=True)
        version = candidate.version
        if self._state(user_id) != candidate.state:
            raise conflict("The profiles have changed meanwhile: try again")
        profile_id, number = version.profile_id or self._add(user_id, version.name), version.version
        self.refuse_rollout(profile_id)
        if not version.profile_id and not current:  # until the rollout is done, devices have a version without items
            self._insert(profile_id, attrs.evolve(version, devices=None, items=NO_ITEMS), "")
            number += 1
        self._insert(profile_id, attrs.evolve(version, version=number), note)
        if current:
            self.make_current(user_id, profile_id, number)
        return profile_id, number

    def _add(self, user_id: int, name: str) -> int:
        count = self._db.one("SELECT count(*) AS n FROM profiles WHERE user_id = ?", user_id)
        if count is not None and count["n"] >= MAX_PROFILES:
            raise conflict(f"There are {MAX_PROFILES} profiles, the most that are possible", "LIMIT")
        return self._db.insert("INSERT INTO profiles (user_id, name, version) VALUES (?, ?, 1)", user_id, name)

    def _insert(self, profile_id: int, version: Version, note: str) -> None:
        self._db.run(
            "INSERT INTO profile_versions (profile_id, version, devices, position, items_json, note, created_at)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            *(profile_id, version.version, _text(version), version.position, json_of(version.items.items), note),
            self._wall_now(),
        )

    def refuse_rollout(self, profile_id: int) -> None:
        """Raise ErrorResponse 409 if a profile has an open rollout."""
        sql = "SELECT id, state FROM rollouts WHERE profile_id = ? AND state IN ('running', 'paused', 'halted')"
        if (row := self._db.one(sql, profile_id)) is not None:
            what = f"Rollout {row['id']} of this profile is {row['state']}: abort it first"
            raise conflict(what, "ROLLOUT_OPEN")

    def refuse_rollout_of(self, user_id: int, name: str) -> None:
        """Raise ErrorResponse 409 if the profile with a name, should there be one, has an open rollout."""
        row = self._db.one("SELECT id FROM profiles WHERE user_id = ? AND name = ?", user_id, name)
        if row is not None:
            self.refuse_rollout(row["id"])

    def make_current(self, user_id: int, profile_id: int, version: int) -> None:
        """Give all devices a version of a profile: their configs are due."""
        self._db.run("UPDATE profiles SET version = ? WHERE id = ?", version, profile_id)
        self._db.run("DELETE FROM profile_pins WHERE profile_id = ?", profile_id)
        sql = "UPDATE install_configs SET due = 1 WHERE device_id IN (SELECT id FROM devices WHERE user_id = ?)"
        self._db.run(sql, user_id)

    def recheck(self) -> None:
        """Make all configs due: a control plane of an older release may have changed what they depend on."""
        self._db.guard(PROFILES_GUARD, alone=True)
        self._db.run(
            "UPDATE install_configs SET due = 1 WHERE device_id IN"
            " (SELECT d.id FROM devices d WHERE d.user_id IN (SELECT p.user_id FROM profiles p))"
        )

    # --- configs that are due -------------------------------------------------------------------------------------

    async def apply(self) -> None:
        """Bring all configs that are due up to date, in parts; also those that others than the caller have left due."""
        with aside():
            while await self._db.work_long(self._stored.apply_some):
                await trio.lowlevel.checkpoint()

    async def run(self) -> None:
        """Check all configs once, then bring those up to date that requests have left due, forever."""
        checked = False
        while True:
            try:
                if not checked:
                    await self._db.work_long(self.recheck)
                    checked = True
                await self.apply()
            except CertctrlError as error:
                log.error("install configs cannot be brought up to date: %s", error)
            await trio.sleep(_SECONDS)


def check_name(name: str) -> None:
    """Raise ErrorResponse 400 for what cannot be the name of a profile."""
    if not _NAME.fullmatch(name):
        what = "A profile's name has 1 to 64 lower-case letters, digits, '-', '_' and '.'"
        raise bad_request(f"{what}, not {one_line(name, 80)!r}", field="name")


def described(version: Version) -> tuple[str, int, str, int, str]:
    """Return all that makes a version."""
    return (version.name, version.version, *_contents(version))


def refuse_problems(name: str, changes: Mapping[str, Any]) -> None:
    """Raise ErrorResponse 400 if a device would get a config that is not valid."""
    bad: Sequence[dict[str, Any]] = [row for row in changes["devices"] if row["problem"]]
    if not bad:
        return
    shown = "; ".join(
        f"device {row['id']} ({one_line(row['name'], 40)}): {row['problem']}" for row in bad[:_SHOWN_PROBLEMS]
    )
    more = f"; and {len(bad) - _SHOWN_PROBLEMS} more" if len(bad) > _SHOWN_PROBLEMS else ""
    what = f"Profile {name} does not fit {counted(len(bad), 'device')}: {shown}{more}"
    raise bad_request(what, field="installs", problems=len(bad))


def _text(version: Version) -> str:
    return "" if version.devices is None else version.devices.text


def _contents(version: Version) -> tuple[str, int, str]:
    return _text(version), version.position, json_of(version.items.items)
