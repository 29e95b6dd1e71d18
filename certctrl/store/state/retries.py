"""Read ``state/retries.json``: failures and when they are retried.

Earlier releases kept failures with the signals of the inbox and with the records of certificates; without a
``retries.json``, they are read from there.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import attrs

from certctrl import lean
from certctrl.model.plan import OutcomeKind
from certctrl.model.records import Retry, RetryKind, retry_key
from certctrl.model.signals import Signal
from certctrl.store.layout import ConfigDir
from certctrl.store.state.files import REBUILD, RESYNC, StateFiles

FIX = "remove it; the agent then retries everything that fails, from the beginning"


@lean.frozen(kw_only=True)
class _Earlier:
    """The failure fields of signals and records."""

    attempts: int = 0
    last_error: str = ""
    next_try_at: float = 0.0


def load_retries(files: StateFiles, layout: ConfigDir) -> tuple[tuple[Retry, ...], bool]:
    """Return the retries, oldest first, and whether they come from files of an earlier release.

    Raises DiskError, StateCorruptError.
    """
    raw = files.load_json(layout.retries, FIX)
    if raw is None:
        return tuple(_earlier(files, layout)), True
    return files.structured(tuple[Retry, ...], raw.get("retries"), "retries", layout.retries, FIX), False


def has_failed(row: dict[str, Any]) -> bool:
    """Return whether a row of the inbox or of a record is a failure of an earlier release."""
    return bool(row.get("attempts") or row.get("last_error"))


def _earlier(files: StateFiles, layout: ConfigDir) -> Iterable[Retry]:
    """Return the failures that an earlier release kept; the retry of a signal replaces that of its certificate."""
    found: dict[str, Retry] = {}
    certificates = files.load_part(layout.certificates, "certificates", dict[str, dict[str, Any]], {}, REBUILD)
    for cert_id, row in certificates.items():
        facts = files.structured(_Earlier, row, cert_id, layout.certificates, REBUILD)
        if facts.attempts:
            tolerated = row.get("last_outcome") not in (OutcomeKind.FAILED, OutcomeKind.ROLLED_BACK)
            pending = bool(row.get("owed")) and not row.get("staged")
            kind = RetryKind.PENDING if tolerated or pending else RetryKind.REFUSED
            found[f"cert:{cert_id}"] = _carried_over(f"cert:{cert_id}", kind, facts)
    for row in files.load_part(layout.inbox, "entries", tuple[dict[str, Any], ...], (), RESYNC):
        facts = files.structured(_Earlier, row, "entries", layout.inbox, RESYNC)
        if facts.attempts or facts.last_error:
            signal: Signal = files.structured(Signal, row.get("signal"), "entries.signal", layout.inbox, RESYNC)
            kind = RetryKind.REFUSED if facts.attempts else RetryKind.WAITING
            retry = _carried_over(signal.resource, kind, facts)
            found[retry_key(signal)] = attrs.evolve(retry, signal=signal, reported=facts.last_error)
    return found.values()


def _carried_over(resource: str, kind: RetryKind, facts: _Earlier) -> Retry:
    return Retry(resource=resource, kind=kind, failures=max(1, facts.attempts), **attrs.asdict(facts))
