"""Turn a handler's outcome or error into the result of its signal, and log the outcome of certificates."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, cast

from certctrl import lean
from certctrl.agent.alerts import REVOKED, clear_alerts
from certctrl.agent.context import Agent
from certctrl.agent.log_lines import Line, log_line
from certctrl.errors import (
    CertctrlError,
    CommandError,
    DiskError,
    GraceError,
    LaggingError,
    MaterialError,
    NotYetValidError,
    PlaneError,
    PolicyRefusedError,
    StateCorruptError,
    TransportError,
)
from certctrl.model.plan import Outcome, OutcomeKind, cause_of, named_cause
from certctrl.model.records import InboxEntry, RetryKind
from certctrl.model.signals import (
    CaAssigned,
    CaUnassigned,
    CertRenewed,
    CertRevoked,
    CertUnassigned,
    ChallengeStart,
    ChallengeStop,
    CsrWanted,
    Signal,
)

if TYPE_CHECKING:
    from certctrl.model.causes import Cause

WAITING_STATUSES = frozenset({409, 429, 500, 502, 503, 504})


@lean.frozen
class Result:
    """The end of one handler."""

    outcome: Outcome
    kind: RetryKind = RetryKind.REFUSED
    """Why it is retried, if it failed."""
    retry_after: float = 0.0
    """Seconds that the plane requested, or until the material becomes valid."""
    until: float = math.inf
    """When the material becomes valid (epoch seconds); infinite: it is not a matter of dates."""
    waits: bool = False
    """Whether nothing failed: the signal is carried out later, and acknowledged then."""


def result_of(outcome: Outcome) -> Result:
    """Return the result of a handler that returned."""
    return Result(outcome, RetryKind.WAITING if outcome.transient else RetryKind.REFUSED)


def failed(detail: str, step: str, reason: str) -> Outcome:
    """Return the outcome of a failure that no error describes, with the codes of its cause."""
    return Outcome(kind=OutcomeKind.FAILED, detail=detail, cause=named_cause(step, reason))


def explain(agent: Agent, entry: InboxEntry, error: Exception) -> Result:
    """Return the result of a handler that raised."""
    cert_id = getattr(entry.signal, "cert_id", "?")
    kind, transient, retry_after = "", False, cast(float | None, None)
    failure = _failure(entry.signal, error)
    match error:
        case NotYetValidError():
            agent.counters.errors["material"] += 1
            delay = max(1.0, error.valid_from - agent.wall_now())
            log_line(agent.log, Line.CERT_PENDING, cert_id=cert_id, what=error, delay=round(delay))
            return Result(failure, RetryKind.WAITING, delay, error.valid_from)
        case MaterialError():
            kind, transient, retry_after = "material", False, None
            log_line(agent.log, Line.CERT_REFUSED, cert_id=cert_id, reason=error.reason, what=error)
        case GraceError():
            return Result(failure, RetryKind.GRACE, error.seconds, waits=True)
        case LaggingError():
            agent.counters.errors["plane"] += 1
            return Result(failure, RetryKind.LAGGING)
        case PlaneError():
            kind, transient, retry_after = "plane", error.status in WAITING_STATUSES, error.retry_after
        case TransportError():
            kind, transient, retry_after = "transport", True, None
        case DiskError():
            agent.counters.errors["disk"] += 1
            damaged = isinstance(error, StateCorruptError)
            return Result(failure, RetryKind.REFUSED if damaged else RetryKind.DISK)
        case PolicyRefusedError():
            kind, transient, retry_after = "policy", False, None
            log_line(agent.log, Line.POLICY_REFUSED, what=error, fix=error.fix or "see policy.json")
        case CertctrlError():
            kind, transient, retry_after = type(error).__name__.removesuffix("Error").lower(), False, None
        case _:
            agent.counters.errors["bug"] += 1
            where = f"the handler of {entry.signal.type}"
            log_line(agent.log, Line.BUG, kind=type(error).__name__, where=where, why=error)
            return Result(failure)
    agent.counters.errors[kind] += 1
    return Result(failure, RetryKind.WAITING if transient else RetryKind.REFUSED, retry_after or 0.0)


def _failure(signal: Signal, error: Exception) -> Outcome:
    detail = f"internal error ({type(error).__name__})"
    if isinstance(error, CertctrlError):
        detail = f"{error}; {error.fix}" if error.fix else str(error)
    return Outcome(kind=OutcomeKind.FAILED, detail=detail, cause=_cause(signal, error))


def _cause(signal: Signal, error: Exception) -> Cause:
    match signal:
        case CertRenewed():  # all that a handler runs or refuses by policy are the checks of staged files
            return cause_of(error, "check" if isinstance(error, CommandError | PolicyRefusedError) else "")
        case CertRevoked() | CertUnassigned():
            return cause_of(error, "withdraw")
        case CsrWanted():
            return cause_of(error, "order")
        case CaAssigned() | CaUnassigned():
            return cause_of(error, "trust")
        case _:
            return cause_of(error, "answer" if isinstance(signal, ChallengeStart | ChallengeStop) else "")


def log_certificates(agent: Agent, entry: InboxEntry, outcome: Outcome) -> None:
    """Log the certificates of one signal, and clear their alerts."""
    signal = entry.signal
    for served in outcome.deployed:
        record = agent.installer.records.get(served.cert_id)
        name = record.name if record is not None else "?"
        if outcome.waits:
            log_line(agent.log, Line.CERT_STAGED, cert_id=served.cert_id, name=name, what=outcome.waits)
        elif outcome.kind is OutcomeKind.APPLIED and not isinstance(signal, CertRevoked):  # no placeholder
            clear_alerts(agent, served.cert_id)
            log_line(agent.log, Line.CERT_UPDATED, cert_id=served.cert_id, name=name, serial=served.serial)
    if outcome.kind is OutcomeKind.UNCHANGED and isinstance(signal, CertRenewed):
        clear_alerts(agent, signal.cert_id, (REVOKED,))  # another attempt deployed the plane's current one
        record = agent.installer.records.get(signal.cert_id)
        log_line(agent.log, Line.CERT_UNCHANGED, cert_id=signal.cert_id, name=record.name if record else "?")
