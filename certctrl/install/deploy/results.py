"""Results: each certificate's outcome for the plane, its record and its audit entry."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import attrs

from certctrl import lean
from certctrl.errors import BatchRefusedError, CertctrlError, DiskError, StateCorruptError
from certctrl.install.deploy import atomic
from certctrl.install.deploy.context import Context
from certctrl.install.deploy.record_store import audit_entry
from certctrl.install.deploy.retry_table import cert_resource
from certctrl.install.deploy.staging import Candidate
from certctrl.install.plan.retries import Failure
from certctrl.model.certificate import CertFacts
from certctrl.model.plan import Deployed, InstallItem, Outcome, OutcomeKind, cause_of, named_cause
from certctrl.model.records import CertRecord, RetryKind, Stage, Standing
from certctrl.text import one_line

if TYPE_CHECKING:
    from certctrl.model.causes import Cause

MAX_DETAIL = 500
"""Characters."""


def with_facts(record: CertRecord, candidate: Candidate) -> CertRecord:
    """Return a record with this generation as the live one."""
    same = record.facts.fingerprint_sha256 == candidate.facts.fingerprint_sha256
    return attrs.evolve(
        record,
        facts=candidate.facts,
        generation=candidate.generation,
        revoked=record.revoked and same,
        alarmed=record.alarmed and same,
        staged="" if record.staged == candidate.generation else record.staged,
        source=f"{candidate.generation} {candidate.etag}" if candidate.etag else record.source,
    )


def was_rolled_back(record: CertRecord, candidate: Candidate) -> bool:
    """Return whether a candidate is tried again after it was rolled back."""
    return record.last_outcome is OutcomeKind.ROLLED_BACK and record.staged == candidate.generation


@lean.define(eq=False, kw_only=True)
class Results:
    """The results of one call."""

    context: Context
    asked_by: str = "plane"
    concerned: frozenset[int] = frozenset()
    """Certificates that get an outcome even if nothing happened to them."""
    lasting: bool = True
    """As for `RecordStore.save`."""
    together: Mapping[int, str] = attrs.field(factory=dict)
    """Certificate id -> atomic batch, of prepared candidates."""
    outcomes: dict[int, Outcome] = attrs.field(factory=dict)
    waiting: dict[int, str] = attrs.field(factory=dict)
    """Certificate id -> why its staged material waits."""
    failed_items: dict[str, str] = attrs.field(factory=dict)
    """Items that concern no certificate and failed, or were not reached -> why."""
    items_unplanned: bool = False
    """Whether items that concern no certificate could not even be planned."""
    incomplete: set[int] = attrs.field(factory=set)
    """Certificates whose generation is unreadable, or whose wanted files cannot be made."""

    def record(self, cert_id: int, candidate: Candidate | None = None) -> CertRecord:
        """Return a certificate's record, or a blank one if it is new on this host."""
        found = self.context.records.certificates.get(cert_id)
        name = candidate.name if candidate is not None else str(cert_id)
        return found or CertRecord(facts=CertFacts(cert_id=cert_id, name=name))

    def _is_foreign(self, cert_id: int) -> bool:
        """Return whether the certificate with this id is another plane's, and so not the one that items mean."""
        found = self.context.records.certificates.get(cert_id)
        return found is not None and found.standing is Standing.FOREIGN

    def succeeded(
        self,
        cert_id: int,
        *,
        live: str,
        candidate: Candidate | None,
        targets: Sequence[str],
        changed: bool,
        left_out: Sequence[str] = (),
        notes: Iterable[str] = (),
        pending: Collection[str] = (),
        not_due: bool = False,
        served: bool = False,
    ) -> None:
        """Record that a certificate is in its desired state, except for items left out or tolerated as failed.

        ``pending``: the tolerated ones. ``not_due``: failed items are not due yet, so the last result still counts.
        ``served``: an endpoint was seen to serve it.
        """
        if cert_id in self.incomplete or self._is_foreign(cert_id):
            return
        before = self.record(cert_id, candidate)
        if not_due:
            self._record_not_due(cert_id, before, changed)
            return
        if cert_id != 0 and not live:  # named by an item, but not on this host, or no longer
            self._record_absent(before, changed)
            return
        if candidate is None and not (changed or left_out or pending) and self._is_settled(before, live, targets):
            return
        after = with_facts(before, candidate) if candidate is not None else attrs.evolve(before, generation=live)
        if cert_id != 0 and live:
            after = self._with_live(after, live, targets, is_proven=not left_out)
        kind = OutcomeKind.APPLIED if changed else OutcomeKind.UNCHANGED
        kind, failing = OutcomeKind.FAILED if left_out else kind, bool(left_out or pending)
        if changed or failing or (before.failing and not before.staged):  # otherwise its candidate is still to be tried
            after = self._with_outcome(after, kind, pending)
            if not failing:
                self.context.records.retries.succeeded(cert_resource(cert_id))
        retry = (RetryKind.REFUSED if left_out else RetryKind.PENDING) if failing else None
        cause, detail = named_cause("plan", "item-refused") if left_out else None, _line((*left_out, *notes))
        self._settle(cert_id, before, after, kind, detail, audit=changed, retry=retry, cause=cause, served=served)

    def _with_live(self, record: CertRecord, live: str, targets: Sequence[str], *, is_proven: bool) -> CertRecord:
        """Return a record whose live generation is in place; once it is proven, its atomic batch is done."""
        return attrs.evolve(
            record,
            stage=Stage.ACTIVATED if is_proven else Stage.COMMITTED,
            activated=live if is_proven else record.activated,
            former=self._former(record, live) if is_proven else record.former,
            batch="" if is_proven and not record.staged else record.batch,
            targets=(*self.context.links_of(record), *targets),
        )

    def _former(self, record: CertRecord, live: str) -> tuple[str, ...] | None:
        """Return the generations that were proven in service before ``live``, as many as are kept."""
        if record.activated in ("", live):
            return record.former if record.activated else record.former or ()
        known = record.former
        if known is None:  # an earlier release wrote no such list, but kept these for a rollback
            known = self.context.generations.older(record.name, record.activated)
        found = (*(one for one in known if one not in (live, record.activated)), record.activated)
        return found[max(0, len(found) - self.context.config().application.keep_generations) :]

    def _with_outcome(self, record: CertRecord, kind: OutcomeKind, pending: Collection[str]) -> CertRecord:
        """Return a record with the result of one try."""
        now = self.context.wall_now()
        return attrs.evolve(record, last_outcome=kind, last_apply_at=now, pending=tuple(sorted(pending)))

    def _record_absent(self, before: CertRecord, changed: bool) -> None:
        if before.generation or (changed and before.failing):
            outcome = None if before.failing else before.last_outcome
            self.context.records.note(attrs.evolve(before, generation="", last_outcome=outcome, pending=()))
            self.context.records.retries.succeeded(cert_resource(before.cert_id))

    def _record_not_due(self, cert_id: int, record: CertRecord, changed: bool) -> None:
        failing = record.last_outcome in (OutcomeKind.FAILED, OutcomeKind.ROLLED_BACK)
        kind = OutcomeKind.APPLIED if changed else OutcomeKind.UNCHANGED
        kind, detail = (OutcomeKind.FAILED, self.context.records.last_error(cert_id)) if failing else (kind, "")
        # waiting is not another failure
        self._settle(cert_id, record, record, kind, detail, audit=changed, transient=failing)

    def _is_settled(self, record: CertRecord, live: str, targets: Sequence[str]) -> bool:
        """Return whether the record of an unaffected certificate is already right, as for most of a large group."""
        proven = record.generation == live == record.activated and record.stage is Stage.ACTIVATED
        same_targets = record.targets[len(self.context.layout.public_paths("")) :] == tuple(targets)
        return proven and same_targets and (not record.failing or bool(record.staged))

    def failed(
        self,
        cert_id: int,
        error: CertctrlError | str,
        *,
        kept: Candidate | None = None,
        stays: str = "",
        staged: Candidate | None = None,
        pending: Collection[str] = (),
        down: bool = False,
        cause: Cause | None = None,
    ) -> None:
        """Record a failure that left the live generation unchanged, or new files in place (``kept``).

        New files stay if there is nothing to roll back to, or if that would not be served either (``down``). ``stays``
        names those that stay, and why. ``pending``: the items that failed or were not reached. ``cause``: that of an error
        unless given.
        """
        before, why = self.record(cert_id, kept or staged), str(error)
        after = with_facts(before, kept) if kept is not None else before
        if kept is not None:
            after = attrs.evolve(after, stage=Stage.COMMITTED)
            why = f"{why}; {stays}"
        retry = RetryKind.PENDING if pending and kept is None and staged is None else RetryKind.REFUSED
        first = error.why if isinstance(error, BatchRefusedError) else error
        if isinstance(first, DiskError) and not isinstance(first, StateCorruptError):
            retry = RetryKind.DISK
        retry = RetryKind.DOWN if down else retry
        if cause is None and isinstance(error, CertctrlError):
            cause = cause_of(error)
        self._record_failure(cert_id, before, after, OutcomeKind.FAILED, why, staged, pending, retry=retry, cause=cause)

    def all_failed(self, cert_ids: Iterable[int], error: CertctrlError) -> None:
        """Record a failure that left the live generations of some certificates unchanged."""
        for cert_id in sorted(cert_ids):
            self.failed(cert_id, error)

    def refuse_batches(self, candidates: dict[int, Candidate], faults: Mapping[int, CertctrlError]) -> None:
        """Remove the candidates in an atomic batch with a certificate that has a fault, and record why."""
        for cert_id, refused in atomic.refusals(self.context, faults).items():
            if cert_id in candidates:
                self.failed(cert_id, refused, staged=candidates.pop(cert_id))

    def rolled_back(
        self,
        cert_id: int,
        why: str,
        candidate: Candidate,
        live: str,
        *,
        facts: Candidate | None,
        proven: bool,
        pending: Collection[str] = (),
        cause: Cause | None = None,
    ) -> None:
        """Record a rollback to ``live``, which serves again (``proven``) or not.

        ``facts``: the candidate of ``live``, if the record describes another generation.
        """
        before = self.record(cert_id, candidate)
        if facts is not None and facts.generation == live:
            before = with_facts(before, facts)
        stage = Stage.ACTIVATED if proven and live == before.activated else Stage.COMMITTED
        after = attrs.evolve(before, generation=live, stage=stage)
        retry = RetryKind.REFUSED if proven else RetryKind.DOWN
        kind = OutcomeKind.ROLLED_BACK
        self._record_failure(cert_id, before, after, kind, why, candidate, pending, retry=retry, cause=cause)

    async def save(self) -> None:
        """Make the records durable. Raises DiskError."""
        await self.context.records.save(lasting=self.lasting)

    def mark_unreadable(self, cert_id: int, why: str) -> None:
        """Record that a certificate's generation cannot be read; it counts as absent and is fetched again."""
        self.incomplete.add(cert_id)
        before = self.record(cert_id)
        after, cause = attrs.evolve(before, generation=""), named_cause("switch", "damaged")
        self._record_failure(cert_id, before, after, OutcomeKind.FAILED, why, None, cause=cause)

    def unmade(
        self, cert_id: int, error: CertctrlError, candidate: Candidate | None, items: Sequence[InstallItem]
    ) -> None:
        """Record that a wanted file of a certificate cannot be made, so that nothing of it is switched or copied."""
        self.incomplete.add(cert_id)
        copies = self.context.indexer.of(items).copies(self.record(cert_id, candidate).facts)
        self.failed(cert_id, error, staged=candidate, pending=[one.id for one in copies])

    def still_failing(self, why: str) -> None:
        """Record that items that concern no certificate failed before and are not due yet: not another failure."""
        blank = self.record(0)
        self._settle(0, blank, blank, OutcomeKind.FAILED, _line((why,)), audit=False, transient=True)

    def unchanged(self, cert_id: int, detail: str = "") -> None:
        """Record that there was nothing to do."""
        if cert_id not in self.outcomes:
            record = self.record(cert_id)
            self._settle(cert_id, record, record, OutcomeKind.UNCHANGED, detail, audit=False)

    def _record_failure(
        self,
        cert_id: int,
        before: CertRecord,
        after: CertRecord,
        kind: OutcomeKind,
        why: str,
        candidate: Candidate | None,
        pending: Collection[str] = (),
        *,
        retry: RetryKind = RetryKind.REFUSED,
        cause: Cause | None = None,
    ) -> None:
        if self._is_foreign(cert_id):
            return
        after = self._with_outcome(after, kind, pending or before.pending)
        if candidate is not None:
            after = attrs.evolve(after, staged=candidate.generation)
        self._settle(cert_id, before, after, kind, _line((why,)), audit=True, to=candidate, retry=retry, cause=cause)

    def _settle(
        self,
        cert_id: int,
        before: CertRecord,
        after: CertRecord,
        kind: OutcomeKind,
        detail: str,
        *,
        audit: bool,
        to: Candidate | None = None,
        transient: bool = False,
        retry: RetryKind | None = None,
        cause: Cause | None = None,
        served: bool = False,
    ) -> None:
        """Set the record, the retry and the outcome of a certificate; ``retry``: its failure, if any."""
        recorded = self._note(cert_id, after, retry, detail)
        if waits := (self.waiting.get(cert_id, "") if kind is OutcomeKind.UNCHANGED else ""):
            kind, detail = OutcomeKind.APPLIED, f"staged; {waits}"
            cause = named_cause("switch", "held" if after.held else "window")
        if cert_id in self.outcomes and kind is OutcomeKind.UNCHANGED:
            return  # unaffected now, but an earlier outcome of this call counts
        if audit or cert_id in self.concerned or detail:
            outcome = Outcome(
                kind=kind,
                detail=detail,
                deployed=_deployed(after, served=served),
                transient=transient or retry is RetryKind.DISK,
                recorded=recorded,
                waits=waits,
                cause=cause,
            )
            others = [self.outcomes[0]] if cert_id == 0 and 0 in self.outcomes else []  # of other groups
            self.outcomes[cert_id] = merged((*others, outcome)) if others else outcome
        if audit:
            self._audit(before, after, kind, detail, to)

    def _audit(
        self, before: CertRecord, after: CertRecord, kind: OutcomeKind, detail: str, to: Candidate | None
    ) -> None:
        entry = audit_entry(
            after,
            at=self.context.wall_now(),
            outcome=kind.value,
            before=before.generation,
            after=to.generation if to is not None else after.generation,
            asked_by=self.asked_by,
            detail=detail,
        )
        self.context.records.audit(entry)

    def _note(self, cert_id: int, after: CertRecord, retry: RetryKind | None, error: str) -> bool:
        """Set the record and the retry of a certificate of this host; return whether there is a retry."""
        if cert_id == 0 and retry is not None:
            self.failed_items |= dict.fromkeys(after.pending, error)
        if cert_id not in self.context.records.certificates and not (after.generation or after.staged):
            return False
        self.context.records.note(after)
        if retry is None:
            return False
        self.context.records.retries.failed(Failure(resource=cert_resource(cert_id), kind=retry, error=error))
        return True


