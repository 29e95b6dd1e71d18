"""Operators on the host: configuration, policy, requests and metrics, all without a restart; the whole agent."""

from __future__ import annotations

import json
from typing import Any

import attrs
import pytest
import trio
from simulation.clock import START
from simulation.disk import file_in
from simulation.network import NetworkFault
from simulation.scene import DAY, QUIET, Scene, play
from simulation.world import DEVICE, USER, template

from certctrl.agent.reporter import snapshot
from certctrl.errors import PlaneError
from certctrl.model.plan import OutcomeKind

# --- requests --------------------------------------------------------------------------------------------------------


def test_sighup_applies_a_new_configuration_and_rejects_a_bad_one() -> None:
    async def scenario(scene: Scene) -> None:
        await scene.until(lambda: len(scene.polls) >= 3)
        assert scene.host.process is not None
        assert scene.host.process.on is not None
        scene.host.environ["CERTCTRL_POLL_INTERVAL_MS"] = "600000"
        scene.host.process.on.reload()
        await trio.sleep(700)
        count = len(scene.polls)
        await trio.sleep(3600)
        assert 5 <= len(scene.polls) - count <= 7
        scene.host.environ["CERTCTRL_POLL_INTERVAL_MS"] = "soon"
        scene.host.process.on.reload()
        await trio.sleep(3600)
        assert 10 <= len(scene.polls) - count <= 14, "the old configuration stays active"
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
        first = scene.record(row["id"]).facts.serial
        renewed = await scene.plane.certificates.renew(USER, row["id"])
        await scene.until(lambda: scene.record(row["id"]).staged)
        assert scene.record(row["id"]).facts.serial == first, "staged, not switched"
        await scene.plane.certificates.revoke(USER, other["id"])
        await scene.until(lambda: not scene.live(other["id"]))
        saturday = START + (4 * DAY + 12 * 3600)  # 02:13
        await trio.sleep(saturday - 1200 - scene.world.clock.now())
        assert scene.record(row["id"]).facts.serial == first
        await trio.sleep(2 * 1800)  # 02:23
        assert scene.record(row["id"]).facts.serial == renewed["serial_number"]
        await trio.sleep(2 * DAY)
        newest = await scene.plane.certificates.renew(USER, row["id"])
        await scene.until(lambda: scene.record(row["id"]).staged)
        assert (await scene.ask("apply", now=True))["outcome"] == "applied"
        assert scene.record(row["id"]).facts.serial == newest["serial_number"]

    try:
        policy.write_text(json.dumps(json.loads(before) | {"window": window}))
        play(scenario, attrs.evolve(QUIET, interval=600.0, access_seconds=7 * 86_400))
    finally:
        policy.write_text(before)


def test_a_refused_item_runs_once_the_policy_allows_it() -> None:
    policy, elsewhere = template().root / "policy.json", "/srv/elsewhere"
    before = policy.read_text()

    async def scenario(scene: Scene) -> None:
        scene.host.disk.put_dir(elsewhere)
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
        assert scene.host.process is not None
        assert scene.host.process.on is not None
        scene.host.process.on.reload()
        await scene.until(lambda: file_in(scene.host.disk.now, f"{elsewhere}/www.pem"), 30)
        await scene.until(lambda: not snapshot(scene.agent)["stuck"], 30)
        assert "Configuration reloaded: policy" in scene.log

    try:
        play(scenario)
    finally:
        policy.write_text(before)


def test_a_misspelt_name_in_an_item_is_in_the_status_and_the_outcome() -> None:
    async def scenario(scene: Scene) -> None:
        row = await scene.issue("www.example")
        await scene.until(lambda: scene.live(row["id"]))
        about = {"ob_type": "cert", "ob_name": "wwww.example"}
        item = {"id": "copy", "type": "copy", "from": ["chain.pem"], "to": ["/srv/tls/www.pem"], **about}
        await scene.plane.installs.put(DEVICE, [item], check=False)
        await scene.until(lambda: scene.agent.items and not scene.agent.inbox.depth)
        (idle,) = (await scene.ask("status"))["idle_items"]
        assert idle["item"] == "copy" and "'wwww.example'" in idle["reason"]
        await scene.until(lambda: scene.outcomes()[0][0] == "install.updated")
        assert "item copy is idle" in scene.plane.reports.outcomes(DEVICE)[0]["detail"]
        await scene.plane.installs.put(DEVICE, [item | {"ob_name": "www.example"}])
        await scene.until(lambda: file_in(scene.host.disk.now, "/srv/tls/www.pem"))
        assert (await scene.ask("status"))["idle_items"] == []

    play(scenario)


