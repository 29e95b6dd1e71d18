"""Conditions: what needs an operator now, as alerts see it, read from the database.

A condition has the same key as long as it lasts. Conditions of a group have one cause, so they are told together.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum

from certctrl import lean
from certctrl.plane.clock import rfc3339
from certctrl.plane.devices.clones import WINDOW_SECONDS
from certctrl.plane.devices.endpoints import AGE_SECONDS
from certctrl.plane.fleet.statements import Moment
from certctrl.plane.fleet.words import EXPIRING, STALE, cause_id, meaning
from certctrl.plane.health.problems import ProblemName
from certctrl.plane.orders.problems import FAILING
from certctrl.plane.orders.renewal_problems import RenewalProblems
from certctrl.plane.settings import DAY
from certctrl.plane.storage.database import Database, Row
from certctrl.text import one_line

REVOCATION_SECONDS = 7.0 * DAY
"""How long a revocation is looked for; it is told once."""
PROBLEM_SECONDS = 120.0
"""A problem that its plane has not confirmed for so long is over, or the plane is."""
MAX_CONDITIONS = 50_000
_DETAIL = 300


class Event(StrEnum):
    """What alerts are about."""

    ROLLOUT_HALTED = "rollout-halted"
    CERTIFICATE_STUCK = "certificate-stuck"
    DEVICE_SILENT = "device-silent"
    RENEWAL_FAILED = "renewal-failed"
    CERTIFICATE_ENDING = "certificate-ending"
    REVOCATION = "revocation"
    DEVICE_COPIES = "device-copies"
    PLANE_PROBLEM = "plane-problem"

    @property
    def words(self) -> str:
        """The event in the words of a title."""
        return _WORDS[self]


_WORDS = {
    Event.ROLLOUT_HALTED: "rollout halted",
    Event.CERTIFICATE_STUCK: "certificate stuck",
    Event.DEVICE_SILENT: "device silent",
    Event.RENEWAL_FAILED: "renewal failed",
    Event.CERTIFICATE_ENDING: "certificate near its end",
    Event.REVOCATION: "certificate revoked",
    Event.DEVICE_COPIES: "two copies of a device",
    Event.PLANE_PROBLEM: "control plane",
}
OF_PLANE = frozenset(ProblemName) - {
    ProblemName.STOPPING,
    ProblemName.ORDERS,
    ProblemName.RENEWALS_LATE,
    ProblemName.RENEWALS_ENDING,
    ProblemName.IMPORTS_ENDING,
    ProblemName.ROLLOUT_HALTED,
}
"""Problems that no other event is about."""


@lean.frozen(kw_only=True)
class Condition:
    """One thing that needs an operator."""

    event: Event
    group: str
    key: str
    name: str
    """What it is about, in a few words: a device, a certificate."""
    cause: str
    """What is wrong; the same in its group."""
    what: str
    """One line about this condition."""
    fix: str = ""
    since: float
    is_critical: bool = False
    """Whether quiet hours do not hold it back."""
    has_end: bool = True
    user_id: int | None = None


class Conditions:
    """Reads the conditions of all users; methods run in the caller's unit of work."""

    def __init__(
        self, database: Database, late: RenewalProblems, stale_seconds: float, wall_now: Callable[[], float]
    ) -> None:
        self._db = database
        self._late = late
        self._stale_seconds = stale_seconds
        self._wall_now = wall_now

    def read(self) -> list[Condition]:
        """Return all conditions."""
        now = self._wall_now()
        found = [*self._rollouts(), *self._orders(), *self._ending(now), *self._copies(now), *self._problems(now)]
        found += self._revocations(now)
        for user in self._db.all("SELECT id FROM users ORDER BY id"):
            found += self._troubles(user["id"], now)
        return found[:MAX_CONDITIONS]

    def _troubles(self, user_id: int, now: float) -> list[Condition]:
        """Return silent devices and stuck certificates, by the words of the fleet page."""
        stale_before = now - self._stale_seconds
        moment = Moment(user_id=user_id, now=now, stale_before=stale_before, believed_after=now - AGE_SECONDS)
        sql, parameters = moment.troubles
        rows = self._db.all(
            f"{sql} SELECT * FROM troubles ORDER BY device_id, cert_id LIMIT ?", *parameters, MAX_CONDITIONS
        )
        return [_silent(row, user_id) if row["word"] == STALE else _stuck(row, user_id) for row in rows]

    def _rollouts(self) -> list[Condition]:
        rows = self._db.all(
            "SELECT r.id, r.user_id, r.version, r.reason, r.updated_at, coalesce(p.name, '') AS name FROM rollouts r"
            " LEFT JOIN profiles p ON p.id = r.profile_id WHERE r.state = 'halted' ORDER BY r.id"
        )
        return [
            Condition(
                event=Event.ROLLOUT_HALTED,
                group=f"{Event.ROLLOUT_HALTED}.{row['id']}",
                key=str(row["id"]),
                name=f"rollout {row['id']} of {_carried(row)}",
                cause=one_line(row["reason"], _DETAIL) or "devices have failed",
                what=f"rollout {row['id']} of {_carried(row)}{_version(row)} has halted",
                fix=f"cert-ctrl plane rollout status {row['id']}",
                since=row["updated_at"],
                user_id=row["user_id"],
            )
            for row in rows
        ]

    def _orders(self) -> list[Condition]:
        rows = self._db.all(
            "SELECT o.id, o.issuer, o.problem, o.fix, o.created_at, c.domain_name, c.user_id FROM orders o"
            f" JOIN certificates c ON c.id = o.cert_id WHERE {FAILING} ORDER BY o.id LIMIT ?",
            MAX_CONDITIONS,
        )
        return [
            Condition(
                event=Event.RENEWAL_FAILED,
                group=f"{Event.RENEWAL_FAILED}.{row['issuer']}",
                key=str(row["id"]),
                name=row["domain_name"],
                cause=f"issuer {row['issuer']} has not issued certificates",
                what=f"order {row['id']} ({row['domain_name']}): {one_line(row['problem'], _DETAIL)}",
                fix=one_line(row["fix"], _DETAIL) or f"cert-ctrl plane orders show {row['id']}",
                since=row["created_at"],
                user_id=row["user_id"],
            )
            for row in rows
        ]

    def _ending(self, now: float) -> list[Condition]:
        return [
            Condition(
                event=Event.CERTIFICATE_ENDING,
                group=f"{Event.CERTIFICATE_ENDING}.{late.stage}",
                key=f"{late.cert_id}.{late.serial}",
                name=late.domain_name,
                cause=late.stage.summary,
                what=one_line(str(late), _DETAIL),
                fix="cert-ctrl plane certificates --expiring 30d",
                since=min(late.not_after, now),
                is_critical=late.stage is ProblemName.RENEWALS_ENDING,
            )
            for late in self._late.read()
        ]

    def _copies(self, now: float) -> list[Condition]:
        rows = self._db.all(
            "SELECT id, name, user_id, copies_at FROM devices WHERE status = 'active' AND copies_at > ? ORDER BY id",
            now - WINDOW_SECONDS,
        )
        return [
            Condition(
                event=Event.DEVICE_COPIES,
                group=Event.DEVICE_COPIES,
                key=str(row["id"]),
                name=one_line(row["name"], 60),
                cause="two agents use the identity of one device, as after a copied disk",
                what=f"device {row['id']} ({one_line(row['name'], 60)}): two agents poll as this device",
                fix="stop one of them, remove its state directory, and register it as a device of its own",
                since=row["copies_at"],
                user_id=row["user_id"],
            )
            for row in rows
        ]

    def _revocations(self, now: float) -> list[Condition]:
        rows = self._db.all(
            "SELECT r.serial_number, r.reason, r.revoked_at, c.id, c.domain_name, c.user_id FROM revoked_serials r"
            " JOIN certificates c ON c.id = r.cert_id WHERE r.revoked_at > ? ORDER BY r.revoked_at, r.serial_number LIMIT ?",
            *(now - REVOCATION_SECONDS, MAX_CONDITIONS),
        )
        return [
            Condition(
                event=Event.REVOCATION,
                group=Event.REVOCATION,
                key=row["serial_number"],
                name=row["domain_name"],
                cause="certificates were revoked",
                what=f"certificate {row['id']} ({row['domain_name']}), serial {row['serial_number']}, was revoked"
                + (f": {one_line(row['reason'], _DETAIL)}" if row["reason"] else ""),
                fix=f"cert-ctrl plane audit shows who did it; where it is served: cert-ctrl plane causes --user {row['user_id']}",
                since=row["revoked_at"],
                is_critical=True,
                has_end=False,
                user_id=row["user_id"],
            )
            for row in rows
        ]

    def _problems(self, now: float) -> list[Condition]:
        rows = self._db.all(
            "SELECT * FROM alert_problems WHERE seen_at > ? ORDER BY name, plane", now - PROBLEM_SECONDS
        )
        return [
            Condition(
                event=Event.PLANE_PROBLEM,
                group=f"{Event.PLANE_PROBLEM}.{row['name']}",
                key=row["plane"],
                name=f"{row['name']} at {one_line(row['host'], 60)}",
                cause=ProblemName(row["name"]).summary,
                what=f"{one_line(row['host'], 60)}: {one_line(row['what'], _DETAIL)}",
                fix="cert-ctrl plane status",
                since=row["since"],
            )
            for row in rows
            if row["name"] in OF_PLANE
        ]


