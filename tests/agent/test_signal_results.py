"""How a handler that raised is retried and counted."""

from __future__ import annotations

import logging
import math
from types import SimpleNamespace
from typing import Any

import pytest

from certctrl.agent.counters import Counters
from certctrl.agent.signal_results import explain, result_of
from certctrl.errors import (
    BadAnswerError,
    BusyError,
    CommandError,
    ConfigError,
    DeadlineError,
    DiskError,
    GraceError,
    LaggingError,
    MaterialError,
    NotYetValidError,
    OlderMaterialError,
    PlaneError,
    PlanError,
    PolicyRefusedError,
    StateCorruptError,
    TransportError,
    VersionRollbackError,
    WrongNamesError,
)
from certctrl.model.plan import Outcome, OutcomeKind
from certctrl.model.records import InboxEntry, RetryKind
from certctrl.model.signals import CertRenewed

NOW = 1000.0
DISK, LAGGING, REFUSED, WAITING = RetryKind.DISK, RetryKind.LAGGING, RetryKind.REFUSED, RetryKind.WAITING


def agent() -> Any:
    return SimpleNamespace(counters=Counters(), wall_now=lambda: NOW, log=logging.getLogger("test"))


def plane(status: int, after: float | None = None) -> PlaneError:
    return PlaneError("no", status=status, retry_after=after)


@pytest.mark.parametrize(
    ("error", "kind", "retry_after", "counted"),
    [
        (NotYetValidError("soon", valid_from=NOW + 90), WAITING, 90.0, "material"),
        (NotYetValidError("now", valid_from=NOW - 5), WAITING, 1.0, "material"),
        (MaterialError("weak", reason="key-weak"), REFUSED, 0.0, "material"),
        (OlderMaterialError("older"), REFUSED, 0.0, "material"),
        (WrongNamesError("others"), REFUSED, 0.0, "material"),
        (LaggingError("not yet"), LAGGING, 0.0, "plane"),
        *((plane(status, 7.0), WAITING, 7.0, "plane") for status in (409, 429, 500, 502, 503, 504)),
        *((plane(status), REFUSED, 0.0, "plane") for status in (400, 401, 403, 404, 410, 501)),
        (TransportError("no route"), WAITING, 0.0, "transport"),
        (DeadlineError("late"), WAITING, 0.0, "transport"),
        (BadAnswerError("html"), WAITING, 0.0, "transport"),
        (DiskError("full"), DISK, 0.0, "disk"),
        (StateCorruptError("damaged"), REFUSED, 0.0, "disk"),
        (PolicyRefusedError("not listed", fix="list it"), REFUSED, 0.0, "policy"),
        (PlanError("cycle", reason="cycle"), REFUSED, 0.0, "plan"),
        (VersionRollbackError("older", fix="publish"), REFUSED, 0.0, "versionrollback"),
        (CommandError("exited with 1"), REFUSED, 0.0, "command"),
        (ConfigError("wrong"), REFUSED, 0.0, "config"),
        (BusyError("locked"), REFUSED, 0.0, "busy"),
        (ZeroDivisionError("secret"), REFUSED, 0.0, "bug"),
    ],
)
def test_the_kind_of_an_error_decides_how_it_is_retried(
    error: Exception, kind: RetryKind, retry_after: float, counted: str
) -> None:
    here = agent()
    result = explain(here, InboxEntry(signal=CertRenewed(ts_ms=1, cert_id=7)), error)
    assert (result.kind, result.retry_after, result.waits) == (kind, retry_after, False)
    assert here.counters.errors == {counted: 1}
    assert result.outcome.kind is OutcomeKind.FAILED and not result.outcome.recorded
    fix = getattr(error, "fix", None)
    said = f"{error}; {fix}" if fix else str(error)
    assert result.outcome.detail == ("internal error (ZeroDivisionError)" if counted == "bug" else said)


def test_material_waits_for_its_date_by_the_wall_clock() -> None:
    entry = InboxEntry(signal=CertRenewed(ts_ms=1, cert_id=7))
    assert explain(agent(), entry, NotYetValidError("soon", valid_from=NOW + 90)).until == NOW + 90
    assert explain(agent(), entry, plane(503, 90.0)).until == math.inf


def test_a_grace_time_is_no_failure() -> None:
    here = agent()
    result = explain(here, InboxEntry(signal=CertRenewed(ts_ms=1, cert_id=7)), GraceError("later", seconds=60.0))
    assert (result.kind, result.retry_after, result.waits) == (RetryKind.GRACE, 60.0, True)
    assert here.counters.errors == {}


@pytest.mark.parametrize(("transient", "kind"), [(True, WAITING), (False, REFUSED)])
def test_an_outcome_says_whether_waiting_helps(transient: bool, kind: RetryKind) -> None:
    outcome = Outcome(kind=OutcomeKind.FAILED, transient=transient)
    assert (result_of(outcome).outcome, result_of(outcome).kind, result_of(outcome).waits) == (outcome, kind, False)
