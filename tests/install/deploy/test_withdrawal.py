"""A withdrawn certificate leaves no key, copy or link of ours, and removes no files of others."""

from __future__ import annotations

import errno
from functools import partial
from typing import Any

import attrs
import pytest
import trio
import trio.testing
from install_host import APPLIED, FAILED, RELOAD, UNCHANGED, Host, ScriptedFs, commands, kinds, reload
from trio.testing import MockClock

from certctrl.errors import DiskError
from certctrl.model.plan import CopyAction, ExecAction, InstallItem, Outcome, OutcomeKind
from certctrl.model.policy import Retirement
from certctrl.model.records import Stage, Standing
from certctrl.store.disk.safe_path import SIZE_LIMIT


def with_copies(host: Host) -> list[InstallItem]:
    host.allow(commands=commands(RELOAD))
    return [
        CopyAction(
            id="c", ob_id=1, sources=("private.key", "fullchain.pem"),
            targets=(str(host.out / "a.key"), str(host.out / "a.pem")),
        ),
        ExecAction(id="r", cmd_argv=RELOAD, depends_on=("c",)),
    ]  # fmt: skip


async def test_a_revoked_certificate_is_removed_everywhere_and_its_commands_run(clock: MockClock, host: Host) -> None:
    items = with_copies(host)
    await host.deliver(1, 2, items=items)
    outcome = await host.installer.withdraw(1, revoked=True, items=items)
    assert (outcome.kind, outcome.detail) == (APPLIED, "removed")
    assert host.proc.calls == [RELOAD, RELOAD]
    assert list(host.out.iterdir()) == []
    assert not (host.layout.certs / "c1.example.key").is_symlink()
    assert host.installer._context.generations.ids("c1.example") == []
    assert host.live(2)
    record = host.start().records[1]
    assert (record.stage, record.generation) == (Stage.WITHDRAWN, "")
    await host.installer.record_alert(1)
    assert (await host.installer.withdraw(1, revoked=True, items=items)).kind is UNCHANGED
    assert (await host.installer.converge_all(items)).kind is UNCHANGED
    assert kinds(await host.deliver(1, items=items)) == {1: APPLIED}, "and it may come back"


async def test_files_of_others_are_not_removed(clock: MockClock, host: Host) -> None:
    items = with_copies(host)
    await host.deliver(1, items=items)
    (host.out / "a.pem").write_bytes(b"the operator's own")
    outcome = await host.installer.withdraw(1, revoked=False, items=items)
    assert outcome.kind is FAILED and "is not the file that was put there" in outcome.detail
    assert [path.name for path in host.out.iterdir()] == ["a.pem"]
    assert host.installer.records[1].stage is Stage.WITHDRAWN


async def test_an_unreadable_copy_of_a_revoked_key_does_not_count_as_removed(clock: MockClock, host: Host) -> None:
    items = with_copies(host)
    await host.deliver(1, items=items)
    real = host.fs

    def unreadable(path: Any, at: Any = None) -> Any:
        if path == "a.key":
            raise DiskError("Input/output error", path=path, errno=5)
        return real.open_file(path, at=at)

    host.fs = ScriptedFs(real)
    host.fs.open_file = unreadable
    for _ in range(2):
        assert (await host.start().withdraw(1, revoked=True, items=items)).kind is FAILED
    host.fs = real
    assert (await host.start().withdraw(1, revoked=True, items=items)).kind is APPLIED
    assert list(host.out.iterdir()) == []


async def test_a_huge_foreign_file_does_not_block_a_removal(clock: MockClock, host: Host) -> None:
    items = with_copies(host)
    await host.deliver(1, items=items)
    with open(host.out / "a.key", "wb") as foreign:
        foreign.truncate(SIZE_LIMIT + 1)
    outcome = await host.installer.withdraw(1, revoked=True, items=items)
    assert outcome.kind is FAILED and "is not the file that was put there" in outcome.detail
    assert [path.name for path in host.out.iterdir()] == ["a.key"]
    assert host.installer.records[1].stage is Stage.WITHDRAWN


