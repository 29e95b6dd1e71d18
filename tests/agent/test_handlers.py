"""What each type of signal does, by the state of this host and of the control plane."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import pytest
from handler_world import (
    AFTER,
    APPLIED,
    BEFORE,
    FACTS,
    HOUR,
    IGNORED,
    LIVE,
    NOW,
    THERE,
    TS,
    UNCHANGED,
    World,
    refused,
)

from certctrl.agent.handlers import (
    HANDLERS,
    find_handler,
    has_left_something,
    on_ca_assigned,
    on_ca_unassigned,
    on_cert_renewed,
    on_cert_revoked,
    on_cert_unassigned,
    on_install_updated,
    on_resync_required,
    refuse_older,
)
from certctrl.errors import (
    ConfigError,
    GraceError,
    LaggingError,
    MaterialError,
    OlderMaterialError,
    PlaneError,
    TransportError,
    VersionRollbackError,
    WrongNamesError,
)
from certctrl.model.certificate import Bundle, CaBundle, CertificateSummary
from certctrl.model.config import IocConfig
from certctrl.model.plan import Deployed, Outcome, OutcomeKind
from certctrl.model.policy import HostPolicy, Retirement
from certctrl.model.records import CertRecord, Stage, Standing
from certctrl.model.signals import (
    KNOWN_TYPES,
    CaAssigned,
    CaUnassigned,
    CertRenewed,
    CertRevoked,
    CertUnassigned,
    InstallUpdated,
    ResyncRequired,
)

FAILED = OutcomeKind.FAILED
STAGED_ONLY = attrs.evolve(LIVE, generation="", activated="", staged="g1", stage=Stage.STAGED)
FOREIGN = attrs.evolve(LIVE, standing=Standing.FOREIGN)
WITHDRAWN = attrs.evolve(LIVE, generation="", activated="", stage=Stage.WITHDRAWN, revoked=True, alarmed=True)
INCOMPLETE = attrs.evolve(WITHDRAWN, last_outcome=FAILED)
UNALERTED = attrs.evolve(WITHDRAWN, alarmed=False)
LOST = attrs.evolve(LIVE, generation="", activated="")
"""Deployed once, and then deleted on disk."""
BLANK = attrs.evolve(LOST, stage=Stage.STAGED)
REVOKED = attrs.evolve(THERE, status="revoked")
OTHER = attrs.evolve(THERE, domain_name="b.example")


@pytest.fixture
def scene(tmp_path: Path) -> World:
    return World(tmp_path / "agent")


def test_every_known_type_has_a_handler() -> None:
    assert HANDLERS.keys() == KNOWN_TYPES


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
LEAVING = attrs.evolve(LIVE, standing=Standing.UNASSIGNED, unassigned_at=NOW - HOUR)


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


# --- cert.renewed -----------------------------------------------------------------------------------------------------

RENEW = CertRenewed(ts_ms=TS, cert_id=1, serial="0b")
NEWER = attrs.evolve(FACTS, serial="0b", fingerprint_sha256="bb", not_before=NOW - 10)


@pytest.mark.parametrize("record", [None, BLANK, WITHDRAWN, STAGED_ONLY, LIVE, FOREIGN, LEAVING])
async def test_offered_material_is_staged(scene: World, record: CertRecord | None) -> None:
    scene.has(record)
    scene.shows(THERE)
    scene.sends(NEWER)
    staged: Any = await on_cert_renewed(scene.agent, RENEW)
    assert staged.facts == NEWER and scene.did == ["prepare", "stage"]
    if record is not None:
        known = scene.installer.records[1]
        assert (known.standing, known.unassigned_at) == (Standing.KNOWN, 0.0), "it is assigned again"
    assert scene.plane.calls == (["materials"] if record is not None else ["materials", "detail"])


@pytest.mark.parametrize(
    ("record", "not_before", "fingerprint", "older"),
    [
        (LIVE, FACTS.not_before - 1, "bb", True),
        (LIVE, FACTS.not_before, "bb", False),
        (LIVE, FACTS.not_before + 1, "bb", False),
        (LIVE, FACTS.not_before - 1, "aa", False),
        (None, FACTS.not_before - 1, "bb", False),
        (LOST, FACTS.not_before - 1, "bb", False),
        (FOREIGN, FACTS.not_before - 1, "bb", False),
        (attrs.evolve(LIVE, standing=Standing.UNLISTED), FACTS.not_before - 1, "bb", True),
    ],
)
def test_only_material_older_than_the_deployed_one_is_refused(
    scene: World, record: CertRecord | None, not_before: float, fingerprint: str, older: bool
) -> None:
    scene.has(record)
    facts = attrs.evolve(FACTS, not_before=not_before, fingerprint_sha256=fingerprint)
    bundle = Bundle(facts=facts, key_pem=b"", certificate_pem=b"", chain_pem=b"")
    if older:
        with pytest.raises(OlderMaterialError, match="older one than is deployed"):
            refuse_older(scene.agent, bundle)
    else:
        refuse_older(scene.agent, bundle)


async def test_older_material_may_only_lag(scene: World) -> None:
    scene.has(LIVE)
    scene.sends(attrs.evolve(NEWER, not_before=FACTS.not_before - 1))
    with pytest.raises(LaggingError, match="older one than is deployed"):
        await on_cert_renewed(scene.agent, RENEW)
    scene.waited(RENEW)
    with pytest.raises(OlderMaterialError):
        await on_cert_renewed(scene.agent, RENEW)
    assert scene.did == ["prepare", "prepare"]


@pytest.mark.parametrize(
    ("names", "assigned", "expected"),
    [
        (("a.example",), None, None),
        (("a.example", "b.example"), attrs.evolve(THERE, sans=("b.example",)), None),
        (("a.example", "c.example"), attrs.evolve(THERE, domain_name="c.example", sans=("a.example",)), None),
        (("b.example",), OTHER, MaterialError),
        (("b.example",), THERE, WrongNamesError),
    ],
)
async def test_material_must_be_for_the_assigned_names(
    scene: World, names: tuple[str, ...], assigned: CertificateSummary | None, expected: type[Exception] | None
) -> None:
    """The assignment is fetched only if the recorded names are not those of the material."""
    domains = ("a.example", "x.example") if assigned is not None else ("a.example",)
    scene.has(attrs.evolve(LIVE, facts=attrs.evolve(FACTS, domains=domains)))
    scene.shows(assigned)
    scene.sends(attrs.evolve(NEWER, domains=names))
    if expected is None:
        staged: Any = await on_cert_renewed(scene.agent, RENEW)
        assert staged.facts.domains == names
        return
    with pytest.raises(expected) as caught:
        await on_cert_renewed(scene.agent, RENEW)
    foreign = isinstance(caught.value, MaterialError) and caught.value.reason == "other-certificate"
    assert (scene.installer.records[1].standing is Standing.FOREIGN) is foreign is (assigned is OTHER)


async def test_an_id_is_free_once_its_certificate_is_withdrawn(scene: World) -> None:
    scene.has(WITHDRAWN)
    scene.shows(OTHER)
    scene.sends(attrs.evolve(NEWER, domains=("b.example",)))
    staged: Any = await on_cert_renewed(scene.agent, RENEW)
    assert staged.facts.domains == ("b.example",)


@pytest.mark.parametrize(
    ("detail", "listed", "at_first", "at_last"),
    [
        (None, False, LaggingError, IGNORED),
        (None, True, LaggingError, LaggingError),
        (THERE, False, LaggingError, LaggingError),
        (attrs.evolve(REVOKED, updated_at=AFTER), False, IGNORED, IGNORED),
        (attrs.evolve(REVOKED, updated_at=BEFORE), False, LaggingError, IGNORED),
        (attrs.evolve(REVOKED, updated_at=AFTER), True, IGNORED, IGNORED),
    ],
)
@pytest.mark.parametrize("status", [404, 410])
async def test_missing_material_is_ignored_only_if_nothing_shows_the_certificate(
    scene: World,
    status: int,
    detail: CertificateSummary | None,
    listed: bool,
    at_first: OutcomeKind | type[Exception],
    at_last: OutcomeKind | type[Exception],
) -> None:
    scene.plane.gone = status
    scene.shows(detail, listed=listed)
    for expected in (at_first, at_last):
        if isinstance(expected, OutcomeKind):
            outcome: Any = await on_cert_renewed(scene.agent, RENEW)
            assert outcome.kind is expected
        else:
            with pytest.raises(expected):
                await on_cert_renewed(scene.agent, RENEW)
        scene.waited(RENEW)


@pytest.mark.parametrize("status", [401, 403, 409, 500, 503])
async def test_a_refusal_is_not_an_absence(scene: World, status: int) -> None:
    scene.plane.fails["materials"] = refused(status)
    with pytest.raises(PlaneError) as caught:
        await on_cert_renewed(scene.agent, RENEW)
    assert caught.value.status == status and "list" not in scene.plane.calls


@pytest.mark.parametrize(
    ("record", "since", "resumes"),
    [
        (LEAVING, 0.0, True),
        (LEAVING, LEAVING.unassigned_at, True),
        (LEAVING, LEAVING.unassigned_at + 1, False),
        (attrs.evolve(LEAVING, unassigned_at=0.0), 0.0, False),
        (attrs.evolve(LEAVING, standing=Standing.UNLISTED), 0.0, False),
        (attrs.evolve(LEAVING, generation=""), 0.0, False),
        (LIVE, 0.0, False),
        (None, 0.0, False),
    ],
)
async def test_a_renewal_of_nothing_does_not_end_an_unassignment(
    scene: World, record: CertRecord | None, since: float, resumes: bool
) -> None:
    scene.follow(since)
    scene.has(record)
    scene.waited(RENEW)
    outcome: Any = await on_cert_renewed(scene.agent, RENEW)
    assert outcome.kind is IGNORED
    assert scene.admitted == ([CertUnassigned(ts_ms=TS + 1, cert_id=1)] if resumes else [])
    assert not scene.agent.inbox.behind, "it is durable before the renewal counts as done"


# --- CAs --------------------------------------------------------------------------------------------------------------

ASSIGN_CA, UNASSIGN_CA = CaAssigned(ts_ms=TS, ca_id=3), CaUnassigned(ts_ms=TS, ca_id=3)
CA = CaBundle(id=3, name="Private CA", ca_certificate_pem="PEM")


@pytest.mark.parametrize(("here", "named"), [("", "Private CA"), ("Private CA", "Private CA"), ("Private CA", "")])
@pytest.mark.parametrize("outcome", [Outcome(kind=APPLIED), Outcome(kind=UNCHANGED), Outcome(kind=FAILED, detail="no")])
async def test_an_assigned_ca_is_imported(scene: World, here: str, named: str, outcome: Outcome) -> None:
    scene.installer.ca_names |= {3: here} if here else {}
    scene.plane.cas[3] = attrs.evolve(CA, name=named)
    scene.installer.imports = outcome
    assert await on_ca_assigned(scene.agent, ASSIGN_CA) == outcome
    assert scene.installer.calls == [("import", 3, named, "PEM")]


async def test_the_ca_of_another_plane_is_not_replaced(scene: World) -> None:
    scene.installer.ca_names[3] = "Ours"
    scene.plane.cas[3] = CA
    with pytest.raises(MaterialError, match="is Ours, that of the plane Private CA") as caught:
        await on_ca_assigned(scene.agent, ASSIGN_CA)
    assert caught.value.reason == "other-ca" and caught.value.fix == "to remove this host's: cert-ctrl forget --ca 3"
    assert scene.did == []


@pytest.mark.parametrize(
    ("status", "at_first", "at_last"),
    [(404, LaggingError, PlaneError), (410, LaggingError, PlaneError), (403, PlaneError, PlaneError)],
)
async def test_a_ca_that_the_plane_does_not_offer_is_waited_for(
    scene: World, status: int, at_first: type[Exception], at_last: type[Exception]
) -> None:
    scene.plane.gone = status
    for expected in (at_first, at_last):
        with pytest.raises(expected):
            await on_ca_assigned(scene.agent, ASSIGN_CA)
        scene.waited(ASSIGN_CA)
    assert scene.did == []


@pytest.mark.parametrize(
    ("here", "listed", "at_first", "at_last"),
    [
        (True, None, APPLIED, None),
        (True, {}, APPLIED, None),
        (True, {4: "other"}, APPLIED, None),
        (True, {3: "Private CA"}, LaggingError, UNCHANGED),
        (False, {3: "Private CA"}, UNCHANGED, None),
        (False, None, UNCHANGED, None),
    ],
)
async def test_a_ca_is_removed_unless_the_plane_still_lists_it(
    scene: World,
    here: bool,
    listed: dict[int, str] | None,
    at_first: OutcomeKind | type[Exception],
    at_last: OutcomeKind | None,
) -> None:
    scene.installer.ca_names |= {3: "Private CA"} if here else {}
    scene.plane.ca_list = listed
    if isinstance(at_first, OutcomeKind):
        assert (await on_ca_unassigned(scene.agent, UNASSIGN_CA)).kind is at_first
    else:
        with pytest.raises(at_first):
            await on_ca_unassigned(scene.agent, UNASSIGN_CA)
        scene.waited(UNASSIGN_CA)
        assert (await on_ca_unassigned(scene.agent, UNASSIGN_CA)).kind is at_last
    kept = at_first is LaggingError
    assert scene.installer.cas == ({3} if kept else set())
    assert scene.did == ([] if kept else ["remove"])


@pytest.mark.parametrize(
    ("named", "since", "expected"),
    [
        (None, 0.0, APPLIED),
        ("Private CA", 0.0, APPLIED),
        ("Another CA", 0.0, IGNORED),
        (None, TS / 1000, APPLIED),
        (None, NOW, IGNORED),
        (None, NOW + HOUR, APPLIED),
    ],
)
async def test_another_plane_or_an_earlier_stream_removes_no_ca(
    scene: World, named: str | None, since: float, expected: OutcomeKind
) -> None:
    scene.follow(since)
    scene.installer.ca_names[3] = "Private CA"
    outcome = await on_ca_unassigned(scene.agent, attrs.evolve(UNASSIGN_CA, ca_name=named))
    assert outcome.kind is expected
    assert scene.installer.cas == (set() if expected is APPLIED else {3})


@pytest.mark.parametrize("error", [refused(500), TransportError("no route")])
async def test_without_an_answer_no_ca_is_removed(scene: World, error: Exception) -> None:
    scene.installer.ca_names[3] = "Private CA"
    scene.plane.fails["cas"] = error
    with pytest.raises(type(error)):
        await on_ca_unassigned(scene.agent, UNASSIGN_CA)
    assert scene.installer.cas == {3}


# --- install.updated --------------------------------------------------------------------------------------------------

ITEM = {"id": "a", "type": "import_ca"}
SERVED = (Deployed(cert_id=1, serial="0a", fingerprint_sha256="aa"),)


@pytest.mark.parametrize("changed", [True, False])
@pytest.mark.parametrize(
    ("outcome", "if_changed", "otherwise"),
    [
        (Outcome(kind=UNCHANGED), APPLIED, UNCHANGED),
        (Outcome(kind=APPLIED, deployed=SERVED), APPLIED, APPLIED),
        (Outcome(kind=FAILED, detail="no"), FAILED, FAILED),
        (Outcome(kind=OutcomeKind.ROLLED_BACK, detail="no"), OutcomeKind.ROLLED_BACK, OutcomeKind.ROLLED_BACK),
    ],
)
async def test_the_items_are_carried_out_even_if_they_did_not_change(
    scene: World, changed: bool, outcome: Outcome, if_changed: OutcomeKind, otherwise: OutcomeKind
) -> None:
    scene.plane.offers(ITEM)
    if not changed:
        await on_install_updated(scene.agent, InstallUpdated(TS, 7, 1))
        scene.installer.calls.clear()
    scene.installer.outcome = outcome
    found = await on_install_updated(scene.agent, InstallUpdated(TS, 7, 1))
    assert found == attrs.evolve(outcome, kind=if_changed if changed else otherwise)
    assert scene.installer.calls == [("converge", False)]
    assert [item.id for item in scene.agent.items] == ["a"]


@pytest.mark.parametrize(
    ("announced", "expected"),
    [((7, 3), None), ((7, 2), None), ((7, None), None), ((None, 3), None), ((7, 4), LaggingError)],
)
async def test_an_announced_version_must_have_arrived(
    scene: World, announced: tuple[int | None, int | None], expected: type[Exception] | None
) -> None:
    scene.plane.offers(ITEM, version=3)
    signal = InstallUpdated(TS, *announced)
    if expected is None:
        assert (await on_install_updated(scene.agent, signal)).kind is APPLIED
        return
    with pytest.raises(expected, match="announced version 4 of the install config, but still offers version 3"):
        await on_install_updated(scene.agent, signal)
    assert scene.did == ["converge"], "what has arrived is carried out"
    scene.waited(signal)
    assert (await on_install_updated(scene.agent, signal)).kind is UNCHANGED


async def test_a_failure_is_reported_rather_than_a_version_that_is_missing(scene: World) -> None:
    scene.plane.offers(ITEM, version=3)
    scene.installer.outcome = Outcome(kind=FAILED, detail="no")
    assert (await on_install_updated(scene.agent, InstallUpdated(TS, 7, 4))).detail == "no"


async def test_an_older_version_may_only_lag(scene: World) -> None:
    signal = InstallUpdated(TS, 7, 3)
    scene.plane.offers(ITEM, version=3)
    await on_install_updated(scene.agent, signal)
    scene.plane.offers(ITEM, version=2)
    with pytest.raises(LaggingError, match="older than version 3"):
        await on_install_updated(scene.agent, signal)
    scene.waited(signal)
    with pytest.raises(VersionRollbackError):
        await on_install_updated(scene.agent, signal)
    assert scene.did == ["converge"]


async def test_idle_items_are_named_and_fail_nothing(scene: World) -> None:
    scene.plane.offers(ITEM)
    scene.installer.waits = {f"item-{n}": "certificate 9 is not on this host" for n in range(7)}
    outcome = await on_install_updated(scene.agent, InstallUpdated(TS, 7, 1))
    assert outcome.kind is APPLIED and outcome.detail.count("is idle") == 5
    assert outcome.detail.startswith("item item-0 is idle: certificate 9 is not on this host; ")


async def test_a_device_without_an_install_config_converges_even_so(scene: World) -> None:
    assert (await on_install_updated(scene.agent, InstallUpdated(TS, None, None))).kind is UNCHANGED
    assert scene.did == ["converge"]


# --- state.resync_required, and which handler it is -------------------------------------------------------------------


@pytest.mark.parametrize(("reason", "said"), [("restored", "restored"), (None, "requested by the plane")])
async def test_a_resync_is_done_once_its_differences_are_admitted(
    scene: World, reason: str | None, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    scene.shows(THERE)
    outcome = await on_resync_required(scene.agent, ResyncRequired(TS, reason))
    assert (outcome.kind, outcome.detail) == (APPLIED, "1 differences")
    assert [type(signal) for signal in scene.admitted] == [CertRenewed]
    assert said in caplog.text


def test_a_handler_can_be_disabled_or_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    async def mine(*_: object) -> Outcome:
        return Outcome(kind=UNCHANGED)

    point = SimpleNamespace(name="mine", load=lambda: mine)
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [point])
    assert find_handler(IocConfig(), "cert.revoked") is on_cert_revoked
    assert find_handler(IocConfig(), "cert.unknown") is None
    ioc = IocConfig(disabled_handlers=("cert.revoked", "my.own"), handlers={"cert.renewed": "mine", "my.own": "mine"})
    assert find_handler(ioc, "cert.revoked") is find_handler(ioc, "my.own") is None
    assert find_handler(ioc, "cert.renewed") is mine
    assert find_handler(ioc, "cert.unassigned") is on_cert_unassigned
    with pytest.raises(ConfigError, match="'theirs'"):
        find_handler(IocConfig(handlers={"cert.renewed": "theirs"}), "cert.renewed")
