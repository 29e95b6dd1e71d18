"""The result of `apply` includes what its signals switched, and why others failed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import attrs
import pytest

from certctrl.agent.operations import Operations, applied, changes_so_far, failed
from certctrl.errors import UsageError
from certctrl.model.certificate import CertFacts
from certctrl.model.plan import Outcome, OutcomeKind
from certctrl.model.records import CertRecord, Retry, RetryKind
from certctrl.model.signals import CertRenewed

UNCHANGED, FAILED = Outcome(kind=OutcomeKind.UNCHANGED), Outcome(kind=OutcomeKind.FAILED, detail="nginx: bad")


def agent_with(*generation: str, errors: tuple[str, ...] = ()) -> Any:
    records = {
        n: CertRecord(facts=CertFacts(cert_id=n, name=f"c{n}.example"), generation=g) for n, g in enumerate(generation)
    }
    retries = [
        Retry(resource=f"cert:{n}", kind=RetryKind.REFUSED, last_error=e, signal=CertRenewed(ts_ms=1, cert_id=n))
        for n, e in enumerate(errors)
    ]
    table = SimpleNamespace(signals=lambda: retries)
    return SimpleNamespace(installer=SimpleNamespace(records=records, retries=table), problems={})


def reported(outcome: Outcome, before: Any, after: Any, unreachable: str = "") -> dict[str, Any]:
    return applied(after, outcome, changes_so_far(before), differences=1, unreachable=unreachable)


def test_apply_includes_what_its_signals_switched() -> None:
    assert reported(UNCHANGED, agent_with("g1"), agent_with("g2"))["outcome"] == "applied"
    assert reported(UNCHANGED, agent_with(), agent_with("g1"))["outcome"] == "applied"
    assert reported(UNCHANGED, agent_with("g1"), agent_with("g1"))["outcome"] == "unchanged"


def test_apply_includes_what_its_signals_wrote() -> None:
    """Found by trying: with a missing copy, a signal of the comparison wrote it, and `apply` said "unchanged"."""

    def at(time: float, kind: OutcomeKind = OutcomeKind.APPLIED) -> Any:
        agent = agent_with("g1")
        agent.installer.records = {
            n: attrs.evolve(one, last_apply_at=time, last_outcome=kind) for n, one in agent.installer.records.items()
        }
        return agent

    assert reported(UNCHANGED, at(1.0), at(2.0))["outcome"] == "applied"
    assert reported(UNCHANGED, at(1.0), at(1.0))["outcome"] == "unchanged"
    assert reported(UNCHANGED, at(1.0), at(2.0, OutcomeKind.UNCHANGED))["outcome"] == "unchanged"


def test_a_failure_stays_a_failure() -> None:
    answer = reported(FAILED, agent_with("g1"), agent_with("g2"))
    assert (answer["outcome"], answer["detail"]) == ("failed", "nginx: bad")


def test_an_unreachable_plane_is_named() -> None:
    assert "plane" not in reported(UNCHANGED, agent_with("g1"), agent_with("g1"))
    assert reported(UNCHANGED, agent_with("g1"), agent_with("g1"), "no route")["plane"] == "no route"


def test_signals_that_failed_are_named() -> None:
    assert failed(agent_with("g1")) == {}
    assert failed(agent_with("g1", errors=("the check refuses it",))) == {"failed": ["the check refuses it"]}


@pytest.mark.parametrize(
    ("name", "request_", "what"),
    [
        ("apply", {"now": "yes"}, "request.now: expected true or false, got text"),
        ("reset_trust", {"scripts": 1}, "request.scripts: expected true or false, got a whole number"),
        ("forget", {"ca_id": "x"}, "request.ca_id: expected an integer, got text"),
        ("rollback", {"domain": ["a"]}, "request.domain: expected text, got a list"),
        ("renew", {}, "the request has no domain"),
    ],
)
async def test_a_request_that_does_not_fit_is_refused(name: str, request_: dict[str, Any], what: str) -> None:
    operations: Any = Operations(agent_with("g1"), SimpleNamespace(), lambda why: None)  # type: ignore[arg-type]
    with pytest.raises(UsageError) as caught:
        await getattr(operations, name)(request_)
    assert str(caught.value) == what
    assert caught.value.fix
