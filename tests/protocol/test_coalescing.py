"""Which signals are handled: the newest per resource, revocations first, none of a busy resource."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from certctrl.model.records import InboxEntry, Retry, RetryKind
from certctrl.model.signals import (
    CaAssigned,
    CaUnassigned,
    CertRenewed,
    CertRevoked,
    CertUnassigned,
    InstallUpdated,
    MalformedSignal,
    ResyncRequired,
    Signal,
    UnknownSignal,
    identity,
)
from certctrl.protocol.coalescing import choose


def entry(signal: Signal, next_try_at: float = 0.0) -> InboxEntry:
    if not next_try_at:
        return InboxEntry(signal=signal)
    retry = Retry(resource=signal.resource, kind=RetryKind.REFUSED, next_try_at=next_try_at, signal=signal)
    return InboxEntry(signal=signal, retry=retry)


def test_nothing_to_do() -> None:
    choice = choose([], (), 0.0)
    assert (choice.run, choice.superseded, choice.next_retry_at) == ([], [], None)


def test_the_newest_wins_in_any_order_of_arrival() -> None:
    old, new, other = entry(CertRenewed(1, 7)), entry(CertRenewed(2, 7)), entry(CertRenewed(1, 8))
    for order in ([old, new, other], [new, other, old]):
        choice = choose(order, (), 0.0)
        assert {identity(one.signal) for one in choice.run} == {identity(new.signal), identity(other.signal)}
        assert choice.superseded == [old]


def test_of_equal_timestamps_the_last_wins() -> None:
    first, last = entry(CertRenewed(5, 7)), entry(CertUnassigned(5, 7))
    choice = choose([first, last], (), 0.0)
    assert (choice.run, choice.superseded) == ([last], [first])


def test_revocations_jump_the_queue() -> None:
    renewed = [entry(CertRenewed(n, n)) for n in range(1, 5)]
    revoked = entry(CertRevoked(9, 99))
    assert choose([*renewed, revoked], (), 0.0).run == [revoked, *renewed]


def test_a_renewal_does_not_supersede_a_revocation() -> None:
    revoked, renewed = entry(CertRevoked(1, 7)), entry(CertRenewed(2, 7))
    choice = choose([revoked, renewed], (), 0.0)
    assert (choice.run, choice.superseded) == ([revoked], [])
    assert choose([renewed], (), 0.0).run == [renewed]
    # but one that waits for its retry does not block the resource
    waiting = entry(CertRevoked(1, 7), next_try_at=100.0)
    assert choose([waiting, renewed], (), 0.0).run == [renewed]
    assert choose([waiting, renewed], (), 100.0).run == [waiting]


def test_a_revocation_leaves_an_earlier_renewal_until_it_is_confirmed() -> None:
    renewed, revoked = entry(CertRenewed(1, 7)), entry(CertRevoked(2, 7))
    choice = choose([renewed, revoked], (), 0.0)
    assert (choice.run, choice.superseded) == ([revoked], [])
    waiting = entry(CertRevoked(2, 7), next_try_at=100.0)
    assert choose([renewed, waiting], (), 0.0).run == [renewed]
    twice = [entry(CertRevoked(1, 7)), entry(CertRevoked(2, 7)), entry(CertRenewed(3, 7))]
    choice = choose(twice, (), 0.0)
    assert (choice.run, choice.superseded) == ([twice[1]], [twice[0]])
    mixed = [entry(CertRenewed(1, 7)), entry(CertRenewed(2, 7)), entry(CertRevoked(3, 7))]
    choice = choose(mixed, (), 0.0)
    assert (choice.run, choice.superseded) == ([mixed[2]], [mixed[0]])


def test_a_busy_resource_is_left_alone() -> None:
    entries = [entry(CertRenewed(1, 7)), entry(CertRenewed(2, 7)), entry(CertRenewed(1, 8))]
    choice = choose(entries, {"cert:7"}, 0.0)
    assert (choice.run, choice.superseded) == ([entries[2]], [])


def test_a_new_signal_supersedes_a_failed_one_immediately() -> None:
    failed = entry(CertRenewed(1, 7), next_try_at=50.0)
    assert choose([failed], (), 49.9).next_retry_at == 50.0
    assert choose([failed], (), 49.9).run == []
    assert choose([failed], (), 50.0).run == [failed]
    new = entry(CertRenewed(2, 7))
    choice = choose([failed, new], (), 0.0)
    assert (choice.run, choice.superseded, choice.next_retry_at) == ([new], [failed], None)


def test_the_next_retry_is_the_earliest_of_all_resources() -> None:
    waiting = [entry(CertRenewed(1, number), next_try_at=at) for number, at in ((1, 70.0), (2, 50.0), (3, 60.0))]
    for order in (waiting, waiting[::-1]):
        assert choose(order, (), 0.0).next_retry_at == 50.0
        assert choose(order, (), 55.0).next_retry_at == 60.0


def test_unknown_and_malformed_signals_are_not_superseded() -> None:
    strange = [
        entry(UnknownSignal("x", 1, {})),
        entry(UnknownSignal("x", 2, {})),
        entry(MalformedSignal("", 0, {}, "why")),
    ]
    choice = choose(strange, (), 0.0)
    assert choice.superseded == []
    assert choice.run == [strange[0], strange[2]], "one per resource, in order"


SIGNAL = st.one_of(
    st.builds(InstallUpdated, st.integers(1, 4), st.just(1), st.integers(1, 3)),
    *(st.builds(kind, st.integers(1, 4), st.integers(1, 3)) for kind in (CertRenewed, CertRevoked, CertUnassigned)),
    *(st.builds(kind, st.integers(1, 4), st.integers(1, 2)) for kind in (CaAssigned, CaUnassigned)),
    st.builds(ResyncRequired, st.integers(1, 4)),
    st.builds(UnknownSignal, st.just("x"), st.integers(1, 4), st.just({})),
    st.builds(MalformedSignal, st.just("y"), st.just(0), st.just({}), st.just("why")),
)
ENTRIES = st.lists(
    st.builds(entry, SIGNAL, st.sampled_from([0.0, 5.0, 10.0])),
    max_size=25,
    unique_by=lambda one: identity(one.signal),
)


@given(
    ENTRIES, st.sets(st.sampled_from(["cert:1", "cert:2", "install", "unknown:x"])), st.sampled_from([0.0, 5.0, 10.0])
)
def test_invariants_of_every_choice(entries: list[InboxEntry], busy: set[str], now: float) -> None:
    choice = choose(entries, busy, now)
    running = [one.signal.resource for one in choice.run]
    assert len(set(running)) == len(running), "one per resource"
    touched = [identity(one.signal) for one in choice.run + choice.superseded]
    assert len(set(touched)) == len(touched)
    assert not {one.signal.resource for one in choice.run + choice.superseded} & busy
    assert all(one.next_try_at <= now for one in choice.run)
    revoked = [isinstance(one.signal, CertRevoked) for one in choice.run]
    assert revoked == sorted(revoked, reverse=True)
    left = [one for one in entries if not any(one is gone for gone in choice.superseded)]
    for gone in choice.superseded:
        remaining = [one for one in left if one.signal.resource == gone.signal.resource]
        assert any(one.signal.ts_ms >= gone.signal.ts_ms for one in remaining), "a newer signal stays"
        if isinstance(gone.signal, CertRevoked):
            assert any(isinstance(one.signal, CertRevoked) for one in remaining), "a revocation stays"
    if choice.next_retry_at is not None:
        assert choice.next_retry_at > now


@given(ENTRIES, st.integers(0, 2**32))
def test_the_newest_signal_of_each_resource_is_handled_until_the_inbox_is_empty(
    entries: list[InboxEntry], seed: int
) -> None:
    chance = random.Random(seed)
    inbox, busy, ran, now = list(entries), {}, [], 0.0
    for _ in range(400):
        choice = choose(inbox, busy, now)
        inbox = [one for one in inbox if not any(one is gone for gone in choice.superseded)]
        for one in choice.run:
            busy[one.signal.resource] = one
        if busy and (chance.random() < 0.6 or not choice.run):
            resource = chance.choice(sorted(busy))
            done = busy.pop(resource)
            ran.append(done)
            inbox = [one for one in inbox if one is not done]
        elif choice.next_retry_at is not None:
            now = choice.next_retry_at
        if not inbox:
            break
    assert not inbox
    for resource in {one.signal.resource for one in entries}:
        newest = max(one.signal.ts_ms for one in entries if one.signal.resource == resource)
        assert any(one.signal.resource == resource and one.signal.ts_ms == newest for one in ran)
    for resource in {one.signal.resource for one in entries if isinstance(one.signal, CertRevoked)}:
        assert any(one.signal.resource == resource and isinstance(one.signal, CertRevoked) for one in ran)
