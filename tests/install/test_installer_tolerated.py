"""A failure of an item with ``continue_on_error`` is recorded, reported and retried, and affects nothing else."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

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
from certctrl.model.plan import CopyAction, ExecAction, InstallItem, VerifyCommand
from certctrl.model.policy import MaintenanceWindow
from certctrl.model.records import Stage


def refuse(host: Host, *names: str, verb: str = "create") -> None:
    """Make the disk refuse files with these names from now on; none: refuse nothing."""
    real = getattr(host.fs, "real", host.fs)

    class Refusing:
        def __init__(self) -> None:
            self.real = real

        def __getattr__(self, attribute: str) -> Any:
            act = getattr(real, attribute)
            if attribute != verb:
                return act

            def refusing(name: object, *args: object, **how: object) -> Any:
                # not within a word: the random part of a temporary name may end with "bad"
                if any(re.search(rf"\b{re.escape(one)}\.", f"{name} {args}") for one in names):
                    raise DiskError(f"cannot {verb}", path=str(name), errno=30)
                return act(name, *args, **how)

            return refusing

    host.fs = Refusing()
    host.start()


def copied(host: Host, name: str, *sources: str, tolerant: bool = True, **more: Any) -> CopyAction:
    targets = tuple(str(host.out / f"{name}.{number}") for number in range(len(sources)))
    return CopyAction(id=name, ob_id=1, sources=sources, targets=targets, continue_on_error=tolerant, **more)


async def test_a_tolerated_copy_failure_does_not_stop_the_rest(clock: MockClock, host: Host) -> None:
    items = [copied(host, "bad", "combined.pem"), copied(host, "good", "combined.pem"), *reload(1)]
    host.allow(commands=commands(RELOAD))
    service = host.serve(RELOAD, 1, 1001)
    await host.deliver(1, items=items)
    old = (host.out / "bad.0").read_bytes()
    refuse(host, "bad")
    outcome = (await host.deliver(1, items=items))[1]
    assert outcome.kind is APPLIED and "tolerated: item bad: cannot create" in outcome.detail
    assert service.served == host.live(1)
    assert ((host.out / "bad.0").read_bytes() == old) and ((host.out / "good.0").read_bytes() != old)
    assert leftovers(host) == []


@pytest.mark.parametrize("together", [True, False], ids=["one-item", "two-items"])
async def test_a_tolerated_pair_is_written_completely_or_not_at_all(
    clock: MockClock, host: Host, together: bool
) -> None:
    pair: list[InstallItem] = [copied(host, "pair", "private.key", "fullchain.pem")]
    if not together:
        pair = [copied(host, "key", "private.key"), copied(host, "pair", "fullchain.pem")]
    items = [*pair, copied(host, "other", "combined.pem"), *reload(1)]
    host.allow(commands=commands(RELOAD))
    service = host.serve(RELOAD, 1, 1001)
    await host.deliver(1, items=items)
    targets = [host.out / "pair.0", host.out / ("pair.1" if together else "key.0")]
    old = [target.read_bytes() for target in targets]
    other = (host.out / "other.0").read_bytes()
    refuse(host, "pair.1" if together else "pair.0", verb="rename")  # the second half
    assert kinds(await host.deliver(1, items=items)) == {1: APPLIED}
    assert [target.read_bytes() for target in targets] == old
    assert (host.out / "other.0").read_bytes() != other and service.served == host.live(1)
    refuse(host)
    host.clock += 60
    await host.installer.converge((), items)
    assert all(target.read_bytes() != before for target, before in zip(targets, old, strict=True))
    assert service.served == host.live(1) and leftovers(host) == []


async def test_a_pair_is_tolerated_only_if_both_halves_are(clock: MockClock, host: Host) -> None:
    items = [copied(host, "key", "private.key"), copied(host, "cert", "fullchain.pem", tolerant=False)]
    await host.deliver(1, items=items)
    old = [(host.out / name).read_bytes() for name in ("key.0", "cert.0")]
    refuse(host, "key")
    assert kinds(await host.deliver(1, items=items)) == {1: FAILED}
    assert [(host.out / name).read_bytes() for name in ("key.0", "cert.0")] == old


async def test_tolerated_copies_are_rolled_back_with_the_rest(clock: MockClock, host: Host) -> None:
    """A tolerated copy that was written is undone if the group fails for another reason."""
    items = [copied(host, "c", "private.key", "fullchain.pem"), *reload(1)]
    host.allow(commands=commands(RELOAD))
    service = host.serve(RELOAD, 1, 1001)
    await host.deliver(1, items=items)
    old = (host.out / "c.0").read_bytes()
    service.deaf = True
    assert kinds(await host.deliver(1, items=items)) == {1: ROLLED_BACK}
    assert (host.out / "c.0").read_bytes() == old and leftovers(host) == []


# --- named and tried again -----------------------------------------------------------------------------------------


def calls(host: Host, *argvs: tuple[str, ...]) -> list[int]:
    return [host.proc.calls.count(argv) for argv in argvs]


async def test_a_tolerated_failure_is_reported_and_retried_until_it_succeeds(clock: MockClock, host: Host) -> None:
    items = [ExecAction(id="t", ob_id=1, cmd_argv=OTHER, continue_on_error=True), *reload(1)]
    host.allow(commands=commands(RELOAD, OTHER))
    host.serve(RELOAD, 1, 1001)
    host.proc.does[OTHER] = lambda: 9
    assert kinds(await host.deliver(1, items=items)) == {1: APPLIED}
    began = host.clock
    for attempts, wait in ((1, 30), (2, 60), (3, 120)):
        await host.start().recover()  # it is remembered
        record = host.installer.records[1]
        assert (record.stage, host.retry(1).attempts, record.pending) == (Stage.ACTIVATED, attempts, ("t",))
        assert "exited with 9" in host.retry(1).last_error
        assert host.installer.retry_times() == {1: began + wait}
        assert (await host.installer.converge_all(items)).kind is UNCHANGED, "it counts as deployed"
        assert calls(host, OTHER, RELOAD) == [attempts, 1]
        began = host.clock = began + wait
        if attempts < 3:
            await host.installer.converge((), items, only=[1])
    host.proc.does[OTHER] = lambda: 0
    assert kinds(await host.installer.converge((), items, only=[1])) == {1: APPLIED}
    record = host.installer.records[1]
    assert (host.retry(1).attempts, host.retry(1).last_error, host.retry(1).next_try_at, record.pending) == (
        0,
        "",
        0.0,
        (),
    )
    assert (host.installer.retry_times(), calls(host, OTHER, RELOAD)) == ({}, [4, 1])


async def test_a_copy_that_fails_again_does_not_run_its_command_again(clock: MockClock, host: Host) -> None:
    verify = ("/bin/true", "verify")
    items = [
        copied(host, "bad", "combined.pem"),
        ExecAction(id="r", cmd_argv=RELOAD, depends_on=("bad",), verify=VerifyCommand(cmd_argv=verify)),
    ]
    host.allow(commands=commands(RELOAD, verify))
    await host.deliver(1, items=items)
    refuse(host, "bad")
    assert kinds(await host.deliver(1, items=items)) == {1: APPLIED}
    assert calls(host, RELOAD, verify) == [2, 2]
    for attempts in (2, 3):
        host.clock += 7200
        outcome = (await host.installer.converge((), items, only=[1]))[1]
        assert outcome.kind is UNCHANGED and "cannot create" in outcome.detail
        assert host.retry(1).attempts == attempts
    assert calls(host, RELOAD, verify) == [2, 2]
    refuse(host)
    host.clock += 7200
    assert kinds(await host.installer.converge((), items, only=[1])) == {1: APPLIED}
    assert calls(host, RELOAD, verify) == [3, 3], "its file has come"
    assert not host.retry(1).attempts and not await host.installer.unfinished(items)


@pytest.mark.parametrize("what", ["copy", "exec"])
async def test_a_tolerated_verification_is_pending_until_it_succeeds(clock: MockClock, host: Host, what: str) -> None:
    verify = ("/bin/true", "verify")
    more: dict[str, Any] = {"continue_on_error": True, "verify": VerifyCommand(cmd_argv=verify)}
    items: list[InstallItem] = [ExecAction(id="p", ob_id=1, cmd_argv=OTHER, **more)]
    if what == "copy":
        items = [CopyAction(id="p", ob_id=1, sources=("combined.pem",), targets=(str(host.out / "p"),), **more)]
    host.allow(commands=commands(OTHER, verify))
    host.proc.does[verify] = lambda: 1
    assert kinds(await host.deliver(1, items=items)) == {1: APPLIED}
    asked = host.proc.calls.count(verify)
    host.clock += 7200
    await host.start().converge((), items, only=[1])
    assert host.proc.calls.count(verify) > asked and host.retry(1).attempts == 2
    host.proc.does[verify] = lambda: 0
    host.clock += 7200
    await host.installer.converge((), items, only=[1])
    assert not host.retry(1).attempts and host.proc.calls.count(OTHER) == (what == "exec")


async def test_a_tolerated_failure_is_recorded_for_its_own_certificate_only(clock: MockClock, host: Host) -> None:
    items = [ExecAction(id="t", ob_id=1, cmd_argv=OTHER, continue_on_error=True), *reload(1, 2)]
    host.allow(commands=commands(RELOAD, OTHER))
    host.serve(RELOAD, 1, 1001)
    host.serve(RELOAD, 2, 1002)
    host.proc.does[OTHER] = lambda: 9
    await host.deliver(1, 2, items=items)
    before, retry = host.installer.records[1], host.retry(1)
    assert (host.retry(1).attempts, host.retry(2).attempts) == (1, 0)
    assert kinds(await host.deliver(2, items=items))[2] is APPLIED
    assert (host.installer.records[1], host.retry(1), calls(host, OTHER)) == (before, retry, [1])
    host.clock += 60
    assert kinds(await host.deliver(1, items=items))[1] is APPLIED
    assert (host.retry(1).attempts, calls(host, OTHER)) == (2, [2]), "new material is tried whole"


async def test_a_tolerated_failure_does_not_delay_a_renewal(clock: MockClock, host: Host) -> None:
    items = [ExecAction(id="t", ob_id=1, cmd_argv=OTHER, continue_on_error=True)]
    host.allow(commands=commands(OTHER))
    host.proc.does[OTHER] = lambda: 9
    await host.deliver(1, items=items)
    for _ in range(9):
        host.clock = host.installer.retry_times()[1]
        await host.installer.converge((), items, only=[1])
    soon, later = (f"{datetime.fromtimestamp(host.clock + ahead, UTC):%H:%M}" for ahead in (600, 1200))
    host.allow(window=MaintenanceWindow(from_=soon, to=later))
    await host.deliver(1, items=items)
    opening, before = host.installer.window_times()[1], host.live(1)
    assert host.clock < opening <= host.clock + 600 < host.retry(1).next_try_at
    assert host.installer.retry_times() == {}, "its switch brings it again"
    host.clock = opening
    await host.installer.converge_all(items)
    assert host.live(1) != before


async def test_a_file_that_cannot_be_written_is_reported_without_other_work(clock: MockClock, host: Host) -> None:
    await host.deliver(1)
    refuse(host, "c")
    items = [copied(host, "c", "fullchain.pem", tolerant=False)]
    assert kinds(await host.installer.converge((), items)) == {1: FAILED}
    record = host.installer.records[1]
    assert (host.retry(1).attempts, record.pending) == (1, ("c",)) and "cannot create" in host.retry(1).last_error
    assert host.installer.retry_times() == {1: host.clock + 30}
