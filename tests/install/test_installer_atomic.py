"""Atomic batches on a host: all certificates of a batch are switched, reloaded and proven, or none of them is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
import pytest
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
from certctrl.model.certificate import Bundle
from certctrl.model.plan import CopyAction, InstallItem, Outcome
from certctrl.model.policy import MaintenanceWindow
from certctrl.model.records import Stage
from certctrl.store.disk.fs import RealFs

WEB, MAIL = ("/bin/true", "web"), ("/bin/true", "mail")
"""Commands of two services, so that their certificates are in separate groups."""


def items_of(*services: tuple[tuple[str, ...], int]) -> list[InstallItem]:
    """Return one command per certificate, each of its own service."""
    return [item for argv, cert_id in services for item in reload(cert_id, argv=argv)]


@attrs.define
class Batch:
    """A host with three certificates at three services, and new material for them."""

    host: Host
    items: list[InstallItem]
    bundles: dict[int, Bundle]
    before: dict[int, str]

    async def switch(self, *cert_ids: int, batch: str = "b", **options: Any) -> Mapping[int, Outcome]:
        """Deliver new material as one batch; without ids, all three."""
        ids = cert_ids or tuple(self.bundles)
        prepared = [await self.host.installer.stage(self.bundles[one], self.items) for one in ids]
        found = await self.host.installer.converge(
            prepared, self.items, only=ids, together=dict.fromkeys(ids, batch), **options
        )
        self.check_whole()
        return found

    def check_whole(self) -> None:
        """Check that all live links lead to the old or all to the new certificates."""
        assert len({self.is_new(one) for one in self.bundles}) == 1

    def is_new(self, cert_id: int) -> bool:
        live = self.host.live(cert_id)
        assert live in (self.before[cert_id], self.bundles[cert_id].facts.fingerprint_sha256)
        return live != self.before[cert_id]

    def served(self, cert_id: int) -> bool:
        """Return whether the service of a certificate serves the new one."""
        return self.host.served["127.0.0.1", 1000 + cert_id].served == self.bundles[cert_id].facts.fingerprint_sha256

    def refuse(self, cert_id: int) -> None:
        """Make the service of a certificate refuse the new one."""
        service = self.host.served["127.0.0.1", 1000 + cert_id]
        service.refuses.add(self.bundles[cert_id].facts.fingerprint_sha256)

    def accept(self) -> None:
        for service in self.host.served.values():
            service.refuses.clear()


@pytest.fixture
async def batch(clock: MockClock, host: Host) -> Batch:
    return await batch_on(host, items_of((RELOAD, 1), (WEB, 2), (MAIL, 3)))


async def batch_on(host: Host, items: list[InstallItem], third: tuple[str, ...] = MAIL) -> Batch:
    host.allow(commands=commands(RELOAD, OTHER, WEB, MAIL))
    ids, argvs = (1, 2, 3), {1: RELOAD, 2: WEB, 3: third}
    for cert_id in ids:
        host.serve(argvs[cert_id], cert_id, 1000 + cert_id)
    assert set(kinds(await host.deliver(*ids, items=items)).values()) == {APPLIED}
    return Batch(host, items, {one: host.bundle(one) for one in ids}, {one: host.live(one) for one in ids})


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


# --- crashes --------------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Stands for SIGKILL."""


class KilledFs:
    """A real disk whose process is killed right before the n-th change of one kind."""

    def __init__(self, verb: str, at: int) -> None:
        self.verb, self.left = verb, at

    def __getattr__(self, name: str) -> Any:
        real = getattr(RealFs(), name)
        if name != self.verb:
            return real

        def call(*args: Any, **how: Any) -> Any:
            self.left -= 1
            if self.left < 0:
                raise Killed
            return real(*args, **how)

        return call


@pytest.mark.parametrize("verb", ["rename", "fsync", "symlink"])
async def test_a_kill_at_any_step_leaves_the_old_set_or_the_new_one(clock: MockClock, host: Host, verb: str) -> None:
    """After each kill, the next run finds or makes one whole set before it does anything else."""
    copy = CopyAction(id="c", ob_id=2, sources=("combined.pem",), targets=(str(host.out / "2.pem"),), mode=0o640)
    found = await batch_on(host, [copy, *items_of((RELOAD, 1), (WEB, 2), (MAIL, 3))])
    killed = at = 0
    while True:
        found.before = {one: host.live(one) for one in found.bundles}
        found.bundles = {one: host.bundle(one) for one in found.bundles}
        host.fs = KilledFs(verb, at)  # type: ignore[assignment]
        host.start()
        try:
            await found.switch()
        except Killed:
            killed += 1
        except BaseExceptionGroup as group:
            assert group.split(Killed)[1] is None
            killed += 1
        else:
            break
        host.fs = RealFs()
        host.start()
        await host.installer.recover()
        found.check_whole()
        found.refuse(3)  # what comes next fails: it must roll back all, or change nothing
        host.clock += 4000
        await host.installer.converge((), found.items)
        found.check_whole()
        found.accept()
        host.clock += 4000
        await found.switch()
        assert all(map(found.is_new, found.bundles)) and all(map(found.served, found.bundles))
        at += 1
    assert killed > 2


@pytest.mark.parametrize(("name", "value"), [
    ("finish_switches", lambda context: None), ("note_switches", lambda context, switched: False),
])  # fmt: skip
async def test_a_switch_that_a_crash_leaves_in_parts_is_noticed(
    clock: MockClock, host: Host, monkeypatch: pytest.MonkeyPatch, name: str, value: object
) -> None:
    """The test above finds these mistakes."""
    monkeypatch.setattr(f"certctrl.install.deploy.atomic.{name}", value)
    with pytest.raises(AssertionError):
        await test_a_kill_at_any_step_leaves_the_old_set_or_the_new_one(clock, host, "rename")


async def test_an_interrupted_switch_is_undone_if_the_new_files_are_lost(batch: Batch) -> None:
    host, installer = batch.host, batch.host.installer
    batch.refuse(1)
    await batch.switch()
    record = {one: installer.records[one] for one in batch.bundles}
    installer._context.generations.switch({record[1].name: record[1].staged})  # and no other: a power cut
    for file in (host.layout.generations / record[3].name / record[3].staged).iterdir():
        file.unlink()
    host.start()
    await host.installer.recover()
    assert not any(map(batch.is_new, batch.bundles))


async def test_records_name_the_batch_before_its_links_change(batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    store, seen = batch.host.installer._context.generations, list[set[str]]()
    switch = store.switch

    def watched(to: Mapping[str, str | None]) -> dict[str, str | None]:
        on_disk = batch.host.installer._context.state.load_certificates()
        seen.append({f"{one.batch} {to.get(one.name) == one.staged}" for one in on_disk.values()})
        return switch(to)

    monkeypatch.setattr(store, "switch", watched)
    await batch.switch()
    assert seen == [{"b True"}]
