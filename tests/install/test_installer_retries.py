"""Failed work is retried when it is due, not because of other work; new work does not wait."""

from __future__ import annotations

import attrs
import pytest
from install_host import APPLIED, FAILED, OTHER, RELOAD, ROLLED_BACK, UNCHANGED, Host, commands, kinds, reload
from planner_world import HOST
from trio.testing import MockClock

from certctrl.install.deploy.groups import Group, SwitchedPlan
from certctrl.install.deploy.observe import ObservedState
from certctrl.install.deploy.staging import Candidate
from certctrl.install.plan.render import plan_lines
from certctrl.install.plan.values import DesiredCert, InstallPlan
from certctrl.model.certificate import CertFacts
from certctrl.model.plan import CopyAction, ExecAction, InstallItem, ObjectType
from certctrl.model.records import RetryKind, Stage


async def failing(host: Host) -> list[InstallItem]:
    """Deploy a certificate, then add a command for it that fails."""
    host.allow(commands=commands(RELOAD, OTHER))
    await host.deliver(1)
    host.proc.does[RELOAD] = lambda: 1
    items: list[InstallItem] = [ExecAction(id="r", ob_id=1, cmd_argv=RELOAD)]
    assert kinds(await host.installer.converge((), items)) == {1: FAILED}
    assert (host.proc.calls, host.installer.records[1].pending) == ([RELOAD], ("r",))
    return items


async def test_a_failed_command_does_not_run_again_before_it_is_due(clock: MockClock, host: Host) -> None:
    items = await failing(host)
    record, retry = host.installer.records[1], host.retry(1)
    for _ in range(5):
        outcome = await host.installer.converge_all(items)
        assert (outcome.kind, outcome.detail, outcome.transient) == (FAILED, host.retry(1).last_error, True)
        host.clock += 1
    await host.start().converge((), items)
    assert (host.proc.calls, host.installer.records[1], host.retry(1)) == ([RELOAD], record, retry)
    assert plan_lines(await host.installer.plan(items)), "it is there to be done by hand"
    assert not await host.installer.unfinished(items)
    host.clock = host.installer.retry_times()[1]
    assert await host.installer.unfinished(items)
    assert kinds(await host.installer.converge((), items)) == {1: FAILED}
    assert (len(host.proc.calls), host.retry(1).attempts) == (2, 2)


@pytest.mark.parametrize("how", ["by hand", "new terms", "new material", "another one revoked"])
async def test_requested_and_new_work_does_not_wait(clock: MockClock, host: Host, how: str) -> None:
    items = await failing(host)
    host.proc.does.clear()
    match how:
        case "by hand":
            assert (await host.installer.converge_all(items, due_now=True)).kind is APPLIED
        case "new terms":
            host.installer.retries.due_now()
            assert (await host.installer.converge_all(items)).kind is APPLIED
        case "new material":
            assert kinds(await host.deliver(1, items=items)) == {1: APPLIED}
        case "another one revoked":
            items = [ExecAction(id="r", cmd_argv=RELOAD)]  # the same command, now about both
            await host.deliver(2)
            calls = len(host.proc.calls)
            assert (await host.installer.withdraw(2, revoked=True, items=items)).kind is APPLIED
            assert len(host.proc.calls) == calls + 1, "what was revoked must not be served while another one waits"
    assert host.proc.calls[-1] == RELOAD


async def test_a_new_item_does_not_wait_for_failed_ones(clock: MockClock, host: Host) -> None:
    items = [*await failing(host), ExecAction(id="o", ob_id=1, cmd_argv=OTHER)]
    record, retry = host.installer.records[1], host.retry(1)
    outcome = (await host.installer.converge((), items))[1]
    assert host.proc.calls == [RELOAD, OTHER]
    assert (outcome.kind, host.installer.records[1], host.retry(1)) == (FAILED, record, retry), "it still fails"


