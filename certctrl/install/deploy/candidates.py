"""Choose the generations to switch to: prepared, staged before, or lacking a file; the others wait, with a reason."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any

import attrs

from certctrl import lean
from certctrl.errors import CertctrlError, DiskError, StateCorruptError
from certctrl.install.deploy import atomic, staging
from certctrl.install.deploy.context import Context
from certctrl.install.deploy.results import Results
from certctrl.install.deploy.retry_table import cert_resource
from certctrl.install.deploy.staging import Candidate
from certctrl.install.material.formats import BASE_FILES, password_kind
from certctrl.install.plan.retries import switch_due
from certctrl.model.certificate import Bundle, CertFacts
from certctrl.model.plan import InstallItem
from certctrl.model.policy import MaintenanceWindow
from certctrl.model.records import CertRecord, Retry


@lean.define(eq=False)
class Staged:
    """What was staged before and is due."""

    candidates: dict[int, Candidate] = attrs.field(factory=dict)
    damaged: list[CertRecord] = attrs.field(factory=list)
    """Records whose staged generation is lost."""
    faults: dict[int, CertctrlError] = attrs.field(factory=dict)
    """Certificate id -> why its staged generation cannot be read now; the next call tries again."""


def staged_before(
    context: Context, records: Sequence[CertRecord], concerned: Collection[int], everything: bool
) -> Staged:
    """Return what was staged before and is due. Blocks on the disk.

    ``concerned``: certificates that are tried even if they are not due.
    """
    found, now = Staged(), context.wall_now()
    due = {one.cert_id for one in records if one.cert_id in concerned}
    due |= {one.cert_id for one in records if everything and one.staged and _switch_due(context, one) <= now}
    due |= atomic.with_siblings(context, due)
    for record in records:
        if not record.staged or record.cert_id not in due:
            continue
        try:
            found.candidates[record.cert_id] = Candidate.read(context, record.name, record.staged)
        except StateCorruptError:
            found.damaged.append(record)
        except DiskError as error:
            found.faults[record.cert_id] = error
    return found


def not_yet_due(context: Context, records: Sequence[CertRecord]) -> dict[int, str]:
    """Return certificate id -> why its staged material is not due: it failed before."""
    now, found = context.wall_now(), dict[int, str]()
    for record in records:
        retry = context.records.retries.of(cert_resource(record.cert_id))
        if retry is not None and _is_waiting(record) and _switch_due(context, record) > now:
            found[record.cert_id] = (
                f"staged; failed, next try in {next_try_at(context, retry) - now:.0f} s "
                f"(`cert-ctrl apply` tries now): {retry.last_error}"
            )
    return found


def next_try_at(context: Context, retry: Retry) -> float:
    """Return when a failure is retried, by the wall clock: when its pause ends, or earlier when the window opens."""
    now, window = context.wall_now(), context.policy().window
    due = now + context.records.retries.left(retry.key)
    kind, _, number = retry.resource.partition(":")
    record = context.records.certificates.get(int(number)) if kind == "cert" and number.isdecimal() else None
    if window is None or record is None or not _is_waiting(record) or record.held:
        return due  # before the import below, which fails if no more files can be opened, perhaps the very failure
    from certctrl.install.plan.window import may_switch_at  # here and below: only hosts with a window need it

    opens_at = may_switch_at(now, window, record)
    return opens_at if opens_at > now else may_switch_at(due, window, record)


def _closed(now: float, window: MaintenanceWindow, record: CertRecord | None) -> str:
    """Return why a switch has to wait for the window; empty if it need not."""
    from certctrl.install.plan.window import in_window, window_text

    return "" if in_window(now, window, record) else f"waits for the window {window_text(window)}"


def _is_waiting(record: CertRecord) -> bool:
    """Return whether a certificate has staged material that is not live."""
    return bool(record.staged) and record.staged != record.generation


def _switch_due(context: Context, record: CertRecord) -> float:
    return switch_due(record, context.records.retries.due_at(cert_resource(record.cert_id)), context.wall_now())


async def to_switch(
    context: Context,
    prepared: Sequence[Candidate],
    items: Sequence[InstallItem],
    results: Results,
    *,
    everything: bool,
    due_now: Collection[int],
    ignore_window: bool,
) -> dict[int, Candidate]:
    """Return the candidates that may be switched to now: prepared ones, and those staged before.

    Afterwards the prepared ones are durable and recorded as staged, except for an unwritten one that need not wait; those
    that have to wait are in the results. `with_missing_files` completes them, once their groups are locked.
    ``due_now``: further certificates whose staged material is tried although it is not due.
    Raises CertctrlError; then nothing is switched.
    """
    newest = {one.cert_id: one for one in prepared}
    if not _can_be_written_later(context, newest, results.together):
        if any(one.staged or one.unwritten for one in newest.values()):
            newest = await context.offload(staging.settle, context, newest.values())
        note_staged(context, newest, results.together)
    due = atomic.with_siblings(context, results.concerned.union(due_now))
    candidates = await _with_staged(context, newest, due, everything, results)
    now = not_waiting(context, candidates, results, ignore_window=ignore_window)
    if results.waiting:  # older generations that waited may be unused now
        with suppress(DiskError):
            await context.shared_offload(prune_unused, context, list(results.waiting))
    return now


def _can_be_written_later(context: Context, prepared: Mapping[int, Candidate], together: Mapping[int, str]) -> bool:
    """Return whether the only candidate is unwritten and can be written by the job that switches to it.

    So it is if nothing may make it wait, and nothing else is to be switched with it.
    """
    if len(prepared) != 1 or together or context.policy().window is not None:
        return False
    (one,) = prepared.values()
    record = context.records.certificates.get(one.cert_id)
    if one.unwritten is None or record is None or record.held or record.batch:
        return False
    return not any(other.staged for other in context.records.ours)


async def _with_staged(
    context: Context,
    prepared: Mapping[int, Candidate],
    due_now: Collection[int],
    everything: bool,
    results: Results,
) -> dict[int, Candidate]:
    """Return the prepared candidates, and those staged before that are due.

    A staged generation that is damaged is forgotten: its signal brings it again. One that cannot be read now keeps its
    atomic batch.
    """
    records = [record for record in context.records.ours if record.cert_id not in prepared]
    waiting = [record for record in records if record.staged]
    if not waiting:  # the usual case: no thread is needed
        return dict(prepared)
    staged: Staged = await context.offload(staged_before, context, waiting, due_now, everything)
    for record in staged.damaged:
        context.records.note(attrs.evolve(record, staged=""))
    found = staged.candidates | dict(prepared)
    results.refuse_batches(found, staged.faults)
    return found


def note_staged(context: Context, prepared: Mapping[int, Candidate], together: Mapping[int, str]) -> None:
    """Record the staged generations, which may have to wait or to be retried; durable with the next save.

    They replace earlier staged ones, with the batches of those.
    """
    for candidate in prepared.values():
        record = context.records.certificates.get(candidate.cert_id)
        record = record or CertRecord(facts=CertFacts(cert_id=candidate.cert_id, name=candidate.name))
        batch = together.get(candidate.cert_id, "")
        if record.generation != candidate.generation:
            facts = record.facts if record.name == candidate.name else attrs.evolve(record.facts, name=candidate.name)
            context.records.note(attrs.evolve(record, facts=facts, staged=candidate.generation, batch=batch))
        elif record.batch != batch:
            context.records.note(attrs.evolve(record, batch=batch if atomic.is_unproven(record) else ""))


def not_waiting(
    context: Context, candidates: Mapping[int, Candidate], results: Results, *, ignore_window: bool
) -> dict[int, Candidate]:
    """Return the candidates that may be switched to now; record in the results why the others wait.

    The live certificate with one more file need not wait: it is not new material.
    """
    window, now = context.policy().window, context.wall_now()
    waits, held, live_again = dict[int, str](), set[int](), set[int]()
    for cert_id, candidate in candidates.items():
        record = context.records.certificates.get(cert_id)
        if record is not None and record.facts.fingerprint_sha256 == candidate.facts.fingerprint_sha256:
            live_again.add(cert_id)
            continue
        if record is not None and record.held:
            waits[cert_id] = "waits for `cert-ctrl rollback --release`: an earlier generation is held"
            held.add(cert_id)
        elif not ignore_window and window is not None and (why := _closed(now, window, record)):
            waits[cert_id] = why
    in_batches = atomic.batches_of(context)
    results.waiting |= {cert_id: why for cert_id, why in waits.items() if cert_id not in in_batches}
    results.waiting |= atomic.why_waiting(context, candidates.keys(), waits, held, live_again)
    return {cert_id: one for cert_id, one in candidates.items() if cert_id not in results.waiting}


def prune_unused(context: Context, cert_ids: Collection[int]) -> None:
    """Remove old generations of some certificates, except those kept for a rollback: proven ones. Blocks on the disk.

    Tries all, then raises the first DiskError.
    """
    keep, first = context.config().application.keep_generations, None
    for record in filter(None, map(context.records.certificates.get, cert_ids)):
        used = {record.generation, record.activated, record.staged} - {""}
        try:
            context.generations.prune(record.name, keep, also_keep=used, proven=record.former)
        except DiskError as error:
            first = first or error
    if first is not None:
        raise first


async def with_missing_files(
    context: Context, items: Sequence[InstallItem], candidates: Mapping[int, Candidate], cert_ids: Collection[int]
) -> tuple[dict[int, Candidate], dict[int, CertctrlError]]:
    """Return new candidates for generations that lack wanted files, and the errors of those that cannot be made.

    They are made from the files on disk: one more format in an install config needs no fetch, nor does a keystore
    whose password has changed. ``cert_ids``: the certificates in question. Their groups must be locked: a candidate
    made from the live generation must not be switched to after a renewal.
    """
    if context.indexer.of(items).empty:
        return {}, {}
    records = [one for one in context.records.ours if one.cert_id in cert_ids]
    mine = {cert_id: one for cert_id, one in candidates.items() if cert_id in cert_ids}
    incomplete: list[Candidate] = await context.offload(_lacking_files, context, items, records, mine)
    found, faults = dict[int, Candidate](), dict[int, CertctrlError]()
    for one in incomplete:
        try:
            bundle, stand_in = await context.offload(bundle_of, context, one), one.placeholder
            prepared = await staging.stage(context, bundle, items, placeholder=stand_in, check=not stand_in)
            await context.offload(context.generations.settle, [prepared.staged])
            found[one.cert_id] = prepared
        except CertctrlError as error:
            faults[one.cert_id] = error
    return found, faults


def may_make(context: Context, record: CertRecord, items: Sequence[InstallItem]) -> bool:
    """Return whether wanted files may be made now: unless all items that want one have failed and are not due."""
    if not record.pending or context.records.retries.is_due(cert_resource(record.cert_id)):
        return True
    copies = context.indexer.of(items).copies(record.facts)
    return not {one.id for one in copies if not set(one.sources) <= set(BASE_FILES)} <= set(record.pending)


def files_to_make(
    context: Context, items: Sequence[InstallItem], records: Sequence[CertRecord], candidates: Mapping[int, Candidate]
) -> dict[int, dict[str, str]]:
    """Return certificate id -> wanted file that `with_missing_files` would make -> why. Blocks on the disk."""
    index, found = context.indexer.of(items), dict[int, dict[str, str]]()
    for one in [] if index.empty else _lacking_files(context, items, records, candidates):
        manifest = context.generations.manifest(one.name, one.generation)
        reasons = {file: why_made(context, one.name, manifest, file) for file in sorted(index.files(one.facts))}
        found[one.cert_id] = {file: why for file, why in reasons.items() if why}
    return found


def _lacking_files(
    context: Context, items: Sequence[InstallItem], records: Sequence[CertRecord], candidates: Mapping[int, Candidate]
) -> list[Candidate]:
    """Return desired generations that lack files which the items want. Blocks on the disk."""
    index, base, found = context.indexer.of(items), frozenset(BASE_FILES), []
    known = {record.cert_id: record.facts for record in records}
    known |= {cert_id: one.facts for cert_id, one in candidates.items()}
    for cert_id, facts in known.items():
        name, wanted = facts.name, index.files(facts) - base
        if not wanted:
            continue
        candidate = candidates.get(cert_id)
        with suppress(DiskError):  # the next reader reports it
            generation = candidate.generation if candidate is not None else context.generations.live_id(name)
            if generation and not _has_files(context, name, context.generations.manifest(name, generation), wanted):
                one = candidate or Candidate.read(context, name, generation)
                if candidate is not None or not _staged_already(context, one, wanted):
                    found.append(one)
    return found


def _has_files(context: Context, name: str, manifest: Mapping[str, Any], wanted: Collection[str]) -> bool:
    """Return whether a generation has all wanted files, keystores with the current passwords."""
    return not any(why_made(context, name, manifest, file) for file in wanted)


def why_made(context: Context, name: str, manifest: Mapping[str, Any], file: str) -> str:
    """Return why a wanted file has to be made; empty if it exists and has the current password."""
    if file not in manifest["files"]:
        return f"{file} does not exist yet"
    if (kind := password_kind(file)) is None:
        return ""
    password = context.state.password_if_any(name, kind)
    if password is None:
        return f"the password of {file} was removed, so it gets another one"
    same = manifest["facts"].get("passwords", {}).get(kind) == staging.password_mark(password)
    return "" if same else f"the password of {file} has changed"


def _staged_already(context: Context, live: Candidate, wanted: Collection[str]) -> bool:
    """Return whether the live certificate is already staged with these files: it failed, and is not due yet."""
    record = context.records.certificates.get(live.cert_id)
    if record is None or not record.staged:
        return False
    manifest = context.generations.manifest(live.name, record.staged)
    same = bool(manifest["facts"]["fingerprint_sha256"] == live.facts.fingerprint_sha256)
    return same and _has_files(context, live.name, manifest, wanted)


def bundle_of(context: Context, candidate: Candidate) -> Bundle:
    """Return the material of a generation on disk. Raises DiskError, StateCorruptError."""

    def read(file: str) -> bytes:
        return context.generations.read(candidate.name, candidate.generation, file)

    return Bundle(
        facts=candidate.facts,
        key_pem=read("private.key"),
        certificate_pem=read("certificate.pem"),
        chain_pem=read("chain.pem"),
    )


def live_bundle(context: Context, record: CertRecord) -> Bundle | None:
    """Return the material of a certificate's live generation; None if it is damaged or not valid now. Blocks on the disk."""
    now = context.wall_now()
    with suppress(DiskError):
        live = Candidate.read(context, record.name, record.generation)
        if live.facts == record.facts and not live.placeholder and live.facts.not_before <= now < live.facts.not_after:
            return bundle_of(context, live)
    return None
