"""Services that fail, or return to an old certificate, without a deployment: the plane knows it within the interval."""

from __future__ import annotations

from typing import Any

import attrs
import trio
from simulation.network import Exchange, NetworkFault
from simulation.scene import DAY, QUIET, Scene, play
from simulation.world import DEVICE, USER

from certctrl.install.probe.looked import Leaf
from certctrl.model.features import SERVING_REPORTS
from certctrl.plane.fleet.fleet import Query

INTERVAL = 3600.0
WITHIN = INTERVAL + 200
"""Seconds from a look to the plane: the interval, the second look, and a poll."""


async def served(scene: Scene, *domains: str) -> list[int]:
    """Issue certificates for services, and wait until they are served."""
    await scene.until(lambda: True)
    await trio.sleep(120)
    ids = []
    for domain in domains:
        row = await scene.issue(domain)
        scene.operators.introduce(row["id"], row["domain_name"])
        ids.append(row["id"])
    scene.operators.configured = ids
    await scene.plane.installs.put(DEVICE, scene.operators.items(ids))
    services = scene.world.services
    await scene.until(lambda: all(scene.live(i) and services.known[i].served for i in ids))
    return ids


def reports(scene: Scene) -> list[dict[str, Any]]:
    """Return what the agent has reported of endpoints, oldest first."""
    posts = [one for one in scene.sent if one.path.endswith("/notify")]
    return [event for post in posts for event in post.json["events"] if event["type"] == "endpoints"]


def words(scene: Scene) -> dict[str, int]:
    """Return the numbers of certificates on the device by their words."""
    states = ("not served", "stuck", "served", "deployed", "waiting")
    return {
        one: found for one in states if (found := scene.plane.fleet.certificates(USER, Query(states=(one,)))["total"])
    }


def reasons(scene: Scene) -> list[str]:
    scene.plane.devices.save_sightings()
    return [one["reason"] for one in scene.plane.fleet.causes(USER)["causes"]]


def test_a_service_that_returns_to_an_old_certificate_is_noticed_and_so_is_its_cure() -> None:
    async def scenario(scene: Scene) -> None:
        first, _ = await served(scene, "a.example", "b.example")
        service = scene.world.services.known[first]
        old = service.served
        await scene.plane.certificates.renew(USER, first)
        await scene.until(lambda: service.served != old)
        await scene.until(lambda: len(reports(scene)) == 2, 2 * WITHIN)
        assert (words(scene), reasons(scene)) == ({"served": 2}, [])
        service.served = old
        await scene.until(lambda: reasons(scene), WITHIN)
        assert (words(scene), reasons(scene)) == ({"served": 1, "not served": 1}, ["older-served"])
        (why,) = [one["why"] for one in scene.plane.fleet.devices(USER, Query())["devices"]]
        assert (why["copy"], why["step"], why["certificate"]) == ("not served", "probe", "a.example")
        assert scene.world.services.leaves[old].serial in why["message"]
        scene.world.services.start(first)
        await scene.until(lambda: not reasons(scene), 600)
        assert words(scene) == {"served": 2}

    play(scenario)


def test_a_service_that_fails_while_the_plane_is_away_is_reported_later() -> None:
    async def scenario(scene: Scene) -> None:
        (cert,) = await served(scene, "a.example")
        await scene.until(lambda: reports(scene), 2 * WITHIN)
        network, app = scene.network, scene.network.app
        network.app = None
        scene.world.services.known[cert].stopped = True
        await trio.sleep(2 * INTERVAL)
        network.app = app
        await scene.until(lambda: reasons(scene) == ["endpoint-refuses"], 2000)  # the pause between polls had grown

    play(scenario)


