"""A revocation stays in the status: with a placeholder, across restarts, until the plane no longer lists it."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any, cast

import attrs
import pytest

from certctrl.agent.alerts import clear_alerts, restore_revocations
from certctrl.agent.context import Agent, Problem
from certctrl.agent.signal_results import log_certificates
from certctrl.model.certificate import CertFacts, CertificateSummary
from certctrl.model.plan import Deployed, Outcome, OutcomeKind
from certctrl.model.records import CertRecord, InboxEntry, Stage
from certctrl.model.signals import CertRenewed, CertRevoked, Signal

GONE = CertRecord(facts=CertFacts(cert_id=1, name="a.example"), stage=Stage.WITHDRAWN)
REVOKED = CertificateSummary(id=1, domain_name="a.example", status="revoked")
KEY = "alert:revoked:1"


def agent_with(record: CertRecord, *problems: str) -> Agent:
    standing = {key: Problem(what="said", since=0.0) for key in problems}
    part = SimpleNamespace(
        log=logging.getLogger("test"),
        installer=SimpleNamespace(records={record.cert_id: record}),
        problems=standing,
        report_problem=lambda key, what, fix="": standing.update({key: Problem(what=what, since=0.0, fix=fix)}),
        clear_problem=lambda key: standing.pop(key, None),
    )
    return cast(Agent, part)


def test_a_restart_brings_the_problem_back() -> None:
    agent = agent_with(GONE)
    restore_revocations(agent, [REVOKED])
    assert agent.problems[KEY].what == "certificate 1 (a.example) was revoked"


def test_the_problem_is_cleared_when_the_plane_no_longer_lists_it() -> None:
    agent = agent_with(GONE, KEY)
    restore_revocations(agent, [])
    assert agent.problems == {}


def test_other_certificates_are_not_affected() -> None:
    agent = agent_with(attrs.evolve(GONE, facts=attrs.evolve(GONE.facts, cert_id=2)), "alert:late:2")
    restore_revocations(agent, [REVOKED, attrs.evolve(REVOKED, id=2, status="active")])
    assert set(agent.problems) == {"alert:late:2"}
    clear_alerts(agent, 2)
    assert agent.problems == {}


def reported(agent: Agent, signal: Signal, kind: OutcomeKind = OutcomeKind.APPLIED, **how: Any) -> None:
    outcome = Outcome(kind=kind, deployed=(Deployed(cert_id=1, serial="5", fingerprint_sha256="aa"),), **how)
    log_certificates(agent, InboxEntry(signal=signal), outcome)


def test_a_renewal_clears_the_alert_and_a_placeholder_does_not() -> None:
    agent = agent_with(GONE, KEY)
    reported(agent, CertRevoked(ts_ms=1, cert_id=1))
    assert set(agent.problems) == {KEY}
    reported(agent, CertRenewed(ts_ms=2, cert_id=1))
    assert agent.problems == {}


def test_a_renewal_deployed_by_another_attempt_clears_it() -> None:
    agent = agent_with(GONE, KEY, "alert:late:1")
    reported(agent, CertRenewed(ts_ms=2, cert_id=1), OutcomeKind.UNCHANGED)
    assert set(agent.problems) == {"alert:late:1"}


@pytest.mark.parametrize(
    "waits", ["waits for the window daily 02:00-04:00", "waits for `cert-ctrl rollback --release`"]
)
def test_a_renewal_that_is_only_staged_clears_no_alert(waits: str, caplog: pytest.LogCaptureFixture) -> None:
    agent = agent_with(GONE, KEY, "alert:late:1")
    with caplog.at_level(logging.INFO):
        reported(agent, CertRenewed(ts_ms=2, cert_id=1), detail=f"staged; {waits}", waits=waits)
    assert set(agent.problems) == {KEY, "alert:late:1"}
    assert [record.getMessage() for record in caplog.records] == [f"Certificate 1 staged: a.example {waits}"]


def test_the_text_of_an_outcome_decides_nothing(caplog: pytest.LogCaptureFixture) -> None:
    agent = agent_with(GONE, KEY, "alert:late:1")
    with caplog.at_level(logging.INFO):
        reported(agent, CertRenewed(ts_ms=2, cert_id=1), detail="item waits for review was left out")
    assert agent.problems == {}
    assert "updated" in caplog.text and "staged" not in caplog.text
