"""After a crash at any moment, the next run does the pending work and can still roll back."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from bundle_maker import DAY, NOW, Issuer, Maker, build
from install_host import APPLIED, FAILED, RELOAD, ROLLED_BACK, UNCHANGED, Host, commands, kinds, leftovers, reload
from trio.testing import MockClock

from certctrl.model.plan import CopyAction, InstallItem
from certctrl.model.records import Stage
from certctrl.store.deployments.file_set import FileSet, FileWrite
from certctrl.store.state.installed import InstalledState


class PowerCut(BaseException):
    """The process was killed: no handler runs after this."""


async def crashed(host: Host, where: tuple[str, ...], items: list[InstallItem]) -> None:
    """Deliver certificate 1 and crash when a command runs; start a new run."""
    real = host.proc.does.get(where)

    def die() -> int:
        raise PowerCut

    host.proc.does[where] = die
    with pytest.raises(BaseExceptionGroup):
        await host.deliver(1, items=items)
    host.proc.does.pop(where)
    if real is not None:
        host.proc.does[where] = real
    host.start()


async def test_unrecoverable_copies_are_logged(host: Host, caplog: pytest.LogCaptureFixture) -> None:
    place, moved = host.out / "place", host.out / "moved"
    place.mkdir()
    (place / "a.pem").write_bytes(b"old")
    copies = FileSet(host.layout, host.fs)
    copies.begin([FileWrite(path=place / "a.pem", data=b"new", mode=0o644)])
    place.rename(moved)
    place.symlink_to(moved)
    await host.start().recover()
    assert f"{place}/a.pem" in caplog.text and "symbolic link" in caplog.text
    place.unlink()
    moved.rename(place)
    await host.start().recover()
    assert leftovers(host) == []


async def test_work_pending_at_a_crash_is_done_at_the_next_start(clock: MockClock, host: Host) -> None:
    items, service = await host.with_service()
    await crashed(host, RELOAD, items)
    assert host.installer.records[1].facts.fingerprint_sha256 != host.live(1), (
        "the crash came before the record was written"
    )
    await host.installer.recover()
    record = host.installer.records[1]
    assert (record.facts.fingerprint_sha256, record.stage) == (host.live(1), Stage.COMMITTED)
    assert service.served != host.live(1)
    assert await host.installer.unfinished(items)
    assert kinds(await host.installer.converge((), items)) == {1: APPLIED}
    assert service.served == host.live(1)
    assert host.installer.records[1].stage is Stage.ACTIVATED
    assert (await host.installer.converge_all(items)).kind is UNCHANGED


async def test_a_rollback_is_possible_after_a_crash(clock: MockClock, host: Host) -> None:
    items, service = await host.with_service()
    good = host.live(1)
    await crashed(host, RELOAD, items)
    await host.installer.recover()
    service.refuses.add(host.live(1))
    outcome = (await host.installer.converge((), items))[1]
    assert (outcome.kind, host.live(1), service.served) == (ROLLED_BACK, good, good)
    assert host.installer.records[1].facts.fingerprint_sha256 == good


async def test_a_rollback_includes_files_that_an_earlier_run_left(clock: MockClock, host: Host) -> None:
    target = host.out / "combined.pem"
    items = [CopyAction(id="c", ob_id=1, sources=("combined.pem",), targets=(str(target),)), *reload(1)]
    host.allow(commands=commands(RELOAD))
    service = host.serve(RELOAD, 1, 1001)
    service.certificate = service.key = target
    await host.deliver(1, items=items)
    good, before = host.live(1), target.read_bytes()
    await crashed(host, RELOAD, items)
    await host.installer.recover()
    assert target.read_bytes() != before and leftovers(host) == []
    service.refuses.add(host.live(1))
    assert kinds(await host.installer.converge((), items)) == {1: ROLLED_BACK}
    assert (host.live(1), service.served, target.read_bytes()) == (good, good, before)
    host.clock += 7200
    assert kinds(await host.installer.converge((), items)) == {1: ROLLED_BACK}
    assert (host.live(1), service.served, target.read_bytes()) == (good, good, before)


async def test_a_crash_during_a_rollback_reloads_the_old_pair(clock: MockClock, host: Host) -> None:
    items, service = await host.with_service()
    good, taken = host.live(1), service.reload
    steps: list[int] = []

    async def reload_then_die() -> int:
        steps.append(1)
        if len(steps) == 1:
            await taken()  # the new one is in service,
            return 1  # and yet it is called a failure
        raise PowerCut

    host.proc.does[RELOAD] = reload_then_die
    with pytest.raises(BaseExceptionGroup):
        await host.deliver(1, items=items)
    assert host.live(1) == good != service.served
    host.proc.does[RELOAD] = taken
    service.refuses.add(service.served)
    host.start()
    await host.installer.recover()
    assert kinds(await host.installer.converge((), items)) == {1: ROLLED_BACK}, "staged, so it is tried once more"
    assert service.served == good == host.live(1)


async def test_markers_are_removed_before_the_old_pair_is_restored(clock: MockClock, host: Host) -> None:
    """Otherwise a crash between rollback and reload would leave the new pair in service forever."""
    items, service = await host.with_service()
    marks = dict(host.installer._context.records.activations)
    service.broken = True
    real, seen = host.installer._context.generations.switch, list[dict[str, str]]()

    def switch(to: dict[str, str]) -> Any:
        seen.append(InstalledState(host.layout, host.fs).load_activations())
        return real(to)

    host.installer._context.generations.switch = switch
    await host.deliver(1, items=items)
    assert seen == [marks, {}]


async def test_a_live_generation_without_a_record_gets_one(clock: MockClock, host: Host) -> None:
    await host.deliver(1, 2)
    host.layout.certificates.unlink()
    host.start()
    await host.installer.recover()
    assert {n: record.facts.fingerprint_sha256 for n, record in host.installer.records.items()} == {
        n: host.live(n) for n in (1, 2)
    }


async def test_an_unreadable_generation_counts_as_absent_and_delays_no_other(clock: MockClock, host: Host) -> None:
    items = [
        CopyAction(id=f"c{n}", ob_id=n, sources=("combined.pem",), targets=(str(host.out / f"{n}"),)) for n in (1, 2)
    ]
    await host.deliver(1, 2, items=items)
    record = host.installer.records[1]
    (host.layout.generation(record.name, record.generation) / "manifest.json").write_bytes(b"\0\0\0")
    (host.out / "2").unlink()
    host.start()
    await host.installer.recover()
    outcomes = await host.installer.converge((), items)
    assert (outcomes[1].kind, outcomes[2].kind) == (FAILED, APPLIED)
    assert host.installer.records[1].generation == ""
    assert kinds(await host.deliver(1, items=items)) == {1: APPLIED}
    assert host.live(1)


async def test_files_of_a_killed_writer_are_removed_at_start(clock: MockClock, host: Host) -> None:
    left = [place / ".access_token.txt.00ff.tmp" for place in (host.layout.state, host.layout.keys)]
    for path in left:
        path.write_bytes(b"half a secret")
    host.start()
    await host.installer.recover()
    assert not [path for path in left if path.exists()]


async def test_a_record_of_an_earlier_release_gets_the_end_of_its_chain(clock: MockClock, host: Host) -> None:
    """Earlier releases recorded the end of the leaf alone."""
    root = Issuer("root")
    short = Issuer("short", root)
    short.certificate = build("short", "root", short.key.public_key(), root.key, ca=True, life=(-400, 20))
    host.maker = Maker(short)
    await host.deliver(1)
    record = host.installer.records[1]
    assert record.facts.not_after == NOW + 20 * DAY
    old = attrs.evolve(record, facts=attrs.evolve(record.facts, not_after=NOW + 89 * DAY))
    InstalledState(host.layout, host.fs).save_certificates({1: old})
    host.start()
    assert host.installer.records[1].facts.not_after == NOW + 89 * DAY
    await host.installer.recover()
    assert host.installer.records[1] == record
    assert InstalledState(host.layout, host.fs).load_certificates() == {1: record}
    await host.deliver(1)
    assert (await host.installer.rollback(record.name, record.generation, ())).ok
    assert host.installer.records[1].facts.not_after == NOW + 20 * DAY
