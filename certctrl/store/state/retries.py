"""Read and write ``state/retries.json``: what failed, and when it is retried.

Earlier releases kept failures with the signals of the inbox and with the records of certificates; while there is no
``retries.json``, they are taken from there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import attrs

from certctrl.model.plan import OutcomeKind
from certctrl.model.records import Retry, RetryKind, retry_key
from certctrl.model.signals import Signal, to_wire
from certctrl.store.layout import ConfigDir
from certctrl.store.state.files import StateFiles

FIX = "remove it; the agent then retries everything that fails, from the beginning"


@attrs.frozen(kw_only=True)
class _Row:
    resource: str
    kind: RetryKind
    attempts: int
    failures: int
    last_error: str
    next_try_at: float
    reported: str = ""


@attrs.frozen(kw_only=True)
class _Earlier:
    """The fields that signals and records had."""

    attempts: int = 0
    last_error: str = ""
    next_try_at: float = 0.0


def load_retries(files: StateFiles, layout: ConfigDir) -> tuple[tuple[Retry, ...], bool]:
    """Return the retries, oldest first, and whether they come from files of an earlier release.

    Raises DiskError, StateCorruptError.
    """
    if files.load_json(layout.retries, FIX) is None:
        return tuple(_earlier(files, layout)), True
    rows = files.load_part(layout.retries, "retries", tuple[dict[str, Any], ...], (), FIX)
    return tuple(_retry(files, layout, row) for row in rows), False


def retries_to_json(retries: Sequence[Retry]) -> dict[str, Any]:
    """Return retries as the body of their file."""
    return {"retries": [_to_json(retry) for retry in retries]}


def has_failed(row: dict[str, Any]) -> bool:
    """Return whether a row of the inbox or of a record is of an earlier release and had failed."""
    return bool(row.get("attempts") or row.get("last_error"))


def _to_json(retry: Retry) -> dict[str, Any]:
    row = attrs.asdict(retry, recurse=False)
    return row | {"signal": to_wire(retry.signal) if retry.signal is not None else None}


def _retry(files: StateFiles, layout: ConfigDir, row: dict[str, Any]) -> Retry:
    facts = files.structured(_Row, row, "retries", layout.retries, FIX)
    signal = _signal(files, layout, row["signal"]) if row.get("signal") is not None else None
    return Retry(**attrs.asdict(facts), signal=signal)


def _signal(files: StateFiles, layout: ConfigDir, raw: Any) -> Signal:
    signal: Signal = files.structured(Signal, raw, "signal", layout.retries, FIX)
    return signal


def _earlier(files: StateFiles, layout: ConfigDir) -> Iterable[Retry]:
    """Return what earlier releases kept; of a certificate whose signal failed, that signal's retry."""
    found: dict[str, Retry] = {}
    certificates = files.load_part(layout.certificates, "certificates", dict[str, dict[str, Any]], {}, FIX)
    for cert_id, row in certificates.items():
        facts = files.structured(_Earlier, row, cert_id, layout.certificates, FIX)
        if facts.attempts:
            tolerated = row.get("last_outcome") not in (OutcomeKind.FAILED, OutcomeKind.ROLLED_BACK)
            pending = bool(row.get("owed")) and not row.get("staged")
            kind = RetryKind.PENDING if tolerated or pending else RetryKind.REFUSED
            found[f"cert:{cert_id}"] = _carried_over(f"cert:{cert_id}", kind, facts)
    for row in files.load_part(layout.inbox, "entries", tuple[dict[str, Any], ...], (), FIX):
        facts = files.structured(_Earlier, row, "entries", layout.inbox, FIX)
        if facts.attempts or facts.last_error:
            signal = _signal(files, layout, row.get("signal"))
            kind = RetryKind.REFUSED if facts.attempts else RetryKind.WAITING
            retry = _carried_over(signal.resource, kind, facts)
            found[retry_key(signal)] = attrs.evolve(retry, signal=signal, reported=facts.last_error)
    return found.values()


def _carried_over(resource: str, kind: RetryKind, facts: _Earlier) -> Retry:
    return Retry(resource=resource, kind=kind, failures=max(1, facts.attempts), **attrs.asdict(facts))
