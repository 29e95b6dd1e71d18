"""Crashes in the middle of the switch of an atomic batch: the next run finds or makes one whole set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from atomic_host import MAIL, WEB, Batch, batch_on, items_of
from install_host import APPLIED, RELOAD, Host, kinds
from trio.testing import MockClock

from certctrl.errors import DiskError
from certctrl.model.plan import CopyAction
from certctrl.store.disk.fs import RealFs


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

        def call(*args: object, **how: object) -> Any:
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


def switched_in_part(batch: Batch) -> None:
    """Leave the links as a power cut in the middle of the switch does."""
    record = batch.host.installer.records[1]
    batch.host.installer._context.generations.switch({record.name: record.staged})


def lose(batch: Batch, cert_id: int, generation: str) -> None:
    for file in (batch.host.layout.generations / batch.host.installer.records[cert_id].name / generation).iterdir():
        file.unlink()


async def test_a_switch_that_can_be_neither_finished_nor_undone_does_not_keep_the_agent_from_starting(
    batch: Batch,
) -> None:
    """The new files of one certificate are lost, and the old ones of another."""
    host = batch.host
    batch.refuse(1)
    await batch.switch()
    records = dict(host.installer.records)
    switched_in_part(batch)
    lose(batch, 3, records[3].staged)
    lose(batch, 1, records[1].generation)
    host.start()
    await host.installer.recover()
    assert (batch.is_new(1), batch.is_new(3)) == (True, False), "each link leads to a whole certificate"
    batch.accept()
    host.clock += 4000
    await host.installer.converge((), batch.items)
    bundle = batch.bundles[3]
    await host.installer.converge(
        [await host.installer.stage(bundle, batch.items)], batch.items, only=[3], together={3: "b"}
    )
    host.clock += 4000
    await host.installer.converge((), batch.items)
    assert all(map(batch.is_new, batch.bundles)) and all(map(batch.served, batch.bundles))


async def test_an_interrupted_switch_on_a_full_disk_is_finished_once_there_is_room(
    batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = batch.host
    batch.refuse(1)
    await batch.switch()
    switched_in_part(batch)
    batch.accept()
    host.start()

    def full(*_: object, **__: object) -> None:
        raise DiskError("cannot make a link: No space left on device", path="x", errno=28)

    monkeypatch.setattr(RealFs, "symlink", full)
    await host.installer.recover()
    monkeypatch.undo()
    host.clock += 4000
    assert kinds(await host.installer.converge((), batch.items)) == dict.fromkeys((1, 2, 3), APPLIED)
    assert all(map(batch.is_new, batch.bundles)) and all(map(batch.served, batch.bundles))
