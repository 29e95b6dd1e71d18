"""Raise alerts about conditions that last: repeated failures, long holds, an unreachable plane, a copied directory.

Each is raised once while it lasts, and again after a restart. Revocations, expiry and the breaker are alerted where
they are noticed (``handlers.py``, ``expiry_guard.py``, ``poller.py``).
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Any

import attrs
import trio
from trio_util import move_on_when

from certctrl import lean
from certctrl.agent.alerts import send_alert
from certctrl.agent.context import Agent, wait_for_poll
from certctrl.agent.expiry import time_left
from certctrl.agent.reporter import is_stale
from certctrl.install.plan.retries import is_quarantined
from certctrl.model.records import CertRecord, Retry
from certctrl.text import one_line

INTERVAL = 30.0, 60.0
"""Minimum and maximum seconds between two checks, unless a retry changes."""
PAUSE = 1.0
"""Minimum seconds between two checks."""
MAX_SEPARATE = 3
"""New conditions of one kind that get an alert each; more share one, so that an outage does not send many mails."""
MAX_NAMED = 20
FIX_RETRY = "remove the cause; `cert-ctrl apply --now` retries immediately"


class Kind(StrEnum):
    """Kinds of alerts that are raised here, most urgent first."""

    QUARANTINED = "quarantined"
    FAILING = "failing"
    HELD = "held"
    STALE = "stale"
    COPIES = "copies"


@lean.frozen(kw_only=True)
class Condition:
    """A condition that an operator must know about."""

    kind: Kind
    subject: str
    """The subject, such as ``certificate 7 (www.example.com)``."""
    what: str
    fix: str
    facts: dict[str, Any] = attrs.field(factory=dict)

    @property
    def key(self) -> tuple[Kind, str]:
        """What identifies it."""
        return self.kind, self.subject


async def alert_forever(agent: Agent) -> None:
    """Alert on each condition that begins, until cancelled."""
    raised: set[tuple[Kind, str]] = set()
    while True:
        lasting = {one.key: one for one in conditions(agent)}
        fresh = [one for key, one in lasting.items() if key not in raised]
        raised = set(lasting)
        for kind in Kind:
            for one in _combined(kind, [one for one in fresh if one.kind is kind]):
                await send_alert(agent, one.kind.value, one.what, one.fix, **one.facts)
        async with move_on_when(agent.installer.retries.changed.wait) as waited:
            await wait_for_poll(agent.polled, *INTERVAL)
        if waited.cancelled_caught:
            await trio.sleep(PAUSE)


def _combined(kind: Kind, found: list[Condition]) -> list[Condition]:
    """Return one condition for many of a kind; a few stay separate."""
    if len(found) <= MAX_SEPARATE:
        return found
    subjects = [one.subject for one in found]
    more = f", and {len(subjects) - MAX_NAMED} more" if len(subjects) > MAX_NAMED else ""
    what = f"{len(found)} are {kind.value}: {', '.join(subjects[:MAX_NAMED])}{more}; the first: {found[0].what}"
    facts = {"subjects": subjects}
    return [Condition(kind=kind, subject="", what=what, fix=found[0].fix, facts=facts)]


def conditions(agent: Agent) -> list[Condition]:
    """Return the current conditions that an operator must know about."""
    records = agent.installer.records
    return [
        *_failing(agent, agent.installer.retries.rows().values(), records),
        *_held(agent, records.values()),
        *_silent(agent),
    ]


def _failing(agent: Agent, retries: Iterable[Retry], records: dict[int, CertRecord]) -> Iterable[Condition]:
    settings = agent.config.application
    for retry in retries:
        if retry.attempts < settings.alert_attempts:  # waiting for the plane or the disk does not count
            continue
        subject, facts = _subject(retry, records)
        quarantined = is_quarantined(retry, settings)
        kind = Kind.QUARANTINED if quarantined else Kind.FAILING
        rest = f"; it is in quarantine, and retried every {time_left(retry.pause)}" if quarantined else ""
        what = f"{subject} has failed {retry.attempts} times: {retry.last_error}{rest}"
        facts |= {
            "attempts": retry.attempts,
            "error": retry.last_error,
            "next_try_at": agent.installer.next_try_at(retry),
        }
        yield Condition(kind=kind, subject=subject, what=what, fix=FIX_RETRY, facts=facts)


def _subject(retry: Retry, records: dict[int, CertRecord]) -> tuple[str, dict[str, Any]]:
    """Return the subject of a retry, as text and as JSON."""
    kind, _, number = retry.resource.partition(":")
    record = records.get(int(number)) if kind == "cert" and number.isdecimal() else None
    about = {"signal": retry.signal.type} if retry.signal is not None else {}
    if record is not None:
        return str(record.facts), about | {"cert_id": record.cert_id, "name": record.name}
    names = {"cert": f"certificate {number}", "ca": f"CA {number}", "install": "the install config"}
    return names.get(kind, f"signal {one_line(retry.resource)}"), about | (
        {"cert_id": int(number)} if kind == "cert" and number.isdecimal() else {}
    )


def _held(agent: Agent, records: Iterable[CertRecord]) -> Iterable[Condition]:
    now, longest = agent.wall_now(), agent.config.application.alert_held_days * 86_400
    for record in records:
        since = record.held_since or record.last_apply_at
        if record.held and now - since >= longest:
            name = record.facts.domains[0] if record.facts.domains else record.name
            subject = str(record.facts)
            what = f"{subject} has been held by a rollback for {time_left(now - since)}"
            what += ", while a renewal waits" if record.staged and record.staged != record.generation else ""
            fix = f"cert-ctrl rollback --domain {name} --release"
            facts = {"cert_id": record.cert_id, "name": record.name, "held_since": since}
            yield Condition(kind=Kind.HELD, subject=subject, what=what, fix=fix, facts=facts)


def _silent(agent: Agent) -> Iterable[Condition]:
    if is_stale(agent):
        what = "the control plane has not answered for too long; certificates stay in service, but no renewal arrives"
        yield Condition(kind=Kind.STALE, subject="plane", what=what, fix="cert-ctrl doctor")
    if (copied := agent.problems.get("copies")) is not None:
        yield Condition(kind=Kind.COPIES, subject="device", what=copied.what, fix=copied.fix)
