"""Priorities: the classes in which an agent handles signals."""

from __future__ import annotations

from enum import StrEnum


class Priority(StrEnum):
    """The class of a signal, the most urgent first."""

    REVOCATION = "revocation"
    """A certificate must be withdrawn, or replaces a revoked one."""
    EXPIRING = "expiring"
    """Work with a deadline: a certificate near its end, a key that an order waits for, a challenge."""
    RENEWAL = "renewal"
    CONFIG = "config"
    """The install config, CAs, and requests for a comparison."""


_BY_TYPE = {
    "cert.revoked": Priority.REVOCATION,
    "cert.unassigned": Priority.REVOCATION,
    "cert.csr_wanted": Priority.EXPIRING,
    "acme.http01.start": Priority.EXPIRING,
    "acme.http01.stop": Priority.EXPIRING,
    "acme.tls_alpn01.start": Priority.EXPIRING,
    "acme.tls_alpn01.stop": Priority.EXPIRING,
    "install.updated": Priority.CONFIG,
    "ca.assigned": Priority.CONFIG,
    "ca.unassigned": Priority.CONFIG,
    "state.resync_required": Priority.CONFIG,
}


def derived_priority(signal_type: str) -> Priority:
    """Return the class of a signal for which the control plane names none."""
    return _BY_TYPE.get(signal_type, Priority.RENEWAL)


def types_of(priority: Priority) -> tuple[str, ...]:
    """Return the types with this derived class; empty for `Priority.RENEWAL`, which has all other types."""
    return tuple(name for name, one in _BY_TYPE.items() if one is priority)


def priority_named(name: object) -> Priority | None:
    """Return the class with a name from the wire; None for any other value."""
    return _BY_NAME.get(name) if isinstance(name, str) else None


_BY_NAME = {one.value: one for one in Priority}
