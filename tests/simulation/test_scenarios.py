"""Histories that are written down: one rule each, the whole agent, virtual time."""

from __future__ import annotations

import json
import random
from collections.abc import Awaitable, Callable
from typing import Any

import attrs
import trio
from simulation.clockwork import START, run_seeded
from simulation.disk import file_in
from simulation.history import heard, stand_ins
from simulation.machine import exit_status
from simulation.network import Exchange, Weather
from simulation.operators import Operators
from simulation.world import DEVICE, USER, Setting, World, template

from certctrl.agent.reporter import snapshot
from certctrl.errors import ExitStatus
from certctrl.model.plan import OutcomeKind
from certctrl.protocol.session import OUTCOME_PATIENCE

DAY = 86_400.0
QUIET = Setting(span=0.0, interval=60.0)


class Scene:
    """A world with one agent in it, and what a test looks at."""

    def __init__(self, setting: Setting, environ: dict[str, str]) -> None:
        self.world = World(1, setting)
        self.operators = Operators(self.world, random.Random(1))
        self.machine, self.network, self.plane = self.world.machine, self.world.network, self.world.plane
        self.machine.environ |= {"CERTCTRL_FIRST_POLL_SPREAD_SECONDS": "0", **environ}
        self.sent: list[Exchange] = []
        audit = self.network.before

        def before(exchange: Exchange) -> None:
            self.sent.append(exchange)
            audit(exchange)

        self.network.before = before

    @property
    def agent(self) -> Any:
        """Return the Agent of the process that runs; None before it is ready."""
        return self.machine.life and self.machine.life.agent

    @property
    def polls(self) -> list[Exchange]:
        return [exchange for exchange in self.sent if exchange.is_poll]

    @property
    def log(self) -> str:
        return self.world.journal.text(4000)

    async def issue(self, domain: str, validity: float = 200 * DAY) -> dict[str, Any]:
        row: dict[str, Any] = await self.plane.certificates.issue(
            USER, [domain], validity_seconds=int(validity), device_ids=[DEVICE]
        )
        return row

    async def until(self, condition: Callable[[], Any], within: float = 3600.0) -> None:
        """Wait for a condition; what never comes true fails here, with the journal."""
        end = trio.current_time() + within
        while not (self.agent is not None and condition()):
            assert trio.current_time() < end, f"not within {within:g} s\n{self.log}"
            await trio.sleep(max(1.0, within / 3600))

    def record(self, cert_id: int) -> Any:
        return self.agent.installer.records.get(cert_id)

    def live(self, cert_id: int) -> bool:
        record = self.record(cert_id)
        return record is not None and bool(record.generation)

    async def ask(self, operation: str, **request: Any) -> Any:
        """Ask as a one-shot command does, over the control socket."""
        assert self.machine.life is not None
        self.world.auditor.excused = True
        return await self.machine.life.operations[operation](request)

    def outcomes(self) -> list[tuple[str, str]]:
        return [(row["signal"]["type"], row["outcome"]) for row in self.plane.reports.outcomes(DEVICE)]


def play(
    scenario: Callable[[Scene], Awaitable[None]], setting: Setting = QUIET, environ: dict[str, str] | None = None
) -> None:
    """Run a scenario beside the agent; the auditor of the random histories looks on."""

    async def run() -> None:
        scene = Scene(setting, environ or {})
        try:
            with heard(scene.world), scene.world.auditor.over:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(scene.machine.run_forever)
                    await scenario(scene)
                    nursery.cancel_scope.cancel()
            if scene.world.auditor.violation is not None:
                raise scene.world.auditor.violation
        finally:
            scene.world.close()

    template()
    with stand_ins():
        run_seeded(1, run)


# --- polling --------------------------------------------------------------------------------------------------


