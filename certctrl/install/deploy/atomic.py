"""Atomic batches: certificates of this host that are switched, reloaded and proven together, or not at all.

The record of each member names its batch from before the switch until the certificate is proven. So every later call
finds the members together, and `finish_switches` completes a switch that a crash interrupted between two links. A
member leaves its batch when newer material without the batch replaces it, or when it is withdrawn.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable, Mapping, Sequence

import attrs

from certctrl.errors import BatchRefusedError, CertctrlError, DiskError
from certctrl.install.deploy.context import Context
from certctrl.install.deploy.retry_table import cert_resource
from certctrl.model.records import CertRecord, RetryKind, Stage

ALIGNED = frozenset({RetryKind.REFUSED, RetryKind.DISK, RetryKind.PENDING, RetryKind.DOWN})
"""Kinds of failures after which the members of a batch are tried again at the same time."""


def members(context: Context) -> dict[str, list[CertRecord]]:
    """Return the records of each batch that is not done; one certificate alone is not a batch."""
    found: dict[str, list[CertRecord]] = {}
    for record in context.records.ours:
        if record.batch and record.stage is not Stage.WITHDRAWN:
            found.setdefault(record.batch, []).append(record)
    return {batch: records for batch, records in found.items() if len(records) > 1}


def batches_of(context: Context) -> dict[int, str]:
    """Return certificate id -> the batch that it belongs to."""
    return {record.cert_id: batch for batch, records in members(context).items() for record in records}


def with_siblings(context: Context, cert_ids: Collection[int]) -> frozenset[int]:
    """Return certificates, and all others of their batches."""
    found = set(cert_ids)
    for records in members(context).values():
        ids = {record.cert_id for record in records}
        if not ids.isdisjoint(found):
            found |= ids
    return frozenset(found)


def changing(context: Context, candidates: Container[int]) -> dict[int, str]:
    """Return certificate id -> batch, for batches that are switched now, or live but not proven."""
    return {
        record.cert_id: batch
        for batch, records in members(context).items()
        if any(record.cert_id in candidates or is_unproven(record) for record in records)
        for record in records
    }


def is_unproven(record: CertRecord) -> bool:
    """Return whether the live generation of a certificate was never proven in service."""
    return bool(record.generation) and record.generation != record.activated


def is_here(record: CertRecord) -> bool:
    """Return whether the new material of a member is on this host, staged or live."""
    return bool(record.staged) or is_unproven(record)


def refusals(context: Context, faults: Mapping[int, CertctrlError]) -> dict[int, BatchRefusedError]:
    """Return certificate id -> why it is not switched, for those in a batch with a certificate that has a fault."""
    found = dict[int, BatchRefusedError]()
    for records in members(context).values() if faults else ():
        ids = {record.cert_id for record in records}
        if not ids.isdisjoint(faults):
            cause = min(ids & faults.keys())
            found |= dict.fromkeys(ids, BatchRefusedError(cause, faults[cause]))
    return found


def why_waiting(
    context: Context,
    candidates: Collection[int],
    waits: Mapping[int, str],
    held: Container[int],
    live_again: Container[int],
) -> dict[int, str]:
    """Return certificate id -> why the batch of some candidates waits, given why each would wait for itself.

    A certificate that is ``held`` by an operator, or whose staged files are lost, delays its batch. The maintenance
    window does only if it delays all members: then none is about to expire. ``live_again``: candidates that are no new
    material, which never wait for the window.
    """
    found = dict[int, str]()
    for batch, records in members(context).items():
        ids = [record.cert_id for record in records]
        if not any(one in candidates for one in ids):
            continue
        whys = [f"certificate {one}: {waits[one]}" for one in ids if one in waits and one in held]
        lost = [f"the staged files of certificate {one.cert_id} are lost" for one in records if not is_here(one)]
        closed = [waits[one] for one in ids if one in waits and one not in held]
        whys += lost or (closed if len(closed) == sum(one not in live_again for one in ids) else [])
        if whys:
            found |= dict.fromkeys(ids, whys[0] if whys == closed else f"atomic batch {batch}: {whys[0]}")
    return found


def align_retries(context: Context, cert_ids: Collection[int]) -> None:
    """Make the members of a batch that failed together due together."""
    retries, now = context.records.retries, context.wall_now()
    for records in members(context).values():
        if not any(record.cert_id in cert_ids for record in records):
            continue
        rows = [retries.of(cert_resource(record.cert_id)) for record in records]
        failed = [row for row in rows if row is not None and row.kind in ALIGNED]
        latest = max((now + retries.left(row.key) for row in failed), default=now)
        for row in failed:
            pause = max(row.pause, latest - now)
            retries.put(attrs.evolve(row, next_try_at=latest, pause=pause))


def finish_switches(context: Context) -> None:
    """Finish the switches of batches that a crash interrupted, or undo them if files are missing. Blocks on the disk.

    Records are durable before the first link changes, so they name what each link was to lead to.
    """
    for records in members(context).values():
        staged = [record for record in records if record.staged]
        live = {record.name: context.generations.live_id(record.name) or "" for record in staged}
        switched = [record for record in staged if live[record.name] == record.staged]
        if not switched or len(switched) == len(staged):
            continue
        try:
            context.generations.switch({record.name: record.staged for record in staged})
        except DiskError as error:
            context.log.error("An interrupted switch of a batch is undone: %s", error)
            _switch_back(context, switched)


def _switch_back(context: Context, switched: Iterable[CertRecord]) -> None:
    """Undo the switch of some certificates, or log that the disk does not allow it; the next converge continues.

    A failure must not keep the agent from starting: each link leads to a whole certificate, and no service has read them.
    """
    try:
        context.generations.switch({record.name: record.generation or None for record in switched})
    except DiskError as error:
        context.log.error("An interrupted switch of a batch can be neither finished nor undone now: %s", error)


def note_switches(context: Context, switched: Mapping[int, str]) -> bool:
    """Record the generations that members of batches are switched to, before that; return whether there are any.

    ``switched``: certificate id -> generation. Durable with the next save.
    """
    batches = batches_of(context)
    found = [cert_id for cert_id in switched if cert_id in batches]
    for cert_id in found:
        record = context.records.certificates[cert_id]
        if record.generation != switched[cert_id]:
            context.records.note(attrs.evolve(record, staged=switched[cert_id]))
    return bool(found)


def units(batches: Mapping[int, str], mine: Sequence[int], wanted: Collection[int]) -> list[list[int]]:
    """Return the parts of ``mine`` that are tried separately: each wanted certificate, and each batch as a whole."""
    names = {cert_id: batches.get(cert_id) or f"alone:{cert_id}" for cert_id in mine}
    chosen = {names[cert_id] for cert_id in mine if cert_id in wanted}
    found: dict[str, list[int]] = {}
    for cert_id in mine:
        if names[cert_id] in chosen:
            found.setdefault(names[cert_id], []).append(cert_id)
    return list(found.values())
