"""Installer: the pipeline from a checked bundle to a served certificate, and all other changes of installed files.

One per agent. Calls may overlap: each group is worked on by one call at a time (``Locks`` in ``deploy/context.py``),
different groups concurrently. Failures of certificates, commands or the disk become Outcomes; `stage` raises, because
nothing has changed yet. `plan` and `preview` only read.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import attrs

from certctrl.errors import CertctrlError, CommandError, DiskError, UsageError
from certctrl.install.deploy import atomic, preview, recovery, staging
from certctrl.install.deploy.candidates import live_bundle, next_try_at, prune_unused, to_switch
from certctrl.install.deploy.context import Context, Helper, Locks
from certctrl.install.deploy.converge import Convergence
from certctrl.install.deploy.groups import Group, bound_now, groups_of
from certctrl.install.deploy.names import repair_links, settle_names
from certctrl.install.deploy.results import Results, merged
from certctrl.install.deploy.retry_table import cert_resource
from certctrl.install.deploy.staging import Candidate
from certctrl.install.installed_certs import InstalledCerts, in_use
from certctrl.install.material.bundle import open_bundle
from certctrl.install.plan.planner import cas_wanted
from certctrl.install.plan.values import InstallPlan
from certctrl.install.probe.interface import Probe, TlsProbe
from certctrl.install.process import Proc
from certctrl.model.certificate import Bundle, CertFacts, DeployMaterials
from certctrl.model.config import AgentConfig
from certctrl.model.plan import ExecAction, InstallItem, Outcome, OutcomeKind, cause_of
from certctrl.model.policy import HostPolicy, Retirement
from certctrl.model.records import CertRecord, Retry
from certctrl.store.deployments.generations import GenerationStore
from certctrl.store.disk.fs import Fs
from certctrl.store.layout import ConfigDir
from certctrl.store.state.installed import InstalledState
from certctrl.text import one_line

if TYPE_CHECKING:
    from certctrl.install.deploy.looks import Round

__all__ = ["Candidate", "Installer", "in_use"]

INLINE_LIMIT = 100
"""Certificates and items that are grouped faster than a thread job starts."""


class Installer(InstalledCerts):
    """Changes the certificates, files and services of this host."""

    def __init__(
        self,
        *,
        layout: ConfigDir,
        fs: Fs,
        generations: GenerationStore,
        state: InstalledState,
        policy: Callable[[], HostPolicy],
        config: Callable[[], AgentConfig],
        proc: Proc,
        probe: Probe,
        wall_now: Callable[[], float],
        steady_now: Callable[[], float],
        offload: Callable[..., Awaitable[Any]],
        log: logging.Logger,
        random: Callable[[], float] = lambda: 1.0,
        helper: Helper | None = None,
    ) -> None:
        super().__init__(
            Context.of(
                random=random,
                steady_now=steady_now,
                layout=layout,
                fs=fs,
                generations=generations,
                state=state,
                policy=policy,
                config=config,
                proc=proc,
                probe=probe,
                wall_now=wall_now,
                offload=offload,
                log=log,
                helper=helper,
            )
        )
        self._locks = Locks()
        self.asked_by = "plane"
        """Audit-log actor for changes that no operator requested."""

    async def recover(self) -> None:
        """Make disk and records agree after the last run, before any other work."""
        self.retries.rows()  # saves retries that an earlier release kept in other files
        await self._context.offload(recovery.recover, self._context)
        await self._context.records.save()

    async def clear_up(self) -> None:
        """Remove generations that will not be used, and files that a failing disk did not remove. Raises DiskError."""
        if self._context.left or self._context.generations.has_leftovers:
            await self._context.offload(recovery.clear_up, self._context)
        await self.prune()

    async def prune(self) -> None:
        """Remove generations of switched certificates that are no longer kept. Raises DiskError.

        Those on which another call works are left to the next call; so are all of them after a failure.
        """
        outdated = self._context.outdated
        mine = {f"cert:{i}": i for i in outdated if self._locks.try_acquire({f"cert:{i}"})}
        outdated.difference_update(ids := list(mine.values()))
        try:
            if ids:
                await self._context.shared_offload(prune_unused, self._context, ids)
        except BaseException:
            outdated.update(ids)
            raise
        finally:
            self._locks.release(mine.keys())

    async def lost(self, *, contents: bool = True) -> list[CertRecord]:
        """Return the certificates that are live by their records, but not whole on disk; see `recovery.lost`."""
        found: list[CertRecord] = await self._context.offload(recovery.lost, self._context, contents)
        return [one for one in found if self.records.get(one.cert_id) is one]  # unchanged meanwhile

    async def repair_links(self, *, change: bool = True) -> list[str]:
        """Restore public names that do not lead to their certificates; return their paths. Raises DiskError."""
        return await repair_links(self._context, self._locks, change=change)

    # --- deploying ------------------------------------------------------------------------------------------------

    def opener(
        self, cert_id: int, materials: DeployMaterials, device_secret: bytes, expected_domains: Sequence[str]
    ) -> Callable[[], Bundle]:
        """Return a function that opens and checks a certificate's material, for `stage`; see ``open_bundle``."""
        context, name = self._context, self.name_for(cert_id, expected_domains)
        return partial(
            open_bundle,
            cert_id,
            name,
            materials,
            device_secret,
            allow_plaintext=context.policy().plaintext_keys,
            brainpool=context.policy().brainpool,
            now=context.wall_now(),
            expected_domains=expected_domains,
        )

    async def live_bundle(self, cert_id: int) -> Bundle | None:
        """Return the material of a certificate's live generation, in place of the same from the plane.

        None if a file is missing or changed, or if it is not valid now: then the plane's is needed.
        """
        record = self.records.get(cert_id)
        if record is None or not record.generation:
            return None
        found: Bundle | None = await self._context.offload(live_bundle, self._context, record)
        return found

    async def prepare_commands(self, cert_id: int, items: Sequence[InstallItem]) -> None:
        """Start the supervisors for a certificate's check and reload, while it is being fetched."""
        if not items:
            return
        record = self.records.get(cert_id)
        facts = record.facts if record is not None else CertFacts(cert_id=cert_id, name="")
        checks = any(item.check for item in self._context.indexer.of(items).copies(facts))
        reloads = any(isinstance(item, ExecAction) and item.enabled for item in items)
        if checks or reloads:
            with suppress(CommandError):  # optional: a command without a prepared supervisor starts one
                await self._context.proc.prepare(checks + reloads)

    async def stage(
        self, source: Bundle | Callable[[], Bundle], items: Sequence[InstallItem], *, alone: bool = False
    ) -> Candidate:
        """Write a checked bundle next to the live one and run the plan's checks on it; nothing live changes.

        ``source``: a bundle, or a function that opens one (see `opener`), called in the same thread. The candidate
        survives a crash only after `converge` has settled it. ``alone``: whether no other is expected to be switched
        with it, and ``source`` takes no longer than a thread to start. Raises DiskError, CommandError (a check refuses it), PolicyRefusedError (a check may not run here),
        MaterialError (a format cannot be made).
        """
        return await staging.stage(self._context, source, items, alone=alone)

    async def converge(
        self,
        prepared: Sequence[Candidate],
        items: Sequence[InstallItem],
        *,
        only: Collection[int] | None = None,
        ignore_window: bool = False,
        due_now: bool = False,
        asked_by: str = "",
        lasting: bool = True,
        together: Mapping[int, str] = MappingProxyType({}),
    ) -> dict[int, Outcome]:
        """Switch to the prepared candidates and make files and services match the items; return the outcomes.

        ``only``: these certificates (and ``prepared``) only; None with nothing prepared: all certificates.
        ``due_now``: also retry failures that are not due yet. ``asked_by``: audit-log actor; empty: that of this run.
        ``lasting``: False if the caller makes the outcomes durable next (see `RecordStore.save`), and then calls `prune`.
        ``together``: certificate id -> atomic batch, of prepared ones: all of a batch, or none, are switched.
        The outcomes are by certificate id, for all named and all changed ones; 0: items that concern no certificate.
        """
        context, everything, who = self._context, only is None and not prepared, asked_by or self.asked_by
        concerned = frozenset(one.cert_id for one in prepared) | frozenset(only or ())
        lasting = lasting or context.config().application.keep_generations < 1  # an old record must have its generation
        results = Results(context=context, asked_by=who, concerned=concerned, lasting=lasting, together=together)
        due = frozenset(self.records if due_now and everything else concerned if due_now else ())
        not_due = self._items_not_due(all_due=everything and due_now)
        try:
            candidates = await to_switch(
                context, prepared, items, results, everything=everything, due_now=due, ignore_window=ignore_window
            )
        except CertctrlError as error:
            results.all_failed(concerned, error)
            return await self._conclude(results)
        groups, concerned = await self._groups(items, candidates), atomic.with_siblings(context, concerned)
        await Convergence(
            context=context,
            locks=self._locks,
            items=items,
            candidates=candidates,
            results=results,
            examine=None if everything else concerned,
            due_now=due,
            staged=True,
        ).run(group for group in groups if everything or not concerned.isdisjoint(group.cert_ids))
        if everything:
            context.records.keep_marks(item.id for item in items)
            self._note_items(items, results, not_due)
        return await self._conclude(results)

    def _items_not_due(self, *, all_due: bool) -> frozenset[str]:
        """Return the items that concern no certificate and are not due; none if ``all_due``."""
        for retry in self.retries.of_items().values() if all_due else ():
            self.retries.due_now(retry.resource)
        return self.retries.items_not_due()

    def _note_items(self, items: Sequence[InstallItem], results: Results, not_due: Collection[str]) -> None:
        """Record which items without a certificate failed; a converge of everything tries all that are due."""
        if results.items_unplanned:
            return
        waiting = {item.id for item in items if item.enabled and item.id in not_due} - results.failed_items.keys()
        if reasons := [retry.last_error for item, retry in self.retries.of_items().items() if item in waiting]:
            results.still_failing("; ".join(dict.fromkeys(reasons)))
        self.retries.note_items(results.failed_items, waiting)

    async def _groups(self, items: Sequence[InstallItem], candidates: Mapping[int, Candidate]) -> list[Group]:
        """Return the groups of this host; if there is much to group, in a thread."""
        if len(self.records) + len(items) < INLINE_LIMIT:
            return groups_of(self._context, items, candidates)
        found: list[Group] = await self._context.offload(groups_of, self._context, items, candidates)
        return found

    async def _conclude(self, results: Results) -> dict[int, Outcome]:
        """Give all named certificates an outcome and make the records durable."""
        atomic.align_retries(self._context, results.outcomes.keys())
        for cert_id in sorted(results.concerned | results.waiting.keys()):
            results.unchanged(cert_id, "" if cert_id in self.records else "not on this host")
        with suppress(DiskError):  # tried again with the next switch, and at the next start
            await settle_names(self._context)
        try:
            await results.save()
        except DiskError as error:
            fail = partial(
                attrs.evolve, kind=OutcomeKind.FAILED, detail=str(error), transient=True, cause=cause_of(error)
            )
            return {cert_id: fail(one) if one.ok else one for cert_id, one in results.outcomes.items()}
        if results.lasting:
            with suppress(DiskError):  # `clear_up` tries again, and its caller reports it
                await self.prune()
        return results.outcomes

    async def converge_all(
        self,
        items: Sequence[InstallItem],
        *,
        ignore_window: bool = False,
        due_now: bool = False,
        asked_by: str = "",
        lasting: bool = True,
    ) -> Outcome:
        """Make everything match the items and return one merged outcome; see `converge`."""
        found = await self.converge(
            (), items, ignore_window=ignore_window, due_now=due_now, asked_by=asked_by, lasting=lasting
        )
        return merged(found.values())

    async def plan(self, items: Sequence[InstallItem]) -> InstallPlan:
        """Return the plan of `converge`, including work that is not due. Raises DiskError, StateCorruptError."""
        return await preview.plan_now(self._context, items)

    @classmethod
    async def preview(
        cls,
        items: Sequence[InstallItem],
        *,
        layout: ConfigDir,
        fs: Fs,
        state: InstalledState,
        policy: HostPolicy,
        config: AgentConfig,
        wall_now: Callable[[], float],
        offload: Callable[..., Awaitable[Any]],
        helper: Helper | None = None,
    ) -> InstallPlan:
        """Return the plan that an agent would carry out now, for a caller without its lock; changes nothing.

        Raises DiskError, StateCorruptError.
        """
        installer = cls(
            layout=layout,
            fs=fs,
            generations=GenerationStore(layout, fs),
            state=state,
            policy=lambda: policy,
            config=lambda: config,
            proc=Proc(),
            probe=TlsProbe(),
            wall_now=wall_now,
            steady_now=wall_now,  # not used to wait
            offload=offload,
            log=logging.getLogger("certctrl"),
            helper=helper,
        )
        return await installer.plan(items)

    async def waiting_items(self, items: Sequence[InstallItem]) -> dict[str, str]:
        """Return item id -> the certificate or CA that it waits for, as text."""
        bound, _ = await self._context.offload(bound_now, self._context, items, {})
        return {item: one.waits for item, one in bound.items() if one.waits}

    async def unfinished(self, items: Sequence[InstallItem]) -> bool:
        """Return whether `converge` would do something now, or report a refusal for the first time."""
        plan = await preview.plan_now(self._context, items, due_only=True)
        refused = (self.records.get(cert_id) for cert_id in plan.left_out)
        return bool(plan.groups) or any(one is not None and one.generation and not one.failing for one in refused)

    async def renewal_here(self, record: CertRecord) -> CertRecord | None:
        """Return the record as it would be after its staged renewal; None if none is staged, or it is unreadable."""
        return await preview.with_renewal(self._context, record)

    def next_try_at(self, retry: Retry) -> float:
        """Return when a failure is retried, by the current wall clock; for the maintenance window, when it opens."""
        return next_try_at(self._context, retry)

    def window_times(self) -> dict[int, float]:
        """Return certificate id -> when its staged material, which waits for the window, may be tried (wall clock)."""
        return preview.window_times(self._context)

    async def look(self, items: Sequence[InstallItem], only: Collection[int] | None = None) -> Round:
        """Return what the endpoints of certificates serve now; ``only``: of these. Changes nothing."""
        from certctrl.install.deploy.looks import look_round  # here: a daemon looks once an hour

        return await look_round(self._context, self._locks, items, only)

    # --- withdrawing, rolling back --------------------------------------------------------------------------------

    async def withdraw(
        self, cert_id: int, *, revoked: bool, items: Sequence[InstallItem], how: Retirement | None = None
    ) -> Outcome:
        """Take a certificate out of use as ``how``, or the policy's ``on_revoked`` or ``on_unassigned``, says.

        Ignores the window. The caller sends the alert.
        """
        from certctrl.install.deploy.withdrawal import Withdrawal, withdrawn  # here and below: seldom needed

        record = self.records.get(cert_id)
        if record is None or (
            withdrawn(record) and not (record.withdrawal_incomplete or (revoked and record.alert_pending))
        ):
            return Outcome(kind=OutcomeKind.UNCHANGED, detail="not in use on this host")
        try:
            return await Withdrawal(
                context=self._context, locks=self._locks, record=record, items=items, revoked=revoked, how=how
            ).run()
        except CertctrlError as error:
            return Outcome(kind=OutcomeKind.FAILED, detail=str(error), cause=cause_of(error, "withdraw"))

    async def rollback(self, name: str, to: str | None, items: Sequence[InstallItem]) -> Outcome:
        """Roll back to an earlier generation and hold it there. Raises UsageError, DiskError."""
        from certctrl.install.deploy.rollback import roll_back

        return await roll_back(self._context, self._locks, name, to, items)

    async def release(self, name: str) -> None:
        """End a hold; the next `converge` switches to the newest material. Raises UsageError, DiskError."""
        record = self._context.records.by_name(name)
        if record is None:
            raise UsageError(f"there is no certificate {one_line(name)} on this host", fix="cert-ctrl list-certs")
        self._context.records.note(attrs.evolve(record, held=False, held_since=0.0))
        self.retries.due_now(cert_resource(record.cert_id))
        await self._context.records.save()

    async def update(self, records: Iterable[CertRecord]) -> None:
        """Replace records, durably. Raises DiskError."""
        for record in records:
            self._context.records.note(record)
        await self._context.records.save()

    async def record_alert(self, cert_id: int) -> None:
        """Record that the alert about a revocation has been sent. Raises DiskError."""
        self._context.records.note(attrs.evolve(self.records[cert_id], alarmed=True))
        await self._context.records.save()

    # --- CAs and alerts -------------------------------------------------------------------------------------------

    async def import_ca(self, ca_id: int, name: str, pem: str, items: Sequence[InstallItem] = ()) -> Outcome:
        """Import a CA into the trust store, and converge the items that copy it."""
        from certctrl.install.deploy.trust_store import import_ca

        outcome = await import_ca(self._context, ca_id, name, pem, items)
        if ca_id in cas_wanted(items):
            outcome = merged((outcome, await self.converge_all(items)))
        return outcome

    async def remove_ca(self, ca_id: int) -> Outcome:
        """Remove a CA from the trust store if its file is unchanged."""
        from certctrl.install.deploy.trust_store import remove_ca

        return await remove_ca(self._context, ca_id)

    async def alert(self, alert: Mapping[str, Any]) -> None:
        """Pass an alert to the ``on_alert`` command; a failure is logged, not raised."""
        from certctrl.install.deploy.alert_command import run_alert_command

        await run_alert_command(self._context, alert)
