"""Anchor: the CA of the plane's own TLS certificate, which agents pin, and the devices that trust it.

A plane of version 0.1 used one CA for everything: the holder of a certificate for a wildcard or a loopback address
could impersonate it. Now its own certificate has a separate CA. An older plane keeps serving the shared CA, hands the
new anchor to its agents, and switches when an operator says so.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from functools import partial
from typing import Any

from certctrl.model.offload import Offload
from certctrl.plane.ca.issuer import PLANE_TLS, BuiltinCa
from certctrl.plane.clock import when
from certctrl.plane.errors import conflict
from certctrl.plane.storage.database import Database
from certctrl.plane.storage.keyring import Keyring

_SETTING, _SHARED = "tls_ca", "shared"


class Anchor:
    """The CA of the plane's TLS certificate, and the devices that have confirmed it."""

    def __init__(
        self,
        database: Database,
        keyring: Keyring,
        wall_now: Callable[[], float],
        offload: Offload,
        shared: BuiltinCa,
    ) -> None:
        """``shared`` also issues the certificates of devices; an older plane serves it until the switch."""
        self._db = database
        self._keyring = keyring
        self._wall_now = wall_now
        self._offload = offload
        self._shared = shared
        self._own: BuiltinCa | None = None
        self.switched = database.setting(_SETTING) != _SHARED
        """Whether the plane serves its own CA."""
        self.on_switch: Callable[[], Awaitable[object]] | None = None
        """Replaces certificate and files of a plane that is being served."""

    @property
    def own(self) -> BuiltinCa:
        """The CA that issues only the plane's TLS certificate; cached only after the commit, so that it is stored."""
        if self._own is not None:
            return self._own
        own = BuiltinCa(self._db, self._keyring, self._wall_now, self._offload, PLANE_TLS)
        self._db.after_commit(partial(self._keep, own))
        return own

    def _keep(self, own: BuiltinCa) -> None:
        self._own = self._own or own

    @property
    def ca(self) -> BuiltinCa:
        """The CA of the certificate that the plane serves."""
        return self.own if self.switched else self._shared

    def offer(self) -> dict[str, str]:
        """Return the part of a refresh answer that announces the anchor; empty after the switch."""
        return {} if self.switched else {"plane_anchor_pem": self.own.root_pem}

    def note(self, device_id: int, fingerprints: Collection[str]) -> None:
        """Record whether a device trusts the anchor, from its refresh request."""
        if not self.switched:
            mine = self.own.root_fingerprint
            confirmed = mine if mine in fingerprints else ""
            sql = "UPDATE devices SET anchor_sha256 = ? WHERE id = ? AND anchor_sha256 != ?"
            self._db.run(sql, confirmed, device_id, confirmed)

    def unconfirmed(self) -> list[dict[str, Any]]:
        """Return the active devices, of all users, that could not connect after a switch."""
        if self.switched:
            return []
        rows = self._db.all(
            "SELECT * FROM devices WHERE status = 'active' AND anchor_sha256 != ? ORDER BY id",
            self.own.root_fingerprint,
        )
        names = ("id", "user_id", "name", "app_version")
        return [{name: row[name] for name in names} | {"last_seen_at": when(row["last_seen_at"])} for row in rows]

    def show(self) -> dict[str, Any]:
        """Return the state as operators see it."""
        return {
            "switched": self.switched,
            "anchor_sha256": self.own.root_fingerprint,
            "anchor_pem": self.own.root_pem,
            "unconfirmed_devices": self.unconfirmed(),
        }

    async def switch(self, *, force: bool) -> dict[str, Any]:
        """Switch to a certificate of the plane's own CA.

        Return the state, with the devices that can no longer connect.
        ErrorResponse 409 with ``devices`` if some have not confirmed the anchor, unless ``force``.
        """
        lost = await self._db.work_long(self._switch, force)
        await self._serve_own()
        return await self._db.work_long(self.show) | {"lost_devices": lost}

    async def follow_switch(self) -> None:
        """Switch if another plane of the database has."""
        if not self.switched and await self._db.work(self._is_stored):
            await self._serve_own()

    def _is_stored(self) -> bool:
        """Return whether the switch is stored, and load the CA, which is used outside of units of work afterwards."""
        return self._db.setting(_SETTING) != _SHARED and bool(self.own.root_pem)

    async def _serve_own(self) -> None:
        self.switched = True
        if self.on_switch is not None:
            await self.on_switch()

    def _switch(self, force: bool) -> list[dict[str, Any]]:
        """Store the switch; return the devices that can no longer connect."""
        lost = self.unconfirmed()
        if lost and not force:
            what = f"{len(lost)} active devices have not confirmed the new anchor and could no longer connect"
            raise conflict(what, "ANCHOR_UNCONFIRMED", devices=lost)
        self._db.run("DELETE FROM settings WHERE name = ?", _SETTING)
        return lost
