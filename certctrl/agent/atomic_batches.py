"""Gather the certificates of atomic batches (``ref.batch``) until all are ready; then they are switched together.

A ready certificate waits here, and its signal stays in the inbox, so a crash loses nothing. Its resource is released as
soon as another signal of it is due: a revocation never waits for a batch. A batch is complete once as many of its
certificates are known as the plane announced, and each is ready or no longer in it: a newer renewal replaced its own, it
was unassigned, which the plane has to confirm, or it ended without material. If that takes longer than the limit, the
ready ones fail, and wait with `RetryKind.BATCH` until a missing one becomes ready.

The certificates of a batch are not stored here: the signals name them. After a crash the comparison with the plane
announces the missing ones again, with the current size of the batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import attrs

from certctrl import lean
from certctrl.agent.batches import ReadyCertificate
from certctrl.install.deploy.retry_table import RetryTable
from certctrl.install.plan.retries import ROUNDING
from certctrl.model.records import RetryKind
from certctrl.model.signals import MAX_IN_BATCH, CertRenewed, CertUnassigned, Signal, identity
from certctrl.text import one_line

MAX_WHY = 400
"""Characters of the reason why a batch is incomplete."""
MAX_NAMED = 3
MAX_REMEMBERED = 100
"""Ended batches whose certificates are remembered."""


@lean.define(eq=False)
class _Gathering:
    """One batch, as far as its certificates were announced."""

    size: int = 0
    announced_at: int = 0
    """Time of the newest signal, whose size counts (milliseconds)."""
    seen: set[int] = attrs.field(factory=set)
    """Certificates that were announced as members in this run."""
    unfinished: set[int] = attrs.field(factory=set)
    """Members whose signal has not ended."""
    held: dict[int, ReadyCertificate] = attrs.field(factory=dict)
    ends_at: float = math.inf
    """When the limit is over (Trio clock); infinity: no certificate has been ready since it was last over."""
    compared: bool = False
    """Whether a comparison was requested because of its missing certificates."""

    @property
    def unknown(self) -> int:
        """Number of certificates that were not announced."""
        return max(0, self.size - len(self.seen))

    @property
    def is_complete(self) -> bool:
        return bool(self.held) and len(self.seen) >= self.size and self.unfinished <= self.held.keys()

    def note(self, cert_id: int) -> None:
        """Note that the signal of a member has not ended."""
        self.unfinished.add(cert_id)
        if len(self.seen) < MAX_IN_BATCH:  # a plane may announce more and more
            self.seen.add(cert_id)

    def take(self) -> list[ReadyCertificate]:
        """Return the certificates that wait, and keep none."""
        found, self.held, self.ends_at = [*self.held.values()], {}, math.inf
        return found


class AtomicBatches:
    """The batches whose certificates are not all ready."""

    def __init__(
        self,
        retries: RetryTable,
        *,
        limit: Callable[[], float],
        clock: Callable[[], float],
        compare: Callable[[], object],
        is_withdrawn: Callable[[int], bool],
    ) -> None:
        """``limit`` returns how many seconds the ready certificates of a batch wait for the others.

        ``compare`` requests a comparison with the plane, once for each batch with unannounced certificates.
        ``is_withdrawn`` returns whether the withdrawal of a certificate has begun, even if it has failed since.
        """
        self._is_withdrawn = is_withdrawn
        self._compare = compare
        self._retries = retries
        self._limit = limit
        self._clock = clock
        self._found: dict[str, _Gathering] = {}
        self.may_have_any = True
        """Whether `note` may find anything; if not, a burst of other signals need not be searched each time."""

    def admitted(self, signals: Iterable[Signal]) -> None:
        """Note signals that have arrived."""
        self.may_have_any = self.may_have_any or any(map(batch_of, signals))

    @property
    def held(self) -> list[ReadyCertificate]:
        """The certificates that wait for others."""
        return [one for batch in self._found.values() for one in batch.held.values()]

    def hold(self, ready: ReadyCertificate) -> None:
        """Keep a ready certificate until its batch is complete; retries that waited for it are due now."""
        batch, cert_id = ready.atomic_batch, ready.prepared.cert_id
        gathering = self._found.setdefault(batch, _Gathering())
        gathering.note(cert_id)
        if gathering.ends_at == math.inf:
            gathering.ends_at = self._clock() + self._limit()
        gathering.held[cert_id] = ready
        self.may_have_any = True
        for retry in self._retries.signals():
            if retry.kind is RetryKind.BATCH and batch_of(retry.signal) == batch:
                self._retries.due_now(retry.resource)

    def note(self, signals: Sequence[Signal], due: Sequence[Signal]) -> list[ReadyCertificate]:
        """Note all signals that have not ended; return held certificates for which another signal is ``due``.

        One that failed and waits for its next try frees nothing: its certificate would be ready again immediately.
        """
        of_batches = [one for one in signals if isinstance(one, CertRenewed) and one.batch is not None]
        for gathering in self._found.values():
            gathering.unfinished.clear()
        for signal in of_batches:
            self._note(signal)
        for cert_id in {one.cert_id for one in signals if isinstance(one, CertUnassigned)}:
            if self._is_unconfirmed(cert_id):
                for gathering in self._found.values():
                    if cert_id in gathering.seen and gathering.held:
                        gathering.unfinished.add(cert_id)
        done = [batch for batch, one in self._found.items() if not (one.unfinished or one.held)]
        for batch in done:  # signals of it that were superseded may still arrive
            self._found[batch].ends_at = math.inf
        for batch in done[:-MAX_REMEMBERED]:
            del self._found[batch]
        self.may_have_any = len(self._found) > min(len(done), MAX_REMEMBERED)
        return self._overtaken(due)

    def _note(self, signal: CertRenewed) -> None:
        assert signal.batch is not None
        gathering = self._found.setdefault(signal.batch.id, _Gathering())
        gathering.note(signal.cert_id)
        if signal.ts_ms >= gathering.announced_at:
            gathering.size, gathering.announced_at = signal.batch.size, signal.ts_ms

    def _is_unconfirmed(self, cert_id: int) -> bool:
        """Return whether the plane has not confirmed yet that a certificate is unassigned, as a signal says."""
        retry = self._retries.of(f"cert:{cert_id}")
        if retry is None or not isinstance(retry.signal, CertUnassigned):
            return True
        return retry.kind is not RetryKind.GRACE and not self._is_withdrawn(cert_id)

    def _overtaken(self, signals: Iterable[Signal]) -> list[ReadyCertificate]:
        held = {one.entry.signal.resource: one for one in self.held}
        found: list[ReadyCertificate] = []
        for signal in signals if held else ():
            one = held.get(signal.resource)
            if one is None or identity(one.entry.signal) == identity(signal):
                continue
            found.append(held.pop(signal.resource))
            gathering = self._found[one.atomic_batch]
            del gathering.held[one.prepared.cert_id]
            if not gathering.held and batch_of(signal) != one.atomic_batch:  # otherwise it is ready again soon
                gathering.ends_at = math.inf
        return found

    def take_complete(self) -> list[ReadyCertificate]:
        """Remove and return the certificates of complete batches, which are switched together."""
        found: list[ReadyCertificate] = []
        for gathering in self._found.values():
            if gathering.is_complete:
                found += [attrs.evolve(one, deadline=math.inf) for one in gathering.take()]
        return found

    def take_expired(self) -> list[tuple[ReadyCertificate, str]]:
        """Remove and return the certificates whose batch was incomplete for too long, each with the reason."""
        found: list[tuple[ReadyCertificate, str]] = []
        for batch, gathering in self._found.items():
            if gathering.held and gathering.ends_at <= self._clock() + ROUNDING:
                if gathering.unknown and not gathering.compared:
                    gathering.compared = True
                    self._compare()
                why = f"not switched: atomic batch {batch} lacks {self._missing(gathering)}"
                found += [(one, one_line(why, MAX_WHY)) for one in gathering.take()]
        return found

    def take_all(self) -> list[ReadyCertificate]:
        """Remove and return all waiting certificates; this run no longer handles signals."""
        return [one for gathering in self._found.values() for one in gathering.take()]

    @property
    def next_end(self) -> float:
        """When the next limit is over (Trio clock); infinity: no certificate waits."""
        return min((one.ends_at for one in self._found.values() if one.held), default=math.inf)

    def _missing(self, gathering: _Gathering) -> str:
        missing = sorted(gathering.unfinished - gathering.held.keys())
        parts = [self._why(cert_id) for cert_id in missing[:MAX_NAMED]]
        parts += [f"{len(missing) - MAX_NAMED} more"] if len(missing) > MAX_NAMED else []
        if gathering.unknown:
            parts.append(f"{gathering.unknown} of {gathering.size} certificates, which were not announced here")
        return "; ".join(parts)

    def _why(self, cert_id: int) -> str:
        retry = self._retries.of(f"cert:{cert_id}")
        why = retry.last_error if retry is not None and retry.kind is not RetryKind.BATCH else ""
        return f"certificate {cert_id}: {why or 'not ready'}"


def batch_of(signal: Signal | None) -> str:
    """Return the id of the atomic batch of a signal; empty: none."""
    return signal.batch.id if isinstance(signal, CertRenewed) and signal.batch is not None else ""
