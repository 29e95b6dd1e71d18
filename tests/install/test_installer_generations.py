"""Which generations stay on the disk, and which of them `rollback` chooses: those that have served."""

from __future__ import annotations

import attrs
import pytest
from install_host import APPLIED, FAILED, ROLLED_BACK, Host, kinds
from trio.testing import MockClock

from certctrl.errors import UsageError
from certctrl.store.deployments.generations import GenerationStore
from certctrl.store.state.installed import InstalledState

NAME = "c1.example"


def ids(host: Host) -> list[str]:
    return GenerationStore(host.layout, host.fs).ids(NAME)


async def crash_before_it_is_recorded(host: Host) -> str:
    """Make a generation durable and start a new run, as after a crash before its record; return its id."""
    prepared = await host.installer.stage(host.bundle(1), ())
    assert prepared.staged is not None
    host.installer._context.generations.settle([prepared.staged])
    host.start()
    await host.installer.recover()
    assert prepared.generation in ids(host), "it is whole"
    return str(prepared.generation)


async def test_a_rollback_does_not_choose_what_was_never_recorded(clock: MockClock, host: Host) -> None:
    """Found by review: a crash left a whole generation that no service had ever used."""
    await host.deliver(1)
    first = host.live(1)
    forgotten = await crash_before_it_is_recorded(host)
    prepared = [await host.installer.stage(host.bundle(1), ())]
    assert kinds(await host.installer.converge(prepared, (), lasting=False)) == {1: APPLIED}
    assert forgotten in ids(host) and forgotten < "g", "it is older than the live one"
    assert (await host.installer.rollback(NAME, None, ())).kind is APPLIED
    assert host.live(1) == first


async def test_a_crash_before_the_first_delivery_leaves_nothing_to_roll_back_to(clock: MockClock, host: Host) -> None:
    await host.deliver(2)
    await crash_before_it_is_recorded(host)
    prepared = [await host.installer.stage(host.bundle(1), ())]
    await host.installer.converge(prepared, (), lasting=False)
    with pytest.raises(UsageError, match="no earlier generation that has served"):
        await host.installer.rollback(NAME, None, ())


async def test_a_rollback_does_not_choose_what_has_failed(clock: MockClock, host: Host) -> None:
    items, service = await host.with_service()
    first = host.live(1)
    refused = host.bundle(1)
    service.refuses.add(refused.facts.fingerprint_sha256)
    prepared = [await host.installer.stage(refused, items)]
    assert kinds(await host.installer.converge(prepared, items)) == {1: ROLLED_BACK}
    prepared = [await host.installer.stage(host.bundle(1), items)]
    assert kinds(await host.installer.converge(prepared, items, lasting=False)) == {1: APPLIED}
    assert len(ids(host)) == 3
    assert (await host.installer.rollback(NAME, None, items)).kind is APPLIED
    assert host.live(1) == service.served == first


async def test_a_rollback_chooses_what_served_before_one_that_is_not_proven_yet(clock: MockClock, host: Host) -> None:
    items, service = await host.with_service()
    first = host.live(1)
    service.stopped = True
    assert kinds(await host.deliver(1, items=items)) == {1: FAILED}
    assert host.live(1) != first, "it waits for its service"
    service.stopped = False
    assert (await host.installer.rollback(NAME, None, items)).kind is APPLIED
    assert host.live(1) == service.served == first


async def test_what_has_served_is_known_after_a_restart_and_a_rollback(clock: MockClock, host: Host) -> None:
    live = []
    for _ in range(3):
        await host.deliver(1)
        live.append(host.live(1))
        host.start()
    one, two, three = ids(host)
    assert host.installer.records[1].former == (one, two)
    for expected in (live[1], live[0]):
        assert (await host.installer.rollback(NAME, None, ())).kind is APPLIED
        assert host.live(1) == expected
        host.start()
    assert set(host.installer.records[1].former or ()) == {two, three}
    await host.installer.release(NAME)
    assert kinds(await host.installer.converge((), ())) == {1: APPLIED}
    assert host.live(1) == live[2] and len(ids(host)) == 3


