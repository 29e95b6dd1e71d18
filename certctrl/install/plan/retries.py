"""Patience: when what failed is tried again, and a plan without what is not due yet. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import attrs

from certctrl.install.plan.values import DesiredCert, GroupPlan, InstallPlan, Step
from certctrl.model.plan import OutcomeKind
from certctrl.model.records import CertRecord

FIRST_RETRY, LAST_RETRY = 30.0, 3600.0


def retry_at(now: float, attempts: int) -> float:
    """Return when a certificate that failed ``attempts`` times in a row is tried again by itself."""
    return now + min(LAST_RETRY, FIRST_RETRY * 2.0 ** min(max(attempts, 1) - 1, 20))


def next_try(record: CertRecord, now: float) -> float:
    """Return when a certificate is due; one that waits longer than any has to was put off while the clock was ahead."""
    return record.next_try_at if record.next_try_at - now <= LAST_RETRY else now


def switch_due(record: CertRecord, now: float) -> float:
    """Return when what is staged may be tried: a failure that was tolerated of what is live holds it up no longer."""
    gone_wrong = record.last_outcome in (OutcomeKind.FAILED, OutcomeKind.ROLLED_BACK)
    return next_try(record, now) if gone_wrong else min(next_try(record, now), now)


def retry_turns(records: Iterable[CertRecord], now: float) -> dict[int, float]:
    """Return when each certificate is due of which something failed that no switch will bring again."""
    return {
        record.cert_id: next_try(record, now)
        for record in records
        if record.owed and record.generation and not record.staged and not record.held
    }


def without_not_due(
    plan: InstallPlan,
    certs: Mapping[int, DesiredCert],
    records: Iterable[CertRecord],
    due_now: Collection[int],
    now: float,
) -> InstallPlan:
    """Return a plan without what failed and is not due yet.

    ``due_now``: certificates that are new, or asked for: what is about one of them is tried at once. So is what a
    crash has left of a certificate whose record knows another generation than the live one.
    """
    tired = [
        record
        for record in records
        if record.owed
        and next_try(record, now) > now
        and record.cert_id not in due_now
        and certs[record.cert_id].live == record.generation
    ]
    owed = {item for record in tired for item in record.owed if item in plan.concerns}
    items = {item for item in owed if set(plan.concerns[item]).isdisjoint(due_now)}
    if not items:
        return plan
    groups = (_without(one, items) for one in plan.groups)
    return attrs.evolve(
        plan,
        groups=tuple(one for one in groups if not one.idle),
        not_due=frozenset(record.cert_id for record in tired if not items.isdisjoint(record.owed)),
    )


def _without(one: GroupPlan, items: Collection[str]) -> GroupPlan:
    """Return a set without the work of some items; a pair is left out whole."""
    file_groups = {write.file_group for step in one.steps for write in step.writes if write.item in items}
    steps = (
        Step(
            tuple(write for write in step.writes if write.file_group not in file_groups),
            tuple(run for run in step.runs if not set(run.items) <= set(items)),
        )
        for step in one.steps
    )
    return attrs.evolve(
        one,
        steps=tuple(step for step in steps if step.writes or step.runs),
        verifications=tuple(proof for proof in one.verifications if proof.item not in items),
    )
