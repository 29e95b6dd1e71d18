"""The codes with which failures of deployments are reported, and whether an endpoint was seen to serve a certificate."""

from __future__ import annotations

import attrs
import pytest
from install_host import APPLIED, FAILED, OTHER, RELOAD, ROLLED_BACK, Host, commands, kinds, reload
from test_installer_windows import night
from trio.testing import MockClock

from certctrl.model.plan import CopyAction, ExecAction, InstallItem, Outcome, VerifyCommand
from certctrl.model.policy import Retirement


def codes(outcome: Outcome) -> str:
    return "" if outcome.cause is None else f"{outcome.cause.step} {outcome.cause.reason}"


async def renew(host: Host, items: list[InstallItem]) -> Outcome:
    return (await host.deliver(1, items=items))[1]


async def test_a_renewal_that_is_seen_at_its_endpoint_says_so(clock: MockClock, host: Host) -> None:
    items, _ = await host.with_service()
    outcome = await renew(host, items)
    assert (outcome.kind, codes(outcome)) == (APPLIED, "")
    assert [one.served for one in outcome.deployed] == [True]
    again = await host.installer.converge((), items, only={1})
    assert [one.served for one in again[1].deployed] == [False], "nothing was looked at this time"


async def test_a_renewal_without_an_endpoint_was_not_seen(clock: MockClock, host: Host) -> None:
    assert [one.served for one in (await renew(host, [])).deployed] == [False]


@pytest.mark.parametrize(
    ("what", "found"),
    [
        ("broken", "run command-failed"),
        ("deaf", "probe other-certificate"),
    ],
)
async def test_a_service_that_fails_is_the_cause(clock: MockClock, host: Host, what: str, found: str) -> None:
    items, service = await host.with_service()
    setattr(service, what, True)
    outcome = await renew(host, items)
    assert (outcome.kind, codes(outcome)) == (ROLLED_BACK, found)


async def test_a_service_that_is_not_running_is_the_cause(clock: MockClock, host: Host) -> None:
    items, service = await host.with_service()
    service.stopped = True
    outcome = await renew(host, items)
    assert (outcome.kind, codes(outcome)) == (FAILED, "run service-down")


async def test_a_verify_command_fails_in_the_step_of_probes(clock: MockClock, host: Host) -> None:
    host.allow(commands=commands(RELOAD, OTHER))
    items: list[InstallItem] = [
        ExecAction(id="r", ob_id=1, cmd_argv=RELOAD, verify=VerifyCommand(cmd_argv=OTHER)),
    ]
    await host.deliver(1, items=items)
    host.proc.does[OTHER] = lambda: 1
    outcome = await renew(host, items)
    assert (outcome.kind, codes(outcome)) == (ROLLED_BACK, "probe command-failed")


async def test_a_refused_item_is_the_cause(clock: MockClock, host: Host) -> None:
    outcome = await renew(host, reload(1, argv=OTHER))
    assert (outcome.kind, codes(outcome)) == (FAILED, "plan item-refused")


async def test_a_full_disk_is_the_cause(clock: MockClock, host: Host) -> None:
    items: list[InstallItem] = [CopyAction(id="c", ob_id=1, sources=("fullchain.pem",), targets=(str(host.out / "x"),))]
    host.fill(host.out)
    outcome = await renew(host, items)
    assert (outcome.kind, codes(outcome)) == (FAILED, "write disk-full")


async def test_a_closed_window_and_a_hold_are_reported_although_nothing_failed(clock: MockClock, host: Host) -> None:
    items, _ = await host.with_service()
    night(host)
    outcome = await renew(host, items)
    assert (outcome.kind, codes(outcome)) == (APPLIED, "switch window")
    host.installer._context.records.note(attrs.evolve(host.installer.records[1], held=True))
    assert codes(await renew(host, items)) == "switch held"


async def test_a_withdrawn_certificate_that_is_still_served_is_a_cause(clock: MockClock, host: Host) -> None:
    items, service = await host.with_service()
    service.deaf = True
    outcome = await host.installer.withdraw(1, revoked=True, items=items, how=Retirement.REMOVE)
    assert (outcome.kind, codes(outcome)) == (FAILED, "withdraw still-served")


async def test_a_revoked_certificate_that_is_kept_is_reported_as_kept(clock: MockClock, host: Host) -> None:
    items, _ = await host.with_service()
    outcome = await host.installer.withdraw(1, revoked=True, items=items, how=Retirement.KEEP)
    assert codes(outcome) == "withdraw kept"


async def test_causes_of_several_certificates_are_not_mixed(clock: MockClock, host: Host) -> None:
    host.allow(commands=commands(RELOAD, OTHER))
    items = [*reload(1), *reload(2, argv=OTHER)]
    broken = host.serve(RELOAD, 1, 1001)
    deaf = host.serve(OTHER, 2, 1002)
    assert kinds(await host.deliver(1, 2, items=items)) == {1: APPLIED, 2: APPLIED}
    broken.broken = deaf.deaf = True
    outcomes = await host.deliver(1, 2, items=items)
    assert {cert_id: codes(one) for cert_id, one in outcomes.items()} == {
        1: "run command-failed",
        2: "probe other-certificate",
    }
