"""RetryTable: everything on this host that failed and is to be retried, and when.

The one owner of retries. The installer records what failed for a certificate, the dispatcher what failed for a
signal; `after_failure` decides how long to wait. The record store writes the table with the records
(``state/retries.json``).
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Sequence

import attrs
from trio_util import RepeatedEvent

from certctrl.install.plan.retries import Failure, after_failure, due_at
from certctrl.model.config import ApplicationConfig
from certctrl.model.records import Retry, RetryKind
from certctrl.model.signals import Signal, identity


def cert_resource(cert_id: int) -> str:
    """Return the resource of a certificate."""
    return f"cert:{cert_id}"


@attrs.define(eq=False, kw_only=True)
class RetryTable:
    """Retries by key. Changes are in memory until the record store saves them."""

    load: Callable[[], tuple[Sequence[Retry], bool]]
    """Reads the table at the first use, and returns whether it has to be written.

    Raises StateCorruptError, DiskError.
    """
    wall_now: Callable[[], float]
    random: Callable[[], float]
    """Returns a number in [0, 1)."""
    settings: Callable[[], ApplicationConfig]
    version: int = 0
    """Counts changes."""
    changed: RepeatedEvent = attrs.field(factory=RepeatedEvent)
    """Set at each change."""
    _rows: dict[str, Retry] | None = None

    def rows(self) -> dict[str, Retry]:
        """Return the retries by key, oldest first."""
        if self._rows is None:
            retries, unsaved = self.load()
            self._rows = {retry.key: retry for retry in retries}
            self.version += bool(unsaved and retries)
        return self._rows

    def of(self, resource: str) -> Retry | None:
        """Return the retry of a resource; not the one of a revocation."""
        return self.rows().get(resource)

    def signals(self) -> list[Retry]:
        """Return the retries that carry a signal, oldest first."""
        return [retry for retry in self.rows().values() if retry.signal is not None]

    def scheduled_signals(self) -> list[Retry]:
        """Return the retries that carry a signal, each with the time when it is due by the current clock."""
        now, settings = self.wall_now(), self.settings()
        return [attrs.evolve(retry, next_try_at=due_at(retry, now, settings)) for retry in self.signals()]

    def carries(self, resource: str) -> bool:
        """Return whether a signal of a resource is to be retried."""
        return any(retry.resource == resource for retry in self.signals())

    def due_at(self, resource: str) -> float:
        """Return when a resource is due (wall-clock seconds): without a failure now."""
        return due_at(self.of(resource), self.wall_now(), self.settings())

    def is_due(self, resource: str) -> bool:
        """Return whether a resource may be tried now."""
        return self.due_at(resource) <= self.wall_now()

    def failed(self, failure: Failure) -> Retry:
        """Record a failure and return its retry."""
        key = failure.resource
        if failure.signal is not None:
            key = Retry(resource=key, kind=failure.kind, signal=failure.signal).key
        before = self.rows().get(key)
        retry = after_failure(before, failure, self.wall_now(), random=self.random(), settings=self.settings())
        self.put(retry)
        return retry

    def succeeded(self, resource: str) -> None:
        """Record that nothing of a resource fails; a signal that waits for its next try keeps waiting."""
        retry = self.of(resource)
        if retry is None:
            return
        if retry.signal is None:
            self.remove(retry.key)
        elif retry.kind is RetryKind.PENDING:
            self.put(attrs.evolve(retry, kind=RetryKind.WAITING))

    def ended(self, signal: Signal) -> None:
        """Record that a signal ended: what is pending for its certificate stays."""
        for retry in self.signals():
            if retry.signal is not None and identity(retry.signal) == identity(signal):
                if retry.kind is RetryKind.PENDING and retry.key == retry.resource:
                    self.put(attrs.evolve(retry, signal=None, reported=""))
                else:
                    self.remove(retry.key)

    def replaced(self, signal: Signal) -> None:
        """Record that a new signal of a resource is handled: what failed before it no longer delays anything."""
        retry = self.of(signal.resource)
        if retry is not None and retry.signal is None and retry.kind is not RetryKind.PENDING:
            self.remove(retry.key)

    def forget(self, done: Container[str], waiting: Container[str]) -> None:
        """Drop signals that a crash left here though they are done, or still in the inbox (identities)."""
        for retry in self.signals():
            if retry.signal is not None and (identity(retry.signal) in done or identity(retry.signal) in waiting):
                self.ended(retry.signal)

    def due_now(self, resource: str | None = None) -> list[Retry]:
        """Make everything due now, or one resource: an operator asks, or the reasons may be gone; return it."""
        for retry in list(self.rows().values()):
            if resource in (None, retry.resource) and retry.next_try_at > self.wall_now():
                self.put(attrs.evolve(retry, next_try_at=0.0))
        return [retry for retry in self.rows().values() if resource in (None, retry.resource)]

    def restore(self, key: str, before: Retry | None) -> None:
        """Take back what was recorded under a key since ``before``."""
        if before is not None:
            self.put(before)
        else:
            self.remove(key)

    async def wait_tried(self, retries: Iterable[Retry]) -> None:
        """Wait until each of these was tried once more, or is gone."""
        waiting = list(retries)
        while any(self.rows().get(retry.key) is retry for retry in waiting):
            await self.changed.wait()

    def put(self, retry: Retry) -> None:
        """Replace the retry of a key."""
        if self.rows().get(retry.key) != retry:
            self.rows()[retry.key] = retry
            self._note()

    def remove(self, key: str) -> None:
        """Remove the retry of a key, if there is one."""
        if self.rows().pop(key, None) is not None:
            self._note()

    def _note(self) -> None:
        self.version += 1
        self.changed.set()
