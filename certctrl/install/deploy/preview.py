"""Preview the next `converge`: planned work, and candidates that have to wait. Changes nothing."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from certctrl.errors import DiskError
from certctrl.install.deploy.candidates import files_to_make, may_make, not_waiting, not_yet_due, staged_before
from certctrl.install.deploy.commands import refused_by_pin
from certctrl.install.deploy.context import Context
from certctrl.install.deploy.observe import observe_and_plan
from certctrl.install.deploy.results import Results, with_facts
from certctrl.install.deploy.retry_table import cert_resource
from certctrl.install.deploy.staging import Candidate
from certctrl.install.plan.retries import switch_due
from certctrl.install.plan.values import InstallPlan
from certctrl.model.plan import InstallItem
from certctrl.model.records import CertRecord


async def plan_now(context: Context, items: Sequence[InstallItem], *, due_only: bool = False) -> InstallPlan:
    """Return the plan of a `converge` of everything. Raises DiskError, StateCorruptError.

    ``due_only``: without failed items that are not due yet.
    """
    policy, records = context.policy(), context.records.ours
    results = Results(context=context)
    staged = (await context.offload(staged_before, context, records, (), True)).candidates
    now = not_waiting(context, staged, results, ignore_window=False)
    makers = [one for one in records if not due_only or one.cert_id in now or may_make(context, one, items)]
    made = await context.offload(files_to_make, context, items, makers, now)
    found, _ = await observe_and_plan(
        context, items, records, now, policy=policy, due_now=now.keys() if due_only else None, made=made
    )
    refusals = (*found.refusals, *await context.offload(refused_by_pin, context, found))
    return attrs.evolve(found, refusals=refusals, held=not_yet_due(context, records) | results.waiting)


async def with_renewal(context: Context, record: CertRecord) -> CertRecord | None:
    """Return the record as it would be after its staged renewal; None if none is staged, or it is unreadable."""
    if not record.staged or record.staged == record.generation:
        return None
    try:
        staged = await context.offload(Candidate.read, context, record.name, record.staged)
    except DiskError:
        return None
    return with_facts(record, staged)


def window_times(context: Context) -> dict[int, float]:
    """Return certificate id -> when its staged material, which waits for the window, may be tried (wall clock).

    When the window opens, all of it is due once. While it is open, failures are retried after their pauses, and by
    their signals.
    """
    now, window = context.wall_now(), context.policy().window
    if window is None:
        return {}
    from certctrl.install.plan.window import may_switch_at  # here: only hosts with a window need it

    times, retries = {}, context.records.retries
    for record in context.records.certificates.values():
        if not record.staged or record.held:
            continue
        resource, opens_at = cert_resource(record.cert_id), may_switch_at(now, window, record)
        if opens_at > now:
            times[record.cert_id] = opens_at
        elif not retries.carries(resource):
            times[record.cert_id] = max(opens_at, switch_due(record, retries.due_at(resource), now))
    return times
