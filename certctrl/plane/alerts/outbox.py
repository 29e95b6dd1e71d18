"""Outbox: messages from the transaction that decided them until their receiver has accepted them.

Each has a job, so that one plane at a time sends it. Messages about one group are sent in order. A message whose
receiver fails is retried for a day, and is a dead letter then, which an operator may send again or dismiss.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from certctrl import lean
from certctrl.backoff import grown
from certctrl.plane.alerts.texts import Message
from certctrl.plane.clock import when
from certctrl.plane.errors import ErrorResponse, conflict, not_found
from certctrl.plane.jobs import Job, Jobs
from certctrl.plane.settings import DAY
from certctrl.plane.storage.database import Database, Row, marks
from certctrl.text import one_line

JOB = "alert"
DUE, SENT, DEAD = "due", "sent", "dead"
DISMISSED = "dismissed"
"""A dead message that an operator has given up; in its row, it is dead with a time."""
STATES = (DUE, SENT, DEAD, DISMISSED)
FIRST_PAUSE, LAST_PAUSE = 10.0, 3600.0
RETRY_SECONDS = float(DAY)
LEASE_SECONDS = 120.0
"""Longer than an attempt, so that leases need no extension."""
SENT_DAYS, DEAD_DAYS = 30, 90
"""For how long messages are kept."""
MAX_PER_CHANNEL = 2
"""Messages that one plane sends to one channel at a time, so that a receiver that hangs does not hold up others."""
FAILING_ATTEMPTS = 3
"""Failed attempts after which a message is a problem of the plane."""
_ID = "CASE WHEN jobs.kind = 'alert' THEN CAST(jobs.job_key AS BIGINT) END"
"""The message of a job, as a number: found by its key, not out of all; keys of other jobs are no numbers."""
_STATE = "CASE WHEN m.state = 'dead' AND m.dismissed_at IS NOT NULL THEN 'dismissed' ELSE m.state END"
"""A control plane of an earlier release sends a dismissed message again without removing the time."""
_EARLIER = (
    "NOT EXISTS (SELECT 1 FROM alert_messages m JOIN alert_messages e ON e.channel_id = m.channel_id"
    " AND e.group_name = m.group_name AND e.id < m.id AND e.state = 'due'"
    f" WHERE m.state = 'due' AND m.id = {_ID})"
)


@lean.frozen
class Delivery:
    """One attempt to send a message."""

    id: int
    channel_id: int
    body: Message
    attempts: int
    created_at: float


class Outbox:
    """The table of messages; methods run in the caller's unit of work."""

    def __init__(self, database: Database, jobs: Jobs, wall_now: Callable[[], float]) -> None:
        self._db = database
        self._jobs = jobs
        self._wall_now = wall_now

    def add(self, channel_id: int, message: Message) -> int:
        """Store a message that is due now; return its id."""
        now = self._wall_now()
        new_id = self._db.insert(
            "INSERT INTO alert_messages (channel_id, group_name, kind, body, state, created_at, retry_from)"
            " VALUES (?, ?, ?, ?, 'due', ?, ?)",
            *(channel_id, message["group"], message["kind"], json.dumps(message), now, now),
        )
        self._jobs.put(JOB, str(new_id), now)
        return new_id

    def claim(self, limit: int, sending: Mapping[int, int] | None = None) -> list[tuple[Job, Delivery]]:
        """Claim messages that are due, each after those of its group that were stored before.

        ``sending``: id of a channel -> messages that this plane is sending to it.
        """
        found: list[tuple[Job, Delivery]] = []
        busy = Counter(sending or {})
        while len(found) < limit:
            full = [channel_id for channel_id, count in busy.items() if count >= MAX_PER_CHANNEL]
            left = MAX_PER_CHANNEL - max((count for count in busy.values() if count < MAX_PER_CHANNEL), default=0)
            jobs = self._due(min(left, limit - len(found)), full)
            if not jobs:
                break
            for job in jobs:
                if delivery := self._delivery(job):
                    found.append((job, delivery))
                    busy[delivery.channel_id] += 1
        return found

    def _due(self, limit: int, full: Sequence[int]) -> list[Job]:
        """Claim jobs of messages that are due, but to none of these channels."""
        of_full = f"SELECT 1 FROM alert_messages f WHERE f.id = {_ID} AND f.channel_id IN ({marks(full)})"
        only = f"{_EARLIER} AND NOT EXISTS ({of_full})" if full else _EARLIER
        return self._jobs.claim(JOB, limit=limit, lease_seconds=LEASE_SECONDS, only=only, parameters=full)

    def _delivery(self, job: Job) -> Delivery | None:
        """Return what a job sends; None: nothing any more, and the job is over."""
        row = self._db.one("SELECT * FROM alert_messages WHERE id = ? AND state = 'due'", int(job.key))
        if row is None:
            self._jobs.finish(job)
            return None
        return Delivery(row["id"], row["channel_id"], json.loads(row["body"]), row["attempts"], row["created_at"])

    def succeed(self, job: Job, problem: str = "") -> None:
        """Record that the receiver has accepted a message, even if the claim was lost meanwhile; ``problem`` remains."""
        sql = (
            "UPDATE alert_messages SET state = 'sent', attempts = attempts + 1, problem = ?, ended_at = ? WHERE id = ?"
        )
        self._db.run(sql, problem, self._wall_now(), int(job.key))
        self._jobs.finish(job)

    def fail(self, job: Job, problem: str) -> float | None:
        """Record a failed attempt; return when the next one is due, None if there is none or the claim was lost."""
        row = self._db.one_locked("SELECT * FROM alert_messages WHERE id = ?", int(job.key))
        if row is None or row["state"] != DUE or not self._jobs.holds(job):
            return None
        now, attempts = self._wall_now(), row["attempts"] + 1
        due = now + grown(FIRST_PAUSE, LAST_PAUSE, attempts)
        is_over = due > min(row["retry_from"], now) + RETRY_SECONDS
        self._db.run(
            "UPDATE alert_messages SET attempts = ?, problem = ?, state = ?, next_at = ?, ended_at = ? WHERE id = ?",
            *(
                attempts,
                problem,
                DEAD if is_over else DUE,
                None if is_over else due,
                now if is_over else None,
                row["id"],
            ),
        )
        if is_over:
            self._jobs.finish(job)
            return None
        self._jobs.reschedule(job, due)
        return due

    def resend(self, message_id: int) -> dict[str, Any]:
        """Send a message again: a dead or dismissed one, or one that waits for its next attempt. ErrorResponse 404 and 409."""
        row = self._locked(message_id)
        if row["state"] == SENT:
            raise conflict(f"Message {message_id} was sent at {when(row['ended_at'])}", "ALREADY_SENT")
        now = self._wall_now()
        sql = (
            "UPDATE alert_messages SET state = 'due', attempts = 0, retry_from = ?, next_at = ?, ended_at = NULL,"
            " dismissed_at = NULL WHERE id = ?"
        )
        self._db.run(sql, now, now, message_id)
        self._jobs.put(JOB, str(message_id), now)
        return self.show(message_id)

    def dismiss(self, message_id: int) -> dict[str, Any]:
        """Give up a dead message, which is no longer a problem then; idempotent. ErrorResponse 404 and 409."""
        row = self._locked(message_id)
        if row["state"] == SENT:
            raise conflict(f"Message {message_id} was sent at {when(row['ended_at'])}", "ALREADY_SENT")
        if row["state"] != DEAD:
            raise conflict(
                f"Message {message_id} is still tried, at {when(row['next_at'] or row['retry_from'])} again", "NOT_DEAD"
            )
        sql = "UPDATE alert_messages SET dismissed_at = ? WHERE id = ? AND dismissed_at IS NULL"
        self._db.run(sql, self._wall_now(), message_id)
        return self.show(message_id)

    def _locked(self, message_id: int) -> Row:
        row = self._db.one_locked("SELECT * FROM alert_messages WHERE id = ?", message_id)
        if row is None:
            raise _unknown(message_id)
        return row

    def counts(self, channel: str = "") -> dict[str, int]:
        """Return the number of messages in each state, to one channel or all."""
        rows = self._db.all(
            f"SELECT {_STATE} AS word, count(*) AS n FROM alert_messages m JOIN alert_channels c ON c.id = m.channel_id"
            " WHERE c.name = ? OR ? = '' GROUP BY word",
            *(channel, channel),
        )
        return {row["word"]: int(row["n"]) for row in rows}

    def page(self, *, state: str, channel: str, before_id: int | None, limit: int) -> list[dict[str, Any]]:
        """Return messages, the newest first."""
        parts, parameters = ["1 = 1"], list[Any]()
        for condition, value in ((f"{_STATE} = ?", state), ("c.name = ?", channel), ("m.id < ?", before_id)):
            if value:
                parts.append(condition)
                parameters.append(value)
        rows = self._db.all(
            "SELECT m.*, c.name AS channel FROM alert_messages m JOIN alert_channels c ON c.id = m.channel_id"
            f" WHERE {' AND '.join(parts)} ORDER BY m.id DESC LIMIT ?",
            *parameters,
            limit,
        )
        return [_shown(row) for row in rows]

    def show(self, message_id: int) -> dict[str, Any]:
        """Return a message with its content; ErrorResponse 404."""
        row = self._db.one(
            "SELECT m.*, c.name AS channel FROM alert_messages m JOIN alert_channels c ON c.id = m.channel_id"
            " WHERE m.id = ?",
            message_id,
        )
        if row is None:
            raise _unknown(message_id)
        return _shown(row) | {"message": json.loads(row["body"])}

    def failing(self) -> tuple[int, Row | None]:
        """Return the number of messages that cannot be delivered, and the oldest of them with its channel."""
        where = f"(m.state = '{DEAD}' AND m.dismissed_at IS NULL) OR (m.state = '{DUE}' AND m.attempts >= {FAILING_ATTEMPTS})"
        count = self._db.one(f"SELECT count(*) AS n FROM alert_messages m WHERE {where}")
        oldest = self._db.one(
            "SELECT m.id, m.state, m.problem, c.name AS channel FROM alert_messages m JOIN alert_channels c"
            f" ON c.id = m.channel_id WHERE {where} ORDER BY m.id LIMIT 1"
        )
        return 0 if count is None else int(count["n"]), oldest

    def delete_expired(self) -> None:
        """Delete messages that ended long ago."""
        now = self._wall_now()
        for state, days in ((SENT, SENT_DAYS), (DEAD, DEAD_DAYS)):
            self._db.run("DELETE FROM alert_messages WHERE state = ? AND ended_at < ?", state, now - days * DAY)


def _unknown(message_id: int) -> ErrorResponse:
    return not_found(f"There is no alert message {message_id}; see plane alerts outbox")


def _shown(row: Row) -> dict[str, Any]:
    body = json.loads(row["body"])
    return {
        "id": row["id"],
        "channel": row["channel"],
        "kind": row["kind"],
        "group": row["group_name"],
        "title": one_line(body["title"]),
        "state": DISMISSED if row["state"] == DEAD and row["dismissed_at"] is not None else row["state"],
        "attempts": row["attempts"],
        "problem": row["problem"],
        "created_at": when(row["created_at"]),
        "next_at": when(row["next_at"]) if row["state"] == DUE else None,
        "ended_at": when(row["ended_at"]),
        "dismissed_at": when(row["dismissed_at"]),
    }
