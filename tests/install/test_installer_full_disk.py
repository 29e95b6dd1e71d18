"""A destination that takes no file: everything is staged before the switch, so nothing live changes, try after try."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from install_host import APPLIED, FAILED, OTHER, RELOAD, Host, commands, kinds, leftovers, reload
from trio.testing import MockClock

from certctrl.errors import DiskError
from certctrl.install.plan.retries import PAUSES
from certctrl.model.plan import CopyAction, ExecAction, InstallItem
from certctrl.model.records import RetryKind
from certctrl.store.deployments.file_set import FileSet
from certctrl.store.deployments.generations import GenerationStore


def copied(host: Host, name: str, source: str = "fullchain.pem", cert_id: int = 1, **more: Any) -> CopyAction:
    directory = host.out / name
    directory.mkdir(exist_ok=True)
    return CopyAction(id=name, ob_id=cert_id, sources=(source,), targets=(str(directory / source),), **more)


def contents(host: Host) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in host.out.rglob("*") if path.is_file()}


@pytest.fixture
def switches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of switched certificates."""
    found: list[str] = []
    real = GenerationStore.switch

    def switch(self: GenerationStore, to: dict[str, str | None]) -> Any:
        found.extend(to)
        return real(self, to)

    monkeypatch.setattr(GenerationStore, "switch", switch)
    return found


@pytest.mark.parametrize("source", ["fullchain.pem", "combined.pem", "certificate.der", "bundle.pfx", "bundle.jks"])
async def test_a_full_destination_disk_changes_nothing_live_until_it_has_space(
    clock: MockClock, host: Host, switches: list[str], source: str
) -> None:
    items = [copied(host, "good"), copied(host, "full", source), *reload(1)]
    host.allow(commands=commands(RELOAD))
    service = host.serve(RELOAD, 1, 1001)
    await host.deliver(1, items=items)
    old, files, reloads = host.live(1), contents(host), service.reloads
    host.fill(host.out / "full")
    switches.clear()
    outcome = (await host.deliver(1, items=items))[1]
    for tries in range(1, 8):
        assert (outcome.kind, outcome.transient) == (FAILED, True) and "No space left" in outcome.detail
        assert (host.live(1), contents(host), switches, service.reloads) == (old, files, [], reloads)
        assert leftovers(host) == []
        retry = host.retry(1)
        assert (retry.kind, retry.failures, retry.attempts) == (RetryKind.DISK, tries, 0), "never quarantined"
        assert host.clock < retry.next_try_at <= host.clock + PAUSES[RetryKind.DISK].last
        held = (await host.installer.plan(items)).held[1]
        assert f"next try in {retry.next_try_at - host.clock:.0f} s" in held and "No space left" in held
        host.clock = retry.next_try_at
        outcome = (await host.installer.converge((), items))[1]
    host.fill(None)
    host.clock = host.retry(1).next_try_at
    assert kinds(await host.installer.converge((), items)) == {1: APPLIED}
    assert host.live(1) == service.served != old and leftovers(host) == []


async def test_no_command_runs_if_a_file_of_a_later_step_cannot_be_written(clock: MockClock, host: Host) -> None:
    items: list[InstallItem] = [
        copied(host, "good"),
        ExecAction(id="stop", ob_id=1, cmd_argv=OTHER, depends_on=("good",)),
        copied(host, "full", depends_on=("stop",)),
        *reload(1),
    ]
    host.allow(commands=commands(RELOAD, OTHER))
    host.serve(RELOAD, 1, 1001)
    await host.deliver(1, items=items)
    files, calls = contents(host), [*host.proc.calls]
    host.fill(host.out / "full")
    assert kinds(await host.deliver(1, items=items)) == {1: FAILED}
    assert (contents(host), host.proc.calls, leftovers(host)) == (files, calls, [])


async def test_a_first_delivery_waits_below_certs_too(clock: MockClock, host: Host) -> None:
    items = [copied(host, "full"), *reload(1)]
    host.allow(commands=commands(RELOAD))
    host.fill(host.out / "full")
    assert kinds(await host.deliver(1, items=items)) == {1: FAILED}
    record = host.installer.records[1]
    assert (record.generation, bool(record.staged), host.proc.calls) == ("", True, [])
    assert not (host.layout.certs / "c1.example.crt").exists()
    host.fill(None)
    host.serve(RELOAD, 1, 1001)
    assert kinds(await host.installer.converge((), items, only=[1])) == {1: APPLIED}
    assert host.live(1)


async def test_another_group_is_switched_even_so(clock: MockClock, host: Host) -> None:
    items = [copied(host, "full", cert_id=1), copied(host, "good", cert_id=2)]
    await host.deliver(1, 2, items=items)
    before = {cert_id: host.live(cert_id) for cert_id in (1, 2)}
    host.fill(host.out / "full")
    assert kinds(await host.deliver(1, 2, items=items)) == {1: FAILED, 2: APPLIED}
    assert (host.live(1) == before[1], host.live(2) == before[2]) == (True, False)
    assert contents(host)[host.out / "good" / "fullchain.pem"] == (host.layout.certs / "c2.example.crt").read_bytes()