def _carried(row: Row) -> str:
    return f"profile {row['name']}" if row["name"] else "renewals"


def _version(row: Row) -> str:
    return f", version {row['version']}," if row["name"] else ""


def _silent(row: Row, user_id: int) -> Condition:
    cause, fix = meaning(row["reason"])
    name = one_line(row["device"], 60)
    return Condition(
        event=Event.DEVICE_SILENT,
        group=Event.DEVICE_SILENT,
        key=str(row["device_id"]),
        name=name,
        cause=cause,
        what=f"device {row['device_id']} ({name}) was last heard from at {rfc3339(row['since'] or 0)}",
        fix=fix,
        since=row["since"] or 0.0,
        user_id=user_id,
    )


def _stuck(row: Row, user_id: int) -> Condition:
    cause, fix = meaning(row["reason"])
    device, certificate = one_line(row["device"], 60), one_line(row["certificate"], 100)
    what = f"{certificate} on {device}" if certificate else device
    detail = one_line(row["detail"], _DETAIL)
    event = Event.CERTIFICATE_ENDING if row["word"] == EXPIRING else Event.CERTIFICATE_STUCK
    return Condition(
        event=event,
        group=f"{event}.{cause_id(row['word'], row['step'], row['reason'])}",
        key=f"{row['device_id']}.{row['cert_id']}",
        name=what,
        cause=cause,
        what=f"{what} is {row['word']}" + (f": {detail}" if detail else ""),
        fix=fix,
        since=row["failing_since"] or row["since"] or 0.0,
        is_critical=row["word"] in ("expired", "still served"),
        user_id=user_id,
    )
