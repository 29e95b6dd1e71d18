"""Planes whose resources lag behind their signals: what was announced arrives once the plane shows it."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from simulation.authority import ca
from simulation.scene import Scene, play
from simulation.world import DEVICE, USER

from certctrl.agent.reporter import snapshot
from certctrl.model.records import RetryKind

LAG = 900.0
"""Seconds; more than the tries before a quarantine take."""
SOON = 400.0
"""Seconds within which the change arrives after the lag: the longest pause, and a poll."""


def kinds(scene: Scene) -> set[str]:
    return {row["outcome"] for row in scene.plane.reports.outcomes(DEVICE)}


async def lag(scene: Scene) -> None:
    """Let a lag pass, during which nothing needs an operator."""
    await trio.sleep(LAG)
    assert snapshot(scene.agent)["quarantined"] == []
    assert [one.kind for one in scene.agent.installer.retries.signals()] == [RetryKind.LAGGING]
    scene.network.replica = None


def test_a_renewal_is_not_done_with_the_old_serial() -> None:
    async def scenario(scene: Scene) -> None:
        row = await scene.issue("late.example")
        await scene.until(lambda: scene.live(row["id"]))
        scene.world.lag()
        renewed = await scene.plane.certificates.renew(USER, row["id"])
        await lag(scene)
        assert scene.outcomes()[0] == ("cert.renewed", "failed")
        assert (await scene.ask("status"))["health"] == "healthy"
        assert "still offers" in snapshot(scene.agent)["stuck"][0]["reason"]
        await scene.until(lambda: scene.record(row["id"]).facts.serial == renewed["serial_number"], SOON)
        await scene.until(lambda: scene.outcomes()[0] == ("cert.renewed", "applied"), SOON)

    play(scenario)


def test_a_renewal_in_between_is_deployed_and_the_announced_one_follows() -> None:
    async def scenario(scene: Scene) -> None:
        row = await scene.issue("late.example")
        await scene.until(lambda: scene.live(row["id"]))
        async with held_back(scene):
            between = await scene.plane.certificates.renew(USER, row["id"])
            scene.world.lag()
            newest = await scene.plane.certificates.renew(USER, row["id"])
        await scene.until(lambda: scene.record(row["id"]).facts.serial == between["serial_number"])
        await lag(scene)
        await scene.until(lambda: scene.record(row["id"]).facts.serial == newest["serial_number"], SOON)

    play(scenario)


class held_back:
    """Let the host poll only after what is done inside."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene

    async def __aenter__(self) -> None:
        network = self.scene.network
        self.app, network.app = network.app, None

    async def __aexit__(self, *error: object) -> None:
        self.scene.network.app = self.app


def test_a_certificate_that_the_plane_does_not_offer_yet_is_fetched_later() -> None:
    async def scenario(scene: Scene) -> None:
        await scene.until(lambda: len(scene.polls) >= 2)
        scene.world.lag()
        row = await scene.issue("new.example")
        await lag(scene)
        assert "ignored" not in kinds(scene)
        await scene.until(lambda: scene.live(row["id"]), SOON)

    play(scenario)


def test_an_install_config_that_the_plane_does_not_offer_yet_is_fetched_later() -> None:
    async def scenario(scene: Scene) -> None:
        for name in ("first", "second"):
            item = {"id": name, "type": "import_ca", "ob_id": 9, "enabled": False}
            await scene.plane.installs.put(DEVICE, [item])
            if name == "first":
                await scene.until(lambda: [one.id for one in scene.agent.items] == ["first"])
                scene.world.lag()
        await lag(scene)
        assert [one.id for one in scene.agent.items] == ["first"]
        await scene.until(lambda: [one.id for one in scene.agent.items] == ["second"], SOON)

    play(scenario)


def test_an_older_install_config_from_a_replica_is_not_refused_for_hours() -> None:
    async def scenario(scene: Scene) -> None:
        item: dict[str, Any] = {"id": "a", "type": "import_ca", "ob_id": 9, "enabled": False}
        await scene.plane.installs.put(DEVICE, [item])
        await scene.until(lambda: scene.agent.items)
        scene.world.lag()
        replica = scene.network.replica
        scene.network.replica = None
        await scene.plane.installs.put(DEVICE, [item | {"id": "b"}])
        await scene.until(lambda: [one.id for one in scene.agent.items] == ["b"])
        scene.network.replica = replica
        await scene.plane.installs.put(DEVICE, [item | {"id": "c"}])
        await lag(scene)
        await scene.until(lambda: [one.id for one in scene.agent.items] == ["c"], SOON)
        await scene.until(lambda: not scene.agent.problems, SOON)

    play(scenario)


