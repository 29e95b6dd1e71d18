"""When failures are retried: one table of bounds, one growth, and the limits of both."""

from __future__ import annotations

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from certctrl.install.plan.retries import (
    MAX_RETRY_AFTER,
    PAUSES,
    Failure,
    after_failure,
    is_quarantined,
    left_of,
    longest_pause,
)
from certctrl.model.config import ApplicationConfig
from certctrl.model.records import Retry, RetryKind
from certctrl.model.signals import CertRenewed, Signal

SETTINGS = ApplicationConfig(poison_attempts=3, reconcile_interval_seconds=21_600)
NOW = 1_800_000_000.0
OLD, NEW = CertRenewed(ts_ms=1, cert_id=7), CertRenewed(ts_ms=2, cert_id=7)


def failure(kind: RetryKind, *, retry_after: float = 0.0, signal: Signal | None = None) -> Failure:
    return Failure(resource="cert:7", kind=kind, error="why", retry_after=retry_after, signal=signal)


def fails(*failures: Failure, random: float = 1.0) -> list[Retry]:
    """Return the retry after each failure in a row."""
    found: list[Retry] = []
    for one in failures:
        before = found[-1] if found else None
        found.append(after_failure(before, one, NOW, random=random, settings=SETTINGS))
    return found


def pauses(*failures: Failure, random: float = 1.0) -> list[float]:
    return [retry.next_try_at - NOW for retry in fails(*failures, random=random)]


def test_the_pause_doubles_up_to_the_bound_of_its_kind() -> None:
    waiting, pending = failure(RetryKind.WAITING), failure(RetryKind.PENDING)
    assert pauses(*[waiting] * 8) == [5, 10, 20, 40, 80, 160, 300, 300]
    assert pauses(*[pending] * 9) == [30, 60, 120, 240, 480, 960, 1920, 3600, 3600]


def test_too_many_refusals_lead_to_quarantine() -> None:
    retries = fails(*[failure(RetryKind.REFUSED)] * 4)
    assert [retry.next_try_at - NOW for retry in retries] == [5, 10, 21_600, 21_600]
    assert [is_quarantined(retry, SETTINGS) for retry in retries] == [False, False, True, True]


def test_a_service_that_is_down_is_retried_in_minutes() -> None:
    retries = fails(*[failure(RetryKind.DOWN)] * 8)
    assert [retry.next_try_at - NOW for retry in retries] == [15, 30, 60, 120, 240, 300, 300, 300]
    assert not any(is_quarantined(retry, SETTINGS) for retry in retries)


def test_failures_of_a_restarted_service_are_counted_from_the_beginning() -> None:
    down, refused = failure(RetryKind.DOWN), failure(RetryKind.REFUSED)
    assert [retry.attempts for retry in fails(refused, *[down] * 5, refused)] == [1, 1, 2, 3, 4, 5, 1]


@pytest.mark.parametrize(("life", "most"), [(-5.0, 60), (100.0, 60), (1200.0, 120), (36_000.0, 3600), (1e9, 21_600)])
def test_no_pause_is_longer_than_a_tenth_of_the_remaining_life(life: float, most: float) -> None:
    for kind in RetryKind:
        before = Retry(resource="cert:7", kind=kind, attempts=9, failures=30)
        retry = after_failure(before, failure(kind), NOW, random=0.9, settings=SETTINGS, life=life)
        assert retry.next_try_at - NOW <= most
    asked = failure(RetryKind.WAITING, retry_after=3000.0)
    obeyed = after_failure(None, asked, NOW, random=0.9, settings=SETTINGS, life=life)
    assert obeyed.next_try_at == NOW + 3000, "the plane said when"


def test_waiting_is_no_attempt_but_lets_the_pause_grow() -> None:
    refused, waiting = failure(RetryKind.REFUSED), failure(RetryKind.WAITING)
    retries = fails(refused, waiting, waiting, refused)
    assert [retry.attempts for retry in retries] == [1, 1, 1, 2]
    assert [retry.next_try_at - NOW for retry in retries] == [5, 10, 20, 40]


def test_only_retries_with_requests_are_spread() -> None:
    for kind in RetryKind:
        (shortest,) = pauses(failure(kind), random=0.0)
        assert shortest == PAUSES[kind].first * (0.5 if PAUSES[kind].jitter else 1.0)
    assert not PAUSES[RetryKind.PENDING].jitter