def test_interval_polls_come_at_the_interval_and_ask_for_no_wait() -> None:
    async def scenario(scene: Scene) -> None:
        await scene.until(lambda: len(scene.polls) >= 20, 3000)
        gaps = [b.sent_at - a.sent_at for a, b in zip(scene.polls, scene.polls[1:], strict=False)]
        assert all(54 <= gap <= 67 for gap in gaps), gaps
        assert len({round(gap, 2) for gap in gaps}) > 5, "jittered"
        assert {exchange.query["wait"] for exchange in scene.polls} == {"0"}

    play(scenario)


def test_long_poll_waits_at_the_plane_and_delivers_at_once() -> None:
    async def scenario(scene: Scene) -> None:
        await scene.until(lambda: len(scene.polls) >= 3)
        began = trio.current_time()
        row = await scene.issue("fast.example")
        while not scene.live(row["id"]):
            await trio.sleep(0.05)
        assert trio.current_time() - began < 2
        assert {exchange.query["wait"] for exchange in scene.polls} == {"25"}

    play(scenario, attrs.evolve(QUIET, mode="long-poll", interval=5.0))


def test_under_long_poll_an_outcome_goes_out_before_the_next_poll_hangs() -> None:
    async def scenario(scene: Scene) -> None:
        await scene.until(lambda: len(scene.polls) >= 3)
        await scene.issue("told.example")
        began = trio.current_time()
        while ("cert.renewed", "applied") not in scene.outcomes():
            assert trio.current_time() - began < 3, scene.log
            await trio.sleep(0.05)

    play(scenario, attrs.evolve(QUIET, mode="long-poll", interval=5.0))


def test_a_slow_signal_holds_up_the_next_poll_for_a_moment_only() -> None:
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
        assert OUTCOME_PATIENCE <= trio.current_time() - began < OUTCOME_PATIENCE + 2
        assert not scene.live(row["id"])
        await scene.until(lambda: scene.live(row["id"]), 60)

    play(scenario, attrs.evolve(QUIET, mode="long-poll", interval=5.0))


def test_what_is_done_beside_a_long_poll_is_told_at_once() -> None:
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
        assert len(scene.polls) == polls, "the poll went on"
        assert scene.agent.inbox.acks_pending == 0

    play(scenario, attrs.evolve(QUIET, mode="long-poll", interval=5.0))


def test_adaptive_mode_long_polls_after_activity_and_then_no_more() -> None:
    async def scenario(scene: Scene) -> None:
        await scene.until(lambda: len(scene.polls) >= 3)
        assert scene.polls[-1].query["wait"] == "0"
        row = await scene.issue("busy.example")
        await scene.until(lambda: scene.live(row["id"]))
        await scene.until(lambda: scene.polls[-1].query["wait"] != "0", 120)
        await scene.until(lambda: scene.polls[-1].query["wait"] == "0", 3600)

    play(scenario, attrs.evolve(QUIET, mode="adaptive", interval=20.0))


def test_a_server_that_asks_for_time_gets_it_once() -> None:
    async def scenario(scene: Scene) -> None:
        await scene.until(lambda: len(scene.polls) >= 2)
        scene.network.weather = [Weather(kind="status", status=503, retry_after="400", asks=400.0)]
        await scene.until(lambda: scene.polls[-1].weather is not None)
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
        scene.network.weather = [Weather(kind="status", status=500)]
        await scene.until(lambda: scene.agent.session.breaker_open, 3 * 3600)
        assert scene.agent.session.failures == 10
        status = await scene.ask("status")
        assert status["poll"]["breaker_open"] is True
        assert status["health"] in ("degraded", "stale")
        count = len(scene.polls)
        await trio.sleep(DAY)
        assert len(scene.polls) == count, "manual means that nobody polls"
        scene.network.clear()
        answer = await scene.ask("poll-now")
        assert answer["poll"].startswith("204")
        assert (await scene.ask("status"))["health"] == "healthy"
        await scene.until(lambda: len(scene.polls) >= count + 4, 400)

    play(scenario, environ={"CERTCTRL_RECOVERY": "manual"})


def test_poll_now_tells_what_came_after_a_reset_of_the_cursor() -> None:
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


