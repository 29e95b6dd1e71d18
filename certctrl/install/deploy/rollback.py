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
from certctrl.install.deploy.staging import Candidate
from certctrl.model.plan import InstallItem, Outcome, OutcomeKind
from certctrl.text import one_line


async def roll_back(context: Context, locks: Locks, name: str, to: str | None, items: Sequence[InstallItem]) -> Outcome:
    """Switch back, run the commands, verify, and hold: renewals are staged but not switched to until released.

    ``to``: a generation's id; None: the newest valid one before the live one. The generation that was live is kept
    as staged, so that a release restores it. Raises UsageError if there is nothing to switch to.
    """
    record = context.records.by_name(name)
    if record is None:
        raise UsageError(f"there is no certificate {one_line(name)} on this host", fix="cert-ctrl list-certs")
    target: Candidate = await context.offload(_target, context, name, to)
    newer = record.staged or (record.generation if record.generation != target.generation else "")
    results = Results(context=context, concerned=frozenset({record.cert_id}), asked_by="operator")
    candidates = {record.cert_id: target}
    # it may lack the file of an item that was added later
    candidates |= await with_missing_files(context, items, candidates, results, everything=False)
    target = candidates[record.cert_id]
    context.records.note(attrs.evolve(record, held=True))
    groups = groups_of(context, items, candidates)
    await Convergence(
        context=context,
        locks=locks,
        items=items,
        candidates=candidates,
        results=results,
        examine=frozenset({record.cert_id}),
    ).run(group for group in groups if record.cert_id in group.cert_ids)
    outcome = results.outcomes.get(record.cert_id) or Outcome(kind=OutcomeKind.UNCHANGED)
    after = context.records.certificates[record.cert_id]
    if after.generation == target.generation:
        context.records.note(attrs.evolve(after, held=True, staged=newer))
        outcome = attrs.evolve(outcome, detail=outcome.detail or f"held at {target.generation} until released")
    else:  # the switch was undone: nothing has changed
        context.records.note(attrs.evolve(after, held=record.held, staged=record.staged))
    await context.records.save()
    return outcome


def _target(context: Context, name: str, to: str | None) -> Candidate:
    ids = context.generations.ids(name)
    if to is not None:
        if to not in ids:
            known = ", ".join(ids) or "none"
            raise UsageError(f"{one_line(name)} has no generation {one_line(to)}", fix=f"kept on this host: {known}")
        return Candidate.read(context, name, to)
    live, now = context.generations.live_id(name), context.wall_now()
    older = ids[: ids.index(live)] if live in ids else ids
    for generation in reversed(older):
        try:
            facts = context.generations.manifest(name, generation)["facts"]
        except DiskError:
            continue
        if not facts.get("placeholder") and float(facts["not_after"]) > now:
            return Candidate.read(context, name, generation)
    raise UsageError(f"{one_line(name)} has no earlier generation that is still valid", fix="cert-ctrl renew")