async def test_a_certificate_is_not_proven_while_its_command_is_not_due(clock: MockClock, host: Host) -> None:
    items = reload(1)
    host.allow(commands=commands(RELOAD))
    host.serve(RELOAD, 1, 1001, broken=True)
    assert kinds(await host.deliver(1, items=items)) == {1: FAILED}
    record, retry = host.installer.records[1], host.retry(1)
    assert (record.stage, record.pending) == (Stage.COMMITTED, ("r1",))
    assert (await host.installer.converge_all(items)).kind is FAILED
    assert (host.installer.records[1], host.retry(1), host.proc.calls) == (record, retry, [RELOAD])


async def test_a_generation_that_failed_is_not_made_again_before_it_is_due(clock: MockClock, host: Host) -> None:
    items: list[InstallItem] = [
        CopyAction(id="c", ob_id=1, sources=("combined.pem",), targets=(str(host.out / "a.pem"),)),
        ExecAction(id="r", cmd_argv=RELOAD, depends_on=("c",)),
    ]
    host.allow(commands=commands(RELOAD))
    await host.deliver(1)
    host.proc.does[RELOAD] = lambda: 1
    await host.installer.converge((), items)
    tried = len(host.proc.calls)
    ids = host.installer._context.generations.ids("c1.example")
    await host.installer.converge((), items)
    assert len(host.proc.calls) == tried and host.installer._context.generations.ids("c1.example") == ids
    await host.installer.converge((), items, due_now=True)
    assert len(host.proc.calls) > tried
    host.proc.does.clear()
    host.clock += 120
    await host.installer.converge((), items)
    assert (host.out / "a.pem").exists() and not host.retry(1).attempts


async def test_a_file_of_a_new_item_is_made_while_others_are_not_due(clock: MockClock, host: Host) -> None:
    target = host.out / "a.pem"
    items = [
        *await failing(host),
        CopyAction(id="c", ob_id=1, sources=("combined.pem",), targets=(str(target),)),
    ]
    await host.installer.converge((), items)
    assert (host.layout.certs / "c1.example.key").read_bytes() in target.read_bytes()


async def test_pending_items_that_no_longer_exist_are_forgotten(clock: MockClock, host: Host) -> None:
    await failing(host)
    assert (await host.installer.converge_all([])).kind is UNCHANGED
    assert (host.retry(1).attempts, host.retry(1).last_error, host.installer.retry_times()) == (0, "", {})


async def test_a_rolled_back_certificate_is_not_due_until_requested(clock: MockClock, host: Host) -> None:
    """Its service accepted neither the new pair nor the old one."""
    items, service = await host.with_service()
    service.broken = True
    outcome = (await host.deliver(1, items=items))[1]
    assert outcome.kind is ROLLED_BACK and "does not serve either" in outcome.detail
    calls = len(host.proc.calls)
    assert (await host.installer.converge_all(items)).kind is FAILED
    assert len(host.proc.calls) == calls
    service.broken = False
    assert (await host.installer.converge_all(items, due_now=True)).kind is APPLIED
    assert service.served == host.live(1) and not host.installer.records[1].staged


def test_certificates_that_are_not_due_are_not_unproven() -> None:
    """Otherwise another failure in its group would count as its own."""
    unrecorded = Candidate(facts=CertFacts(cert_id=1, name="a"), generation="g")
    desired = DesiredCert(facts=CertFacts(cert_id=1, name="a"), live="g", generation="g", pending=("r",))
    observed = ObservedState(certs={1: desired}, cas={}, destinations={}, host=HOST, unrecorded={1: unrecorded})

    def unproven(plan: InstallPlan) -> dict[int, Candidate]:
        around = SwitchedPlan(items=(), candidates={})
        around.plan, around.observed = plan, observed
        return around.unproven(Group.of(["cert:1"]))

    assert (unproven(InstallPlan()), unproven(InstallPlan(not_due=frozenset({1})))) == ({1: unrecorded}, {})


# --- items about no certificate ---------------------------------------------------------------------------------------


