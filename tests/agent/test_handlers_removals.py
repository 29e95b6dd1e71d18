"""What the handlers of revocations and unassignments do, per state of host and plane."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest
from handler_world import (
    AFTER,
    APPLIED,
    BEFORE,
    BLANK,
    FACTS,
    FAILED,
    FOREIGN,
    HOUR,
    IGNORED,
    INCOMPLETE,
    LEAVING,
    LIVE,
    LOST,
    NOW,
    OTHER,
    REVOKED,
    STAGED_ONLY,
    THERE,
    TS,
    UNALERTED,
    UNCHANGED,
    WITHDRAWN,
    World,
    refused,
)

from certctrl.agent.handlers import (
    has_left_something,
    on_cert_revoked,
    on_cert_unassigned,
)
from certctrl.errors import (
    GraceError,
    LaggingError,
    TransportError,
)
from certctrl.model.certificate import CertificateSummary
from certctrl.model.plan import Outcome, OutcomeKind
from certctrl.model.policy import HostPolicy, Retirement
from certctrl.model.records import CertRecord, Stage, Standing
from certctrl.model.signals import (
    CertRevoked,
    CertUnassigned,
)


@pytest.fixture
def scene(tmp_path: Path) -> World:
    return World(tmp_path / "agent")


# --- cert.revoked -----------------------------------------------------------------------------------------------------

REVOKE = CertRevoked(ts_ms=TS, cert_id=1)
ALERT = "alert:revoked:1"


@pytest.mark.parametrize(
    ("record", "detail", "listed", "expected", "alerts"),
    [
        (None, REVOKED, False, UNCHANGED, 0),
        (BLANK, REVOKED, False, UNCHANGED, 0),
        (WITHDRAWN, REVOKED, False, UNCHANGED, 0),
        (LIVE, REVOKED, False, APPLIED, 1),
        (LIVE, attrs.evolve(REVOKED, updated_at=""), False, APPLIED, 1),
        (STAGED_ONLY, REVOKED, False, APPLIED, 1),
        (LOST, REVOKED, False, APPLIED, 1),
        (UNALERTED, REVOKED, False, APPLIED, 1),
        (INCOMPLETE, REVOKED, False, APPLIED, 0),
        (INCOMPLETE, None, False, APPLIED, 0),
        (attrs.evolve(INCOMPLETE, standing=Standing.FOREIGN), OTHER, False, UNCHANGED, 0),
        (LIVE, None, False, APPLIED, 1),
        (LIVE, None, True, LaggingError, 0),
        (LIVE, attrs.evolve(THERE, updated_at=AFTER), False, UNCHANGED, 0),
        (LIVE, attrs.evolve(THERE, updated_at=BEFORE), False, LaggingError, 0),
        (LIVE, attrs.evolve(THERE, updated_at=""), False, LaggingError, 0),
        (LIVE, attrs.evolve(THERE, status="", updated_at=AFTER), False, UNCHANGED, 0),
        (LIVE, attrs.evolve(REVOKED, domain_name="b.example"), False, IGNORED, 0),
        (FOREIGN, REVOKED, False, APPLIED, 1),
        (FOREIGN, None, False, IGNORED, 0),
        (attrs.evolve(LIVE, facts=attrs.evolve(FACTS, not_before=NOW)), None, False, IGNORED, 0),
        (attrs.evolve(LIVE, facts=attrs.evolve(FACTS, not_before=TS / 1000)), None, False, APPLIED, 1),
    ],
)
async def test_a_revocation_is_carried_out_once_the_plane_confirms_it(
    scene: World,
    record: CertRecord | None,
    detail: CertificateSummary | None,
    listed: bool,
    expected: OutcomeKind | type[Exception],
    alerts: int,
) -> None:
    scene.has(record)
    scene.shows(detail, listed=listed)
    if isinstance(expected, OutcomeKind):
        assert (await on_cert_revoked(scene.agent, REVOKE)).kind is expected
    else:
        with pytest.raises(expected):
            await on_cert_revoked(scene.agent, REVOKE)
    assert scene.installer.calls == ([("withdraw", 1, True)] if expected is APPLIED else [])
    assert scene.installer.alerts == ["revoked"] * alerts
    assert (ALERT in scene.agent.problems) is (expected is APPLIED)


@pytest.mark.parametrize("status", [404, 410])
async def test_a_revoked_certificate_may_be_gone_from_the_plane(scene: World, status: int) -> None:
    scene.has(LIVE)
    scene.plane.gone = status
    assert (await on_cert_revoked(scene.agent, REVOKE)).kind is APPLIED


@pytest.mark.parametrize("error", [refused(403), refused(500), TransportError("no route")])
async def test_no_answer_withdraws_nothing(scene: World, error: Exception) -> None:
    scene.has(LIVE)
    scene.plane.fails["detail"] = error
    for handler, signal in ((on_cert_revoked, REVOKE), (on_cert_unassigned, CertUnassigned(ts_ms=TS, cert_id=1))):
        with pytest.raises(type(error)):
            await handler(scene.agent, signal)
    assert scene.did == []


async def test_a_plane_that_never_confirms_a_revocation_ends_the_wait(scene: World) -> None:
    scene.has(LIVE)
    scene.shows(attrs.evolve(THERE, updated_at=BEFORE))
    scene.waited(REVOKE)
    outcome = await on_cert_revoked(scene.agent, REVOKE)
    assert (outcome.kind, outcome.detail) == (UNCHANGED, "not confirmed: the plane says 'active'")
    assert scene.did == []


async def test_the_alert_of_a_revocation_is_raised_once(scene: World) -> None:
    scene.has(LIVE)
    scene.shows(REVOKED)
    scene.installer.withdraws = Outcome(kind=FAILED, detail="nginx still serves it")
    assert (await on_cert_revoked(scene.agent, REVOKE)).kind is FAILED
    scene.installer.records[1] = attrs.evolve(scene.installer.records[1], last_outcome=FAILED)
    scene.installer.withdraws = Outcome(kind=APPLIED)
    assert (await on_cert_revoked(scene.agent, REVOKE)).kind is APPLIED
    assert scene.installer.alerts == ["revoked"] and scene.agent.counters.alerts == {"revoked": 1}
    assert scene.installer.records[1].alarmed and ALERT in scene.agent.problems


# --- cert.unassigned --------------------------------------------------------------------------------------------------

UNASSIGN = CertUnassigned(ts_ms=TS, cert_id=1)


@pytest.mark.parametrize(
    ("record", "detail", "listed", "expected"),
    [
        (None, None, False, UNCHANGED),
        (BLANK, None, False, UNCHANGED),
        (WITHDRAWN, None, False, UNCHANGED),
        (LIVE, None, False, GraceError),
        (STAGED_ONLY, None, False, GraceError),
        (attrs.evolve(LEAVING, unassigned_at=NOW - HOUR + 1), None, False, GraceError),
        (attrs.evolve(LEAVING, unassigned_at=NOW + 1), None, False, GraceError),
        (LEAVING, None, False, APPLIED),
        (LEAVING, THERE, False, LaggingError),
        (LEAVING, REVOKED, False, LaggingError),
        (LEAVING, None, True, LaggingError),
        (LOST, None, False, APPLIED),
        (INCOMPLETE, None, False, APPLIED),
        (attrs.evolve(LEAVING, standing=Standing.FOREIGN), None, False, IGNORED),
        (attrs.evolve(LEAVING, facts=attrs.evolve(FACTS, not_before=NOW)), None, False, IGNORED),
    ],
)
async def test_an_unassignment_is_carried_out_once_it_is_confirmed_and_its_grace_time_is_over(
    scene: World,
    record: CertRecord | None,
    detail: CertificateSummary | None,
    listed: bool,
    expected: OutcomeKind | type[Exception],
) -> None:
    scene.has(record)
    scene.shows(detail, listed=listed)
    if isinstance(expected, OutcomeKind):
        assert (await on_cert_unassigned(scene.agent, UNASSIGN)).kind is expected
    else:
        with pytest.raises(expected):
            await on_cert_unassigned(scene.agent, UNASSIGN)
    assert scene.installer.calls == ([("withdraw", 1, False)] if expected is APPLIED else [])


async def test_grace_begins_once_and_is_alerted_once(scene: World) -> None:
    scene.has(LIVE)
    for _ in range(2):
        with pytest.raises(GraceError) as waits:
            await on_cert_unassigned(scene.agent, UNASSIGN)
        scene.now += HOUR / 2
    assert waits.value.seconds == HOUR / 2
    assert scene.installer.records[1].unassigned_at == NOW and scene.installer.alerts == ["unassigned"]
    assert (await on_cert_unassigned(scene.agent, UNASSIGN)).kind is APPLIED


@pytest.mark.parametrize("unassigned_at", [0.0, NOW + 1, NOW + HOUR])
async def test_grace_begins_again_if_its_beginning_cannot_be(scene: World, unassigned_at: float) -> None:
    """The clock was ahead, or an earlier unassignment was already carried out."""
    scene.has(attrs.evolve(LEAVING, unassigned_at=unassigned_at))
    with pytest.raises(GraceError) as waits:
        await on_cert_unassigned(scene.agent, UNASSIGN)
    assert waits.value.seconds == HOUR and scene.installer.records[1].unassigned_at == NOW
    assert scene.installer.alerts == ["unassigned"]


@pytest.mark.parametrize(
    ("others", "ago", "known", "mass"),
    [
        (2, 10.0, 0, False),
        (3, 10.0, 0, True),
        (3, 10.0, 3, True),
        (3, 10.0, 4, False),
        (3, 86_399.0, 0, True),
        (3, 86_400.0, 0, False),
        (3, -5.0, 0, False),
    ],
)
async def test_many_unassignments_within_a_day_ask(
    scene: World, others: int, ago: float, known: int, mass: bool
) -> None:
    """More than three, and more than half; ``others``: already carried out, besides the one that comes now."""
    gone = attrs.evolve(LEAVING, generation="", stage=Stage.WITHDRAWN, unassigned_at=NOW - ago)
    left = [gone] * others + [LIVE] * known
    scene.has(LIVE, *(attrs.evolve(one, facts=attrs.evolve(FACTS, cert_id=n)) for n, one in enumerate(left, 2)))
    with pytest.raises(GraceError, match="more than half" if mass else "taken out of use in"):
        await on_cert_unassigned(scene.agent, UNASSIGN)
    assert scene.installer.alerts == ["mass-unassignment" if mass else "unassigned"] and scene.did == []


async def test_a_certificate_that_the_policy_keeps_needs_no_grace_time(scene: World) -> None:
    scene.agent.policy = HostPolicy(on_unassigned=Retirement.KEEP)
    scene.has(LIVE)
    assert (await on_cert_unassigned(scene.agent, UNASSIGN)).kind is APPLIED
    assert scene.installer.alerts == [] and scene.installer.records[1].unassigned_at == 0


@pytest.mark.parametrize("record", [None, BLANK, LEAVING, INCOMPLETE])
@pytest.mark.parametrize("kind", [APPLIED, FAILED])
async def test_an_unassigned_certificate_has_no_alerts_left(
    scene: World, record: CertRecord | None, kind: OutcomeKind
) -> None:
    scene.has(record)
    scene.installer.withdraws = Outcome(kind=kind)
    for alert in ("revoked", "unassigned", "late", "expired"):
        scene.agent.report_problem(f"alert:{alert}:1", "said")
        scene.agent.report_problem(f"alert:{alert}:2", "said")
    await on_cert_unassigned(scene.agent, UNASSIGN)
    assert {key.rpartition(":")[2] for key in scene.agent.problems} == {"2"}


async def test_a_plane_that_still_has_the_certificate_ends_the_wait(scene: World) -> None:
    scene.has(LEAVING)
    scene.shows(attrs.evolve(THERE, status="pending"))
    scene.waited(UNASSIGN)
    outcome = await on_cert_unassigned(scene.agent, UNASSIGN)
    assert (outcome.kind, outcome.detail) == (UNCHANGED, "still assigned: the plane says 'pending'")
    assert scene.did == []


@pytest.mark.parametrize(
    ("ts", "since", "server_now", "expected"),
    [
        (NOW - 10, NOW - 20, NOW, APPLIED),
        (NOW - 10, NOW - 10, NOW, APPLIED),
        (NOW - 10, NOW - 5, NOW, IGNORED),
        (NOW - 10, NOW, NOW, IGNORED),
        (NOW - 10, NOW + HOUR, NOW, APPLIED),
    ],
)
async def test_a_signal_of_an_earlier_stream_is_no_order(
    scene: World, ts: float, since: float, server_now: float, expected: OutcomeKind
) -> None:
    """``since`` after the plane's present time was recorded by a clock that was ahead."""
    scene.follow(since)
    scene.plane.now = server_now
    scene.has(LEAVING)
    signal = attrs.evolve(UNASSIGN, ts_ms=int(ts * 1000))
    assert (await on_cert_unassigned(scene.agent, signal)).kind is expected


@pytest.mark.parametrize(
    ("record", "left"),
    [
        (LIVE, True),
        (STAGED_ONLY, True),
        (INCOMPLETE, True),
        (attrs.evolve(WITHDRAWN, pending=("reload",)), True),
        (LOST, True),
        (attrs.evolve(LOST, stage=Stage.COMMITTED), True),
        (WITHDRAWN, False),
        (BLANK, False),
    ],
)
def test_what_a_certificate_may_have_left(record: CertRecord, left: bool) -> None:
    assert has_left_something(record) is left
