"""Profiles as operators see them. All in the caller's unit of work."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from certctrl.plane.clock import when
from certctrl.plane.devices.devices import require_user
from certctrl.plane.errors import not_found
from certctrl.plane.profiles.scoped import require_seen, scoped_profiles
from certctrl.plane.profiles.stored import StoredProfiles, Version
from certctrl.plane.storage.database import Database, Row, marks
from certctrl.text import nearest, one_line


class ProfileViews:
    """Lists of profiles and their versions."""

    def __init__(self, database: Database, stored: StoredProfiles) -> None:
        self._db = database
        self._stored = stored

    def show_all(self, user_id: int, scope: Sequence[str] = ()) -> list[dict[str, Any]]:
        """Return a user's profiles in order, without their items, with the numbers of their devices.

        ``scope``, here and below: only profiles that are for devices with all of these tags exist.
        """
        require_user(self._db, user_id)
        loaded = self._stored.load(user_id)
        if loaded is None:
            return []
        counts = {profile_id: [0, 0] for profile_id in loaded.current}
        pinned = Counter(profile_id for pins in loaded.pinned.values() for profile_id in pins)
        for device_id, tags, problem in self._devices(user_id):
            for version in {**loaded.current, **loaded.pinned.get(device_id, {})}.values():
                if version.devices is not None and version.devices.matches(tags):
                    counts[version.profile_id][0] += 1
                    counts[version.profile_id][1] += bool(problem)
        chosen = [one for one in loaded.current.values() if one.devices is not None]
        if scope:
            seen = scoped_profiles(self._db, user_id, scope)
            chosen = [one for one in chosen if one.name in seen]
        return [
            {name: value for name, value in self._shown(user_id, one).items() if name != "installs"}
            | {"items": len(one.items.items), "device_count": counts[one.profile_id][0]}
            | {"problem_count": counts[one.profile_id][1], "pinned_count": pinned[one.profile_id]}
            for one in sorted(chosen, key=lambda one: (one.position, one.name))
        ]

    def _devices(self, user_id: int) -> list[tuple[int, list[str], str]]:
        """Return id, tags and problem of each device of a user that is not revoked."""
        rows = self._db.all(
            "SELECT d.id, i.problem FROM devices d JOIN install_configs i ON i.device_id = d.id"
            " WHERE d.user_id = ? AND d.status != 'revoked' ORDER BY d.id",
            user_id,
        )
        tags: dict[int, list[str]] = {}
        sql = "SELECT t.device_id, t.tag FROM device_tags t JOIN devices d ON d.id = t.device_id WHERE d.user_id = ?"
        for row in self._db.all(sql, user_id):
            tags.setdefault(row["device_id"], []).append(row["tag"])
        return [(row["id"], tags.get(row["id"], []), row["problem"]) for row in rows]

    def show(self, user_id: int, name: str, version: int | None = None, scope: Sequence[str] = ()) -> dict[str, Any]:
        """Return a profile with its items, its present version or an earlier one, and the devices that have problems."""
        require_seen(self._db, user_id, name, scope)
        row = self._row(user_id, name)
        found = self._version(row, version)
        if version is None and found.devices is None:
            raise not_found(f"Profile {name} was deleted; its versions are in its history")
        loaded = self._stored.load(user_id)
        assert loaded is not None
        problems = []
        for device_id, tags, problem in self._devices(user_id):
            if problem and found.devices is not None and found.devices.matches(tags):
                problems.append({"id": device_id, "problem": problem})
        return self._shown(user_id, found) | {"problems": problems}

    def devices(self, user_id: int, name: str, after: int, limit: int) -> dict[str, Any]:
        """Return the devices that have a profile, by id after one, with their ``version``, ``problem`` and the ``total``."""
        row, loaded = self._row(user_id, name), self._stored.load(user_id)
        assert loaded is not None
        having: list[dict[str, Any]] = []
        for device_id, tags, problem in self._devices(user_id):
            version = loaded.pinned.get(device_id, {}).get(row["id"]) or loaded.current[row["id"]]
            if version.devices is not None and version.devices.matches(tags):
                having.append({"id": device_id, "name": "", "version": version.version, "problem": problem})
        left = [one for one in having if one["id"] > after]
        shown = left[:limit]
        sql = f"SELECT id, name FROM devices WHERE id IN ({marks(shown)})"
        names = {one["id"]: one["name"] for one in self._db.all(sql, *(one["id"] for one in shown))} if shown else {}
        rows = [one | {"name": names[one["id"]]} for one in shown]
        return {"devices": rows, "total": len(having), "next": shown[-1]["id"] if len(left) > limit else None}

    def history(self, user_id: int, name: str, scope: Sequence[str] = ()) -> list[dict[str, Any]]:
        """Return the versions of a profile, newest first, without their items."""
        require_seen(self._db, user_id, name, scope)
        row = self._row(user_id, name)
        rows = self._db.all("SELECT * FROM profile_versions WHERE profile_id = ? ORDER BY version DESC", row["id"])
        return [
            {
                "version": one["version"],
                "current": one["version"] == row["version"],
                "deleted": not one["devices"],
                "devices": one["devices"],
                "order": one["position"],
                "items": len(json.loads(one["items_json"])),
                "note": one["note"],
                "created_at": when(one["created_at"]),
            }
            for one in rows
        ]

    def _shown(self, user_id: int, version: Version) -> dict[str, Any]:
        row = self._db.one(
            "SELECT created_at, note FROM profile_versions WHERE profile_id = ? AND version = ?",
            *(version.profile_id, version.version),
        )
        return {
            "name": version.name,
            "version": version.version,
            "devices": "" if version.devices is None else version.devices.text,
            "order": version.position,
            "note": row["note"] if row is not None else "",
            "updated_at": when(row["created_at"]) if row is not None else None,
            "installs": list(version.items.items),
        }

    def _row(self, user_id: int, name: str) -> Row:
        require_user(self._db, user_id)
        row = self._db.one("SELECT id, name, version FROM profiles WHERE user_id = ? AND name = ?", user_id, name)
        if row is None:
            names = [one["name"] for one in self._db.all("SELECT name FROM profiles WHERE user_id = ?", user_id)]
            meant = nearest(name, names)
            raise not_found(f"No such profile: {one_line(name, 80)}" + (f"; did you mean {meant}?" if meant else ""))
        return row

    def _version(self, row: Row, version: int | None) -> Version:
        wanted = row["version"] if version is None else version
        sql = "SELECT 1 FROM profile_versions WHERE profile_id = ? AND version = ?"
        if self._db.one(sql, row["id"], wanted) is None:
            raise not_found(f"Profile {row['name']} has no version {wanted}")
        return self._stored.versions({row["id"]: row["name"]}, [(row["id"], wanted)])[row["id"], wanted]
