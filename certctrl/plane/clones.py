"""Detect two live agents that share one device, as a cloned disk or directory causes.

Each agent process polls under a new random name. A restart moves from one name to the next and never returns to an
earlier one; two live agents alternate.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import attrs

from certctrl import lean

WINDOW_SECONDS = 900.0
"""How long a name is remembered, and how long a suspicion lasts."""
_MAX_NAMES = 8
"""Names remembered per device; more within the window mean a restart loop, so the oldest are dropped."""


@lean.define
class _Names:
    last_polls: dict[str, float] = attrs.field(factory=dict)
    """Name -> time of its last poll; the most recent is last."""
    alternated_at: float | None = None


class CloneDetector:
    """Remember which agents poll for each device; in memory, for ``WINDOW_SECONDS``."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._now = monotonic
        self._devices: dict[int, _Names] = {}
        self._lock = threading.Lock()
        """Units of work note polls in threads."""

    def note(self, device_id: int, instance: str) -> bool:
        """Note a poll and return whether clones are suspected; an empty name (an older agent) is not counted."""
        if instance:
            with self._lock:
                self._note(self._devices.setdefault(device_id, _Names()), instance, self._now())
        return self.suspected(device_id)

    def _note(self, names: _Names, instance: str, now: float) -> None:
        names.last_polls = {name: at for name, at in names.last_polls.items() if now - at < WINDOW_SECONDS}
        if instance in names.last_polls and instance != next(reversed(names.last_polls)):
            names.alternated_at = now
        names.last_polls.pop(instance, None)
        names.last_polls[instance] = now
        if len(names.last_polls) > _MAX_NAMES:
            del names.last_polls[next(iter(names.last_polls))]

    def suspected(self, device_id: int) -> bool:
        """Return whether several agents polled for this device within the window."""
        names = self._devices.get(device_id)
        if names is None or names.alternated_at is None:
            return False
        return self._now() - names.alternated_at < WINDOW_SECONDS

    def forget(self, device_id: int) -> None:
        """Forget a device: registering it again ends the sessions of all its clones."""
        self._devices.pop(device_id, None)
