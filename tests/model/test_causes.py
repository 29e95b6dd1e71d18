"""Codes of causes: each kind of error has one, and so has each reason for which material is refused."""

from __future__ import annotations

import errno
import re
from pathlib import Path

import pytest

from certctrl.errors import (
    BadAnswerError,
    BatchRefusedError,
    BusyError,
    CommandError,
    ConfigError,
    DeadlineError,
    DiskError,
    HostKeyMissingError,
    LaggingError,
    MaterialError,
    NotYetValidError,
    OlderMaterialError,
    PlaneError,
    PlanError,
    PolicyRefusedError,
    ProbeError,
    ProbeFault,
    StateCorruptError,
    TlsError,
    TransportError,
    VersionRollbackError,
    WrongNamesError,
)
from certctrl.model.causes import _MATERIAL, Cause, Reason, Step, cause_of
from certctrl.model.plan import Outcome, OutcomeKind, named_cause
from certctrl.model.signals import CertRenewed
from certctrl.protocol.wire.signals import ack_event

SOURCES = Path(__file__).resolve().parents[2] / "certctrl"


@pytest.mark.parametrize(
    ("error", "step", "reason"),
    [
        (TransportError("x"), "fetch", "plane-unreachable"),
        (TlsError("x"), "fetch", "plane-tls"),
        (DeadlineError("x"), "fetch", "plane-timeout"),
        (BadAnswerError("x"), "fetch", "plane-answer"),
        (LaggingError("x"), "fetch", "plane-lagging"),
        *((PlaneError("x", status=status), "fetch", "plane-busy") for status in (429, 500, 503)),
        *((PlaneError("x", status=status), "fetch", "plane-refused") for status in (400, 403)),
        *((PlaneError("x", status=status), "fetch", "not-offered") for status in (404, 410)),
        (PlaneError("x", status=409, key="WRAP_PENDING"), "fetch", "pending"),
        (NotYetValidError("x", valid_from=1.0), "verify", "not-yet-valid"),
        (OlderMaterialError("x"), "verify", "older"),
        (HostKeyMissingError("x"), "verify", "key-missing"),
        (WrongNamesError("x"), "verify", "wrong-names"),
        (MaterialError("x", reason="of a later release"), "verify", "material-invalid"),
        (DiskError("x", errno=errno.ENOSPC), "write", "disk-full"),
        (DiskError("x", errno=errno.EDQUOT), "write", "disk-full"),
        (DiskError("x", errno=errno.EROFS), "write", "disk-read-only"),
        (DiskError("x", errno=errno.EACCES), "write", "permission"),
        (DiskError("x", errno=errno.EIO), "write", "disk-fault"),
        (StateCorruptError("x"), "write", "damaged"),
        (CommandError("x", status=3), "run", "command-failed"),
        (CommandError("x", status=-9), "run", "command-failed"),
        (CommandError("x", status=-9, timed_out=True), "run", "command-timeout"),
        (CommandError("x"), "run", "command-not-run"),
        (PolicyRefusedError("x"), "plan", "policy"),
        (BatchRefusedError(7, "x"), "switch", "batch-refused"),
        (VersionRollbackError("x", fix=""), "plan", "config-older"),
        (PlanError("x", reason="hash"), "plan", "config-invalid"),
        (ConfigError("x"), "plan", "host-config"),
        (BusyError("x"), "handle", "other"),
        (ValueError("x"), "handle", "internal"),
    ],
)
def test_each_kind_of_error_has_codes(error: Exception, step: str, reason: str) -> None:
    assert cause_of(error) == named_cause(step, reason) == Cause(Step(step), Reason(reason))


@pytest.mark.parametrize("fault", ProbeFault)
def test_each_fault_of_a_probe_has_a_code(fault: ProbeFault) -> None:
    found = cause_of(ProbeError("x", fault=fault))
    assert found.step is Step.PROBE and found.reason is not Reason.OTHER


def test_the_caller_names_the_step_unless_the_error_implies_it() -> None:
    assert cause_of(CommandError("x", status=1), Step.PROBE).step is Step.PROBE
    assert cause_of(TransportError("x"), Step.WITHDRAW).step is Step.FETCH


def test_the_table_of_material_names_only_reasons_that_are_raised() -> None:
    raised = set[str]()
    for path in SOURCES.rglob("*.py"):
        raised |= set(re.findall(r'reason="([a-z0-9-]+)"', path.read_text()))
    assert set(_MATERIAL) <= raised


def test_an_ack_has_the_codes_of_its_outcome_and_of_what_waits() -> None:
    signal = CertRenewed(ts_ms=1, cert_id=7)
    for outcome in (
        Outcome(kind=OutcomeKind.FAILED, detail="x", cause=named_cause("run", "service-down")),
        Outcome(kind=OutcomeKind.APPLIED, detail="staged", cause=named_cause("switch", "window")),
    ):
        event = ack_event(signal, outcome, 5)
        assert outcome.cause is not None
        assert (event["step"], event["reason"]) == (outcome.cause.step.value, outcome.cause.reason.value)
    assert {"step", "reason"}.isdisjoint(ack_event(signal, Outcome(kind=OutcomeKind.FAILED), 5))
