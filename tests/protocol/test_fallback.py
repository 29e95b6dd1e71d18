"""When push is tried: quickly for a minute, then with growing pauses; a stable socket starts over."""

from __future__ import annotations

import pytest

from certctrl.protocol.fallback import PATIENCE, Fallback


def failures(fallback: Fallback, start: float, count: int) -> list[tuple[float, bool]]:
    """Fail each try when it is due; return the pause after each, and whether it began the fallback."""
    now, found = start, []
    for _ in range(count):
        begins = fallback.failed(now, "refused")
        found.append((fallback.next_try_at - now, begins))
        now = fallback.next_try_at
    return found


def test_the_first_try_is_immediate() -> None:
    assert Fallback(lambda: 0.5).is_due(0.0)


def test_tries_are_quick_for_a_minute_and_then_rare() -> None:
    found = failures(Fallback(lambda: 1.0), 1000.0, 12)
    assert found == [
        (2.0, False), (4.0, False), (8.0, False), (16.0, False), (20.0, False), (20.0, False),
        (300.0, True), (600.0, False), (1200.0, False), (2400.0, False), (3600.0, False), (3600.0, False),
    ]  # fmt: skip


@pytest.mark.parametrize("random", [0.0, 0.3, 0.999])
def test_pauses_are_jittered_downwards(random: float) -> None:
    most, found = failures(Fallback(lambda: 1.0), 0.0, 1), failures(Fallback(lambda: random), 0.0, 1)
    assert found[0][0] == pytest.approx(most[0][0] * (0.5 + random / 2))


def test_a_socket_that_lasts_a_minute_clears_all_failures() -> None:
    fallback = Fallback(lambda: 1.0)
    last = 1000.0 + sum(pause for pause, _ in failures(fallback, 1000.0, 8))
    assert fallback.active
    fallback.opened(last)
    assert not fallback.works(last + PATIENCE - 1)
    assert fallback.active
    assert fallback.works(last + PATIENCE)
    assert not fallback.active
    assert not fallback.why
    assert fallback.ended(last + 100, "cut") is False
    assert fallback.is_due(last + 100)
    assert failures(fallback, last + 100, 1) == [(2.0, False)]


def test_sockets_that_keep_ending_begin_the_fallback() -> None:
    fallback, now, begun = Fallback(lambda: 1.0), 500.0, []
    while not begun or not begun[-1]:
        fallback.opened(now)
        begun.append(fallback.ended(now + 15, "cut"))
        now = max(now + 15, fallback.next_try_at)
        assert len(begun) < 10
    assert now - 500.0 < PATIENCE + 300 + 60
    assert fallback.active


def test_a_socket_that_ends_soon_after_the_fallback_is_not_tried_quickly_again() -> None:
    fallback = Fallback(lambda: 1.0)
    pauses = failures(fallback, 0.0, 7)
    now = sum(pause for pause, _ in pauses)
    fallback.opened(now)
    assert fallback.ended(now + 5, "cut") is False
    assert fallback.next_try_at == now + 5 + 600.0


def test_an_end_that_says_nothing_about_push_counts_nothing() -> None:
    fallback = Fallback(lambda: 1.0)
    fallback.opened(0.0)
    fallback.closed()
    assert fallback.is_due(0.0)
    assert not fallback.why
    assert fallback.ended(1.0, "cut") is False
    assert fallback.is_due(1.0)


def test_a_plane_without_push_begins_the_fallback_immediately() -> None:
    fallback = Fallback(lambda: 1.0)
    assert fallback.refused(1000.0, "no endpoint") is True
    assert fallback.next_try_at == 1300.0
    assert fallback.refused(1300.0, "no endpoint") is False


def test_an_operator_can_have_it_tried_now() -> None:
    fallback = Fallback(lambda: 1.0)
    failures(fallback, 0.0, 8)
    assert not fallback.is_due(200.0)
    fallback.try_now()
    assert fallback.is_due(200.0)