async def test_a_copy_that_the_policy_no_longer_allows_is_reported(clock: MockClock, host: Host) -> None:
    items = with_copies(host)
    await host.deliver(1, items=items)
    host.allow(write_roots=[])
    outcome = await host.installer.withdraw(1, revoked=True, items=items)
    assert outcome.kind is FAILED and "not below a directory of write_roots" in outcome.detail
    assert {path.name for path in host.out.iterdir()} == {"a.key", "a.pem"}
    again = await host.start().withdraw(1, revoked=True, items=items)
    assert again.kind is FAILED, "a key that is still on this host is no less there at the second try"
    assert again.detail.count("it could not be removed with the others; remove it by hand") == 2
    assert host.retry(1).last_error in again.detail
    for path in host.out.iterdir():
        path.unlink()
    assert (await host.installer.withdraw(1, revoked=True, items=items)).kind is APPLIED
    await host.installer.record_alert(1)
    assert (await host.installer.withdraw(1, revoked=True, items=items)).kind is UNCHANGED


async def test_a_failed_reload_does_not_undo_a_removal(clock: MockClock, host: Host) -> None:
    items = with_copies(host)
    await host.deliver(1, items=items)
    host.proc.does[RELOAD] = lambda: 1
    outcome = await host.installer.withdraw(1, revoked=True, items=items)
    assert outcome.kind is FAILED and "exited with 1" in outcome.detail
    assert list(host.out.iterdir()) == []
    host.proc.does.clear()
    assert host.retry(1).attempts == 1
    host.clock += 60
    await host.installer.converge_all(items)
    assert host.proc.calls == [RELOAD] * 3, "the reload was still pending"
    assert host.retry(1).attempts == 0
    await host.installer.converge_all(items)
    assert host.proc.calls == [RELOAD] * 3


@pytest.mark.parametrize("status", [0, 1])
async def test_a_certificate_that_is_still_served_is_not_out_of_use(clock: MockClock, host: Host, status: int) -> None:
    """Found with real servers: PostgreSQL and Dovecot reload, nginx refuses; all keep serving the old certificate."""
    items, service = await host.with_service()
    host.proc.does[RELOAD] = lambda: status
    for attempts in (1, 2):
        outcome = await host.start().withdraw(1, revoked=True, items=items)
        assert outcome.kind is FAILED
        assert outcome.detail.startswith("removed; 127.0.0.1:1001 still serves it from memory"), outcome.detail
        assert ("exited with 1" in outcome.detail) == bool(status)
        record = host.start().records[1]
        assert (host.retry(1).attempts, record.stage, record.withdrawal_incomplete) == (attempts, Stage.WITHDRAWN, True)
        assert host.retry(1).last_error in outcome.detail
    service.served = ""
    host.proc.does.clear()
    outcome = await host.installer.withdraw(1, revoked=True, items=items)
    assert (outcome.kind, outcome.detail) == (APPLIED, "removed; 127.0.0.1:1001 serves no certificate")
    assert (host.retry(1).attempts, host.retry(1).last_error) == (0, "")
    await host.installer.record_alert(1)
    assert (await host.installer.withdraw(1, revoked=True, items=items)).kind is UNCHANGED


async def test_only_the_endpoints_of_the_certificate_are_probed(clock: MockClock, host: Host) -> None:
    items = reload(1, 2)  # one command for both
    host.allow(commands=commands(RELOAD))
    host.serve(RELOAD, 1, 1001)
    host.serve(RELOAD, 2, 1002)
    await host.deliver(1, 2, items=items)
    host.proc.does.clear()
    del host.served["127.0.0.1", 1002]  # who asks there fails
    host.served["127.0.0.1", 1001].served = "another"
    outcome = await host.installer.withdraw(1, revoked=True, items=[items[0], *reload(2)])
    assert (outcome.kind, outcome.detail) == (APPLIED, "removed")


async def test_a_repeated_removal_does_not_touch_the_successor(clock: MockClock, host: Host) -> None:
    items = [*reload(1), CopyAction(id="c", ob_id=1, sources=("private.key",), targets=(str(host.out / "a.key"),))]
    host.allow(commands=commands(RELOAD), on_revoked="remove")
    host.serve(RELOAD, 1, 1001)
    await host.deliver(1, items=items)
    assert (await host.installer.withdraw(1, revoked=True, items=items)).kind is FAILED
    prepared = await host.installer.stage(host.bundle(2, "c1.example"), ())
    await host.installer.converge([prepared], ())
    (host.out / "a.key").write_bytes(b"another one's")
    host.allow(on_revoked="placeholder")
    live = host.live(2)
    await host.installer.withdraw(1, revoked=True, items=items)
    assert host.live(2) == live
    assert (host.out / "a.key").read_bytes() == b"another one's"


