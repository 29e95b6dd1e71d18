"""Results: each certificate's outcome for the plane, its record and its audit entry."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import attrs

from certctrl.errors import CertctrlError, DiskError, StateCorruptError
from certctrl.install.deploy.context import Context
from certctrl.install.deploy.record_store import audit_entry
from certctrl.install.deploy.staging import Candidate
from certctrl.install.plan.retries import retry_at
from certctrl.model.certificate import CertFacts
from certctrl.model.plan import Deployed, Outcome, OutcomeKind
from certctrl.model.records import CertRecord, Stage
from certctrl.text import one_line

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
    )


@attrs.define(eq=False, kw_only=True)
class Results:
    """The results of one call."""

    context: Context
    asked_by: str = "plane"
    concerned: frozenset[int] = frozenset()
    """Certificates that get an outcome even if nothing happened to them."""
    lasting: bool = True
    """As for `RecordStore.save`."""
    outcomes: dict[int, Outcome] = attrs.field(factory=dict)
    waiting: dict[int, str] = attrs.field(factory=dict)
    """Certificate id -> why its staged material has to wait."""
    unreadable: set[int] = attrs.field(factory=set)
    """Certificates whose generation cannot be read."""

    def record(self, cert_id: int, candidate: Candidate | None = None) -> CertRecord:
        """Return a certificate's record, or a blank one if it is new on this host."""
        found = self.context.records.certificates.get(cert_id)
        name = candidate.name if candidate is not None else str(cert_id)
        return found or CertRecord(facts=CertFacts(cert_id=cert_id, name=name))

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
        owed: Collection[str] = (),
        not_due: bool = False,
    ) -> None:
        """Record that a certificate is in its desired state, except for items left out or tolerated as failed.

        ``owed``: the tolerated ones. ``not_due``: failed items are not due yet, so the last result still counts.
        """
        if cert_id in self.unreadable:
            return
        before = self.record(cert_id, candidate)
        if not_due:
            self._record_not_due(cert_id, before, changed)
            return
        if cert_id != 0 and not live:  # an item names it, but it is not here, or no longer
            self._record_absent(before, changed)
            return
        if candidate is None and not (changed or left_out or owed) and self._is_settled(before, live, targets):
            return
        after = with_facts(before, candidate) if candidate is not None else attrs.evolve(before, generation=live)
        if cert_id != 0 and live:
            after = attrs.evolve(
                after,
                stage=Stage.COMMITTED if left_out else Stage.ACTIVATED,
                activated=after.activated if left_out else live,
                targets=(*map(str, self.context.layout.public_links(after.name)), *targets),
            )
        kind = OutcomeKind.APPLIED if changed else OutcomeKind.UNCHANGED
        kind = OutcomeKind.FAILED if left_out else kind
        detail = _line((*left_out, *notes))
        failing = bool(left_out or owed)
        if (
            changed or failing or (before.attempts and not before.staged)
        ):  # otherwise its staged candidate is still to be tried
            attempts = before.attempts + 1 if failing else 0
            after = self._with_outcome(after, kind, detail if failing else "", attempts, owed)
        self._settle(cert_id, before, after, kind, detail, audit=changed)

    def _with_outcome(
        self, record: CertRecord, kind: OutcomeKind, error: str, attempts: int, owed: Collection[str]
    ) -> CertRecord:
        """Return a record with the result of one try; ``attempts``: consecutive failures."""
        now = self.context.wall_now()
        return attrs.evolve(
            record,
            last_outcome=kind,
            last_error=error,
            last_apply_at=now,
            attempts=attempts,
            next_try_at=retry_at(now, attempts) if attempts else 0.0,
            owed=tuple(sorted(owed)),
        )

    def _record_absent(self, before: CertRecord, changed: bool) -> None:
        if before.generation or (changed and before.attempts):
            gone = attrs.evolve(before, generation="", attempts=0, last_error="", next_try_at=0.0, owed=())
            self.context.records.note(gone)

    def _record_not_due(self, cert_id: int, record: CertRecord, changed: bool) -> None:
        failing = record.last_outcome in (OutcomeKind.FAILED, OutcomeKind.ROLLED_BACK)
        kind = OutcomeKind.APPLIED if changed else OutcomeKind.UNCHANGED
        kind, detail = (OutcomeKind.FAILED, record.last_error) if failing else (kind, "")
        # it only waits, which must not count as another failure
        self._settle(cert_id, record, record, kind, detail, audit=changed, transient=failing)

    def _is_settled(self, record: CertRecord, live: str, targets: Sequence[str]) -> bool:
        """Return whether the record of an unaffected certificate is already right, as most of a large group are."""
        proven = record.generation == live == record.activated and record.stage is Stage.ACTIVATED
        same_targets = record.targets[len(self.context.layout.public_links("")) :] == tuple(targets)
        return proven and same_targets and (not record.attempts or bool(record.staged))

    def failed(
        self,
        cert_id: int,
        error: CertctrlError | str,
        *,
        kept: Candidate | None = None,
        staged: Candidate | None = None,
        owed: Collection[str] = (),
    ) -> None:
        """Record a failure that left the live generation as it was, or (``kept``) new files without a way back.

        ``owed``: the items that failed or were not reached.
        """
        before, why = self.record(cert_id, kept or staged), str(error)
        after = with_facts(before, kept) if kept is not None else before
        if kept is not None:
            after = attrs.evolve(after, stage=Stage.COMMITTED)
            why = f"{why}; there is no earlier generation, so the new files stay"
        transient = isinstance(error, DiskError) and not isinstance(error, StateCorruptError)
        self._record_failure(cert_id, before, after, OutcomeKind.FAILED, why, staged, owed, transient=transient)

    def rolled_back(
        self,
        cert_id: int,
        why: str,
        candidate: Candidate,
        live: str,
        *,
        facts: Candidate | None,
        proven: bool,
        owed: Collection[str] = (),
    ) -> None:
        """Record a rollback to ``live``, which serves again (``proven``) or not.

        ``facts``: the candidate of ``live``, if the record describes another generation.
        """
        before = self.record(cert_id, candidate)
        if facts is not None and facts.generation == live:
            before = with_facts(before, facts)
        stage = Stage.ACTIVATED if proven and live == before.activated else Stage.COMMITTED
        after = attrs.evolve(before, generation=live, stage=stage)
        self._record_failure(cert_id, before, after, OutcomeKind.ROLLED_BACK, why, candidate, owed)

    async def save(self) -> None:
        """Make the records durable. Raises DiskError."""
        await self.context.records.save(lasting=self.lasting)

    def mark_unreadable(self, cert_id: int, why: str) -> None:
        """Record that a certificate's generation cannot be read; it counts as absent and is fetched again."""
        self.unreadable.add(cert_id)
        before = self.record(cert_id)
        self._record_failure(cert_id, before, attrs.evolve(before, generation=""), OutcomeKind.FAILED, why, None)

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
        owed: Collection[str] = (),
        *,
        transient: bool = False,
    ) -> None:
        after = self._with_outcome(after, kind, _line((why,)), before.attempts + 1, owed or before.owed)
        if candidate is not None:
            after = attrs.evolve(after, staged=candidate.generation)
        self._settle(cert_id, before, after, kind, _line((why,)), audit=True, to=candidate, transient=transient)

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
    ) -> None:
        if cert_id in self.context.records.certificates or after.generation or after.staged:
            self.context.records.note(after)
        if (wait := self.waiting.get(cert_id)) and kind is OutcomeKind.UNCHANGED:
            kind, detail = OutcomeKind.APPLIED, wait
        deployed = (
            Deployed(
                cert_id=cert_id, serial=after.facts.serial,
                fingerprint_sha256=after.facts.fingerprint_sha256, targets=after.targets,
            ),
        )  # fmt: skip
        here = bool(after.generation) and cert_id != 0
        if cert_id in self.outcomes and kind is OutcomeKind.UNCHANGED:
            return  # unaffected now, but it already has an outcome in this call
        if audit or cert_id in self.concerned or detail:
            self.outcomes[cert_id] = Outcome(
                kind=kind, detail=detail, deployed=deployed if here else (), transient=transient
            )
        if audit:
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


def _line(parts: Iterable[str]) -> str:
    text = "; ".join(" ".join(part.split()) for part in dict.fromkeys(parts) if part)
    return one_line(text, MAX_DETAIL)


def merged(outcomes: Iterable[Outcome]) -> Outcome:
    """Merge outcomes into one: the worst kind, failures first, everything deployed."""
    order = (OutcomeKind.FAILED, OutcomeKind.ROLLED_BACK, OutcomeKind.APPLIED)
    listed = list(outcomes)
    kind = next((one for one in order if any(outcome.kind is one for outcome in listed)), OutcomeKind.UNCHANGED)
    details = [outcome.detail for outcome in sorted(listed, key=lambda outcome: outcome.ok)]
    deployed = tuple(one for outcome in listed if outcome.kind is not OutcomeKind.UNCHANGED for one in outcome.deployed)
    transient = bool(failures := [one for one in listed if not one.ok]) and all(one.transient for one in failures)
    return Outcome(kind=kind, detail=_line(details), deployed=deployed, transient=transient)
