"""Read and write the rows of ``state/retries.json``: failures and when they are retried.

Earlier releases kept failures with the signals of the inbox and with the records of certificates; without a
``retries.json``, they are read from there. A kind that they do not know is written as one that they do, with its own
name next to it: a host may be downgraded. A kind of a later release is read as ``waiting``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import attrs

from certctrl import lean
from certctrl.model.plan import OutcomeKind
from certctrl.model.records import Retry, RetryKind, retry_key
from certctrl.model.signals import Signal
from certctrl.store.layout import ConfigDir
from certctrl.store.state.files import REBUILD, RESYNC, StateFiles

FIX = "remove it; the agent then retries everything that fails, from the beginning"
NEWER = (RetryKind.BATCH.value,)
"""Kinds that the first release with this file does not know."""
KINDS = tuple(kind.value for kind in RetryKind)


@lean.frozen(kw_only=True)
class _Earlier:
    """The failure fields of signals and records."""

    attempts: int = 0
    last_error: str = ""
    next_try_at: float = 0.0


@lean.frozen(kw_only=True)
class _EarlierRecord(_Earlier):
    """Those of a record, and what its kind follows from."""

    last_outcome: str | None = None
    owed: Any = None
    staged: Any = None


@lean.frozen(kw_only=True)
class _EarlierEntry(_Earlier):
    """Those of a signal."""

    signal: Any = None
    """Only that of a failure is read."""


def load_retries(files: StateFiles, layout: ConfigDir) -> tuple[tuple[Retry, ...], bool]:
    """Return the retries, oldest first, and whether they come from files of an earlier release.

    Raises DiskError, StateCorruptError.
    """
    raw = files.load_json(layout.retries, FIX)
    if raw is None:
        return tuple(_earlier(files, layout)), True
    rows = raw.get("retries")
    rows = [_with_known_kind(row) for row in rows] if isinstance(rows, list) else rows
    return files.structured(tuple[Retry, ...], rows, "retries", layout.retries, FIX), False


def retry_rows(files: StateFiles, retries: Sequence[Retry]) -> list[dict[str, Any]]:
    """Return the rows of the file."""
    rows: list[dict[str, Any]] = files.unstructured(list(retries))
    return [
        row | {"kind": RetryKind.WAITING.value, "exact_kind": row["kind"]} if row["kind"] in NEWER else row
        for row in rows
    ]


def _with_known_kind(row: Any) -> Any:
    """Return a row with a kind that this release knows; one that is not even text is reported as damage."""
    kind = row.get("exact_kind", row.get("kind")) if isinstance(row, dict) else None
    return row | {"kind": kind if kind in KINDS else RetryKind.WAITING.value} if isinstance(kind, str) else row


def has_failed(row: dict[str, Any]) -> bool:
    """Return whether a row of the inbox or of a record is a failure of an earlier release."""
    return bool(row.get("attempts") or row.get("last_error"))


def _earlier(files: StateFiles, layout: ConfigDir) -> Iterable[Retry]:
    """Return the failures that an earlier release kept; the retry of a signal replaces that of its certificate."""
    found: dict[str, Retry] = {}
    certificates = files.load_part(layout.certificates, "certificates", dict[str, _EarlierRecord], {}, REBUILD)
    for cert_id, facts in certificates.items():
        if facts.attempts:
            tolerated = facts.last_outcome not in (OutcomeKind.FAILED, OutcomeKind.ROLLED_BACK)
            pending = bool(facts.owed) and not facts.staged
            kind = RetryKind.PENDING if tolerated or pending else RetryKind.REFUSED
            found[f"cert:{cert_id}"] = _carried_over(f"cert:{cert_id}", kind, facts)
    entries = files.load_part(layout.inbox, "entries", tuple[_EarlierEntry, ...], (), RESYNC)
    for number, entry in enumerate(entries):
        if entry.attempts or entry.last_error:
            signal: Signal = files.structured(Signal, entry.signal, f"entries[{number}].signal", layout.inbox, RESYNC)
            kind = RetryKind.REFUSED if entry.attempts else RetryKind.WAITING
            retry = _carried_over(signal.resource, kind, entry)
            found[retry_key(signal)] = attrs.evolve(retry, signal=signal, reported=entry.last_error)
    return found.values()


def _carried_over(resource: str, kind: RetryKind, facts: _Earlier) -> Retry:
    return Retry(
        resource=resource,
        kind=kind,
        failures=max(1, facts.attempts),
        attempts=facts.attempts,
        last_error=facts.last_error,
        next_try_at=facts.next_try_at,
    )
