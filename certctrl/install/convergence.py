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
from certctrl.install.attempt import Attempt
from certctrl.install.binding import bind, components, enabled
from certctrl.install.claims import Claims
from certctrl.install.look import Candidate, View, planned
from certctrl.install.outcomes import Ledger
from certctrl.install.site import Site
from certctrl.install.steps import DesiredCa, DesiredCert, InstallPlan, PlanSet
from certctrl.model.plan import InstallItem, OutcomeKind
from certctrl.model.records import CertRecord


@attrs.frozen(eq=False)
class Group:
    """Certificates and items that hang together."""

    nodes: frozenset[str]
    cert_ids: frozenset[int]

    @classmethod
    def of(cls, nodes: Iterable[str]) -> Group:
        """Return the group of these nodes (``cert:7``, ``item:x``, …)."""
        names = frozenset(nodes)
        return cls(names, frozenset(int(node[5:]) for node in names if node.startswith("cert:")))


def groups_of(site: Site, items: Sequence[InstallItem], candidates: Mapping[int, Candidate]) -> list[Group]:
    """Return what hangs together on this host, from what is known without looking at the disk."""
    certs = {
        record.cert_id: DesiredCert(
            cert_id=record.cert_id, name=record.name, generation=record.generation, domains=record.domains
        )
        for record in list(site.book.records.values())
    }
    for cert_id, candidate in candidates.items():
        certs[cert_id] = DesiredCert(
            cert_id=cert_id, name=candidate.name, generation=candidate.generation, domains=candidate.domains
        )
    cas = {int(ca_id): DesiredCa(ca_id=int(ca_id), name=ca.name) for ca_id, ca in list(site.book.cas.items())}
    wanted = enabled(items)
    bound = bind(wanted, certs, cas, ran=set(site.book.activations))
    return [Group.of(nodes) for nodes in components(wanted, bound, certs)]


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
            async with trio.open_nursery() as nursery:
                for group in groups:
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

    async def _round(self, groups: Sequence[Group], candidates: Mapping[int, Candidate]) -> _Round:
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
            if not _stale_markers(plan):
                switch(plan)

        plan, view = await planned(
            site, items, records, candidates, policy=policy, examine=self.examine, then=switch_at_once
        )
        for cert_id, fault in view.faults.items():
            self.ledger.broken(cert_id, fault)
        if stale := _stale_markers(plan):
            if site.book.unmark(stale):
                await site.book.save()
            with trio.CancelScope(shield=True):
                await site.offload(switch, plan)
        sets = {node: one for one in plan.sets for node in _nodes(one)}
        return _Round(items=items, plan=plan, view=view, candidates=candidates, previous=previous, sets=sets)

    async def _finish(self, group: Group, round_: _Round, alone: Sequence[Candidate], held: set[Group]) -> None:
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

    async def _attempt(self, group: Group, round_: _Round) -> bool:
        """Carry out what a round planned for a group; True when its service is in order afterwards."""
        plan_set = round_.plan_set(group)
        batch = round_.on_trial(group)
        if plan_set is None:
            self._note_idle(group, round_, batch)
            return True
        return await Attempt(
            site=self.site,
            items=[item for item in round_.items if f"item:{item.id}" in group.nodes],
            plan=round_.plan,
            plan_set=plan_set,
            view=round_.view,
            batch=batch,
            previous=round_.ways_back(batch, self.site.book.records),
            ledger=self.ledger,
            forward_only=self.forward_only,
        ).run()

    def _note_idle(self, group: Group, round_: _Round, batch: Mapping[int, Candidate]) -> None:
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
            )

    def _note_failure(self, groups: Iterable[Group], error: CertctrlError) -> None:
        ids = frozenset[int]().union(*(group.cert_ids for group in groups))
        for cert_id in sorted(ids & (self.ledger.concerned | self.candidates.keys())):
            self.ledger.failed(cert_id, error, staged=self.candidates.get(cert_id))


@attrs.frozen(kw_only=True, eq=False)
class _Round:
    """One plan that has been switched."""

    items: Sequence[InstallItem]
    plan: InstallPlan
    view: View
    candidates: Mapping[int, Candidate]
    previous: Mapping[str, str | None]
    sets: Mapping[str, PlanSet]
    """Node (``cert:7``, ``item:x``) -> the work on the group that it belongs to."""

    def plan_set(self, group: Group) -> PlanSet | None:
        """Return the work on a group; None when there is none."""
        return next((self.sets[node] for node in group.nodes if node in self.sets), None)

    def on_trial(self, group: Group) -> dict[int, Candidate]:
        """Return what has to prove itself: what was switched now, and what was switched before and never proven."""
        mine = ((i, self.candidates.get(i)) for i in group.cert_ids)  # not all of a burst, for each of its groups
        found = {i: one for i, one in mine if one is not None and self._is_new(one)}
        left_out: Collection[int] = self.plan.left_out
        for cert_id in group.cert_ids - found.keys() - set(left_out):
            stray = self.view.strays.get(cert_id)
            if stray is not None and not self.view.certs[cert_id].proven:
                found[cert_id] = stray
        return found

    def _is_new(self, candidate: Candidate) -> bool:
        cert = self.view.certs[candidate.cert_id]
        return cert.live != candidate.generation or not cert.proven

    def ways_back(self, batch: Mapping[int, Candidate], records: Mapping[int, CertRecord]) -> dict[int, str]:
        """Return where each certificate on trial can go back to."""
        found = {}
        for cert_id, candidate in batch.items():
            record = records.get(cert_id)
            known = record.activated if record is not None else ""
            before = self.previous.get(candidate.name) if candidate.name in self.previous else known
            if before and before != candidate.generation:
                found[cert_id] = before
        return found


def _stale_markers(plan: InstallPlan) -> list[str]:
    """Return the items whose commands are due and marked as done: the marks must go before the switch."""
    runs = (run for one in plan.sets for level in one.levels for run in level.runs)
    return [item for run in runs if run.stale_marker for item in run.items]


def _nodes(one: PlanSet) -> list[str]:
    return [*(f"cert:{cert_id}" for cert_id in one.cert_ids), *(f"item:{item}" for item in one.items)]
