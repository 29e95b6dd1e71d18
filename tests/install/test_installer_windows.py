"""New material waits for the window; a rollback by the operator holds until released."""

from __future__ import annotations

import errno
import sys
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from install_host import APPLIED, RELOAD, ROLLED_BACK, Host, commands, kinds, reload
from trio.testing import MockClock

from certctrl.errors import DiskError, UsageError
from certctrl.install.plan.render import plan_lines
from certctrl.model.plan import CopyAction
from certctrl.model.policy import MaintenanceWindow
from certctrl.model.records import Retry, RetryKind


def night(host: Host) -> None:
    hour = int(host.clock // 3600) % 24
    host.allow(window=MaintenanceWindow(from_=f"{(hour + 2) % 24:02}:00", to=f"{(hour + 3) % 24:02}:00"))


def leaf_of(path: Path) -> str:
    (leaf,) = x509.load_pem_x509_certificates(path.read_bytes())[:1]
    return leaf.fingerprint(hashes.SHA256()).hex()


async def test_new_material_is_staged_until_the_window_opens(clock: MockClock, host: Host) -> None:
    items = reload(1)
    host.allow(commands=commands(RELOAD))
    service = host.serve(RELOAD, 1, 1001)
    night(host)
    assert kinds(await host.deliver(1, items=items)) == {1: APPLIED}, "a first delivery has nothing to disturb"
    old = host.live(1)
    outcome = (await host.deliver(1, items=items))[1]
    assert outcome.kind is APPLIED and outcome.waits.startswith("waits for the window ")
    assert outcome.detail == f"staged; {outcome.waits}"
    assert host.live(1) == old == service.served
    record = host.start().records[1]
    assert record.staged and record.staged != record.generation, "staged and durable"
    here = await host.installer.renewal_here(record)
    assert (here.generation, here.facts.serial != record.facts.serial) == (record.staged, True)
    assert await host.installer.renewal_here(here) is None
    assert list((await host.installer.plan(items)).held) == [1]
    opening = host.installer.window_times()[1]
    assert 3600 <= opening - host.clock <= 7200
    assert (await host.installer.converge_all(items)).kind is APPLIED and host.live(1) == old
    host.clock = opening
    assert kinds(await host.installer.converge((), items)) == {1: APPLIED}
    assert host.live(1) == service.served != old
    assert host.installer.records[1].staged == "" and host.installer.window_times() == {}


async def test_newer_material_replaces_staged_material_that_waits(clock: MockClock, host: Host) -> None:
    for _ in range(2):
        await host.deliver(1)
    await host.installer.rollback("c1.example", None, ())
    for _ in range(6):
        await host.deliver(1)
    record = host.installer.records[1]
    ids = host.installer._context.generations.ids("c1.example")
    assert {record.generation, record.staged} < set(ids)
    assert len(ids) == 2 + host.config.application.keep_generations


@pytest.mark.parametrize("how", ["remove", "placeholder", "keep"])
async def test_the_successor_of_a_revoked_certificate_ignores_the_window(
    how: str, clock: MockClock, host: Host
) -> None:
    await host.deliver(1)
    host.allow(on_revoked=how)
    night(host)
    assert (await host.installer.withdraw(1, revoked=True, items=())).kind is APPLIED
    host.start()
    revoked = host.installer.records[1].facts.fingerprint_sha256
    assert kinds(await host.deliver(1)) == {1: APPLIED}
    live = host.live(1)
    assert live == host.installer.records[1].facts.fingerprint_sha256 != revoked
    await host.deliver(1)
    assert host.live(1) == live, "the next one waits again"


async def test_a_plan_shows_staged_material_that_is_not_due(clock: MockClock, host: Host) -> None:
    items, service = await host.with_service()
    service.broken = True
    assert kinds(await host.deliver(1, items=items)) == {1: ROLLED_BACK}
    record = host.installer.records[1]
    assert record.staged and host.retry(1).next_try_at > host.clock
    reported = (await host.installer.plan(items)).held[1]
    assert "next try in" in reported and host.retry(1).last_error in reported
    host.clock = host.retry(1).next_try_at
    plan = await host.installer.plan(items)
    assert plan.held == {} and plan_lines(plan)[0].kind.value == "switch"


async def test_apply_now_ignores_the_window(clock: MockClock, host: Host) -> None:
    await host.deliver(1)
    night(host)
    await host.deliver(1)
    old = host.live(1)
    assert (await host.installer.converge_all((), ignore_window=True)).kind is APPLIED
    assert host.live(1) != old


@pytest.mark.parametrize("why", ["window", "window, and new material waits", "held"])
async def test_an_item_gets_another_file_of_the_live_generation(why: str, clock: MockClock, host: Host) -> None:
    target = host.out / "combined.pem"
    items = [CopyAction(id="c", ob_id=1, sources=("combined.pem",), targets=(str(target),))]
    await host.deliver(1)
    if why == "held":
        await host.deliver(1)
        await host.installer.rollback("c1.example", None, ())
    else:
        night(host)
        if why != "window":
            await host.deliver(1)
    live, waits = host.live(1), host.installer.records[1].staged
    assert (await host.installer.converge_all(items)).ok
    assert host.live(1) == live == leaf_of(target)
    record = host.start().records[1]
    assert (record.staged, record.held) == (waits, why == "held")
    host.allow(window=None)
    await host.installer.release("c1.example")
    assert (await host.installer.converge_all(items)).ok
    assert host.live(1) == leaf_of(target)
    assert (host.live(1) != live) == bool(waits), "what waited gets the file, too"


async def test_a_rollback_makes_files_that_later_items_want(clock: MockClock, host: Host) -> None:
    target = host.out / "combined.pem"
    items = [CopyAction(id="c", ob_id=1, sources=("combined.pem",), targets=(str(target),))]
    await host.deliver(1)
    first = host.live(1)
    await host.deliver(1, items=items)
    assert (await host.installer.rollback("c1.example", None, items)).kind is APPLIED
    assert host.live(1) == first == leaf_of(target)
    assert host.installer.records[1].held


async def test_a_rollback_holds_until_released(clock: MockClock, host: Host) -> None:
    items = reload(1)
    host.allow(commands=commands(RELOAD))
    service = host.serve(RELOAD, 1, 1001)
    for _ in range(2):
        await host.deliver(1, items=items)
        host.clock += 60
    old, new = host.installer._context.generations.ids("c1.example")
    outcome = await host.installer.rollback("c1.example", None, items)
    assert outcome.kind is APPLIED
    assert host.installer.records[1].generation == old and service.served == host.live(1)
    renewed = (await host.deliver(1, items=items))[1]
    assert (
        renewed.waits.startswith("waits for `cert-ctrl rollback --release`")
        and host.installer.records[1].generation == old
    )
    assert (await host.installer.converge_all(items)).kind is APPLIED, "nothing but the hold to tell"
    assert host.installer.records[1].generation == old
    await host.installer.release("c1.example")
    assert kinds(await host.installer.converge((), items)) == {1: APPLIED}
    assert host.installer.records[1].generation not in (old, new)
    assert service.served == host.live(1)
    assert (await host.installer.rollback("c1.example", new, items)).kind is APPLIED
    assert host.installer.records[1].generation == new


async def test_a_rollback_that_does_not_serve_changes_nothing(clock: MockClock, host: Host) -> None:
    items, service = await host.with_service()
    service.refuses.add(host.live(1))
    await host.deliver(1, items=items)
    now = host.live(1)
    assert (await host.installer.rollback("c1.example", None, items)).kind is ROLLED_BACK
    record = host.installer.records[1]
    assert (host.live(1), service.served, record.held, record.staged) == (now, now, False, "")


async def test_rollback_to_nothing_is_a_usage_error(clock: MockClock, host: Host) -> None:
    await host.deliver(1)
    with pytest.raises(UsageError, match="no earlier generation"):
        await host.installer.rollback("c1.example", None, ())
    with pytest.raises(UsageError, match="has no generation"):
        await host.installer.rollback("c1.example", "../../x", ())
    with pytest.raises(UsageError, match="no certificate"):
        await host.installer.rollback("other", None, ())
    with pytest.raises(UsageError, match="no certificate"):
        await host.installer.release("other")
    assert not host.installer.records[1].held


async def test_older_generations_are_pruned(clock: MockClock, host: Host) -> None:
    for _ in range(6):
        await host.deliver(1)
    assert len(host.installer._context.generations.ids("c1.example")) == 1 + host.config.application.keep_generations


async def test_older_generations_stay_until_the_outcomes_are_durable(clock: MockClock, host: Host) -> None:
    kept, ids = 1 + host.config.application.keep_generations, host.installer._context.generations.ids
    for _ in range(kept + 2):
        prepared = [await host.installer.stage(host.bundle(1), ())]
        assert kinds(await host.installer.converge(prepared, (), lasting=False)) == {1: APPLIED}
    assert len(ids("c1.example")) == kept + 2
    host.installer._locks.try_acquire({"cert:1"})
    await host.installer.prune()
    assert len(ids("c1.example")) == kept + 2, "another call works on it"
    host.installer._locks.release({"cert:1"})
    await host.installer.prune()
    assert len(ids("c1.example")) == kept
    assert not host.installer._locks._taken


async def test_a_generation_that_cannot_be_removed_is_no_failure_of_its_certificate(
    clock: MockClock, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    generations, kept = host.installer._context.generations, 1 + host.config.application.keep_generations
    for cert_id in (1, 2):
        for _ in range(kept):
            await host.deliver(cert_id)
    real, refused = generations.prune, list[str]()

    def refuse(name: str, keep: int, **options: Any) -> int:
        if name == "c1.example":
            refused.append(name)
            raise DiskError("cannot remove", path="/x", errno=errno.EIO, fix="check the disk")
        return real(name, keep, **options)

    with monkeypatch.context() as patch:
        patch.setattr(generations, "prune", refuse)
        prepared = [await host.installer.stage(host.bundle(one), ()) for one in (1, 2)]
        assert kinds(await host.installer.converge(prepared, ())) == {1: APPLIED, 2: APPLIED}
        assert refused and len(generations.ids("c1.example")) == kept + 1
        assert len(generations.ids("c2.example")) == kept, "it keeps no other from being removed"
        with pytest.raises(DiskError, match="cannot remove"):
            await host.installer.clear_up()
    await host.installer.clear_up()
    assert len(generations.ids("c1.example")) == kept


async def test_the_next_try_without_a_window_needs_no_import(
    clock: MockClock, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by failing each open: where none succeeds any more, the import ended the daemon instead of the signal."""
    items = reload(1)
    host.allow(commands=commands(RELOAD))
    host.serve(RELOAD, 1, 1001)
    night(host)
    await host.deliver(1, items=items)
    await host.deliver(1, items=items)
    host.allow(commands=commands(RELOAD), window=None)
    host.start()
    assert host.installer.records[1].staged
    monkeypatch.setitem(sys.modules, "certctrl.install.plan.window", None)
    assert host.installer.next_try_at(Retry(resource="cert:1", kind=RetryKind.DISK)) == host.clock