def _deployed(record: CertRecord, *, served: bool) -> tuple[Deployed, ...]:
    if not record.generation or record.cert_id == 0:
        return ()
    facts = record.facts
    return (
        Deployed(
            cert_id=facts.cert_id,
            serial=facts.serial,
            fingerprint_sha256=facts.fingerprint_sha256,
            targets=record.targets,
            served=served,
        ),
    )


def _line(parts: Iterable[str]) -> str:
    text = "; ".join(" ".join(part.split()) for part in dict.fromkeys(parts) if part)
    return one_line(text, MAX_DETAIL)


def merged(outcomes: Iterable[Outcome]) -> Outcome:
    """Merge outcomes into one, with the worst kind, the details of failures first, and all deployed certificates."""
    order = (OutcomeKind.FAILED, OutcomeKind.ROLLED_BACK, OutcomeKind.APPLIED)
    listed = list(outcomes)
    kind = next((one for one in order if any(outcome.kind is one for outcome in listed)), OutcomeKind.UNCHANGED)
    failures_first = sorted(listed, key=lambda outcome: outcome.ok)
    details = [outcome.detail for outcome in failures_first]
    cause = next((outcome.cause for outcome in failures_first if outcome.cause is not None), None)
    deployed = tuple(one for outcome in listed if outcome.kind is not OutcomeKind.UNCHANGED for one in outcome.deployed)
    transient = bool(failures := [one for one in listed if not one.ok]) and all(one.transient for one in failures)
    return Outcome(kind=kind, detail=_line(details), deployed=deployed, transient=transient, cause=cause)
