"""Install configs: what each device does with its certificates (docs/protocol.md).

The stored text is hashed and sent unchanged (``installs_json``).
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
from certctrl.protocol.wire.install_config import items_from_operator
from certctrl.protocol.wire.reader import Misfit


class Installs:
    """The table of install configs, one per device; versions only grow."""

    def __init__(self, database: Database, stream: SignalStream, wall_now: Callable[[], float]) -> None:
        self._db = database
        self._stream = stream
        self._wall_now = wall_now

    def create(self, device_id: int) -> None:
        """Create version 1, without items, for a new device, inside the caller's transaction."""
        self._db.run(
            "INSERT INTO install_configs (device_id, version, installs_json, installs_hash_b64, updated_at)"
            " VALUES (?, 1, '[]', ?, ?)",
            device_id,
            text_hash("[]"),
            self._wall_now(),
        )

    async def put(
        self, device_id: int, items: Any, *, check: bool = True, user_id: int | None = None
    ) -> dict[str, Any]:
        """Replace the items, increment the version and signal the device; unchanged items have no effect.

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
        row = self._row(device_id)
        if text != row["installs_json"]:
            version, hashed = row["version"] + 1, text_hash(text)
            self._db.run(
                "UPDATE install_configs SET version = ?, installs_json = ?, installs_hash_b64 = ?, updated_at = ?"
                " WHERE device_id = ?",
                version,
                text,
                hashed,
                self._wall_now(),
                device_id,
            )
            ref = {"config_id": row["id"], "version": version, "installs_hash_b64": hashed}
            self._stream.append(device_id, "install.updated", ref)
        return self.document(device_id)

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

    def etag(self, device_id: int) -> str:
        """Return the entity tag of the document, without quotes."""
        row = self._row(device_id)
        return f"v{row['version']}-{row['installs_hash_b64'][:16]}"

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
        items_from_operator(items)
    except Misfit as misfit:
        raise bad_request(str(misfit), field=misfit.path) from None
    except PlanError as error:
        raise bad_request(str(error), field="installs") from None
