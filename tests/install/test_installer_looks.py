"""Looks at endpoints between deployments: what they say, and what they leave alone."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
import trio
from install_host import APPLIED, RELOAD, Host, Service, commands, kinds, reload
from trio.testing import MockClock

from certctrl.errors import ProbeFault
from certctrl.install.deploy import looks
from certctrl.install.probe.looked import Leaf, Look
from certctrl.model.plan import ExecAction, InstallItem, VerifyTls
from certctrl.model.records import Standing

ITEMS = reload(1)


@pytest.fixture
async def service(autojump_clock: MockClock, host: Host) -> Service:
    """A running service that serves its first certificate."""
    host.allow(commands=commands(RELOAD))
    service = host.serve(RELOAD, 1, 1001)
    assert kinds(await host.deliver(1, items=ITEMS)) == {1: APPLIED}
    return service


async def seen(host: Host, items: Any = ITEMS, only: Any = None) -> dict[int, list[tuple[str, ProbeFault | None]]]:
    found = await host.installer.look(items, only)
    return {cert_id: [(one.endpoint, one.fault) for one in served] for cert_id, served in found.served.items()}


WHERE = "127.0.0.1:1001"


async def test_what_an_endpoint_serves(host: Host, service: Service) -> None:
    (one,) = (await host.installer.look(ITEMS)).served[1]
    facts = host.installer.records[1].facts
    assert one.leaf == Leaf(fingerprint=facts.fingerprint_sha256, serial=facts.serial, not_after=facts.not_after)
    assert (one.fault, service.reloads) == (None, 1)
    service.served = "another"
    (one,) = (await host.installer.look(ITEMS)).served[1]
    assert (one.fault, one.leaf and one.leaf.fingerprint) == (ProbeFault.OTHER, "another")
    service.stopped = True
    assert (await seen(host))[1][0][1] is ProbeFault.REFUSED


async def test_a_service_that_restarts_is_not_wrong(host: Host, service: Service) -> None:
    service.stopped = True
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def start() -> None:
            await trio.sleep(looks.CONFIRM_SECONDS / 2)
            service.stopped = False

        assert (await seen(host))[1][0][1] is None


async def test_a_deployment_of_the_same_certificate_makes_it_unsure(host: Host, service: Service) -> None:
    locks = host.installer._locks
    async with locks.held({"cert:1"}):
        asked = host.probe.looks
        found = await host.installer.look(ITEMS)
        assert (found.served, found.unsure) == ({}, {1})
        assert host.probe.looks == asked, "nobody asks beside it"
    with locks.claim({"cert:1"}):
        assert (await host.installer.look(ITEMS)).unsure == {1}
    assert (await host.installer.look(ITEMS)).unsure == frozenset()


async def test_a_deployment_that_overtakes_a_look_counts(host: Host, service: Service) -> None:
    async def overtaken(*_: Any, **__: Any) -> Look:
        await host.deliver(1, items=ITEMS)
        return Look(fault=ProbeFault.NO_TLS)

    host.probe.look = overtaken
    found = await host.installer.look(ITEMS)
    assert (found.served, found.unsure) == ({}, {1})


async def test_only_certificates_of_this_plane_that_are_in_use_are_looked_at(host: Host, service: Service) -> None:
    assert await seen(host, only=[2]) == {}
    record = host.installer.records[1]
    for standing in (Standing.FOREIGN, Standing.UNLISTED, Standing.UNASSIGNED):
        await host.installer.update([attrs.evolve(record, standing=standing)])
        assert await seen(host) == {}
    await host.installer.update([record])
    assert await seen(host, []) == {1: []}, "no item names an endpoint"
    off = [attrs.evolve(item, enabled=False) for item in ITEMS]
    assert await seen(host, off) == {1: []}
    assert await seen(host, [attrs.evolve(item, refused="no") for item in ITEMS]) == {1: []}


async def test_an_endpoint_that_must_not_be_asked_says_nothing(host: Host, service: Service) -> None:
    async def not_ours(*_: Any, **__: Any) -> Look:
        return Look(fault=ProbeFault.NOT_OURS)

    host.probe.look = not_ours
    assert await seen(host) == {1: []}


async def test_an_endpoint_of_two_items_is_asked_once(host: Host, service: Service) -> None:
    (first,) = [item for item in ITEMS if isinstance(item, ExecAction)]
    probe = host.probe
    before = probe.looks
    assert await seen(host, [*ITEMS, attrs.evolve(first, id="again")]) == {1: [(WHERE, None)]}
    assert probe.looks == before + 1


async def test_only_the_certificate_that_was_served_is_proven(host: Host, service: Service) -> None:
    await host.deliver(2)
    both: list[InstallItem] = [
        attrs.evolve(item, ob_id=None, ob_type=None, verify=VerifyTls(host="127.0.0.1", port=1001)) for item in ITEMS
    ]
    assert await seen(host, both) == {1: [(WHERE, None)], 2: []}
    service.stopped = True
    assert await seen(host, both) == {one: [(WHERE, ProbeFault.REFUSED)] for one in (1, 2)}


async def test_few_endpoints_are_asked_at_once(host: Host, service: Service) -> None:
    running, most = 0, 0

    async def slow(*_: Any, **__: Any) -> Look:
        nonlocal running, most
        running, most = running + 1, max(most, running + 1)
        await trio.sleep(1)
        running -= 1
        return Look(right=frozenset())

    host.probe.look = slow
    (first,) = [item for item in ITEMS if isinstance(item, ExecAction)]
    items = [attrs.evolve(first, id=f"i{port}", verify=VerifyTls(host="127.0.0.1", port=port)) for port in range(1, 21)]
    await host.installer.look(items)
    assert most == looks.AT_ONCE


async def test_a_deployment_between_the_looks_of_a_round_makes_it_unsure(host: Host, service: Service) -> None:
    """Found by review: what the old one's endpoint served was reported of the new one."""
    both = [*reload(1), *reload(2)]
    wrong = host.serve(RELOAD, 2, 1002)
    await host.deliver(2, items=both)
    wrong.served, wrong.deaf = "another", True
    found: list[Any] = []
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def look() -> None:
            found.append(await host.installer.look(both))

        await trio.sleep(looks.CONFIRM_SECONDS / 2)
        assert (await host.deliver(1, items=ITEMS))[1].kind is APPLIED
    assert (found[0].served.keys(), found[0].unsure) == ({2}, {1})
    assert (await seen(host, both))[1] == [(WHERE, None)]
