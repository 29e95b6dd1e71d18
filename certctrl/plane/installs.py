"""Install configs: the document that says what a device does with its certificates (api.md §4).

The text that is stored is the text that is hashed and sent (``installs_json``), byte for byte.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from typing import Any

from certctrl.errors import PlanError
from certctrl.plane.clock import rfc3339
from certctrl.plane.errors import bad_request, not_found
from certctrl.plane.storage.database import Database, Row
from certctrl.plane.storage.signal_stream import SignalStream
from certctrl.protocol.wire.install_config import items_from_operator
from certctrl.protocol.wire.reader import Misfit


class Installs:
    """One install config per device; its version only grows."""

    def __init__(self, database: Database, stream: SignalStream, wall_now: Callable[[], float]) -> None:
        self._db = database
        self._stream = stream
        self._wall_now = wall_now

    def create(self, device_id: int) -> None:
        """Give a new device version 1, with nothing to do, inside the caller's transaction."""
        self._db.run(
            "INSERT INTO install_configs (device_id, version, installs_json, installs_hash_b64, updated_at)"
            " VALUES (?, 1, '[]', ?, ?)",
            device_id,
            _hash("[]"),
            self._wall_now(),
        )

    async def put(self, device_id: int, items: Any, *, check: bool = True) -> dict[str, Any]:
        """Replace the items, raise the version and tell the device; the same items again change nothing.

        Refused 400 for items no agent would run, unless ``check`` is off.
        """
        if check:
            check_items(items)
        text = json.dumps(items, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        row = self._row(device_id)
        if text != row["installs_json"]:
            version, hashed = row["version"] + 1, _hash(text)
            with self._db.transaction():
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
            await self._stream.publish()
        return self.document(device_id)

    def document(self, device_id: int) -> dict[str, Any]:
        """Return ``InstallConfig`` as it is sent."""
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
        """Return a word that changes with the document (no quotes)."""
        row = self._row(device_id)
        return f"v{row['version']}-{row['installs_hash_b64'][:16]}"

    def version(self, device_id: int) -> int:
        """Return the current version."""
        return int(self._row(device_id)["version"])

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


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")