def test_a_server_is_obeyed_within_bounds() -> None:
    assert pauses(failure(RetryKind.WAITING, retry_after=77.0)) == [77]
    assert pauses(failure(RetryKind.WAITING, retry_after=1e9)) == [longest_pause(RetryKind.WAITING, SETTINGS)]
    often = attrs.evolve(SETTINGS, reconcile_interval_seconds=60)
    assert longest_pause(RetryKind.WAITING, often) == MAX_RETRY_AFTER


@pytest.mark.parametrize("kind", [RetryKind.WAITING, RetryKind.REFUSED])
def test_items_and_new_material_are_counted_apart(kind: RetryKind) -> None:
    pending = failure(RetryKind.PENDING)
    retries = fails(pending, pending, failure(kind), pending)
    assert [retry.failures for retry in retries] == [1, 2, 1, 1]
    assert retries[-1].attempts == 1


def test_a_new_signal_starts_from_the_beginning() -> None:
    retries = fails(*[failure(RetryKind.REFUSED, signal=OLD)] * 2, failure(RetryKind.REFUSED, signal=NEW))
    assert [(retry.attempts, retry.signal) for retry in retries] == [(1, OLD), (2, OLD), (1, NEW)]


def test_changing_reasons_that_waiting_cures_do_not_keep_the_pauses_short() -> None:
    kinds = [RetryKind.LAGGING, RetryKind.DISK, RetryKind.LAGGING, RetryKind.WAITING] * 2
    assert pauses(*(failure(kind, signal=OLD) for kind in kinds)) == [5, 10, 20, 40, 80, 160, 300, 300]
    assert [one.failures for one in fails(*(failure(kind, signal=OLD) for kind in kinds[:3]))] == [1, 1, 1]
    assert (
        pauses(failure(RetryKind.WAITING, signal=OLD, retry_after=3600), failure(RetryKind.LAGGING, signal=NEW))[1] == 5
    )
    assert (
        pauses(failure(RetryKind.WAITING, signal=OLD, retry_after=3600), failure(RetryKind.LAGGING, signal=OLD))[1]
        == 300
    )


def test_the_installer_keeps_the_signal() -> None:
    retries = fails(failure(RetryKind.REFUSED, signal=OLD), failure(RetryKind.REFUSED))
    assert (retries[-1].attempts, retries[-1].signal) == (2, OLD)


def test_a_failure_of_other_work_keeps_the_report_about_the_signal() -> None:
    before = Retry(resource="cert:7", kind=RetryKind.PENDING, attempts=4, failures=6, signal=OLD, reported="it is down")
    for kind in (RetryKind.PENDING, RetryKind.REFUSED):
        retry = after_failure(before, failure(kind), NOW, random=0.0, settings=SETTINGS)
        assert (retry.signal, retry.reported, retry.last_error) == (OLD, "it is down", "why")
    (first,) = fails(failure(RetryKind.PENDING))
    assert (first.resource, first.kind, first.signal, first.reported) == ("cert:7", RetryKind.PENDING, None, "")


@pytest.mark.parametrize(
    ("left", "expected"), [(-1.0, 0.0), (0.0, 0.0), (0.5, 0.5), (2.0, 2.0), (2.001, 2.001), (2.002, 0.0), (9.0, 0.0)]
)
def test_a_pause_is_waited_for_up_to_its_length(left: float, expected: float) -> None:
    """Sums of times are rounded; more than that is a clock that has been set back."""
    retry = Retry(resource="cert:7", kind=RetryKind.DOWN, next_try_at=left, pause=2.0)
    assert left_of(retry, 0.0, SETTINGS) == expected


def test_a_pause_that_was_written_while_the_clock_was_ahead_is_over() -> None:
    for kind in RetryKind:
        longest = longest_pause(kind, SETTINGS)
        retry = Retry(resource="cert:7", kind=kind, next_try_at=NOW + longest)
        assert left_of(retry, NOW, SETTINGS) == longest
        assert left_of(retry, NOW - 1.0, SETTINGS) == 0
        (failed,) = fails(failure(kind))
        assert left_of(failed, NOW, SETTINGS) == failed.pause < longest
        assert left_of(failed, NOW - 1.0, SETTINGS) == 0
        assert left_of(failed, NOW + 1.0, SETTINGS) == failed.pause - 1


@given(st.lists(st.sampled_from(RetryKind), min_size=1, max_size=80), st.floats(0.0, 1.0, exclude_max=True))
def test_nothing_is_put_off_longer_than_its_bound(kinds: list[RetryKind], random: float) -> None:
    for retry in fails(*map(failure, kinds), random=random):
        pause = retry.next_try_at - NOW
        assert PAUSES[retry.kind].first * 0.5 <= pause <= longest_pause(retry.kind, SETTINGS)
        assert left_of(retry, NOW, SETTINGS) == pause
