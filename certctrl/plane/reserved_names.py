"""ReservedNames: the names and addresses of the plane itself, for which no issuer may issue."""

from __future__ import annotations

from collections.abc import Collection

from certctrl.plane.ca.domains import collides
from certctrl.plane.errors import conflict


class ReservedNames:
    """Canonical names; a certificate for one of them could impersonate the plane."""

    def __init__(self) -> None:
        self._names: tuple[str, ...] = ()

    def set(self, names: Collection[str]) -> None:
        """Replace the names."""
        self._names = tuple(names)

    def taken(self, names: Collection[str]) -> list[str]:
        """Return the names that would make a certificate valid for a reserved one."""
        return [name for name in names if any(collides(name, reserved) for reserved in self._names)]

    def refuse(self, names: Collection[str]) -> None:
        """Raise ErrorResponse 409 for names that would make a certificate valid for a reserved one."""
        taken = self.taken(names)
        if taken:
            what = f"{taken[0]} is, or covers, a name of this control plane, which has its certificate from another CA"
            raise conflict(what, "NAME_RESERVED", names=taken)
