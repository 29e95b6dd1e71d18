"""Roll one certificate back to an earlier generation and hold it there (`cert-ctrl rollback`)."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from certctrl.errors import DiskError, UsageError
from certctrl.install.deploy.candidates import with_missing_files
from certctrl.install.deploy.context import Context, Locks
from certctrl.install.deploy.converge import Convergence
from certctrl.install.deploy.groups import groups_of
from certctrl.install.deploy.results import Results
from certctrl.install.deploy.retry_table import cert_resource
from certctrl.install.deploy.staging import Candidate
from certctrl.model.plan import InstallItem, Outcome, OutcomeKind
from certctrl.model.records import CertRecord, Retry, Stage
from certctrl.text import one_line


async def roll_back(context: Context, locks: Locks, name: str, to: str | None, items: Sequence[InstallItem]) -> Outcome:
    """Switch back, run the commands, verify, and hold: until a release, renewals are staged but not switched to.

    ``to``: the id of a generation; None: the newest valid one before the live one that was proven in service. The
    generation that was live is kept as staged, so that a release restores it. Raises UsageError if there is nothing to
    switch to.
    """
    record = context.records.by_name(name)
    if record is None:
        raise UsageError(f"there is no certificate {one_line(name)} on this host", fix="cert-ctrl list-certs")
    target: Candidate = await context.offload(_target, context, record, to)
    newer = record.staged or (record.generation if record.generation != target.generation else "")
    results = Results(context=context, concerned=frozenset({record.cert_id}), asked_by="operator")
    failed_before = context.records.retries.of(cert_resource(record.cert_id))
    candidates = {record.cert_id: target}
    # it may lack files of items that were added later
    made, faults = await with_missing_files(context, items, candidates, candidates.keys())
    if record.cert_id in faults:
        return Outcome(kind=OutcomeKind.FAILED, detail=str(faults[record.cert_id]))
    candidates |= made
    target = candidates[record.cert_id]
    context.records.note(attrs.evolve(record, held=True, batch=""))  # the others of its batch stay as they are
    await _converge(context, locks, candidates, items, results)
    outcome = results.outcomes.get(record.cert_id) or Outcome(kind=OutcomeKind.UNCHANGED)
    if not outcome.ok and context.records.certificates[record.cert_id].generation == target.generation:
        await _switch_back(context, locks, record, items)  # some files could not be written: undo the whole rollback
    after = context.records.certificates[record.cert_id]
    if after.generation == target.generation:
        since = record.held_since if record.held else context.wall_now()
        batch = record.batch if record.staged else ""
        after = attrs.evolve(after, held=outcome.ok or record.held, held_since=since, staged=newer, batch=batch)
        context.records.note(after)
        outcome = attrs.evolve(outcome, detail=outcome.detail or f"held at {target.generation} until released")
    else:
        _restore(context, record, after, failed_before)
    await context.records.save()
    return outcome


async def _converge(
    context: Context, locks: Locks, candidates: dict[int, Candidate], items: Sequence[InstallItem], results: Results
) -> None:
    await Convergence(
        context=context,
        locks=locks,
        items=items,
        candidates=candidates,
        results=results,
        examine=frozenset(candidates),
    ).run(group for group in groups_of(context, items, candidates) if not group.cert_ids.isdisjoint(candidates))


async def _switch_back(context: Context, locks: Locks, record: CertRecord, items: Sequence[InstallItem]) -> None:
    """Return to the generation that was live before a rollback that failed."""
    try:
        before: Candidate = await context.offload(Candidate.read, context, record.name, record.generation)
    except DiskError:
        return
    await _converge(context, locks, {record.cert_id: before}, items, Results(context=context, asked_by="operator"))


def _restore(context: Context, record: CertRecord, after: CertRecord, failed_before: Retry | None) -> None:
    """Record that a rollback changed nothing; if the live certificate is served, its previous result still counts."""
    after = attrs.evolve(after, held=record.held, staged=record.staged, batch=record.batch)
    if after.stage is Stage.ACTIVATED or after.stage is record.stage:
        after = attrs.evolve(after, last_outcome=record.last_outcome, pending=record.pending)
        context.records.retries.restore(cert_resource(record.cert_id), failed_before)
    context.records.note(after)


def _target(context: Context, record: CertRecord, to: str | None) -> Candidate:
    name, ids = record.name, context.generations.ids(record.name)
    if to is not None:
        if to not in ids:
            known = ", ".join(ids) or "none"
            raise UsageError(f"{one_line(name)} has no generation {one_line(to)}", fix=f"kept on this host: {known}")
        return Candidate.read(context, name, to)
    live, now = context.generations.live_id(name), context.wall_now()
    older = ids[: ids.index(live)] if live in ids else ids
    if record.former is not None:  # others have failed, or a crash came before they were tried
        older = [one for one in older if one in (*record.former, record.activated)]
    for generation in reversed(older):
        try:
            facts = context.generations.manifest(name, generation)["facts"]
        except DiskError:
            continue
        if not facts.get("placeholder") and float(facts["not_after"]) > now:
            return Candidate.read(context, name, generation)
    what = f"{one_line(name)} has no earlier generation that has served and is still valid"
    raise UsageError(what, fix="cert-ctrl renew")
