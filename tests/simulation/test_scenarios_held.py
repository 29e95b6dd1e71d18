"""An agent whose certificate a rollout of renewals holds back."""

from __future__ import annotations

from typing import Any

from simulation.scene import Scene, play
from simulation.world import DEVICE, USER

from certctrl.model.plan import OutcomeKind
from certctrl.plane.devices.acks import Ack
from certctrl.plane.devices.devices import DeviceFacts
from certctrl.plane.rollouts.rollouts import RolloutRules

SOON = 400.0


async def issued(scene: Scene) -> dict[str, Any]:
    plane = scene.plane
    return await plane.certificates.issue(USER, ["held.example"], device_ids=[DEVICE], key_type="ed25519")


async def other_device(scene: Scene, cert_id: int) -> int:
    """Return a device without an agent, which is to be the first wave."""
    plane, facts = scene.plane, DeviceFacts(device_public_id="other", name="other")
    device_id = int((await plane.work(plane.devices.expect, USER, facts))["id"])
    await plane.work(lambda: plane.devices.activate(device_id, facts, bytes(32)))
    await plane.work(lambda: plane.devices.tags.change(USER, [device_id], add=["canary"]))
    await plane.certificates.assign(USER, device_id, cert_id)
    return device_id


async def started(scene: Scene, cert_id: int) -> int:
    """Start a rollout, whose first wave is the other device; return that."""
    other = await other_device(scene, cert_id)
    rules = RolloutRules(waves=(), canary="canary")
    await scene.plane.work(scene.plane.renewal_rollouts.start, USER, [cert_id], rules)
    await rounds(scene)
    return other


async def rounds(scene: Scene) -> None:
    await scene.plane.rollout_runner.round()
    await scene.plane.order_runner.run_once()
    await scene.plane.rollout_runner.round()


async def proven(scene: Scene, device_id: int, cert_id: int) -> None:
    plane = scene.plane
    serial = (await plane.work(plane.certificates.show, USER, cert_id))["serial_number"]
    deployed = [{"cert_id": cert_id, "serial": serial, "served": True}]
    ack = Ack(
        type="cert.renewed",
        ts_ms=1,
        ref={"cert_id": cert_id, "serial": serial},
        outcome=OutcomeKind.APPLIED,
        deployed=deployed,
    )
    await plane.work(plane.reports.store, device_id, [ack])
    plane.devices.seen(device_id, "", "", plane.wall_now())
    plane.devices.seen(DEVICE, "", "", plane.wall_now())
    await plane.work(plane.devices.save_sightings)


async def compared(scene: Scene) -> None:
    done = scene.agent.counters.reconciles["ok"]
    await scene.plane.resync(USER, DEVICE, "test")
    await scene.until(lambda: scene.agent.counters.reconciles["ok"] > done, 600)


async def state(scene: Scene) -> Any:
    return (await scene.plane.work(scene.plane.rollouts.show, USER, 1))["state"]


def test_it_keeps_the_former_one_through_comparisons_and_deploys_the_renewed_one_in_its_wave() -> None:
    async def scenario(scene: Scene) -> None:
        row = await issued(scene)
        await scene.until(lambda: scene.live(row["id"]))
        other = await started(scene, row["id"])
        renewed = (await scene.plane.work(scene.plane.certificates.show, USER, row["id"]))["serial_number"]
        assert renewed != row["serial_number"]
        await compared(scene)
        await compared(scene)
        assert scene.record(row["id"]).facts.serial == row["serial_number"]
        assert (await scene.ask("status"))["health"] == "healthy"
        await proven(scene, other, row["id"])
        await rounds(scene)
        await scene.until(lambda: scene.record(row["id"]).facts.serial == renewed, SOON)
        await scene.until(lambda: scene.outcomes()[0] == ("cert.renewed", "applied"), SOON)
        await rounds(scene)
        assert await state(scene) == "done"

    play(scenario)


def test_a_revocation_reaches_it_while_it_is_held() -> None:
    async def scenario(scene: Scene) -> None:
        row = await issued(scene)
        await scene.until(lambda: scene.live(row["id"]))
        await started(scene, row["id"])
        await scene.plane.certificates.revoke(USER, row["id"])
        await scene.until(lambda: ("cert.revoked", "applied") in scene.outcomes(), SOON)
        await rounds(scene)
        assert await state(scene) == "aborted"

    play(scenario)
