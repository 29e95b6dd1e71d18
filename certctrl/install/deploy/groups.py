"""Groups of connected certificates and items; the plan of several groups, and how far its switch has come."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import attrs

from certctrl import lean
from certctrl.errors import CertctrlError
from certctrl.install.deploy import atomic
from certctrl.install.deploy.context import Context
from certctrl.install.deploy.executor import Executor
from certctrl.install.deploy.observe import ObservedState
from certctrl.install.deploy.staging import Candidate
from certctrl.install.plan.dependencies import BATCH, Binding, bind, connected_groups, enabled
from certctrl.install.plan.values import DesiredCa, DesiredCert, GroupPlan, InstallPlan
from certctrl.model.plan import InstallItem
from certctrl.model.records import CertRecord


@lean.frozen(eq=False)
class Group:
    """Connected certificates and items, as node names (``cert:7``, ``item:x``)."""

    nodes: frozenset[str]
    cert_ids: frozenset[int]
    batch: str = ""
    """An atomic batch that connects some of the certificates; empty: none does."""

    @classmethod
    def of(cls, nodes: Iterable[str]) -> Group:
        """Return the group of these nodes (``cert:7``, ``item:x``, …)."""
        names = frozenset(nodes)
        batch = min((node.removeprefix(BATCH) for node in names if node.startswith(BATCH)), default="")
        return cls(names, frozenset(int(node[5:]) for node in names if node.startswith("cert:")), batch)


def bound_now(
    context: Context, items: Sequence[InstallItem], candidates: Mapping[int, Candidate]
) -> tuple[dict[str, Binding], dict[int, DesiredCert]]:
    """Return the binding of each item and the certificates of this host, without reading the disk."""
    certs = {
        record.cert_id: DesiredCert(facts=record.facts, generation=record.generation, outgoing=record.outgoing)
        for record in context.records.ours
    }
    for cert_id, candidate in candidates.items():
        certs[cert_id] = DesiredCert(facts=candidate.facts, generation=candidate.generation)
    cas = {int(ca_id): DesiredCa(ca_id=int(ca_id), name=ca.name) for ca_id, ca in list(context.records.cas.items())}
    return bind(enabled(items), certs, cas, ran=set(context.records.activations)), certs


def groups_of(context: Context, items: Sequence[InstallItem], candidates: Mapping[int, Candidate]) -> list[Group]:
    """Return the groups of this host, without reading the disk."""
    bound, certs = bound_now(context, items, candidates)
    together = atomic.changing(context, candidates)
    return [Group.of(nodes) for nodes in connected_groups(enabled(items), bound, certs, together)]


@lean.define(kw_only=True, eq=False)
class SwitchedPlan:
    """A plan, and how far the switch to its candidates has come."""

    items: Sequence[InstallItem]
    candidates: Mapping[int, Candidate]
    plan: InstallPlan = attrs.field(init=False)
    observed: ObservedState = attrs.field(init=False)
    is_switched: bool = False
    previous: dict[str, str | None] = attrs.field(factory=dict)
    """Name -> id that was live before the switch, for those that were switched."""
    executors: dict[Group, Executor] = attrs.field(factory=dict)
    """Groups whose files were staged before the switch."""
    faults: dict[Group, CertctrlError] = attrs.field(factory=dict)
    """Errors of groups whose files could not be staged, so that they were not switched."""
    _groups: dict[str, GroupPlan] = attrs.field(factory=dict)

    def group_plan(self, group: Group) -> GroupPlan | None:
        """Return the work on a group; None when there is none."""
        if not self._groups:  # certificate or item (``cert:7``, ``item:x``) -> the work on its group
            self._groups = {node: one for one in self.plan.groups for node in nodes_of(one)}
        return next((self._groups[node] for node in group.nodes if node in self._groups), None)

    def needs_only_switch(self, group: Group) -> bool:
        """Return whether a group needs no files, commands or verifications after its switch."""
        group_plan = self.group_plan(group)
        return group_plan is None or not (group_plan.steps or group_plan.verifications or group_plan.imports)

    def unproven(self, group: Group) -> dict[int, Candidate]:
        """Return the unproven candidates of a group: switched now, or earlier and never proven."""
        mine = ((i, self.candidates.get(i)) for i in group.cert_ids)  # a burst has thousands of candidates
        found = {i: one for i, one in mine if one is not None and self._is_new(one)}
        left_out: Collection[int] = self.plan.left_out
        for cert_id in group.cert_ids - found.keys() - set(left_out) - self.plan.not_due:
            unrecorded = self.observed.unrecorded.get(cert_id)
            if unrecorded is not None and not self.observed.certs[cert_id].proven:
                found[cert_id] = unrecorded
        return found

    def _is_new(self, candidate: Candidate) -> bool:
        cert = self.observed.certs[candidate.cert_id]
        return cert.live != candidate.generation or not cert.proven

    def rollback_targets(self, batch: Mapping[int, Candidate], records: Mapping[int, CertRecord]) -> dict[int, str]:
        """Return the generation that each unproven certificate can be rolled back to."""
        found = {}
        for cert_id, candidate in batch.items():
            record = records.get(cert_id)
            known = record.activated if record is not None else ""
            before = self.previous.get(candidate.name) if candidate.name in self.previous else known
            if before and before != candidate.generation:
                found[cert_id] = before
        return found


def has_files(one: GroupPlan) -> bool:
    """Return whether a group has files to write at their destinations."""
    return any(step.writes for step in one.steps)


def stale_markers(groups: Iterable[GroupPlan]) -> list[str]:
    """Return the items whose due commands have an activation marker, which must be removed before the switch."""
    runs = (run for one in groups for step in one.steps for run in step.runs)
    return [item for run in runs if run.stale_marker for item in run.items]


def nodes_of(one: GroupPlan) -> list[str]:
    """Return the node names of a group's certificates and items."""
    return [*(f"cert:{cert_id}" for cert_id in one.cert_ids), *(f"item:{item}" for item in one.items)]
