"""Which orders a plane works on next, with both engines: a share for each issuer, and nobody waits behind the background."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import attrs
import pytest
import trio
from engine_plane import new_device, plane_on
from scripted_issuer import WALL, ScriptedCa

from certctrl.plane.core import Plane
from certctrl.plane.issuers.issuer import CertificateRequest, IssuedChain, IssuerContext
from certctrl.plane.issuers.registry import NewIssuer
from certctrl.plane.orders import claims
from certctrl.plane.orders.claims import crowded
from certctrl.plane.storage.database import Database
from certctrl.plane.storage.keyring import Keyring

PATIENCE = 120.0


@pytest.mark.parametrize(
    ("running", "full"),
    [
        ({}, []),
        ({"a": 1}, []),
        ({"a": 4}, []),
        ({"a": 5}, ["a"]),  # half of them are left
        ({"a": 5, "b": 2}, ["a"]),
        ({"a": 5, "b": 3}, ["a", "b"]),
        ({"a": 5, "b": 3, "c": 1}, ["a", "b", "c"]),
        ({"a": 6, "b": 3, "c": 1, "d": 1}, ["a", "b", "c", "d"]),  # one without an attempt still gets its first
        ({"a": 1, "b": 2}, []),
    ],
)
def test_an_issuer_has_as_many_attempts_as_are_left_for_others(running: dict[str, int], full: list[str]) -> None:
    assert crowded(running, 10) == full


@attrs.define
class Kind:
    """Issuers whose names start with ``hung`` never answer."""

    ca: ScriptedCa
    asked: list[tuple[str, str]] = attrs.field(factory=list)
    """Issuer and first name of each request."""

    def check_settings(self, settings: Mapping[str, Any], secrets: Mapping[str, bytes]) -> dict[str, Any]:
        return dict(settings)

    def make(self, settings: Mapping[str, Any], secrets: Mapping[str, bytes], context: IssuerContext) -> Any:
        kind = self

        class Issuer:
            async def issue(self, request: CertificateRequest) -> IssuedChain:
                kind.asked.append((context.name, request.names[0]))
                if context.name.startswith("hung"):
                    await trio.sleep_forever()
                return await kind.ca.sign(request)

        return Issuer()

    def requests(self, issuer: str) -> int:
        return sum(1 for name, _ in self.asked if name == issuer)


@attrs.define
class Scene:
    plane: Plane
    kind: Kind

    async def add(self, *issuers: str) -> None:
        for issuer in issuers:
            await self.plane.work(self.plane.issuers.put, NewIssuer(name=issuer, kind="partly", settings={}))

    async def issue(self, issuer: str, name: str = "a.example", **more: Any) -> int:
        return int((await self.plane.certificates.issue(1, [name], issuer=issuer, **more))["id"])

    async def until(self, condition: Callable[[], bool]) -> None:
        with trio.fail_after(PATIENCE):
            while not condition():
                await trio.sleep(0.01)

    @asynccontextmanager
    async def running(self) -> Any:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.plane.order_runner.run)
            yield
            nursery.cancel_scope.cancel()


@pytest.fixture
def scene(open_database: Callable[[], Database], monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(claims, "MAX_CONCURRENT", 8)
    monkeypatch.setattr(claims, "MAX_CLAIMED", 2)
    monkeypatch.setattr(claims, "SWEEP_SECONDS", 0.1)
    monkeypatch.setattr("certctrl.plane.orders.runner.DRAIN_SECONDS", 0.1)
    kind = Kind(ScriptedCa(lambda: WALL))
    monkeypatch.setattr("certctrl.plane.issuers.registry.installed_kinds", lambda: {"partly": kind})
    return Scene(plane_on(open_database(), Keyring.open(None), lambda: WALL), kind)


async def test_issuers_that_hang_delay_no_other(scene: Scene) -> None:
    await scene.add("hung-1", "hung-2", "le", "other")
    for issuer in ("hung-1", "hung-2"):
        for number in range(12):
            await scene.issue(issuer, f"{number}.{issuer}.example")
    async with scene.running():
        await scene.until(lambda: scene.kind.requests("hung-1") >= 4 and scene.kind.requests("hung-2") >= 1)
        for number in range(12):
            await scene.issue("le", f"{number}.example")
        await scene.issue("other", "other.example")
        await scene.until(lambda: scene.kind.requests("le") == 12 and scene.kind.requests("other") == 1)
        hung = scene.kind.requests("hung-1"), scene.kind.requests("hung-2")
    assert sum(hung) <= 8 + 1, hung
    assert min(hung) >= 1, hung


async def test_an_issuer_without_attempts_gets_one_however_many_hang(scene: Scene) -> None:
    hung = [f"hung-{number}" for number in range(12)]
    await scene.add(*hung, "le")
    for issuer in hung:
        await scene.issue(issuer, f"{issuer}.example")
    async with scene.running():
        await scene.until(lambda: len(scene.kind.asked) == 12)
        await scene.issue("le")
        await scene.until(lambda: scene.kind.requests("le") == 1)


async def test_an_order_that_is_waited_for_comes_before_renewals_in_the_background(scene: Scene) -> None:
    await scene.add("le")
    certs = [await scene.issue("le", f"{number}.example") for number in range(8)]
    while await scene.plane.order_runner.run_once():
        pass
    await scene.plane.bulk.renew(1, certs, "")
    await scene.issue("le", "waited.example")
    scene.kind.asked.clear()
    assert await scene.plane.order_runner.run_once() == 9
    order = [name for _, name in scene.kind.asked]
    assert order.index("waited.example") <= 1, order
    assert sorted(order) == sorted([*(f"{number}.example" for number in range(8)), "waited.example"])


async def test_an_operator_brings_a_renewal_forward(scene: Scene) -> None:
    """Its job is one, whichever way it was ordered first."""
    await scene.add("le")
    certs = [await scene.issue("le", f"{number}.example") for number in range(8)]
    while await scene.plane.order_runner.run_once():
        pass
    await scene.plane.bulk.renew(1, certs, "")
    await scene.plane.certificates.renew(1, certs[-1])
    scene.kind.asked.clear()
    assert await scene.plane.order_runner.run_once() == 8
    order = [name for _, name in scene.kind.asked]
    assert order.index("7.example") <= 1, order


async def test_an_issuer_with_many_renewals_that_wait_delays_those_of_no_other(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("certctrl.plane.orders.renewals.MAX_WAITING", 3)
    await scene.add("first", "le")
    device = await new_device(scene.plane)
    for issuer in ("first", "le"):
        for number in range(8):
            await scene.issue(issuer, f"{number}.{issuer}.example", device_ids=[device])
    while await scene.plane.order_runner.run_once():
        pass
    run = scene.plane.database.run
    await scene.plane.work(run, "UPDATE certificates SET renew_at = CASE WHEN issuer = 'le' THEN 2 ELSE 1 END")
    for _ in range(6):
        await scene.plane.renewals.round()
        await scene.plane.work(run, "UPDATE jobs SET due = 0 WHERE kind = 'renewals'")
    sql = "SELECT issuer, count(*) AS n FROM orders WHERE state = 'ready' GROUP BY issuer"
    ordered = {row["issuer"]: row["n"] for row in await scene.plane.work(scene.plane.database.all, sql)}
    assert set(ordered) == {"first", "le"}
    assert all(count <= 3 + 5 for count in ordered.values()), ordered
