"""KeyRotation: replace the key of a device, to which the plane seals private keys; all in the caller's unit of work.

An operator wants it; the device is told with its next access token. It proves that it has both keys, the present and the
new one, so that a stolen token is not enough. Then the plane seals to the new key. The device keeps both until the plane
has answered, and repeats its request: with the key that the plane already has, it succeeds again.
"""

from __future__ import annotations

import hmac
import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from certctrl import lean
from certctrl.model.features import KEY_ROTATION
from certctrl.plane.ca.sealing import fingerprint
from certctrl.plane.devices import features
from certctrl.plane.devices.devices import Devices
from certctrl.plane.devices.key_proofs import Claim, KeyProofs
from certctrl.plane.errors import conflict, forbidden
from certctrl.plane.storage.database import Database, Row

log = logging.getLogger("certctrl.Plane")


@lean.frozen
class BothProofs:
    """Answers to the challenges of both keys; empty before there were challenges."""

    present: str = ""
    new: str = ""


class KeyRotation:
    """Rotates the keys of devices."""

    def __init__(self, database: Database, devices: Devices, proofs: KeyProofs, wall_now: Callable[[], float]) -> None:
        self._db = database
        self._devices = devices
        self._proofs = proofs
        self._wall_now = wall_now
        self.on_rotated: Callable[[Row, str], object] = lambda device, fingerprint: None
        """Called in the unit of work with the former row of a device, and the fingerprint of its new key."""

    def want(self, user_id: int, device_id: int) -> dict[str, Any]:
        """Have a device replace its key; idempotent. ErrorResponse 404, 409 unless it is active and its agent can."""
        row = self._devices.locked(device_id, user_id)
        if row["status"] != "active":
            raise conflict(
                f"Device {device_id} ({row['name']}) is {row['status']}; it has no key to rotate", "NOT_ACTIVE"
            )
        if KEY_ROTATION not in features.announced(row):
            what = f"The agent of device {device_id} ({row['name']}) is of a version that does not rotate its key"
            raise conflict(what, "ROTATION_UNSUPPORTED")
        if row["key_wanted_at"] is None:
            self._db.run("UPDATE devices SET key_wanted_at = ? WHERE id = ?", self._wall_now(), device_id)
        return {
            "id": device_id,
            "name": row["name"],
            "changed": row["key_wanted_at"] is None,
            "key_fingerprint": row["key_fingerprint"],
        }

    def offer(self, device_id: int) -> dict[str, Any]:
        """Return what a session's answer says about it."""
        row = self._db.one("SELECT key_wanted_at FROM devices WHERE id = ?", device_id)
        return {} if row is None or row["key_wanted_at"] is None else {"rotate_key": True}

    def rotate(self, device_id: int, public_key: bytes, proofs: BothProofs) -> dict[str, Any]:
        """Replace the key of a device; or return the challenges for both keys.

        ErrorResponse 403 for a wrong answer or a revoked key, 409 if it is not wanted, or another device has the key.
        """
        row = self._devices.locked(device_id)
        new = fingerprint(public_key).hex()
        if hmac.compare_digest(bytes(row["public_key"]), public_key):
            return {"key_fingerprint": new}
        if row["key_wanted_at"] is None:
            raise conflict("No rotation of this device's key is wanted", "ROTATION_NOT_WANTED")
        self._devices.refuse_revoked(public_key)
        self._devices.refuse_other(device_id, public_key, row["device_public_id"])
        claims = [
            Claim(f"rotation {purpose}", row["device_public_id"], key, row["session"])
            for purpose, key in (("from", bytes(row["public_key"])), ("to", public_key))
        ]
        if not (proofs.present and proofs.new):
            present, following = (self._proofs.challenge(claim) for claim in claims)
            return {"present_challenge_b64": present, "new_challenge_b64": following}
        answers = (proofs.present, proofs.new)
        if not all(self._proofs.check(claim, answer) for claim, answer in zip(claims, answers, strict=True)):
            raise forbidden("An answer to the challenges is wrong or too late", "KEY_PROOF_FAILED")
        self._db.run(
            "UPDATE devices SET public_key = ?, key_fingerprint = ?, key_wanted_at = NULL WHERE id = ?",
            *(public_key, new, device_id),
        )
        self.on_rotated(row, new)
        self._db.after_commit(partial(log.info, "device %d has the key %s now", device_id, new[:16]))
        return {"key_fingerprint": new}
