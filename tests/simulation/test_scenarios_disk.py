"""Certificates that vanish from the disk: whatever judges looks there, and they are fetched again."""

from __future__ import annotations

import errno
from typing import Any

import attrs
import pytest
import trio
from simulation.disk import SimulatedDisk, file_in
from simulation.operators import COPIES
from simulation.scene import QUIET, Scene, play
from simulation.world import DEVICE, USER

from certctrl.agent.reporter import snapshot
from certctrl.store.deployments.generation_files import remove_tree
from certctrl.store.disk.fs import closing
from certctrl.store.disk.tree import make_tree
from certctrl.store.state.installed import InstalledState

GONE = "not on disk"


def wipe(scene: Scene) -> None:
    """Remove certs/, then make it anew as `init` does."""
    disk, layout = scene.host.disk, scene.world.layout
    with closing(disk, disk.open_dir(layout.root)) as root:
        remove_tree(disk, root, layout.certs.name)
    make_tree(disk, layout)
    scene.world.auditor.live.clear()


def on_disk(scene: Scene, name: str) -> bool:
    return file_in(scene.host.disk.now, scene.world.layout.live / name / "private.key") is not None


def refused(item_id: str) -> dict[str, Any]:
    """Return an item that the host's policy does not allow."""
    return {"id": item_id, "type": "exec", "cmd_argv": ["/bin/false", item_id]}


async def deployed(scene: Scene) -> str:
    row = await scene.issue("www.example")
    await scene.until(lambda: scene.live(row["id"]) and not scene.agent.inbox.depth)
    await trio.sleep(120)
    return "www.example"


def test_one_apply_restores_certificates_that_were_deleted() -> None:
    async def scenario(scene: Scene) -> None:
        name = await deployed(scene)
        wipe(scene)
        assert GONE in str((await scene.ask("plan"))["problems"])
        assert (await scene.ask("apply"))["outcome"] == "applied"
        assert on_disk(scene, name)
        assert (await scene.ask("plan"))["problems"] == []

    play(scenario)


@pytest.mark.parametrize("asked", [True, False])
def test_status_sees_it_and_the_agent_restores_them(asked: bool) -> None:
    async def scenario(scene: Scene) -> None:
        name = await deployed(scene)
        wipe(scene)
        if asked:
            status = await scene.ask("status")
            assert status["health"] == "degraded"
            assert GONE in status["problems"][0]["what"]
        await scene.until(lambda: on_disk(scene, name), 1900 if not asked else 60)
        await scene.until(lambda: not scene.agent.problems, 60)

    play(scenario)


def test_links_that_a_restore_made_directories_make_way_for_links() -> None:
    async def scenario(scene: Scene) -> None:
        name = await deployed(scene)
        starts = scene.host.starts
        await scene.host.stop()
        disk, live = scene.host.disk, scene.world.layout.live
        with closing(disk, disk.open_dir(live)) as folder:
            disk.unlink(name, at=folder)
        disk.put_dir(str(live / name))
        scene.world.auditor.live.clear()
        await scene.until(lambda: scene.host.starts > starts)
        await scene.until(lambda: on_disk(scene, name), 600)
        assert GONE in scene.log
        await scene.until(lambda: not scene.agent.installer.retries.rows(), 600)
        assert (await scene.ask("status"))["health"] == "healthy"

    play(scenario)


def test_a_comparison_that_a_read_only_disk_repeats_leaves_pauses_as_they_are() -> None:
    async def scenario(scene: Scene) -> None:
        await deployed(scene)
        scene.host.disk.trouble = errno.EROFS
        row = await scene.issue("new.example")
        await scene.operators.ask_for_resync()
        await trio.sleep(240)
        assert scene.log.count("Comparing this host with the plane: simulated") > 4
        fetched = [one for one in scene.sent if one.path.endswith(f"/{row['id']}/deploy-materials")]
        assert 0 < len(fetched) < 12  # 20 if each comparison began anew
        scene.host.disk.trouble = 0
        await scene.until(lambda: scene.live(row["id"]), 900)

    play(scenario)


