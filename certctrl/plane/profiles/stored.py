"""Stored profiles: the versions that devices have, and the configs that follow from them. All in the caller's unit of work."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from certctrl import lean
from certctrl.plane.devices.tags import DeviceTags
from certctrl.plane.errors import bad_request
from certctrl.plane.installs import PROFILES_GUARD, Installs
from certctrl.plane.profiles.effective import EffectiveError, Merger, ProfileItems, profile_items
from certctrl.plane.profiles.expression import Expression, parse
from certctrl.plane.profiles.placeholders import DeviceValues
from certctrl.plane.storage.database import Database, Row, marks

DEVICES_PER_UNIT = 100
"""Devices of one unit of work."""


@lean.frozen(kw_only=True, eq=False)
class Version:
    """One version of a profile."""

    profile_id: int
    name: str
    version: int
    position: int
    devices: Expression | None
    """Which devices have it; None: none, as it was deleted."""
    items: ProfileItems


@lean.frozen(eq=False)
class Loaded:
    """The profiles of a user, and which versions of them devices have."""

    current: Mapping[int, Version]
    """By the id of the profile."""
    pinned: Mapping[int, Mapping[int, Version]]
    """Device -> profile -> version, for devices that have another one."""

    def of_device(self, device: DeviceValues) -> list[ProfileItems]:
        """Return the items of the profiles that apply to a device, in order."""
        versions = {**self.current, **self.pinned.get(device.id, {})}.values()
        chosen = [one for one in versions if one.devices is not None and one.devices.matches(device.tags)]
        return [one.items for one in sorted(chosen, key=lambda one: (one.position, one.name))]

    def with_version(self, candidate: Version) -> Loaded:
        """Return the profiles as they would be if all devices had this version of its profile."""
        pinned = {
            device_id: {key: one for key, one in versions.items() if key != candidate.profile_id}
            for device_id, versions in self.pinned.items()
        }
        return Loaded({**self.current, candidate.profile_id: candidate}, pinned)

    @property
    def follows_certificates(self) -> bool:
        """Whether configs depend on the certificates of devices."""
        versions = [*self.current.values(), *(one for pins in self.pinned.values() for one in pins.values())]
        return any(one.items.repeated for one in versions)


class StoredProfiles:
    """The tables of profiles."""

    def __init__(self, database: Database, installs: Installs, tags: DeviceTags) -> None:
        self._db = database
        self._installs = installs
        self._tags = tags
        self._merger = Merger()
        self._read: dict[tuple[int, int], Version] = {}
        """Versions never change, so each is read once."""

    def load(self, user_id: int) -> Loaded | None:
        """Return the profiles of a user; None without any."""
        rows = self._db.all("SELECT id, name, version FROM profiles WHERE user_id = ?", user_id)
        if not rows:
            return None
        pins = self._db.all(
            "SELECT n.device_id, n.profile_id, n.version FROM profile_pins n JOIN profiles p ON p.id = n.profile_id"
            " WHERE p.user_id = ?",
            user_id,
        )
        wanted = [(row["id"], row["version"]) for row in rows] + [(pin["profile_id"], pin["version"]) for pin in pins]
        versions = self.versions({row["id"]: row["name"] for row in rows}, wanted)
        pinned: dict[int, dict[int, Version]] = {}
        for pin in pins:
            of_device = pinned.setdefault(pin["device_id"], {})
            of_device[pin["profile_id"]] = versions[pin["profile_id"], pin["version"]]
        return Loaded({row["id"]: versions[row["id"], row["version"]] for row in rows}, pinned)

    def versions(
        self, names: Mapping[int, str], wanted: Iterable[tuple[int, int]]
    ) -> Mapping[tuple[int, int], Version]:
        """Return versions of profiles, whose names are given by id."""
        found = {key: self._read[key] for key in {*wanted} if key in self._read}
        for key in sorted({*wanted} - found.keys()):
            row = self._db.one("SELECT * FROM profile_versions WHERE profile_id = ? AND version = ?", *key)
            assert row is not None  # versions are never deleted
            found[key] = version_of(names[key[0]], row)
        self._read = {**self._read, **found} if len(self._read) < 1000 else dict(found)
        return found

    def values(self, device_ids: Sequence[int]) -> dict[int, DeviceValues]:
        """Return the values of devices by which their configs differ."""
        tags, certificates = self._tags.of(device_ids), self._certificates(device_ids)
        sql = f"SELECT id, name, device_public_id FROM devices WHERE id IN ({marks(device_ids)})"
        return {
            row["id"]: DeviceValues(
                id=row["id"],
                name=row["name"],
                public_id=row["device_public_id"],
                tags=tags.get(row["id"], ()),
                certificates=certificates.get(row["id"], ()),
            )
            for row in (self._db.all(sql, *device_ids) if device_ids else ())
        }

    def _certificates(self, device_ids: Sequence[int]) -> dict[int, list[tuple[int, str]]]:
        found: dict[int, list[tuple[int, str]]] = {}
        sql = (
            "SELECT a.device_id, c.id, c.domain_name FROM assignments a JOIN certificates c ON c.id = a.cert_id"
            f" WHERE a.device_id IN ({marks(device_ids)}) ORDER BY a.device_id, c.id"
        )
        for row in self._db.all(sql, *device_ids) if device_ids else ():
            found.setdefault(row["device_id"], []).append((row["id"], row["domain_name"]))
        return found

    def merged(self, loaded: Loaded | None, device: DeviceValues, own: str) -> str:
        """Return the text of a device's config. Raises EffectiveError."""
        return self._merger.merged(() if loaded is None else loaded.of_device(device), device, own)

    def refresh(self, device_ids: Sequence[int], *, strict: bool, certificates_only: bool = False) -> list[int]:
        """Bring the configs of devices up to date, and return those that have changed.

        A device whose profiles cannot be merged keeps its config, with the reason; ``strict``: ErrorResponse 400 instead,
        unless it had a problem before.
        ``certificates_only``: only the certificates of the devices have changed.
        """
        self._db.guard(PROFILES_GUARD, alone=False)
        changed: list[int] = []
        for user_id, ids in self._by_user(device_ids).items():
            loaded = self.load(user_id)
            if loaded is None or (certificates_only and not loaded.follows_certificates):
                continue
            for start in range(0, len(ids), DEVICES_PER_UNIT):
                changed += self._refresh(loaded, ids[start : start + DEVICES_PER_UNIT], strict=strict)
        return changed

    def _refresh(self, loaded: Loaded, device_ids: Sequence[int], *, strict: bool) -> list[int]:
        rows, changed = self._installs.locked(device_ids), []
        devices = self.values(device_ids)  # after the lock: another unit may just have changed them
        for row in rows:
            device, own = devices[row["device_id"]], self._installs.own_items(row)
            try:
                text = self.merged(loaded, device, own)
            except EffectiveError as error:
                if strict and not row["problem"]:
                    raise bad_request(f"Device {device.id} ({device.name}): {error}", field="installs") from None
                self._installs.note_problem(row, str(error))
                continue
            if self._installs.store(row, own, text):
                changed.append(device.id)
        return changed

    def _by_user(self, device_ids: Sequence[int]) -> dict[int, list[int]]:
        found: dict[int, list[int]] = {}
        for start in range(0, len(device_ids), DEVICES_PER_UNIT):
            some = device_ids[start : start + DEVICES_PER_UNIT]
            sql = f"SELECT id, user_id FROM devices WHERE id IN ({marks(some)}) ORDER BY id"
            for row in self._db.all(sql, *some):
                found.setdefault(row["user_id"], []).append(row["id"])
        return found

    def merge_own(self, device_id: int, own: str) -> str:
        """Return the config of a device with other own items, whose row is locked; ErrorResponse 400."""
        (user_id,) = self._by_user([device_id])
        loaded = self.load(user_id)
        if loaded is None:
            return own
        try:
            return self.merged(loaded, self.values([device_id])[device_id], own)
        except EffectiveError as error:
            raise bad_request(str(error), field="installs") from None

    def apply_some(self) -> int:
        """Bring some configs that are due up to date; return their number. Those that another unit locks are left out."""
        self._db.guard(PROFILES_GUARD, alone=False)
        rows = self._db.all_unlocked(
            "SELECT device_id FROM install_configs WHERE due != 0 ORDER BY device_id LIMIT ?", DEVICES_PER_UNIT
        )
        self.refresh([row["device_id"] for row in rows], strict=False)
        return len(rows)


def version_of(name: str, row: Row) -> Version:
    """Return a stored version."""
    items = json.loads(row["items_json"])
    return Version(
        profile_id=row["profile_id"],
        name=name,
        version=row["version"],
        position=row["position"],
        devices=parse(row["devices"]) if row["devices"] else None,
        items=profile_items(name, items),
    )


def differences(before: str, after: str) -> dict[str, Any]:
    """Return how two configs differ: the ids of items that are ``added`` and ``removed``, and the keys of ``changed`` ones."""
    old, new = (
        {str(item.get("id")): item for item in json.loads(text) if isinstance(item, dict)} for text in (before, after)
    )
    changed = [
        {
            "id": name,
            "keys": sorted(key for key in {*old[name], *new[name]} if old[name].get(key) != new[name].get(key)),
        }
        for name in new
        if name in old and old[name] != new[name]
    ]
    found: dict[str, Any] = {
        "added": [name for name in new if name not in old],
        "removed": [name for name in old if name not in new],
        "changed": changed,
        "reordered": [name for name in old if name in new] != [name for name in new if name in old],
    }
    return found