async def test_a_placeholder_keeps_the_service_able_to_start(clock: MockClock, host: Host) -> None:
    items = with_copies(host)
    host.allow(on_revoked="placeholder")
    await host.deliver(1, items=items)
    revoked, not_before = host.live(1), host.installer.records[1].facts.not_before
    assert (await host.installer.withdraw(1, revoked=True, items=items)).kind is APPLIED
    assert host.live(1) != revoked
    assert (host.out / "a.key").read_bytes() == (host.layout.certs / "c1.example.key").read_bytes()
    assert len(host.installer._context.generations.ids("c1.example")) == 1, "the revoked key is gone"
    assert host.installer.records[1].facts.not_before <= not_before, "any renewal counts as newer"
    await host.installer.record_alert(1)
    assert (await host.installer.withdraw(1, revoked=True, items=items)).kind is UNCHANGED
    assert kinds(await host.deliver(1, items=items)) == {1: APPLIED}


async def test_a_revoked_key_next_to_its_placeholder_is_removed_by_the_next_run(
    clock: MockClock, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by kill -9: with the placeholder in place, the next run found nothing to do."""
    items = [ExecAction(id="r", ob_id=1, cmd_argv=RELOAD)]
    host.allow(on_revoked="placeholder", commands=commands(RELOAD))
    await host.deliver(1, items=items)
    host.proc.calls.clear()

    def refuse(*_: object, **__: object) -> int:
        raise DiskError("cannot remove", path="/x", errno=errno.EIO, fix="check the disk")

    with monkeypatch.context() as patch:
        patch.setattr(host.installer._context.generations, "prune", refuse)
        assert (await host.installer.withdraw(1, revoked=True, items=items)).kind is FAILED
    assert len(host.installer._context.generations.ids("c1.example")) == 2
    host.start()
    await host.installer.recover()
    assert (await host.installer.withdraw(1, revoked=True, items=items)).kind is APPLIED
    assert len(host.installer._context.generations.ids("c1.example")) == 1
    assert host.proc.calls == [RELOAD]
    await host.installer.record_alert(1)
    assert (await host.installer.withdraw(1, revoked=True, items=items)).kind is UNCHANGED


async def test_a_placeholder_stays_if_its_service_refuses_it(clock: MockClock, host: Host) -> None:
    items = reload(1)
    host.allow(commands=commands(RELOAD), on_revoked="placeholder")
    service = host.serve(RELOAD, 1, 1001)
    await host.deliver(1, items=items)
    revoked = host.live(1)
    service.broken = True
    assert (await host.installer.withdraw(1, revoked=True, items=items)).kind is FAILED
    assert host.live(1) != revoked
    assert len(host.installer._context.generations.ids("c1.example")) == 1


async def test_on_revoked_keep_changes_no_file(clock: MockClock, host: Host) -> None:
    host.allow(on_revoked="keep")
    await host.deliver(1)
    before = host.live(1)
    assert (await host.installer.withdraw(1, revoked=True, items=())).kind is APPLIED
    assert host.live(1) == before
    assert (await host.installer.withdraw(1, revoked=False, items=())).kind is APPLIED
    assert host.installer.records[1].stage is Stage.WITHDRAWN, "unassigned is another matter"


@pytest.mark.parametrize("how", ["keep", "placeholder", "remove"])
async def test_an_unassigned_certificate_is_treated_as_the_policy_says(clock: MockClock, host: Host, how: str) -> None:
    host.allow(on_unassigned=how, on_revoked="remove")
    await host.deliver(1)
    before = host.live(1)
    done = await host.installer.withdraw(1, revoked=False, items=())
    record = host.installer.records[1]
    assert (done.kind, record.revoked) == (APPLIED, False)
    assert (record.stage is Stage.WITHDRAWN) is (how == "remove")
    if how != "remove":
        assert (host.live(1) == before) is (how == "keep")
        assert (await host.installer.withdraw(1, revoked=False, items=())).kind is UNCHANGED
    assert (await host.installer.withdraw(1, revoked=False, items=(), how=Retirement.REMOVE)).ok
    assert host.installer.records[1].stage is Stage.WITHDRAWN


async def test_items_are_not_about_a_certificate_of_another_plane(clock: MockClock, host: Host) -> None:
    await host.deliver(1)
    before = host.installer.records[1]
    await host.installer.update([attrs.evolve(before, standing=Standing.FOREIGN)])
    items = with_copies(host)
    host.start()
    await host.installer.recover()
    assert not (await host.installer.plan(items)).groups
    await host.installer.converge_all(items)
    assert not list(host.out.iterdir())
    assert host.installer.records[1].generation == before.generation
    assert (await host.installer.withdraw(1, revoked=False, items=items, how=Retirement.REMOVE)).kind is APPLIED
    assert host.installer.records[1].standing is Standing.KNOWN, "the id is free again"


async def test_a_copy_that_names_its_certificate_passes_to_the_successor(clock: MockClock, host: Host) -> None:
    """The assignment changes: certificate 9 arrives for the same domain before 7 is withdrawn."""
    target = host.out / "a.pem"
    items = [
        CopyAction(id="c", ob_name="a.example", sources=("combined.pem",), targets=(str(target),)),
        ExecAction(id="r", cmd_argv=RELOAD, depends_on=("c",)),
    ]
    host.allow(commands=commands(RELOAD))
    for cert_id in (7, 9):
        prepared = await host.installer.stage(host.bundle(cert_id, "a.example"), items)
        await host.installer.converge([prepared], items)
    first, calls = target.read_bytes(), len(host.proc.calls)
    outcome = await host.installer.withdraw(7, revoked=True, items=items)
    assert (outcome.kind, [one.cert_id for one in outcome.deployed]) == (APPLIED, [9])
    assert (host.layout.certs / "a.example+9.key").read_bytes() in target.read_bytes() != first
    assert len(host.proc.calls) == calls + 1
    assert not await host.installer.unfinished(items)


@pytest.mark.parametrize("how", ["remove", "placeholder"])
async def test_a_switch_that_waited_for_a_withdrawal_does_not_undo_it(clock: MockClock, host: Host, how: str) -> None:
    """Found by random histories: the renewal that had been chosen before was recorded as staged after it."""
    items = [ExecAction(id="r", ob_id=1, cmd_argv=RELOAD)]
    host.allow(on_revoked=how, commands=commands(RELOAD))
    await host.deliver(1, 2, items=items)
    generations = host.installer._context.generations
    revoked, others = generations.live_id("c1.example"), host.live(2)
    locks, switched = host.installer._locks, dict[int, OutcomeKind]()

    async def renew() -> None:
        switched.update(kinds(await host.deliver(1, 2, items=items)))

    async with trio.open_nursery() as nursery:
        assert locks.try_acquire({"cert:1"})
        nursery.start_soon(renew)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(partial(host.installer.withdraw, 1, revoked=True, items=items))
        await trio.testing.wait_all_tasks_blocked()
        locks.release({"cert:1"})
    record = host.start().records[1]
    assert (record.staged, record.batch, record.standing) == ("", "", Standing.KNOWN)
    assert record.generation == (generations.live_id("c1.example") or "") != revoked
    assert record.stage is (Stage.WITHDRAWN if how == "remove" else Stage.ACTIVATED)
    assert switched == {1: UNCHANGED, 2: APPLIED} and host.live(2) != others
    if how == "placeholder":
        assert generations.manifest("c1.example", record.generation)["facts"]["placeholder"]
    assert (await host.installer.converge_all(items)).kind is UNCHANGED


async def test_a_switch_that_waited_for_a_rollback_does_not_end_its_hold(clock: MockClock, host: Host) -> None:
    for _ in range(2):
        await host.deliver(1)
    generations, locks = host.installer._context.generations, host.installer._locks
    before = generations.ids("c1.example")[0]
    outcomes = dict[int, Outcome]()

    async def renew() -> None:
        outcomes.update(await host.deliver(1))

    async with trio.open_nursery() as nursery:
        assert locks.try_acquire({"cert:1"})
        nursery.start_soon(host.installer.rollback, "c1.example", None, ())
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(renew)
        await trio.testing.wait_all_tasks_blocked()
        locks.release({"cert:1"})
    record = host.start().records[1]
    assert record.held and generations.live_id("c1.example") == record.generation == before
    assert "an earlier generation is held" in outcomes[1].detail
    await host.installer.release("c1.example")
    await host.installer.converge_all(())
    assert generations.live_id("c1.example") not in ("", before), "the renewal was kept"
