"""One-shot commands by cron on a host without a daemon."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

import trio
from simulation.clock import run_seeded
from simulation.disk import file_in
from simulation.history import logged_to_journal, stand_ins
from simulation.host import AgentProcess
from simulation.scene import QUIET, Scene
from simulation.world import DEVICE, template

from certctrl.agent.oneshot import poll_once


def play_cron(scenario: Callable[[Scene], Awaitable[None]]) -> None:
    """Run a scenario on a host on which no daemon runs."""

    async def run() -> None:
        scene = Scene(QUIET, {})
        try:
            with logged_to_journal(scene.world):
                await scenario(scene)
        finally:
            scene.world.close()

    template()
    with stand_ins():
        run_seeded(1, run)


async def poll_now(scene: Scene) -> dict[str, Any]:
    """Run ``cert-ctrl poll-now`` in a process of its own."""
    host = scene.host
    host.starts += 1
    return await poll_once(host.root, host._seams(AgentProcess(host.starts, host.services, host.disk)))


def test_poll_now_retries_a_failure_without_a_signal() -> None:
    async def scenario(scene: Scene) -> None:
        row = await scene.issue("cron.example")
        cert_id, service = int(row["id"]), scene.world.services
        scene.operators.introduce(cert_id, "cron.example")
        items = [item | {"continue_on_error": True} for item in scene.operators.items([cert_id])]
        await scene.plane.installs.put(DEVICE, items)
        service.failing = lambda: True
        await poll_now(scene)
        await trio.sleep(300)
        assert (await poll_now(scene)).get("failed"), "it is tried, and told"
        service.failing = lambda: False
        for _ in range(4):
            assert not service.known[cert_id].served
            await trio.sleep(300)
            done = await poll_now(scene)
            if service.known[cert_id].served:
                break
        assert service.known[cert_id].served, "cron brings it into service"
        assert "failed" not in done

    play_cron(scenario)


def test_the_status_after_a_poll_names_no_item_idle_whose_certificate_came_with_it() -> None:
    """The items came first and were noted as idle; nothing checked again once the certificate was here."""

    async def scenario(scene: Scene) -> None:
        about = {"ob_type": "cert", "ob_name": "late.example"}
        item = {"id": "copy", "type": "copy", "from": ["chain.pem"], "to": ["/srv/tls/late.pem"], **about}
        await scene.plane.installs.put(DEVICE, [item])
        await scene.issue("late.example")
        await poll_now(scene)
        assert file_in(scene.host.disk.now, "/srv/tls/late.pem")
        status = json.loads(file_in(scene.host.disk.now, f"{scene.host.root}/state/status.json") or b"{}")
        assert status["idle_items"] == []

    play_cron(scenario)
