"""Users and devices: their rows, revocation, and when each device last polled."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from itertools import chain, islice
from typing import Any

from certctrl import lean
from certctrl.plane.ca.sealing import fingerprint
from certctrl.plane.clock import when
from certctrl.plane.devices import features
from certctrl.plane.devices.clones import CloneDetector
from certctrl.plane.devices.sessions import Sessions
from certctrl.plane.devices.tags import DeviceTags, carried_by, checked_tags
from certctrl.plane.errors import bad_request, conflict, device_revoked, not_found
from certctrl.plane.installs import Installs
from certctrl.plane.storage.database import Database, Row, marks
from certctrl.plane.storage.signal_stream import SignalStream

FIRST_USER = 1
"""The user that every plane starts with."""

MAX_PAGE = 500
"""Devices read together."""

RECENT_SECONDS = 86_400.0
"""Age up to which outcomes are counted for a device; older failures say nothing about its state."""

POLLING_SECONDS = 75.0
"""Greatest age of the last poll of a device that counts as online: the longest wait, and the time until it is stored."""

_SHOWN = (
    "id", "user_id", "device_public_id", "status", "name", "platform", "model", "app_version", "key_fingerprint",
)  # fmt: skip
_PER_STATEMENT = 100
"""Sightings per statement."""
_SAVED_WITHIN_SECONDS = 60.0
"""A plane saves its sightings within this time. A stored sighting that is newer by less is another plane's; one that is
newer by more shows that the clock was set back."""


def require_device(database: Database, user_id: int, device_id: int) -> None:
    """Raise ErrorResponse 404 unless the user has this device."""
    if database.one("SELECT 1 FROM devices WHERE id = ? AND user_id = ?", device_id, user_id) is None:
        raise not_found("No such device")


def require_user(database: Database, user_id: int) -> None:
    """Raise ErrorResponse 404 unless the user exists."""
    if database.one("SELECT 1 FROM users WHERE id = ?", user_id) is None:
        raise not_found("No such user")


@lean.frozen(kw_only=True)
class DeviceFacts:
    """Facts that a device states about itself; shown to operators, never trusted."""

    device_public_id: str
    name: str = ""
    platform: str = ""
    model: str = ""
    app_version: str = ""
    user_agent: str = ""
    features: tuple[str, ...] = ()
    """Features that its agent has announced."""


@lean.define
class _Sighting:
    at: float
    address: str
    cursor: str


class Devices:
    """The tables of users and devices."""

    def __init__(
        self,
        database: Database,
        stream: SignalStream,
        sessions: Sessions,
        installs: Installs,
        clones: CloneDetector,
        wall_now: Callable[[], float],
    ) -> None:
        self._db = database
        self._stream = stream
        self._sessions = sessions
        self._installs = installs
        self._clones = clones
        self._wall_now = wall_now
        self.tags = DeviceTags(database)
        self._sightings: dict[int, _Sighting] = {}
        """Not yet stored: a poll writes nothing, ``save_sightings`` stores them together."""
        self.sightings_saved = 0
        self.opened: Callable[[Sequence[int]], Mapping[int, float]] = lambda device_ids: {}
        """Returns when the push sockets of devices were opened, in the caller's unit of work."""
        if self._db.one("SELECT 1 FROM users WHERE id = ?", FIRST_USER) is None:
            self.add_user("operator")

    def add_user(self, name: str) -> dict[str, Any]:
        """Add a user; ErrorResponse 409 if the name is taken."""
        if not name:
            raise bad_request("A user needs a name", field="name")
        if self._db.one("SELECT 1 FROM users WHERE name = ?", name) is not None:
            raise conflict("This name is taken")
        user_id = self._db.insert("INSERT INTO users (name, created_at) VALUES (?, ?)", name, self._wall_now())
        return {"id": user_id, "name": name}

    def users(self) -> list[dict[str, Any]]:
        """Return all users."""
        return [
            {"id": row["id"], "name": row["name"]} for row in self._db.all("SELECT id, name FROM users ORDER BY id")
        ]

    def require_user(self, user_id: int) -> None:
        """Raise ErrorResponse 404 unless the user exists."""
        require_user(self._db, user_id)

    def expect(self, user_id: int, facts: DeviceFacts) -> dict[str, Any]:
        """Add a device ahead of its registration, so that certificates can be assigned to it."""
        self.require_user(user_id)
        if self.find(user_id, facts.device_public_id) is not None:
            raise conflict("This device_public_id is taken")
        with self._db.transaction():
            device_id = self.add(user_id, facts)
        return self.show(user_id, device_id)

    def add(self, user_id: int, facts: DeviceFacts) -> int:
        """Insert a device with its stream and an empty install config, inside the caller's transaction."""
        device_id = self._db.insert(
            "INSERT INTO devices (user_id, device_public_id, status, name, platform, model, app_version, user_agent,"
            " created_at) VALUES (?, ?, 'expected', ?, ?, ?, ?, ?, ?)",
            user_id,
            facts.device_public_id,
            facts.name,
            facts.platform,
            facts.model,
            facts.app_version,
            facts.user_agent,
            self._wall_now(),
        )
        self._stream.create(device_id)
        self._installs.create(device_id)
        return device_id

    def find(self, user_id: int, device_public_id: str) -> Row | None:
        """Return the row of a device by its public id, locked."""
        return self._db.one_locked(
            "SELECT * FROM devices WHERE user_id = ? AND device_public_id = ?", user_id, device_public_id
        )

    def similar(self, device_public_id: str, name: str) -> list[dict[str, Any]]:
        """Return the devices, of all users, that have this id or this name; operators see them before they approve."""
        rows = self._db.all(
            "SELECT d.*, u.name AS user FROM devices d JOIN users u ON u.id = d.user_id"
            " WHERE (d.device_public_id = ? AND ? != '') OR (d.name = ? AND ? != '')"
            " ORDER BY d.device_public_id != ?, d.id LIMIT 20",
            *(device_public_id, device_public_id, name, name, device_public_id),
        )
        shown = ("id", "user_id", "user", "name", "status")
        return [
            {key: row[key] for key in shown} | {"same_id": row["device_public_id"] == device_public_id} for row in rows
        ]

    def is_known(self, device_public_id: str) -> bool:
        """Return whether any user has, or expects, a device with this public id."""
        return self._db.one("SELECT 1 FROM devices WHERE device_public_id = ?", device_public_id) is not None

    def refuse_revoked(self, public_key: bytes, device_public_id: str = "", *, restoring: int | None = None) -> None:
        """Raise ErrorResponse 403 if a revoked device of any user has this key or id, except the one being restored."""
        row = self._db.one(
            "SELECT revoked_at, revoke_reason FROM devices"
            " WHERE status = 'revoked' AND (public_key = ? OR device_public_id = ?) AND id != ?",
            public_key,
            device_public_id,
            restoring or 0,
        )
        if row is not None:
            raise device_revoked(row["revoked_at"], row["revoke_reason"])

    def refuse_other(self, device_id: int, public_key: bytes, device_public_id: str) -> None:
        """Raise ErrorResponse 409 if a host with this key or id is another device than this one."""
        row = self._db.one(
            "SELECT id, name FROM devices WHERE (public_key = ? OR device_public_id = ?) AND id != ?",
            *(public_key, device_public_id, device_id),
        )
        if row is not None:
            what = f"This host is registered as device {row['id']} ({row['name']}); to make it another one, remove its"
            raise conflict(f"{what} directories keys and state first", "OTHER_DEVICE")

    def set_public_id(self, device_id: int, device_public_id: str) -> None:
        """Change the public id of a device, inside the caller's transaction."""
        self._db.run("UPDATE devices SET device_public_id = ? WHERE id = ?", device_public_id, device_id)

    def locked(self, device_id: int, user_id: int | None = None) -> Row:
        """Return the row of a device, locked; ErrorResponse 404 if there is none, or another user has it."""
        row = self._db.one_locked("SELECT * FROM devices WHERE id = ?", device_id)
        if row is None or user_id not in (None, row["user_id"]):
            raise not_found("No such device")
        return row

    def activate(self, device_id: int, facts: DeviceFacts, public_key: bytes) -> None:
        """Bind a device to its key and make it active, inside the caller's transaction."""
        self._db.run(
            "UPDATE devices SET status = 'active', name = ?, platform = ?, model = ?, app_version = ?, user_agent = ?,"
            " features = ?, public_key = ?, key_fingerprint = ?, registered_at = ?, revoked_at = NULL, revoke_reason = '',"
            " anchor_sha256 = '', instance = '', earlier_instances = '{}', copies_at = NULL, decommissioned_at = NULL,"
            " key_wanted_at = NULL, former_seen_at = NULL, former_address = ''"
            " WHERE id = ?",
            facts.name,
            facts.platform,
            facts.model,
            facts.app_version,
            facts.user_agent,
            features.stored(facts.features),
            public_key,
            fingerprint(public_key).hex(),
            self._wall_now(),
            device_id,
        )

    def row(self, user_id: int, device_id: int) -> Row:
        """Return the row of a user's device; ErrorResponse 404 if there is none."""
        row = self._db.one("SELECT * FROM devices WHERE id = ? AND user_id = ?", device_id, user_id)
        if row is None:
            raise not_found("No such device")
        return row

    def named(self, user_id: int, name: str) -> list[Row]:
        """Return the rows of a user's devices with this name, in any case; those that are not revoked if there are some."""
        sql = "SELECT * FROM devices WHERE user_id = ? AND (name = ? OR lower(name) = ?) ORDER BY id"
        rows = self._db.all(sql, user_id, name, name.lower())
        return [row for row in rows if row["status"] != "revoked"] or rows

    def revoke(self, user_id: int, device_id: int, reason: str) -> dict[str, Any]:
        """Revoke a device: all its requests get 403 ``DEVICE_REVOKED`` from now on."""
        row = self._db.one_locked("SELECT status FROM devices WHERE id = ? AND user_id = ?", device_id, user_id)
        if row is not None and row["status"] != "revoked":
            self._db.run(
                "UPDATE devices SET status = 'revoked', revoked_at = ?, revoke_reason = ? WHERE id = ?",
                self._wall_now(),
                reason,
                device_id,
            )
            self._db.run("DELETE FROM endpoints WHERE device_id = ?", device_id)
            self._stream.wake_after_commit(device_id)
        return self.show(user_id, device_id)

    def show_all(self, user_id: int) -> list[dict[str, Any]]:
        """Return all devices of a user as operators see them."""
        shown: list[dict[str, Any]] = []
        while page := self.page(user_id, shown[-1]["id"] if shown else 0, MAX_PAGE):
            shown += page
        return shown

    def page(
        self, user_id: int, after_id: int, limit: int, tags: Collection[str] = (), scope: Sequence[str] = ()
    ) -> list[dict[str, Any]]:
        """Return up to ``limit`` devices of a user that carry all ``tags``, with ids above ``after_id``, by id.

        They carry all tags of ``scope``, too, which are valid.
        """
        self.require_user(user_id)
        asked = (*checked_tags(tags, "tag"), *scope)
        sql = f"SELECT * FROM devices WHERE user_id = ? AND id > ? AND {carried_by('devices.id', asked)} ORDER BY id LIMIT ?"
        return self._shown(self._db.all(sql, user_id, after_id, *asked, limit))

    def show(self, user_id: int, device_id: int) -> dict[str, Any]:
        """Return one device as operators see it."""
        return self._shown([self.row(user_id, device_id)])[0]

    def seen(self, device_id: int, address: str, cursor: str, at: float | None = None) -> None:
        """Record the time (None: now), address and cursor of a poll, or of anything received on a push socket."""
        self._sightings[device_id] = _Sighting(self._wall_now() if at is None else at, address, cursor)

    def save_sightings(self, most: int | None = None) -> None:
        """Store the polls recorded since the last call, for at most ``most`` devices."""
        sightings = dict(islice(self._sightings.items(), most))
        if not sightings:
            return
        with self._db.transaction():
            devices = sorted(sightings)
            for start in range(0, len(devices), _PER_STATEMENT):
                self._save([(device_id, sightings[device_id]) for device_id in devices[start : start + _PER_STATEMENT]])
            self._db.after_commit(partial(self._forget_saved, sightings))

    def _save(self, sightings: Sequence[tuple[int, _Sighting]]) -> None:
        ids = [device_id for device_id, _ in sightings]
        # An UPDATE locks in any order: two planes that store the same devices would wait for each other.
        self._db.all_locked(f"SELECT id FROM devices WHERE id IN ({marks(ids)}) ORDER BY id", *ids)
        values = [(device_id, one.at, one.address, one.cursor) for device_id, one in sightings]
        self._db.run(
            "UPDATE devices SET last_seen_at = v.column2, last_address = v.column3, last_cursor = v.column4"
            f" FROM (VALUES {', '.join(['(?, ?, ?, ?)'] * len(values))}) AS v WHERE devices.id = v.column1"
            " AND NOT (coalesce(devices.last_seen_at, 0) BETWEEN v.column2 AND v.column2 + ?)",
            *chain.from_iterable(values),
            _SAVED_WITHIN_SECONDS,
        )

    def sightings_waiting(self) -> int:
        """Return the number of sightings that are not stored yet."""
        return len(self._sightings)

    def _forget_saved(self, sightings: dict[int, _Sighting]) -> None:
        self.sightings_saved += len(sightings)
        for device_id, sighting in sightings.items():
            if self._sightings.get(device_id) is sighting:
                del self._sightings[device_id]

    def _shown(self, rows: Sequence[Row]) -> list[dict[str, Any]]:
        """Return devices as operators see them, with one statement for each kind of detail."""
        if not rows:
            return []
        seen = {row["id"]: self._last_seen(row) for row in rows}
        waiting = self._stream.waiting({device_id: sighting.cursor for device_id, sighting in seen.items()})
        versions, problems = self._installs.versions(list(seen)), self._installs.problems(list(seen))
        outcomes, tags = self._outcomes(list(seen)), self.tags.of(list(seen))
        opened, polled = self.opened(list(seen)), self._wall_now() - POLLING_SECONDS
        shown = []
        for row in rows:
            sighting, since = seen[row["id"]], opened.get(row["id"])
            active = row["status"] == "active"
            shown.append(
                {name: row[name] for name in _SHOWN}
                | {
                    "created_at": when(row["created_at"]),
                    "registered_at": when(row["registered_at"]),
                    "revoked_at": when(row["revoked_at"]),
                    "revoke_reason": row["revoke_reason"],
                    "decommissioned_at": when(row["decommissioned_at"]),
                    "key_rotation_wanted_at": when(row["key_wanted_at"]),
                    "online": active and (since is not None or sighting.at > polled),
                    "connected_at": when(since) if active else None,
                    "last_seen_at": when(sighting.at or None),
                    "last_address": sighting.address,
                    "copies_suspected": self._clones.suspected(row["copies_at"]),
                    "replaced_hardware_seen_at": when(row["former_seen_at"]),
                    "replaced_hardware_address": row["former_address"],
                    "signals_waiting": waiting.get(row["id"], 0),
                    "install_version": versions[row["id"]],
                    "install_problem": problems.get(row["id"], ""),
                    "features": sorted(features.announced(row)),
                    "tags": tags.get(row["id"], []),
                    "outcomes": outcomes.get(row["id"], {}),
                }
            )
        return shown

    def _last_seen(self, row: Row) -> _Sighting:
        stored = _Sighting(row["last_seen_at"] or 0.0, row["last_address"], row["last_cursor"])
        return max(stored, self._sightings.get(row["id"], stored), key=lambda sighting: sighting.at)

    def _outcomes(self, device_ids: Sequence[int]) -> dict[int, dict[str, int]]:
        """Return the number of recent outcomes of each kind, for devices that have any."""
        counts: dict[int, dict[str, int]] = {}
        for row in self._db.all(
            f"SELECT device_id, outcome, count(*) AS n FROM outcomes WHERE device_id IN ({marks(device_ids)}) AND at > ?"
            " GROUP BY device_id, outcome ORDER BY device_id, outcome",
            *(*device_ids, self._wall_now() - RECENT_SECONDS),
        ):
            counts.setdefault(row["device_id"], {})[row["outcome"]] = row["n"]
        return counts
