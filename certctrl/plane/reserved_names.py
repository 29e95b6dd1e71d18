"""ReservedNames: the names and addresses of the planes of a database, for which no issuer may issue.

Each plane stores its own names, since the planes of a fleet may have different ones. Those of a plane that no longer runs
stay reserved for ``KEPT_SECONDS``: it may only be down, and agents still connect to its name.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection

from certctrl.plane.ca.domains import collides
from certctrl.plane.errors import conflict
from certctrl.plane.planes import RUNNING_SECONDS
from certctrl.plane.settings import DAY
from certctrl.plane.storage.database import Database

KEPT_SECONDS = 7.0 * DAY
"""Seconds for which the names of a plane stay reserved after it was last seen."""
MAX_NAMES = 200
"""Names of one plane: those that it is given, and those of its operator's certificate."""
_GUARD = 0x6E616D65  # "name"
"""Held by units of work that reserve a new name, alone, and by those that store a certificate, together."""

log = logging.getLogger("certctrl.Plane")


class ReservedNames:
    """Canonical names; a certificate for one of them could impersonate a plane. Methods run in units of work."""

    def __init__(self, database: Database, plane: str, wall_now: Callable[[], float]) -> None:
        """``plane`` is the name of this plane in the table of planes."""
        self._db = database
        self._plane = plane
        self._wall_now = wall_now
        self._own: tuple[str, ...] = ()

    def set(self, names: Collection[str]) -> None:
        """Replace the names of this plane, also in the database, unless it is read-only."""
        former, given = self._own, tuple(dict.fromkeys(names))
        self._own = given[:MAX_NAMES]
        if len(given) > MAX_NAMES:
            log.warning(
                "the control plane has %d names, of which %d are reserved; certificates may be issued for the others, such as"
                " %s: use a TLS certificate with fewer names",
                *(len(given), MAX_NAMES, given[MAX_NAMES]),
            )
        self.note()
        for name in {*former} - {*self._own} if not self._db.is_read_only() else ():
            self._db.run("DELETE FROM plane_names WHERE plane = ? AND name = ?", self._plane, name)

    def note(self) -> None:
        """Record that the names of this plane are in use, and delete its former ones.

        Those of another plane of the same name, as two hosts of the same name have, are in use, and stay.
        """
        if not self._own or self._db.is_read_only():
            return
        now = self._wall_now()
        stored = self._db.all("SELECT name, seen_at FROM plane_names WHERE plane = ?", self._plane)
        if {*self._own} - {row["name"] for row in stored}:
            self._db.guard(_GUARD, alone=True)
        unused = {row["name"] for row in stored if abs(now - row["seen_at"]) >= RUNNING_SECONDS}
        for name in unused - {*self._own}:
            self._db.run("DELETE FROM plane_names WHERE plane = ? AND name = ?", self._plane, name)
        for name in self._own:
            self._db.run(
                "INSERT INTO plane_names (plane, name, seen_at) VALUES (?, ?, ?)"
                " ON CONFLICT (plane, name) DO UPDATE SET seen_at = excluded.seen_at",
                *(self._plane, name, now),
            )

    def delete_expired(self) -> None:
        """Delete the names of planes that ended long ago."""
        self._db.run("DELETE FROM plane_names WHERE seen_at < ?", self._wall_now() - KEPT_SECONDS)

    def all(self) -> tuple[str, ...]:
        """Return the names of all planes."""
        rows = self._db.all("SELECT DISTINCT name FROM plane_names")
        return (*{*self._own, *(row["name"] for row in rows)},)

    def refuse(self, names: Collection[str]) -> None:
        """Raise ErrorResponse 409 for names that would make a certificate valid for a reserved one."""
        refuse_reserved(names, self.all())

    def refuse_to_store(self, names: Collection[str]) -> None:
        """Refuse names as ``refuse``; from now on no plane reserves one of them before this unit of work ends."""
        self._db.guard(_GUARD, alone=False)
        self.refuse(names)


def taken(names: Collection[str], reserved: Collection[str]) -> list[str]:
    """Return the names that would make a certificate valid for a reserved one."""
    return [name for name in names if any(collides(name, one) for one in reserved)]


def refuse_reserved(names: Collection[str], reserved: Collection[str]) -> None:
    """Raise ErrorResponse 409 for names that would make a certificate valid for a reserved one."""
    found = taken(names, reserved)
    if found:
        what = f"{found[0]} is, or covers, a name of this control plane, which has its certificate from another CA"
        raise conflict(what, "NAME_RESERVED", names=found)