def test_a_full_destination_disk_flips_nothing_and_the_next_try_is_true() -> None:
    async def scenario(scene: Scene) -> None:
        await scene.issue("other.example")
        row = await scene.issue("copied.example")
        cert_id = int(row["id"])
        scene.operators.introduce(cert_id, "copied.example")
        assert scene.world.services.known[cert_id].certificate.startswith(COPIES), "it reads copies"
        await scene.plane.installs.put(DEVICE, scene.operators.items([cert_id]))
        await scene.until(lambda: scene.live(cert_id) and not scene.agent.inbox.depth)
        await scene.until(lambda: not snapshot(scene.agent)["stuck"])
        disk, old = scene.host.disk, scene.record(cert_id).facts.serial
        reported, switched, tries = len(scene.outcomes()), list[str](), list[float]()
        real = disk.switched

        def noted(there: SimulatedDisk, name: str) -> None:
            switched.append(name)
            if real is not None:
                real(there, name)

        disk.full, disk.switched = COPIES, noted
        renewed = await scene.plane.certificates.renew(USER, cert_id)
        await scene.until(lambda: scene.retry(cert_id).last_error)
        for _ in range(12):
            (stuck,) = snapshot(scene.agent)["stuck"]
            asked = scene.agent.wall_now()
            assert asked <= stuck["next_try_at"] <= asked + 330
            assert "No space left" in stuck["reason"], stuck
            tries.append(stuck["next_try_at"])
            await scene.until(lambda: scene.retry(cert_id).next_try_at > tries[-1], 900)
            assert scene.agent.wall_now() - tries[-1] < 10, "tried when it was announced"
            assert (switched, scene.record(cert_id).facts.serial) == ([], old)
        assert scene.world.services.known[cert_id].served == scene.record(cert_id).facts.fingerprint_sha256
        assert scene.outcomes()[:-reported] == [("cert.renewed", "failed")], "the same failure is reported once"
        disk.full = ""
        await scene.until(lambda: scene.record(cert_id).facts.serial == renewed["serial_number"], 900)
        await scene.until(lambda: not snapshot(scene.agent)["stuck"])
        assert switched == ["copied.example"]
        await scene.until(lambda: scene.outcomes()[0] == ("cert.renewed", "applied"))

    play(scenario)


def test_a_retry_stays_on_disk_until_its_outcome_is_durable(monkeypatch: pytest.MonkeyPatch) -> None:
    save_retries = InstalledState.save_retries

    def watched(state: InstalledState, *args: Any, **options: Any) -> None:
        save_retries(state, *args, **options)
        scenes[0].world.auditor.inspect(scenes[0].host.disk)

    async def scenario(scene: Scene) -> None:
        await deployed(scene)
        await scene.plane.installs.put(DEVICE, [refused("first")], check=False)
        await scene.until(lambda: ("install.updated", "failed") in scene.outcomes())
        await trio.sleep(180)  # polls with the new cursor
        scene.host.disk.trouble = errno.ENOSPC
        scene.world.auditor.disk_was_ill = True
        await scene.plane.installs.put(DEVICE, [refused("second")], check=False)
        await scene.until(lambda: scene.agent.counters.signals["install.updated", "superseded"] == 1)
        await trio.sleep(120)
        scenes.append(scene)
        monkeypatch.setattr(InstalledState, "save_retries", watched)
        scene.host.disk.trouble = 0
        await scene.until(lambda: "disk" not in scene.agent.problems and not scene.agent.inbox.behind, 900)
        assert scene.agent.counters.signals["install.updated", "superseded"] == 1

    scenes: list[Scene] = []
    play(scenario, attrs.evolve(QUIET, poison_attempts=1))
