"""Only what has changed is fetched: material by ETag and the list by revision, with the whole agent."""

from __future__ import annotations

import attrs
import trio
from simulation.disk import file_in
from simulation.network import Exchange, NetworkFault
from simulation.scene import QUIET, Scene, play
from simulation.world import DEVICE, USER

from certctrl.agent.alerts import problem_key
from certctrl.agent.certificate_list import WHOLE_SECONDS
from certctrl.agent.standing import UNKNOWN
from certctrl.plane.devices.sessions import DeviceSession
from certctrl.store.state.known_list import KnownListFile

SETTING = attrs.evolve(QUIET, interval=30.0)


def material_requests(scene: Scene, cert_id: int) -> list[Exchange]:
    return [one for one in scene.sent if one.path.endswith(f"/certificates/{cert_id}/deploy-materials")]


async def announce(scene: Scene, cert_id: int) -> list[tuple[bool, int]]:
    """Announce a certificate that is here already; return for each request whether it was conditional, and its status."""
    before, done = len(material_requests(scene, cert_id)), len(scene.outcomes())
    with scene.plane.database.transaction():
        scene.plane.stream.append(DEVICE, "cert.renewed", {"cert_id": cert_id})
    await scene.until(lambda: len(scene.outcomes()) > done, 300)
    sent = material_requests(scene, cert_id)[before:]
    return [("if-none-match" in one.headers, one.done) for one in sent]


async def restarted(scene: Scene) -> None:
    starts = scene.host.starts
    scene.host.kill(power=True)
    await scene.until(lambda: scene.host.starts > starts)


def test_material_that_is_live_is_not_sent_again() -> None:
    async def scenario(scene: Scene) -> None:
        row = await scene.issue("a.example")
        await scene.until(lambda: scene.live(row["id"]) and scene.outcomes())
        before = scene.record(row["id"])
        assert await announce(scene, row["id"]) == [(True, 304)]
        assert scene.outcomes()[0] == ("cert.renewed", "unchanged")
        assert scene.record(row["id"]).generation == before.generation
        await restarted(scene)
        assert await announce(scene, row["id"]) == [(True, 304)], "the ETag is in the record"
        await scene.plane.certificates.renew(USER, row["id"])
        await scene.until(lambda: scene.record(row["id"]).facts.serial != before.facts.serial)
        assert await announce(scene, row["id"]) == [(True, 304)]

    play(scenario, SETTING)


def test_material_whose_files_are_damaged_is_fetched() -> None:
    """The plane knows only what it has sent, not what has become of it."""

    async def scenario(scene: Scene) -> None:
        row = await scene.issue("a.example")
        await scene.until(lambda: scene.live(row["id"]) and scene.outcomes())
        record = scene.record(row["id"])
        key = scene.world.layout.generation(record.name, record.generation) / "private.key"
        written = file_in(scene.host.disk.now, key)
        scene.host.disk.put(key, b"not what was written", 0o600)
        scene.world.auditor.live[record.name].clear()  # installing it again is right
        assert await announce(scene, row["id"]) == [(True, 304), (False, 200)]
        live = scene.world.layout.live / record.name / "private.key"
        assert file_in(scene.host.disk.now, live) == written, "the damage is repaired"

    play(scenario, SETTING)


def test_an_etag_that_belongs_to_other_material_is_not_believed() -> None:
    """Found by review: a plane that was compromised, or a cache, could leave the ETag of what it did not send."""

    async def scenario(scene: Scene) -> None:
        row = await scene.issue("a.example")
        await scene.until(lambda: scene.live(row["id"]) and scene.outcomes())
        scene.network.faults = [NetworkFault(kind="refused")]
        renewed = await scene.plane.certificates.renew(USER, row["id"])
        session, records = DeviceSession(DEVICE, USER, 1), scene.agent.installer._context.records
        (now,) = scene.plane.certificates.materials_of([(session, (row["id"], ""))])
        record = scene.record(row["id"])
        records.note(attrs.evolve(record, source=f"{record.generation} {now.etag}"))
        scene.network.clear()
        await scene.until(lambda: scene.record(row["id"]).facts.serial == renewed["serial_number"], 300)
        sent = material_requests(scene, row["id"])[-2:]
        assert [("if-none-match" in one.headers, one.done) for one in sent] == [(True, 304), (False, 200)]

    play(scenario, SETTING)


