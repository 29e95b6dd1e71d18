"""One attempt at one set that has been switched: carry it out, or go back and bring the old state into service."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import attrs
import trio

from certctrl.errors import CertctrlError, DiskError
from certctrl.install.deploy.candidates import prune_unused
from certctrl.install.deploy.context import Context
from certctrl.install.deploy.executor import Executor, Tolerated
from certctrl.install.deploy.observe import ObservedState, observe_and_plan
from certctrl.install.deploy.results import Results
from certctrl.install.deploy.staging import Candidate
from certctrl.install.plan.values import GroupPlan, InstallPlan, Run, Step, Verification, Write
from certctrl.model.plan import InstallItem


@attrs.define(eq=False, kw_only=True)
class Transaction:
    """What is tried together: certificates of one set whose links lead to their candidates already."""

    context: Context
    items: Sequence[InstallItem]
    """Those of the set."""
    plan: InstallPlan
    group_plan: GroupPlan
    observed: ObservedState
    batch: Mapping[int, Candidate]
    """What is on trial: just switched, or switched before a crash and never proven."""
    previous: Mapping[int, str]
    """Certificate id -> generation to go back to; absent: there is none."""
    results: Results
    forward_only: bool = False

    async def run(self) -> bool:
        """Carry out or go back; the results knows the end. Return False when the old state does not serve either."""
        executor = Executor(context=self.context, plan=self.group_plan, certs=self.observed.certs)
        serves = True
        try:
            await executor.run()
        except CertctrlError as error:
            serves = await self._go_back(executor, error)
        except BaseException:  # cancelled: what is written stays, and the markers say that the rest is owed
            await executor.close()
            raise
        else:
            await self._succeed(executor)
        await self.results.save()
        await self.context.shared_offload(prune_unused, self.context, list(self.batch))
        return serves

    def note_success(self) -> None:
        """Note a set whose switch was all that there was to do."""
        self._note_success(Executor(context=self.context, plan=self.group_plan, certs=self.observed.certs))

    async def _succeed(self, executor: Executor) -> None:
        try:
            await executor.close()
        except DiskError as error:
            executor.notes.append(f"what was kept for going back stays until the next start: {error}")
        self._note_success(executor)

    def _note_success(self, executor: Executor) -> None:
        self.context.records.mark(executor.keys)
        changed = self._changed(executor)
        left_out = self.plan.left_out
        for cert_id in self.group_plan.cert_ids or (0,):
            cert = self.observed.certs.get(cert_id)
            tolerated = [one for one in executor.tolerated if cert_id in self._whom(one, changed)]
            self.results.succeeded(
                cert_id,
                live=cert.generation if cert is not None else "",
                candidate=self.batch.get(cert_id) or self.observed.unrecorded.get(cert_id),
                targets=self.plan.targets.get(cert_id, ()),
                changed=cert_id in changed,
                left_out=left_out.get(cert_id, ()),
                notes=(*(one.why for one in tolerated), *(executor.notes if cert_id in changed else ())),
                owed=frozenset[str]().union(*(one.items for one in tolerated)),
                not_due=cert_id in self.plan.not_due,
            )

    def _whom(self, one: Tolerated, changed: set[int]) -> Collection[int]:
        """Return whose failure it is: of those it is about, the ones that changed, if any did."""
        about = one.cert_ids & set(self.group_plan.cert_ids)
        return (about & changed) or about or changed

    def _changed(self, executor: Executor) -> set[int]:
        """Return whose files changed; when only a command had to run, whom it is about; 0: no certificate."""
        changed = {write.cert_id for write in executor.written if write.cert_id is not None} | set(self.batch)
        if not changed:
            known = self.context.records.certificates  # a withdrawn one too: its commands are about its going
            ran = (run for run in self._runs() if not executor.ran.isdisjoint(run.items))
            changed = {cert_id for run in ran for cert_id in run.cert_ids if cert_id in known}
        return changed or {0}

    def _whose_failure(self, executor: Executor) -> set[int]:
        """Return whose files changed, or ran a command; when it did not come to that, whom the work is about."""
        found = self._changed(executor)
        if found == {0}:
            known, steps = self.context.records.certificates, self.group_plan.steps
            found = {write.cert_id for step in steps for write in step.writes if write.cert_id is not None}
            work: list[Run | Verification] = [*self._runs(), *self.group_plan.verifications]
            found |= {cert_id for one in work for cert_id in one.cert_ids}
            found &= known.keys()
        return found or {0}

    def _runs(self) -> list[Run]:
        return [run for step in self.group_plan.steps for run in step.runs]

    # --- going back -----------------------------------------------------------------------------------------------

    async def _go_back(self, executor: Executor, error: CertctrlError) -> bool:
        """Restore files and links, run the commands once more for them, and note it."""
        back = {} if self.forward_only else {i: self.previous[i] for i in self.batch if i in self.previous}
        why, serves, facts = str(error), True, dict[int, Candidate]()
        if back or (executor.copies and not self.forward_only):
            with trio.CancelScope(shield=True):  # short, and half a way back would be the worst place
                fault = await self._restore(executor, back)
            if fault:
                why, back = f"{why}; going back failed: {fault}", {}
            fault, facts = await self._serve_old(executor, set(back))
            serves = not fault
            why += f"; and what was there before does not serve either: {fault}" if fault else ""
        else:
            serves = bool(self.batch)  # with nothing on trial it was the old state that failed
            await executor.close()
        owed = self.group_plan.due
        for cert_id, candidate in self.batch.items():
            if cert_id in back:
                self.results.rolled_back(
                    cert_id,
                    why,
                    candidate,
                    back[cert_id],
                    facts=facts.get(cert_id),
                    proven=serves,
                    owed=() if serves else owed,
                )
            else:
                self.results.failed(cert_id, why, kept=candidate, owed=owed)
        for cert_id in self._whose_failure(executor) - set(self.batch):
            self.results.failed(cert_id, why, owed=owed)
        return serves

    async def _restore(self, executor: Executor, back: Mapping[int, str]) -> str:
        """Put the old state on disk; return why it could not be done, empty when it was."""
        context = self.context
        try:
            # a crash from here on must not find markers that call the old state served
            if context.records.unmark(executor.ran):
                await context.records.save()
            await executor.undo()
            if back:
                await context.offload(context.generations.switch, {self.batch[i].name: to for i, to in back.items()})
        except DiskError as error:
            return str(error)
        return ""

    async def _serve_old(self, executor: Executor, back: set[int]) -> tuple[str, dict[int, Candidate]]:
        """Run again what ran for the new state, now for the old, and prove it.

        Return what failed, and what is live now of certificates whose records describe something else.
        """
        context, policy = self.context, self.context.policy()
        stay = {i: candidate for i, candidate in self.batch.items() if i not in back}
        records = [
            context.records.certificates[i] for i in self.group_plan.cert_ids if i in context.records.certificates
        ]
        plan, observed = await observe_and_plan(
            context, self.items, records, stay, policy=policy, unproven=back, examine=back
        )
        for group_plan in plan.groups:
            old = Executor(
                context=context, plan=self._undoing(group_plan, executor.ran, back, observed), certs=observed.certs
            )
            try:
                await old.run()
            except CertctrlError as error:
                return str(error), dict(observed.unrecorded)
            finally:
                context.records.mark(old.keys)
                await old.close()
        return "", dict(observed.unrecorded)

    def _undoing(self, group_plan: GroupPlan, ran: set[str], back: set[int], observed: ObservedState) -> GroupPlan:
        """Return the part of a set that undoes an attempt: commands that ran, proofs about what went back.

        Files too, where the failed certificate's lie: `undo` took back what this attempt wrote, but a crash or a
        cancelled call before it may have left some. What somebody else put there is not touched.
        """

        def is_failed_ones(write: Write) -> bool:
            failed = self.observed.certs.get(write.cert_id or 0)
            return failed is not None and observed.destinations[write.path].sha256 == failed.files.get(write.source)

        steps = [
            Step(
                tuple(write for write in step.writes if write.cert_id in back and is_failed_ones(write)),
                tuple(run for run in step.runs if ran & set(run.items)),
            )
            for step in group_plan.steps
        ]
        return attrs.evolve(
            group_plan,
            steps=tuple(step for step in steps if step.writes or step.runs),
            verifications=tuple(one for one in group_plan.verifications if one.item in ran or back & set(one.cert_ids)),
        )
