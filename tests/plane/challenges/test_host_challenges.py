"""Challenges answered at hosts, on each engine: signals out, acks in, answers taken back."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import trio
from engine_plane import plane_on, registered
from shared_solver import shared

from certctrl.model.plan import OutcomeKind
from certctrl.plane.challenges.at_hosts import HostSolver, stop_expired
from certctrl.plane.challenges.solver import HTTP_01, TLS_ALPN_01, Proof
from certctrl.plane.clock import wall_now
from certctrl.plane.core import Plane
from certctrl.plane.devices.reports import Ack, AgentVersion
from certctrl.plane.issuers.issuer import IssuerError
from certctrl.plane.storage.database import Database

THUMBPRINT = "9jg46WB3rR_AHD-EBXdN7cBkH1WOu0tA3M9fm21mqTI"
BOTH = ("acme-http01", "acme-tls-alpn01")


def proof_of(number: int = 1, kind: str = HTTP_01, identifier: str = "www.example.com") -> Proof:
    token = f"token-{number:037d}"
    return Proof(kind=kind, identifier=identifier, token=token, key_authorization=f"{token}.{THUMBPRINT}")


async def host(plane: Plane, name: str, features: Iterable[str] = BOTH) -> int:
    device_id, _ = await registered(plane, name)
    await plane.work(plane.reports.store, device_id, [AgentVersion("1", tuple(features))])
    return device_id


def solver(plane: Plane, *devices: str, kind: str = HTTP_01, **more: Any) -> HostSolver:
    return HostSolver(
        kind,
        plane.database,
        plane.stream,
        plane.wall_now,
        devices=devices,
        **{"user_id": 1, "wait_seconds": 20} | more,
    )


async def signals(plane: Plane, device_id: int) -> list[dict[str, Any]]:
    sql = "SELECT type, ms, ref FROM signals WHERE device_id = ? ORDER BY ms, seq"
    rows = await plane.work(plane.database.all, sql, device_id)
    return [{"type": row["type"], "ts_ms": row["ms"], "ref": json.loads(row["ref"])} for row in rows]


async def acknowledge(
    plane: Plane, device_id: int, outcome: OutcomeKind = OutcomeKind.APPLIED, detail: str = "", count: int = 1
) -> None:
    """Acknowledge the newest start as soon as there are ``count`` signals."""
    with trio.fail_after(20):
        while len(found := await signals(plane, device_id)) < count:
            await trio.sleep(0.01)
    start = found[-1]
    ack = Ack(type=start["type"], ts_ms=start["ts_ms"], ref=start["ref"], outcome=outcome, detail=detail)
    await plane.work(plane.reports.store, device_id, [ack])


@pytest.fixture
def plane(open_database: Callable[[], Database]) -> Plane:
    return plane_on(open_database(), wall_now=wall_now)


@pytest.mark.parametrize(("kind", "word"), [(HTTP_01, "http01"), (TLS_ALPN_01, "tls_alpn01")])
async def test_all_devices_answer_and_stop(plane: Plane, kind: str, word: str) -> None:
    ids = [await host(plane, name) for name in ("web-1", "web-2")]
    one, proof = solver(plane, "web-1", str(ids[1]), kind=kind), proof_of(kind=kind)
    async with trio.open_nursery() as nursery:
        for device_id in ids:
            nursery.start_soon(acknowledge, plane, device_id)
        await one.present([proof])
    for device_id in ids:
        (sent,) = await signals(plane, device_id)
        assert sent["type"] == f"acme.{word}.start"
        assert sent["ref"] == {
            "token": proof.token, "key_authorization": proof.key_authorization, "identifier": "www.example.com",
            "expires_ms": sent["ref"]["expires_ms"],
        }  # fmt: skip
        assert 1000 < sent["ref"]["expires_ms"] / 1000 - wall_now() < 3600
    assert await one.explain(proof) == "answered by web-1, web-2"
    await one.clean_up([proof])
    for device_id in ids:
        assert (await signals(plane, device_id))[-1]["type"] == f"acme.{word}.stop"
    assert not await plane.work(plane.database.all, "SELECT * FROM host_challenges")
    assert await one.explain(proof) == "no device answers any longer"


@pytest.mark.parametrize("outcome", [OutcomeKind.IGNORED, OutcomeKind.FAILED])
async def test_a_device_that_does_not_answer_is_named_with_its_words(plane: Plane, outcome: OutcomeKind) -> None:
    good, bad = await host(plane, "web-1"), await host(plane, "web-2")
    one = solver(plane, "web-1", "web-2")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(acknowledge, plane, good)
        nursery.start_soon(acknowledge, plane, bad, outcome, "port 80 is taken")
        with pytest.raises(IssuerError, match=r"device web-2 does not answer.*port 80 is taken") as refused:
            await one.present([proof_of()])
    assert not refused.value.is_permanent, "the host may be corrected while the order waits"
    await one.clean_up([proof_of()])
    assert [(await signals(plane, each))[-1]["type"] for each in (good, bad)] == ["acme.http01.stop"] * 2


async def test_only_agents_that_announced_it_are_asked(plane: Plane) -> None:
    able, old = await host(plane, "web-1"), await host(plane, "web-2", ["acme-tls-alpn01"])
    with pytest.raises(IssuerError, match="device web-2 does not answer http-01 challenges: its agent") as refused:
        await solver(plane, "web-1", "web-2").present([proof_of()])
    assert not refused.value.is_permanent
    assert "acme.http01_directory" in (refused.value.fix or "")
    assert not await signals(plane, able) and not await signals(plane, old), "nothing was sent to any"


async def test_an_unknown_device_is_an_error_of_the_entry(plane: Plane) -> None:
    with pytest.raises(IssuerError, match=r"user 1, whose certificate it is, has no active device web-9"):
        await solver(plane, "web-9").present([proof_of()])
    with pytest.raises(IssuerError, match=r"no active device has a certificate for www\.example\.com"):
        await solver(plane).present([proof_of()])


@pytest.mark.parametrize(
    "wrong",
    [
        Proof(kind=HTTP_01, identifier="a.test", token="../../etc/passwd", key_authorization="x"),
        Proof(kind=HTTP_01, identifier="a.test", token="t" * 43, key_authorization="x"),
        Proof(kind=HTTP_01, identifier="A b", token="t" * 43, key_authorization=f"{'t' * 43}.{THUMBPRINT}"),
    ],
)
async def test_what_no_agent_would_accept_is_not_sent(plane: Plane, wrong: Proof) -> None:
    device_id = await host(plane, "web-1")
    with pytest.raises(IssuerError, match="cannot be sent to a host"):
        await solver(plane, "web-1").present([wrong])
    assert not await signals(plane, device_id)


async def test_a_silent_device_is_named_after_the_wait(plane: Plane) -> None:
    await host(plane, "web-1")
    with pytest.raises(IssuerError, match="no answer within 1 s from web-1"):
        await solver(plane, "web-1", wait_seconds=0.2).present([proof_of()])


async def test_a_plane_that_ended_leaves_nothing_at_hosts(plane: Plane) -> None:
    """The next attempt takes back what is in the memo of its order, without having presented it."""
    device_id = await host(plane, "web-1")
    with trio.move_on_after(0.5):
        await solver(plane, "web-1").present([proof_of()])
    await solver(plane, "web-1").clean_up([proof_of(), proof_of(2)])
    assert [one["type"] for one in await signals(plane, device_id)] == ["acme.http01.start", "acme.http01.stop"]
    await solver(plane, "web-1").clean_up([proof_of()])
    assert len(await signals(plane, device_id)) == 2, "once is enough"


async def test_housekeeping_takes_back_what_has_expired(plane: Plane) -> None:
    device_id = await host(plane, "web-1")
    with trio.move_on_after(0.5):
        await solver(plane, "web-1").present([proof_of()])
    assert await plane.work(stop_expired, plane.database, plane.stream, wall_now()) == 0
    assert await plane.work(stop_expired, plane.database, plane.stream, wall_now() + 3600) == 1
    assert (await signals(plane, device_id))[-1]["type"] == "acme.http01.stop"
    assert await plane.work(stop_expired, plane.database, plane.stream, wall_now() + 3600) == 0


async def test_an_outcome_of_an_earlier_attempt_does_not_count(plane: Plane) -> None:
    """A CA repeats the token of an authorization that is still pending; the host has stopped answering meanwhile."""
    device_id, proof = await host(plane, "web-1"), proof_of()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(acknowledge, plane, device_id)
        await solver(plane, "web-1").present([proof])
    await solver(plane, "web-1").clean_up([proof])
    with pytest.raises(IssuerError, match="no answer within 1 s from web-1"):
        await solver(plane, "web-1", wait_seconds=0.3).present([proof])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(acknowledge, plane, device_id, OutcomeKind.APPLIED, "", 4)
        await solver(plane, "web-1").present([proof])


async def test_the_clock_of_the_plane_that_stores_an_ack_may_be_behind(plane: Plane) -> None:
    device_id = await host(plane, "web-1")
    slow = plane_on(plane.database, plane.keyring, wall_now=lambda: wall_now() - 60)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(acknowledge, slow, device_id)
        await solver(plane, "web-1").present([proof_of()])


async def test_hosts_of_another_user_prove_nothing(plane: Plane) -> None:
    """Neither by a certificate for the same name, nor by an id or name in the entry of the issuer."""

    def hand_over() -> int:
        other = plane.database.insert("INSERT INTO users (name, created_at) VALUES ('other', 0)")
        plane.database.run("UPDATE devices SET user_id = ? WHERE id = ?", other, theirs)
        return other

    theirs = await host(plane, "web-1")
    other = await plane.work(hand_over)
    await plane.certificates.issue(other, ["www.example.com"], device_ids=[theirs])
    for devices in ((), ("web-1",), (str(theirs),)):
        with pytest.raises(IssuerError, match="no active device"):
            await solver(plane, *devices).present([proof_of()])
    ours = await host(plane, "web-1")
    await plane.certificates.issue(1, ["www.example.com"], device_ids=[ours])
    for count, devices in enumerate(((), ("web-1",)), 1):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(acknowledge_challenges, plane, ours, count)
            await solver(plane, *devices).present([proof_of(count)])
    assert "acme.http01.start" not in [one["type"] for one in await signals(plane, theirs)]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(acknowledge_challenges, plane, theirs, 1)
        await solver(plane, user_id=other).present([proof_of(3)])


async def acknowledge_challenges(plane: Plane, device_id: int, count: int) -> None:
    """Acknowledge the newest start once there are ``count`` of them, next to other signals."""
    with trio.fail_after(20):
        while len(found := [one for one in await signals(plane, device_id) if "start" in one["type"]]) < count:
            await trio.sleep(0.01)
    ack = Ack(
        type=found[-1]["type"], ts_ms=found[-1]["ts_ms"], ref=found[-1]["ref"], outcome=OutcomeKind.APPLIED, detail=""
    )
    await plane.work(plane.reports.store, device_id, [ack])


async def test_an_answer_that_another_order_needs_stays(plane: Plane) -> None:
    """A CA gives two orders the same authorization; the agent acks the first start as superseded."""
    device_id = await host(plane, "web-1")
    first, second = (shared(solver(plane, "web-1"), plane.database, plane.wall_now) for _ in range(2))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(first.present, [proof_of()])
        await acknowledge(plane, device_id, OutcomeKind.SUPERSEDED)
        nursery.start_soon(second.present, [proof_of()])
        await acknowledge(plane, device_id, count=2)
    await first.clean_up([proof_of()])
    assert (await signals(plane, device_id))[-1]["type"] == "acme.http01.start"
    await second.clean_up([proof_of()])
    assert (await signals(plane, device_id))[-1]["type"] == "acme.http01.stop"