def test_a_list_that_was_falsified_under_its_revision_is_whole_again_within_a_day() -> None:
    async def scenario(scene: Scene) -> None:
        rows = [await scene.issue(f"c{number}.example") for number in range(3)]
        await scene.until(lambda: all(scene.live(row["id"]) for row in rows))
        await compared(scene)
        file = KnownListFile(scene.world.layout, scene.host.disk)
        known = file.load()
        assert known is not None
        file.save(attrs.evolve(known, rows={number: row for number, row in known.rows.items() if number != 1}))
        await compared(scene)
        assert problem_key(UNKNOWN) in scene.agent.problems, "it is believed at first"
        await trio.sleep(WHOLE_SECONDS)
        await scene.until(lambda: problem_key(UNKNOWN) not in scene.agent.problems, 25_000)

    play(scenario, attrs.evolve(SETTING, interval=300.0))


def test_a_comparison_of_a_host_in_step_fetches_no_list() -> None:
    async def scenario(scene: Scene) -> None:
        rows = [await scene.issue(f"c{number}.example") for number in range(5)]
        await scene.until(lambda: all(scene.live(row["id"]) for row in rows))
        await compared(scene)
        before = len(scene.sent)
        await compared(scene)
        lists = [one for one in scene.sent[before:] if one.path.endswith("/devices/self/certificates")]
        assert [one.done for one in lists] == [304]
        await restarted(scene)
        before = len(scene.sent)
        await compared(scene)
        lists = [one for one in scene.sent[before:] if one.path.endswith("/devices/self/certificates")]
        assert {one.done for one in lists} == {304}, "kept across a power cut, or at least here"

    play(scenario, SETTING)


async def compared(scene: Scene) -> None:
    done = scene.agent.counters.reconciles["ok"]
    await scene.plane.resync(USER, DEVICE, "test")
    await scene.until(lambda: scene.agent.counters.reconciles["ok"] > done, 600)
    await trio.sleep(60)


def test_what_changed_while_signals_were_lost_is_found_by_its_revision() -> None:
    async def scenario(scene: Scene) -> None:
        rows = [await scene.issue(f"c{number}.example") for number in range(4)]
        await scene.until(lambda: all(scene.live(row["id"]) for row in rows))
        await compared(scene)
        scene.network.faults = [NetworkFault(kind="refused")]
        renewed = await scene.plane.certificates.renew(USER, rows[0]["id"])
        await scene.plane.certificates.revoke(USER, rows[1]["id"])
        added = await scene.issue("new.example")
        scene.plane.stream.trim(DEVICE, 0)
        scene.network.clear()
        await scene.until(lambda: scene.live(added["id"]) and not scene.live(rows[1]["id"]))
        serial = int(renewed["serial_number"].replace(":", ""), 16)
        await scene.until(lambda: int(scene.record(rows[0]["id"]).facts.serial.replace(":", ""), 16) == serial)
        bodies = [one.query["updated_since"] for one in scene.sent if "updated_since" in one.query]
        assert all(bodies[1:]), "the whole list was fetched only once"

    play(scenario, SETTING)


def test_a_plane_that_was_restored_from_a_backup_is_compared_by_content() -> None:
    async def scenario(scene: Scene) -> None:
        rows = [await scene.issue(f"c{number}.example") for number in range(4)]
        await scene.until(lambda: all(scene.live(row["id"]) for row in rows))
        await compared(scene)
        await scene.operators.back_up()
        await scene.plane.certificates.renew(USER, rows[0]["id"])
        await scene.until(lambda: scene.outcomes().count(("cert.renewed", "applied")) > 4)
        await compared(scene)
        await scene.operators.restore()
        await scene.until(lambda: "server-behind" in scene.agent.problems, 7200)
        newest = await scene.plane.certificates.renew(USER, rows[0]["id"])
        serial = int(newest["serial_number"].replace(":", ""), 16)
        await scene.until(lambda: int(scene.record(rows[0]["id"]).facts.serial.replace(":", ""), 16) == serial)
        await scene.until(lambda: "server-behind" not in scene.agent.problems, 7200)

    play(scenario, attrs.evolve(SETTING, reconcile=1200))
