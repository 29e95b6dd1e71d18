"""Every pair of an older and a newer agent and plane, by feature: the host converges, and nothing is used without both.

The whole agent, the whole plane and the network of the simulation, under a virtual clock, with its auditor. A pair in which one
side lacks a feature has to behave as before the feature existed; so does one that loses a feature by a downgrade.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

import attrs
import pytest
import trio
from compat.peers import LIST, EarlierPlane, earlier_agent
from simulation.batchauditor import renew_together
from simulation.network import Exchange
from simulation.operators import VALIDITY
from simulation.scene import QUIET, Scene, play
from simulation.world import DEVICE, USER, Setting, template

from certctrl.model.features import (
    AGENT_FEATURES,
    ATOMIC_BATCH,
    BATCH_FETCH,
    DELTA,
    PLANE_FEATURES,
    PRIORITY,
    PUSH,
    SERVING_REPORTS,
)
from certctrl.store.disk.atomic import remove_file

ACCESS_SECONDS = 900
"""Lifetime of a token: how long a host may believe what a plane announced before its downgrade."""
SETTING = attrs.evolve(QUIET, interval=30.0, reconcile=1200, serving=60, access_seconds=ACCESS_SECONDS)
PATIENCE = 7200.0


def signals_of(exchange: Exchange) -> list[dict[str, Any]]:
    if not exchange.is_poll or exchange.answer is None or exchange.answer.status != 200:
        return []
    return list(json.loads(exchange.answer.body)["data"]["signals"])


def reports_serving(exchange: Exchange) -> bool:
    return exchange.path.endswith("/notify") and any(one["type"] == "endpoints" for one in exchange.json["events"])


def uses_delta(exchange: Exchange) -> bool:
    conditional = exchange.path.startswith(LIST) and "if-none-match" in exchange.headers
    return "updated_since" in exchange.query or conditional or "etags" in (exchange.json or {})


USES: dict[str, Callable[[Exchange], bool]] = {
    BATCH_FETCH: lambda exchange: exchange.path == "/apiv1/devices/self/deploy-materials",
    DELTA: uses_delta,
    ATOMIC_BATCH: lambda exchange: any("batch" in signal["ref"] for signal in signals_of(exchange)),
    PRIORITY: lambda exchange: exchange.is_look or any("priority" in signal for signal in signals_of(exchange)),
    PUSH: lambda exchange: exchange.path == "/apiv1/devices/self/stream",
    SERVING_REPORTS: reports_serving,
}
"""Feature -> whether an exchange uses it."""
EVERYTHING = frozenset(USES)
EXISTING = frozenset(PLANE_FEATURES) | frozenset(AGENT_FEATURES)
SHOWN = EXISTING & {ATOMIC_BATCH, BATCH_FETCH, DELTA, PRIORITY, SERVING_REPORTS}
"""Features that the tour uses if both sides have them."""


class Tour:
    """A host and its plane: renewals at once, comparisons, a revocation, an unassignment, restarts."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.ids: list[int] = []
        self.renewals = 0
        self.lacking_plane: set[str] = set()
        self.mark = 0

    def plane(self, lacking: Iterable[str]) -> None:
        """Let the plane be of a release without these features, from now on."""
        app = self.scene.network.app
        assert app is not None
        self.lacking_plane.clear()
        self.lacking_plane.update(lacking)
        if not isinstance(app, EarlierPlane):
            self.scene.network.app = EarlierPlane(app, self.lacking_plane)

    def used(self, feature: str) -> int:
        """Return how many exchanges since the last call of `look` used a feature."""
        return sum(map(USES[feature], self.scene.sent[self.mark :]))

    def look(self) -> None:
        """Look only at what is sent from now on."""
        self.mark = len(self.scene.sent)

    async def begin(self) -> None:
        scene = self.scene
        await scene.until(lambda: len(scene.polls) >= 2)
        for number in range(5):
            row = await scene.issue(f"tour{number}.example")
            scene.operators.introduce(row["id"], row["domain_name"])
            self.ids.append(row["id"])
        scene.operators.configured = [*self.ids]
        await scene.plane.installs.put(DEVICE, scene.operators.items(self.ids))
        await self.in_step()

    async def go_round(self) -> None:
        """Renew all certificates at once, compare everything, and restart."""
        scene = self.scene
        for cert_id in self.ids:
            await scene.plane.certificates.renew(USER, cert_id)
        await self.in_step()
        await renew_together(scene.world, self.ids[2:], VALIDITY)
        await self.in_step()
        done = scene.agent.counters.reconciles["ok"]
        await scene.plane.resync(USER, DEVICE, "the tour")
        await scene.until(lambda: scene.agent.counters.reconciles["ok"] > done, PATIENCE)
        with scene.plane.database.transaction():  # once more for what is already here
            scene.plane.stream.append(DEVICE, "cert.renewed", {"cert_id": self.ids[0]})
        await self.in_step()

    async def restart(self, *, kill: bool = False) -> None:
        starts, host = self.scene.host.starts, self.scene.host
        if kill:
            host.kill(power=False)
        else:
            await host.stop()
        await self.scene.until(lambda: host.starts > starts)

    async def end(self) -> None:
        """Revoke one and unassign one."""
        plane, (first, second) = self.scene.plane, self.ids[:2]
        await plane.certificates.revoke(USER, first)
        await plane.certificates.unassign(USER, DEVICE, second)
        self.scene.operators.configured = self.ids[2:]
        await plane.installs.put(DEVICE, self.scene.operators.items(self.ids[2:]))
        await self.in_step()

    async def in_step(self) -> None:
        """Wait until the host matches the plane, and all outcomes are there."""
        end, reasons = trio.current_time() + PATIENCE, ["not looked yet"]
        while reasons:
            assert trio.current_time() < end, f"{reasons}\n{self.scene.log}"
            await trio.sleep(5)
            if self.scene.ready:
                reasons = self.scene.operators.differences() or self.scene.world.auditor.undelivered()

    async def token_refreshed(self) -> None:
        """Wait until the plane has announced its features again, and answered what it was asked before that."""
        refreshes = self.scene.world.auditor.counts["refreshes"]
        await self.scene.until(lambda: self.scene.world.auditor.counts["refreshes"] > refreshes, 2 * ACCESS_SECONDS)
        await trio.sleep(60)


