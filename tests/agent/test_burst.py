"""BurstWatch: when a batch leaves, decided from facts alone."""

from __future__ import annotations

import math

import pytest
from trio_util import RepeatedEvent

from certctrl.agent.burst import PAGE_SECONDS, SLOWEST_GAPS, BurstWatch

QUIET, IN_ALL = 0.5, 30.0


class Burst:
    """A watch with a manual clock."""

    def __init__(self) -> None:
        self.now = 100.0
        self.watch = BurstWatch(debounce=lambda: (QUIET, IN_ALL), clock=lambda: self.now)

    def after(self, seconds: float) -> BurstWatch:
        self.now += seconds
        return self.watch

    def fetched(self, seconds: float) -> None:
        self.after(seconds).certificate_ready()
        self.watch.fetch_ended()

    @property
    def leaves_in(self) -> float:
        return self.watch.leaves_at() - self.now


@pytest.fixture
def burst() -> Burst:
    return Burst()


def test_an_empty_batch_never_leaves(burst: Burst) -> None:
    assert burst.leaves_in == math.inf
    burst.watch.fetch_queued()
    burst.watch.full_page()
    assert burst.leaves_in == math.inf


def test_a_lone_certificate_leaves_immediately(burst: Burst) -> None:
    burst.watch.fetch_queued()
    burst.fetched(3.0)
    assert burst.leaves_in == 0


def test_a_renewal_is_alone_while_nothing_else_is_expected(burst: Burst) -> None:
    watch = burst.watch
    assert not watch.is_alone, "nothing is fetched"
    watch.fetch_queued()
    assert watch.is_alone
    watch.full_page()
    assert not watch.is_alone, "another page follows"
    watch.last_page()
    watch.fetch_queued()
    assert not watch.is_alone, "another one is fetched"
    burst.fetched(0.1)
    assert not watch.is_alone, "another one is ready"
    watch.batch_left()
    assert watch.is_alone


def test_a_certificate_without_a_queued_fetch_leaves_immediately(burst: Burst) -> None:
    burst.watch.certificate_ready()
    assert burst.leaves_in == 0


def test_a_batch_waits_for_fetches_until_nothing_has_happened_for_the_debounce(burst: Burst) -> None:
    burst.watch.fetch_queued()
    burst.watch.fetch_queued()
    burst.fetched(0.1)
    assert burst.leaves_in == QUIET
    burst.after(0.2)
    assert burst.leaves_in == pytest.approx(QUIET - 0.2)
    burst.watch.fetch_ended()  # the second one failed
    assert burst.leaves_in == 0


def test_on_a_slow_host_a_batch_waits_longer_than_the_debounce(burst: Burst) -> None:
    for _ in range(3):
        burst.watch.fetch_queued()
    burst.fetched(0.4)
    burst.fetched(0.4)
    assert burst.leaves_in == pytest.approx(SLOWEST_GAPS * 0.4)


def test_no_batch_collects_longer_than_the_limit(burst: Burst) -> None:
    for _ in range(200):
        burst.watch.fetch_queued()
    burst.fetched(0.1)
    for _ in range(100):
        burst.fetched(0.29)
    assert burst.leaves_in == pytest.approx(IN_ALL - 100 * 0.29)


def test_a_batch_waits_for_the_page_behind_a_full_one(burst: Burst) -> None:
    burst.watch.full_page()
    burst.watch.fetch_queued()
    burst.fetched(0.1)
    assert burst.leaves_in == PAGE_SECONDS
    burst.after(1.0).last_page()
    assert burst.leaves_in == 0


def test_a_last_page_without_a_full_one_changes_nothing(burst: Burst) -> None:
    burst.watch.fetch_queued()
    burst.watch.fetch_queued()
    burst.fetched(0.1)
    burst.after(0.3).last_page()
    assert burst.leaves_in == pytest.approx(QUIET - 0.3)


def test_the_gap_between_two_batches_does_not_slow_the_second(burst: Burst) -> None:
    burst.watch.fetch_queued()
    burst.fetched(0.1)
    burst.watch.batch_left()
    assert burst.leaves_in == math.inf
    burst.watch.fetch_queued()
    burst.watch.fetch_queued()
    burst.fetched(60.0)
    assert burst.leaves_in == QUIET


class Woken(RepeatedEvent):
    """An event that counts."""

    times = 0

    def set(self) -> None:
        self.times += 1
        super().set()


def test_facts_that_can_only_delay_a_batch_wake_nobody(burst: Burst) -> None:
    """Otherwise each certificate of a burst would wake the task that waits for it."""
    woken = burst.watch.changed = Woken()
    burst.watch.full_page()
    for _ in range(100):
        burst.watch.fetch_queued()
    burst.after(0.1).certificate_ready(first=True)
    assert woken.times == 1
    for _ in range(100):
        burst.fetched(0.01)
    assert woken.times == 1, "the page behind the full one may bring more"
    burst.watch.fetch_queued()
    burst.watch.last_page()
    assert woken.times == 2, "it waits no longer for the page"
    burst.watch.fetch_ended()
    assert woken.times == 3
    assert burst.leaves_in == 0