@pytest.mark.parametrize("known", [True, False])
def test_apply_does_not_report_a_cause_that_it_has_removed(known: bool) -> None:
    async def scenario(scene: Scene) -> None:
        row = await scene.issue("www.example")
        scene.operators.introduce(row["id"], "www.example")
        await scene.plane.installs.put(DEVICE, scene.operators.items([row["id"]]))
        service = scene.world.services.known[row["id"]]
        await scene.until(lambda: service.served and not scene.agent.inbox.depth)
        scene.world.services.failing = lambda: True
        if not known:
            scene.network.mischief = lambda page: page | {"data": page["data"] | {"signals": []}}
        renewed = await scene.plane.certificates.renew(USER, row["id"])
        await scene.until(lambda: scene.retry(row["id"]).attempts) if known else await trio.sleep(120)
        answers = iter([True, False])
        scene.world.services.failing = lambda: next(answers, False)
        done = await scene.ask("apply")
        assert (done["outcome"], done.get("failed")) == ("applied", None)
        assert scene.record(row["id"]).facts.serial == renewed["serial_number"]

    play(scenario)


def test_a_manual_renewal_brings_a_new_serial() -> None:
    async def scenario(scene: Scene) -> None:
        row = await scene.issue("hand.example")
        await scene.until(lambda: scene.live(row["id"]))
        assert (await scene.ask("renew", domain="hand.example"))["requested"] is True
        await scene.until(lambda: scene.record(row["id"]).facts.serial != row["serial_number"])

    play(scenario)


def test_a_manual_rollback_holds_until_it_is_released() -> None:
    async def scenario(scene: Scene) -> None:
        row = await scene.issue("held.example")
        await scene.until(lambda: scene.live(row["id"]))
        first = scene.record(row["id"]).facts.serial
        renewed = await scene.plane.certificates.renew(USER, row["id"])
        await scene.until(lambda: scene.record(row["id"]).facts.serial == renewed["serial_number"])
        done = await scene.ask("rollback", domain="held.example")
        assert done["outcome"] == OutcomeKind.APPLIED.value
        assert scene.record(row["id"]).facts.serial == first
        newest = await scene.plane.certificates.renew(USER, row["id"])
        await trio.sleep(3 * 3600)
        assert scene.record(row["id"]).facts.serial == first, "held"
        await scene.ask("release", domain="held.example")
        await scene.until(lambda: scene.record(row["id"]).facts.serial == newest["serial_number"])

    play(scenario)


def test_status_shows_failing_and_waiting_work_with_its_next_attempt() -> None:
    async def scenario(scene: Scene) -> None:
        row = await scene.issue("stuck.example")
        scene.operators.introduce(row["id"], "stuck.example")
        await scene.plane.installs.put(DEVICE, scene.operators.items([row["id"]]))
        await scene.until(lambda: scene.live(row["id"]) and not scene.agent.inbox.depth)
        took, took_changed = scene.agent.plane.fetch_materials, scene.agent.plane.fetch_changed_materials

        async def pending(*_args: object) -> Any:
            raise PlaneError("WRAP_PENDING", status=409)

        scene.agent.plane.fetch_materials = scene.agent.plane.fetch_changed_materials = pending
        await scene.plane.certificates.renew(USER, row["id"])
        await scene.until(lambda: snapshot(scene.agent)["stuck"])
        status = snapshot(scene.agent)
        assert (status["stuck"][0]["reason"], status["health"]) == ("WRAP_PENDING", "healthy")
        scene.agent.plane.fetch_materials, scene.agent.plane.fetch_changed_materials = took, took_changed
        scene.world.services.refuse_renewals(row["id"])
        await scene.until(lambda: snapshot(scene.agent)["quarantined"])
        (stuck,) = snapshot(scene.agent)["stuck"]
        attempts, next_try_at = scene.retry(row["id"]).attempts, stuck["next_try_at"]
        scene.network.faults = [NetworkFault(kind="refused", path="/apiv1/devices/self/certificates")]  # no comparison
        await trio.sleep(next_try_at - 60 - scene.world.clock.now())
        assert scene.retry(row["id"]).attempts == attempts
        await trio.sleep(120)
        assert scene.retry(row["id"]).attempts == attempts + 1

    play(scenario)


