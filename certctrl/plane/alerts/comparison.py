"""Comparison: compare what is wrong now with what each channel was told, and store the messages that are due.

It runs in one unit of work under a job, so of several planes one compares, and a kill leaves either a message with the
state that it was told, or neither: then the next round decides the same again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from certctrl.plane.alerts.channels import Channel, Channels
from certctrl.plane.alerts.conditions import Condition, Conditions, Event
from certctrl.plane.alerts.decision import GroupState, MessageKind, decide, from_json, to_json
from certctrl.plane.alerts.outbox import Outbox
from certctrl.plane.alerts.texts import message
from certctrl.plane.health.problems import Problems
from certctrl.plane.jobs import Jobs
from certctrl.plane.planes import Planes
from certctrl.plane.settings import DAY
from certctrl.plane.storage.database import Database
from certctrl.text import one_line

JOB = "alerts"
ROUND_SECONDS = 15.0
LEASE_SECONDS = 60.0
_MAX_PROBLEM = 500
_EVENTS = frozenset(event.value for event in Event)
"""Groups of others are those of a later release, on the same database."""


class Comparison:
    """One round; methods run in the caller's unit of work."""

    def __init__(
        self,
        database: Database,
        jobs: Jobs,
        channels: Channels,
        conditions: Conditions,
        outbox: Outbox,
        problems: Problems,
        planes: Planes,
        host: str,
        wall_now: Callable[[], float],
    ) -> None:
        self._db = database
        self._jobs = jobs
        self._channels = channels
        self.conditions = conditions
        self._outbox = outbox
        self._problems = problems
        self._planes = planes
        self._host = host
        self._wall_now = wall_now

    def plan(self) -> None:
        """Schedule the rounds, unless they are; again if the clock was set back since."""
        planned = self._db.one("SELECT due FROM jobs WHERE kind = ?", JOB)
        if planned is None or planned["due"] > self._wall_now() + 2 * ROUND_SECONDS:
            self._jobs.put(JOB, "", self._wall_now())

    def has_channels(self) -> bool:
        """Return whether there is anybody to tell."""
        return self._db.one("SELECT 1 FROM alert_channels LIMIT 1") is not None

    def run(self, *, may_judge_silence: bool) -> int:
        """Run a round if it is due and there are channels; return the number of messages. See `compare`."""
        if not self.has_channels():
            return 0
        self.note_problems()
        count = 0
        for job in self._jobs.claim(JOB, limit=1, lease_seconds=LEASE_SECONDS):
            count += self.compare(may_judge_silence=may_judge_silence)
            self._outbox.delete_expired()
            self._db.run("DELETE FROM alert_problems WHERE seen_at < ?", self._wall_now() - DAY)
            self._jobs.reschedule(job, self._wall_now() + ROUND_SECONDS)
        return count

    def compare(self, *, may_judge_silence: bool = True) -> int:
        """Store the messages that are due, and what channels were told; return the number of messages.

        Without ``may_judge_silence``, this plane has not run for long enough to know which devices are up: silent ones
        stay as they are.
        """
        channels = self._channels.all()
        if not channels:
            return 0
        present = self.conditions.read()
        return sum(self._compare_one(channel, present, may_judge_silence) for channel in channels)

    def _compare_one(self, channel: Channel, present: Sequence[Condition], may_judge_silence: bool) -> int:
        now, count = self._wall_now(), 0
        if not self._channels.hold(channel.id):
            return 0
        groups: dict[str, dict[str, Condition]] = {}
        for one in present:
            if channel.settings.wants(one, now, channel.created_at):
                groups.setdefault(one.group, {})[one.key] = one
        rows = self._db.all("SELECT name, state FROM alert_groups WHERE channel_id = ?", channel.id)
        stored = {row["name"]: row["state"] for row in rows}
        is_quiet = channel.settings.is_quiet(now)
        for name in sorted({*groups, *stored}):
            event = name.partition(".")[0]
            if event not in _EVENTS or (event == Event.DEVICE_SILENT and not may_judge_silence):
                continue
            before = from_json(json.loads(stored[name])) if name in stored else GroupState()
            here = groups.get(name, {})
            decided = decide(before, here, channel.settings.rules, now, is_quiet=is_quiet)
            if decided.kind is not None and decided.state is not None:
                elsewhere = _elsewhere(name, groups) if decided.kind is MessageKind.RESOLVED else ()
                told = message(decided.kind, name, decided.state, here, new=decided.new, elsewhere=elsewhere, now=now)
                self._outbox.add(channel.id, told)
                count += 1
            self._store(channel.id, name, stored.get(name), decided.state)
        return count

    def _store(self, channel_id: int, name: str, before: str | None, state: GroupState | None) -> None:
        after = None if state is None else json.dumps(to_json(state), separators=(",", ":"), sort_keys=True)
        if after == before:
            return
        if after is None:
            self._db.run("DELETE FROM alert_groups WHERE channel_id = ? AND name = ?", channel_id, name)
            return
        self._db.run(
            "INSERT INTO alert_groups VALUES (?, ?, ?)"
            " ON CONFLICT (channel_id, name) DO UPDATE SET state = excluded.state",
            *(channel_id, name, after),
        )

    def note_problems(self) -> None:
        """Store the problems of this plane, for whichever plane compares."""
        plane, _ = self._planes.process
        now, present = self._wall_now(), self._problems.now()
        known = {row["name"] for row in self._db.all("SELECT name FROM alert_problems WHERE plane = ?", plane)}
        for problem in present:
            self._db.run(
                "INSERT INTO alert_problems VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (plane, name) DO UPDATE SET"
                " host = excluded.host, what = excluded.what, since = excluded.since, seen_at = excluded.seen_at",
                *(plane, problem.name.value, self._host, one_line(problem.what, _MAX_PROBLEM)),
                *(problem.since, now),
            )
        for name in known - {problem.name.value for problem in present}:
            self._db.run("DELETE FROM alert_problems WHERE plane = ? AND name = ?", plane, name)


def _elsewhere(name: str, groups: dict[str, dict[str, Condition]]) -> set[str]:
    """Return the names in other groups of the same event."""
    event = name.partition(".")[0]
    return {
        one.name
        for other, members in groups.items()
        if other != name and other.partition(".")[0] == event
        for one in members.values()
    }
