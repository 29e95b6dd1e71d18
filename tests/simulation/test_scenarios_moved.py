"""Unassignments, and planes that do not know this host's certificates: nothing is removed without an order."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

import attrs
import trio
from simulation.authority import ca
from simulation.disk import file_in, names_in
from simulation.scene import DAY, QUIET, Scene, play
from simulation.world import DEVICE, GRACE, TRUSTED, USER, template

from certctrl.agent.alerts import problem_key
from certctrl.agent.standing import MASS, UNKNOWN
from certctrl.model.records import Standing

OTHER = "https://other.test"
LONG = 2.5 * 3600
"""Seconds; more than two comparisons, and longer than any pause."""
CALM = attrs.evolve(QUIET, interval=120.0, reconcile=3600)


async def problems(scene: Scene) -> str:
    return "; ".join(f"{one['what']} ({one['fix']})" for one in (await scene.ask("status"))["problems"])


async def deployed(scene: Scene, *domains: str) -> list[int]:
    rows = [await scene.issue(domain) for domain in domains]
    await scene.until(lambda: all(scene.live(row["id"]) for row in rows))
    return [row["id"] for row in rows]


async def restarted(scene: Scene) -> None:
    starts = scene.host.starts
    await scene.host.stop()
    await scene.until(lambda: scene.host.starts > starts)


def empty(scene: Scene) -> None:
    """Let the plane lose everything but its devices."""
    scene.network.break_connections()
    scene.world.plane = scene.world.open_plane(scene.world.made.database)


async def move(scene: Scene) -> None:
    """Let the host use another plane, whose ids begin again."""
    empty(scene)
    scene.host.environ["CERTCTRL_SERVER_URL"] = OTHER
    await restarted(scene)


@contextmanager
def policy_with(**rules: object) -> Iterator[None]:
    policy = template().root / "policy.json"
    before = policy.read_text()
    policy.write_text(json.dumps(json.loads(before) | rules))
    try:
        yield
    finally:
        policy.write_text(before)


# --- planes that do not know this host ---------------------------------------------------------------------------


def test_an_emptied_plane_removes_nothing() -> None:
    async def scenario(scene: Scene) -> None:
        first, second = await deployed(scene, "first.example", "second.example")
        known = scene.plane.authorities.add(USER, "private", ca()[1])["id"]
        await scene.plane.authorities.assign(USER, DEVICE, known)
        await scene.until(lambda: known in scene.agent.installer.cas)
        empty(scene)
        await trio.sleep(LONG)
        assert scene.live(first) and scene.live(second)
        assert names_in(scene.host.disk.now, TRUSTED), "the trust store is not emptied either"
        assert (await scene.ask("status"))["health"] == "degraded"
        said = await problems(scene)
        assert "does not know first.example, second.example" in said
        assert "cert-ctrl forget --domain first.example" in said
        assert f"cert-ctrl forget --ca {known}" in said
        assert scene.agent.counters.alerts[UNKNOWN] == 1
        await restarted(scene)
        await trio.sleep(LONG)
        assert scene.agent.counters.alerts[UNKNOWN] == 0, "known since before"
        assert "first.example" in await problems(scene)
        done = await scene.ask("forget", domain="first.example")
        assert (done["outcome"], done["assigned"]) == ("applied", False)
        await scene.ask("forget", ca_id=known)
        await trio.sleep(LONG)
        assert not scene.live(first) and scene.live(second)
        assert "does not know second.example" in await problems(scene)
        assert not names_in(scene.host.disk.now, TRUSTED)

    play(scenario, CALM)


def test_another_plane_does_not_take_the_place_of_a_certificate_with_its_id() -> None:
    async def scenario(scene: Scene) -> None:
        (old,) = await deployed(scene, "old.example")
        before = scene.record(old).facts.serial
        empty(scene)
        row = await scene.issue("new.example")
        assert row["id"] == old
        scene.operators.introduce(old, "new.example")
        copy = {
            "id": "copy", "type": "copy", "ob_type": "cert", "ob_id": old, "from": ["fullchain.pem"],
            "to": ["/srv/tls/new.pem"],
        }  # fmt: skip
        await scene.plane.installs.put(DEVICE, [copy])
        scene.host.environ["CERTCTRL_SERVER_URL"] = OTHER
        await restarted(scene)
        await trio.sleep(3600)
        assert scene.record(old).facts.serial == before
        assert file_in(scene.host.disk.now, "/srv/tls/new.pem") is None, "items of the new plane are not about it"
        assert "does not know old.example" in await problems(scene)
        await scene.plane.certificates.renew(USER, old)
        await scene.until(lambda: ("cert.renewed", "failed") in scene.outcomes())
        await scene.plane.certificates.unassign(USER, DEVICE, old)
        await scene.until(lambda: ("cert.unassigned", "ignored") in scene.outcomes())
        await trio.sleep(2 * GRACE)
        assert scene.record(old).facts.serial == before
        await scene.plane.certificates.assign(USER, DEVICE, old)
        await scene.ask("forget", domain="old.example")
        await scene.until(lambda: scene.live(old) and scene.record(old).name == "new.example", LONG)
        await scene.until(lambda: file_in(scene.host.disk.now, "/srv/tls/new.pem"))
        await scene.until(lambda: not scene.agent.problems, LONG)

    play(scenario, CALM)


def test_a_revocation_by_another_plane_is_not_about_this_hosts_certificate() -> None:
    async def scenario(scene: Scene) -> None:
        (old,) = await deployed(scene, "old.example")
        await move(scene)
        row = await scene.plane.certificates.issue(USER, ["new.example"], validity_seconds=8_640_000)
        await scene.operators._send("cert.revoked", {"cert_id": old})
        await scene.until(lambda: ("cert.revoked", "ignored") in scene.outcomes())
        await scene.plane.certificates.assign(USER, DEVICE, row["id"])
        await scene.plane.certificates.revoke(USER, row["id"])
        await trio.sleep(3600)
        assert scene.live(old)
        assert scene.agent.counters.alerts["revoked"] == 0

    play(scenario, CALM)


def test_the_same_plane_under_another_url_keeps_its_certificates() -> None:
    async def scenario(scene: Scene) -> None:
        (known,) = await deployed(scene, "www.example")
        scene.host.environ["CERTCTRL_SERVER_URL"] = OTHER
        await restarted(scene)
        await scene.until(lambda: scene.record(known).standing is Standing.KNOWN)
        await scene.until(lambda: not scene.agent.problems)
        renewed = await scene.plane.certificates.renew(USER, known)
        await scene.until(lambda: scene.record(known).facts.serial == renewed["serial_number"])

    play(scenario, CALM)


def test_another_plane_with_a_certificate_for_the_same_names_takes_over() -> None:
    async def scenario(scene: Scene) -> None:
        (known,) = await deployed(scene, "www.example")
        before = scene.record(known).facts.serial
        empty(scene)
        row = await scene.issue("www.example")
        scene.host.environ["CERTCTRL_SERVER_URL"] = OTHER
        await restarted(scene)
        await scene.until(lambda: scene.record(known).facts.serial == row["serial_number"])
        assert row["serial_number"] != before
        await scene.until(lambda: not scene.agent.problems)

    play(scenario, CALM)


def test_an_older_database_orders_nothing() -> None:
    """Its stream contains an unassignment that is no longer true."""

    async def scenario(scene: Scene) -> None:
        back, newer = await deployed(scene, "back.example", "newer.example")
        await scene.plane.certificates.unassign(USER, DEVICE, back)
        await scene.until(lambda: not scene.live(back))
        image = scene.world.image()
        await trio.sleep(600)
        await scene.plane.certificates.assign(USER, DEVICE, back)
        await scene.plane.certificates.renew(USER, back)
        await scene.until(lambda: scene.live(back))
        (lost,) = await deployed(scene, "lost.example")
        scene.network.break_connections()
        scene.world.plane = scene.world.open_plane(image)
        await trio.sleep(LONG)
        assert scene.live(back) and scene.live(newer) and scene.live(lost)
        assert "does not know back.example, lost.example" in await problems(scene)

    play(scenario, CALM)


def test_absence_from_the_list_is_no_unassignment() -> None:
    async def scenario(scene: Scene) -> None:
        (kept,) = await deployed(scene, "kept.example")
        scene.network.mischief = lambda page: page | {"data": page["data"] | {"signals": []}}
        await scene.plane.certificates.unassign(USER, DEVICE, kept)
        await trio.sleep(300)
        scene.network.clear()
        await trio.sleep(LONG)
        assert scene.live(kept)
        assert "does not know kept.example" in await problems(scene)
        await scene.plane.certificates.assign(USER, DEVICE, kept)
        await scene.until(lambda: not scene.agent.problems)

    play(scenario, CALM)


# --- unassignments -----------------------------------------------------------------------------------------------


def test_a_certificate_that_is_assigned_again_within_the_grace_time_stays() -> None:
    async def scenario(scene: Scene) -> None:
        (back,) = await deployed(scene, "back.example")
        switches = scene.world.auditor.counts["switches"]
        await scene.plane.certificates.unassign(USER, DEVICE, back)
        await scene.until(lambda: problem_key("unassigned", back) in scene.agent.problems)
        await restarted(scene)
        assert problem_key("unassigned", back) in scene.agent.problems, "the status knows it after a restart, too"
        await scene.plane.certificates.assign(USER, DEVICE, back)
        await scene.until(lambda: not scene.agent.problems)
        await trio.sleep(2 * GRACE)
        assert scene.live(back)
        assert scene.world.auditor.counts["switches"] == switches
        assert ("cert.unassigned", "superseded") in scene.outcomes()

    play(scenario, CALM)


def test_an_unassignment_is_confirmed_by_a_plane_that_lags() -> None:
    async def scenario(scene: Scene) -> None:
        (gone,) = await deployed(scene, "gone.example")
        scene.world.lag()
        await scene.plane.certificates.unassign(USER, DEVICE, gone)
        await trio.sleep(2 * GRACE)
        assert scene.live(gone) and not scene.agent.problems
        scene.network.replica = None
        await scene.until(lambda: not scene.live(gone), 2 * GRACE)

    play(scenario, CALM)


def test_a_hint_that_is_not_true_delays_an_unassignment_and_does_not_end_it() -> None:
    async def scenario(scene: Scene) -> None:
        gone, other = await deployed(scene, "gone.example", "other.example")
        await scene.plane.certificates.unassign(USER, DEVICE, gone)
        await scene.until(lambda: problem_key("unassigned", gone) in scene.agent.problems)
        await scene.operators._send("cert.renewed", {"cert_id": gone})
        await scene.until(lambda: ("cert.unassigned", "superseded") in scene.outcomes())
        assert problem_key("unassigned", gone) in scene.agent.problems
        await scene.until(lambda: not scene.live(gone), 2 * 3600)
        await scene.until(lambda: ("cert.renewed", "ignored") in scene.outcomes())
        await scene.until(lambda: ("cert.unassigned", "applied") in scene.outcomes())
        await scene.until(lambda: not scene.agent.problems)
        assert scene.live(other)

    play(scenario, CALM)


def test_a_hint_from_a_plane_that_was_emptied_resumes_no_unassignment() -> None:
    async def scenario(scene: Scene) -> None:
        (kept,) = await deployed(scene, "kept.example")
        await scene.plane.certificates.unassign(USER, DEVICE, kept)
        await scene.until(lambda: problem_key("unassigned", kept) in scene.agent.problems)
        empty(scene)
        await scene.until(lambda: "CURSOR_EXPIRED" in scene.log, GRACE / 2)
        await scene.operators._send("cert.renewed", {"cert_id": kept})
        await scene.until(lambda: ("cert.renewed", "ignored") in scene.outcomes(), 2 * 3600)
        await trio.sleep(LONG)
        assert scene.live(kept)
        assert "does not know kept.example" in await problems(scene)

    play(scenario, CALM)


def test_an_unassignment_whose_signal_was_lost_is_reported() -> None:
    async def scenario(scene: Scene) -> None:
        (kept,) = await deployed(scene, "kept.example")
        await scene.plane.certificates.unassign(USER, DEVICE, kept)
        await scene.until(lambda: problem_key("unassigned", kept) in scene.agent.problems)
        scene.agent.installer.retries.remove(f"cert:{kept}")
        await trio.sleep(LONG)
        assert scene.live(kept)
        assert "does not know kept.example" in await problems(scene)

    play(scenario, CALM)


def test_items_that_fail_do_not_postpone_an_unassignment() -> None:
    async def scenario(scene: Scene) -> None:
        (gone,) = await deployed(scene, "gone.example")
        refused = {"id": "no", "type": "exec", "cmd_argv": ["/bin/false", "no"]}
        await scene.plane.installs.put(DEVICE, [refused], check=False)
        await scene.until(lambda: ("install.updated", "failed") in scene.outcomes())
        await scene.plane.certificates.unassign(USER, DEVICE, gone)
        await scene.until(lambda: problem_key("unassigned", gone) in scene.agent.problems)
        await trio.sleep(GRACE / 6)
        await scene.operators._send("install.updated", {})
        await scene.until(lambda: scene.outcomes()[0] == ("install.updated", "failed"), GRACE / 2)
        await scene.until(lambda: not scene.live(gone), GRACE)

    play(scenario, attrs.evolve(CALM, poison_attempts=1))


def test_a_clock_that_is_set_ahead_does_not_end_a_grace_time() -> None:
    async def scenario(scene: Scene) -> None:
        (gone, _) = await deployed(scene, "gone.example", "stays.example")
        await scene.plane.certificates.unassign(USER, DEVICE, gone)
        await scene.until(lambda: problem_key("unassigned", gone) in scene.agent.problems)
        scene.world.clock.error += 2 * GRACE
        await scene.operators._send("cert.unassigned", {"cert_id": gone})
        await trio.sleep(GRACE / 2)
        assert scene.live(gone), "only half of the grace time has passed"
        await scene.until(lambda: not scene.live(gone), GRACE)

    play(scenario, CALM)


def test_a_mass_unassignment_asks() -> None:
    async def scenario(scene: Scene) -> None:
        ids = await deployed(scene, *(f"c{number}.example" for number in range(6)))
        for cert_id in ids[:4]:
            await scene.plane.certificates.unassign(USER, DEVICE, cert_id)
        await scene.until(lambda: problem_key(MASS) in scene.agent.problems)
        await trio.sleep(2 * DAY)
        assert all(scene.live(cert_id) for cert_id in ids), "time does not answer for an operator"
        assert "more than half" in await problems(scene)
        assert scene.agent.counters.alerts[MASS] == 1
        await restarted(scene)
        assert "more than half" in await problems(scene)
        await scene.ask("forget", domain="c0.example")
        assert [cert_id for cert_id in ids if not scene.live(cert_id)] == ids[:1]
        for cert_id in ids[1:3]:
            await scene.plane.certificates.assign(USER, DEVICE, cert_id)
        await scene.until(lambda: not scene.live(ids[3]), 3 * 3600)
        assert all(scene.live(cert_id) for cert_id in (*ids[1:3], *ids[4:]))
        await scene.until(lambda: not scene.agent.problems)

    play(scenario, attrs.evolve(CALM, interval=900.0))


def test_the_last_three_of_three_leave_after_their_grace_time() -> None:
    async def scenario(scene: Scene) -> None:
        ids = await deployed(scene, "a.example", "b.example", "c.example")
        for cert_id in ids:
            await scene.plane.certificates.unassign(USER, DEVICE, cert_id)
        await scene.until(lambda: scene.agent.counters.alerts["unassigned"] == len(ids))
        await scene.until(lambda: not any(scene.live(cert_id) for cert_id in ids), 2 * GRACE)
        await scene.until(lambda: not scene.agent.problems)

    play(scenario, CALM)


def test_an_unassigned_certificate_is_kept_if_the_policy_says_so() -> None:
    async def scenario(scene: Scene) -> None:
        (left,) = await deployed(scene, "left.example")
        await scene.plane.certificates.unassign(USER, DEVICE, left)
        await scene.until(lambda: ("cert.unassigned", "applied") in scene.outcomes())
        await trio.sleep(LONG)
        assert scene.live(left)
        assert (await scene.ask("status"))["problems"] == []
        await scene.plane.certificates.assign(USER, DEVICE, left)
        await scene.until(lambda: scene.record(left).standing is Standing.KNOWN)

    with policy_with(on_unassigned="keep"):
        play(scenario, CALM)