@pytest.mark.parametrize("how", ["placeholder", "remove"])
async def test_a_revoked_certificate_is_removed_even_if_a_destination_is_full(
    clock: MockClock, host: Host, how: str
) -> None:
    items = [copied(host, "full"), *reload(1)]
    host.allow(commands=commands(RELOAD), on_revoked=how)
    host.serve(RELOAD, 1, 1001)
    await host.deliver(1, items=items)
    revoked = host.live(1)
    host.fill(host.out / "full")
    await host.installer.withdraw(1, revoked=True, items=items)
    link = host.layout.certs / "c1.example.crt"
    assert not link.exists() if how == "remove" else host.live(1) != revoked


async def test_staged_files_are_removed_if_the_switch_fails(
    clock: MockClock, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = [copied(host, "good"), *reload(1)]
    host.allow(commands=commands(RELOAD))
    host.serve(RELOAD, 1, 1001)
    await host.deliver(1, items=items)
    old, files = host.live(1), contents(host)

    def fail(*_: object) -> None:
        raise DiskError("cannot switch", path="/x", errno=28, fix="")

    with monkeypatch.context() as patch:
        patch.setattr(GenerationStore, "_switch_links", fail)
        assert kinds(await host.deliver(1, items=items)) == {1: FAILED}
    assert (host.live(1), contents(host), leftovers(host)) == (old, files, [])
    host.clock += 7200
    assert kinds(await host.installer.converge((), items)) == {1: APPLIED}


async def test_a_rollback_restores_a_file_as_an_earlier_command_left_it(clock: MockClock, host: Host) -> None:
    """The copy for a rollback, made before the switch, would be outdated."""
    late = host.out / "late" / "fullchain.pem"
    items: list[InstallItem] = [
        ExecAction(id="edit", ob_id=1, cmd_argv=OTHER),
        copied(host, "late", depends_on=("edit",)),
        *reload(1, depends_on=("late",)),
    ]
    host.allow(commands=commands(RELOAD, OTHER))
    service = host.serve(RELOAD, 1, 1001)
    await host.deliver(1, items=items)
    edits = 0

    def edit() -> int:
        nonlocal edits
        edits += 1
        late.write_text(f"edited {edits}")
        return 0

    host.proc.does[OTHER] = edit
    service.deaf = True
    await host.deliver(1, items=items)
    assert late.read_text().startswith("edited") and leftovers(host) == []


async def test_an_unfinished_start_does_not_flip_the_live_set_either(
    clock: MockClock, host: Host, monkeypatch: pytest.MonkeyPatch, switches: list[str]
) -> None:
    """Killed right after the switch; then the destination is full."""
    items = [copied(host, "full"), *reload(1)]
    host.allow(commands=commands(RELOAD))
    service = host.serve(RELOAD, 1, 1001)
    await host.deliver(1, items=items)

    class PowerCut(BaseException):
        pass

    def die(self: FileSet) -> None:
        raise PowerCut

    with monkeypatch.context() as patch, pytest.raises(BaseExceptionGroup):
        patch.setattr(FileSet, "commit", die)
        patch.setattr(FileSet, "close", lambda self: None)
        await host.deliver(1, items=items)
    host.fill(host.out / "full")
    await host.installer.recover()
    after, files = host.live(1), contents(host)
    assert leftovers(host) == []
    switches.clear()
    for _ in range(4):
        outcome = (await host.installer.converge((), items))[1]
        assert outcome.kind is FAILED and "not in service yet" in outcome.detail
        assert (host.live(1), contents(host), switches) == (after, files, [])
        assert host.installer.retry_times() == {1: host.retry(1).next_try_at}
        host.clock = host.retry(1).next_try_at
    host.fill(None)
    await host.installer.recover()
    assert kinds(await host.installer.converge((), items)) == {1: APPLIED}
    assert service.served == host.live(1) == after


async def test_a_batch_loses_only_the_member_whose_destination_is_full(clock: MockClock, host: Host) -> None:
    """One command for two certificates: they are one group."""
    shared = ExecAction(id="r", cmd_argv=RELOAD)
    items: list[InstallItem] = [copied(host, "full", cert_id=1), copied(host, "good", cert_id=2), shared]
    host.allow(commands=commands(RELOAD))
    await host.deliver(1, 2, items=items)
    before = {cert_id: host.live(cert_id) for cert_id in (1, 2)}
    host.fill(host.out / "full")
    for _ in range(2):
        assert kinds(await host.deliver(1, 2, items=items)) == {1: FAILED, 2: APPLIED}
        assert (host.live(1) == before[1], host.live(2) == before[2]) == (True, False)
        host.clock += 7200
    assert leftovers(host) == []
