"""Withdraw a certificate: remove it, replace it by a placeholder, or keep it, as the host's policy says.

A removal is never rolled back: a revoked certificate must not return because a service would not reload. But a service
keeps serving what it has loaded, and some reload "successfully" without their files. So the endpoints are probed, and a
certificate that they still serve does not count as withdrawn.
Files at destinations are removed only if they are unchanged, byte for byte.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from functools import partial
from typing import Any, assert_never

import attrs
import trio

from certctrl import lean
from certctrl.errors import DiskError, PolicyRefusedError, StateCorruptError
from certctrl.install.deploy import staging
from certctrl.install.deploy.context import Context, Locks
from certctrl.install.deploy.converge import Convergence
from certctrl.install.deploy.groups import Group, bound_now, groups_of
from certctrl.install.deploy.names import publish, settle_names
from certctrl.install.deploy.observe import helper_rules, uid_of
from certctrl.install.deploy.record_store import audit_entry
from certctrl.install.deploy.results import Results
from certctrl.install.deploy.retry_table import cert_resource
from certctrl.install.deploy.staging import Candidate
from certctrl.install.material.placeholder import placeholder_bundle
from certctrl.install.plan.dependencies import names_given
from certctrl.install.plan.policy import is_local, may_probe_anywhere, refuse_path
from certctrl.install.plan.retries import Failure
from certctrl.model.plan import (
    CopyAction,
    ExecAction,
    InstallItem,
    ObjectType,
    Outcome,
    OutcomeKind,
    VerifyTls,
    cause_of,
    named_cause,
)
from certctrl.model.policy import Retirement
from certctrl.model.records import CertRecord, Retry, RetryKind, Stage, Standing
from certctrl.store.deployments.file_set import CHANGED, remove_unchanged
from certctrl.store.disk.fs import FileKind
from certctrl.store.disk.helper import rule_for
from certctrl.text import one_line


def withdrawn(record: CertRecord) -> bool:
    """Return whether the files of a certificate have been removed."""
    return record.stage is Stage.WITHDRAWN and not record.generation


@lean.frozen(kw_only=True)
class Withdrawal:
    """The withdrawal of one certificate."""

    context: Context
    locks: Locks
    record: CertRecord
    items: Sequence[InstallItem]
    revoked: bool
    how: Retirement | None = None
    """How to withdraw it; None: as the policy says."""

    async def run(self) -> Outcome:
        """Apply the policy and run the commands that concern this certificate. Raises DiskError."""
        policy = self.context.policy()
        how = self.how or (policy.on_revoked if self.revoked else policy.on_unassigned)
        if withdrawn(self.record):  # a new policy does not restore what has been removed
            how = Retirement.REMOVE
        match how:
            case Retirement.KEEP:
                return await self._keep()
            case Retirement.PLACEHOLDER:
                return await self._replace()
            case Retirement.REMOVE:
                return await self._remove()
        assert_never(how)

    def _group(self) -> Group:
        groups = groups_of(self.context, self.items, {})
        mine = (group for group in groups if self.record.cert_id in group.cert_ids)
        return next(mine, Group.of([f"cert:{self.record.cert_id}"]))  # another plane's certificate has no items

    def _claim(self) -> AbstractContextManager[None]:
        """Keep renewals from locking its group until it is out of use, but not while its endpoints are probed."""
        return self.locks.claim(self._group().nodes)

    async def _remove(self) -> Outcome:
        try:
            with self._claim():
                # if its files are gone, another certificate may have its name
                left = await (
                    self.context.offload(self._left_before) if withdrawn(self.record) else self._take_out_of_use()
                )
                before = self.context.records.retries.of(cert_resource(self.record.cert_id))
                outcome = await self._converge({}, successors=self._successors())
        except DiskError as error:
            return Outcome(kind=OutcomeKind.FAILED, detail=str(error), cause=cause_of(error, "withdraw"))
        seen = await self._probe_endpoints(patient=outcome.ok)
        still = any(serves for serves, _ in seen)
        stay = [f"{one_line(path)} stays: {why}" for path, why in left.items()]
        said = [*stay, *filter(None, (*(said for _, said in seen), outcome.detail))]
        incomplete = still or not outcome.ok or any(why != CHANGED for why in left.values())
        await self._record_rest("; ".join(said) if incomplete else "", before)
        kind = OutcomeKind.FAILED if incomplete or left else OutcomeKind.APPLIED
        cause = outcome.cause
        if still or left:
            cause = named_cause("withdraw", "still-served" if still else "file-stays")
        detail = "; ".join(("removed", *said))
        return Outcome(kind=kind, detail=detail, deployed=outcome.deployed, recorded=incomplete, cause=cause)

    async def _take_out_of_use(self) -> dict[str, str]:
        """Remove all files of this certificate and record it; return the paths that stay -> why. Raises DiskError."""
        context = self.context
        async with self.locks.held(self._group().nodes, claimed=True):
            left: dict[str, str] = await context.offload(self._remove_files)
            ours = tuple(path for path, why in left.items() if why != CHANGED)
            await context.offload(partial(publish, context, without=self.record.cert_id))  # a successor takes its name
            await context.offload(context.generations.withdraw, self.record.name)
            await context.offload(context.state.forget_passwords, self.record.name)
            context.records.note(
                attrs.evolve(
                    self.record,
                    generation="",
                    activated="",
                    former=(),
                    staged="",
                    batch="",
                    stage=Stage.WITHDRAWN,
                    targets=ours,
                    held=False,
                    last_outcome=OutcomeKind.APPLIED,
                    last_apply_at=context.wall_now(),
                    pending=(),
                    standing=Standing.UNASSIGNED if self.record.unassigned_at else Standing.KNOWN,
                    revoked=self.revoked,
                    alarmed=False,
                )
            )
            context.records.retries.succeeded(cert_resource(self.record.cert_id))
            self._audit("revoked" if self.revoked else "unassigned")
            await context.records.save()
            with suppress(DiskError):  # tried again with the next switch, and at the next start
                await settle_names(context)  # another one may have been switched meanwhile
        return left

    def _successors(self) -> frozenset[int]:
        """Return the certificates that take over its name, and with it the items for that name."""
        bound, _ = bound_now(self.context, self.items, {})
        named = [item.id for item in self.items if item.enabled and self._concerns_it(item)]
        return frozenset(cert_id for item in named for cert_id in bound[item].certs) - {self.record.cert_id}

    async def _keep(self) -> Outcome:
        why, setting = ("revoked", "on_revoked") if self.revoked else ("unassigned", "on_unassigned")
        said, kept = f"{why}, but kept in use: {setting} is keep", named_cause("withdraw", "kept")
        if self.record.revoked if self.revoked else self.record.standing is Standing.UNASSIGNED:
            return Outcome(kind=OutcomeKind.UNCHANGED, detail=said, cause=kept)
        unassigned = {"standing": Standing.UNASSIGNED, "unassigned_at": 0.0}  # carried out
        changes: dict[str, Any] = {"revoked": True, "alarmed": False} if self.revoked else unassigned
        self.context.records.note(attrs.evolve(self.record, **changes))
        self._audit(said, outcome="kept", live=self.record.generation)
        await self.context.records.save()
        return Outcome(kind=OutcomeKind.APPLIED, detail=said, cause=kept)

    async def _probe_endpoints(self, *, patient: bool) -> list[tuple[bool, str]]:
        """Return for each endpoint whether it still serves the certificate, and what to report.

        ``patient``: allow for the time that a reload may take.
        """
        context, nodes = self.context, self._group().nodes
        seconds = context.config().application.verify_timeout_seconds if patient else 0.0
        deadline = trio.current_time() + seconds
        connected = [item for item in self.items if item.enabled and f"item:{item.id}" in nodes]
        mine = [item for item in connected if self._concerns_it(item) or (item.ob_id is None and item.ob_name is None)]
        asked = [(item.verify, item.id) for item in mine if isinstance(item, CopyAction | ExecAction)]
        endpoints: dict[VerifyTls, bool] = {}
        for verify, item_id in asked:
            if isinstance(verify, VerifyTls):
                anywhere = may_probe_anywhere(context.policy(), verify, item_id)
                endpoints[verify] = endpoints.get(verify, False) or anywhere
        removed = self.record.facts.fingerprint_sha256
        return [
            await context.probe.after_removal(verify, removed, deadline=deadline, anywhere=anywhere)
            for verify, anywhere in endpoints.items()
        ]

    async def _record_rest(self, trouble: str, before: Retry | None) -> None:
        """Record whether a file or a service still has it: then the withdrawal is retried, and status names it.

        ``before``: its retry before the commands ran; a failure that they recorded is the same one.
        """
        records, resource = self.context.records, cert_resource(self.record.cert_id)
        record = records.certificates[self.record.cert_id]
        records.note(
            attrs.evolve(
                record,
                last_apply_at=self.context.wall_now(),
                last_outcome=OutcomeKind.FAILED if trouble else OutcomeKind.APPLIED,
                pending=record.pending if trouble else (),
            )
        )
        if not trouble:
            records.retries.succeeded(resource)
        else:
            noted = records.retries.of(resource)
            down = noted is not before and noted is not None and noted.kind is RetryKind.DOWN
            records.retries.restore(resource, before)
            kind = RetryKind.DOWN if down else RetryKind.REFUSED
            records.retries.failed(Failure(resource=resource, kind=kind, error=trouble))
        await records.save()

    def _left_before(self) -> dict[str, str]:
        """Return copies that stayed when its files were removed; it is no longer known whether the agent wrote them."""
        theirs = {path for one in self.context.records.certificates.values() if one.generation for path in one.targets}
        stay = [path for path in self.record.targets if path not in theirs and self._is_there(path)]
        return dict.fromkeys(stay, "it could not be removed with the others; remove it by hand")

    def _remove_files(self) -> dict[str, str]:
        """Remove the copies of this certificate; return the paths that stay -> why. Blocks on the disk."""
        context, name = self.context, self.record.name
        files: Mapping[str, str] = {}
        with suppress(StateCorruptError):  # without a manifest, no copy is known to be the agent's
            live = context.generations.live_id(name)
            files = context.generations.manifest(name, live)["files"] if live else {}
        left: dict[str, str] = {}
        for item in self.items:
            if not isinstance(item, CopyAction) or not self._concerns_it(item):
                continue
            for number, (source, path) in enumerate(item.pairs):
                if why := self._remove_copy(item, path, files.get(source, ""), item.owner_of(number)):
                    left[path] = why
        return left

    def _remove_copy(self, item: CopyAction, path: str, digest: str, owner: str | None) -> str:
        """Remove one copy; return why it stays, empty if it is gone or never was there."""
        context = self.context
        refusal = refuse_path(context.policy(), path, context.identity, local=is_local(item.id))
        if refusal is None:
            try:
                if context.helper is not None and rule_for(helper_rules(context), path) is not None:
                    return context.helper.remove(path, digest)
                return remove_unchanged(context.fs, path, digest, uid_of(owner))
            except PolicyRefusedError as refused:
                why = str(refused)
        else:
            why = refusal.why
        return why if path in self.record.targets and self._is_there(path) else ""

    def _is_there(self, path: str) -> bool:
        """Return whether a copy still is there; a bind-mounted file can only be emptied."""
        context = self.context
        if context.helper is not None and rule_for(helper_rules(context), path) is not None:
            return context.helper.observe(path)[0].kind is not FileKind.MISSING
        found = context.fs.lstat(path)
        return found is not None and (found.kind is not FileKind.FILE or found.size > 0)

    def _concerns_it(self, item: InstallItem) -> bool:
        if item.ob_type is ObjectType.CA:
            return False
        if item.ob_id is not None:
            return item.ob_id == self.record.cert_id
        names = (self.record.name, *self.record.facts.domains[:1])
        return item.ob_name is not None and not names_given(item.ob_name).isdisjoint(names)

    async def _replace(self) -> Outcome:
        """Replace it by a placeholder; if one is already live, finish the work that a crash or failure interrupted."""
        context, record = self.context, self.record
        live = await context.offload(context.generations.live_id, record.name)
        replaced = live and (await context.offload(context.generations.manifest, record.name, live))["facts"].get(
            "placeholder"
        )
        keep, candidates = set[str](), dict[int, Candidate]()
        if not replaced:
            try:
                prepared = await self._placeholder()
            except DiskError as error:
                return Outcome(kind=OutcomeKind.FAILED, detail=str(error), cause=cause_of(error, "withdraw"))
            keep, candidates = {prepared.generation}, {record.cert_id: prepared}
        context.records.note(attrs.evolve(context.records.certificates[record.cert_id], batch=""))
        with self._claim():
            outcome = await self._converge(candidates, nothing=OutcomeKind.UNCHANGED)
        after = context.records.certificates[record.cert_id]
        context.records.note(attrs.evolve(after, staged="", held=False, revoked=self.revoked, former=()))
        with suppress(DiskError):
            await settle_names(context)
        await context.records.save()
        # the revoked key is removed even if a command failed
        gone = await context.offload(lambda: context.generations.prune(record.name, 0, also_keep=keep))
        if replaced and not gone and outcome.kind is OutcomeKind.UNCHANGED:
            return attrs.evolve(outcome, detail="a placeholder has already replaced it")
        kind = OutcomeKind.APPLIED if outcome.ok else outcome.kind
        detail = "; ".join(filter(None, ("placeholder put in its place", outcome.detail)))
        return attrs.evolve(outcome, kind=kind, detail=detail)

    async def _placeholder(self) -> Candidate:
        context, record = self.context, self.record
        bundle = await context.offload(
            lambda: placeholder_bundle(
                record.cert_id,
                record.name,
                record.facts.domains,
                not_before=record.facts.not_before,
                now=context.wall_now(),
            )
        )
        prepared = await staging.stage(context, bundle, self.items, placeholder=True, check=False)
        await context.offload(context.generations.settle, [prepared.staged])
        return prepared

    async def _converge(
        self,
        candidates: dict[int, Candidate],
        *,
        nothing: OutcomeKind = OutcomeKind.APPLIED,
        successors: frozenset[int] = frozenset(),
    ) -> Outcome:
        """Switch to a placeholder, if any, and run due commands; ``nothing``: the outcome if there are none.

        ``successors``: certificates that take over the destinations; their failures do not count as this one's.
        """
        cert_id = self.record.cert_id
        concerned = successors | {cert_id}
        results = Results(context=self.context, concerned=concerned)
        groups = groups_of(self.context, self.items, {})
        await Convergence(
            context=self.context,
            locks=self.locks,
            items=self.items,
            candidates=candidates,
            results=results,
            examine=concerned,
            due_now=concerned,
            forward_only=True,
        ).run(group for group in groups if not concerned.isdisjoint(group.cert_ids))
        await self.context.records.save()
        served = [results.outcomes[successor] for successor in sorted(successors) if successor in results.outcomes]
        deployed = tuple(one for outcome in served if outcome.kind is OutcomeKind.APPLIED for one in outcome.deployed)
        outcome = results.outcomes.get(cert_id) or Outcome(kind=nothing)
        return attrs.evolve(outcome, deployed=outcome.deployed + deployed)

    def _audit(self, why: str, *, outcome: str = "withdrawn", live: str = "") -> None:
        """Add the withdrawal to the audit log; ``live``: the generation that stays in use."""
        entry = audit_entry(
            self.record,
            at=self.context.wall_now(),
            outcome=outcome,
            before=self.record.generation,
            after=live,
            live=live,
            detail=why,
        )
        self.context.records.audit(entry)
