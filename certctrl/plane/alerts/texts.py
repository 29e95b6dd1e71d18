"""Messages, and their forms: JSON, Slack, PagerDuty, mail. Pure.

A message is stored as a JSON object and takes its form when it is sent. Everything that devices or CAs have named is
one line without control characters.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from certctrl.plane.alerts.conditions import Condition, Event
from certctrl.plane.alerts.decision import GroupState, MessageKind
from certctrl.plane.clock import rfc3339
from certctrl.text import counted, one_line

LISTED = 20
"""Conditions that a message lists; it counts the others."""
_IN_TITLE = 3
_SLACK_LIMIT = 3500
_SUMMARY_LIMIT = 1000
VERSION = 1

Message = dict[str, Any]


def message(
    kind: MessageKind,
    group: str,
    state: GroupState,
    present: Mapping[str, Condition],
    *,
    new: Collection[str] = (),
    elsewhere: Collection[str] = (),
    now: float,
) -> Message:
    """Return the message about a group after `decide`; ``elsewhere``: names that have another cause now."""
    event = Event(state.event)
    if kind is MessageKind.RESOLVED:
        names, count = state.names, state.total
        listed: list[dict[str, Any]] = [{"name": name} for name in names]
    else:
        shown = sorted(present.values(), key=lambda one: (one.key not in new, not one.is_critical, one.since))
        names, count = tuple(one.name for one in shown), len(shown)
        listed = [_listed(one, is_new=one.key in new) for one in shown[:LISTED]]
    still = [name for name in names if name in elsewhere]
    return {
        "version": VERSION,
        "kind": kind.value,
        "event": event.value,
        "group": group,
        "severity": "critical" if state.is_critical else "warning",
        "title": _title(kind, event, names, count, still),
        "cause": state.cause,
        "fix": "" if kind is MessageKind.RESOLVED else state.fix,
        "count": count,
        "new": len(new),
        "conditions": listed,
        "more": max(count - len(listed), 0),
        "with_another_cause": still[:LISTED],
        "at": rfc3339(now),
    }


def test_message(channel: str, now: float) -> Message:
    """Return the message that tests a channel."""
    return {
        "version": VERSION,
        "kind": MessageKind.TEST.value,
        "event": "test",
        "group": "test",
        "severity": "info",
        "title": f"test of alert channel {channel}",
        "cause": "an operator tests this channel",
        "fix": "",
        "count": 0,
        "new": 0,
        "conditions": [],
        "more": 0,
        "with_another_cause": [],
        "at": rfc3339(now),
    }


def _listed(one: Condition, *, is_new: bool) -> dict[str, Any]:
    return {
        "key": one.key,
        "name": one.name,
        "what": one.what,
        "since": rfc3339(one.since),
        "user_id": one.user_id,
        "new": is_new,
    }


def _title(kind: MessageKind, event: Event, names: Sequence[str], count: int, still: Collection[str]) -> str:
    few = ", ".join(names[:_IN_TITLE]) + (", …" if count > _IN_TITLE else "")
    about = few if count <= 1 else f"{count} ({few})"
    start = {
        MessageKind.RESOLVED: "another cause now: " if still else "resolved: ",
        MessageKind.REMINDER: "still: ",
    }.get(kind, "")
    return one_line(f"{start}{event.words}: {about}", 200)


def lines_of(found: Message) -> list[str]:
    """Return the text of a message after its title."""
    lines = [f"cause: {found['cause']}"] if found["cause"] else []
    for one in found["conditions"]:
        lines.append(f"- {one.get('what') or one['name']}" + (f" (since {one['since']})" if "since" in one else ""))
    if found["more"]:
        lines.append(f"- and {found['more']} more")
    if found["with_another_cause"]:
        still = ", ".join(found["with_another_cause"])
        lines.append(f"not over, but with another cause, of which another message tells: {still}")
    return lines + ([f"fix: {found['fix']}"] if found["fix"] else [])


# --- forms ------------------------------------------------------------------------------------------------------------


def as_json(found: Message, delivery: str, source: str) -> bytes:
    """Return the body of our own form."""
    return _bytes({"id": delivery, "source": source} | found)


def as_slack(found: Message, source: str) -> bytes:
    """Return a body for Slack, Mattermost and others that read ``{"text"}``."""
    lines = [_escaped(line) for line in lines_of(found)]
    mark = {"critical": ":rotating_light: ", "warning": ":warning: "}.get(found["severity"], "")
    if found["kind"] == MessageKind.RESOLVED:
        mark = ":white_check_mark: "
    text = f"{mark}*{_escaped(found['title'])}*"
    for line in [*lines, f"_{_escaped(source)}, {found['at']}_"]:
        if len(text) + len(line) > _SLACK_LIMIT:
            break
        text += f"\n{line}"
    return _bytes({"text": text})


def as_pagerduty(found: Message, delivery: str, source: str, routing_key: str, installation: str) -> bytes:
    """Return an event of PagerDuty's Events API v2; all messages about a group are one incident.

    A test is triggered and must be resolved by hand.
    """
    resolves = found["kind"] == MessageKind.RESOLVED
    group = found["group"] if found["kind"] != MessageKind.TEST else f"test.{delivery}"
    body: dict[str, Any] = {
        "routing_key": routing_key,
        "event_action": "resolve" if resolves else "trigger",
        "dedup_key": f"certctrl/{installation}/{group}"[:255],
        "client": "certctrl",
        "payload": {
            "summary": one_line(found["title"], _SUMMARY_LIMIT),
            "source": source,
            "severity": found["severity"],
            "timestamp": found["at"],
            "component": found["event"],
            "group": found["group"],
            "custom_details": {"lines": lines_of(found), "count": found["count"], "delivery": delivery},
        },
    }
    return _bytes(body)


def as_mail_text(found: Message, source: str) -> str:
    """Return the text of a mail."""
    lines = [found["title"], "", *lines_of(found), "", f"{found['at']}, control plane {source}"]
    if found["kind"] == MessageKind.FIRING and found["count"] > 1:
        lines.append(f"{counted(found['new'], 'condition')} of {found['count']} new since the last message")
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    """Return text that Slack shows unchanged: no links, mentions or formatting can be forged."""
    plain = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return plain.translate({ord(mark): f"{mark}\u200b" for mark in "*_~`"})


def _bytes(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
