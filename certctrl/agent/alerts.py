"""Alerts: what an operator must hear of, in log, metrics, status and by the host's own command."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from certctrl.agent.context import Agent
from certctrl.agent.expiry import Urgency
from certctrl.agent.log_lines import Line, log_line
from certctrl.model.bundle import CertificateSummary
from certctrl.model.records import CertRecord

REVOKED = "revoked"
EXPIRY = (Urgency.LATE.value, Urgency.EXPIRED.value)


async def raise_alert(agent: Agent, kind: str, what: str, fix: str, **facts: object) -> None:
    """Raise one alert everywhere it belongs: log, metrics, status, the operator's command."""
    agent.counters.alerts[kind] += 1
    agent.report_problem(problem_key(kind, facts.get("cert_id", "")), what, fix)
    log_line(agent.log, Line.ALERT, what=what)
    await agent.installer.alert({"alert": kind, "what": what, **facts})


def problem_key(kind: str, cert_id: object = "") -> str:
    """Return the key under which an alert stands in the status."""
    return f"alert:{kind}:{cert_id}"


def clear_alerts(agent: Agent, cert_id: int, kinds: Sequence[str] = (REVOKED, *EXPIRY)) -> None:
    """Take back what was alerted about a certificate that is fine again, or no longer ours."""
    for kind in kinds:
        agent.clear_problem(problem_key(kind, cert_id))


def revoked(record: CertRecord) -> tuple[str, str]:
    """Return what is wrong with a revoked certificate, and what to do about it."""
    what = f"certificate {record.cert_id} ({record.name}) was revoked"
    return what, "issue a new one at the plane, or unassign this one there"


def restore_revocations(agent: Agent, listed: Iterable[CertificateSummary]) -> None:
    """Keep revocations in sight over restarts, until the plane lists them no more; nothing is alerted anew."""
    standing = {summary.id: summary.status == REVOKED for summary in listed}
    for record in agent.installer.records.values():
        if standing.get(record.cert_id, False):
            agent.report_problem(problem_key(REVOKED, record.cert_id), *revoked(record))
        elif record.cert_id not in standing:
            clear_alerts(agent, record.cert_id, (REVOKED,))
