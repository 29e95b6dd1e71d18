"""SessionState: cursor, identity, tokens, signals and their outcomes (spec, "State Persistence").

A write is durable when it returns, with two exceptions. The poll time may be lost in a power cut and is then read as
absent; the cursor may fall back to the previous one, after which the plane repeats known signals. Loading distinguishes
files that were never written (None or empty) from damaged ones (StateCorruptError).

One process writes at a time: the holder of ``daemon.lock``, for tokens the holder of ``token.lock``. Readers need no
lock, because files are replaced atomically.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from certctrl import lean
from certctrl.errors import DiskError, StateCorruptError
from certctrl.model.challenges import Challenge
from certctrl.model.features import feature_names
from certctrl.model.records import Ack, DeviceKeys, InboxEntry, KnownPlane, Recommended, Tokens
from certctrl.store import decode
from certctrl.store.disk.atomic import remove_file, write_atomic
from certctrl.store.disk.fs import Fs
from certctrl.store.layout import ConfigDir
from certctrl.store.state.files import RESYNC, StateFiles
from certctrl.store.state.reservation import Reservation
from certctrl.store.state.retries import has_failed

DONE_LIMIT = 10_000
_KEY_SIZE = 32
_FORGET = "remove it; the plane then never receives its outcomes, and repeated signals are handled again"
_FEATURES = "remove it; the next token refresh writes it again"
_RESTORE = "restore it from a backup, or run cert-ctrl -c DIR register"


@lean.frozen(kw_only=True)
class _Features:
    """The features that the plane announced with a session."""

    session: str = ""
    features: tuple[Any, ...] = ()
    """Only valid names count."""


class SessionState:
    """Cursor, identity, tokens and signals of one device. Methods block on the disk and raise DiskError."""

    _keys: tuple[list[tuple[int, int, int]], DeviceKeys] | None = None
    """The device's keys and the versions of the files they were read from."""
    _rows: Mapping[int, tuple[InboxEntry, str]] = {}
    """Entries of the last save by id(), with their JSON."""

    def __init__(self, layout: ConfigDir, fs: Fs) -> None:
        self.layout = layout
        self._fs = fs
        self._files = StateFiles(fs)

    # --- polling ------------------------------------------------------------------------------------------

    def load_cursor(self) -> str | None:
        """Return the committed cursor."""
        cursor = self._files.load_text(self.layout.last_cursor, RESYNC)
        if cursor is not None:
            self._files.note_read(self.layout.last_cursor, cursor.encode())
        return cursor

    def save_cursor(self, cursor: str) -> None:
        """Commit a cursor whose signals are durable; nothing is written if it is unchanged.

        Costs one fsync, of the bytes: after a power cut the file has the old cursor or the new one. Raises
        BadAnswerError for a cursor that does not fit into a header.
        """
        self._files.save_text(self.layout.last_cursor, cursor, "cursor", sync_parent=False)

    def clear_cursor(self) -> None:
        """Remove the cursor (409)."""
        remove_file(self._fs, self.layout.last_cursor)

    def save_last_poll(self, now: float) -> None:
        """Save the time of a successful poll (whole seconds, as in the spec), without fsync."""
        write_atomic(self._fs, self.layout.last_poll_time, b"%d\n" % int(now), durable=False)

    def load_known_plane(self) -> KnownPlane | None:
        """Return the plane whose signals this host follows."""
        path, fix = self.layout.known_plane, "remove it; the agent then treats the current plane as the known one"
        found: KnownPlane | None = self._files.load_part(path, "plane", KnownPlane, None, fix)
        return found

    def save_known_plane(self, plane: KnownPlane) -> None:
        """Replace the known plane."""
        self._files.save_json(self.layout.known_plane, {"plane": self._files.unstructured(plane)})

    def load_recommended(self) -> Recommended | None:
        """Return the settings that the plane recommended at the last registration."""
        path, fix = self.layout.recommended, "remove it; the next registration writes it again"
        found: Recommended | None = self._files.load_part(path, "recommended", Recommended | None, None, fix)
        return found

    def save_recommended(self, recommended: Recommended | None) -> None:
        """Replace the recommended settings; None: there are none."""
        if recommended is None:
            remove_file(self._fs, self.layout.recommended)
        else:
            self._files.save_json(self.layout.recommended, {"recommended": self._files.unstructured(recommended)})

    # --- identity -----------------------------------------------------------------------------------------

    def load_device_id(self) -> str | None:
        """Return the device's public id."""
        return self._files.load_text(self.layout.device_id, _RESTORE)

    def save_device_id(self, device_id: str) -> None:
        """Save the device's public id."""
        self._files.save_text(self.layout.device_id, device_id, "device id")

    def load_device_keys(self) -> DeviceKeys | None:
        """Return the key pair; None before registration, even if its creation was interrupted.

        Cached while the files are unchanged.
        """
        versions = [
            self._files.version_of(path) for path in (self.layout.device_secret_key, self.layout.device_public_key)
        ]
        if self._keys is not None and self._keys[0] == versions:
            return self._keys[1]
        keys = self._read_device_keys()
        self._keys = None if keys is None else (versions, keys)
        return keys

    @property
    def last_device_keys(self) -> DeviceKeys | None:
        """The key pair as `load_device_keys` returned it last; it may have been replaced since."""
        return None if self._keys is None else self._keys[1]

    def _read_device_keys(self) -> DeviceKeys | None:
        secret = self._load_key(self.layout.device_secret_key)
        public = self._load_key(self.layout.device_public_key)
        if secret is not None and public is not None:
            return DeviceKeys(public=public, secret=secret)
        if public is None and self._fs.lstat(self.layout.refresh_token) is None:
            return None  # only the secret was saved: the public half was never sent
        missing = self.layout.device_secret_key if secret is None else self.layout.device_public_key
        raise StateCorruptError(f"{missing} is missing, but this device has used it", path=str(missing), fix=_RESTORE)

    def save_device_keys(self, keys: DeviceKeys) -> None:
        """Save the key pair; the secret is durable before the public half exists."""
        write_atomic(self._fs, self.layout.device_secret_key, keys.secret)
        write_atomic(self._fs, self.layout.device_public_key, keys.public)

    def load_device_secret(self) -> bytes | None:
        """Return the secret key, even if the public half is missing or damaged."""
        return self._load_key(self.layout.device_secret_key)

    def load_next_identity(self) -> tuple[str | None, bytes | None]:
        """Return device id and secret key of a registration that has not succeeded yet; unusable ones are None."""
        try:
            device_id = self._files.load_text(self.layout.next_device_id, _RESTORE)
        except StateCorruptError:
            device_id = None
        try:
            secret = self._load_key(self.layout.next_secret_key)
        except StateCorruptError:
            secret = None
        return device_id, secret

    def save_next_identity(self, device_id: str | None, secret: bytes | None) -> None:
        """Save the id and key that a registration will use in place of missing or damaged ones."""
        if device_id is not None:
            self._files.save_text(self.layout.next_device_id, device_id, "device id")
        if secret is not None:
            write_atomic(self._fs, self.layout.next_secret_key, secret)

    def adopt_identity(self, device_id: str | None, keys: DeviceKeys | None) -> None:
        """Replace id or keys by those that a registration has used; None: unchanged."""
        if device_id is not None:
            self.save_device_id(device_id)
        if keys is not None:
            self.save_device_keys(keys)
        for path in (self.layout.next_device_id, self.layout.next_secret_key):
            remove_file(self._fs, path)

    def has_rotated_secret(self) -> bool:
        """Return whether a rotation of the device's key has begun."""
        return self._fs.lstat(self.layout.rotated_secret_key) is not None

    def load_rotated_secret(self) -> bytes | None:
        """Return the secret key that the plane may have already, in place of the present one; None if unusable."""
        try:
            return self._load_key(self.layout.rotated_secret_key)
        except StateCorruptError:
            return None

    def save_rotated_secret(self, secret: bytes | None) -> None:
        """Save the secret key that the plane is about to get; None: remove it."""
        if secret is None:
            remove_file(self._fs, self.layout.rotated_secret_key)
        else:
            write_atomic(self._fs, self.layout.rotated_secret_key, secret)

    def _load_key(self, path: Path) -> bytes | None:
        data = self._files.load_bytes(path, _KEY_SIZE, _RESTORE)
        if data is not None and (len(data) != _KEY_SIZE or not any(data)):
            raise decode.corrupt(str(path), f"expected a key of {_KEY_SIZE} bytes", _RESTORE)
        return data

    def load_tokens(self) -> Tokens | None:
        """Return the tokens; None before registration. ``access_token`` is empty if only it is missing."""
        refresh = self._files.load_text(self.layout.refresh_token, _RESTORE)
        access = self._files.load_text(self.layout.access_token, "remove it; the agent requests a new one")
        if refresh is not None:
            return Tokens(access_token=access or "", refresh_token=refresh, features=self._features_with(refresh))
        if access is None:
            return None
        path = str(self.layout.refresh_token)
        raise StateCorruptError(f"{path} is missing, but there is an access token", path=path, fix=_RESTORE)

    def save_tokens(self, tokens: Tokens) -> None:
        """Save the tokens; the refresh token is durable before the access token that came with it."""
        self._files.save_text(self.layout.refresh_token, tokens.refresh_token, "refresh token")
        self._files.save_text(self.layout.access_token, tokens.access_token, "access token")
        self._save_features(tokens)

    def _features_with(self, refresh_token: str) -> frozenset[str]:
        """Return the features announced with a session; none if the file is of another session, or unusable."""
        path = self.layout.plane_features
        try:
            body = self._files.load_json(path, _FEATURES)
            found: _Features = self._files.structured(_Features, body or {}, "", path, _FEATURES)
        except DiskError:
            return frozenset()
        return feature_names(list(found.features)) if found.session == _session_name(refresh_token) else frozenset()

    def _save_features(self, tokens: Tokens) -> None:
        """Save the features that came with the tokens; a failure only makes them unknown after a restart."""
        if tokens.features != self._features_with(tokens.refresh_token):
            known = _Features(session=_session_name(tokens.refresh_token), features=tuple(sorted(tokens.features)))
            with suppress(DiskError):
                self._files.save_json(self.layout.plane_features, self._files.unstructured(known))

    def reserve_tokens(self, size: int = 16_384) -> Reservation:
        """Reserve disk space for new tokens. Raises DiskError if there is none; do not refresh then."""
        return Reservation(self._fs, self.layout, size, self.save_tokens, self._save_features)

    # --- challenges ---------------------------------------------------------------------------------------

    def load_challenges(self) -> tuple[Challenge, ...]:
        """Return the challenges that this host has been answering, oldest first."""
        path, fix = self.layout.challenges, "remove it, and files that are left in acme.http01_directory"
        found: tuple[Challenge, ...] = self._files.load_part(path, "challenges", tuple[Challenge, ...], (), fix)
        return found

    def save_challenges(self, challenges: Sequence[Challenge]) -> None:
        """Replace the challenges."""
        self._files.save_json(self.layout.challenges, {"challenges": self._files.unstructured([*challenges])})

    # --- signals ------------------------------------------------------------------------------------------

    def load_inbox(self) -> tuple[InboxEntry, ...]:
        """Return the pending signals, oldest first; failed ones of an earlier release are retries instead."""
        path, fix = self.layout.inbox, f"remove it and {self.layout.last_cursor}; the agent then reconciles everything"
        rows = self._files.load_part(path, "entries", tuple[dict[str, Any], ...], (), fix)
        pending = [row for row in rows if not has_failed(row)]
        entries: tuple[InboxEntry, ...] = self._files.structured(tuple[InboxEntry, ...], pending, "entries", path, fix)
        return entries

    def save_inbox(self, entries: Sequence[InboxEntry]) -> None:
        """Replace the inbox."""
        self._files.save(self.layout.inbox, self._inbox(entries))

    def _inbox(self, entries: Sequence[InboxEntry]) -> bytes:
        known = self._rows  # a burst saves most entries unchanged many times
        self._rows = {id(entry): known.get(id(entry)) or (entry, self._row(entry)) for entry in entries}
        return decode.to_json_of_rows("entries", [row for _, row in self._rows.values()])

    def _row(self, entry: InboxEntry) -> str:
        return json.dumps(self._files.unstructured(entry), separators=(",", ":"), allow_nan=False)

    def load_outcomes(self) -> tuple[tuple[Ack, ...], tuple[str, ...]]:
        """Return the outcomes that the plane has not acknowledged, and the identities of completed signals.

        Both are oldest first and in one file: losing only one of them in a power cut would lose an outcome forever or
        handle a signal twice.
        """
        path, fix = self.layout.pending_acks, _FORGET
        body = self._files.load_json(path, fix) or {"acks": [], "done": []}
        events = self._files.structured(tuple[dict[str, Any], ...], body.get("acks"), "acks", path, fix)
        done = self._files.structured(tuple[str, ...], body.get("done"), "done", path, fix)
        return tuple(Ack(event=event) for event in events), done

    def save_outcomes(self, acks: Sequence[Ack], done: Sequence[str], *, sync_parent: bool = True) -> None:
        """Replace outcomes and identities; only the newest 10 000 identities are kept.

        Without ``sync_parent`` the file may fall back to the previous one: safe if only acks were removed.
        """
        body = {"acks": [ack.event for ack in acks], "done": list(done[-DONE_LIMIT:])}
        self._files.save_json(self.layout.pending_acks, body, sync_parent=sync_parent)

    def save_progress(self, acks: Sequence[Ack], done: Sequence[str], entries: Sequence[InboxEntry]) -> None:
        """Replace both files with at most three fsyncs; no signal leaves the inbox before its outcome is durable.

        The inbox may fall back to the previous one, whose additional signals are known to be completed.
        """
        self.save_outcomes(acks, done)
        self._files.save(self.layout.inbox, self._inbox(entries), sync_parent=False)


def _session_name(refresh_token: str) -> str:
    """Return a name of a session that does not reveal its token."""
    return hashlib.sha256(refresh_token.encode()).hexdigest()[:32]
