"""Whose turn it is: in proportion to the weights, never starved, and not kept out by handlers that hang."""

from __future__ import annotations

import random
from collections import Counter
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certctrl.model.priority import Priority
from certctrl.protocol.turns import Turns, weights_of

ORDER = tuple(Priority)
REVOCATION, EXPIRING, RENEWAL, CONFIG = ORDER
ORDERS = st.sampled_from(list(permutations(Priority)))


def test_each_class_has_twice_the_weight_of_the_next() -> None:
    assert weights_of(ORDER) == {REVOCATION: 8, EXPIRING: 4, RENEWAL: 2, CONFIG: 1}


def test_turns_are_in_proportion_and_spread() -> None:
    turns = Turns()
    given = [turns.take(ORDER, ORDER, {}, 8) for _ in range(30)]
    assert Counter(given) == {REVOCATION: 16, EXPIRING: 8, RENEWAL: 4, CONFIG: 2}
    assert given[0] is REVOCATION
    assert given[:15] == given[15:]
    longest = max(len(run) for run in "".join("x" if one is REVOCATION else " " for one in given).split())
    assert longest <= 2, "no class has to wait for a long run of another"


def test_without_waiting_signals_there_is_no_turn() -> None:
    assert Turns().take(ORDER, (), {}, 8) is None


def test_alone_a_class_gets_every_turn_up_to_the_limit() -> None:
    turns, running = Turns(), Counter[Priority]()
    while (turn := turns.take(ORDER, [RENEWAL], running, 8)) is not None:
        running[turn] += 1
    assert running == {RENEWAL: 8}


def test_a_class_that_waits_alone_gains_no_turns_for_later() -> None:
    turns = Turns()
    for _ in range(100):
        assert turns.take(ORDER, [CONFIG], {}, 8) is CONFIG
    given = [turns.take(ORDER, [REVOCATION, CONFIG], {}, 8) for _ in range(9)]
    assert Counter(given) == {REVOCATION: 8, CONFIG: 1}


@pytest.mark.parametrize(("limit", "shares"), [(8, (4, 2, 1, 1)), (1, (1, 1, 1, 1)), (64, (34, 17, 8, 4))])
def test_handlers_that_hang_leave_each_class_its_share(limit: int, shares: tuple[int, ...]) -> None:
    for one, share in zip(ORDER, shares, strict=True):
        other = RENEWAL if one is not RENEWAL else CONFIG
        turns, running = Turns(), Counter({other: limit})
        while (turn := turns.take(ORDER, [other, one], running, limit)) is not None:
            assert turn is one, "the others are at the limit"
            running[turn] += 1
        assert running[one] == share


def test_the_order_is_a_setting() -> None:
    turns, order = Turns(), (CONFIG, RENEWAL, EXPIRING, REVOCATION)
    assert Counter(turns.take(order, ORDER, {}, 8) for _ in range(15)) == {
        CONFIG: 8, RENEWAL: 4, EXPIRING: 2, REVOCATION: 1,
    }  # fmt: skip


@pytest.mark.parametrize("seed", range(20))
def test_no_class_starves(seed: int) -> None:
    """Whatever the others do, one that always waits gets one of thirty free handlers."""
    chance = random.Random(seed)
    order = tuple(chance.sample(ORDER, 4))
    for patient in ORDER:
        turns, waited = Turns(), 0
        for _ in range(500):
            waiting = {one for one in ORDER if one is patient or chance.random() < 0.8}
            turn = turns.take(order, waiting, {}, 8)
            assert turn in waiting
            waited = 0 if turn is patient else waited + 1
            assert waited < 30


@given(ORDERS, st.integers(1, 64), st.lists(st.tuples(st.booleans(), st.sampled_from(ORDER)), max_size=300))
def test_the_handlers_are_bounded(order: tuple[Priority, ...], limit: int, events: list[tuple[bool, Priority]]) -> None:
    turns, running, weights = Turns(), Counter[Priority](), weights_of(order)
    for starts, one in events:
        if starts:
            if (turn := turns.take(order, [one], running, limit)) is not None:
                running[turn] += 1
            else:
                assert sum(running.values()) >= limit
        elif running[one]:
            running[one] -= 1
        most = limit + sum(max(1, limit * weight // 15) for weight in weights.values())
        assert sum(running.values()) <= most
        assert all(count <= limit for count in running.values())