def test_withdrawing_a_bad_install_config_clears_its_problem() -> None:
    async def scenario(scene: Scene) -> None:
        await scene.plane.installs.put(DEVICE, [{"id": "a", "type": "import_ca", "ob_id": 9, "enabled": False}])
        await scene.until(lambda: scene.agent.items and not scene.agent.inbox.depth)
        before = scene.world.image()
        await scene.operators.configure_badly()
        await scene.until(lambda: "install-config" in scene.agent.problems)
        scene.world.plane = scene.world.open_plane(before)
        await scene.until(lambda: "install-config" not in scene.agent.problems, 8 * 3600)

    play(scenario)


def test_replacing_a_bad_item_clears_its_problem() -> None:
    async def scenario(scene: Scene) -> None:
        for _ in range(2):  # the second one is refused in one item, and so is active otherwise
            await scene.operators.configure_badly()
        await scene.until(lambda: "refused-items" in scene.agent.problems)
        await scene.operators.configure()
        await scene.until(lambda: "refused-items" not in scene.agent.problems)

    play(scenario)


# --- metrics ---------------------------------------------------------------------------------------------------------


def test_metrics_are_written_for_the_textfile_collector() -> None:
    textfile = "/srv/tls/cert-ctrl.prom"

    async def scenario(scene: Scene) -> None:
        from prometheus_client.parser import text_string_to_metric_families

        row = await scene.issue("measured.example")
        await scene.until(lambda: scene.live(row["id"]))
        await trio.sleep(600)
        written = file_in(scene.host.disk.now, textfile)
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


def test_trust_reset_accepts_a_plane_whose_versions_start_again() -> None:
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
        assert [item.id for item in scene.agent.items] == ["a"], "an older install config is refused"
        assert "trust reset --install-config" in scene.agent.problems["install-config"].fix
        forgotten = await scene.ask("trust-reset", install_config=True)
        assert [*forgotten["install_configs"].values()] == [4] and forgotten["scripts"] == []
        await scene.until(lambda: [item.id for item in scene.agent.items] == ["b"], 60)
        await scene.until(lambda: "install-config" not in scene.agent.problems, 60)

    play(scenario)


@pytest.mark.parametrize("how", ["keep", "remove"])
def test_a_revocation_is_alerted_once_and_stays_in_the_status(how: str) -> None:
    policy = template().root / "policy.json"
    before = policy.read_text()

    async def scenario(scene: Scene) -> None:
        row = await scene.issue("gone.example")
        await scene.until(lambda: scene.live(row["id"]))
        await scene.plane.certificates.revoke(USER, row["id"])
        await scene.until(lambda: ("cert.revoked", "applied") in scene.outcomes())
        for _ in range(3):
            await scene.ask("apply")
            await trio.sleep(60)
        assert scene.agent.counters.alerts["revoked"] == 1
        await scene.host.stop()
        await trio.sleep(600)
        await scene.ask("apply")
        assert scene.agent.counters.alerts["revoked"] == 0, "a new process does not alert again"
        assert [problem["what"] for problem in (await scene.ask("status"))["problems"]] == [
            f"certificate {row['id']} (gone.example) was revoked"
        ]

    policy.write_text(json.dumps({"on_revoked": how}))
    try:
        play(scenario)
    finally:
        policy.write_text(before)


def test_a_revocation_interrupted_before_its_alert_is_alerted_after_a_restart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scenario(scene: Scene) -> None:
        row = await scene.issue("gone.example")
        await scene.until(lambda: scene.live(row["id"]))
        raised: list[object] = []

        async def cut_off(*args: object, **facts: object) -> None:
            raised.append(args)
            scene.host.kill(power=False)
            await trio.sleep_forever()

        with monkeypatch.context() as patch:
            patch.setattr("certctrl.agent.handlers.raise_alert", cut_off)
            await scene.plane.certificates.revoke(USER, row["id"])
            while not raised:
                await trio.sleep(1)
        await scene.until(lambda: scene.agent.counters.alerts["revoked"] == 1)

    play(scenario)
