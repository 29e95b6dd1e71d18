"""Planes on one database that order from one ACME CA, on both engines."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio
from acme_world import AcmeWorld, make_world
from engine_plane import WALL, plane_on
from scripted_ca import BASE, ScriptedCa, problem

from certctrl.plane.issuers.issuer import IssuerError
from certctrl.plane.storage.database import Database
from certctrl.plane.storage.keyring import Keyring


@pytest.fixture
def worlds(open_database: Callable[[], Database]) -> list[AcmeWorld]:
    """Three planes on one database."""
    keyring = Keyring.open(None)
    return [make_world(lambda: WALL, plane_on(open_database(), keyring)) for _ in range(3)]


async def test_all_planes_use_one_account(worlds: list[AcmeWorld], ca: ScriptedCa) -> None:
    """Also if all of them are the first: the key that is stored first is the key of all."""
    async with trio.open_nursery() as nursery:
        for number, world in enumerate(worlds):
            nursery.start_soon(world.issuer().issue, world.request(f"{number}.test"))
    assert list(ca.accounts) == [f"{BASE}/acct/1"]
    assert len(ca.orders) == 3


async def test_all_planes_keep_a_pause_and_a_budget(worlds: list[AcmeWorld], ca: ScriptedCa) -> None:
    status, _, body = problem("rateLimited", "slow down", 429)
    issuers = [world.issuer(budget="2/h") for world in worlds]
    await issuers[0].issue(worlds[0].request("a.test"))
    await issuers[1].issue(worlds[1].request("a.test"))
    with pytest.raises(IssuerError, match="the budget of le is used up"):
        await issuers[2].issue(worlds[2].request("a.test"))
    ca.hooks.append(
        lambda method, path, payload: (status, {"Retry-After": "600"}, body) if path == "/newOrder" else None
    )
    with pytest.raises(IssuerError, match="slow down"):
        await worlds[0].issuer(budget="3/h").issue(worlds[0].request("a.test"))
    for world in worlds:
        with pytest.raises(IssuerError, match="asked for a pause until") as caught:
            await world.issuer(budget="unlimited").issue(world.request("a.test"))
        assert caught.value.retry_after == pytest.approx(600)


async def test_an_order_continues_at_another_plane(worlds: list[AcmeWorld], ca: ScriptedCa) -> None:
    ca.hooks.append(
        lambda method, path, payload: problem("serverInternal", "busy", 500) if path.startswith("/finalize/") else None
    )
    request = worlds[0].request("a.test")
    with pytest.raises(IssuerError, match="busy"):
        await worlds[0].issuer().issue(request)
    ca.hooks.clear()
    memo = worlds[0].memos[-1]
    await worlds[1].issuer().issue(worlds[1].request("a.test", csr_der=request.csr_der, memo=memo))
    assert len(ca.orders) == 1 and len(ca.accounts) == 1
