"""A derived format is delivered at the first try, in whatever order its item, a renewal and a restart come."""

from __future__ import annotations

from typing import Any

import pytest
from simulation.disk import file_in
from simulation.operators import COPIES
from simulation.scene import Scene, play
from simulation.world import DEVICE, USER

from certctrl.agent.reporter import snapshot

ORDERS = {
    "a renewal, then the item": ("renew", "want"),
    "the item, then a renewal": ("want", "renew"),
    "the item alone": ("want",),
    "a renewal, the item, a renewal": ("renew", "want", "renew"),
    "both while it was stopped": ("stop", "renew", "want"),
    "both while it was stopped, the item first": ("stop", "want", "renew"),
    "the item, asked for by hand": ("want", "apply"),
    "a renewal and the item, asked for by hand": ("renew", "want", "apply"),
    "a policy that is read again": ("want", "hup", "renew"),
}


def wanting(cert_id: int) -> list[dict[str, Any]]:
    about = {"ob_type": "cert", "ob_id": cert_id}
    names = ("combined.pem", "certificate.der", "bundle.pfx")
    return [
        {"id": name, "type": "copy", "from": [name], "to": [f"{COPIES}/{cert_id}.{name}"], **about} for name in names
    ]


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_a_derived_format_comes_at_the_first_try(order: tuple[str, ...]) -> None:
    async def scenario(scene: Scene) -> None:
        await scene.issue("other.example")
        cert_id = int((await scene.issue("copied.example"))["id"])
        scene.operators.introduce(cert_id, "copied.example")
        before = scene.operators.items([cert_id])
        await scene.plane.installs.put(DEVICE, before)
        await scene.until(lambda: scene.live(cert_id) and not scene.agent.inbox.depth)
        await scene.until(lambda: not snapshot(scene.agent)["stuck"])
        reported = len(scene.outcomes())
        for step in order:
            match step:
                case "stop":
                    starts = scene.host.starts
                    await scene.host.stop()
                case "renew":
                    await scene.plane.certificates.renew(USER, cert_id)
                case "want":
                    await scene.plane.installs.put(DEVICE, [*before, *wanting(cert_id)])
                case "apply":
                    assert (await scene.ask("apply"))["outcome"] in ("applied", "unchanged")
                case "hup":
                    scene.agent.retry_now()
        if "stop" in order:
            await scene.until(lambda: scene.host.starts > starts)
        key = f"{COPIES}/{cert_id}.combined.pem"
        live = f"{scene.world.layout.certs}/copied.example.key"

        def is_there() -> bool:
            combined, wanted = (file_in(scene.host.disk.now, path) for path in (key, live))
            return combined is not None and wanted is not None and combined.startswith(wanted)

        await scene.until(is_there)
        await scene.until(lambda: not scene.agent.inbox.depth and not snapshot(scene.agent)["stuck"])
        await scene.until(lambda: len(scene.outcomes()) > reported)
        assert not {outcome for _, outcome in scene.outcomes()[:-reported]} & {"failed", "rolled_back"}, scene.log
        assert "is missing" not in scene.log

    play(scenario)
