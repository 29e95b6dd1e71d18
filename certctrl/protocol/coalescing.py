"""Choose the signals to handle now, and those that newer ones supersede.

Signals of one resource are handled in order, those of different resources concurrently. A signal is only a hint:
its handler fetches the current state. So of several signals for one resource only the newest is handled, even if it
arrived first. A revocation is the exception, in both directions. It raises an alert, which a later renewal must not
suppress; and until the plane has confirmed it, it must not suppress an earlier renewal. So the newest revocation is
handled first, then the newest other signal, which does not wait for a retry of the revocation.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from certctrl import lean
from certctrl.model.records import InboxEntry
from certctrl.model.signals import CertRevoked, MalformedSignal, Signal, UnknownSignal


@lean.frozen(kw_only=True)
class Choice:
    """The signals to handle now and those to drop."""

    run: list[InboxEntry]
    """At most one per resource; revocations first, then in order of arrival."""
    superseded: list[InboxEntry]
    """To ack as ``superseded``, without handling them."""
    next_retry_at: float | None
    """When the earliest retry is due (wall-clock seconds); None: none is pending."""


def choose(entries: Sequence[InboxEntry], busy: Collection[str], now: float) -> Choice:
    """Return the signals to handle; ``entries`` are in order of arrival, ``now`` is wall-clock seconds.

    Entries of ``busy`` resources are skipped: one of them is being handled.
    """
    groups: dict[str, list[InboxEntry]] = {}
    for entry in entries:
        resource = entry.signal.resource
        if resource not in busy:
            groups.setdefault(resource, []).append(entry)
    run: list[InboxEntry] = []
    superseded: list[InboxEntry] = []
    next_retry_at: float | None = None
    for group in groups.values():
        kept = _coalesced(group, superseded)
        for entry in kept:
            if entry.next_try_at <= now:
                run.append(entry)
                break
        else:
            due = min(entry.next_try_at for entry in kept)
            next_retry_at = due if next_retry_at is None else min(next_retry_at, due)
    run.sort(key=lambda entry: not isinstance(entry.signal, CertRevoked))  # stable: otherwise in order of arrival
    return Choice(run=run, superseded=superseded, next_retry_at=next_retry_at)


def overtakes(newer: Signal, queued: Signal) -> bool:
    """Return whether a new signal affects the handling of a queued one of the same resource."""
    if isinstance(queued, UnknownSignal | MalformedSignal):
        return False
    if isinstance(queued, CertRevoked) != isinstance(newer, CertRevoked):
        return isinstance(newer, CertRevoked)
    return newer.ts_ms >= queued.ts_ms


def _coalesced(group: list[InboxEntry], superseded: list[InboxEntry]) -> list[InboxEntry]:
    """Return the entries of one resource to keep, in the order to handle them; add the others to ``superseded``."""
    if isinstance(group[0].signal, UnknownSignal | MalformedSignal):
        return group  # each gets its own ack, and handling it is free
    revocations = [entry for entry in group if isinstance(entry.signal, CertRevoked)]
    others = [entry for entry in group if not isinstance(entry.signal, CertRevoked)]
    kept = [max(reversed(some), key=lambda entry: entry.signal.ts_ms) for some in (revocations, others) if some]
    superseded += [entry for entry in group if not any(entry is one for one in kept)]
    return kept
