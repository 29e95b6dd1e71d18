"""Status, plan, log, metrics and the table of retries name one time of the next try, and it is tried then."""

from __future__ import annotations

import re

import pytest
import trio
from simulation.network import NetworkFault
from simulation.operators import COPIES
from simulation.scene import Scene, play
from simulation.world import DEVICE, USER

from certctrl.agent.metric_families import render
from certctrl.agent.metrics import view_of
from certctrl.agent.reporter import snapshot

KINDS = ("disk", "reload", "tolerated", "plane")


async def deployed(scene: Scene, kind: str) -> int:
    await scene.issue("other.example")
    cert_id = int((await scene.issue("copied.example"))["id"])
    scene.operators.introduce(cert_id, "copied.example")
    more = {"continue_on_error": True} if kind == "tolerated" else {}
    await scene.plane.installs.put(DEVICE, [item | more for item in scene.operators.items([cert_id])])
    await scene.until(lambda: scene.live(cert_id) and not scene.agent.inbox.depth)
    await scene.until(lambda: not snapshot(scene.agent)["stuck"])
    await trio.sleep(600)
    return cert_id


def fail(scene: Scene, cert_id: int, kind: str) -> None:
    if kind == "disk":
        scene.host.disk.full = COPIES
    elif kind == "plane":
        path = f"/apiv1/devices/self/certificates/{cert_id}/deploy-materials"
        scene.network.faults = [NetworkFault(kind="status", status=503, path=path)]
    else:
        scene.world.services.failing = lambda: True


def logged(scene: Scene) -> float:
    """Return the time of the next try that the log names last."""
    lines = [line for line in scene.log.splitlines() if "next try in" in line]
    moment, delay = float(lines[-1].split()[0]), float(re.findall(r"next try in (\d+) s", lines[-1])[-1])
    return scene.agent.wall_now() - trio.current_time() + moment + delay


async def agree(scene: Scene, cert_id: int, kind: str) -> float:
    """Check that all say the same; return when the next try is."""
    (stuck,) = snapshot(scene.agent)["stuck"]
    at = float(stuck["next_try_at"])
    retry = next(iter(scene.agent.installer.retries.rows().values()))
    assert abs(scene.agent.wall_now() + scene.agent.installer.retries.left(retry.key) - at) < 1
    assert stuck["reason"] == retry.last_error
    (line,) = re.findall(r"stuck_item_next_try_timestamp_seconds\{.*\} (\S+)", render(view_of(scene.agent)).decode())
    assert abs(float(line) - at) < 1
    if kind != "tolerated":  # that is applied, and its line has no time
        assert abs(logged(scene) - at) < 2, scene.log
    if (held := (await scene.ask("plan"))["held"]) and kind != "plane":
        said = float(re.findall(r"next try in (\d+) s", str(held))[-1])
        assert abs(scene.agent.wall_now() + said - at) < 2
    return at


@pytest.mark.parametrize("kind", KINDS)
def test_all_name_the_same_next_try(kind: str) -> None:
    async def scenario(scene: Scene) -> None:
        cert_id = await deployed(scene, kind)
        fail(scene, cert_id, kind)
        await scene.plane.certificates.renew(USER, cert_id)
        await scene.until(lambda: snapshot(scene.agent)["stuck"] and scene.retry(cert_id).last_error)
        for _ in range(4):
            at = await agree(scene, cert_id, kind)
            before = scene.retry(cert_id)
            await scene.until(lambda before=before: scene.retry(cert_id).failures > before.failures, 4000)
            assert scene.agent.wall_now() - at < 40, "tried when it was announced"
            await trio.sleep(1)  # the log follows

    play(scenario)