def test_an_older_certificate_from_a_replica_is_not_refused_for_hours() -> None:
    async def scenario(scene: Scene) -> None:
        row = await scene.issue("late.example")
        await scene.until(lambda: scene.live(row["id"]))
        scene.world.lag()
        replica = scene.network.replica
        scene.network.replica = None
        await trio.sleep(60)
        second = await scene.plane.certificates.renew(USER, row["id"])
        await scene.until(lambda: scene.record(row["id"]).facts.serial == second["serial_number"])
        scene.network.replica = replica
        third = await scene.plane.certificates.renew(USER, row["id"])
        await lag(scene)
        await scene.until(lambda: scene.record(row["id"]).facts.serial == third["serial_number"], SOON)

    play(scenario)


def test_a_revocation_is_not_done_while_the_plane_says_active() -> None:
    async def scenario(scene: Scene) -> None:
        row = await scene.issue("gone.example")
        await scene.until(lambda: scene.live(row["id"]))
        scene.world.lag()
        await scene.plane.certificates.revoke(USER, row["id"])
        await lag(scene)
        assert scene.live(row["id"]), "a signal alone proves nothing"
        await scene.until(lambda: not scene.live(row["id"]), SOON)

    play(scenario)


def test_cas_are_imported_and_removed_once_the_plane_shows_it() -> None:
    async def scenario(scene: Scene) -> None:
        await scene.until(lambda: len(scene.polls) >= 2)
        known = scene.plane.authorities.add(USER, "private", ca()[1])["id"]
        scene.world.lag()
        await scene.plane.authorities.assign(USER, DEVICE, known)
        await lag(scene)
        await scene.until(lambda: known in scene.agent.installer.cas, SOON)
        scene.world.lag()
        await scene.plane.authorities.unassign(USER, DEVICE, known)
        await lag(scene)
        await scene.until(lambda: known not in scene.agent.installer.cas, SOON)

    play(scenario)


@pytest.mark.parametrize("repeated", [True, False])
def test_an_announcement_that_never_comes_true_ends(repeated: bool) -> None:
    """One that was replaced since ends at once, any other after about an hour."""

    async def scenario(scene: Scene) -> None:
        row = await scene.issue("late.example")
        await scene.until(lambda: scene.live(row["id"]))
        signal = {"cert_id": row["id"], "serial": row["serial_number"] if repeated else "0b:ad"}
        if repeated:
            await scene.operators._send("cert.renewed", signal)
            renewed = await scene.plane.certificates.renew(USER, row["id"])
            await scene.until(lambda: scene.record(row["id"]).facts.serial == renewed["serial_number"])
        else:
            await scene.operators._send("cert.renewed", signal)
            await trio.sleep(1200)
            assert scene.agent.installer.retries.signals(), "it is waited for"
        await scene.until(lambda: not scene.agent.installer.retries.signals(), 1.5 * 3600)
        assert (await scene.ask("status"))["health"] == "healthy"

    play(scenario)


def test_a_comparison_with_a_lagging_plane_is_soon_repeated() -> None:
    async def scenario(scene: Scene) -> None:
        row = await scene.issue("late.example")
        await scene.until(lambda: scene.live(row["id"]))
        scene.world.lag()
        replica = scene.network.replica
        scene.network.replica = None
        await trio.sleep(60)
        renewed = await scene.plane.certificates.renew(USER, row["id"])
        await scene.until(lambda: scene.record(row["id"]).facts.serial == renewed["serial_number"])
        scene.network.replica = replica
        scene.agent.reconcile_requested.value = True
        await scene.until(lambda: "server-behind" in scene.agent.problems)
        await trio.sleep(300)
        scene.network.replica = None
        await scene.until(lambda: not scene.agent.problems, 1200)

    play(scenario)


def test_a_certificate_that_was_unassigned_before_it_was_deployed_is_not_deployed() -> None:
    """Its replica still offers it, and nothing would take it out of use later."""

    async def scenario(scene: Scene) -> None:
        first = await scene.issue("first.example")
        await scene.until(lambda: scene.live(first["id"]))
        async with held_back(scene):
            row = await scene.issue("late.example")
            await trio.sleep(60)
            scene.world.lag()
            await scene.plane.certificates.unassign(USER, DEVICE, row["id"])
        await lag(scene)
        assert not scene.live(row["id"])
        await scene.until(lambda: scene.outcomes()[0] == ("cert.unassigned", "unchanged"), SOON)
        assert not scene.live(row["id"])

    play(scenario)


def test_a_certificate_that_was_revoked_before_it_was_deployed_does_not_stay_in_use() -> None:
    async def scenario(scene: Scene) -> None:
        first = await scene.issue("first.example")
        await scene.until(lambda: scene.live(first["id"]))
        async with held_back(scene):
            row = await scene.issue("late.example")
            await trio.sleep(60)
            scene.world.lag()
            await scene.plane.certificates.revoke(USER, row["id"])
        await trio.sleep(LAG)
        scene.network.replica = None
        await trio.sleep(SOON)
        assert not scene.live(row["id"])

    play(scenario)
