"""Copies: notices two live agents that share one device, which is what a cloned disk or directory makes.

Each start of an agent names itself anew in its polls. A restart goes from one name to the next and never back; two
live agents take turns.
"""

from __future__ import annotations

from collections.abc import Callable

import attrs

WINDOW_SECONDS = 900.0
"""How long a name is remembered, and how long two of them count as two."""
_REMEMBERED = 8
"""Names of one device: more than that within the window is a restart loop, and the oldest are forgotten."""


@attrs.define
class _Names:
    seen: dict[str, float] = attrs.field(factory=dict)
    """Name -> when it polled last; the newest at the end."""
    copied_at: float | None = None


class Copies:
    """What is known of the agents behind each device; in memory, for a quarter of an hour."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._now = monotonic
        self._devices: dict[int, _Names] = {}

    def note(self, device_id: int, instance: str) -> bool:
        """Note who polls for a device; return whether more than one does. An empty name (an older agent) says nothing."""
        if instance:
            names, now = self._devices.setdefault(device_id, _Names()), self._now()
            names.seen = {name: at for name, at in names.seen.items() if now - at < WINDOW_SECONDS}
            if instance in names.seen and instance != next(reversed(names.seen)):
                names.copied_at = now
            names.seen.pop(instance, None)
            names.seen[instance] = now
            if len(names.seen) > _REMEMBERED:
                del names.seen[next(iter(names.seen))]
        return self.suspected(device_id)

    def suspected(self, device_id: int) -> bool:
        """Return whether more than one agent polled for this device within the last quarter of an hour."""
        names = self._devices.get(device_id)
        return names is not None and names.copied_at is not None and self._now() - names.copied_at < WINDOW_SECONDS

    def forget(self, device_id: int) -> None:
        """Forget a device: registering it again ends the sessions of all its copies."""
        self._devices.pop(device_id, None)
