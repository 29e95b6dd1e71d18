"""The whole agent against hostile planes: it lives, keeps what it serves, and converges once the plane is honest."""

from __future__ import annotations

import attrs
import pytest
import trio
from simulation.hostile_planes import CASES, Tamper
from simulation.scene import QUIET, Scene, play
from simulation.world import DEVICE, USER

from certctrl.model.features import PRIORITY

HOSTILE = 1800.0
"""Seconds of hostility."""
PEACE = 4 * 3600.0
EACH = [(part, name) for part, make in CASES.items() for name in make()]
SAMPLED = 6
"""The default run has each sixth case, `nox -s hostile` all."""
ALL = [
    pytest.param(part, name, id=f"{part}: {name}", marks=[pytest.mark.campaign] if number % SAMPLED else [])
    for number, (part, name) in enumerate(EACH)
]
CERTIFICATES = 12
SETTING = attrs.evolve(
    QUIET, mode="long-poll", interval=5.0, page=5, queue=10, reconcile=3600, access_seconds=600, stream_length=5000
)


@pytest.mark.parametrize(("part", "name"), ALL)
def test_a_hostile_plane_gains_nothing(part: str, name: str) -> None:
    tamper = CASES[part]()[name]

    async def scenario(scene: Scene) -> None:
        ids = await begin(scene)
        process, counted = scene.host.process, Counted(tamper)
        scene.network.tamper = counted
        await busy(scene, ids)
        assert scene.host.process is process, f"the agent ended\n{scene.log}"
        assert counted.changed, "nothing of it reached the agent"
        kept = [one for one in ids[1:] if not scene.live(one)]
        assert not kept, f"no longer served: {kept}"
        assert scene.agent.inbox.depth <= 10 * scene.agent.inbox._limit
        assert len(scene.agent.inbox.entries()) <= 2 * 1000
        scene.network.tamper = lambda exchange, answer: answer
        await scene.until(lambda: not scene.operators.differences(), PEACE)
        assert scene.host.process is process

    play(scenario, SETTING)


class Counted:
    """A change of answers that counts those that it changed."""

    def __init__(self, tamper: Tamper) -> None:
        self.tamper, self.changed = tamper, 0

    def __call__(self, exchange, answer):  # type: ignore[no-untyped-def]
        found = self.tamper(exchange, answer)
        self.changed += found != answer
        return found


async def begin(scene: Scene) -> list[int]:
    """Deploy some certificates with services; return their ids."""
    scene.world.issuer.bad = False
    for _ in range(CERTIFICATES):
        await scene.operators.issue()
    await scene.operators.configure()
    ids = [row["id"] for row in scene.operators.certificates()]
    await scene.until(lambda: all(map(scene.live, ids)), 7200)
    await scene.until(lambda: not scene.agent.inbox.depth, 7200)
    scene.agent.plane.features = scene.agent.plane.features | {PRIORITY}
    return ids


async def busy(scene: Scene, ids: list[int]) -> None:
    """Let the plane have work of all kinds for the host while it is hostile."""
    end = trio.current_time() + HOSTILE
    await scene.plane.certificates.revoke(USER, ids[0])
    while trio.current_time() < end:
        for cert_id in ids[1:]:
            await scene.plane.certificates.renew(USER, cert_id)
        await scene.operators.configure()
        await scene.plane.resync(USER, DEVICE)
        await trio.sleep(300)
