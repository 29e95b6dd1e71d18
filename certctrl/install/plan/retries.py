"""Compute when failures are retried, and leave out of a plan work that is not due yet. Pure."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping

import attrs

from certctrl import lean
from certctrl.backoff import grown, jittered
from certctrl.install.plan.values import DesiredCert, GroupPlan, InstallPlan, Step
from certctrl.model.config import ApplicationConfig
from certctrl.model.plan import OutcomeKind
from certctrl.model.records import CertRecord, Retry, RetryKind
from certctrl.model.signals import Signal, identity

MAX_RETRY_AFTER = 3600.0
"""Upper bound of a server's Retry-After, in seconds."""
LIFE_SHARE = 10
"""A pause is at most this fraction of what is left of the certificate's life …"""
MIN_BOUND = 60.0
"""… but need not be shorter than this, in seconds."""
ROUNDING = 1e-3
"""Seconds by which sums of times may differ."""


@lean.frozen
class Pauses:
    """How long to wait after a failure, in seconds."""

    first: float
    last: float
    jitter: bool
    """True if hosts would otherwise send requests to the plane in step."""


PAUSES = {
    RetryKind.WAITING: Pauses(5.0, 300.0, jitter=True),  # as for polls: once the plane is back, nothing waits longer
    RetryKind.DISK: Pauses(5.0, 300.0, jitter=True),
    RetryKind.GRACE: Pauses(5.0, 300.0, jitter=True),
    RetryKind.LAGGING: Pauses(5.0, 300.0, jitter=True),
    RetryKind.BATCH: Pauses(300.0, 3600.0, jitter=True),
    RetryKind.REFUSED: Pauses(5.0, 900.0, jitter=True),
    RetryKind.PENDING: Pauses(30.0, 3600.0, jitter=False),
    RetryKind.DOWN: Pauses(15.0, 300.0, jitter=False),
}

LAGGING_FAILURES = 20
"""Tries, over about an hour, in which the plane should have shown what it announced."""
UNCOUNTED = (RetryKind.WAITING, RetryKind.DISK, RetryKind.GRACE, RetryKind.LAGGING, RetryKind.BATCH)
"""Kinds that never lead to quarantine: nothing about the work itself is wrong."""


@lean.frozen(kw_only=True)
class Failure:
    """One failure of a resource."""

    resource: str
    kind: RetryKind
    error: str
    retry_after: float = 0.0
    """Seconds that the server requested, or until the material becomes valid."""
    until: float = math.inf
    """Wall-clock time (epoch seconds) for which it waits; infinite: none."""
    signal: Signal | None = None


def after_failure(
    before: Retry | None,
    failure: Failure,
    now: float,
    *,
    random: float,
    settings: ApplicationConfig,
    life: float = math.inf,
) -> Retry:
    """Return the retry of a resource after another failure; ``random`` in [0, 1).

    ``life``: seconds until the certificate in use, or the first of several, ends; infinite if none is in use.
    Failures are counted while the same work fails; the count starts again for new material, for an item that failed
    for the live generation, and for a service that is down. If a signal fails for changing reasons that waiting cures,
    its pauses go on growing, although the count starts again. The pause is bounded by the remaining life, except for a
    server's Retry-After and for material that is not valid yet.
    """
    least = 0.0
    if before is not None and not _same_work(before, failure):
        if _same_signal(before, failure) and {before.kind, failure.kind} <= set(UNCOUNTED):
            least = min(2 * before.pause, PAUSES[failure.kind].last)
        before = attrs.evolve(before, attempts=0, failures=0)
    failures = (before.failures if before is not None else 0) + 1
    attempts = (before.attempts if before is not None else 0) + (failure.kind not in UNCOUNTED)
    pauses = PAUSES[failure.kind]
    pause = grown(pauses.first, pauses.last, failures)
    pause = max(jittered(pause, random) if pauses.jitter else pause, least)
    retry = Retry(
        resource=failure.resource,
        kind=failure.kind,
        attempts=attempts,
        failures=failures,
        last_error=failure.error,
        signal=failure.signal or (before.signal if before is not None else None),
        reported=before.reported if before is not None else "",
    )
    if is_quarantined(retry, settings):
        pause = max(pause, float(settings.reconcile_interval_seconds))
    pause = max(bounded_by_life(pause, life), failure.retry_after)
    pause = min(pause, longest_pause(failure.kind, settings))
    return attrs.evolve(retry, next_try_at=now + pause, pause=pause)