async def test_a_record_of_an_earlier_release_lets_all_be_chosen(clock: MockClock, host: Host) -> None:
    await host.deliver(1)
    first = host.live(1)
    await host.deliver(1)
    state = InstalledState(host.layout, host.fs)
    state.save_certificates({1: attrs.evolve(host.installer.records[1], former=None)})
    host.start()
    assert (await host.installer.rollback(NAME, None, ())).kind is APPLIED and host.live(1) == first
    await host.installer.release(NAME)
    await host.deliver(1)
    assert len(host.installer.records[1].former or ()) >= 1, "known from now on"


@pytest.mark.parametrize("renewed", [False, True])
async def test_the_first_change_after_an_upgrade_leaves_all_of_them(
    clock: MockClock, host: Host, *, renewed: bool
) -> None:
    """Found by review: only the last one counted as proven, so the older ones were refused and removed."""
    live = []
    for _ in range(3):
        await host.deliver(1)
        live.append(host.live(1))
    state = InstalledState(host.layout, host.fs)
    state.save_certificates({1: attrs.evolve(host.installer.records[1], former=None)})
    host.start()
    back = [live[2], live[1]] if renewed else [live[1], live[0]]
    if renewed:
        await host.deliver(1)
    for expected in back:
        assert (await host.installer.rollback(NAME, None, ())).kind is APPLIED
        assert host.live(1) == expected


async def test_the_next_prune_removes_what_was_never_used(clock: MockClock, host: Host) -> None:
    """Otherwise it would push out what a rollback needs."""
    await host.deliver(1)
    served = [*ids(host)]
    forgotten = [await crash_before_it_is_recorded(host) for _ in range(3)]
    assert kinds(await host.deliver(1)) == {1: APPLIED}
    assert set(ids(host)) == {*served, host.installer.records[1].generation} and not {*forgotten} & {*ids(host)}


@pytest.mark.parametrize("keep", [0, 1, 2, 3])
async def test_as_many_as_the_setting_says_stay(clock: MockClock, host: Host, keep: int) -> None:
    await host.deliver(1)
    for _ in range(3):
        await host.deliver(1)
    application = attrs.evolve(host.config.application, keep_generations=keep)
    host.config = attrs.evolve(host.config, application=application)
    for _ in range(4):
        await host.deliver(1)
    assert len(ids(host)) == 1 + keep
    assert ids(host)[:-1] == [*(host.installer.records[1].former or ())]


async def test_a_retry_removes_old_generations(clock: MockClock, host: Host) -> None:
    """A failure that is tried again, until it succeeds: its generation is live, and an older one is too many."""
    items, service = await host.with_service()
    keep = host.config.application.keep_generations
    for _ in range(keep):
        assert kinds(await host.deliver(1, items=items)) == {1: APPLIED}
    before = ids(host)
    refused = host.bundle(1)
    service.refuses.add(refused.facts.fingerprint_sha256)
    prepared = [await host.installer.stage(refused, items)]
    assert kinds(await host.installer.converge(prepared, items)) == {1: ROLLED_BACK}
    assert ids(host) == [*before, prepared[0].generation], "nothing that may be needed is removed by a failure"
    service.refuses.clear()
    host.clock += 60
    assert kinds(await host.installer.converge((), items, lasting=False)) == {1: APPLIED}
    assert len(ids(host)) == keep + 2, "until its outcome is durable"
    await host.installer.prune()
    assert ids(host) == [*before[1:], prepared[0].generation]


async def test_what_replaces_a_revoked_certificate_has_no_past(clock: MockClock, host: Host) -> None:
    items, _service = await host.with_service()
    await host.deliver(1, items=items)
    await host.installer.withdraw(1, revoked=True, items=items)
    assert not host.installer.records[1].former