def test_what_stays_the_same_is_reported_once_a_day_and_at_a_start() -> None:
    async def scenario(scene: Scene) -> None:
        await served(scene, "a.example", "b.example")
        await scene.until(lambda: len(reports(scene)) == 2, 2 * WITHIN)
        looks = scene.world.services.looks
        await trio.sleep(3 * DAY)
        assert 3 * 24 * 2 <= scene.world.services.looks - looks <= 3 * 27 * 2
        assert 6 <= len(reports(scene)) <= 8
        starts = scene.host.starts
        await scene.host.stop()
        await scene.until(lambda: scene.host.starts > starts)
        before = len(reports(scene))
        await scene.until(lambda: len(reports(scene)) == before + 2, 2 * WITHIN)

    play(scenario)


def test_an_endpoint_that_is_no_longer_named_is_forgotten() -> None:
    async def scenario(scene: Scene) -> None:
        first, second = await served(scene, "a.example", "b.example")
        scene.world.services.known[first].stopped = True
        await scene.until(lambda: reasons(scene), 2 * WITHIN)
        await scene.plane.installs.put(DEVICE, scene.operators.items([second]))
        await scene.until(lambda: not reasons(scene), 2 * WITHIN)
        assert reports(scene)[-1] == {"type": "endpoints", "cert_id": first, "deployed": reports(scene)[-1]["deployed"],
                                      "endpoints": []}  # fmt: skip

    play(scenario)


def test_a_host_that_wants_no_reports_sends_none() -> None:
    async def scenario(scene: Scene) -> None:
        await served(scene, "a.example")
        await trio.sleep(5 * INTERVAL)
        assert (reports(scene), scene.world.services.looks) == ([], 0)
        row = scene.plane.database.one("SELECT features FROM devices WHERE id = ?", DEVICE)
        assert row is not None and SERVING_REPORTS not in row["features"]

    play(scenario, environ={"CERTCTRL_REPORT_SERVING": "false"})


def test_a_plane_that_refuses_such_reports_gets_its_outcomes_and_is_polled_as_before() -> None:
    async def scenario(scene: Scene) -> None:
        note = scene.network.before

        def refuse(exchange: Exchange) -> None:
            if exchange.path.endswith("/notify") and exchange.json["events"][0]["type"] == "endpoints":
                exchange.fault = NetworkFault(kind="status", status=400)
            note(exchange)

        scene.network.before = refuse
        (cert,) = await served(scene, "a.example")
        await scene.until(lambda: reports(scene), 2 * WITHIN)
        await trio.sleep(5 * INTERVAL)
        assert len(reports(scene)) == 1, "once a day"
        await scene.plane.certificates.renew(USER, cert)
        await scene.until(lambda: scene.outcomes()[0] == ("cert.renewed", "applied"), 300)

    play(scenario)


def test_a_service_with_an_absurd_certificate_is_reported_shortly() -> None:
    async def scenario(scene: Scene) -> None:
        (cert,) = await served(scene, "a.example")
        services = scene.world.services
        services.leaves["absurd"] = Leaf(fingerprint="absurd", serial="00:" * 100_000, not_after=-1e10)
        services.known[cert].served = "absurd"
        await scene.until(lambda: reasons(scene) == ["other-certificate"], 2 * WITHIN)
        assert len(str(reports(scene))) < 1000

    play(scenario)


def test_a_bug_in_a_look_does_not_stop_the_daemon() -> None:
    async def scenario(scene: Scene) -> None:
        (cert,) = await served(scene, "a.example")
        services = scene.world.services
        services.known[cert].served = "without a leaf"
        await trio.sleep(2 * WITHIN)
        assert "in a look at endpoints" in scene.world.journal.text(1_000_000) and scene.host.starts == 1
        services.start(cert)
        await scene.until(lambda: reports(scene), 2 * WITHIN)

    play(scenario)


def test_reports_travel_on_a_push_socket() -> None:
    async def scenario(scene: Scene) -> None:
        (cert,) = await served(scene, "a.example")
        scene.world.services.known[cert].stopped = True
        await scene.until(lambda: "endpoint-refuses" in reasons(scene), 2 * WITHIN)
        posts = [one for one in scene.sent if one.path.endswith("/notify")]
        assert {one.on_socket for one in posts if one.json["events"][0]["type"] == "endpoints"} == {True}

    play(scenario, attrs.evolve(QUIET, mode="push"))
