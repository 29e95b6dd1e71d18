"""What is wrong now, as pages show it: the present conditions by group, the worst first. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from certctrl.plane.alerts.conditions import OF_PLANE, Condition, Event
from certctrl.plane.clock import rfc3339
from certctrl.plane.health.problems import Problem

LISTED = 20
"""Conditions of a group that are listed."""
CRITICAL, WARNING = "critical", "warning"


def groups_of(conditions: Iterable[Condition]) -> list[dict[str, Any]]:
    """Return the groups of conditions that last: the critical first, then the largest, then the oldest.

    What only happens, such as a revocation, is not among them.
    """
    groups: dict[str, list[Condition]] = {}
    for one in conditions:
        if one.has_end:
            groups.setdefault(one.group, []).append(one)
    shown = [_shown(name, members) for name, members in groups.items()]
    return sorted(shown, key=lambda row: (row["severity"] != CRITICAL, -row["count"], row["since"], row["group"]))


def of_problems(problems: Iterable[Problem]) -> list[Condition]:
    """Return the problems of one plane as conditions: without channels, planes do not store theirs."""
    return [
        Condition(
            event=Event.PLANE_PROBLEM,
            group=f"{Event.PLANE_PROBLEM}.{problem.name}",
            key=problem.name,
            name=problem.name,
            cause=problem.name.summary,
            what=problem.what,
            fix="cert-ctrl plane status",
            since=problem.since,
        )
        for problem in problems
        if problem.name in OF_PLANE
    ]


def _shown(group: str, members: Sequence[Condition]) -> dict[str, Any]:
    first = members[0]
    listed = [
        {"key": one.key, "name": one.name, "what": one.what, "since": rfc3339(one.since), "user_id": one.user_id}
        for one in members[:LISTED]
    ]
    return {
        "group": group,
        "event": str(first.event),
        "severity": CRITICAL if any(one.is_critical for one in members) else WARNING,
        "cause": first.cause,
        "fix": first.fix,
        "since": rfc3339(min(one.since for one in members)),
        "count": len(members),
        "conditions": listed,
        "more": len(members) - len(listed),
    }
