"""Install configs: what each device does with its certificates (docs/protocol.md).

The stored text is hashed and sent unchanged (``installs_json``). It contains the items of profiles, if any apply to the
device, and its own items; those are then also stored separately.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from certctrl.errors import PlanError
from certctrl.plane.clock import rfc3339
from certctrl.plane.errors import bad_request, not_found
from certctrl.plane.storage.database import Database, Row, marks
from certctrl.plane.storage.signal_stream import SignalStream
from certctrl.protocol.wire.canonical import text_hash
from certctrl.protocol.wire.install_config import new_items_from_operator
from certctrl.protocol.wire.reader import Misfit

PROFILES_GUARD = 0x70726F66  # "prof"
"""Held by units of work that change a profile, alone, and by those that merge profiles, together; before rows."""


class Installs:
    """The table of install configs, one per device; versions only grow."""

    def __init__(self, database: Database, stream: SignalStream, wall_now: Callable[[], float]) -> None:
        self._db = database
        self._stream = stream
        self._wall_now = wall_now
        self.merge: Callable[[int, str], str] = lambda device_id, own: own
        """Returns the config of a device with these own items; ErrorResponse 400 if it would not be valid."""
        self.on_created: Callable[[int], object] = lambda device_id: None
        """Called in the unit of work with a new device."""

    def create(self, device_id: int) -> None:
        """Create version 1, without items, for a new device, inside the caller's transaction."""
        self._db.run(
            "INSERT INTO install_configs (device_id, version, installs_json, installs_hash_b64, updated_at)"
            " VALUES (?, 1, '[]', ?, ?)",
            device_id,
            text_hash("[]"),
            self._wall_now(),
        )
        self.on_created(device_id)

    async def put(
        self, device_id: int, items: Any, *, check: bool = True, user_id: int | None = None
    ) -> dict[str, Any]:
        """Replace the device's own items, increment the version and signal the device; unchanged items have no effect.

        ErrorResponse 400 for items that no agent would accept, unless ``check`` is off; 404 unless the device is one
        of ``user_id``, if given.
        """
        return await self._db.work_long(self._put, device_id, items, check, user_id)

    def _put(self, device_id: int, items: Any, check: bool, user_id: int | None) -> dict[str, Any]:
        if check:
            check_items(items)
        text = json.dumps(items, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        owner = self._db.one_locked("SELECT user_id FROM devices WHERE id = ?", device_id)
        if owner is None or user_id not in (None, owner["user_id"]):
            raise not_found("No such device")
        self._db.guard(PROFILES_GUARD, alone=False)
        (row,) = self.locked([device_id])
        self.store(row, text, self.merge(device_id, text))
        return self.document(device_id)

    def locked(self, device_ids: Sequence[int]) -> list[Row]:
        """Return the rows of devices, by id, locked."""
        sql = f"SELECT * FROM install_configs WHERE device_id IN ({marks(device_ids)}) ORDER BY device_id"
        return self._db.all_locked(sql, *device_ids)

    def own_items(self, row: Row) -> str:
        """Return the text of a device's own items, without those of profiles.

        A release that knows no profiles stores own items only.
        """
        is_merged = row["merged_hash_b64"] == row["installs_hash_b64"]
        return str(row["own_json"] if is_merged else row["installs_json"])

    def store(self, row: Row, own: str, text: str) -> bool:
        """Store own items and the config with them, of a locked row; return whether the config has changed.

        Then its version is incremented, and the device signalled.
        """
        version, hashed = row["version"], row["installs_hash_b64"]
        is_new = bool(text != row["installs_json"])
        if is_new:
            version, hashed = version + 1, text_hash(text)
        own_json, merged = (own, hashed) if own != text else ("", "")
        values = (version, text, hashed, own_json, merged)
        columns = ("version", "installs_json", "installs_hash_b64", "own_json", "merged_hash_b64")
        if is_new or row["due"] or row["problem"] or values != tuple(row[name] for name in columns):
            self._db.run(
                f"UPDATE install_configs SET {', '.join(f'{name} = ?' for name in columns)}, updated_at = ?, problem = '',"
                " due = 0 WHERE device_id = ?",
                *(*values, self._wall_now() if is_new else row["updated_at"], row["device_id"]),
            )
        if is_new:
            ref = {"config_id": row["id"], "version": version, "installs_hash_b64": hashed}
            self._stream.append(row["device_id"], "install.updated", ref)
        return is_new

    def note_problem(self, row: Row, problem: str) -> None:
        """Record why the profiles of a device cannot be merged; it keeps its config."""
        sql = "UPDATE install_configs SET problem = ?, due = 0 WHERE device_id = ?"
        self._db.run(sql, problem, row["device_id"])

    def document(self, device_id: int) -> dict[str, Any]:
        """Return the ``InstallConfig`` object of a device."""
        row = self._row(device_id)
        return {
            "id": row["id"],
            "user_device_id": device_id,
            "version": row["version"],
            "installs": json.loads(row["installs_json"]),
            "installs_json": row["installs_json"],
            "installs_hash_b64": row["installs_hash_b64"],
            "updated_at": rfc3339(row["updated_at"]),
        }

    def own(self, device_id: int) -> list[Any]:
        """Return a device's own items, without those of profiles."""
        items: list[Any] = json.loads(self.own_items(self._row(device_id)))
        return items

    def etag(self, device_id: int) -> str:
        """Return the entity tag of the document, without quotes."""
        row = self._row(device_id)
        return f"v{row['version']}-{row['installs_hash_b64'][:16]}"

    def problems(self, device_ids: Sequence[int]) -> dict[int, str]:
        """Return why devices keep their former config, for those that do."""
        sql = (
            f"SELECT device_id, problem FROM install_configs WHERE device_id IN ({marks(device_ids)}) AND problem != ''"
        )
        return {row["device_id"]: row["problem"] for row in self._db.all(sql, *device_ids)}

    def versions(self, device_ids: Sequence[int]) -> dict[int, int]:
        """Return the current version of each device."""
        sql = f"SELECT device_id, version FROM install_configs WHERE device_id IN ({marks(device_ids)})"
        return {row["device_id"]: row["version"] for row in self._db.all(sql, *device_ids)}

    def _row(self, device_id: int) -> Row:
        row = self._db.one("SELECT * FROM install_configs WHERE device_id = ?", device_id)
        if row is None:
            raise not_found("No such device")
        return row


def check_items(items: Any) -> None:
    """Check the items that an operator puts, as the devices will; ErrorResponse 400 names the first bad item."""
    try:
        new_items_from_operator(items)
    except Misfit as misfit:
        raise bad_request(str(misfit), field=misfit.path) from None
    except PlanError as error:
        raise bad_request(str(error), field="installs") from None