def bounded_by_life(pause: float, life: float) -> float:
    """Return a pause that is at most a tenth of the remaining ``life`` (seconds), or a minute if that is longer."""
    return min(pause, max(MIN_BOUND, life / LIFE_SHARE))


def _same_work(before: Retry, failure: Failure) -> bool:
    kinds = {before.kind, failure.kind}
    separate = (RetryKind.PENDING, RetryKind.LAGGING, RetryKind.DOWN)
    if len(kinds) == 2 and not kinds.isdisjoint(separate) and kinds != {RetryKind.PENDING, RetryKind.DOWN}:
        return False
    return _same_signal(before, failure)


def _same_signal(before: Retry, failure: Failure) -> bool:
    if failure.signal is None or before.signal is None:
        return True
    return identity(before.signal) == identity(failure.signal)


def is_quarantined(retry: Retry, settings: ApplicationConfig) -> bool:
    """Return whether work failed so often that it is not retried before the next comparison with the plane."""
    return retry.kind is RetryKind.REFUSED and retry.attempts >= settings.poison_attempts


def longest_pause(kind: RetryKind, settings: ApplicationConfig) -> float:
    """Return the longest pause of a kind."""
    if kind in (RetryKind.PENDING, RetryKind.DOWN):
        return PAUSES[kind].last
    return max(MAX_RETRY_AFTER, float(settings.reconcile_interval_seconds))


def left_of(retry: Retry, now: float, settings: ApplicationConfig) -> float:
    """Return the seconds until a retry that another run recorded is due, by the wall clock.

    If that is more than its whole pause, the clock has been set back since, and the retry is due.
    """
    left, whole = retry.next_try_at - now, retry.pause or longest_pause(retry.kind, settings)
    return left if 0 < left <= whole + ROUNDING else 0.0


def switch_due(record: CertRecord, due: float, now: float) -> float:
    """Return when the staged material of a certificate may be tried; the certificate itself is due at ``due``.

    A tolerated failure of what is live does not delay it.
    """
    gone_wrong = record.last_outcome in (OutcomeKind.FAILED, OutcomeKind.ROLLED_BACK)
    return due if gone_wrong else min(due, now)


def retriable(record: CertRecord) -> bool:
    """Return whether a certificate has failed items that no switch will retry."""
    return bool(record.pending and record.generation and not record.staged and not record.held)


def without_not_due(
    plan: InstallPlan,
    certs: Mapping[int, DesiredCert],
    not_due: Iterable[CertRecord],
    due_now: Collection[int],
    items_not_due: Collection[str] = (),
) -> InstallPlan:
    """Return a plan without failed work that is not due yet.

    ``not_due``: the records of certificates that are not due. ``items_not_due``: failed items that concern no
    certificate and are not due. ``due_now``: new or named certificates, whose work is due. Work of a certificate whose
    record has another generation than the live one is due, too: a crash interrupted it.
    """
    waiting = [
        record
        for record in not_due
        if record.pending and record.cert_id not in due_now and certs[record.cert_id].live == record.generation
    ]
    failed = {item for record in waiting for item in record.pending if item in plan.concerns}
    failed |= {item for item in items_not_due if plan.concerns.get(item) == ()}
    items = {item for item in failed if set(plan.concerns[item]).isdisjoint(due_now)}
    if not items:
        return plan
    groups = (_without(one, items) for one in plan.groups)
    return attrs.evolve(
        plan,
        groups=tuple(one for one in groups if not one.idle),
        not_due=frozenset(record.cert_id for record in waiting if not items.isdisjoint(record.pending)),
    )


def _without(one: GroupPlan, items: Collection[str]) -> GroupPlan:
    """Return a group without the work of some items; a pair is left out whole.

    A command that succeeded is kept if its files are written again: nothing else would show later that it is due.
    """
    file_groups = {write.file_group for step in one.steps for write in step.writes if write.item in items}
    steps = (
        Step(
            tuple(write for write in step.writes if write.file_group not in file_groups),
            tuple(run for run in step.runs if run.stale_marker or not set(run.items) <= set(items)),
        )
        for step in one.steps
    )
    return attrs.evolve(
        one,
        steps=tuple(step for step in steps if step.writes or step.runs),
        verifications=tuple(proof for proof in one.verifications if proof.item not in items),
    )