def test_a_revoked_device_stops_for_good_and_says_so() -> None:
    async def scenario(scene: Scene) -> None:
        await scene.until(lambda: len(scene.polls) >= 2)
        scene.world.auditor.device_revoked = True
        scene.plane.devices.revoke(USER, DEVICE, "stolen")
        with trio.fail_after(3600):
            while not scene.machine.parked:
                await trio.sleep(1)
        assert scene.machine.life is not None
        assert exit_status(scene.machine.life) is ExitStatus.NOT_REGISTERED
        count = len(scene.sent)
        await trio.sleep(DAY)
        assert len(scene.sent) == count
        assert "CRIT" in scene.log

    play(scenario)


def test_a_rejected_access_token_costs_one_refresh_and_one_retry() -> None:
    async def scenario(scene: Scene) -> None:
        await scene.until(lambda: len(scene.polls) >= 2)
        before = len(scene.sent)
        scene.network.weather = [Weather(kind="unauthorized", path=scene.polls[0].path)]
        await scene.until(lambda: scene.polls[-1].weather is not None)
        scene.network.clear()
        await trio.sleep(10)
        kinds = [exchange.path.rpartition("/")[2] for exchange in scene.sent[before:]]
        assert kinds[:3] == ["updates", "refresh", "updates"], kinds
        assert scene.sent[before + 2].token != scene.sent[before].token

    play(scenario)


# --- signals and acks --------------------------------------------------------------------------------------------


def test_a_small_queue_holds_back_and_loses_nothing() -> None:
    async def scenario(scene: Scene) -> None:
        rows = [await scene.issue(f"n{n}.example") for n in range(12)]
        for row in rows:
            await scene.plane.certificates.renew(USER, row["id"])
        await scene.until(lambda: all(scene.live(row["id"]) for row in rows), 2 * 3600)
        serials = {row["id"]: row["serial_number"] for row in scene.plane.certificates.page(DEVICE, 0, 100)}
        await scene.until(lambda: {i: scene.record(i).serial for i in serials} == serials)

    play(scenario, attrs.evolve(QUIET, queue=4, page=3))


def test_a_poison_signal_is_set_aside_and_forgiven_by_a_newer_one() -> None:
    async def scenario(scene: Scene) -> None:
        good = await scene.issue("good.example")
        await scene.until(lambda: scene.live(good["id"]))
        bad = await scene.issue("poison1.example")
        await scene.until(lambda: snapshot(scene.agent)["quarantined"], DAY)
        status = await scene.ask("status")
        assert status["health"] == "degraded"
        assert len(status["quarantined"]) == 1
        renewed = await scene.plane.certificates.renew(USER, good["id"])
        await scene.until(lambda: scene.record(good["id"]).serial == renewed["serial_number"])
        scene.world.issuer.bad = False
        await scene.plane.certificates.renew(USER, bad["id"])
        await scene.until(lambda: scene.live(bad["id"]), DAY)
        await scene.until(lambda: not snapshot(scene.agent)["quarantined"], DAY)

    play(scenario)


def test_a_plane_that_takes_no_reports_is_fine() -> None:
    async def scenario(scene: Scene) -> None:
        scene.network.weather = [Weather(kind="status", status=404, path="/apiv1/devices/self/notify")]
        row = await scene.issue("quiet.example")
        await scene.until(lambda: scene.live(row["id"]))
        await scene.until(lambda: scene.agent.inbox.acks_pending == 0)
        assert (await scene.ask("status"))["health"] == "healthy"
        assert scene.log.count("takes no acks") == 1, "said once"

    play(scenario)


def test_outcomes_that_could_not_be_sent_survive_a_kill() -> None:
    async def scenario(scene: Scene) -> None:
        await scene.until(lambda: len(scene.polls) >= 2)
        await scene.until(lambda: scene.agent.inbox.acks_pending == 0)
        told = len(scene.outcomes())
        scene.network.weather = [Weather(kind="status", status=503, path="/apiv1/devices/self/notify")]
        row = await scene.issue("late.example")
        acks = scene.world.layout.pending_acks
        await scene.until(
            lambda: scene.live(row["id"]) and b"applied" in (file_in(scene.machine.disk.base, acks) or b"")
        )
        scene.machine.kill(power=True)
        await trio.sleep(60)
        assert len(scene.outcomes()) == told
        scene.network.clear()
        await scene.until(lambda: len(scene.outcomes()) > told)
        assert ("cert.renewed", "applied") in scene.outcomes()

    play(scenario)


