"""Converge: switch, copy, run, verify; or roll back. One object per call of `Installer.converge`.

A power cut may follow each step:

1. all staged generations are settled with one sync: STAGED, nothing live has changed. That of a lone renewal is written
   and settled in the job of 4, if nothing comes in between;
2. the files of each group are staged next to their destinations, with an intent journal for each group. If one cannot
   be written, its group is not switched, so that a full disk changes nothing live;
3. the activation markers of due commands are removed: otherwise the commands would not run again after 4;
4. one switch of the links of all groups: COMMITTED. From here on a restart finds that live links and markers
   disagree, so it runs the pending commands and verifications;
5. the staged files are renamed into place;
6. commands, verifications, then markers and records in one write: ACTIVATED;
7. old generations are pruned only after that, by the caller if the outcomes are to be durable first (`Installer.prune`).

Groups are worked on concurrently; a hanging reload or slow probe of one delays no other. A group that fails is rolled
back as a whole, because a service reads all its certificates on one reload. On the next try each of its certificates is
tried alone, so that one bad certificate does not block nineteen good ones forever. Certificates that the failed command
did not concern are tried again immediately. An atomic batch is one group, and is tried alone as a whole (``atomic.py``).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress

import trio

from certctrl import lean
from certctrl.errors import BatchRefusedError, CertctrlError, DiskError
from certctrl.install.deploy import atomic
from certctrl.install.deploy.candidates import may_make, not_waiting, note_staged, with_missing_files
from certctrl.install.deploy.context import Context, Locks
from certctrl.install.deploy.executor import Executor, load_for
from certctrl.install.deploy.groups import Group, SwitchedPlan, has_files, stale_markers
from certctrl.install.deploy.names import publish
from certctrl.install.deploy.observe import observe_and_plan
from certctrl.install.deploy.results import Results, was_rolled_back
from certctrl.install.deploy.staging import Candidate, settle
from certctrl.install.deploy.transaction import Transaction
from certctrl.install.plan.dependencies import enabled
from certctrl.install.plan.values import GroupPlan, InstallPlan
from certctrl.model.plan import InstallItem, OutcomeKind, named_cause

NOT_TRIED = "not tried: the previous state does not serve either, so this certificate is not the cause"
RECORD_BATCH = 50
"""Groups recorded between two checkpoints: a few milliseconds of work."""


@lean.define(eq=False, kw_only=True)
class Convergence:
    """One call: candidates to switch to, files to compare, and the results."""

    context: Context
    locks: Locks
    items: Sequence[InstallItem]
    candidates: dict[int, Candidate]
    """Generations to switch to; missing files are made once their group is locked."""
    results: Results
    examine: frozenset[int] | None = None
    """Certificates whose destinations are compared; None: all."""
    due_now: frozenset[int] = frozenset()
    """Certificates whose failed items are retried although they are not due."""
    forward_only: bool = False
    """Whether failures roll nothing back: a failed reload must not bring a revoked certificate back."""
    staged: bool = False
    """Whether candidates must still be staged, and not held, once their group is locked: others worked on it before."""

    async def run(self, groups: Iterable[Group]) -> None:
        """Bring groups to their desired state; the outcomes are in the results."""
        ready: list[Group] = []
        busy: list[Group] = []
        for group in groups:
            (ready if self._acquired(group) else busy).append(group)
        if ready and not busy:
            await self._work(ready)
            return
        async with trio.open_nursery() as nursery:
            for group in busy:
                nursery.start_soon(self._later, group, name="a group locked by another call")
            if ready:
                nursery.start_soon(self._work, ready, name="groups")

    def _acquired(self, group: Group) -> bool:
        return self.locks.try_acquire(group.nodes, claimed=self.forward_only)  # a withdrawal has claimed its names

    async def _later(self, group: Group) -> None:
        while not self._acquired(group):
            await self.locks.wait_for_release()
        await self._work([group])

    async def _work(self, groups: Sequence[Group]) -> None:
        """Work on locked groups: one plan and one switch for all, then each group on its own."""
        held = set(groups)
        try:
            try:
                if self.staged:
                    await self._leave_out(groups)
                await self._complete(groups)
                alone = {group: self._alone(group) for group in groups}
                ids_alone = {one.cert_id for units in alone.values() for unit in units for one in unit}
                mine = [one for group in groups for one in self._mine(group)]
                together = {one.cert_id: one for one in mine if one.cert_id not in ids_alone}
                switched = await self._switch(groups, together)
            except CertctrlError as error:  # nothing has changed
                self._record_failure(groups, error)
                with suppress(DiskError):  # if the disk fails again, the caller's save reports it
                    await self.results.save()
                return
            whole = [group for group in groups if not alone[group] and group not in switched.faults]
            switch_only = {group for group in whole if switched.needs_only_switch(group)}
            async with trio.open_nursery() as nursery:
                if finished := [group for group in groups if group in switch_only]:
                    nursery.start_soon(self._finish_switched, finished, switched, held, name="switched groups")
                for group in groups:
                    if group not in switch_only:
                        nursery.start_soon(self._finish, group, switched, alone[group], held, name="group")
        finally:
            for group in held:
                self.locks.release(group.nodes)

    async def _leave_out(self, groups: Iterable[Group]) -> None:
        """Leave out the candidates that were withdrawn, replaced or held before their group was locked."""
        mine = {one.cert_id: one for group in groups for one in self._mine(group)}
        records = self.context.records.certificates
        for cert_id, one in tuple(mine.items()):
            record = records.get(cert_id)
            if record is not None and not one.unwritten and one.generation not in (record.staged, record.generation):
                del mine[cert_id], self.candidates[cert_id]
        now = not_waiting(self.context, mine, self.results, ignore_window=True)  # it was open before
        waiting = [mine[cert_id] for cert_id in mine.keys() - now.keys()]
        await self._write([one for one in waiting if one.unwritten])
        for one in waiting:
            del self.candidates[one.cert_id]

    async def _complete(self, groups: Iterable[Group]) -> None:
        """Make the wanted files that generations lack; a certificate whose files cannot be made fails alone."""
        if not self.context.indexer.of(self.items).empty:  # the items have changed since it was opened
            await self._write([one for one in self.candidates.values() if one.unwritten])
        ids = {cert_id for group in groups for cert_id in group.cert_ids if self._is_due(cert_id)}
        made, faults = await with_missing_files(self.context, self.items, self.candidates, ids)
        self.candidates.update(made)
        for cert_id, error in faults.items():
            self.results.unmade(cert_id, error, self.candidates.pop(cert_id, None), self.items)
        self.results.refuse_batches(self.candidates, faults)

    async def _write(self, unwritten: Sequence[Candidate]) -> None:
        if unwritten:
            written = await self.context.offload(settle, self.context, unwritten)
            self.candidates.update(written)
            note_staged(self.context, written, self.results.together)

    def _is_due(self, cert_id: int) -> bool:
        """Return whether wanted files of a certificate are to be made now."""
        if cert_id in self.candidates or cert_id in self.due_now:
            return True
        if self.examine is not None and cert_id not in self.examine:
            return False
        record = self.context.records.certificates.get(cert_id)
        return record is None or may_make(self.context, record, self.items)

    def _mine(self, group: Group) -> list[Candidate]:
        return [self.candidates[cert_id] for cert_id in sorted(group.cert_ids) if cert_id in self.candidates]

    def _alone(self, group: Group) -> list[list[Candidate]]:
        """Return the parts of a group that are tried one by one, because they were last rolled back together."""
        mine, records = self._mine(group), self.context.records.certificates
        rolled_back = [
            one
            for one in mine
            if one.cert_id in records and records[one.cert_id].last_outcome is OutcomeKind.ROLLED_BACK
        ]
        if not rolled_back or len(mine) == 1:  # not for each certificate of a burst
            return []
        return self._units(mine, rolled_back) if len(self._units(mine, mine)) > 1 else []

    def _units(self, mine: Sequence[Candidate], wanted: Sequence[Candidate]) -> list[list[Candidate]]:
        """Divide the wanted candidates into parts that are tried one by one; an atomic batch is one part."""
        if not wanted:
            return []
        by_id = {one.cert_id: one for one in mine}
        parts = atomic.units(atomic.batches_of(self.context), [*by_id], {one.cert_id for one in wanted})
        return [[by_id[cert_id] for cert_id in part] for part in parts]

    async def _switch(self, groups: Sequence[Group], candidates: dict[int, Candidate]) -> SwitchedPlan:
        """Plan, stage the files, and switch. Raises DiskError; then nothing was switched."""
        context, policy = self.context, self.context.policy()
        nodes = frozenset[str]().union(*(group.nodes for group in groups))
        items = [item for item in enabled(self.items) if f"item:{item.id}" in nodes]
        records = [record for record in context.records.ours if f"cert:{record.cert_id}" in nodes]
        switched = SwitchedPlan(items=items, candidates=candidates)
        unwritten = [one for one in candidates.values() if one.unwritten]

        def write_now() -> None:
            if unwritten:
                candidates.update(written := settle(context, unwritten))
                self.candidates.update(written)

        def switch_now(plan: InstallPlan) -> None:
            if any(group.batch for group in groups):
                return  # its records are made durable first
            if not stale_markers(plan.groups) and (self.forward_only or not any(map(has_files, plan.groups))):
                self._switch_links(switched, plan.groups)

        switched.plan, switched.observed = await observe_and_plan(
            context,
            items,
            records,
            candidates,
            policy=policy,
            examine=self.examine,
            first=write_now,
            then=switch_now,
            due_now=self.due_now | self.candidates.keys(),
            together={cert_id: group.batch for group in groups if group.batch for cert_id in group.cert_ids},
        )
        note_staged(context, {one.cert_id: candidates[one.cert_id] for one in unwritten}, self.results.together)
        for cert_id, fault in switched.observed.faults.items():
            self.results.mark_unreadable(cert_id, fault)
        if not switched.is_switched:
            await self._stage_and_switch(groups, switched)
        return switched

    def _switch_links(self, switched: SwitchedPlan, groups: Iterable[GroupPlan]) -> None:
        """Switch the certificates of some groups. Blocks on the disk. Raises DiskError; then nothing was switched."""
        switching = [one for one in groups if one.switches]
        for one in switching:
            load_for(one, switched.items)
        if certs := [cert for one in switching for cert in one.switches]:
            found = self.context.generations.switch({cert.name: cert.generation for cert in certs})
            switched.previous.update(found)
            with suppress(DiskError):  # tried again with the next switch, and at the next start
                publish(self.context, switched=certs)
        switched.is_switched = True

    async def _stage_and_switch(self, groups: Sequence[Group], switched: SwitchedPlan) -> None:
        """Stage the files of all groups, then switch the groups whose files could all be staged."""
        executors = switched.executors
        switched.faults.update((group, fault) for group in groups if (fault := self._refused(group, switched)))
        try:
            async with trio.open_nursery() as nursery:
                for group in groups:
                    if group in switched.faults or (mine := switched.group_plan(group)) is None:
                        continue
                    if has_files(mine) and not self.forward_only:
                        executors[group] = self._executor(group, switched)
                        nursery.start_soon(self._stage, group, switched, name="stage a group")
            failed = {id(switched.group_plan(group)) for group in switched.faults}
            switching = [one for one in switched.plan.groups if id(one) not in failed]
            changes = {cert.cert_id: cert.generation for one in switching for cert in one.switches}
            noted = atomic.note_switches(self.context, changes)
            if self.context.records.unmark(stale_markers(switching)) or noted:
                await self.context.records.save()
            with trio.CancelScope(shield=True):
                await self.context.offload(self._switch_links, switched, switching)
        except BaseException:
            for executor in executors.values():
                await executor.close()
            raise

    def _refused(self, group: Group, switched: SwitchedPlan) -> BatchRefusedError | None:
        """Return why an atomic batch cannot be deployed as a whole, so that nothing of its group is switched."""
        batches = atomic.batches_of(self.context) if group.batch else {}
        for cert_id in sorted(group.cert_ids & batches.keys() & switched.candidates.keys()):
            if why := switched.observed.faults.get(cert_id):
                return BatchRefusedError(cert_id, why)
            if left_out := switched.plan.left_out.get(cert_id):
                return BatchRefusedError(cert_id, left_out[0])
        return None

    async def _stage(self, group: Group, switched: SwitchedPlan) -> None:
        try:
            await switched.executors[group].stage()
        except CertctrlError as error:
            switched.faults[group] = error

    async def _finish(
        self, group: Group, switched: SwitchedPlan, alone: Sequence[Sequence[Candidate]], held: set[Group]
    ) -> None:
        """Finish one group: the candidates that go together, then the others part by part; then release its lock."""
        try:
            broken, deferred = await self._try(group, switched, defers=True)
            for unit in (*alone, *self._units(deferred, deferred)):
                if any(candidate.cert_id in broken for candidate in unit):
                    for candidate in unit:
                        down = named_cause("run", "service-down")
                        self.results.failed(candidate.cert_id, NOT_TRIED, staged=candidate, down=True, cause=down)
                    continue
                try:
                    single = await self._switch([group], {candidate.cert_id: candidate for candidate in unit})
                except CertctrlError as error:
                    for candidate in unit:
                        self.results.failed(candidate.cert_id, error, staged=candidate)
                    continue
                broken, _ = await self._try(group, single)
            await self.results.save()
        except CertctrlError as error:  # done, but the records could not be written
            self._record_failure([group], error)
        finally:
            held.discard(group)
            self.locks.release(group.nodes)

    async def _finish_switched(self, groups: Sequence[Group], switched: SwitchedPlan, held: set[Group]) -> None:
        """Record groups that are switched and need nothing else, such as most certificates of a burst."""
        done: list[Group] = []
        try:
            for number, group in enumerate(groups):
                batch, has_switched = switched.unproven(group), switched.group_plan(group) is not None
                self._record_without_steps(group, switched, batch, changed=batch if has_switched else ())
                if has_switched:
                    done.append(group)
                if number % RECORD_BATCH == RECORD_BATCH - 1:
                    await trio.lowlevel.checkpoint()
            await self.results.save()
            self.context.outdated.update(cert_id for group in done for cert_id in group.cert_ids)
        except CertctrlError as error:
            self._record_failure(groups, error)
        finally:
            for group in groups:
                held.discard(group)
                self.locks.release(group.nodes)

    async def _try(
        self, group: Group, switched: SwitchedPlan, *, defers: bool = False
    ) -> tuple[frozenset[int], list[Candidate]]:
        """Run the transaction of a group; return the certificates that are not served, and those to try alone."""
        transaction = self._transaction(group, switched, defers=defers)
        if transaction is None:
            return frozenset(), []
        return await transaction.run(), transaction.deferred

    def _transaction(self, group: Group, switched: SwitchedPlan, *, defers: bool = False) -> Transaction | None:
        """Return the transaction of a group; None, after recording it, if there is nothing to do."""
        group_plan = switched.group_plan(group)
        batch = switched.unproven(group)
        if group_plan is None:
            self._record_without_steps(group, switched, batch)
            return None
        executor, fault = switched.executors.get(group) or self._executor(group, switched), switched.faults.get(group)
        if isinstance(fault, BatchRefusedError):
            executor.blamed |= atomic.with_siblings(self.context, {fault.cert_id})
        return Transaction(
            context=self.context,
            items=[item for item in switched.items if f"item:{item.id}" in group.nodes],
            plan=switched.plan,
            group_plan=group_plan,
            observed=switched.observed,
            executor=executor,
            fault=fault,
            batch=batch,
            previous=switched.rollback_targets(batch, self.context.records.certificates),
            results=self.results,
            forward_only=self.forward_only,
            defers=defers,
        )

    def _executor(self, group: Group, switched: SwitchedPlan) -> Executor:
        """Return the executor of a group that has work."""
        group_plan, batch = switched.group_plan(group), switched.unproven(group)
        assert group_plan is not None
        return Executor(
            context=self.context,
            plan=group_plan,
            certs=switched.observed.certs,
            items={item.id: item for item in switched.items if f"item:{item.id}" in group.nodes},
            batch=batch.keys(),
            rolled_back=[i for i, one in batch.items() if was_rolled_back(self.results.record(i), one)],
        )

    def _record_without_steps(
        self, group: Group, switched: SwitchedPlan, batch: Mapping[int, Candidate], changed: Collection[int] = ()
    ) -> None:
        """Record a group that needed no files and commands; ``changed``: what was switched."""
        left_out = switched.plan.left_out
        for cert_id in sorted(group.cert_ids):
            cert = switched.observed.certs.get(cert_id)
            self.results.succeeded(
                cert_id,
                live=cert.generation if cert is not None else "",
                candidate=batch.get(cert_id) or switched.observed.unrecorded.get(cert_id),
                targets=switched.plan.targets.get(cert_id, ()),
                changed=cert_id in changed,
                left_out=left_out.get(cert_id, ()),
                not_due=cert_id in switched.plan.not_due,
            )

    def _record_failure(self, groups: Iterable[Group], error: CertctrlError) -> None:
        groups = list(groups)
        if not all(group.cert_ids for group in groups):
            self.results.items_unplanned = True
        ids = frozenset[int]().union(*(group.cert_ids for group in groups))
        for cert_id in sorted(ids & (self.results.concerned | self.candidates.keys())):
            candidate = self.candidates.get(cert_id)
            staged = candidate if candidate is not None and candidate.unwritten is None else None
            self.results.failed(cert_id, error, staged=staged)
