"""Maintenance windows: staged renewals are switched in the window, and the result is reported; the whole agent."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

import attrs
import pytest
import trio
from simulation.batchauditor import renew_together
from simulation.clock import START
from simulation.network import NetworkFault
from simulation.operators import VALIDITY
from simulation.scene import DAY, QUIET, Scene, play
from simulation.world import DEVICE, USER, template

from certctrl.agent import retries
from certctrl.agent.reporter import snapshot

SATURDAY = START + (4 * DAY + 11.7 * 3600)
"""Saturday, 02:00 UTC; `START` is a Monday."""
SLOW = attrs.evolve(QUIET, interval=600.0, access_seconds=7 * 86_400, reconcile=7 * 86_400)


@contextmanager
def saturday_night(*days: str) -> Iterator[None]:
    """Have a window from 02:00 to 04:00 on Saturdays, or on other days."""
    policy = template().root / "policy.json"
    before = policy.read_text()
    window = {
        "days": days or ("sat",),
        "from": "02:00",
        "to": "04:00",
        "timezone": "UTC",
        "override_when_life_below": 0.2,
    }
    try:
        policy.write_text(json.dumps(json.loads(before) | {"window": window}))
        yield
    finally:
        policy.write_text(before)


async def staged(scene: Scene, validity: float = 200 * DAY, *, service: bool = True) -> int:
    """Deploy a certificate and stage its renewal; return its id."""
    row = await scene.issue("calm.example", validity)
    cert_id = int(row["id"])
    if service:
        scene.operators.introduce(cert_id, "calm.example")
        await scene.plane.installs.put(DEVICE, scene.operators.items([cert_id]))
    await scene.until(lambda: scene.live(cert_id) and not scene.agent.inbox.depth)
    await trio.sleep(1200)
    await scene.plane.certificates.renew(USER, cert_id)
    await scene.until(lambda: scene.record(cert_id).staged)
    return cert_id


def test_a_failure_in_the_window_is_reported_and_retried_with_backoff() -> None:
    async def scenario(scene: Scene) -> None:
        cert_id = await staged(scene)
        await trio.sleep(SATURDAY - 1200 - scene.world.clock.now())
        reported, reloads = len(scene.outcomes()), scene.world.services.known[cert_id].reloads
        scene.world.services.refuse_renewals(cert_id)
        await trio.sleep(2.5 * 3600)
        record, attempts = scene.record(cert_id), scene.retry(cert_id).attempts
        assert 3 <= attempts <= 12, "backoff even in an open window"
        (stuck,) = snapshot(scene.agent)["stuck"]
        assert stuck["next_try_at"] == scene.agent.installer.window_times()[cert_id], (
            "the window is closed: when it opens"
        )
        assert scene.outcomes()[:-reported] == [("cert.renewed", "rolled_back")], "the same failure is reported once"
        scene.world.services.refusing.clear()
        await trio.sleep(SATURDAY + 7 * DAY + 1200 - scene.world.clock.now())
        assert scene.record(cert_id).facts.serial != record.facts.serial
        assert scene.outcomes()[0] == ("cert.renewed", "applied")
        assert scene.world.services.known[cert_id].reloads - reloads < 3 * attempts

    with saturday_night():
        play(scenario, SLOW)


def test_a_short_remaining_lifetime_overrides_the_window() -> None:
    async def scenario(scene: Scene) -> None:
        cert_id = await staged(scene, DAY)
        served = scene.record(cert_id)
        short = served.facts.not_after - 0.2 * (served.facts.not_after - served.facts.not_before)
        await trio.sleep(short - 300 - scene.world.clock.now())
        assert scene.record(cert_id).facts.serial == served.facts.serial
        await scene.until(lambda: scene.record(cert_id).facts.serial != served.facts.serial, 400)

    with saturday_night():
        play(scenario, SLOW)


def test_a_batch_of_which_one_may_not_wait_is_switched_and_reported_as_a_whole() -> None:
    async def scenario(scene: Scene) -> None:
        ids = [int((await scene.issue(f"{life:g}.example", life * DAY))["id"]) for life in (200, 1)]
        await scene.until(lambda: all(map(scene.live, ids)) and not scene.agent.inbox.depth)
        await trio.sleep(1200)
        await renew_together(scene.world, ids, VALIDITY)
        await scene.until(lambda: all(scene.record(one).staged for one in ids) and not scene.agent.inbox.acks_pending)
        reported = len(scene.outcomes())
        await scene.until(lambda: len(scene.outcomes()) >= reported + 2, within=DAY)
        rows = scene.plane.reports.outcomes(DEVICE)[:-reported]
        assert sorted((row["signal"]["ref"]["cert_id"], row["outcome"]) for row in rows) == [
            (one, "applied") for one in sorted(ids)
        ]
        assert not any(scene.record(one).staged for one in ids)

    with saturday_night():
        play(scenario, SLOW)


def test_apply_now_switches_staged_renewals_even_if_the_plane_is_down() -> None:
    async def scenario(scene: Scene) -> None:
        cert_id = await staged(scene, service=False)
        scene.network.faults = [NetworkFault(kind="status", status=503)]
        answer = await scene.ask("apply", now=True)
        assert (answer["outcome"], bool(answer["plane"])) == ("applied", True)
        assert not scene.record(cert_id).staged
        scene.network.clear()
        renewed = await scene.plane.certificates.renew(USER, cert_id)
        assert (await scene.ask("apply", now=True))["outcome"] == "applied"
        assert scene.record(cert_id).facts.serial == renewed["serial_number"]

    with saturday_night():
        play(scenario, SLOW)


def test_a_hold_can_be_released_while_the_plane_is_down() -> None:
    async def scenario(scene: Scene) -> None:
        cert_id = await staged(scene, service=False)
        await scene.ask("apply", now=True)
        newest = scene.record(cert_id).facts.serial
        await scene.ask("rollback", domain="calm.example")
        assert scene.record(cert_id).facts.serial != newest
        scene.network.faults = [NetworkFault(kind="status", status=503)]
        assert (await scene.ask("release", domain="calm.example"))["released"]
        await scene.ask("apply", now=True)
        assert scene.record(cert_id).facts.serial == newest

    with saturday_night():
        play(scenario, SLOW)


async def switched_in_two_windows(scene: Scene) -> None:
    """The second switch leaves a generation too many, whose key is removed soon, not at the next signal or check."""
    cert_id = await staged(scene)
    generations = scene.agent.installer._context.generations
    opens = SATURDAY - 4 * DAY
    for _ in range(2):
        wanted = scene.record(cert_id).staged
        await trio.sleep(opens - 60 - scene.world.clock.now())
        assert wanted in generations.ids("calm.example") and scene.record(cert_id).generation != wanted
        await scene.until(lambda: not scene.record(cert_id).staged, 600)
        assert scene.record(cert_id).generation == wanted
        await trio.sleep(5)
        assert len(generations.ids("calm.example")) == 2, scene.log
        opens += DAY
        await trio.sleep(4 * 3600)
        await scene.plane.certificates.renew(USER, cert_id)
        await scene.until(lambda: scene.record(cert_id).staged)


def test_a_retry_removes_old_generations() -> None:
    with saturday_night("tue", "wed"):
        play(switched_in_two_windows, SLOW, {"CERTCTRL_KEEP_GENERATIONS": "1"})


def test_that_is_noticed_if_a_retry_removes_none(monkeypatch: pytest.MonkeyPatch) -> None:
    async def nothing(_agent: object) -> None:
        pass

    monkeypatch.setattr(retries, "remove_old_generations", nothing)
    with saturday_night("tue", "wed"), pytest.raises(BaseExceptionGroup) as caught:
        play(switched_in_two_windows, SLOW, {"CERTCTRL_KEEP_GENERATIONS": "1"})
    assert caught.group_contains(AssertionError, match="== 2")
