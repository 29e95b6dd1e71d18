"""Polls, signals and acks of the whole agent under virtual time: timing by mode, and nothing lost."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import attrs
import trio
from simulation.disk import file_in
from simulation.host import exit_status
from simulation.network import NOTIFY_PATH, NetworkFault
from simulation.scene import DAY, QUIET, Scene, play
from simulation.world import DEVICE, USER

from certctrl.agent.reporter import snapshot
from certctrl.errors import ExitStatus
from certctrl.protocol.session import OUTCOME_WAIT

# --- polling --------------------------------------------------------------------------------------------------


def test_interval_mode_polls_at_the_interval_without_wait() -> None:
    async def scenario(scene: Scene) -> None:
        await scene.until(lambda: len(scene.polls) >= 20, 3000)
        gaps = [b.sent_at - a.sent_at for a, b in zip(scene.polls, scene.polls[1:], strict=False)]
        assert all(54 <= gap <= 67 for gap in gaps), gaps
        assert len({round(gap, 2) for gap in gaps}) > 5, "jittered"
        assert {exchange.query["wait"] for exchange in scene.polls} == {"0"}

    play(scenario)


def test_long_poll_waits_at_the_plane_and_delivers_immediately() -> None:
    async def scenario(scene: Scene) -> None:
        await scene.until(lambda: len(scene.polls) >= 3)
        began = trio.current_time()
        row = await scene.issue("fast.example")
        while not scene.live(row["id"]):
            await trio.sleep(0.05)
        assert trio.current_time() - began < 2
        waits = [int(exchange.query["wait"]) for exchange in scene.polls]
        assert min(waits) >= 8 and waits[1:3] == [25, 25], "the first one has a random length"

    play(scenario, attrs.evolve(QUIET, mode="long-poll", interval=5.0))


def test_under_long_poll_an_outcome_is_reported_before_the_next_poll() -> None:
    async def scenario(scene: Scene) -> None:
        await scene.until(lambda: len(scene.polls) >= 3)
        await scene.issue("first.example")
        began = trio.current_time()
        while ("cert.renewed", "applied") not in scene.outcomes():
            assert trio.current_time() - began < 3, scene.log
            await trio.sleep(0.05)

    play(scenario, attrs.evolve(QUIET, mode="long-poll", interval=5.0))


def test_a_slow_signal_delays_the_next_poll_only_briefly() -> None:
    async def scenario(scene: Scene) -> None:
        await scene.until(lambda: len(scene.polls) >= 3)
        took = scene.agent.plane.fetch_materials

        async def slow(*args: Any) -> Any:
            await trio.sleep(20)
            return await took(*args)

        scene.agent.plane.fetch_materials = slow
        row, polls = await scene.issue("slow.example"), len(scene.polls)
        began = trio.current_time()
        while len(scene.polls) == polls:
            await trio.sleep(0.05)
        assert OUTCOME_WAIT <= trio.current_time() - began < OUTCOME_WAIT + 2
        assert not scene.live(row["id"])
        await scene.until(lambda: scene.live(row["id"]), 60)

    play(scenario, attrs.evolve(QUIET, mode="long-poll", interval=5.0))


def test_outcomes_during_a_long_poll_are_reported_immediately() -> None:
    async def scenario(scene: Scene) -> None:
        await scene.until(lambda: len(scene.polls) >= 3)
        stage = scene.agent.installer.stage

        async def slow(*args: Any) -> Any:
            await trio.sleep(5)
            return await stage(*args)

        scene.agent.installer.stage = slow
        rows = [await scene.issue(f"slow{number}.example") for number in range(3)]
        await scene.until(lambda: all(scene.live(row["id"]) for row in rows), 60)
        began, polls = trio.current_time(), len(scene.polls)
        while scene.outcomes().count(("cert.renewed", "applied")) < len(rows):
            assert trio.current_time() - began < 2, scene.log
            await trio.sleep(0.05)
        assert len(scene.polls) == polls, "the long poll continued"
        assert scene.agent.inbox.acks_pending == 0

    play(scenario, attrs.evolve(QUIET, mode="long-poll", interval=5.0))


def test_adaptive_mode_long_polls_for_a_while_after_activity() -> None:
    async def scenario(scene: Scene) -> None:
        await scene.until(lambda: len(scene.polls) >= 3)
        assert scene.polls[-1].query["wait"] == "0"
        row = await scene.issue("busy.example")
        await scene.until(lambda: scene.live(row["id"]))
        await scene.until(lambda: scene.polls[-1].query["wait"] != "0", 120)
        await scene.until(lambda: scene.polls[-1].query["wait"] == "0", 3600)

    play(scenario, attrs.evolve(QUIET, mode="adaptive", interval=20.0))


def test_retry_after_delays_one_poll() -> None:
    async def scenario(scene: Scene) -> None:
        await scene.until(lambda: len(scene.polls) >= 2)
        scene.network.faults = [NetworkFault(kind="status", status=503, retry_after="400", asks=400.0)]
        await scene.until(lambda: scene.polls[-1].fault is not None)
        scene.network.clear()
        asked, count = scene.polls[-1].sent_at, len(scene.polls)
        await scene.until(lambda: len(scene.polls) >= count + 3)
        first, second, third = (exchange.sent_at for exchange in scene.polls[count : count + 3])
        assert 400 <= first - asked <= 400 * 1.11
        assert second - first < 70
        assert third - second < 70

    play(scenario)


def test_the_breaker_opens_after_ten_failures_and_poll_now_closes_it() -> None:
    async def scenario(scene: Scene) -> None:
        await scene.until(lambda: len(scene.polls) >= 2)
        scene.network.faults = [NetworkFault(kind="status", status=500)]
        await scene.until(lambda: scene.agent.session.breaker_open, 3 * 3600)
        assert scene.agent.session.failures == 10
        status = await scene.ask("status")
        assert status["poll"]["breaker_open"] is True
        assert status["health"] in ("degraded", "stale")
        count = len(scene.polls)
        await trio.sleep(DAY)
        assert len(scene.polls) == count, "manual recovery does not poll"
        scene.network.clear()
        answer = await scene.ask("poll-now")
        assert answer["poll"].startswith("204")
        assert (await scene.ask("status"))["health"] == "healthy"
        await scene.until(lambda: len(scene.polls) >= count + 4, 400)

    play(scenario, environ={"CERTCTRL_RECOVERY": "manual"})


def test_poll_now_reports_the_answer_after_a_cursor_reset() -> None:
    async def scenario(scene: Scene) -> None:
        await scene.until(lambda: len(scene.polls) >= 2)
        row = await scene.issue("missed.example")
        await scene.plane.certificates.renew(USER, row["id"])
        scene.plane.stream.trim(DEVICE, 0)
        answer = await scene.ask("poll-now")
        assert not answer["poll"].startswith("409"), answer
        assert "Cursor reset" in scene.log
        await scene.until(lambda: scene.live(row["id"]), 30)

    play(scenario)


def test_a_revoked_device_stops_permanently_and_logs_it() -> None:
    async def scenario(scene: Scene) -> None:
        await scene.until(lambda: len(scene.polls) >= 2)
        scene.world.auditor.device_revoked = True
        agent = scene.agent
        scene.plane.devices.revoke(USER, DEVICE, "stolen")
        with trio.fail_after(3600):
            while not scene.host.parked:
                await trio.sleep(1)
        assert scene.host.process is not None
        assert exit_status(scene.host.process) is ExitStatus.NOT_REGISTERED
        count = len(scene.sent)
        await trio.sleep(DAY)
        assert len(scene.sent) == count
        assert "CRIT" in scene.log
        assert agent.counters.alerts["ended"] == 1, "the operator's command was started"

    play(scenario)


def test_a_rejected_access_token_costs_one_refresh_and_one_retry() -> None:
    async def scenario(scene: Scene) -> None:
        await scene.until(lambda: len(scene.polls) >= 2)
        before = len(scene.sent)
        scene.network.faults = [NetworkFault(kind="unauthorized", path=scene.polls[0].path)]
        await scene.until(lambda: scene.polls[-1].fault is not None)
        scene.network.clear()
        await trio.sleep(10)
        kinds = [exchange.path.rpartition("/")[2] for exchange in scene.sent[before:]]
        assert kinds[:3] == ["updates", "refresh", "updates"], kinds
        assert scene.sent[before + 2].token != scene.sent[before].token

    play(scenario)


# --- signals and acks --------------------------------------------------------------------------------------------


def test_a_small_queue_pauses_polling_and_loses_nothing() -> None:
    async def scenario(scene: Scene) -> None:
        rows = [await scene.issue(f"n{n}.example") for n in range(12)]
        for row in rows:
            await scene.plane.certificates.renew(USER, row["id"])
        await scene.until(lambda: all(scene.live(row["id"]) for row in rows), 2 * 3600)
        serials = {row["id"]: row["serial_number"] for row in scene.plane.certificates.page(DEVICE, 0, 100)}
        await scene.until(lambda: {i: scene.record(i).facts.serial for i in serials} == serials)

    play(scenario, attrs.evolve(QUIET, queue=4, page=3))


def test_a_newer_signal_ends_the_quarantine_of_a_poison_signal() -> None:
    async def scenario(scene: Scene) -> None:
        good = await scene.issue("good.example")
        await scene.until(lambda: scene.live(good["id"]))
        bad = await scene.issue("poison1.example")
        await scene.until(lambda: snapshot(scene.agent)["quarantined"], DAY)
        status = await scene.ask("status")
        assert status["health"] == "degraded"
        assert len(status["quarantined"]) == 1
        renewed = await scene.plane.certificates.renew(USER, good["id"])
        await scene.until(lambda: scene.record(good["id"]).facts.serial == renewed["serial_number"])
        scene.world.issuer.bad = False
        await scene.plane.certificates.renew(USER, bad["id"])
        await scene.until(lambda: scene.live(bad["id"]), DAY)
        await scene.until(lambda: not snapshot(scene.agent)["quarantined"], DAY)

    play(scenario)


def test_a_plane_without_a_notify_endpoint_is_healthy() -> None:
    async def scenario(scene: Scene) -> None:
        scene.network.faults = [NetworkFault(kind="status", status=404, path="/apiv1/devices/self/notify")]
        row = await scene.issue("quiet.example")
        await scene.until(lambda: scene.live(row["id"]))
        await scene.until(lambda: scene.agent.inbox.acks_pending == 0)
        assert (await scene.ask("status"))["health"] == "healthy"
        assert scene.log.count("does not accept acks") == 1, "logged once"

    play(scenario)


def test_outcomes_that_could_not_be_sent_survive_a_kill() -> None:
    async def scenario(scene: Scene) -> None:
        await scene.until(lambda: len(scene.polls) >= 2)
        await scene.until(lambda: scene.agent.inbox.acks_pending == 0)
        reported = len(scene.outcomes())
        scene.network.faults = [NetworkFault(kind="status", status=503, path="/apiv1/devices/self/notify")]
        row = await scene.issue("late.example")
        acks = scene.world.layout.pending_acks
        await scene.until(lambda: scene.live(row["id"]) and b"applied" in (file_in(scene.host.disk.base, acks) or b""))
        scene.host.kill(power=True)
        await trio.sleep(60)
        assert len(scene.outcomes()) == reported
        scene.network.clear()
        await scene.until(lambda: len(scene.outcomes()) > reported)
        assert ("cert.renewed", "applied") in scene.outcomes()

    play(scenario)


# --- outcomes and stops -----------------------------------------------------------------------------------------------


def test_between_polls_a_slow_outcome_is_reported_without_waiting_for_the_next_one() -> None:
    async def scenario(scene: Scene) -> None:
        await scene.until(lambda: len(scene.polls) >= 3)
        took = scene.agent.plane.fetch_materials

        async def slow(*args: Any) -> Any:
            await trio.sleep(3)
            return await took(*args)

        scene.agent.plane.fetch_materials = slow
        row = await scene.issue("slow.example")
        await scene.until(lambda: scene.live(row["id"]), 700)
        polls, began = len(scene.polls), trio.current_time()
        while ("cert.renewed", "applied") not in scene.outcomes():
            assert trio.current_time() - began < 3, scene.log
            await trio.sleep(0.05)
        assert len(scene.polls) == polls, "no poll brought it"

    play(scenario, attrs.evolve(QUIET, interval=600.0))


def test_acks_that_the_plane_refused_are_not_sent_again_between_polls() -> None:
    async def scenario(scene: Scene) -> None:
        await scene.until(lambda: len(scene.polls) >= 3)
        scene.network.faults = [
            NetworkFault(kind="status", status=503, retry_after="400", asks=400.0, path=NOTIFY_PATH)
        ]
        for number in range(5):
            await scene.issue(f"n{number}.example")
            await trio.sleep(130)
        sent = [exchange for exchange in scene.sent if exchange.path == NOTIFY_PATH and exchange.fault is not None]
        gaps = [b.sent_at - a.sent_at for a, b in pairwise(sent)]
        assert sent and all(gap >= 399 for gap in gaps), gaps
        scene.network.clear()
        await scene.until(lambda: scene.outcomes()[:1] == [("cert.renewed", "applied")], 900)

    play(scenario, attrs.evolve(QUIET, interval=60.0))


def test_a_stop_is_bounded_while_the_plane_gets_no_packet() -> None:
    """With outcomes to report, and at every third stop without a usable token."""
    grace = 0.5

    async def scenario(scene: Scene) -> None:
        took: list[float] = []
        for number in range(6):
            await scene.until(lambda number=number: scene.ready and len(scene.polls) > number)
            scene.network.faults = [NetworkFault(kind="refused", path=NOTIFY_PATH)]
            await scene.issue(f"n{number}.example")
            await scene.until(lambda: scene.agent.inbox.acks_pending, 600)
            scene.network.faults = [NetworkFault(kind="blackhole")]
            if number % 3 == 0:
                scene.agent.tokens._access = ""
            await trio.sleep(0.9 * number)
            began, process = trio.current_time(), scene.host.process
            await scene.host.stop()
            assert process is not None and process.over.is_set()
            took.append(trio.current_time() - began)
            scene.network.clear()
            await trio.sleep(60)
        assert max(took) <= grace + 2, took

    setting = attrs.evolve(QUIET, interval=20.0, mode="long-poll", access_seconds=120)
    play(scenario, setting, {"CERTCTRL_STOP_GRACE_SECONDS": str(grace)})


def test_routine_polls_need_not_be_logged() -> None:
    async def scenario(scene: Scene) -> None:
        await scene.until(lambda: len(scene.polls) >= 3)
        await scene.issue("told.example")
        await trio.sleep(3 * 3600)
        scene.network.faults = [NetworkFault(kind="status", status=503)]
        await trio.sleep(600)
        scene.network.clear()
        await trio.sleep(3 * 3600)
        lines = [line for line in scene.world.journal.text(100_000).splitlines() if " Poll: " in line]
        assert not [line for line in lines if "Request: cursor" in line or "204 No Content" in line]
        assert [line for line in lines if "200 OK, " in line], "what is not routine is written"
        assert [line for line in lines if "Response: 503" in line]
        summaries = [line for line in lines if "In the last " in line]
        assert 5 <= len(summaries) <= 7, summaries
        assert any("1 with updates" in line for line in summaries), summaries
        assert any(" 0 failed" not in line for line in summaries), summaries

    play(scenario, environ={"CERTCTRL_LOG_POLLS": "changes"})
