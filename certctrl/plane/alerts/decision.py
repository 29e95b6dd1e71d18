"""Which messages are due to one channel about one group of conditions. Pure.

A group is open from its first message until the message that everything in it is over. While it is open, new
conditions are told together, with a pause between two messages.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import attrs

from certctrl import lean
from certctrl.plane.alerts.conditions import Condition

NAMES_KEPT = 20
"""Names of told conditions that a group keeps for the message about its end."""
LONGEST_WAITS = 5.0
"""While conditions are still being added, the first message waits for at most so many times ``wait_seconds``."""


class MessageKind(StrEnum):
    """What a message says about its group."""

    FIRING = "firing"
    """Conditions are new, in a group that was not open or in one that is."""
    REMINDER = "reminder"
    """Conditions that were told are still present."""
    RESOLVED = "resolved"
    """All that was told is over."""
    TEST = "test"
    """An operator tests the channel."""


@lean.frozen(kw_only=True)
class Rules:
    """When messages of a channel are due; in seconds."""

    wait_seconds: float = 60.0
    """The first message waits until no condition was added for so long."""
    interval_seconds: float = 600.0
    """Pause between two messages about one group; one about its end needs none."""
    repeat_seconds: float = 86_400.0
    """A group that is still open is told again after so long; 0: never."""


@lean.frozen
class Member:
    """A present condition of a group."""

    seen_at: float
    is_told: bool = False


@lean.frozen(kw_only=True)
class GroupState:
    """The state of one group at one channel."""

    is_open: bool = False
    sent_at: float | None = None
    members: Mapping[str, Member] = attrs.field(factory=dict)
    event: str = ""
    cause: str = ""
    fix: str = ""
    is_critical: bool = False
    names: tuple[str, ...] = ()
    """Names that were told since the group is open, the first ones."""
    total: int = 0
    """Conditions that were told since the group is open."""


@lean.frozen(kw_only=True)
class Decision:
    """The next state of a group, None if it can be forgotten, and the message that is due, if any."""

    state: GroupState | None
    kind: MessageKind | None = None
    new: frozenset[str] = frozenset()
    """Keys of the conditions that the message tells for the first time."""


def decide(
    state: GroupState, present: Mapping[str, Condition], rules: Rules, now: float, *, is_quiet: bool
) -> Decision:
    """Return what is due about a group whose conditions ``present`` are all that exist now.

    In quiet hours only messages with new critical conditions are due; the others follow when they end. Times in the future
    are from a clock that was ahead, and count as now.
    """
    state = _followed(state, present, now)
    kind, new = _due(state, present, rules, now, is_quiet=is_quiet), frozenset[str]()
    if kind is MessageKind.FIRING:
        new = frozenset(key for key, member in state.members.items() if not member.is_told)
        state = _told(state, present, now)
    elif kind is MessageKind.RESOLVED:
        return Decision(state=attrs.evolve(state, is_open=False, sent_at=now), kind=kind)
    elif kind is MessageKind.REMINDER:
        state = attrs.evolve(state, sent_at=now)
    is_idle = not state.is_open and not state.members
    is_over = is_idle and (state.sent_at is None or now >= state.sent_at + rules.interval_seconds)
    return Decision(state=None if is_over else state, kind=kind, new=new)


def _followed(state: GroupState, present: Mapping[str, Condition], now: float) -> GroupState:
    """Return the state without conditions that are over, and with the new ones."""
    known = state.members
    members = {}
    for key in present:
        former = known.get(key)
        members[key] = Member(now) if former is None else Member(min(former.seen_at, now), former.is_told)
    sent_at = None if state.sent_at is None else min(state.sent_at, now)
    return attrs.evolve(state, members=members, sent_at=sent_at)


def _due(
    state: GroupState, present: Mapping[str, Condition], rules: Rules, now: float, *, is_quiet: bool
) -> MessageKind | None:
    untold = [key for key, member in state.members.items() if not member.is_told]
    counting = [key for key in untold if present[key].is_critical] if is_quiet else untold
    if is_quiet and not counting:
        return None
    if counting:
        seen = [state.members[key].seen_at for key in counting]
        settled = min(max(seen) + rules.wait_seconds, min(seen) + LONGEST_WAITS * rules.wait_seconds)
        paused = 0.0 if state.sent_at is None else state.sent_at + rules.interval_seconds
        return MessageKind.FIRING if now >= max(settled, paused) else None
    if not state.is_open:
        return None
    if not state.members:
        return MessageKind.RESOLVED
    again = rules.repeat_seconds and state.sent_at is not None and now >= state.sent_at + rules.repeat_seconds
    return MessageKind.REMINDER if again else None


def _told(state: GroupState, present: Mapping[str, Condition], now: float) -> GroupState:
    """Return the state after a message that tells all conditions."""
    new = [present[key] for key, member in state.members.items() if not member.is_told]
    names, total = (state.names, state.total) if state.is_open else ((), 0)
    worst = next((one for one in new if one.is_critical), new[0])
    return attrs.evolve(
        state,
        is_open=any(one.has_end for one in present.values()),
        sent_at=now,
        members={key: attrs.evolve(member, is_told=True) for key, member in state.members.items()},
        event=worst.event.value,
        cause=worst.cause,
        fix=worst.fix,
        is_critical=worst.is_critical or (state.is_open and state.is_critical),
        names=(*names, *(one.name for one in new))[:NAMES_KEPT],
        total=total + len(new),
    )


def to_json(state: GroupState) -> dict[str, Any]:
    """Return the JSON object of a state."""
    found = attrs.asdict(state, recurse=False)
    return found | {
        "names": list(state.names),
        "members": {key: [member.seen_at, member.is_told] for key, member in state.members.items()},
    }


def from_json(value: Mapping[str, Any]) -> GroupState:
    """Return the state of its JSON object; fields of a later release are ignored."""
    known = {field.name for field in attrs.fields(GroupState)}
    fields = {name: found for name, found in value.items() if name in known}
    members = {key: Member(*found[:2]) for key, found in value.get("members", {}).items()}
    return GroupState(**fields | {"members": members, "names": tuple(value.get("names", ()))})
