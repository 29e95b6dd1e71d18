"""Transaction: one try at a group that has been switched; it succeeds, or rolls back to the previous state."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import attrs
import trio

from certctrl import lean
from certctrl.errors import CertctrlError, DiskError
from certctrl.install.deploy import atomic
from certctrl.install.deploy.context import Context
from certctrl.install.deploy.executor import Executor, Tolerated
from certctrl.install.deploy.observe import ObservedState, observe_and_plan
from certctrl.install.deploy.results import Results
from certctrl.install.deploy.staging import Candidate
from certctrl.install.plan.values import GroupPlan, InstallPlan, Run, Step, Verification, Write
from certctrl.model.plan import InstallItem, Outcome, OutcomeKind, cause_of

NO_OUTCOME = Outcome(kind=OutcomeKind.UNCHANGED)
"""The outcome of a certificate that has none in this call."""


SINCE_CRASH = "it is below certs/ since the last run, and not in service yet"


@lean.define(eq=False, kw_only=True)
class Transaction:
    """One try at a group; unless there is a ``fault``, the links of its certificates already lead to the candidates."""

    context: Context
    items: Sequence[InstallItem]
    """Items of the group."""
    plan: InstallPlan
    group_plan: GroupPlan
    observed: ObservedState
    executor: Executor
    """Performs the steps; its files are staged."""
    fault: CertctrlError | None = None
    """Why the files could not be staged, so that nothing of the group was switched."""
    batch: Mapping[int, Candidate]
    """Unproven candidates: just switched, or switched before a crash and never proven."""
    previous: Mapping[int, str]
    """Certificate id -> generation to roll back to; absent: there is none."""
    results: Results
    forward_only: bool = False
    """Whether a failure rolls nothing back; see `Convergence`."""
    defers: bool = False
    """Whether candidates that a failure does not concern are deferred to another try instead of recorded."""
    deferred: list[Candidate] = attrs.field(factory=list)
    """The deferred candidates, which were rolled back with the others."""

    async def run(self) -> frozenset[int]:
        """Run the steps or roll back, and record it; return the certificates whose previous state is not served."""
        if self.fault is None:
            broken = await self._perform()
        else:
            broken = frozenset()
            self._record_unswitched(self.fault)
        await self.results.save()
        self.context.outdated.update(self.batch)
        return broken.union(*(one.cert_ids for one in self.executor.unrelated))

    async def _perform(self) -> frozenset[int]:
        executor = self.executor
        try:
            await executor.run()
        except CertctrlError as error:
            return await self._roll_back(executor, error)
        except BaseException:  # cancelled: written files stay, and the markers show that the rest is pending
            await executor.close()
            raise
        await self._succeed(executor)
        return frozenset()

    async def _succeed(self, executor: Executor) -> None:
        try:
            await executor.close()
        except DiskError as error:
            executor.notes.append(f"the backup of the previous files stays until the next start: {error}")
        self._record_success(executor)

    def _record_success(self, executor: Executor) -> None:
        self.context.records.mark(executor.keys)
        changed = self._changed(executor)
        left_out = self.plan.left_out
        unrelated = self._record_unrelated(executor)
        for cert_id in (one for one in self.group_plan.cert_ids or (0,) if one not in unrelated):
            cert = self.observed.certs.get(cert_id)
            tolerated = [one for one in executor.tolerated if cert_id in self._counts_for(one, changed)]
            self.results.succeeded(
                cert_id,
                live=cert.generation if cert is not None else "",
                candidate=self.batch.get(cert_id) or self.observed.unrecorded.get(cert_id),
                targets=self.plan.targets.get(cert_id, ()),
                changed=cert_id in changed,
                left_out=left_out.get(cert_id, ()),
                notes=(*(one.why for one in tolerated), *(executor.notes if cert_id in changed else ())),
                pending=frozenset[str]().union(*(one.items for one in tolerated)),
                not_due=cert_id in self.plan.not_due,
                served=cert_id in executor.served,
            )

    def _record_unrelated(self, executor: Executor) -> set[int]:
        """Record tolerated failures for the certificates that they concern; return those."""
        if about_none := [one.why for one in executor.unrelated if not one.cert_ids]:  # such as the command of a CA
            first = next(one for one in executor.unrelated if not one.cert_ids)
            self.results.failed(0, "; ".join(about_none), cause=first.cause)
        about = {cert_id for one in executor.unrelated for cert_id in one.cert_ids}
        about &= self.context.records.certificates.keys() - {one.cert_id for one in self.deferred}
        reported = {cert_id for cert_id in about if not self.results.outcomes.get(cert_id, NO_OUTCOME).ok}
        for cert_id in sorted(about - reported):
            mine = [one for one in executor.unrelated if cert_id in one.cert_ids]
            pending = frozenset[str]().union(*(one.items for one in mine))
            kept = self.batch.get(cert_id)  # the service is down, so it would not serve the previous one either
            self.results.failed(
                cert_id,
                "; ".join(one.why for one in mine),
                kept=kept,
                stays="the new files stay",
                pending=self.group_plan.due if kept is not None else pending,
                down=all(one.down for one in mine),
                cause=mine[0].cause,
            )
        return about

    def _counts_for(self, one: Tolerated, changed: set[int]) -> Collection[int]:
        """Return the certificates that a tolerated failure concerns, only the changed ones if there are any."""
        about = one.cert_ids & set(self.group_plan.cert_ids)
        return (about & changed) or about or changed

    def _changed(self, executor: Executor) -> set[int]:
        """Return the certificates with changed files, otherwise those of the commands that ran; 0 stands for none."""
        changed = {write.cert_id for write in executor.copies.written if write.cert_id is not None} | set(self.batch)
        if not changed:
            known = self.context.records.certificates  # includes withdrawn ones: their commands follow the removal
            ran = (run for run in self._runs() if not executor.ran.isdisjoint(run.items))
            changed = {cert_id for run in ran for cert_id in run.cert_ids if cert_id in known}
        return changed or {0}

    def _failed_for(self, executor: Executor) -> set[int]:
        """Return the certificates that a failure concerns: the changed ones, otherwise those of all work.

        If nothing was written, and so nothing undone, only those of the failed items.
        """
        found = self._changed(executor)
        if not executor.copies.written and (blamed := executor.blamed & self.context.records.certificates.keys()):
            return blamed
        if found == {0}:
            known, steps = self.context.records.certificates, self.group_plan.steps
            found = {write.cert_id for step in steps for write in step.writes if write.cert_id is not None}
            work: list[Run | Verification] = [*self._runs(), *self.group_plan.verifications]
            found |= {cert_id for one in work for cert_id in one.cert_ids}
            found &= known.keys()
        return found or {0}

    def _runs(self) -> list[Run]:
        return [run for step in self.group_plan.steps for run in step.runs]

    def _defer(self, executor: Executor) -> None:
        """Defer the candidates that a failure does not concern; an atomic batch fails as a whole."""
        if self.defers and executor.blamed:
            blamed = atomic.with_siblings(self.context, executor.blamed)
            self.deferred += [one for cert_id, one in self.batch.items() if cert_id not in blamed]

    def _record_unswitched(self, error: CertctrlError) -> None:
        """Record that files cannot be written at their destinations, so that nothing was changed."""
        executor, pending = self.executor, self.group_plan.due
        self._defer(executor)
        for candidate in (one for one in self.batch.values() if one not in self.deferred):
            cert_id = candidate.cert_id
            if self.observed.certs[cert_id].live == candidate.generation:  # since a crash
                self.results.failed(cert_id, error, kept=candidate, stays=SINCE_CRASH, pending=pending)
            else:
                self.results.failed(cert_id, error, staged=candidate)
        unrelated = self._record_unrelated(executor)
        for cert_id in self._failed_for(executor) - set(self.batch) - unrelated:
            self.results.failed(cert_id, str(error), pending=pending, cause=cause_of(error))

    # --- rolling back ---------------------------------------------------------------------------------------------

    async def _roll_back(self, executor: Executor, error: CertctrlError) -> frozenset[int]:
        """Restore files and links, run the commands for them, and record it; return the certificates not served."""
        back = {} if self.forward_only else {i: self.previous[i] for i in self.batch if i in self.previous}
        why, broken, facts = str(error), frozenset[int](), dict[int, Candidate]()
        cause = executor.cause or cause_of(error)
        restored = False
        self._defer(executor)
        if back or (executor.copies.undoable and not self.forward_only):
            with trio.CancelScope(shield=True):  # short, and must not stop half-way
                fault = await self._restore(executor, back)
            restored = not fault
            if fault:
                why, back = f"{why}; the rollback failed: {fault}", {}
            fault, broken, facts = await self._serve_previous(executor, set(back))
            why += f"; the previous state does not serve either: {fault}" if fault else ""
        else:
            if not self.batch:  # then the previous state failed
                broken = frozenset(executor.blamed or self.group_plan.cert_ids)
            await executor.close()
        pending, deferred = self.group_plan.due, {one.cert_id for one in self.deferred}
        for cert_id, candidate in self.batch.items():
            if cert_id in deferred:
                continue
            if cert_id in back:
                self.results.rolled_back(
                    cert_id,
                    why,
                    candidate,
                    back[cert_id],
                    facts=facts.get(cert_id),
                    proven=cert_id not in broken,
                    pending=pending if cert_id in broken else (),
                    cause=cause,
                )
            else:
                stays = self._what_stays(executor, cert_id, restored=restored)
                self.results.failed(cert_id, why, kept=candidate, stays=stays, pending=pending, cause=cause)
        unrelated = self._record_unrelated(executor)
        for cert_id in self._failed_for(executor) - set(self.batch) - unrelated:
            self.results.failed(cert_id, why, pending=pending, cause=cause)
        return broken

    def _what_stays(self, executor: Executor, cert_id: int, *, restored: bool) -> str:
        """Return which files of a certificate without a rollback stay in place, and why.

        ``restored``: files that its copies replaced, which are of another origin, are back.
        """
        if self.forward_only:
            return "it stays in place: what it replaces must not return"
        if cert_id in self.previous:
            return "so the new files stay"
        wanted = any(write.cert_id == cert_id for step in self.group_plan.steps for write in step.writes)
        mine = [write for write in executor.copies.written if write.cert_id == cert_id]
        if restored and any(not write.is_new for write in mine):
            return "there is no earlier generation, so it stays below certs/; the files that were replaced are back"
        if wanted and not mine:
            return "none of its copies was written; there is no earlier generation, so it stays below certs/"
        return "there is no earlier generation, so the new files stay"

    async def _restore(self, executor: Executor, back: Mapping[int, str]) -> str:
        """Restore the previous state on disk; return the error, empty on success."""
        context = self.context
        try:
            # after a crash, no marker may say that the previous state is served
            if context.records.unmark(executor.ran):
                await context.records.save()
            await executor.undo()
            if back:
                await context.offload(context.generations.switch, {self.batch[i].name: to for i, to in back.items()})
        except DiskError as error:
            return str(error)
        return ""

    async def _serve_previous(
        self, executor: Executor, back: set[int]
    ) -> tuple[str, frozenset[int], dict[int, Candidate]]:
        """Run the commands that ran for the new state again for the previous one, and verify it.

        Return the error (empty: none), the certificates that it concerns, and the live generations that the records do
        not describe.
        """
        context, policy = self.context, self.context.policy()
        stay = {i: candidate for i, candidate in self.batch.items() if i not in back}
        records = [record for record in context.records.ours if record.cert_id in self.group_plan.cert_ids]
        plan, observed = await observe_and_plan(
            context, self.items, records, stay, policy=policy, unproven=back, examine=back
        )
        for group_plan in plan.groups:
            old = Executor(
                context=context,
                plan=self._undoing(group_plan, executor.ran, back, observed),
                certs=observed.certs,
                items=executor.items,
                batch=back,
            )
            try:
                await old.run()
            except CertctrlError as error:
                return str(error), frozenset(old.blamed or self.group_plan.cert_ids), dict(observed.unrecorded)
            finally:
                executor.unrelated += old.unrelated
                context.records.mark(old.keys)
                await old.close()
            if down := [one for one in old.unrelated if one.down]:
                return down[0].why, frozenset().union(*(one.cert_ids for one in down)), dict(observed.unrecorded)
        return "", frozenset(), dict(observed.unrecorded)

    def _undoing(self, group_plan: GroupPlan, ran: set[str], back: set[int], observed: ObservedState) -> GroupPlan:
        """Return the part of a plan that undoes this transaction: its commands and verifications.

        It contains files only where those of the failed certificate are: `undo` has restored all files that this
        transaction wrote, but an earlier crash or cancelled call may have left some. Files of others are not touched.
        """

        def is_of_failed(write: Write) -> bool:
            failed = self.observed.certs.get(write.cert_id or 0)
            return failed is not None and observed.destinations[write.path].sha256 == failed.files.get(write.source)

        steps = [
            Step(
                tuple(write for write in step.writes if write.cert_id in back and is_of_failed(write)),
                tuple(run for run in step.runs if ran & set(run.items)),
            )
            for step in group_plan.steps
        ]
        return attrs.evolve(
            group_plan,
            steps=tuple(step for step in steps if step.writes or step.runs),
            verifications=tuple(one for one in group_plan.verifications if one.item in ran or back & set(one.cert_ids)),
        )
