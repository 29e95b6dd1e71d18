"""Kind of failure × state of the service: the files on disk afterwards, and the time of the next try.

The same table is in docs/services/README.md.
"""

from __future__ import annotations

import attrs
import pytest
from install_host import APPLIED, FAILED, OTHER, RELOAD, ROLLED_BACK, Host, Service, commands, kinds, reload
from trio.testing import MockClock

from certctrl.model.plan import CopyAction, ExecAction, InstallItem, VerifyTls
from certctrl.model.records import RetryKind, Stage

ITEMS = reload(1)


@pytest.fixture
async def service(clock: MockClock, host: Host) -> Service:
    """A running service that serves its first certificate."""
    host.allow(commands=commands(RELOAD, OTHER))
    service = host.serve(RELOAD, 1, 1001)
    assert kinds(await host.deliver(1, items=ITEMS)) == {1: APPLIED}
    return service


async def start(service: Service) -> None:
    """Start a stopped service: it reads its files."""
    service.stopped = False
    assert await service.reload() == 0


async def test_a_stopped_service_gets_the_new_files_and_serves_them_once_it_is_started(
    host: Host, service: Service
) -> None:
    old, service.stopped = host.live(1), True
    outcome = (await host.deliver(1, items=ITEMS))[1]
    record = host.installer.records[1]
    assert outcome.kind is FAILED and "not running: nothing listens at 127.0.0.1:1001" in outcome.detail
    assert host.live(1) == record.facts.fingerprint_sha256 != old, "the old one would not be served either"
    assert (record.stage, record.staged) == (Stage.COMMITTED, "")
    assert (host.retry(1).kind, host.retry(1).next_try_at) == (RetryKind.DOWN, host.clock + 15)
    await start(service)
    assert service.served == host.live(1), "at its start, without the agent"
    host.clock = host.installer.retry_times()[1]
    assert kinds(await host.installer.converge((), ITEMS)) == {1: APPLIED}
    assert (host.installer.records[1].stage, host.retry(1).attempts) == (Stage.ACTIVATED, 0)


async def test_a_stopped_service_is_retried_every_few_minutes_and_never_quarantined(
    host: Host, service: Service
) -> None:
    service.stopped = True
    await host.deliver(1, items=ITEMS)
    new, pauses = host.live(1), []
    for _ in range(9):
        pauses.append(host.retry(1).next_try_at - host.clock)
        host.clock = host.installer.retry_times()[1]
        assert kinds(await host.installer.converge((), ITEMS)) == {1: FAILED}
        assert host.live(1) == new, "nothing is switched to and fro"
    assert pauses == [15, 30, 60, 120, 240, 300, 300, 300, 300]


async def test_files_that_a_started_service_refuses_are_rolled_back(host: Host, service: Service) -> None:
    old, service.stopped = host.live(1), True
    await host.deliver(1, items=ITEMS)
    service.refuses.add(host.live(1))
    service.stopped = False  # started by hand, with the old pair from a backup
    host.clock = host.installer.retry_times()[1]
    assert kinds(await host.installer.converge((), ITEMS)) == {1: ROLLED_BACK}
    assert host.live(1) == service.served == old
    assert (host.retry(1).kind, host.retry(1).attempts) == (RetryKind.REFUSED, 1), "the time while it was down is over"


async def test_a_service_that_stops_because_of_the_new_files_gets_the_old_ones_back(
    host: Host, service: Service
) -> None:
    old, before = host.live(1), host.proc.does[RELOAD]

    def dies() -> object:
        service.stopped = service.stopped or host.live(1) != old
        return before()

    host.proc.does[RELOAD] = dies
    for _ in range(3):
        outcome = (await host.deliver(1, items=ITEMS))[1] if not host.retry(1).attempts else None
        if outcome is None:
            host.clock = host.retry(1).next_try_at
            outcome = (await host.installer.converge((), ITEMS))[1]
        assert (outcome.kind, host.live(1)) == (ROLLED_BACK, old), "it can be started with these"
        assert host.retry(1).kind is RetryKind.DOWN


async def test_a_service_whose_configuration_is_broken_keeps_the_old_files(host: Host, service: Service) -> None:
    old, service.broken = host.live(1), True
    outcome = (await host.deliver(1, items=ITEMS))[1]
    assert outcome.kind is ROLLED_BACK and "does not serve either" in outcome.detail
    for _ in range(12):
        assert (host.live(1), service.served) == (old, old)
        assert host.retry(1).kind is RetryKind.DOWN and host.retry(1).next_try_at - host.clock <= 300
        host.clock = host.retry(1).next_try_at
        await host.installer.converge((), ITEMS)
    service.broken = False
    host.clock = host.retry(1).next_try_at
    assert kinds(await host.installer.converge((), ITEMS)) == {1: APPLIED}
    assert service.served == host.live(1) != old


