"""Materials that are fetched together: the whole agent and the plane, with planes and networks that cannot cope."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import pytest
import trio
from simulation.authority import POISON
from simulation.network import Exchange, NetworkFault
from simulation.scene import Scene, play

from certctrl.model.features import BATCH_FETCH

PATH = "/apiv1/devices/self/deploy-materials"


def batches(scene: Scene) -> list[Exchange]:
    return [exchange for exchange in scene.sent if exchange.path == PATH]


def alone(scene: Scene) -> list[Exchange]:
    return [one for one in scene.sent if one.path.endswith("/deploy-materials") and one.path != PATH]


async def issue_together(scene: Scene, names: Sequence[str]) -> list[int]:
    """Issue certificates between two polls: their signals come in one page."""
    await scene.until(lambda: scene.polls and BATCH_FETCH in scene.agent.plane.features)
    return [int((await scene.issue(name))["id"]) for name in names]


def test_the_materials_of_one_page_need_one_request() -> None:
    async def scenario(scene: Scene) -> None:
        ids = await issue_together(scene, [f"n{number}.example" for number in range(12)])
        await scene.until(lambda: all(map(scene.live, ids)), 900)
        (batch,) = batches(scene)
        assert sorted(batch.json["cert_ids"]) == ids and not alone(scene)

    play(scenario)


def test_a_certificate_with_another_key_fails_alone() -> None:
    async def scenario(scene: Scene) -> None:
        names = ["a.example", f"{POISON}.example", "b.example"]
        good, bad, other = await issue_together(scene, names)
        await scene.until(lambda: scene.live(good) and scene.live(other), 900)
        assert len(batches(scene)) == 1 and not scene.live(bad)

    play(scenario)


@pytest.mark.parametrize(
    "fault",
    [
        NetworkFault(kind="status", status=404), NetworkFault(kind="status", status=405),
        NetworkFault(kind="status", status=500), NetworkFault(kind="status", status=400),
        NetworkFault(kind="html", status=501), NetworkFault(kind="html", status=200), NetworkFault(kind="junk"),
        NetworkFault(kind="reset"), NetworkFault(kind="lost"), NetworkFault(kind="truncated"),
        NetworkFault(kind="blackhole"), NetworkFault(kind="redirect"),
    ],
    ids=lambda fault: f"{fault.kind} {fault.status or ''}".strip(),
)  # fmt: skip
def test_without_an_answer_each_is_fetched_alone(fault: NetworkFault) -> None:
    async def scenario(scene: Scene) -> None:
        await scene.until(lambda: scene.polls)
        scene.network.faults.append(attrs.evolve(fault, path=PATH))
        ids = await issue_together(scene, [f"n{number}.example" for number in range(12)])
        began = trio.current_time()
        await scene.until(lambda: all(map(scene.live, ids)), 900)
        assert batches(scene) and len(alone(scene)) == 12
        assert trio.current_time() - began < 660, "nothing had to be retried"
        assert not any(outcome == "failed" for _, outcome in scene.outcomes())

    play(scenario)
