"""A revocation behind a burst of renewals, whatever the burst is busy with; and no class that starves."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import attrs
import pytest
import trio
from simulation.disk import file_in
from simulation.history import innermost
from simulation.network import MATERIALS_PATH, NetworkFault
from simulation.scene import QUIET, Scene, play
from simulation.world import COPIES, DEVICE, USER

from certctrl.model.features import PRIORITY
from certctrl.model.priority import Priority
from certctrl.model.records import InboxEntry
from certctrl.model.signals import CertRevoked, identity, to_wire

BURST = 1000
SAMPLE = 120
"""Renewals in the default run."""
PROMPT = 2.0
"""Seconds within which a revocation has to be carried out."""
LONG_POLL = attrs.evolve(QUIET, mode="long-poll", interval=5.0, stream_length=5000)


def unaudited(scene: Scene) -> None:
    """Let the requests pass without the auditor: it allows fewer of them, and reads the disk at each."""
    scene.network.before, scene.network.after = scene.sent.append, lambda exchange: None


async def issue_many(scene: Scene, count: int) -> list[int]:
    """Issue certificates and wait until they are live; from then on, each material is fetched alone."""
    rows = [await scene.issue(f"n{number}.example") for number in range(count)]
    await scene.until(lambda: all(scene.live(row["id"]) for row in rows), 7200)
    await scene.until(lambda: not scene.agent.inbox.depth)
    scene.agent.plane.features = frozenset({PRIORITY})
    return [row["id"] for row in rows]


async def renew_all(scene: Scene, ids: list[int]) -> None:
    for cert_id in ids:
        await scene.plane.certificates.renew(USER, cert_id)


def slow_materials(scene: Scene, seconds: float) -> None:
    """Let each answer with material take long, so that a burst lasts."""
    scene.network.faults = [NetworkFault(kind="slow", path=MATERIALS_PATH, seconds=seconds)]


async def gone_within(scene: Scene, cert_id: int, seconds: float) -> float:
    """Wait until a certificate is withdrawn; return after how many seconds."""
    began = trio.current_time()
    while scene.live(cert_id):
        assert trio.current_time() - began <= seconds, f"not withdrawn within {seconds:g} s\n{scene.log}"
        await trio.sleep(0.02)
    assert file_in(scene.host.disk.now, scene.world.layout.certs / "doomed.example.crt") is None
    return trio.current_time() - began


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("count", [SAMPLE, pytest.param(BURST, marks=pytest.mark.campaign)])
@pytest.mark.parametrize("queue", [1000, 50], ids=["all of it fits", "the queue is full"])
def test_a_revocation_behind_many_renewals_is_carried_out_at_once(queue: int, count: int) -> None:
    behind_a_burst(count, queue)


def behind_a_burst(count: int, queue: int) -> None:
    async def scenario(scene: Scene) -> None:
        unaudited(scene)
        doomed = (await scene.issue("doomed.example"))["id"]
        ids = await issue_many(scene, count)
        slow_materials(scene, 1.0)
        await renew_all(scene, ids)
        await scene.plane.certificates.revoke(USER, doomed)
        await gone_within(scene, doomed, PROMPT)
        behind = [one for one, serial in serials(scene).items() if scene.record(one).facts.serial != serial]
        assert len(behind) > count / 2, "the burst has just begun"
        scene.network.clear()
        await scene.until(lambda: all(scene.record(i).facts.serial == s for i, s in serials(scene).items()), 7200)
        await scene.until(lambda: not scene.agent.inbox.acks_pending)
        revoked = [row for row in scene.plane.reports.outcomes(DEVICE, 5000) if row["signal"]["type"] == "cert.revoked"]
        outcomes = [row["outcome"] for row in revoked]
        dropped = count >= scene.plane.settings.outcomes_kept and not outcomes  # by those of the renewals
        assert outcomes == ["applied"] or dropped, "the cursor reaches it later, and it is known"

    def serials(scene: Scene) -> dict[int, str]:
        rows = [row for after in (0, 500, 1000) for row in scene.plane.certificates.page(DEVICE, after, 500)]
        return {row["id"]: row["serial_number"] for row in rows if row["status"] == "active"}

    play(scenario, attrs.evolve(LONG_POLL, queue=queue))


def test_a_revocation_is_read_although_nothing_of_a_full_queue_ends() -> None:
    async def scenario(scene: Scene) -> None:
        doomed = (await scene.issue("doomed.example"))["id"]
        ids = await issue_many(scene, 60)
        slow_materials(scene, 25.0)
        await renew_all(scene, ids)
        await trio.sleep(5)
        assert not scene.agent.inbox.has_room(20)
        polls = len(scene.polls)
        await scene.plane.certificates.revoke(USER, doomed)
        await gone_within(scene, doomed, PROMPT)
        assert len(scene.polls) == polls, "polling pauses"
        assert scene.agent.inbox.depth <= 21

    play(scenario, attrs.evolve(LONG_POLL, queue=20))


def test_an_older_plane_shows_nothing_ahead_and_is_not_asked() -> None:
    async def scenario(scene: Scene) -> None:
        doomed = (await scene.issue("doomed.example"))["id"]
        ids = await issue_many(scene, 60)
        scene.agent.plane.features = frozenset()
        scene.sent.clear()
        slow_materials(scene, 5.0)
        await renew_all(scene, ids)
        await scene.plane.certificates.revoke(USER, doomed)
        await scene.until(lambda: not scene.live(doomed), 600)
        assert not [one for one in scene.sent if one.is_look]

    play(scenario, attrs.evolve(LONG_POLL, queue=20))


@pytest.mark.parametrize("stage", ["queued", "being fetched", "ready for its batch"])
def test_a_revocation_does_not_wait_for_a_renewal_of_its_certificate(stage: str) -> None:
    async def scenario(scene: Scene) -> None:
        ids = await issue_many(scene, 30)
        doomed = (await scene.issue("doomed.example"))["id"]
        await scene.until(lambda: scene.live(doomed))
        renewed = [doomed, *ids] if stage == "being fetched" else [*ids, doomed]
        if stage == "ready for its batch":
            renewed = renewed[-4:]  # the batch waits for the others, which are slow
            scene.agent.plane.features = frozenset()  # each is fetched alone
        fetch = scene.world.network.fault_for

        def fault_for(path: str) -> NetworkFault | None:
            own = path.endswith(f"/{doomed}/deploy-materials")
            if "deploy-materials" not in path or (own and stage == "ready for its batch"):
                return fetch(path)
            return NetworkFault(kind="slow", seconds=1.0 if own else 20.0)

        scene.world.network.fault_for = fault_for  # type: ignore[method-assign]
        await renew_all(scene, renewed)
        await trio.sleep(0.5)
        if stage == "ready for its batch":
            await scene.until(lambda: doomed in [one.prepared.cert_id for one in scene.agent.batches._open.waiting], 10)
        await scene.plane.certificates.revoke(USER, doomed)
        await gone_within(scene, doomed, PROMPT)
        await trio.sleep(600)
        assert not scene.live(doomed), "the renewal does not undo it"
        assert ("cert.revoked", "applied") in scene.outcomes()

    play(scenario, attrs.evolve(LONG_POLL, page=100), {"CERTCTRL_DEBOUNCE_MS": "20000"})


def test_a_newer_renewal_is_not_lost_with_the_revocation() -> None:
    """A certificate is revoked and issued again under its id while a burst keeps all handlers busy."""

    async def scenario(scene: Scene) -> None:
        ids = await issue_many(scene, 30)
        doomed = (await scene.issue("doomed.example"))["id"]
        await scene.until(lambda: scene.live(doomed))
        slow_materials(scene, 10.0)
        await renew_all(scene, ids)
        await trio.sleep(1)
        await scene.plane.certificates.revoke(USER, doomed)
        renewed = await scene.plane.certificates.renew(USER, doomed)
        scene.network.clear()
        await scene.until(
            lambda: scene.live(doomed) and scene.record(doomed).facts.serial == renewed["serial_number"], 600
        )
        await trio.sleep(600)
        assert scene.live(doomed), "the revocation was of the certificate before"

    play(scenario, attrs.evolve(LONG_POLL, page=100))


def test_a_withdrawal_waits_for_one_reload_of_its_service_and_not_for_the_next_batches() -> None:
    async def scenario(scene: Scene) -> None:
        names = ["doomed.example", *(f"n{number}.example" for number in range(8))]
        ids = [(await scene.issue(name))["id"] for name in names]
        await scene.until(lambda: all(map(scene.live, ids)))
        doomed, *others = ids
        for cert_id in ids:
            scene.operators.introduce(cert_id, names[ids.index(cert_id)])
        items = [copy_of(cert_id) for cert_id in ids]
        reload = {"id": "reload", "type": "exec", "cmd_argv": ["/bin/true", "reload", "2"]}  # after each of the copies
        await scene.plane.installs.put(DEVICE, [*items, reload | {"depends_on": [i["id"] for i in items]}])
        await scene.until(lambda: file_in(scene.host.disk.now, f"{COPIES}/{doomed}.pem"))
        await scene.until(lambda: not scene.agent.inbox.depth)
        scene.world.services.seconds = lambda: 20.0
        began = trio.current_time()
        for cert_id in others:  # eight batches of one service
            await scene.plane.certificates.renew(USER, cert_id)
            await trio.sleep(2)
        await scene.plane.certificates.revoke(USER, doomed)
        while file_in(scene.host.disk.now, f"{COPIES}/{doomed}.pem") is not None:
            assert trio.current_time() - began < 60, scene.log
            await trio.sleep(0.1)
        assert trio.current_time() - began < 22, "right after the first reload"
        await scene.until(lambda: ("cert.revoked", "applied") in scene.outcomes(), 120)
        assert trio.current_time() - began < 45, "its own reload follows, before those of the next batches"

    def copy_of(cert_id: int) -> dict[str, Any]:
        about = {"ob_type": "cert", "ob_id": cert_id}
        return {
            "id": f"c{cert_id}",
            "type": "copy",
            "from": ["fullchain.pem"],
            "to": [f"{COPIES}/{cert_id}.pem"],
            **about,
        }

    play(scenario, LONG_POLL)


def test_a_flood_of_revocations_does_not_keep_a_renewal_and_a_config_from_their_turn() -> None:
    async def scenario(scene: Scene) -> None:
        unaudited(scene)
        ids = await issue_many(scene, 100)
        (row,) = [await scene.issue("busy.example")]
        await scene.until(lambda: scene.live(row["id"]))
        took = scene.agent.plane.fetch_certificate

        async def slow(*args: Any) -> Any:
            await trio.sleep(10)
            return await took(*args)

        scene.agent.plane.fetch_certificate = slow
        for cert_id in ids:
            await scene.plane.certificates.revoke(USER, cert_id)
        renewed = await scene.plane.certificates.renew(USER, row["id"])
        began = trio.current_time()
        await scene.until(lambda: scene.record(row["id"]).facts.serial == renewed["serial_number"], 60)
        waiting = [one for one in scene.agent.inbox.entries() if isinstance(one.signal, CertRevoked)]
        assert waiting, f"the revocations go on after {trio.current_time() - began:.1f} s"

    play(scenario, attrs.evolve(LONG_POLL, page=100))


def test_a_restart_keeps_the_classes() -> None:
    async def scenario(scene: Scene) -> None:
        soon = await scene.issue("soon.example")
        ids = await issue_many(scene, 40)
        slow_materials(scene, 3600.0)
        await renew_all(scene, ids)
        with patch("certctrl.plane.certificates.table.CertificateTable._former_is_ending", return_value=True):
            renewed = await scene.plane.certificates.renew(USER, soon["id"])
        await trio.sleep(10)
        assert scene.agent.inbox.depth == len(ids) + 1
        scene.host.kill(power=True)
        slow_materials(scene, 5.0)
        await trio.sleep(6)
        began = trio.current_time()
        await scene.until(lambda: staged_or_live(scene, soon["id"], renewed["serial_number"]), 60)
        assert trio.current_time() - began < 20, "one of the first, although it was the last to arrive"

    def staged_or_live(scene: Scene, cert_id: int, serial: str) -> bool:
        ready = [one.prepared.facts for one in scene.agent.batches._open.waiting]
        return scene.record(cert_id).facts.serial == serial or any(one.serial == serial for one in ready)

    with patch("certctrl.agent.fetches.BATCH_FETCH", "not announced"):  # each is fetched alone after the restart, too
        play(scenario, attrs.evolve(LONG_POLL, page=100))


# --- seeded mistakes: each lets its scenario fail --------------------------------------------------------------------


async def no_look(self: object, *classes: object) -> None:
    await trio.lowlevel.checkpoint()


def admit_again(self: Any, signals: Any) -> list[InboxEntry]:
    fresh = {identity(one): InboxEntry(signal=one) for one in signals if identity(one) not in self._entries}
    self._entries |= fresh
    self._unsafe |= fresh.keys()
    return list(fresh.values())


def strict_order(self: Any, order: Any, waiting: Any, running: Any, limit: int) -> Any:
    return next((one for one in order if one in waiting), None) if sum(running.values()) < limit else None


MISTAKES: dict[str, tuple[str, Any, Callable[[], None]]] = {
    "all signals wait in one queue": (
        "certctrl.agent.waiting_signals.priority_of", lambda signal: Priority.RENEWAL,
        lambda: behind_a_burst(SAMPLE, 1000),
    ),
    "a full queue is not read past": (
        "certctrl.agent.poller.Poller._look_ahead", no_look, lambda: behind_a_burst(SAMPLE, 50),
    ),
    "signals taken ahead are handled again": (
        "certctrl.agent.inbox.Inbox._admit", lambda self, signals: admit_again(self, signals),
        lambda: behind_a_burst(SAMPLE, 50),
    ),
    "a queued renewal holds its revocation up": (
        "certctrl.agent.dispatcher.Dispatcher._make_way", lambda self, fresh: {},
        lambda: test_a_revocation_does_not_wait_for_a_renewal_of_its_certificate("queued"),
    ),
    "a ready renewal holds its revocation up": (
        "certctrl.agent.batches.Batches.take_out", lambda self, resource: None,
        lambda: test_a_revocation_does_not_wait_for_a_renewal_of_its_certificate("ready for its batch"),
    ),
    "a withdrawal claims nothing": (
        "certctrl.install.deploy.context.Locks.claim", lambda self, names: contextlib.nullcontext(),
        test_a_withdrawal_waits_for_one_reload_of_its_service_and_not_for_the_next_batches,
    ),
    "the most urgent class has all turns": (
        "certctrl.protocol.turns.Turns.take", strict_order,
        test_a_flood_of_revocations_does_not_keep_a_renewal_and_a_config_from_their_turn,
    ),
    "the disk forgets the classes": (
        "certctrl.store.state.converter.to_state", to_wire, test_a_restart_keeps_the_classes,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_seeded_mistake_is_found(name: str) -> None:
    target, value, scenario = MISTAKES[name]
    with patch(target, value), pytest.raises((AssertionError, BaseExceptionGroup)) as caught:
        scenario()
    assert isinstance(innermost(caught.value), AssertionError), "the mistake itself is broken"