async def test_a_running_service_that_refuses_the_new_files_serves_the_old_ones(host: Host, service: Service) -> None:
    old, real = host.live(1), service.reload

    async def picky() -> int:
        return 3 if host.live(1) != old else await real()

    host.proc.does[RELOAD] = picky
    assert kinds(await host.deliver(1, items=ITEMS)) == {1: ROLLED_BACK}
    assert host.live(1) == service.served == old
    assert (host.retry(1).kind, host.retry(1).attempts) == (RetryKind.REFUSED, 1)


async def test_the_probe_of_a_stopped_service_fails_alike(host: Host, service: Service) -> None:
    """The reload "succeeds", as that of PostgreSQL, and only the probe notices."""
    old, service.stopped = host.live(1), True
    host.proc.does[RELOAD] = lambda: 0
    outcome = (await host.deliver(1, items=ITEMS))[1]
    assert outcome.kind is FAILED and host.live(1) != old and host.retry(1).kind is RetryKind.DOWN


async def test_other_services_of_the_certificate_get_it(host: Host, service: Service) -> None:
    verify = VerifyTls(host="127.0.0.1", port=2001)
    items = [*ITEMS, ExecAction(id="other", ob_id=1, cmd_argv=OTHER, verify=verify, depends_on=("c",))]
    items += [CopyAction(id="c", ob_id=1, sources=("chain.pem",), targets=(str(host.out / "c.pem"),))]
    other = host.serve(OTHER, 1, 2001)
    assert kinds(await host.deliver(1, items=items)) == {1: APPLIED}
    service.stopped = True
    assert kinds(await host.deliver(1, items=items)) == {1: FAILED}
    assert other.served == host.live(1)
    assert host.installer.records[1].facts.fingerprint_sha256 == host.live(1)


async def test_where_no_endpoint_is_named_the_old_files_return(host: Host, service: Service) -> None:
    """It is unknown whether the service is down, or why."""
    old, items = host.live(1), [attrs.evolve(item, verify=None) for item in ITEMS if isinstance(item, ExecAction)]
    await host.installer.converge((), items)
    service.stopped = True
    assert kinds(await host.deliver(1, items=items)) == {1: ROLLED_BACK}
    assert host.live(1) == old and host.retry(1).kind is RetryKind.DOWN


async def test_the_endpoint_of_a_copy_counts_for_its_command(host: Host, service: Service) -> None:
    """As in the recipes: the copy carries the probe."""
    items: list[InstallItem] = [
        CopyAction(
            id="c", ob_id=1, sources=("chain.pem",), targets=(str(host.out / "c.pem"),),
            verify=VerifyTls(host="127.0.0.1", port=1001),
        ),
        ExecAction(id="r", cmd_argv=RELOAD, depends_on=("c",)),
    ]  # fmt: skip
    assert (await host.installer.converge_all(items)).ok
    old, service.stopped = host.live(1), True
    assert kinds(await host.deliver(1, items=items)) == {1: FAILED}
    assert host.live(1) != old and host.retry(1).kind is RetryKind.DOWN
    assert set(host.installer.records[1].pending) == {"c", "r"}


async def test_a_command_that_is_due_while_its_service_is_down_is_retried_soon(host: Host, service: Service) -> None:
    """Nothing is switched: the item is new."""
    service.stopped = True
    items = [*ITEMS, ExecAction(id="new", ob_id=1, cmd_argv=OTHER, depends_on=("r1",))]
    host.proc.does[OTHER] = lambda: 1
    assert kinds(await host.installer.converge((), items)) == {1: FAILED}
    assert host.retry(1).kind is RetryKind.DOWN


async def test_a_first_delivery_waits_for_its_service_in_minutes(clock: MockClock, host: Host) -> None:
    host.allow(commands=commands(RELOAD))
    host.serve(RELOAD, 1, 1001, stopped=True)
    assert kinds(await host.deliver(1, items=ITEMS)) == {1: FAILED}
    assert host.live(1) and host.retry(1).kind is RetryKind.DOWN


async def test_a_withdrawal_while_the_service_is_down_is_retried_soon(host: Host, service: Service) -> None:
    service.stopped = True
    outcome = await host.installer.withdraw(1, revoked=False, items=ITEMS)
    assert outcome.kind is FAILED and host.retry(1).kind is RetryKind.DOWN


async def test_no_pause_is_longer_than_a_tenth_of_the_remaining_life(host: Host, service: Service) -> None:
    service.broken = True
    await host.deliver(1, items=ITEMS)
    left = host.installer.records[1].facts.not_after - host.clock
    host.clock += left - 900  # a quarter of an hour is left
    pauses = []
    for _ in range(8):
        host.clock = max(host.clock, host.retry(1).next_try_at)
        await host.installer.converge((), ITEMS)
        life = host.installer.records[1].facts.not_after - host.clock
        pauses.append((host.retry(1).next_try_at - host.clock, max(60, life / 10)))
    assert all(pause <= most + 0.001 for pause, most in pauses), pauses
    assert pauses[-1][0] == 60