# --- certificates that end -----------------------------------------------------------------------------------------


def test_the_expiry_guard_works_while_the_plane_is_away_for_weeks() -> None:
    async def problems(scene: Scene) -> str:
        return "; ".join(problem["what"] for problem in (await scene.ask("status"))["problems"])

    async def scenario(scene: Scene) -> None:
        row = await scene.issue("old.example", 24 * DAY)
        await scene.until(lambda: scene.live(row["id"]), 2 * 3600)
        await scene.until(lambda: scene.agent.tokens.expires_at() > START + DAY)  # one that lasts
        scene.network.weather = [Weather(kind="refused")]
        await trio.sleep(15.5 * DAY)
        assert "old.example" not in await problems(scene)
        assert "Certificate 1 (old.example) expires" not in scene.log
        await trio.sleep(1 * DAY)  # a third of its life is left
        assert "expires in" in scene.log
        await trio.sleep(4.5 * DAY)  # half of that, and nothing has come
        assert "no renewal has come" in await problems(scene)
        assert (await scene.ask("status"))["health"] in ("degraded", "stale")
        await trio.sleep(3.5 * DAY)
        assert "has expired" in await problems(scene)
        assert scene.live(row["id"]), "an expired certificate is better than none"
        scene.network.clear()
        await scene.ask("poll-now")
        await scene.until(lambda: scene.record(row["id"]).serial != row["serial_number"], DAY)
        await scene.until(lambda: not scene.agent.problems, DAY)
        assert (await scene.ask("status"))["health"] == "healthy"

    setting = attrs.evolve(QUIET, interval=3600.0, access_seconds=60 * 86_400, reconcile=604_800)
    play(scenario, setting, {"CERTCTRL_RECOVERY": "manual"})  # fewer tries of the plane: they are not the point


def test_an_old_certificate_makes_the_guard_ask_for_a_renewal() -> None:
    async def scenario(scene: Scene) -> None:
        row = await scene.issue("ageing.example", 30 * DAY)
        await scene.until(lambda: scene.live(row["id"]))
        await trio.sleep(19 * DAY)
        assert scene.record(row["id"]).serial == row["serial_number"]
        await scene.until(lambda: scene.record(row["id"]).serial != row["serial_number"], 2 * DAY)

    play(scenario, attrs.evolve(QUIET, interval=3600.0, access_seconds=7 * 86_400))


def test_a_revocation_is_confirmed_before_anything_goes() -> None:
    async def scenario(scene: Scene) -> None:
        row = await scene.issue("asked.example")
        await scene.until(lambda: scene.live(row["id"]))
        await scene.operators._send("cert.revoked", {"cert_id": row["id"]})
        await trio.sleep(600)
        assert scene.live(row["id"]), "a hint is no proof"
        await scene.plane.certificates.revoke(USER, row["id"])
        await scene.until(lambda: not scene.live(row["id"]))
        problems = (await scene.ask("status"))["problems"]
        assert [problem["what"] for problem in problems] == [f"certificate {row['id']} (asked.example) was revoked"]
        assert scene.agent.figures.alerts["revoked"] == 1

    play(scenario)


def test_what_is_unassigned_goes_without_an_alarm() -> None:
    async def scenario(scene: Scene) -> None:
        row = await scene.issue("moved.example")
        await scene.until(lambda: scene.live(row["id"]))
        await scene.plane.certificates.unassign(USER, DEVICE, row["id"])
        await scene.until(lambda: not scene.live(row["id"]))
        assert (await scene.ask("status"))["health"] == "healthy"
        assert not scene.agent.figures.alerts

    play(scenario)


