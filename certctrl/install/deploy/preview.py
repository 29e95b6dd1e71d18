"""Outlook: what would be done now, and what waits here for what. Changes nothing."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from certctrl.errors import DiskError
from certctrl.install.deploy.candidates import not_yet_due, open_now, staged_before
from certctrl.install.deploy.commands import pinned_otherwise
from certctrl.install.deploy.context import Site
from certctrl.install.deploy.observe import planned
from certctrl.install.deploy.results import Ledger, with_facts
from certctrl.install.deploy.staging import Candidate
from certctrl.install.plan.retries import switch_due
from certctrl.install.plan.values import InstallPlan
from certctrl.install.plan.window import may_switch_at
from certctrl.model.plan import InstallItem
from certctrl.model.records import CertRecord


async def plan_now(site: Site, items: Sequence[InstallItem], *, patient: bool = False) -> InstallPlan:
    """Return what a convergence of everything would do now. Raises DiskError, StateCorruptError.

    ``patient``: without what failed and is not due yet.
    """
    policy, records = site.policy(), list(site.book.records.values())
    ledger = Ledger(site=site)
    staged, _ = await site.offload(staged_before, site, records, (), True)
    now = open_now(site, staged, ledger, ignore_window=False)
    found, _ = await planned(site, items, records, now, policy=policy, fresh=now.keys() if patient else None)
    refusals = (*found.refusals, *await site.offload(pinned_otherwise, site, found))
    return attrs.evolve(found, refusals=refusals, held=not_yet_due(site, records) | ledger.waiting)


async def with_renewal(site: Site, record: CertRecord) -> CertRecord | None:
    """Return the record as it would be with the renewal that is staged for it; None: there is none to be read."""
    if not record.staged or record.staged == record.generation:
        return None
    try:
        staged = await site.offload(Candidate.read, site, record.name, record.staged)
    except DiskError:
        return None
    return with_facts(record, staged)


def window_turns(site: Site) -> dict[int, float]:
    """Return when each certificate whose staged material waits for the window may be tried (wall-clock seconds)."""
    now, window = site.wall_now(), site.policy().window
    if window is None:
        return {}
    return {
        record.cert_id: max(may_switch_at(now, window, record), switch_due(record, now))
        for record in site.book.records.values()
        if record.staged and not record.held
    }
