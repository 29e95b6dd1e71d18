"""One attempt at one set that has been switched: carry it out, or go back and bring the old state into service."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import attrs
import trio

from certctrl.errors import CertctrlError, DiskError
from certctrl.install.deploy.candidates import prune_unused
from certctrl.install.deploy.context import Site
from certctrl.install.deploy.executor import Execution, Tolerated
from certctrl.install.deploy.observe import View, planned
from certctrl.install.deploy.results import Ledger
from certctrl.install.deploy.staging import Candidate
from certctrl.install.plan.values import InstallPlan, Level, PlanSet, Run, Verification, Write
from certctrl.model.plan import InstallItem


@attrs.define(eq=False, kw_only=True)
class Attempt:
    """What is tried together: certificates of one set whose links lead to their candidates already."""

    site: Site
    items: Sequence[InstallItem]
    """Those of the set."""
    plan: InstallPlan
    plan_set: PlanSet
    view: View
    batch: Mapping[int, Candidate]
    """What is on trial: just switched, or switched before a crash and never proven."""
    previous: Mapping[int, str]
    """Certificate id -> generation to go back to; absent: there is none."""
    ledger: Ledger
    forward_only: bool = False

    async def run(self) -> bool:
        """Carry out or go back; the ledger knows the end. Return False when the old state does not serve either."""
        execution = Execution(site=self.site, plan=self.plan_set, certs=self.view.certs)
        serves = True
        try:
            await execution.carry_out()
        except CertctrlError as error:
            serves = await self._go_back(execution, error)
        except BaseException:  # cancelled: what is written stays, and the markers say that the rest is owed
            await execution.close()
            raise
        else:
            await self._succeed(execution)
        await self.ledger.save()
        await self.site.gathered(prune_unused, self.site, list(self.batch))
        return serves

    def note_success(self) -> None:
        """Note a set whose switch was all that there was to do."""
        self._note_success(Execution(site=self.site, plan=self.plan_set, certs=self.view.certs))

    async def _succeed(self, execution: Execution) -> None:
        try:
            await execution.close()
        except DiskError as error:
            execution.notes.append(f"what was kept for going back stays until the next start: {error}")
        self._note_success(execution)

    def _note_success(self, execution: Execution) -> None:
        self.site.book.mark(execution.keys)
        changed = self._changed(execution)
        left_out = self.plan.left_out
        for cert_id in self.plan_set.cert_ids or (0,):
            cert = self.view.certs.get(cert_id)
            tolerated = [one for one in execution.tolerated if cert_id in self._whom(one, changed)]
            self.ledger.done(
                cert_id,
                live=cert.generation if cert is not None else "",
                candidate=self.batch.get(cert_id) or self.view.strays.get(cert_id),
                targets=self.plan.targets.get(cert_id, ()),
                changed=cert_id in changed,
                left_out=left_out.get(cert_id, ()),
                notes=(*(one.why for one in tolerated), *(execution.notes if cert_id in changed else ())),
                owed=frozenset[str]().union(*(one.items for one in tolerated)),
                resting=cert_id in self.plan.resting,
            )

    def _whom(self, one: Tolerated, changed: set[int]) -> Collection[int]:
        """Return whose failure it is: of those it is about, the ones that changed, if any did."""
        about = one.cert_ids & set(self.plan_set.cert_ids)
        return (about & changed) or about or changed

    def _changed(self, execution: Execution) -> set[int]:
        """Return whose files changed; when only a command had to run, whom it is about; 0: no certificate."""
        changed = {write.cert_id for write in execution.written if write.cert_id is not None} | set(self.batch)
        if not changed:
            known = self.site.book.records  # a withdrawn one too: its commands are about its going
            ran = (run for run in self._runs() if not execution.ran.isdisjoint(run.items))
            changed = {cert_id for run in ran for cert_id in run.cert_ids if cert_id in known}
        return changed or {0}

    def _whose_failure(self, execution: Execution) -> set[int]:
        """Return whose files changed, or ran a command; when it did not come to that, whom the work is about."""
        found = self._changed(execution)
        if found == {0}:
            known, levels = self.site.book.records, self.plan_set.levels
            found = {write.cert_id for level in levels for write in level.writes if write.cert_id is not None}
            work: list[Run | Verification] = [*self._runs(), *self.plan_set.verifications]
            found |= {cert_id for one in work for cert_id in one.cert_ids}
            found &= known.keys()
        return found or {0}

    def _runs(self) -> list[Run]:
        return [run for level in self.plan_set.levels for run in level.runs]

    # --- going back -----------------------------------------------------------------------------------------------

    async def _go_back(self, execution: Execution, error: CertctrlError) -> bool:
        """Restore files and links, run the commands once more for them, and note it."""
        back = {} if self.forward_only else {i: self.previous[i] for i in self.batch if i in self.previous}
        why, serves, facts = str(error), True, dict[int, Candidate]()
        if back or (execution.copies and not self.forward_only):
            with trio.CancelScope(shield=True):  # short, and half a way back would be the worst place
                fault = await self._restore(execution, back)
            if fault:
                why, back = f"{why}; going back failed: {fault}", {}
            fault, facts = await self._serve_old(execution, set(back))
            serves = not fault
            why += f"; and what was there before does not serve either: {fault}" if fault else ""
        else:
            serves = bool(self.batch)  # with nothing on trial it was the old state that failed
            await execution.close()
        owed = self.plan_set.due
        for cert_id, candidate in self.batch.items():
            if cert_id in back:
                self.ledger.went_back(
                    cert_id,
                    why,
                    candidate,
                    back[cert_id],
                    facts=facts.get(cert_id),
                    proven=serves,
                    owed=() if serves else owed,
                )
            else:
                self.ledger.failed(cert_id, why, kept=candidate, owed=owed)
        for cert_id in self._whose_failure(execution) - set(self.batch):
            self.ledger.failed(cert_id, why, owed=owed)
        return serves

    async def _restore(self, execution: Execution, back: Mapping[int, str]) -> str:
        """Put the old state on disk; return why it could not be done, empty when it was."""
        site = self.site
        try:
            # a crash from here on must not find markers that call the old state served
            if site.book.unmark(execution.ran):
                await site.book.save()
            await execution.undo()
            if back:
                await site.offload(site.generations.switch, {self.batch[i].name: to for i, to in back.items()})
        except DiskError as error:
            return str(error)
        return ""

    async def _serve_old(self, execution: Execution, back: set[int]) -> tuple[str, dict[int, Candidate]]:
        """Run again what ran for the new state, now for the old, and prove it.

        Return what failed, and what is live now of certificates whose records describe something else.
        """
        site, policy = self.site, self.site.policy()
        stay = {i: candidate for i, candidate in self.batch.items() if i not in back}
        records = [site.book.records[i] for i in self.plan_set.cert_ids if i in site.book.records]
        plan, view = await planned(site, self.items, records, stay, policy=policy, unproven=back, examine=back)
        for plan_set in plan.sets:
            old = Execution(site=site, plan=self._undoing(plan_set, execution.ran, back, view), certs=view.certs)
            try:
                await old.carry_out()
            except CertctrlError as error:
                return str(error), dict(view.strays)
            finally:
                site.book.mark(old.keys)
                await old.close()
        return "", dict(view.strays)

    def _undoing(self, plan_set: PlanSet, ran: set[str], back: set[int], view: View) -> PlanSet:
        """Return the part of a set that undoes an attempt: commands that ran, proofs about what went back.

        Files too, where the failed certificate's lie: `undo` took back what this attempt wrote, but a crash or a
        cancelled call before it may have left some. What somebody else put there is not touched.
        """

        def is_failed_ones(write: Write) -> bool:
            failed = self.view.certs.get(write.cert_id or 0)
            return failed is not None and view.facts[write.path].sha256 == failed.files.get(write.source)

        levels = [
            Level(
                tuple(write for write in level.writes if write.cert_id in back and is_failed_ones(write)),
                tuple(run for run in level.runs if ran & set(run.items)),
            )
            for level in plan_set.levels
        ]
        return attrs.evolve(
            plan_set,
            levels=tuple(level for level in levels if level.writes or level.runs),
            verifications=tuple(one for one in plan_set.verifications if one.item in ran or back & set(one.cert_ids)),
        )