# --- people ----------------------------------------------------------------------------------------------------------


def test_a_new_configuration_is_in_force_after_sighup_and_a_bad_one_is_not() -> None:
    async def scenario(scene: Scene) -> None:
        await scene.until(lambda: len(scene.polls) >= 3)
        assert scene.machine.life is not None
        assert scene.machine.life.on is not None
        scene.machine.environ["CERTCTRL_POLL_INTERVAL_MS"] = "600000"
        scene.machine.life.on.reload()
        await trio.sleep(700)
        count = len(scene.polls)
        await trio.sleep(3600)
        assert 5 <= len(scene.polls) - count <= 7
        scene.machine.environ["CERTCTRL_POLL_INTERVAL_MS"] = "soon"
        scene.machine.life.on.reload()
        await trio.sleep(3600)
        assert 10 <= len(scene.polls) - count <= 14, "the old one goes on"
        (problem,) = (await scene.ask("status"))["problems"]
        assert "CERTCTRL_POLL_INTERVAL_MS" in problem["what"]

    play(scenario)


def test_renewals_wait_for_the_window_and_revocations_do_not() -> None:
    """START is a Monday afternoon."""
    policy = template().root / "policy.json"
    before = policy.read_text()
    window = {"days": ["sat"], "from": "02:00", "to": "04:00", "timezone": "UTC", "override_when_life_below": 0.2}

    async def scenario(scene: Scene) -> None:
        row, other = await scene.issue("calm.example"), await scene.issue("gone.example")
        await scene.until(lambda: scene.live(row["id"]) and scene.live(other["id"]))
        first = scene.record(row["id"]).serial
        renewed = await scene.plane.certificates.renew(USER, row["id"])
        await scene.until(lambda: scene.record(row["id"]).staged)
        assert scene.record(row["id"]).serial == first, "staged, not switched"
        await scene.plane.certificates.revoke(USER, other["id"])
        await scene.until(lambda: not scene.live(other["id"]))
        saturday = START + (4 * DAY + 12 * 3600)  # 02:13
        await trio.sleep(saturday - 1200 - scene.world.time.now())
        assert scene.record(row["id"]).serial == first
        await trio.sleep(2 * 1800)  # 02:23
        assert scene.record(row["id"]).serial == renewed["serial_number"]
        await trio.sleep(2 * DAY)
        newest = await scene.plane.certificates.renew(USER, row["id"])
        await scene.until(lambda: scene.record(row["id"]).staged)
        assert (await scene.ask("apply", now=True))["outcome"] == "applied"
        assert scene.record(row["id"]).serial == newest["serial_number"]

    try:
        policy.write_text(json.dumps(json.loads(before) | {"window": window}))
        play(scenario, attrs.evolve(QUIET, interval=600.0, access_seconds=7 * 86_400))
    finally:
        policy.write_text(before)


def test_what_was_refused_is_done_once_the_policy_allows_it() -> None:
    policy, elsewhere = template().root / "policy.json", "/srv/elsewhere"
    before = policy.read_text()

    async def scenario(scene: Scene) -> None:
        scene.machine.disk.put_dir(elsewhere)
        row = await scene.issue("copied.example")
        item = {
            "id": "copy", "type": "copy", "ob_type": "cert", "ob_id": row["id"], "from": ["fullchain.pem"],
            "to": [f"{elsewhere}/www.pem"],
        }  # fmt: skip
        await scene.plane.installs.put(DEVICE, [item])
        await trio.sleep(4 * 3600)
        assert (await scene.ask("status"))["health"] == "degraded"
        assert (await scene.ask("plan"))["refusals"]
        policy.write_text(json.dumps(json.loads(before) | {"write_roots": ["/srv/tls", elsewhere]}))
        assert scene.machine.life is not None
        assert scene.machine.life.on is not None
        scene.machine.life.on.reload()
        await scene.until(lambda: file_in(scene.machine.disk.now, f"{elsewhere}/www.pem"), 30)
        await scene.until(lambda: not snapshot(scene.agent)["stuck"], 30)
        assert "Configuration reloaded: policy" in scene.log

    try:
        play(scenario)
    finally:
        policy.write_text(before)


