"""Atomic batches between plane and host: pages, restarts, crashes at every step of the disk, and members that leave."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from unittest.mock import patch

import attrs
import pytest
import trio
from simulation.authority import leaf_facts
from simulation.batchauditor import renew_together
from simulation.disk import file_in
from simulation.history import innermost
from simulation.journal import Violation
from simulation.operators import VALIDITY
from simulation.scene import DAY, QUIET, Scene, play
from simulation.world import DEVICE, USER

from certctrl.agent import handlers
from certctrl.agent.context import Agent
from certctrl.errors import MaterialError, TransportError
from certctrl.model.records import RetryKind
from certctrl.plane.orders.orders import OrderRequest

ONE_A_PAGE = attrs.evolve(QUIET, page=1)


async def three(scene: Scene) -> list[int]:
    """Let the host serve three certificates, each at its own service; return their ids."""
    found = []
    for n in (1, 2, 3):
        row = await scene.issue(f"c{n}.example")
        scene.operators.introduce(row["id"], row["domain_name"])
        found.append(int(row["id"]))
    await scene.plane.installs.put(DEVICE, scene.operators.items(found))
    await scene.until(lambda: all(served(scene, one) for one in found))
    return found


def fingerprint(scene: Scene, cert_id: int) -> str:
    return str(scene.plane.certificates.show(USER, cert_id)["fingerprint_sha256"])


def served(scene: Scene, cert_id: int) -> bool:
    """Return whether the service of a certificate serves what the plane offers, and its record says so."""
    here = scene.agent.installer.records.get(cert_id)
    proven = here is not None and bool(here.generation) and here.generation == here.activated and not here.batch
    return proven and scene.world.services.known[cert_id].served == fingerprint(scene, cert_id)


def live(scene: Scene, cert_id: int) -> str:
    pem = file_in(scene.host.disk.now, scene.world.layout.live / f"c{cert_id}.example" / "fullchain.pem")
    return leaf_facts(pem)[0] if pem else ""


async def together(scene: Scene, ids: list[int]) -> str:
    batch = await renew_together(scene.world, ids, VALIDITY)
    assert batch
    return batch


async def renew_for(scene: Scene, cert_id: int, batch: str, size: int) -> None:
    """Renew a certificate, and announce it as one of a batch, of which the others are not announced."""
    append = scene.plane.stream.append_to_all

    def announce(devices: list[int], kind: str, ref: dict[str, object], *more: object) -> object:
        return append(devices, kind, ref | {"batch": {"id": batch, "size": size}}, *more)  # type: ignore[arg-type]

    with patch.object(scene.plane.stream, "append_to_all", announce):
        await scene.plane.certificates.renew(USER, cert_id)


def acks(scene: Scene, outcome: str) -> list[int]:
    """Return the certificates whose batch signals were reported with an outcome, newest first."""
    rows = scene.plane.reports.outcomes(DEVICE)
    return [
        row["signal"]["ref"]["cert_id"] for row in rows if "batch" in row["signal"]["ref"] and row["outcome"] == outcome
    ]


@pytest.mark.parametrize("setting", [QUIET, ONE_A_PAGE])
def test_a_batch_is_served_as_a_whole_across_pages(setting: object) -> None:
    async def scenario(scene: Scene) -> None:
        ids = await three(scene)
        await together(scene, ids)
        await scene.until(lambda: all(served(scene, one) for one in ids))
        await scene.until(lambda: sorted(acks(scene, "applied")) == ids)

    play(scenario, setting=setting)  # type: ignore[arg-type]


def test_a_batch_that_is_larger_than_the_queue_does_not_wait_for_its_limit() -> None:
    """Its first signals wait for the others, which are not read while the queue is full."""

    async def scenario(scene: Scene) -> None:
        ids = await three(scene)
        await together(scene, ids)
        await scene.until(lambda: all(served(scene, one) for one in ids), within=400)

    play(scenario, setting=attrs.evolve(ONE_A_PAGE, queue=1))


def test_an_earlier_signal_does_not_take_a_certificate_out_of_its_batch() -> None:
    """When its page is read, the plane offers the material of the batch already, whose signals are on later pages."""

    async def scenario(scene: Scene) -> None:
        ids = await three(scene)
        await scene.host.stop()
        await scene.plane.certificates.renew(USER, ids[0])
        await scene.plane.certificates.renew(USER, ids[1])
        scene.world.services.refuse_renewals(ids[2])
        await together(scene, ids)
        with patch("certctrl.agent.reconcile.plan_resync", does_nothing):
            await scene.until(lambda: sorted(set(acks(scene, "rolled_back"))) == ids)
        assert not any(live(scene, one) == fingerprint(scene, one) for one in ids)
        scene.world.services.refusing.clear()
        await scene.until(lambda: all(served(scene, one) for one in ids), within=8 * 3600)

    play(scenario, setting=ONE_A_PAGE)


@pytest.mark.parametrize("kind", ["cert.revoked", "cert.unassigned"])
@pytest.mark.parametrize("setting", [QUIET, ONE_A_PAGE])
def test_a_withdrawal_that_is_not_true_does_not_take_a_certificate_out_of_its_batch(kind: str, setting: object) -> None:
    """It is newer than the renewal; until the plane confirms it, nothing of the batch is switched."""

    async def scenario(scene: Scene) -> None:
        ids = await three(scene)
        await scene.host.stop()
        await together(scene, ids)
        with scene.plane.database.transaction():
            scene.plane.stream.append(DEVICE, kind, {"cert_id": ids[0]})
        with patch("certctrl.agent.reconcile.plan_resync", does_nothing):
            await scene.until(lambda: all(served(scene, one) for one in ids), within=4 * 3600)

    play(scenario, setting=setting)  # type: ignore[arg-type]


def test_a_revocation_that_is_true_leaves_the_others_of_its_batch() -> None:
    async def scenario(scene: Scene) -> None:
        ids = await three(scene)
        await scene.host.stop()
        await together(scene, ids)
        await scene.plane.certificates.revoke(USER, ids[0])
        with patch("certctrl.agent.reconcile.plan_resync", does_nothing):
            await scene.until(lambda: all(served(scene, one) for one in ids[1:]))
            await scene.until(lambda: scene.agent.installer.records[ids[0]].revoked)
        assert scene.agent.installer.records[ids[0]].revoked and live(scene, ids[0]) != fingerprint(scene, ids[0])

    play(scenario)


@pytest.mark.parametrize("kind", ["cert.revoked", "cert.unassigned"])
def test_a_first_certificate_survives_a_withdrawal_that_is_not_true(kind: str) -> None:
    async def scenario(scene: Scene) -> None:
        await three(scene)
        await scene.host.stop()
        row = await scene.issue("c4.example")
        scene.operators.introduce(row["id"], row["domain_name"])
        with scene.plane.database.transaction():
            scene.plane.stream.append(DEVICE, kind, {"cert_id": row["id"]})
        with patch("certctrl.agent.reconcile.plan_resync", does_nothing):
            within = 600 if kind == "cert.revoked" else 2 * 3600  # or the plane may lag behind the unassignment
            await scene.until(lambda: live(scene, row["id"]) != "", within=within)

    play(scenario)


def test_a_late_signal_of_a_batch_that_is_served_is_done_even_after_a_restart() -> None:
    """A comparison with the plane came before the pages with its signals, and the agent has forgotten the batch."""

    async def scenario(scene: Scene) -> None:
        ids = await three(scene)
        batch = await together(scene, ids)
        await scene.until(lambda: all(served(scene, one) for one in ids))
        await scene.host.stop()
        with scene.plane.database.transaction():
            scene.plane.stream.append(DEVICE, "cert.renewed", {"cert_id": ids[2], "batch": {"id": batch, "size": 3}})
        await scene.until(lambda: ids[2] in acks(scene, "unchanged"), within=120)
        assert acks(scene, "failed") == []

    play(scenario)


async def does_nothing(*_: object, **__: object) -> int:
    return 0


async def refused_member(scene: Scene) -> None:
    """Renew three certificates together while the service of one refuses its new one."""
    ids = await three(scene)
    scene.world.services.refuse_renewals(2)
    await together(scene, ids)
    await scene.until(lambda: sorted(set(acks(scene, "rolled_back"))) == ids)
    assert not any(live(scene, one) == fingerprint(scene, one) for one in ids)
    await trio.sleep(1800)
    assert not any(live(scene, one) == fingerprint(scene, one) for one in ids), "no part goes alone later"
    scene.world.services.refusing.clear()
    await scene.until(lambda: all(served(scene, one) for one in ids), within=8 * 3600)


def test_a_refused_member_keeps_the_old_set_until_it_is_accepted() -> None:
    play(refused_member)


@pytest.mark.parametrize(("name", "value"), [
    ("certctrl.agent.batches.ReadyCertificate.atomic_batch", ""),
    ("certctrl.install.deploy.atomic.changing", lambda context, candidates: {}),
])  # fmt: skip
def test_a_batch_that_is_switched_in_parts_is_noticed(name: str, value: object) -> None:
    """The scenario above finds these mistakes."""
    with patch(name, value), pytest.raises(BaseException) as noticed:
        play(refused_member)
    assert isinstance(innermost(noticed.value), AssertionError | Violation)


def test_a_signal_that_names_no_serial_does_not_take_a_certificate_out_of_its_batch() -> None:
    """Found by random histories: it superseded the one that waited with its batch."""

    async def scenario(scene: Scene) -> None:
        ids = await three(scene)

        async def early(*_: object) -> object:
            raise MaterialError("valid only in a while", reason="not-yet-valid")

        with patch("certctrl.agent.handlers._stage", early):
            await together(scene, ids)
            await scene.until(lambda: sorted(set(acks(scene, "failed"))) == ids)
        scene.world.services.refuse_renewals(ids[2])
        with scene.plane.database.transaction():
            scene.plane.stream.append(DEVICE, "cert.renewed", {"cert_id": ids[0]})
        await trio.sleep(3600)
        assert not any(live(scene, one) == fingerprint(scene, one) for one in ids)
        scene.world.services.refusing.clear()
        await scene.until(lambda: all(served(scene, one) for one in ids), within=8 * 3600)

    play(scenario)


def test_bad_material_of_one_is_reported_for_all_after_the_limit() -> None:
    async def scenario(scene: Scene) -> None:
        ids = await three(scene)
        stage = handlers._stage

        async def refuses(agent: object, cert_id: int, announced: str | None) -> object:
            if cert_id == ids[1]:
                raise MaterialError("its key does not match", reason="key-mismatch")
            return await stage(agent, cert_id, announced)  # type: ignore[arg-type]

        with patch("certctrl.agent.handlers._stage", refuses):
            await together(scene, ids)
            await scene.until(lambda: ids[1] in acks(scene, "failed"))
            assert acks(scene, "failed") == [ids[1]], "the others still wait"
            await scene.until(lambda: sorted(acks(scene, "failed")) == ids)
            (row,) = [
                one for one in scene.plane.reports.outcomes(DEVICE)
                if one["signal"]["ref"].get("cert_id") == ids[0] and one["outcome"] == "failed"
            ]  # fmt: skip
            assert f"lacks certificate {ids[1]}" in row["detail"] and "does not match" in row["detail"]
            assert scene.retry(ids[0]).kind is RetryKind.BATCH
            await trio.sleep(2 * 3600)
            assert not any(live(scene, one) == fingerprint(scene, one) for one in ids)
        await scene.until(lambda: all(served(scene, one) for one in ids), within=8 * 3600)

    play(scenario)


def test_a_member_that_is_renewed_alone_meanwhile_leaves_the_batch() -> None:
    async def scenario(scene: Scene) -> None:
        ids = await three(scene)
        scene.world.services.refuse_renewals(ids[1])
        await together(scene, ids)
        await scene.until(lambda: len(set(acks(scene, "rolled_back"))) == 3)
        await scene.plane.certificates.renew(USER, ids[2])
        await scene.until(lambda: served(scene, ids[2]))
        assert not served(scene, ids[0])
        scene.world.services.refusing.clear()
        await scene.until(lambda: all(served(scene, one) for one in ids), within=8 * 3600)

    play(scenario)


@pytest.mark.parametrize("how", ["revoke", "unassign"])
def test_a_member_that_is_taken_away_does_not_keep_the_others(how: str) -> None:
    async def scenario(scene: Scene) -> None:
        ids = await three(scene)
        scene.world.services.refuse_renewals(ids[1])
        await together(scene, ids)
        await scene.until(lambda: len(set(acks(scene, "rolled_back"))) == 3)
        if how == "revoke":
            await scene.plane.certificates.revoke(USER, ids[1])
        else:
            await scene.plane.certificates.unassign(USER, DEVICE, ids[1])
        scene.world.services.refusing.clear()
        await scene.until(lambda: served(scene, ids[0]) and served(scene, ids[2]), within=8 * 3600)
        await scene.until(lambda: not scene.live(ids[1]), within=8 * 3600)

    play(scenario)


def test_a_revocation_does_not_wait_for_a_batch() -> None:
    """The first certificate of a batch is ready, the others are not announced yet."""

    async def scenario(scene: Scene) -> None:
        ids = await three(scene)
        await renew_for(scene, ids[0], "later", 3)
        await scene.until(lambda: scene.agent.atomic.held)
        await scene.plane.certificates.revoke(USER, ids[0])
        await scene.until(lambda: not scene.live(ids[0]), within=90)

    play(scenario)


def test_a_revocation_that_is_retried_later_does_not_free_its_certificate_again_and_again() -> None:
    """The plane does not confirm the revocation, and then announces a batch with newer material."""

    async def scenario(scene: Scene) -> None:
        ids = await three(scene)
        find = handlers.find_certificate

        async def fails(agent: Agent, cert_id: int) -> object:
            if cert_id == ids[0]:
                raise TransportError("no answer")
            return await find(agent, cert_id)

        with patch("certctrl.agent.handlers.find_certificate", fails):
            with scene.plane.database.transaction():
                scene.plane.stream.append(DEVICE, "cert.revoked", {"cert_id": ids[0]})
            await trio.sleep(1800)  # the pauses of its retries have grown
            for cert_id in ids[:2]:
                await renew_for(scene, cert_id, "b", 3)
            before = len(scene.sent)
            await trio.sleep(300)
            assert sum("deploy-materials" in one.path for one in scene.sent[before:]) < 12
            assert sorted(one.prepared.cert_id for one in scene.agent.atomic.held) == ids[:2]

    play(scenario)


def test_a_newer_batch_takes_its_certificates_from_an_older_one() -> None:
    async def scenario(scene: Scene) -> None:
        ids = await three(scene)
        scene.world.services.refuse_renewals(ids[0])
        await together(scene, ids[:2])
        await scene.until(lambda: len(set(acks(scene, "rolled_back"))) == 2)
        await together(scene, ids[1:])
        await scene.until(lambda: served(scene, ids[1]) and served(scene, ids[2]))
        assert not served(scene, ids[0])
        scene.world.services.refusing.clear()
        await scene.until(lambda: served(scene, ids[0]), within=8 * 3600)

    play(scenario)


def test_after_a_void_cursor_the_batch_comes_from_the_list() -> None:
    async def scenario(scene: Scene) -> None:
        ids = await three(scene)
        await scene.host.stop()
        await together(scene, ids)
        scene.plane.stream.trim(DEVICE, 0)
        await scene.until(lambda: all(served(scene, one) for one in ids))

    play(scenario)


def test_an_agent_that_stops_before_its_batch_is_complete_continues_later() -> None:
    async def scenario(scene: Scene) -> None:
        ids = await three(scene)

        with patch("certctrl.agent.reconcile.plan_resync", does_nothing):
            await renew_for(scene, ids[0], "later", 2)
            await scene.until(lambda: scene.agent.atomic.held)
            await scene.host.stop()
            await scene.until(lambda: scene.agent.atomic.held)
            assert not acks(scene, "applied")
            await renew_for(scene, ids[1], "later", 2)
            await scene.until(lambda: sorted(acks(scene, "applied")) == ids[:2])

    play(scenario)


@pytest.mark.parametrize("power", [False, True])
@pytest.mark.parametrize("first", range(0, 240, 40))
def test_a_crash_at_any_step_leaves_the_old_set_or_the_new_one(power: bool, first: int) -> None:
    """The auditor checks before each command that no batch is switched in part."""

    async def scenario(scene: Scene) -> None:
        ids = await three(scene)
        for step in range(first, first + 40, 3):
            await together(scene, ids)
            scene.host.kill_within(step, power=power)
            await scene.until(lambda: all(served(scene, one) for one in ids), within=8 * 3600)
            scene.host.disk.cut_in = -1

    play(scenario)


def plays_with_orders(scenario: Callable[[Scene], Awaitable[None]]) -> None:
    async def with_orders(scene: Scene) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(scene.plane.order_runner.run)
            await scenario(scene)
            nursery.cancel_scope.cancel()

    play(with_orders)


def test_keys_that_are_made_on_the_host_are_switched_together() -> None:
    async def scenario(scene: Scene) -> None:
        await scene.until(lambda: scene.polls)
        ids = []
        for n in (1, 2):
            row = await scene.plane.certificates.issue(
                USER, [f"c{n}.example"], validity_seconds=VALIDITY, device_ids=[DEVICE], key_type="ed25519",
                key_origin="device",
            )  # fmt: skip
            scene.operators.introduce(row["id"], row["domain_name"])
            ids.append(int(row["id"]))
        await scene.until(lambda: all(fingerprint(scene, one) for one in ids))
        await scene.plane.installs.put(DEVICE, scene.operators.items(ids))
        await scene.until(lambda: all(served(scene, one) for one in ids))
        before = {one: fingerprint(scene, one) for one in ids}
        with scene.plane.database.transaction():
            batch = scene.plane.batches.start(USER, ids, OrderRequest(action="renew"))[0]["batch"]
        await scene.until(lambda: all(fingerprint(scene, one) != before[one] for one in ids))
        await scene.until(lambda: all(served(scene, one) for one in ids))
        await scene.until(lambda: sorted(acks(scene, "applied")) == ids)
        rows = [row for row in scene.plane.reports.outcomes(DEVICE) if "batch" in row["signal"]["ref"]]
        assert {row["signal"]["ref"]["batch"]["id"] for row in rows} == {batch}

    plays_with_orders(scenario)


def test_a_batch_is_not_hidden_by_comparisons_while_the_clock_was_ahead() -> None:
    async def scenario(scene: Scene) -> None:
        ids = await three(scene)
        scene.world.services.failing = lambda: True
        for one in ids:
            await scene.plane.certificates.renew(USER, one)
        await scene.until(lambda: all(scene.retry(one).failures > 2 for one in ids))
        scene.world.clock.error = 3650 * DAY
        scene.agent.reconcile_requested.value = True
        await trio.sleep(120)
        scene.world.clock.error = 0.0
        await trio.sleep(120)
        scene.world.services.failing = lambda: False
        batch = await together(scene, ids)
        await scene.until(lambda: all(served(scene, one) for one in ids), 1200)
        assert sorted(acks(scene, "applied")) == ids and not acks(scene, "superseded"), batch

    play(scenario, QUIET)
