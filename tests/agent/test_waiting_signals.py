"""Signals that wait for a handler: by class and in order, and each class gets its share."""

from __future__ import annotations

import attrs

from certctrl.agent.waiting_signals import WaitingSignals
from certctrl.model.config import ApplicationConfig
from certctrl.model.priority import Priority
from certctrl.model.records import InboxEntry
from certctrl.model.signals import CertRenewed, CertRevoked, InstallUpdated, Signal


def entry(signal: Signal) -> InboxEntry:
    return InboxEntry(signal=signal)


def renewals(first: int, last: int) -> list[InboxEntry]:
    return [entry(CertRenewed(1, number)) for number in range(first, last + 1)]


def waiting_of(*entries: InboxEntry, settings: ApplicationConfig | None = None) -> WaitingSignals:
    waiting = WaitingSignals(lambda: settings or ApplicationConfig())
    for one in entries:
        waiting.add(one)
    return waiting


def all_next(waiting: WaitingSignals) -> list[InboxEntry]:
    found = []
    while (one := waiting.next()) is not None:
        found.append(one)
    return found


def test_of_one_class_they_come_in_order_up_to_the_limit() -> None:
    entries = renewals(1, 20)
    waiting = waiting_of(*entries)
    assert all_next(waiting) == entries[:8]
    assert waiting.all() == entries[8:]
    waiting.ended(entries[3])
    assert all_next(waiting) == [entries[8]]


def test_a_revocation_gets_a_handler_although_renewals_have_all() -> None:
    waiting = waiting_of(*renewals(1, 1000))
    assert len(all_next(waiting)) == 8
    revoked = entry(CertRevoked(9, 5000))
    waiting.add(revoked)
    assert all_next(waiting) == [revoked]


def test_a_flood_of_revocations_leaves_the_others_their_turns() -> None:
    revoked = [entry(CertRevoked(1, number)) for number in range(1, 101)]
    config = entry(InstallUpdated(1))
    waiting = waiting_of(*revoked, *renewals(201, 300), config)
    first = all_next(waiting)
    assert config in first, "a share of its own"
    for one in first:
        waiting.ended(one)
    assert any(isinstance(one.signal, CertRenewed) for one in first + all_next(waiting))


def test_the_order_of_the_configuration_counts() -> None:
    settings = attrs.evolve(ApplicationConfig(), priority_order=tuple(Priority)[::-1], handler_limit=1)
    waiting = waiting_of(entry(CertRevoked(1, 7)), *renewals(1, 2), entry(InstallUpdated(1)), settings=settings)
    assert isinstance(all_next(waiting)[0].signal, InstallUpdated)


def test_one_that_is_near_its_end_comes_before_the_others() -> None:
    soon = entry(CertRenewed(2, 500, sent_priority=Priority.EXPIRING))
    waiting = waiting_of(*renewals(1, 100), soon)
    assert waiting.next() is soon


def test_a_signal_can_be_taken_back_and_its_successor_goes_first() -> None:
    entries = renewals(1, 30)
    waiting = waiting_of(*entries)
    assert waiting.of("cert:20") is entries[19]
    waiting.remove(entries[19])
    assert waiting.of("cert:20") is None
    newer = entry(CertRenewed(2, 20))
    waiting.add(newer, first=True)
    assert all_next(waiting)[0] is newer
