"""Expiry, revocation and unassignment of certificates; the whole agent under virtual time."""

from __future__ import annotations

import linecache

import attrs
import trio
from simulation.clock import START
from simulation.network import NetworkFault
from simulation.scene import DAY, QUIET, Scene, play
from simulation.world import DEVICE, GRACE, USER


def test_the_expiry_guard_works_while_the_plane_is_down_for_weeks() -> None:
    async def problems(scene: Scene) -> str:
        return "; ".join(problem["what"] for problem in (await scene.ask("status"))["problems"])

    async def scenario(scene: Scene) -> None:
        row = await scene.issue("old.example", 24 * DAY)
        await scene.until(lambda: scene.live(row["id"]), 2 * 3600)
        await scene.until(lambda: scene.agent.tokens.expires_at() > START + DAY)  # one with a long lifetime
        scene.network.faults = [NetworkFault(kind="refused")]
        await trio.sleep(15.5 * DAY)
        assert "old.example" not in await problems(scene)
        assert "Certificate 1 (old.example) expires" not in scene.log
        await trio.sleep(1 * DAY)  # a third of its lifetime is left
        assert "expires in" in scene.log
        await trio.sleep(4.5 * DAY)  # half of that without a renewal
        assert "no renewal has arrived" in await problems(scene)
        assert (await scene.ask("status"))["health"] in ("degraded", "stale")
        await trio.sleep(3.5 * DAY)
        assert "has expired" in await problems(scene)
        assert scene.live(row["id"]), "an expired certificate is better than none"
        scene.network.clear()
        await scene.ask("poll-now")
        await scene.until(lambda: scene.record(row["id"]).facts.serial != row["serial_number"], DAY)
        await scene.until(lambda: not scene.agent.problems, DAY)
        assert (await scene.ask("status"))["health"] == "healthy"

    setting = attrs.evolve(QUIET, interval=3600.0, access_seconds=60 * 86_400, reconcile=604_800)
    play(scenario, setting, {"CERTCTRL_RECOVERY": "manual"})  # fewer requests to the plane, to keep the test short


def test_the_expiry_guard_requests_a_renewal() -> None:
    async def scenario(scene: Scene) -> None:
        row = await scene.issue("ageing.example", 30 * DAY)
        await scene.until(lambda: scene.live(row["id"]))
        await trio.sleep(19 * DAY)
        assert scene.record(row["id"]).facts.serial == row["serial_number"]
        await scene.until(lambda: scene.record(row["id"]).facts.serial != row["serial_number"], 2 * DAY)

    play(scenario, attrs.evolve(QUIET, interval=3600.0, access_seconds=7 * 86_400))


def test_a_revocation_is_confirmed_before_files_are_removed() -> None:
    async def scenario(scene: Scene) -> None:
        row = await scene.issue("asked.example")
        await scene.until(lambda: scene.live(row["id"]))
        await scene.operators._send("cert.revoked", {"cert_id": row["id"]})
        await trio.sleep(600)
        assert scene.live(row["id"]), "a signal alone proves nothing"
        await scene.plane.certificates.revoke(USER, row["id"])
        await scene.until(lambda: not scene.live(row["id"]))
        problems = (await scene.ask("status"))["problems"]
        assert [problem["what"] for problem in problems] == [f"certificate {row['id']} (asked.example) was revoked"]
        assert scene.agent.counters.alerts["revoked"] == 1

    play(scenario)


def test_a_revocation_is_complete_when_the_service_no_longer_serves_the_certificate() -> None:
    async def scenario(scene: Scene) -> None:
        row = await scene.issue("held.example")
        scene.operators.introduce(row["id"], "held.example")
        await scene.plane.installs.put(DEVICE, scene.operators.items([row["id"]]))
        service = scene.world.services.known[row["id"]]
        await scene.until(lambda: service.served == scene.record(row["id"]).facts.fingerprint_sha256)
        scene.world.services.failing = lambda: True
        await scene.plane.certificates.revoke(USER, row["id"])
        await scene.until(lambda: not scene.live(row["id"]))
        await scene.until(lambda: scene.retry(row["id"]).attempts == 2)
        assert ("cert.revoked", "unchanged") not in scene.outcomes(), "it is still served"
        (stuck,) = (await scene.ask("status"))["stuck"]
        assert "still serves it from memory" in stuck["reason"]
        scene.world.services.failing = lambda: False
        await scene.until(lambda: ("cert.revoked", "applied") in scene.outcomes())
        assert service.served == ""
        assert (await scene.ask("status"))["stuck"] == []
        assert scene.agent.counters.alerts["revoked"] == 1

    play(scenario)


def test_an_unassigned_certificate_is_withdrawn_after_its_grace_time() -> None:
    async def scenario(scene: Scene) -> None:
        row = await scene.issue("moved.example")
        await scene.until(lambda: scene.live(row["id"]))
        await scene.plane.certificates.unassign(USER, DEVICE, row["id"])
        await scene.until(lambda: scene.agent.counters.alerts["unassigned"])
        began, sent = trio.current_time(), len(scene.sent)
        assert (await scene.ask("status"))["health"] == "degraded"
        assert ("cert.unassigned", "failed") not in scene.outcomes(), "it only waits"
        assert "failed" not in await scene.ask("apply")
        await scene.host.stop()
        await scene.until(lambda: not scene.live(row["id"]))
        assert GRACE - 70 < trio.current_time() - began < GRACE + 70, "neither apply nor a restart shortens it"
        assert any(f"certificates/{row['id']}" in one.path for one in scene.sent[sent:]), "confirmed again"
        await scene.until(lambda: ("cert.unassigned", "applied") in scene.outcomes())
        assert (await scene.ask("status"))["health"] == "healthy"

    play(scenario)


def test_free_memory_goes_back_after_the_start() -> None:
    async def scenario(scene: Scene) -> None:
        linecache.cache["<generated>"] = (1, None, ["x\n"], "<generated>")  # released together with the memory
        await scene.until(lambda: "<generated>" not in linecache.cache)
        assert scene.agent.session.last_poll_code == 204

    play(scenario)
