"""Which signals may run now, which are superseded, which were seen before (safety.md §1.6, §4.2).

Per resource in order, across resources side by side. A signal carries no authority: its handler fetches the
truth. So of several for one resource only the newest is worth running, whatever order they came in. The one
exception is a revocation: it is more than a hint to look again, it is an alarm, and a renewal that came
after it must not silence it. It goes first, but while it waits for its next try it holds nothing up.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import attrs

from certctrl.model.records import InboxEntry
from certctrl.model.signals import CertRevoked, MalformedSignal, UnknownSignal


@attrs.frozen(kw_only=True)
class Choice:
    """What to do with the inbox now."""

    run: list[InboxEntry]
    """At most one per resource; revocations first, then as they came."""
    superseded: list[InboxEntry]
    """To be acked ``superseded`` without running."""
    next_retry_at: float | None
    """When the earliest entry that waits for its next try is due (wall seconds); None: none waits."""


def choose(entries: Sequence[InboxEntry], busy: Collection[str], now: float, *, longest: float = math.inf) -> Choice:
    """Return what may run, given the inbox in order of arrival, the resources at work, and the wall time.

    ``longest``: no entry was ever told to wait more seconds than this. One that seems to have to was put off while
    the clock was ahead; it is due. Nothing is said of a busy resource: which of its entries is the one at work is
    not known here.
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
        kept = group if len(group) == 1 else _coalesced(group, superseded)
        for entry in kept:
            if not 0 < entry.next_try_at - now <= longest:
                run.append(entry)
                break
        else:
            due = min(entry.next_try_at for entry in kept)
            next_retry_at = due if next_retry_at is None else min(next_retry_at, due)
    run.sort(key=lambda entry: not isinstance(entry.signal, CertRevoked))  # stable: arrival decides the rest
    return Choice(run=run, superseded=superseded, next_retry_at=next_retry_at)


def _coalesced(group: list[InboxEntry], superseded: list[InboxEntry]) -> list[InboxEntry]:
    """Return what is left of one resource's entries, in the order to run them; add the rest to ``superseded``."""
    if isinstance(group[0].signal, UnknownSignal | MalformedSignal):
        return group  # each gets its own answer, and costs nothing
    newest = max(reversed(group), key=lambda entry: entry.signal.ts_ms)  # among equals the last that came
    revocations = [entry for entry in group if isinstance(entry.signal, CertRevoked)]
    kept = [newest]
    if revocations and not isinstance(newest.signal, CertRevoked):
        kept.insert(0, max(revocations, key=lambda entry: entry.signal.ts_ms))
    superseded += [entry for entry in group if not any(entry is one for one in kept)]
    return kept