def for_cas(host: Host, name: str = "r", argv: tuple[str, ...] = RELOAD) -> list[InstallItem]:
    """Return a copy of a CA and a command after it."""
    copied = CopyAction(
        id=f"{name}-copy", ob_type=ObjectType.CA, ob_id=3, sources=("ca.pem",), targets=(f"{host.out}/{name}.pem",)
    )
    return [copied, ExecAction(id=name, cmd_argv=argv, depends_on=(copied.id,))]


async def test_a_command_about_cas_alone_is_retried_in_its_own_time(clock: MockClock, host: Host) -> None:
    host.allow(commands=commands(RELOAD, OTHER))
    items = for_cas(host)
    host.proc.does[RELOAD] = lambda: 1
    assert not (await host.installer.import_ca(3, "ca", host.maker.issuer.chain_pem, items)).ok
    tries = [RELOAD, RELOAD]  # once more for the restored file
    assert host.proc.calls == tries
    assert sorted(host.installer.retries.of_items()) == ["r", "r-copy"], "the copy was undone with it"
    retry = host.installer.retries.of_items()["r"]
    assert (retry.resource, retry.kind, retry.attempts) == ("item:r", RetryKind.PENDING, 1)
    assert host.installer.retry_times() == {0: retry.next_try_at} and retry.next_try_at > host.clock
    for _ in range(3):  # signals, comparisons and restarts do not run it again before it is due
        outcome = await host.start().converge_all(items)
        assert (outcome.kind, outcome.detail, outcome.transient) == (FAILED, retry.last_error, True)
        assert not await host.installer.unfinished(items)
    assert host.proc.calls == tries
    more = [*items, *for_cas(host, "other", OTHER)]
    assert (await host.installer.converge_all(more)).kind is FAILED
    assert host.proc.calls == [*tries, OTHER], "a new item does not wait for one that failed"
    host.clock = host.installer.retry_times()[0]
    assert (await host.installer.converge_all(more)).kind is FAILED
    assert host.proc.calls.count(RELOAD) == 2 * len(tries)
    assert host.installer.retries.of_items()["r"].attempts == 2
    host.proc.does.clear()
    assert (await host.installer.converge_all(more, due_now=True)).ok
    assert host.proc.calls.count(RELOAD) == 2 * len(tries) + 1 and host.installer.retry_times() == {}
    assert host.start().retries.of_items() == {}


async def test_a_tolerated_failure_about_cas_alone_is_retried_as_well(clock: MockClock, host: Host) -> None:
    host.allow(commands=commands(RELOAD))
    copied, run_it = for_cas(host)
    items = [copied, attrs.evolve(run_it, continue_on_error=True)]
    host.proc.does[RELOAD] = lambda: 1
    await host.installer.import_ca(3, "ca", host.maker.issuer.chain_pem, items)
    assert list(host.installer.retries.of_items()) == ["r"]
    assert list(host.start().retries.of_items()) == ["r"], "also after a restart"


async def test_an_item_that_is_gone_is_not_retried(clock: MockClock, host: Host) -> None:
    host.allow(commands=commands(RELOAD))
    host.proc.does[RELOAD] = lambda: 1
    await host.installer.import_ca(3, "ca", host.maker.issuer.chain_pem, for_cas(host))
    assert host.installer.retry_times()
    assert (await host.installer.converge_all([])).kind is UNCHANGED
    assert host.installer.retry_times() == {}


@pytest.mark.parametrize("first", ["failure", "success"])
async def test_a_failure_about_no_certificate_is_reported_with_a_success(
    clock: MockClock, host: Host, first: str
) -> None:
    """Each group of items has its own result; none may hide another's."""
    host.allow(commands=commands(RELOAD, OTHER))
    host.proc.does[RELOAD] = lambda: 1
    bad, good = for_cas(host), for_cas(host, "other", OTHER)
    items = [*bad, *good] if first == "failure" else [*good, *bad]
    outcome = await host.installer.import_ca(3, "ca", host.maker.issuer.chain_pem, items)
    assert outcome.kind is FAILED and "exited with 1" in outcome.detail
