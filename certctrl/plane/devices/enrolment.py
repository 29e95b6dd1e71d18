"""Registration of devices, by an operator's approval or by enrolment token (docs/protocol.md)."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import attrs

from certctrl import lean
from certctrl.plane.ca.sealing import fingerprint
from certctrl.plane.clock import when
from certctrl.plane.devices import features
from certctrl.plane.devices.devices import DeviceFacts, Devices
from certctrl.plane.devices.grants import Grants
from certctrl.plane.devices.key_proofs import Claim, KeyProofs
from certctrl.plane.devices.replacements import Replacements, is_replacement
from certctrl.plane.devices.sessions import Sessions
from certctrl.plane.devices.tags import checked_tags
from certctrl.plane.errors import bad_request, conflict, device_revoked, forbidden, invalid_token, not_found
from certctrl.plane.settings import DAY, PlaneSettings
from certctrl.plane.storage.database import Database, Row
from certctrl.plane.storage.keyring import digest
from certctrl.plane.storage.signal_stream import SignalStream

_MAX_VALIDITY = 3650 * DAY

log = logging.getLogger("certctrl.Plane")


@lean.frozen(kw_only=True)
class Proof:
    """How a registration proves that the device has its key."""

    offered: bool = False
    """Whether the agent can answer a challenge."""
    answer: str = attrs.field(default="", repr=False)


UNPROVEN = Proof()
"""A registration by an agent that does not support challenges."""


class Enrolment:
    """Registers devices; manages the tokens for unattended registration."""

    def __init__(
        self,
        database: Database,
        devices: Devices,
        grants: Grants,
        sessions: Sessions,
        stream: SignalStream,
        proofs: KeyProofs,
        settings: PlaneSettings,
        wall_now: Callable[[], float],
    ) -> None:
        self._db = database
        self._devices = devices
        self._grants = grants
        self._sessions = sessions
        self._stream = stream
        self._wall_now = wall_now
        self._allow_unproven_keys = settings.allow_unproven_keys or database.setting("unproven_keys") == "allowed"
        self._proofs = proofs
        mode = settings.recommended_poll_mode
        self._recommended = {"recommended": {"poll_mode": mode}} if mode else {}
        self.on_registered: Callable[[int, bool], object] = lambda device_id, new_identity: None
        """Called in the unit of work with a device that has registered, and whether its key has changed."""
        self.replacements = Replacements(database, wall_now)
        self.on_replaced: Callable[[Row, Row, Mapping[str, str]], object] = lambda former, replacement, after: None
        """Called in the unit of work with a device whose hardware was replaced, the replacement, and what is new."""

    def register_approved(
        self, user_id: int, registration_code: str, facts: DeviceFacts, public_key: bytes, proof: Proof = UNPROVEN
    ) -> dict[str, Any]:
        """Register the device that an operator approved, under the approved name; or return a challenge for its key.

        An approval restores a revoked device or replaces its key only if it names the device's id, and was given after
        the device was revoked.
        """
        with self._db.transaction():
            grant = self._grants.approved(registration_code, user_id, facts.device_public_id)
            row = self._devices.find(user_id, facts.device_public_id)
            self._check_consent(grant, row, facts.device_public_id)
            self._devices.refuse_revoked(public_key, restoring=None if row is None else row["id"])
            claim = Claim(registration_code, facts.device_public_id, public_key, 0 if row is None else row["session"])
            challenge = self._challenge(claim, proof)
            if challenge is not None:
                return challenge
            self._grants.use(grant)
            approved = attrs.evolve(facts, name=grant["name"] or facts.name)
            return self._register(row, user_id, approved, public_key)

    def register_unattended(
        self, enrolment_token: str, facts: DeviceFacts, public_key: bytes, proof: Proof = UNPROVEN
    ) -> dict[str, Any]:
        """Register a device by token: a new one, or a known one with the same key; or return a challenge for its key.

        A token is on many hosts, so it can neither restore a revoked device nor replace a device's key. A device may
        reuse a token that it has used before, because the first response may have been lost. A token of a replacement
        registers the host as the device that it replaces.
        """
        if is_replacement(enrolment_token):
            return self._register_replacement(enrolment_token, facts, public_key, proof)
        with self._db.transaction():
            token = self._usable(enrolment_token)
            row = self._devices.find(token["user_id"], facts.device_public_id)
            self.replacements.refuse_former(public_key, facts.device_public_id)
            self._devices.refuse_revoked(public_key, facts.device_public_id)
            if row is not None and row["public_key"] not in (None, public_key):
                raise conflict("This device is registered with another key; approve it by code", "KEY_MISMATCH")
            used = row is not None and self._has_used(token["id"], row["id"])
            if not used and token["max_uses"] is not None and token["uses"] >= token["max_uses"]:
                raise invalid_token("Enrolment token is used up")
            claim = Claim(enrolment_token, facts.device_public_id, public_key, 0 if row is None else row["session"])
            challenge = self._challenge(claim, proof)
            if challenge is not None:
                return challenge
            answer = self._register(row, token["user_id"], facts, public_key)
            if not used:
                self._db.run("UPDATE enrolment_tokens SET uses = uses + 1 WHERE id = ?", token["id"])
                self._db.run("INSERT INTO enrolments VALUES (?, ?)", token["id"], answer["device"]["id"])
                self._devices.tags.enrol(answer["device"]["id"], token["tags"].split())
            return answer

    def _register_replacement(self, text: str, facts: DeviceFacts, public_key: bytes, proof: Proof) -> dict[str, Any]:
        """Bind a device to new hardware, whose id becomes that of the device; its name, tags and certificates stay."""
        with self._db.transaction():
            replacement = self.replacements.usable(text, public_key)
            row = self._devices.locked(replacement["device_id"])
            replacement = self.replacements.usable(text, public_key)  # its device is locked now
            if row["status"] == "revoked":
                raise device_revoked(row["revoked_at"], row["revoke_reason"])
            if replacement["used_at"] is not None and row["public_key"] != public_key:
                raise invalid_token("Replacement token was used, and the device has another key since")
            self._devices.refuse_revoked(public_key, facts.device_public_id)
            self._devices.refuse_other(row["id"], public_key, facts.device_public_id)
            challenge = self._challenge(Claim(text, facts.device_public_id, public_key, row["session"]), proof)
            if challenge is not None:
                return challenge
            if self.replacements.use(replacement, row, public_key):
                new = {"device_public_id": facts.device_public_id, "key_fingerprint": fingerprint(public_key).hex()}
                self.on_replaced(row, replacement, new)
            self._devices.set_public_id(row["id"], facts.device_public_id)
            same = attrs.evolve(facts, name=row["name"] or facts.name)
            return self._register(row, row["user_id"], same, public_key)

    def new_token(
        self,
        user_id: int,
        *,
        label: str = "",
        max_uses: int | None = 1,
        valid_seconds: int = DAY,
        tags: Iterable[str] = (),
    ) -> dict[str, Any]:
        """Return a new enrolment token; its text is not stored. ``max_uses`` None: unlimited.

        Devices that it registers get ``tags``, once.
        """
        self._devices.require_user(user_id)
        if max_uses is not None and max_uses < 1:
            raise bad_request("max_uses must be at least 1", field="max_uses")
        if not 1 <= valid_seconds <= _MAX_VALIDITY:
            raise bad_request(f"valid_seconds must be 1 to {_MAX_VALIDITY}", field="valid_seconds")
        token, now = f"et_{secrets.token_urlsafe(32)}", self._wall_now()
        token_id = self._db.insert(
            "INSERT INTO enrolment_tokens (user_id, token_hash, label, max_uses, created_at, expires_at, tags)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            user_id,
            digest(token),
            label,
            max_uses,
            now,
            now + valid_seconds,
            " ".join(checked_tags(tags, "tags")),
        )
        return self._token(user_id, token_id) | {"token": token}

    def tokens(self, user_id: int) -> list[dict[str, Any]]:
        """Return a user's enrolment tokens, without their texts."""
        self._devices.require_user(user_id)
        rows = self._db.all("SELECT * FROM enrolment_tokens WHERE user_id = ? ORDER BY id", user_id)
        return [_shown(row) for row in rows]

    def end_token(self, user_id: int, token_id: int) -> None:
        """Void an enrolment token."""
        self._token(user_id, token_id)
        self._db.run(
            "UPDATE enrolment_tokens SET ended_at = ? WHERE id = ? AND ended_at IS NULL", self._wall_now(), token_id
        )

    def _check_consent(self, grant: Row, row: Row | None, device_public_id: str) -> None:
        """Raise ErrorResponse 403 if the operator did not approve what this registration would do."""
        if not grant["device_public_id"] and self._devices.is_known(device_public_id):
            what = "The approved request does not name this known device; update the agent and approve it again"
            raise forbidden(what, "DEVICE_NOT_NAMED")
        if row is not None and row["status"] == "revoked" and row["revoked_at"] >= (grant["decided_at"] or 0.0):
            raise device_revoked(row["revoked_at"], row["revoke_reason"])  # the approval is older

    def _challenge(self, claim: Claim, proof: Proof) -> dict[str, Any] | None:
        """Return the challenge that the device must answer first; None if its key is proven.

        ErrorResponse 403 for a wrong answer, and for an agent without proofs, unless that is allowed and the device new.
        """
        if proof.answer:
            if not self._proofs.check(claim, proof.answer):
                raise forbidden("The answer to the challenge is wrong or too late", "KEY_PROOF_FAILED")
            return None
        if proof.offered:
            return {"challenge_b64": self._proofs.challenge(claim)}
        if self._devices.is_known(claim.device_public_id) or not self._allow_unproven_keys:
            raise forbidden("This plane wants proof that a device has its key; update the agent", "KEY_PROOF_REQUIRED")
        return None

    def _register(self, row: Row | None, user_id: int, facts: DeviceFacts, public_key: bytes) -> dict[str, Any]:
        """Bind the device to its key and start a session, which ends all earlier ones."""
        device_id = self._devices.add(user_id, facts) if row is None else row["id"]
        if row is not None and row["renamed"]:
            facts = attrs.evolve(facts, name=row["name"])
        new_identity = row is not None and row["public_key"] not in (None, public_key)
        self._devices.activate(device_id, facts, public_key)
        session = self._sessions.start(device_id, new_hardware=new_identity)
        self.on_registered(device_id, new_identity)
        self._stream.wake_after_commit(device_id)  # end a waiting poll of the old session
        log.info(
            "device %d (%s) registered with key %s",
            device_id,
            facts.name or "unnamed",
            fingerprint(public_key).hex()[:16],
        )
        device = {
            "id": device_id,
            "user_id": user_id,
            "device_public_id": facts.device_public_id,
            "status": "active",
            "name": facts.name,
        }
        return {"device": device, "session": session, "features": features.of_plane(), **self._recommended}

    def _usable(self, enrolment_token: str) -> Row:
        row = self._db.one_locked("SELECT * FROM enrolment_tokens WHERE token_hash = ?", digest(enrolment_token))
        if row is None:
            raise invalid_token("Enrolment token is unknown")
        if row["ended_at"] is not None:
            raise invalid_token(f"Enrolment token was ended at {when(row['ended_at'])}")
        if row["expires_at"] <= self._wall_now():
            raise invalid_token(f"Enrolment token expired at {when(row['expires_at'])}")
        return row

    def _has_used(self, token_id: int, device_id: int) -> bool:
        sql = "SELECT 1 FROM enrolments WHERE token_id = ? AND device_id = ?"
        return self._db.one(sql, token_id, device_id) is not None

    def _token(self, user_id: int, token_id: int) -> dict[str, Any]:
        row = self._db.one("SELECT * FROM enrolment_tokens WHERE id = ? AND user_id = ?", token_id, user_id)
        if row is None:
            raise not_found("No such enrolment token")
        return _shown(row)


def _shown(row: Row) -> dict[str, Any]:
    return {
        "id": row["id"],
        "label": row["label"],
        "max_uses": row["max_uses"],
        "uses": row["uses"],
        "tags": row["tags"].split(),
        "created_at": when(row["created_at"]),
        "expires_at": when(row["expires_at"]),
        "ended_at": when(row["ended_at"]),
    }
