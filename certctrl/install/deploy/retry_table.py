"""RetryTable: all pending retries of this host, and when they are due.

The one owner of retries. The installer records failures of certificates, the dispatcher those of signals;
`after_failure` computes the pause. The record store writes the table with the records (``state/retries.json``).

A run waits on a clock that cannot be set. The file contains wall-clock times, for the next run and for operators: it is
rewritten when the wall clock is set, and a run that would have to wait longer than the whole pause does not wait.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Container, Iterable, Mapping, Sequence

import attrs
from trio_util import RepeatedEvent

from certctrl import lean
from certctrl.install.plan.retries import ROUNDING, Failure, after_failure, left_of
from certctrl.model.config import ApplicationConfig
from certctrl.model.records import Retry, RetryKind
from certctrl.model.signals import Signal, identity

ITEM = "item:"
"""Prefix of the resource of an item that concerns no certificate, such as a command for CAs."""


def cert_resource(cert_id: int) -> str:
    """Return the resource of a certificate."""
    return f"cert:{cert_id}"


@lean.define(eq=False, kw_only=True)
class RetryTable:
    """Retries by key. Changes are in memory until the record store saves them."""

    load: Callable[[], tuple[Sequence[Retry], bool]]
    """Reads the table at the first use; returns whether it has to be written.

    Raises StateCorruptError, DiskError.
    """
    wall_now: Callable[[], float]
    steady_now: Callable[[], float]
    """Returns seconds of a clock that cannot be set, and that continues while the host is suspended."""
    random: Callable[[], float]
    """Returns a number in [0, 1)."""
    settings: Callable[[], ApplicationConfig]
    ends_at: Callable[[str], float] = lambda _: math.inf
    """Returns when the certificate in use of a resource ends (epoch seconds), otherwise the first one of this host."""
    version: int = 0
    """Counts changes."""
    changed: RepeatedEvent = attrs.field(factory=RepeatedEvent)
    """Set at each change."""
    _rows: dict[str, Retry] | None = None
    _due: dict[str, float] = attrs.field(factory=dict)
    """Key -> when it is due, on the steady clock; entries of the file are added when they are first needed."""
    _until: dict[str, float] = attrs.field(factory=dict)
    """Key -> `Failure.until`, for failures of this run."""

    def rows(self) -> dict[str, Retry]:
        """Return the retries by key, oldest first."""
        if self._rows is None:
            retries, unsaved = self.load()
            self._rows = {retry.key: retry for retry in retries}
            self.version += bool(unsaved and retries)
        return self._rows

    def of(self, resource: str) -> Retry | None:
        """Return the retry of a resource, but not that of its revocation."""
        return self.rows().get(resource)

    def signals(self) -> list[Retry]:
        """Return the retries that carry a signal, oldest first."""
        return [retry for retry in self.rows().values() if retry.signal is not None]

    def scheduled_signals(self) -> list[Retry]:
        """Return the retries that carry a signal, each with the time when it is due by the current clock."""
        now = self.wall_now()
        return [attrs.evolve(retry, next_try_at=now + self.left(retry.key)) for retry in self.signals()]

    def carries(self, resource: str) -> bool:
        """Return whether a signal of a resource waits for its retry."""
        return any(retry.resource == resource for retry in self.signals())

    def left(self, key: str) -> float:
        """Return the seconds until a key is due; 0 if it is due, or nothing failed."""
        retry = self.rows().get(key)
        if retry is None:
            return 0.0
        if key not in self._due:
            self._due[key] = self._steady(retry)
        left = self._due[key] - self.steady_now()
        return left if left > ROUNDING else 0.0

    def due_at(self, resource: str) -> float:
        """Return when a resource is due, by the current wall clock; without a failure, now."""
        return self.wall_now() + self.left(resource)

    def is_due(self, resource: str) -> bool:
        """Return whether a resource may be tried now."""
        return not self.left(resource)

    def clock_was_set(self) -> None:
        """Recompute the times of all retries by the current wall clock, and wake all tasks that wait for one.

        Those that wait for a time of the wall clock may be due earlier than before.
        """
        now = self.wall_now()
        for key, retry in self.rows().items():
            left = min(self.left(key), max(0.0, self._until.get(key, math.inf) - now))
            self._due[key], at = self.steady_now() + left, now + left
            if abs(at - retry.next_try_at) > ROUNDING and max(at, retry.next_try_at) > now:
                self.rows()[key] = attrs.evolve(retry, next_try_at=at)
                self.version += 1
        self.changed.set()

    def failed(self, failure: Failure) -> Retry:
        """Record a failure and return its retry.

        Failures of a certificate whose unassignment waits for its grace time do not postpone the unassignment.
        """
        key = failure.resource
        if failure.signal is not None:
            key = Retry(resource=key, kind=failure.kind, signal=failure.signal).key
        before, now = self.rows().get(key), self.wall_now()
        if before is not None and before.kind is RetryKind.GRACE and failure.signal is None and self.left(key):
            return before
        life = self.ends_at(failure.resource) - now
        retry = after_failure(before, failure, now, random=self.random(), settings=self.settings(), life=life)
        self.put(retry)
        self._until[retry.key] = failure.until
        return retry

    def succeeded(self, resource: str) -> None:
        """Record that a resource no longer fails; a signal that waits for its retry keeps waiting."""
        retry = self.of(resource)
        if retry is None:
            return
        if retry.signal is None:
            self.remove(retry.key)
        elif retry.kind is RetryKind.PENDING:
            self.put(attrs.evolve(retry, kind=RetryKind.WAITING))

    def ended(self, signal: Signal) -> None:
        """Record that a signal is done; other pending retries of its certificate stay."""
        for retry in self.signals():
            if retry.signal is not None and identity(retry.signal) == identity(signal):
                if retry.kind is RetryKind.PENDING and retry.key == retry.resource:
                    self.put(attrs.evolve(retry, signal=None, reported=""))
                else:
                    self.remove(retry.key)

    def replaced(self, signal: Signal) -> None:
        """Record that a new signal of a resource is handled: earlier failures no longer delay it."""
        retry = self.of(signal.resource)
        if retry is not None and retry.signal is None and retry.kind is not RetryKind.PENDING:
            self.remove(retry.key)

    def forget(self, done: Container[str], waiting: Container[str]) -> None:
        """Drop signals (identities) that a crash left here although they are done, or are still in the inbox."""
        for retry in self.signals():
            if retry.signal is not None and (identity(retry.signal) in done or identity(retry.signal) in waiting):
                self.ended(retry.signal)

    def of_items(self) -> dict[str, Retry]:
        """Return the retries of items that concern no certificate, by item id."""
        return {key.removeprefix(ITEM): retry for key, retry in self.rows().items() if key.startswith(ITEM)}

    def items_not_due(self) -> frozenset[str]:
        """Return the ids of failed items that concern no certificate and are not due yet."""
        return frozenset(item for item, retry in self.of_items().items() if not self.is_due(retry.resource))

    def note_items(self, failed: Mapping[str, str], waiting: Collection[str]) -> None:
        """Record the results of all items that concern no certificate.

        ``failed``: item id -> why. ``waiting``: items that were not due. All others succeeded or are gone.
        """
        for item in self.of_items().keys() - failed.keys() - set(waiting):
            self.remove(f"{ITEM}{item}")
        for item, error in failed.items():
            self.failed(Failure(resource=f"{ITEM}{item}", kind=RetryKind.PENDING, error=error))

    def due_now(self, resource: str | None = None) -> list[Retry]:
        """Make all retries due now, or those of one resource, and return them.

        For operators, and when the reasons of the failures may be gone.
        """
        for retry in list(self.rows().values()):
            if resource in (None, retry.resource) and self.left(retry.key):
                self.put(attrs.evolve(retry, next_try_at=0.0))
        return [retry for retry in self.rows().values() if resource in (None, retry.resource)]

    def restore(self, key: str, before: Retry | None) -> None:
        """Restore a key to its retry ``before``."""
        if before is not None:
            self.put(before)
        else:
            self.remove(key)

    async def wait_tried(self, retries: Iterable[Retry]) -> None:
        """Wait until each of these retries was tried once more, or is gone."""
        waiting = list(retries)
        while any(self.rows().get(retry.key) is retry for retry in waiting):
            await self.changed.wait()

    def put(self, retry: Retry) -> None:
        """Replace the retry of a key."""
        before = self.rows().get(retry.key)
        if before != retry:
            if before is None or before.next_try_at != retry.next_try_at:
                self._due[retry.key] = self._steady(retry)
            self.rows()[retry.key] = retry
            self._note()

    def remove(self, key: str) -> None:
        """Remove the retry of a key, if there is one."""
        if self.rows().pop(key, None) is not None:
            self._due.pop(key, None)
            self._until.pop(key, None)
            self._note()

    def _steady(self, retry: Retry) -> float:
        """Return the time on the steady clock when a retry that is read or recorded now is due."""
        return self.steady_now() + left_of(retry, self.wall_now(), self.settings())

    def _note(self) -> None:
        self.version += 1
        self.changed.set()