def tour(
    scenario: Callable[[Tour], Any],
    *,
    agent: set[str] | frozenset[str] = frozenset(),
    plane: Iterable[str] = (),
    setting: Setting = SETTING,
) -> None:
    """Run a scenario in which agent and plane lack these features at first."""

    async def run(scene: Scene) -> None:
        made = Tour(scene)
        made.plane(plane)
        await scenario(made)

    def prepare(scene: Scene) -> None:
        if plane:  # the host was registered at this plane
            remove_file(scene.host.disk, scene.world.layout.plane_features)

    template()  # registered by the present agent
    with earlier_agent(agent):
        play(run, setting, prepare=prepare)


def lacks(feature: str) -> frozenset[str]:
    return EVERYTHING if feature == "all" else frozenset({feature})


def only_in_the_campaign(*values: str) -> Any:
    return pytest.param(*values, marks=pytest.mark.campaign, id="-".join(values))


EACH = pytest.mark.parametrize("feature", ["all", *map(only_in_the_campaign, USES)])
PAIRS = [("all", newer) for newer in ("neither", "agent", "plane", "both")]
PAIRS += [(feature, newer) for feature in USES for newer in ("agent", "plane")]


@pytest.mark.parametrize(
    ("feature", "newer"), [*PAIRS, *(only_in_the_campaign(one, newer) for one in USES for newer in ("neither", "both"))]
)
def test_a_pair_uses_what_both_sides_have(feature: str, newer: str) -> None:
    missing = lacks(feature)
    agent = frozenset() if newer in ("agent", "both") else missing
    plane = frozenset() if newer in ("plane", "both") else missing

    async def scenario(tour: Tour) -> None:
        await tour.begin()
        if plane:  # until then, the agent knows of no feature
            await tour.token_refreshed()
        await tour.go_round()
        await tour.restart()
        await tour.go_round()
        await tour.end()
        for one in USES:
            used = tour.used(one)
            if one in agent | plane:
                assert used == 0, f"{one} is used with a peer that does not have it"
            elif one in SHOWN:
                assert used > 0, f"{one} is not used although both sides have it"

    tour(scenario, agent=agent, plane=plane)


@EACH
def test_a_plane_that_is_downgraded_and_upgraded(feature: str) -> None:
    """The host still believes the last announcement for a while; what it requests then is not there."""
    missing = lacks(feature)

    async def scenario(tour: Tour) -> None:
        await tour.begin()
        await tour.go_round()
        tour.plane(missing)
        tour.look()
        await tour.go_round()
        tried = {one: tour.used(one) for one in missing}
        assert all(count <= 2 * len(tour.ids) for count in tried.values()), f"dropped at the first refusal: {tried}"
        await tour.token_refreshed()
        tour.look()
        await tour.go_round()
        await tour.restart(kill=True)
        await tour.go_round()
        assert not any(tour.used(one) for one in missing), "it was not announced again"
        tour.plane(())
        await tour.token_refreshed()
        tour.look()
        await tour.go_round()
        for one in missing & SHOWN:
            assert tour.used(one) > 0, f"{one} was announced again"
        await tour.end()

    tour(scenario)


@EACH
def test_an_agent_that_is_downgraded_and_upgraded(feature: str) -> None:
    """The files of the newer agent stay, and do not disturb the older one; nor does the newer one trust what is old."""
    missing, lacking = lacks(feature), set[str]()

    async def scenario(tour: Tour) -> None:
        await tour.begin()
        await tour.go_round()
        lacking.update(missing)
        await tour.restart()
        await tour.scene.until(lambda: len(tour.scene.polls) and not tour.scene.agent.inbox.acks_pending)
        await trio.sleep(60)  # the plane has learnt of it with the first report
        tour.look()
        await tour.go_round()
        assert not any(tour.used(one) for one in missing)
        await tour.token_refreshed()
        lacking.clear()
        await tour.restart(kill=True)
        await tour.token_refreshed()
        tour.look()
        await tour.go_round()
        for one in missing & SHOWN:
            assert tour.used(one) > 0
        await tour.end()

    tour(scenario, agent=lacking)


@EACH
def test_a_plane_that_announces_what_it_does_not_have(feature: str) -> None:
    """As behind a balancer with planes of two releases: each announcement may come from one, the answers from the other."""
    missing = lacks(feature)

    async def scenario(tour: Tour) -> None:
        announcing = tour.scene.network.app
        tour.plane(missing)
        earlier = tour.scene.network.app
        assert announcing is not None and earlier is not None

        async def either(scope: Any, receive: Any, send: Any) -> None:
            newer = scope["path"] == "/auth/token/refresh"
            await (announcing if newer else earlier)(scope, receive, send)

        tour.scene.network.app = either
        await tour.begin()
        for _ in range(2):
            await tour.go_round()
            await tour.token_refreshed()
        await tour.end()

    tour(scenario)
