"""Atomic batches on a host: all certificates of a batch are switched, reloaded and proven, or none of them is."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from atomic_host import MAIL, WEB, Batch, batch_on, items_of
from install_host import (
    APPLIED,
    FAILED,
    OTHER,
    RELOAD,
    ROLLED_BACK,
    UNCHANGED,
    Host,
    commands,
    kinds,
    leftovers,
    reload,
)
from trio.testing import MockClock

from certctrl.errors import DiskError
from certctrl.install.deploy.context import Context
from certctrl.install.deploy.staging import Candidate
from certctrl.model.plan import CopyAction
from certctrl.model.policy import MaintenanceWindow
from certctrl.model.records import RetryKind, Stage


async def test_a_batch_is_switched_together(batch: Batch) -> None:
    assert kinds(await batch.switch()) == {1: APPLIED, 2: APPLIED, 3: APPLIED}
    assert [batch.served(one) for one in batch.bundles] == [True, True, True]
    assert {record.batch for record in batch.host.installer.records.values()} == {""}, "it is done"


async def test_one_failing_service_rolls_all_back(batch: Batch) -> None:
    """Without the batch, the other two services would go on with their new certificates."""
    batch.refuse(2)
    outcomes = await batch.switch()
    assert kinds(outcomes) == {1: ROLLED_BACK, 2: ROLLED_BACK, 3: ROLLED_BACK}
    assert len({outcome.detail for outcome in outcomes.values()}) == 1 and "exited with 3" in outcomes[1].detail
    assert [batch.is_new(one) for one in batch.bundles] == [False, False, False]
    assert [batch.served(one) for one in batch.bundles] == [False, False, False], "all serve the old ones again"
    assert {record.stage for record in batch.host.installer.records.values()} == {Stage.ACTIVATED}
    assert leftovers(batch.host) == []


async def test_the_members_are_retried_together(batch: Batch) -> None:
    batch.refuse(2)
    await batch.switch()
    due = {batch.host.retry(one).next_try_at for one in batch.bundles}
    assert len(due) == 1
    batch.accept()
    batch.host.clock = due.pop()
    assert kinds(await batch.host.installer.converge((), batch.items, only=[1])) == dict.fromkeys((1, 2, 3), APPLIED)
    assert [batch.served(one) for one in batch.bundles] == [True, True, True]


async def test_a_batch_that_failed_is_never_tried_in_parts(batch: Batch) -> None:
    batch.refuse(2)
    for _ in range(3):
        assert kinds(await batch.switch()) == dict.fromkeys((1, 2, 3), ROLLED_BACK)
        assert not any(map(batch.is_new, batch.bundles))
    batch.accept()
    assert kinds(await batch.switch()) == dict.fromkeys((1, 2, 3), APPLIED)


async def test_another_certificate_of_a_service_does_not_fail_with_the_batch(clock: MockClock, host: Host) -> None:
    """Certificate 3 shares the service of 2, and is not in the batch."""
    found = await batch_on(host, [*items_of((RELOAD, 1), (WEB, 2)), *reload(3, argv=WEB)], WEB)
    found.refuse(1)
    prepared = [await host.installer.stage(found.bundles[one], found.items) for one in (1, 2, 3)]
    outcomes = await host.installer.converge(prepared, found.items, together={1: "b", 2: "b"})
    assert kinds(outcomes) == {1: ROLLED_BACK, 2: ROLLED_BACK, 3: APPLIED}
    assert [found.is_new(one) for one in (1, 2, 3)] == [False, False, True]


async def test_two_batches_that_share_a_service_fail_separately(clock: MockClock, host: Host) -> None:
    items = [*items_of((RELOAD, 1)), *reload(2, 3, argv=WEB), *reload(4, argv=OTHER)]
    host.allow(commands=commands(RELOAD, OTHER, WEB))
    for cert_id, argv in {1: RELOAD, 2: WEB, 3: WEB, 4: OTHER}.items():
        host.serve(argv, cert_id, 1000 + cert_id)
    ids = (1, 2, 3, 4)
    await host.deliver(*ids, items=items)
    found = Batch(host, items, {one: host.bundle(one) for one in ids}, {one: host.live(one) for one in ids})
    found.refuse(1)
    prepared = [await host.installer.stage(found.bundles[one], items) for one in ids]
    together = {1: "first", 2: "first", 3: "second", 4: "second"}
    outcomes = await host.installer.converge(prepared, items, together=together)
    assert kinds(outcomes) == {1: ROLLED_BACK, 2: ROLLED_BACK, 3: APPLIED, 4: APPLIED}
    assert [found.is_new(one) for one in ids] == [False, False, True, True]


async def test_what_the_policy_refuses_for_one_keeps_all(batch: Batch) -> None:
    batch.host.allow(commands=commands(RELOAD, MAIL))
    outcomes = await batch.switch()
    assert kinds(outcomes) == dict.fromkeys((1, 2, 3), FAILED)
    assert all("because of certificate 2: " in outcome.detail for outcome in outcomes.values())
    assert not any(map(batch.is_new, batch.bundles))
    batch.host.allow(commands=commands(RELOAD, WEB, MAIL))
    assert kinds(await batch.switch()) == dict.fromkeys((1, 2, 3), APPLIED)


async def test_what_the_policy_refuses_keeps_a_batch_that_no_service_reads(clock: MockClock, host: Host) -> None:
    """Nothing follows its switch, so there is no step that could fail."""
    found = await batch_on(host, items_of((RELOAD, 1), (WEB, 2), (MAIL, 3)))
    forbidden = CopyAction(id="no", ob_id=2, sources=("chain.pem",), targets=("/etc/forbidden.pem",))
    found.items = [forbidden]
    assert kinds(await found.switch()) == dict.fromkeys((1, 2, 3), FAILED)
    assert not any(map(found.is_new, found.bundles))
    found.items = []
    assert kinds(await found.switch()) == dict.fromkeys((1, 2, 3), APPLIED)
    assert all(map(found.is_new, found.bundles))


async def test_what_the_policy_refuses_for_a_batch_does_not_keep_others(clock: MockClock, host: Host) -> None:
    found = await batch_on(host, [*items_of((RELOAD, 1), (WEB, 2)), *reload(3, argv=RELOAD)], RELOAD)
    host.allow(commands=commands(RELOAD))
    prepared = [await host.installer.stage(found.bundles[one], found.items) for one in (1, 2, 3)]
    outcomes = await host.installer.converge(prepared, found.items, together={1: "b", 2: "b"})
    assert kinds(outcomes) == {1: FAILED, 2: FAILED, 3: APPLIED}
    assert [found.is_new(one) for one in (1, 2, 3)] == [False, False, True]


async def test_files_that_cannot_be_written_for_one_keep_all(clock: MockClock, host: Host) -> None:
    copy = CopyAction(id="c", ob_id=2, sources=("combined.pem",), targets=(str(host.out / "2.pem"),), mode=0o640)
    found = await batch_on(host, [copy, *items_of((RELOAD, 1), (WEB, 2), (MAIL, 3))])
    host.fill(host.out)
    assert kinds(await found.switch()) == dict.fromkeys((1, 2, 3), FAILED)
    assert not any(map(found.is_new, found.bundles))
    host.fill(None)
    assert kinds(await found.switch()) == dict.fromkeys((1, 2, 3), APPLIED)


async def test_a_hold_of_one_keeps_all_until_its_release(batch: Batch) -> None:
    installer = batch.host.installer
    installer._context.records.note(attrs.evolve(installer.records[3], held=True))
    outcomes = await batch.switch()
    assert kinds(outcomes) == dict.fromkeys((1, 2, 3), APPLIED), "they are staged"
    assert all(outcome.waits and "certificate 3" in outcome.waits for outcome in outcomes.values())
    assert not any(map(batch.is_new, batch.bundles))
    assert kinds(await installer.converge((), batch.items)) in ({}, dict.fromkeys((1, 2, 3), APPLIED))
    assert not any(map(batch.is_new, batch.bundles))
    await installer.release(installer.records[3].name)
    await installer.converge((), batch.items, only=[3])
    assert all(map(batch.is_new, batch.bundles)) and all(map(batch.served, batch.bundles))


async def test_the_window_keeps_a_batch_until_one_of_it_may_not_wait(batch: Batch) -> None:
    window = MaintenanceWindow(from_="03:00", to="04:00", override_when_life_below=0.25)
    batch.host.allow(window=window)
    assert all(outcome.waits for outcome in (await batch.switch()).values())
    assert not any(map(batch.is_new, batch.bundles))
    installer = batch.host.installer
    record = installer.records[2]
    ends = attrs.evolve(record.facts, not_after=batch.host.clock + 60, not_before=batch.host.clock - 6000)
    installer._context.records.note(attrs.evolve(record, facts=ends))
    await installer.converge((), batch.items)
    assert all(map(batch.is_new, batch.bundles)), "the others switch with the one that is about to expire"


async def test_newer_material_without_the_batch_leaves_it(batch: Batch) -> None:
    batch.refuse(2)
    await batch.switch()
    newer = batch.host.bundle(2)
    prepared = await batch.host.installer.stage(newer, batch.items)
    assert kinds(await batch.host.installer.converge([prepared], batch.items, only=[2])) == {2: APPLIED}
    assert batch.host.live(2) == newer.facts.fingerprint_sha256
    batch.host.clock += 4000
    assert kinds(await batch.host.installer.converge((), batch.items)) == {1: APPLIED, 3: APPLIED}


async def test_a_withdrawn_certificate_leaves_its_batch(batch: Batch) -> None:
    batch.refuse(2)
    await batch.switch()
    await batch.host.installer.withdraw(2, revoked=False, items=batch.items)
    batch.host.clock += 4000
    outcomes = kinds(await batch.host.installer.converge((), batch.items))
    assert {one: outcomes.get(one) for one in (1, 3)} == {1: APPLIED, 3: APPLIED}


async def test_a_member_that_is_current_already_is_not_waited_for(batch: Batch) -> None:
    """As after a comparison with the plane that announces a batch again."""
    await batch.switch()
    assert kinds(await batch.switch()) == dict.fromkeys((1, 2, 3), UNCHANGED)


async def test_a_format_that_cannot_be_made_for_one_keeps_all(batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    from certctrl.install.deploy import converge

    made = converge.with_missing_files

    async def fails(*args: Any) -> Any:
        found, faults = await made(*args)
        return found, {**faults, 2: DiskError("cannot make it", path="x", errno=28)}

    monkeypatch.setattr(converge, "with_missing_files", fails)
    outcomes = await batch.switch()
    assert kinds(outcomes) == dict.fromkeys((1, 2, 3), FAILED) and "certificate 2" in outcomes[3].detail
    assert not any(map(batch.is_new, batch.bundles))
    assert {batch.host.retry(one).kind for one in (1, 3)} == {RetryKind.DISK}, (
        "room for the file ends the failure of all"
    )


@pytest.mark.parametrize("prepared", [(), (1,)])
async def test_a_member_that_cannot_be_read_now_keeps_all(
    batch: Batch, monkeypatch: pytest.MonkeyPatch, prepared: tuple[int, ...]
) -> None:
    """For example, no more files can be opened. The others must not be switched without it."""
    batch.refuse(2)
    await batch.switch()
    batch.accept()
    read = Candidate.read

    def fails(context: Context, name: str, generation: str) -> Candidate:
        if name == batch.host.installer.records[2].name:
            raise DiskError("cannot open it: Too many open files", path="x", errno=24)
        return read(context, name, generation)

    monkeypatch.setattr(Candidate, "read", fails)
    batch.host.clock += 4000
    if prepared:
        outcomes = await batch.switch(*prepared)
    else:
        outcomes = await batch.host.installer.converge((), batch.items, only=[1])
    assert kinds(outcomes)[1] is FAILED and "because of certificate 2" in outcomes[1].detail
    assert not any(map(batch.is_new, batch.bundles))
    assert batch.host.retry(1).kind is RetryKind.DISK
    monkeypatch.undo()
    batch.host.clock += 4000
    assert kinds(await batch.host.installer.converge((), batch.items, only=[1])) == dict.fromkeys((1, 2, 3), APPLIED)


async def test_a_member_that_is_no_new_material_does_not_open_the_window(batch: Batch) -> None:
    """Certificate 3 is served already, and only gets another format."""
    await batch.host.deliver(3, items=batch.items)
    batch.host.allow(window=MaintenanceWindow(from_="03:00", to="04:00", override_when_life_below=0.25))
    more = CopyAction(id="k", ob_id=3, sources=("combined.pem",), targets=(str(batch.host.out / "3.pem"),), mode=0o640)
    batch.items.append(more)
    live = await batch.host.installer.live_bundle(3)
    assert live is not None
    ids = (1, 2, 3)
    prepared = [await batch.host.installer.stage(live if one == 3 else batch.bundles[one], batch.items) for one in ids]
    outcomes = await batch.host.installer.converge(prepared, batch.items, only=ids, together=dict.fromkeys(ids, "b"))
    assert outcomes[1].waits and outcomes[2].waits
    assert not any(map(batch.is_new, (1, 2)))
