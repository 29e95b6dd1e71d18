"""Retries without a signal: shown in the status, due at their time or on request; the whole agent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import pytest
import trio
from simulation.network import NetworkFault
from simulation.scene import DAY, QUIET, Scene, play
from simulation.world import DEVICE, USER

from certctrl.agent.metric_families import render
from certctrl.agent.metrics import view_of
from certctrl.agent.reporter import snapshot
from certctrl.model.records import RetryKind

SLOW = attrs.evolve(QUIET, interval=600.0, access_seconds=7 * DAY, reconcile=7 * 86_400)


def counted(scene: Scene) -> list[float]:
    """Return a list that collects the times of commands from now on."""
    times: list[float] = []
    real = scene.world.services.run

    async def run(argv: Sequence[str], *args: Any) -> Any:
        times.append(scene.world.clock.now())
        return await real(argv, *args)

    scene.world.services.run = run  # type: ignore[method-assign]
    return times


async def served(scene: Scene, **more: object) -> int:
    """Deploy a certificate with a service and return its id; ``more`` is merged into its items."""
    row = await scene.issue("calm.example")
    cert_id = int(row["id"])
    scene.operators.introduce(cert_id, "calm.example")
    await scene.plane.installs.put(DEVICE, [item | more for item in scene.operators.items([cert_id])])
    await scene.until(lambda: scene.live(cert_id) and not scene.agent.inbox.depth)
    await scene.until(lambda: not snapshot(scene.agent)["stuck"])
    await trio.sleep(1200)
    return cert_id


def test_a_tolerated_failure_is_shown_and_retried_while_the_plane_is_down() -> None:
    async def scenario(scene: Scene) -> None:
        cert_id = await served(scene, continue_on_error=True)
        reported = len(scene.outcomes())
        scene.world.services.failing = lambda: True
        renewed = await scene.plane.certificates.renew(USER, cert_id)
        await scene.until(lambda: scene.retry(cert_id).attempts)
        assert scene.record(cert_id).facts.serial == renewed["serial_number"], "it counts as deployed"
        times = counted(scene)
        await trio.sleep(45)
        assert len(times) == 1, "the first retry after half a minute"
        await trio.sleep(3 * 3600)
        assert 4 <= len(times) <= 12, "backoff"
        (stuck,) = snapshot(scene.agent)["stuck"]
        assert "tolerated" in stuck["reason"] and stuck["attempts"] == scene.retry(cert_id).attempts
        assert 0 < stuck["next_try_at"] - scene.world.clock.now() <= 3600
        assert f'item="certificate {cert_id} (calm.example)"' in render(view_of(scene.agent)).decode()
        assert scene.outcomes()[:-reported] == [("cert.renewed", "applied")], "the same failure is reported once"
        scene.network.faults = [NetworkFault(kind="status", status=503)]
        scene.world.services.failing = lambda: False
        await trio.sleep(stuck["next_try_at"] - scene.world.clock.now() + 60)
        assert not snapshot(scene.agent)["stuck"]
        assert scene.world.services.known[cert_id].served == scene.record(cert_id).facts.fingerprint_sha256
        scene.network.clear()
        await scene.until(lambda: len(scene.outcomes()) == reported + 2)
        assert scene.outcomes()[0] == ("cert.renewed", "applied")

    play(scenario, SLOW)


def test_signals_do_not_change_when_a_failed_command_is_retried() -> None:
    async def scenario(scene: Scene) -> None:
        cert_id = await served(scene)
        scene.world.services.failing = lambda: True
        times = counted(scene)
        proven = scene.operators.items([cert_id])
        unproven = [item | {"verify": None} for item in proven]  # a change, so that it is due again
        await scene.plane.installs.put(DEVICE, unproven)
        await scene.until(lambda: scene.retry(cert_id).attempts)
        for _ in range(50):
            await scene.operators.ask_for_resync()
            await trio.sleep(60)
        assert 4 <= len(times) <= 10
        assert scene.agent.installer.retries.rows()["install"].last_error, "the failure is still shown"
        for step in ("apply", "sighup", "config"):
            await scene.until(lambda: scene.retry(cert_id).next_try_at > scene.world.clock.now() + 1200, 8000)
            count = len(times)
            if step == "apply":
                await scene.ask("apply")
            elif step == "sighup":
                assert scene.host.process is not None and scene.host.process.on is not None
                scene.host.process.on.reload()
            else:
                verify = proven[-1]["verify"] | {"server_name": "calm.example"}
                await scene.plane.installs.put(DEVICE, [item | {"verify": verify} for item in proven])
            await scene.until(lambda count=count: len(times) > count, 1000)
            await trio.sleep(20)
            assert len(times) <= count + 2, step
        scene.world.services.failing = lambda: False
        await scene.until(lambda: not scene.retry(cert_id).attempts and not scene.agent.inbox.depth, 8000)

    play(scenario, SLOW)


def test_work_that_a_signal_retries_is_not_retried_separately() -> None:
    async def scenario(scene: Scene) -> None:
        scene.world.services.failing = lambda: True
        times = counted(scene)
        row = await scene.issue("new.example")
        cert_id = int(row["id"])
        scene.operators.introduce(cert_id, "new.example")
        await scene.plane.installs.put(DEVICE, scene.operators.items([cert_id]))
        await scene.until(lambda: scene.retry(cert_id).signal and scene.retry(cert_id).attempts >= 3)
        assert scene.record(cert_id).pending
        count = len(times)
        await trio.sleep(5 * 3600)
        assert len(times) == count, "its signal is in quarantine and has its own next attempt"

    play(scenario, SLOW)


def test_a_service_that_is_stopped_during_a_renewal_serves_it_once_it_is_started() -> None:
    async def scenario(scene: Scene) -> None:
        cert_id = await served(scene)
        service = scene.world.services.known[cert_id]
        old, service.stopped = service.served, True
        renewed = await scene.plane.certificates.renew(USER, cert_id)
        await scene.until(lambda: scene.retry(cert_id).kind is RetryKind.DOWN)
        assert scene.record(cert_id).facts.serial == renewed["serial_number"]
        times = counted(scene)
        await trio.sleep(6 * 3600)
        assert 60 <= len(times) <= 90, "every five minutes"
        assert not snapshot(scene.agent)["quarantined"]
        assert snapshot(scene.agent)["health"] == "degraded"
        assert scene.agent.counters.alerts == {"failing": 1}
        assert scene.outcomes()[0] == ("cert.renewed", "failed")
        scene.world.services.start(cert_id)
        assert service.served == scene.record(cert_id).facts.fingerprint_sha256 != old
        await scene.until(lambda: not snapshot(scene.agent)["stuck"], 301)
        await scene.until(lambda: scene.outcomes()[0] == ("cert.renewed", "applied"))

    play(scenario, SLOW)


@pytest.mark.parametrize("step", [-3 * 3600.0, -3 * DAY, 3 * 3600.0, 3 * DAY])
def test_retries_keep_their_time_when_the_clock_is_set(step: float) -> None:
    async def scenario(scene: Scene) -> None:
        cert_id = await served(scene)
        scene.world.services.failing = lambda: True
        times = counted(scene)
        unproven = [item | {"verify": None} for item in scene.operators.items([cert_id])]
        await scene.plane.installs.put(DEVICE, unproven)
        for restart in (False, True):
            await scene.until(lambda: scene.agent.installer.retries.left(f"cert:{cert_id}") > 1200, 8000)
            left, count = scene.agent.installer.retries.left(f"cert:{cert_id}"), len(times)
            scene.world.clock.error += step
            await trio.sleep(130)
            (stuck,) = [one for one in snapshot(scene.agent)["stuck"] if one["item"].startswith("certificate")]
            assert abs(stuck["next_try_at"] - scene.world.clock.host_now() - left + 130) < 30, "as status shows it"
            if restart:
                scene.host.kill(power=False)
            await trio.sleep(left - 130 - 90)
            assert len(times) == count, "not sooner"
            await scene.until(lambda count=count: len(times) > count, 300)
        scene.world.services.failing = lambda: False
        scene.world.clock.error = 0.0
        await scene.until(lambda: not scene.retry(cert_id).attempts and not scene.agent.inbox.depth, 8000)

    play(scenario, SLOW)


def test_a_clock_that_is_set_forward_is_noticed_within_minutes() -> None:
    async def scenario(scene: Scene) -> None:
        row = await scene.issue("calm.example")
        await scene.until(lambda: scene.live(int(row["id"])) and not scene.agent.inbox.depth)
        await trio.sleep(1800)
        scene.world.clock.error = 190 * DAY
        await trio.sleep(150)
        assert scene.agent.counters.alerts["late"] >= 1  # again for the renewal, if that has come
        scene.world.clock.error = 0.0
        await trio.sleep(150)
        assert not [one for one in snapshot(scene.agent)["problems"] if "expires" in one["what"]]

    play(scenario, SLOW)


def test_material_that_was_not_valid_yet_is_deployed_once_the_clock_is_right() -> None:
    """As after a start without a battery clock, before the time has come from the network."""

    async def scenario(scene: Scene) -> None:
        row = await scene.issue("early.example")
        await scene.until(lambda: scene.live(int(row["id"])) and not scene.agent.inbox.depth)
        scene.world.clock.error = -30 * DAY
        await trio.sleep(150)
        renewed = await scene.plane.certificates.renew(USER, row["id"])
        await scene.until(lambda: "valid only in" in scene.retry(row["id"]).last_error)
        assert scene.retry(row["id"]).pause > 3600
        scene.world.clock.error = 0.0
        await trio.sleep(150)
        assert scene.record(row["id"]).facts.serial == renewed["serial_number"]

    play(scenario, SLOW)


def test_work_that_waits_for_the_plane_counts_its_attempts_and_needs_no_operator() -> None:
    async def scenario(scene: Scene) -> None:
        await scene.until(lambda: len(scene.polls) >= 2)
        fault = NetworkFault(kind="status", status=409, path="/apiv1/devices/self/certificates/1/deploy-materials")
        scene.network.faults = [fault]
        await scene.issue("calm.example")
        await scene.until(lambda: snapshot(scene.agent)["stuck"])
        assert snapshot(scene.agent)["stuck"][0]["attempts"] == 1
        await trio.sleep(600)
        status = await scene.ask("status")
        assert status["stuck"][0]["attempts"] > 4
        assert (status["health"], status["quarantined"]) == ("healthy", [])
        assert "attempt 3: simulated" in scene.log

    play(scenario)


def test_a_full_disk_for_certificates_needs_an_operator() -> None:
    """The state may well be on another one."""

    async def scenario(scene: Scene) -> None:
        scene.host.disk.full = str(scene.world.layout.certs)
        row = await scene.issue("calm.example")
        await scene.until(lambda: snapshot(scene.agent)["stuck"])
        await trio.sleep(600)
        status = await scene.ask("status")
        assert (status["health"], status["quarantined"]) == ("degraded", [])
        assert status["stuck"][0]["attempts"] > 4
        assert "No space left on device" in status["stuck"][0]["reason"]
        scene.host.disk.full = ""
        await scene.until(lambda: scene.live(row["id"]), 400)
        assert (await scene.ask("status"))["health"] == "healthy"

    play(scenario)


def test_a_hold_is_shown() -> None:
    async def scenario(scene: Scene) -> None:
        row = await scene.issue("held.example")
        await scene.until(lambda: scene.live(row["id"]))
        await scene.plane.certificates.renew(USER, row["id"])
        await scene.until(lambda: scene.record(row["id"]).facts.serial != row["serial_number"])
        await scene.ask("rollback", domain="held.example")
        (held,) = (await scene.ask("status"))["held"]
        assert (held["name"], held["staged"] != "") == ("held.example", True)
        await scene.ask("release", domain="held.example")
        assert (await scene.ask("status"))["held"] == []

    play(scenario)
