"""Leaf and Look: what an endpoint serves."""

from __future__ import annotations

from certctrl import lean
from certctrl.errors import ProbeFault


@lean.frozen(kw_only=True)
class Leaf:
    """A certificate that an endpoint serves."""

    fingerprint: str
    """SHA-256, lower-case hex."""
    serial: str = ""
    """As in `CertFacts`; empty: unreadable."""
    not_after: float = 0.0
    """Seconds since the epoch; 0: unreadable."""


@lean.frozen(kw_only=True)
class Look:
    """What an endpoint served at one moment."""

    right: frozenset[str] = frozenset()
    """The wanted leaves, by fingerprint, if all is right."""
    wrong: Leaf | None = None
    """Another leaf in the place of a wanted one."""
    fault: ProbeFault | None = None
    """What is wrong; None: nothing."""
