"""An inbox on a disk that can be slow or full."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import trio

from certctrl.agent.inbox import Inbox
from certctrl.errors import DiskError
from certctrl.install.deploy.record_store import RecordStore
from certctrl.install.deploy.retry_table import RetryTable
from certctrl.install.plan.retries import Failure
from certctrl.model.config import ApplicationConfig
from certctrl.model.records import InboxEntry, Retry, RetryKind
from certctrl.model.signals import CertRenewed, Signal
from certctrl.store.state.installed import InstalledState
from certctrl.store.state.session import SessionState

A, B = CertRenewed(ts_ms=1, cert_id=1), CertRenewed(ts_ms=1, cert_id=2)


class Disk:
    """Runs the writes inline, and can be slow or full."""

    def __init__(self) -> None:
        self.writes = 0
        self.full = False

    async def __call__(self, call: Callable[..., Any], *args: object) -> Any:
        await trio.sleep(0.01)
        if self.full:
            raise DiskError("disk full")
        self.writes += 1
        return call(*args)


def inbox_of(store: SessionState, disk: Disk | None = None, *, limit: int = 10) -> Inbox:
    """Return an inbox with a new record store, as in a new process."""
    disk = disk or Disk()
    installed = InstalledState(store.layout, store._fs)
    retries = RetryTable(
        load=installed.load_retries,
        wall_now=lambda: 1000.0,
        steady_now=lambda: 1000.0,
        random=lambda: 1.0,
        settings=ApplicationConfig,
    )
    records = RecordStore(installed, disk, lambda: 1000, retries)
    return Inbox(store, disk, retries, records.secure_retries, limit=limit)


def again(store: SessionState) -> Inbox:
    return inbox_of(store)


async def fail(inbox: Inbox, entry: InboxEntry, error: str = "no route") -> Retry:
    """Hand a signal over to the retries, as the dispatcher does."""
    failure = Failure(resource=entry.signal.resource, kind=RetryKind.REFUSED, error=error, signal=entry.signal)
    retry = inbox._retries.failed(failure)
    await inbox.hand_over(entry, {"failed": error})
    return retry


async def admitted(inbox: Inbox, signals: Sequence[Signal]) -> list[InboxEntry]:
    entries = inbox.admit(signals)
    await inbox.secure()
    return entries