def test_renew_by_hand_brings_a_new_serial() -> None:
    async def scenario(scene: Scene) -> None:
        row = await scene.issue("hand.example")
        await scene.until(lambda: scene.live(row["id"]))
        assert (await scene.ask("renew", domain="hand.example"))["requested"] is True
        await scene.until(lambda: scene.record(row["id"]).serial != row["serial_number"])

    play(scenario)


def test_rollback_by_hand_holds_until_it_is_released() -> None:
    async def scenario(scene: Scene) -> None:
        row = await scene.issue("held.example")
        await scene.until(lambda: scene.live(row["id"]))
        first = scene.record(row["id"]).serial
        renewed = await scene.plane.certificates.renew(USER, row["id"])
        await scene.until(lambda: scene.record(row["id"]).serial == renewed["serial_number"])
        done = await scene.ask("rollback", domain="held.example")
        assert done["outcome"] == OutcomeKind.ROLLED_BACK.value or done["outcome"] == OutcomeKind.APPLIED.value
        assert scene.record(row["id"]).serial == first
        newest = await scene.plane.certificates.renew(USER, row["id"])
        await trio.sleep(3 * 3600)
        assert scene.record(row["id"]).serial == first, "held"
        await scene.ask("release", domain="held.example")
        await scene.until(lambda: scene.record(row["id"]).serial == newest["serial_number"])

    play(scenario)


# --- figures ---------------------------------------------------------------------------------------------------------


def test_metrics_are_written_for_the_textfile_collector() -> None:
    textfile = "/srv/tls/cert-ctrl.prom"

    async def scenario(scene: Scene) -> None:
        from prometheus_client.parser import text_string_to_metric_families

        row = await scene.issue("measured.example")
        await scene.until(lambda: scene.live(row["id"]))
        await trio.sleep(600)
        written = file_in(scene.machine.disk.now, textfile)
        assert written is not None
        found = {
            sample.name: sample
            for family in text_string_to_metric_families(written.decode())
            for sample in family.samples
        }
        names = " ".join(found)
        for part in ("polls_total", "poll_duration", "queue", "cursor", "retry_after", "not_after", "token"):
            assert part in names, (part, names)
        (expiry,) = [sample for name, sample in found.items() if name.endswith("not_after_timestamp_seconds")]
        assert expiry.value > START + 199 * DAY
        assert "measured.example" in json.dumps(expiry.labels)

    play(scenario, environ={"CERTCTRL_METRICS_TEXTFILE": textfile})


def test_a_plane_that_counts_from_the_beginning_is_followed_when_a_person_says_so() -> None:
    async def scenario(scene: Scene) -> None:
        row = await scene.issue("www.example")
        await scene.until(lambda: scene.live(row["id"]))
        for enabled in (True, False, True):
            await scene.plane.installs.put(DEVICE, [{"id": "a", "type": "import_ca", "ob_id": 9, "enabled": enabled}])
        await scene.until(lambda: scene.agent.items and not scene.agent.inbox.depth)
        assert [item.id for item in scene.agent.items] == ["a"]
        scene.plane.database.run("UPDATE install_configs SET version = 1")
        await scene.plane.installs.put(DEVICE, [{"id": "b", "type": "import_ca", "ob_id": 9, "enabled": False}])
        await scene.until(lambda: "install-config" in scene.agent.problems)
        assert [item.id for item in scene.agent.items] == ["a"], "an older plan is refused"
        assert "trust reset --install-config" in scene.agent.problems["install-config"].fix
        forgotten = await scene.ask("trust-reset", install_config=True)
        assert [*forgotten["install_configs"].values()] == [4] and forgotten["scripts"] == []
        await scene.until(lambda: [item.id for item in scene.agent.items] == ["b"], 60)
        await scene.until(lambda: "install-config" not in scene.agent.problems, 60)

    play(scenario)
