"""Roles of operators, and the caller of a request."""

from __future__ import annotations

from enum import StrEnum
from typing import Self

from certctrl import lean
from certctrl.plane.errors import ErrorResponse, forbidden

PLANE = "plane"
"""The name under which the plane itself acts."""
BY_KEY = "operator key"
"""The name under which the holder of the operator key acts."""


class Role(StrEnum):
    """What an operator may do, the least first."""

    VIEWER = "viewer"
    """Read everything except secrets."""
    OPERATOR = "operator"
    """Also change devices, certificates and orders."""
    ADMIN = "admin"
    """Also change issuers, CAs, users, operators and tokens."""

    def lesser(self, other: Role) -> Role:
        """Return the one of two roles that may do less."""
        return other if self.includes(other) else self

    def includes(self, least: Role) -> bool:
        """Return whether this role may do what ``least`` may."""
        order = tuple(Role)
        return order.index(self) >= order.index(least)


@lean.frozen(kw_only=True)
class Caller:
    """Who acts, and from where."""

    who: str
    """Name of the operator, or `BY_KEY`."""
    role: Role
    via: str = ""
    """What authenticated the operator, such as ``token ci``."""
    address: str = ""
    tags: tuple[str, ...] = ()
    """The scope of the token: only devices that carry all of these, and nothing of the whole fleet; empty: everything."""

    @classmethod
    def of_plane(cls, via: str = "") -> Self:
        """Return the plane itself, as the caller of what it does without a request; ``via`` names its reason."""
        return cls(who=PLANE, role=Role.ADMIN, via=via)

    def require(self, least: Role) -> None:
        """Raise ErrorResponse 403 with the role that is needed, unless the caller has it."""
        if not self.role.includes(least):
            raise role_required(self, least)


def role_required(caller: Caller, least: Role) -> ErrorResponse:
    """Return 403 with the role that a request needs."""
    via = f" by {caller.via}" if caller.via else ""
    error = forbidden(f"This needs the role {least}; {caller.who} has the role {caller.role}{via}", "ROLE_REQUIRED")
    error.params |= {"role": str(least), "has": str(caller.role)}
    return error
