"""Converge: switch, copy, run, prove; or go back. One object per call of `Installer.converge`.

Order of durability (safety.md §4.1), and why each step may be the last one before a power cut:

1. all staged generations are settled with one sync: STAGED, nothing live has changed;
2. markers that would call a due command done are taken away: else it would not be run again after 3;
3. one switch of every set's links: COMMITTED. From here a restart finds the live links and the markers in
   disagreement, so it runs the commands and proofs that are owed;
4. files at explicit destinations, under an intent journal of their own;
5. commands, proofs, then markers and records in one write: ACTIVATED;
6. old generations are pruned only after that.

Sets work side by side; what one waits for (a hanging reload, a slow probe) holds up no other. A set that fails goes
back as a whole, because a service reads all its certificates at one reload. At the next attempt each of its
certificates is tried alone, so that one bad certificate does not keep nineteen good ones away for ever.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress

import attrs
import trio

from certctrl.errors import CertctrlError, DiskError
from certctrl.install.deploy.candidates import prune_unused
from certctrl.install.deploy.context import Site
from certctrl.install.deploy.groups import Group, Round, nodes_of, stale_markers
from certctrl.install.deploy.locks import Claims
from certctrl.install.deploy.observe import planned
from certctrl.install.deploy.results import Ledger
from certctrl.install.deploy.staging import Candidate
from certctrl.install.deploy.transaction import Attempt
from certctrl.install.plan.dependencies import enabled
from certctrl.install.plan.values import InstallPlan
from certctrl.model.plan import InstallItem, OutcomeKind

BREATH = 50
"""Groups that are noted in one go: a few milliseconds, so that nothing else waits longer."""


@attrs.define(eq=False, kw_only=True)
class Convergence:
    """One call: what shall be live, whose files are compared, what became of it."""

    site: Site
    claims: Claims
    items: Sequence[InstallItem]
    candidates: Mapping[int, Candidate]
    ledger: Ledger
    examine: frozenset[int] | None = None
    """Certificates whose destinations are compared; None: all."""
    at_once: frozenset[int] = frozenset()
    """Certificates of which what failed before is tried again though it is not due."""
    forward_only: bool = False
    """True when there is no going back: a revoked certificate does not return because a reload failed."""

    async def run(self, groups: Iterable[Group]) -> None:
        """Bring groups to their desired state; outcomes are in the ledger."""
        ready: list[Group] = []
        busy: list[Group] = []
        for group in groups:
            (ready if self.claims.try_take(group.nodes) else busy).append(group)
        async with trio.open_nursery() as nursery:
            for group in busy:
                nursery.start_soon(self._later, group, name="a set that another call works on")
            if ready:
                nursery.start_soon(self._work, ready, name="sets")

    async def _later(self, group: Group) -> None:
        while not self.claims.try_take(group.nodes):
            await self.claims.change()
        await self._work([group])

    async def _work(self, groups: Sequence[Group]) -> None:
        """Work on groups that are claimed: one plan and one switch for all of them, then each by itself."""
        held = set(groups)
        try:
            alone = {group: self._alone(group) for group in groups}
            apart = {one.cert_id for listed in alone.values() for one in listed}
            mine = [one for group in groups for one in self._mine(group)]
            together = {one.cert_id: one for one in mine if one.cert_id not in apart}
            try:
                round_ = await self._round(groups, together)
            except CertctrlError as error:  # nothing has changed
                self._note_failure(groups, error)
                with suppress(DiskError):  # a disk that fails again; whoever asked saves once more, and reports that
                    await self.ledger.save()
                return
            quiet = {group for group in groups if not alone[group] and round_.is_quiet(group)}
            async with trio.open_nursery() as nursery:
                if calm := [group for group in groups if group in quiet]:
                    nursery.start_soon(self._finish_quiet, calm, round_, held, name="quiet sets")
                for group in groups:
                    if group not in quiet:
                        nursery.start_soon(self._finish, group, round_, alone[group], held, name="set")
        finally:
            for group in held:
                self.claims.free(group.nodes)

    def _mine(self, group: Group) -> list[Candidate]:
        return [self.candidates[cert_id] for cert_id in sorted(group.cert_ids) if cert_id in self.candidates]

    def _alone(self, group: Group) -> list[Candidate]:
        """Return the candidates of a group that are tried one by one: those that went back with others before."""
        mine, records = self._mine(group), self.site.book.records
        gone_back = [
            one
            for one in mine
            if one.cert_id in records and records[one.cert_id].last_outcome is OutcomeKind.ROLLED_BACK
        ]
        return gone_back if len(mine) > 1 else []

    async def _round(self, groups: Sequence[Group], candidates: Mapping[int, Candidate]) -> Round:
        """Plan and switch. Raises DiskError before anything is live."""
        site, policy = self.site, self.site.policy()
        nodes = frozenset[str]().union(*(group.nodes for group in groups))
        items = [item for item in enabled(self.items) if f"item:{item.id}" in nodes]
        records = [record for record in site.book.records.values() if f"cert:{record.cert_id}" in nodes]
        previous: dict[str, str | None] = {}

        def switch(plan: InstallPlan) -> None:
            if to := {cert.name: cert.generation for one in plan.sets for cert in one.switches}:
                previous.update(site.generations.switch(to))

        def switch_at_once(plan: InstallPlan) -> None:
            if not stale_markers(plan):
                switch(plan)

        plan, view = await planned(
            site,
            items,
            records,
            candidates,
            policy=policy,
            examine=self.examine,
            then=switch_at_once,
            fresh=self.at_once | self.candidates.keys(),
        )
        for cert_id, fault in view.faults.items():
            self.ledger.broken(cert_id, fault)
        if stale := stale_markers(plan):
            if site.book.unmark(stale):
                await site.book.save()
            with trio.CancelScope(shield=True):
                await site.offload(switch, plan)
        sets = {node: one for one in plan.sets for node in nodes_of(one)}
        return Round(items=items, plan=plan, view=view, candidates=candidates, previous=previous, sets=sets)

    async def _finish(self, group: Group, round_: Round, alone: Sequence[Candidate], held: set[Group]) -> None:
        """Do the rest for one group, first what goes together, then one by one; then let others at it."""
        try:
            serves = await self._attempt(group, round_)
            for candidate in alone:
                if not serves:
                    why = "not tried: what was there before does not serve, so the fault is not this certificate's"
                    self.ledger.failed(candidate.cert_id, why, staged=candidate)
                    continue
                try:
                    single = await self._round([group], {candidate.cert_id: candidate})
                except CertctrlError as error:
                    self.ledger.failed(candidate.cert_id, error, staged=candidate)
                    continue
                serves = await self._attempt(group, single)
            await self.ledger.save()
        except CertctrlError as error:  # the book could not be written: done, but not known to be
            self._note_failure([group], error)
        finally:
            held.discard(group)
            self.claims.free(group.nodes)

    async def _finish_quiet(self, groups: Sequence[Group], round_: Round, held: set[Group]) -> None:
        """Note groups that are switched and have no service of their own: a burst's certificates nearly always."""
        switched: list[Group] = []
        try:
            for number, group in enumerate(groups):
                if (attempt := self._attempt_at(group, round_)) is not None:
                    attempt.note_success()
                    switched.append(group)
                if number % BREATH == BREATH - 1:
                    await trio.lowlevel.checkpoint()
            await self.ledger.save()
            failed: dict[Group, CertctrlError] = (
                await self.site.offload(_prune, self.site, switched) if switched else {}
            )
            for group, error in failed.items():
                self._note_failure([group], error)
        except CertctrlError as error:
            self._note_failure(groups, error)
        finally:
            for group in groups:
                held.discard(group)
                self.claims.free(group.nodes)

    async def _attempt(self, group: Group, round_: Round) -> bool:
        """Carry out what a round planned for a group; True when its service is in order afterwards."""
        attempt = self._attempt_at(group, round_)
        return attempt is None or await attempt.run()

    def _attempt_at(self, group: Group, round_: Round) -> Attempt | None:
        """Return the attempt at a group; None when there is nothing to do, which is noted."""
        plan_set = round_.plan_set(group)
        batch = round_.on_trial(group)
        if plan_set is None:
            self._note_idle(group, round_, batch)
            return None
        return Attempt(
            site=self.site,
            items=[item for item in round_.items if f"item:{item.id}" in group.nodes],
            plan=round_.plan,
            plan_set=plan_set,
            view=round_.view,
            batch=batch,
            previous=round_.ways_back(batch, self.site.book.records),
            ledger=self.ledger,
            forward_only=self.forward_only,
        )

    def _note_idle(self, group: Group, round_: Round, batch: Mapping[int, Candidate]) -> None:
        left_out = round_.plan.left_out
        for cert_id in sorted(group.cert_ids):
            cert = round_.view.certs.get(cert_id)
            self.ledger.done(
                cert_id,
                live=cert.generation if cert is not None else "",
                candidate=batch.get(cert_id) or round_.view.strays.get(cert_id),
                targets=round_.plan.targets.get(cert_id, ()),
                changed=False,
                left_out=left_out.get(cert_id, ()),
                resting=cert_id in round_.plan.resting,
            )

    def _note_failure(self, groups: Iterable[Group], error: CertctrlError) -> None:
        ids = frozenset[int]().union(*(group.cert_ids for group in groups))
        for cert_id in sorted(ids & (self.ledger.concerned | self.candidates.keys())):
            self.ledger.failed(cert_id, error, staged=self.candidates.get(cert_id))


def _prune(site: Site, switched: Collection[Group]) -> dict[Group, CertctrlError]:
    """Remove old generations; return what kept whom from it."""
    failed: dict[Group, CertctrlError] = {}
    for group in switched:
        try:
            prune_unused(site, group.cert_ids)
        except CertctrlError as error:
            failed[group] = error
    return failed
