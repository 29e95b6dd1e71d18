"""Units: copies that are written together or not at all, and which of them may fail. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs

from certctrl.install.plan.dependencies import levels
from certctrl.install.plan.refusals import is_whole
from certctrl.model.plan import CopyAction, InstallItem


@attrs.frozen
class Unit:
    """What one copy item is written with."""

    name: str
    tolerant: bool


def units_of(items: Sequence[InstallItem], about: Mapping[str, tuple[int, ...]]) -> dict[str, Unit]:
    """Return copy item id -> its unit; ``about``: item id -> certificates.

    An item that holds a pair is a unit by itself. The others of a certificate are one: a key here may belong to a
    certificate there. A unit may fail when each item of it says ``continue_on_error`` and all stand at one level:
    between two levels commands run, and half of it could not be taken back quietly.
    """
    members: dict[str, list[CopyAction]] = {}
    for item in items:
        if isinstance(item, CopyAction):
            certs = about[item.id]
            name = f"item:{item.id}" if is_whole(item) or not certs else f"cert:{certs[0]}"
            members.setdefault(name, []).append(item)
    may_fail = {name for name, unit in members.items() if all(item.continue_on_error for item in unit)}
    level_of = dict[str, int]()
    if any(len(members[name]) > 1 for name in may_fail):
        level_of = {one: n for n, level in enumerate(levels(items)) for group in level for one in group}
    found: dict[str, Unit] = {}
    for name, unit in members.items():
        tolerant = name in may_fail and len({level_of.get(item.id) for item in unit}) == 1
        found |= {item.id: Unit(name, tolerant) for item in unit}
    return found
