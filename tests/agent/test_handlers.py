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
    BLANK,
    FACTS,
    FAILED,
    FOREIGN,
    IGNORED,
    LEAVING,
    LIVE,
    LOST,
    NOW,
    OTHER,
    REVOKED,
    STAGED_ONLY,
    THERE,
    TS,
    UNCHANGED,
    WITHDRAWN,
    World,
    refused,
)

from certctrl.agent.handlers import (
    HANDLERS,
    find_handler,
    on_cert_renewed,
    on_cert_revoked,
    on_cert_unassigned,
    on_install_updated,
    on_resync_required,
    refuse_older,
)
from certctrl.errors import (
    ConfigError,
    LaggingError,
    MaterialError,
    OlderMaterialError,
    PlaneError,
    VersionRollbackError,
    WrongNamesError,
)
from certctrl.model.certificate import Bundle, CertificateSummary
from certctrl.model.config import IocConfig
from certctrl.model.plan import Deployed, Outcome, OutcomeKind
from certctrl.model.records import CertRecord, Standing
from certctrl.model.signals import (
    KNOWN_TYPES,
    CertRenewed,
    CertUnassigned,
    InstallUpdated,
    ResyncRequired,
)


@pytest.fixture
def scene(tmp_path: Path) -> World:
    return World(tmp_path / "agent")


def test_every_known_type_has_a_handler() -> None:
    assert HANDLERS.keys() == KNOWN_TYPES


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
    assert (outcome.kind, outcome.detail) == (APPLIED, "1 difference")
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
