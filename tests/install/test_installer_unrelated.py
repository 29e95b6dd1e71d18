"""A command that fails concerns the certificates that it is about, and no others."""

from __future__ import annotations

import pytest
from install_host import APPLIED, FAILED, OTHER, RELOAD, ROLLED_BACK, Host, commands, kinds
from trio.testing import MockClock

from certctrl.model.plan import CopyAction, ExecAction, InstallItem
from certctrl.model.records import Stage

NOTIFY = ("/bin/true", "notify")


def connected() -> list[InstallItem]:
    """Return a command for each of two certificates, and one for both, which makes them one group."""
    return [
        ExecAction(id="first", ob_id=1, cmd_argv=RELOAD),
        ExecAction(id="second", ob_id=2, cmd_argv=OTHER),
        ExecAction(id="both", cmd_argv=NOTIFY),
    ]


@pytest.fixture
async def pair(clock: MockClock, host: Host) -> Host:
    """Two certificates of one group, both in service."""
    host.allow(commands=commands(RELOAD, OTHER, NOTIFY))
    await host.deliver(1, 2, items=connected())
    assert {record.stage for record in host.installer.records.values()} == {Stage.ACTIVATED}
    return host


async def test_a_command_for_a_certificate_that_is_not_here_does_not_run(clock: MockClock, host: Host) -> None:
    host.allow(commands=commands(RELOAD, OTHER))
    host.proc.does[OTHER] = lambda: 1
    copies = [
        CopyAction(id=name, ob_name=of, sources=("fullchain.pem",), targets=(str(host.out / f"{name}.pem"),))
        for name, of in (("a", "c1.example"), ("b", "typo.example"))
    ]
    items: list[InstallItem] = [
        *copies,
        ExecAction(id="reload a", cmd_argv=RELOAD, depends_on=("a",)),
        ExecAction(id="reload b", cmd_argv=OTHER, depends_on=("b",)),
    ]
    for _ in range(2):
        assert kinds(await host.deliver(1, items=items)) == {1: APPLIED}
    assert host.proc.calls == [RELOAD, RELOAD]


async def test_a_pending_command_of_another_certificate_does_not_roll_back_a_renewal(pair: Host) -> None:
    items = [*connected(), ExecAction(id="later", ob_id=2, cmd_argv=(*OTHER, "later"))]
    pair.allow(commands=commands(RELOAD, OTHER, NOTIFY, (*OTHER, "later")))
    pair.proc.does[*OTHER, "later"] = lambda: 1
    before = pair.live(1)
    outcomes = await pair.deliver(1, items=items, due_now=True)
    assert kinds(outcomes) == {1: APPLIED, 2: FAILED}
    assert "item later" in outcomes[2].detail and "item later" not in outcomes[1].detail
    assert pair.live(1) == pair.installer.records[1].facts.fingerprint_sha256 != before
    assert pair.retry(1).attempts == 0
    assert (pair.retry(2).attempts, pair.installer.records[2].pending) == (1, ("later",))
    pair.proc.does.clear()
    pair.clock = pair.installer.retry_times()[2]
    assert kinds(await pair.installer.converge((), items)) == {2: APPLIED}


async def test_work_that_depends_on_the_failed_command_of_another_certificate_is_left(pair: Host) -> None:
    items = [
        *connected(),
        ExecAction(id="later", ob_id=2, cmd_argv=(*OTHER, "later")),
        ExecAction(id="last", ob_id=2, cmd_argv=(*OTHER, "last"), depends_on=("later",)),
        CopyAction(id="c", ob_id=2, sources=("chain.pem",), targets=(str(pair.out / "c.pem"),), depends_on=("later",)),
    ]
    pair.allow(commands=commands(RELOAD, OTHER, NOTIFY, (*OTHER, "later"), (*OTHER, "last")))
    pair.proc.does[*OTHER, "later"] = lambda: 1
    assert kinds(await pair.deliver(1, items=items)) == {1: APPLIED, 2: FAILED}
    assert (*OTHER, "last") not in pair.proc.calls
    assert not (pair.out / "c.pem").exists()


async def test_two_renewals_at_once_of_which_one_command_fails(pair: Host) -> None:
    before = {1: pair.live(1), 2: pair.live(2)}
    pair.proc.does[OTHER] = lambda: int(pair.live(2) != before[2])
    outcomes = await pair.deliver(1, 2, items=connected())
    assert kinds(outcomes) == {1: APPLIED, 2: ROLLED_BACK}
    assert "item second" in outcomes[2].detail and "item second" not in outcomes[1].detail
    assert pair.live(1) == pair.installer.records[1].facts.fingerprint_sha256 != before[1]
    assert pair.live(2) == before[2]
    assert pair.retry(1).attempts == 0


async def test_a_stopped_service_does_not_mark_the_certificate_of_another(pair: Host) -> None:
    pair.proc.does[OTHER] = lambda: 1
    outcomes = await pair.deliver(1, 2, items=connected())
    assert kinds(outcomes) == {1: APPLIED, 2: ROLLED_BACK}
    assert "does not serve either" in outcomes[2].detail
    assert pair.retry(2).attempts == 1
    assert not pair.installer.records[1].failing and pair.retry(1).attempts == 0
    assert (await pair.deliver(1, items=connected()))[1].kind is APPLIED


async def test_a_failure_that_is_about_both_rolls_back_both(pair: Host) -> None:
    before = {1: pair.live(1), 2: pair.live(2)}
    pair.proc.does[NOTIFY] = lambda: 1
    assert set(kinds(await pair.deliver(1, 2, items=connected())).values()) == {ROLLED_BACK}
    assert {1: pair.live(1), 2: pair.live(2)} == before
