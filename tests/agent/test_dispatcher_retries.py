"""What failed counts on between inbox, retries and restarts, until it is done or something newer comes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from handler_world import AFTER, APPLIED, LIVE, NOW, REVOKED, THERE, TS, World, refused
from trio.testing import MockClock

from certctrl.agent.dispatcher import Dispatcher
from certctrl.errors import DiskError, PlaneError
from certctrl.install.plan.retries import is_quarantined
from certctrl.model.certificate import CaBundle
from certctrl.model.plan import Outcome, OutcomeKind
from certctrl.model.policy import HostPolicy, Retirement
from certctrl.model.records import Retry, RetryKind
from certctrl.model.signals import CaAssigned, CertRenewed, CertRevoked, CertUnassigned, Signal

SIGNAL = CaAssigned(ts_ms=TS, ca_id=3)
CA = CaBundle(id=3, name="Private CA", ca_certificate_pem="PEM")


@pytest.fixture
def scene(tmp_path: Path) -> World:
    return World(tmp_path / "agent")


async def handled(scene: World, *signals: Signal) -> Retry | None:
    """Handle new signals, or retry what failed; return the retry of the CA."""
    scene.agent.admit(signals)
    if not signals:
        scene.agent.retry_now()
    await Dispatcher(scene.agent).drain()
    return scene.installer.retries.of("ca:3")


def outcomes(scene: World) -> list[tuple[str, str]]:
    """Return the outcomes to report: kind and detail."""
    return [(event["outcome"], event.get("detail", "")) for event in scene.agent.inbox.next_acks(100)]


def counted(retry: Retry | None) -> tuple[int, int]:
    assert retry is not None
    return retry.attempts, retry.failures


async def test_failures_count_on_from_the_inbox_to_quarantine(scene: World) -> None:
    scene.plane.fails["ca"] = refused(403)
    settings = scene.agent.config.application
    assert counted(await handled(scene, SIGNAL)) == (1, 1) and scene.admitted == []
    for attempts in range(2, settings.poison_attempts + 1):
        retry = await handled(scene)
        assert counted(retry) == (attempts, attempts)
    assert retry is not None and is_quarantined(retry, settings)
    assert retry.pause >= settings.reconcile_interval_seconds
    assert outcomes(scene) == [("failed", "refused")] * 2, "the first failure, and the quarantine"


async def test_each_new_failure_is_reported_once(scene: World) -> None:
    for status in (500, 500, 502, 502):
        scene.plane.fails["ca"] = failing(status)
        await handled(scene, SIGNAL) if not outcomes(scene) else await handled(scene)
    assert outcomes(scene) == [("failed", "status 500"), ("failed", "status 502")]
    scene.plane.fails, scene.plane.cas[3] = {}, CA
    assert await handled(scene) is None
    assert outcomes(scene)[2:] == [("applied", "")]


def failing(status: int) -> PlaneError:
    return PlaneError(f"status {status}", status=status)


async def test_a_retry_stays_while_its_outcome_is_being_written(
    scene: World, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    scene.plane.fails["ca"] = refused(403)
    await handled(scene, SIGNAL)
    scene.plane.fails, scene.plane.cas[3] = {}, CA
    agent, written = scene.agent, trio.Event()
    await agent.inbox.secure()
    offload = agent.inbox._offload

    async def slow(call: Callable[..., Any], *args: object) -> Any:
        await written.wait()
        return await offload(call, *args)

    monkeypatch.setattr(agent.inbox, "_offload", slow)
    agent.retry_now()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Dispatcher(agent).drain)
        await trio.sleep(1)
        assert agent.inbox.has_done(SIGNAL)
        agent.work_changed.value = True  # it chooses again
        await trio.sleep(1)
        assert scene.installer.retries.of("ca:3") is not None
        written.set()
    assert scene.installer.retries.of("ca:3") is None
    assert outcomes(scene) == [("failed", "refused"), ("applied", "")]


async def test_failures_count_on_after_a_restart(scene: World, tmp_path: Path) -> None:
    scene.plane.fails["ca"] = refused(403)
    await handled(scene, SIGNAL)
    assert counted(await handled(scene)) == (2, 2)
    again = World(tmp_path / "agent")
    again.plane.fails["ca"] = refused(403)
    assert again.admitted == [] and counted(again.installer.retries.of("ca:3")) == (2, 2)
    again.agent.admit([SIGNAL])
    assert again.admitted == [], "the plane sends it again: it is known"
    assert counted(await handled(again)) == (3, 3)
    assert outcomes(again) == [("failed", "refused")]


async def test_a_newer_signal_begins_again(scene: World) -> None:
    scene.plane.fails["ca"] = refused(403)
    await handled(scene, SIGNAL)
    await handled(scene)
    assert counted(await handled(scene, attrs.evolve(SIGNAL, ts_ms=TS + 1))) == (1, 1)
    assert [kind for kind, _ in outcomes(scene)] == ["failed", "superseded", "failed"]
    assert len(scene.installer.retries.signals()) == 1


async def test_waiting_for_the_plane_never_leads_to_quarantine(scene: World) -> None:
    scene.plane.fails["ca"] = refused(503)
    await handled(scene, SIGNAL)
    for _ in range(2 * scene.agent.config.application.poison_attempts):
        retry = await handled(scene)
    assert retry is not None and (retry.attempts, retry.kind) == (0, RetryKind.WAITING)


@pytest.mark.parametrize("signal", [CertUnassigned(ts_ms=TS, cert_id=1), CertRevoked(ts_ms=TS, cert_id=1)])
async def test_a_failure_that_the_installer_recorded_is_counted_once(scene: World, signal: Signal) -> None:
    """A revocation is retried on its own, so that nothing replaces it."""
    scene.has(LIVE)
    scene.agent.policy = HostPolicy(on_unassigned=Retirement.KEEP)
    scene.shows(attrs.evolve(THERE, status="revoked") if isinstance(signal, CertRevoked) else None)
    scene.installer.withdraws = Outcome(kind=OutcomeKind.FAILED, detail="nginx: bad", recorded=True)
    await handled(scene, signal)
    for _ in range(2):
        await handled(scene)
    rows = scene.installer.retries.rows()
    assert [counted(row) for row in rows.values()] == [(3, 3)] * len(rows) and scene.did == ["withdraw"] * 3
    assert rows.keys() == ({"cert:1", "cert:1 revoked"} if isinstance(signal, CertRevoked) else {"cert:1"})
    assert [row.signal for row in rows.values() if row.signal is not None] == [signal]
    assert outcomes(scene) == [("failed", "nginx: bad")]


async def test_what_waits_for_its_grace_time_is_reported_when_it_is_done(scene: World) -> None:
    scene.has(LIVE)
    await handled(scene, CertUnassigned(ts_ms=TS, cert_id=1))
    (retry,) = scene.installer.retries.signals()
    assert (retry.kind, retry.attempts, retry.next_try_at) == (RetryKind.GRACE, 0, NOW + 3600)
    assert outcomes(scene) == [] and scene.agent.counters.signals == {}
    scene.now += 3600
    await handled(scene)
    assert scene.installer.retries.signals() == [] and [kind for kind, _ in outcomes(scene)] == [APPLIED.value]


async def test_old_generations_that_cannot_be_removed_are_a_problem_and_no_failure(scene: World) -> None:
    scene.plane.cas[3] = CA
    scene.installer.left = DiskError("cannot remove it", path="/x", errno=5, fix="check the disk")
    assert await handled(scene, SIGNAL) is None
    assert [kind for kind, _ in outcomes(scene)] == [APPLIED.value]
    assert "cannot remove it" in str(scene.agent.problems["disk"])


@pytest.mark.parametrize("earlier", [False, True], ids=["never", "once before"])
async def test_a_revocation_that_is_not_confirmed_drops_no_renewal(scene: World, earlier: bool) -> None:
    """Even if the certificate in use was revoked before, and kept: its successor is on the way."""
    scene.has(attrs.evolve(LIVE, revoked=earlier, alarmed=earlier))
    scene.shows(attrs.evolve(THERE, updated_at=AFTER))
    scene.agent.admit([CertRenewed(ts_ms=TS - 1, cert_id=1), CertRevoked(ts_ms=TS, cert_id=1)])
    await Dispatcher(scene.agent).drain()
    assert "superseded" not in [kind for kind, _ in outcomes(scene)]


async def test_a_confirmed_revocation_supersedes_what_came_before(scene: World) -> None:
    scene.has(LIVE)
    scene.shows(REVOKED)
    scene.agent.admit([CertRenewed(ts_ms=TS - 1, cert_id=1), CertRevoked(ts_ms=TS, cert_id=1)])
    await Dispatcher(scene.agent).drain()
    assert [kind for kind, _ in outcomes(scene)] == ["applied", "superseded"]
