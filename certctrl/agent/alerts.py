"""Alert the operator in the log, the metrics, the status and by the ``on_alert`` command; report disk problems.

A problem is reported once and cleared when it is over: a disk problem by the next successful write.
"""

from __future__ import annotations

from collections.abc import Awaitable, Iterable, Sequence

from certctrl.agent.context import Agent
from certctrl.agent.expiry import Urgency
from certctrl.agent.log_lines import Line, log_line
from certctrl.errors import DiskError
from certctrl.model.certificate import CertificateSummary
from certctrl.model.records import CertRecord, Standing

REVOKED = "revoked"
UNASSIGNED = "unassigned"
ENDED = "ended"
EXPIRY = (Urgency.LATE.value, Urgency.EXPIRED.value)


async def raise_alert(agent: Agent, kind: str, what: str, fix: str, **facts: object) -> None:
    """Raise one alert in the log, the metrics, the status and by the operator's command."""
    agent.report_problem(problem_key(kind, facts.get("cert_id", "")), what, fix)
    await send_alert(agent, kind, what, fix, **facts)


async def send_alert(agent: Agent, kind: str, what: str, fix: str, **facts: object) -> None:
    """Raise one alert whose cause the status shows anyway; its JSON is documented in ``docs/alerts.md``."""
    agent.counters.alerts[kind] += 1
    log_line(agent.log, Line.ALERT, what=what)
    about = {"alert": kind, "what": what, "fix": fix, "at": agent.wall_now(), "device_id": agent.device_id}
    await agent.installer.alert(about | facts)


def problem_key(kind: str, cert_id: object = "") -> str:
    """Return the key of an alert in the status."""
    return f"alert:{kind}:{cert_id}"


def clear_alerts(agent: Agent, cert_id: int, kinds: Sequence[str] = (REVOKED, UNASSIGNED, *EXPIRY)) -> None:
    """Clear the alerts of a certificate that is in order again or no longer on this host."""
    for kind in kinds:
        agent.clear_problem(problem_key(kind, cert_id))


def revoked(record: CertRecord) -> tuple[str, str]:
    """Return the problem with a revoked certificate and its fix."""
    what = f"{record.facts} was revoked"
    return what, "issue a new one at the plane, or unassign this one there"


def restore_revocations(agent: Agent, listed: Iterable[CertificateSummary]) -> None:
    """Show revocations in the status across restarts, while the plane lists them; no alert is repeated."""
    standing = {summary.id: summary.status == REVOKED for summary in listed}
    for record in agent.installer.records.values():
        if record.standing is Standing.FOREIGN:  # the plane's certificate with this id is another one
            continue
        if standing.get(record.cert_id, False):
            agent.report_problem(problem_key(REVOKED, record.cert_id), *revoked(record))
        elif record.cert_id not in standing:
            clear_alerts(agent, record.cert_id, (REVOKED,))


async def retry_writes(agent: Agent) -> None:
    """Retry writes that the disk refused, in case no other change does."""
    if agent.inbox.behind:
        await write_or_report(agent, agent.inbox.secure())


async def write_or_report(agent: Agent, writing: Awaitable[None]) -> bool:
    """Await a write and return whether it succeeded; report its failure: refused data stays in memory until the next."""
    try:
        await writing
    except DiskError as error:
        report_disk_problem(agent, error)
        return False
    clear_disk_problem(agent)
    return True


def report_disk_problem(agent: Agent, error: DiskError) -> None:
    """Report that a state file could not be written."""
    if agent.report_problem("disk", str(error), error.fix or ""):
        log_line(agent.log, Line.DISK_FAILED, path=error.path, why=error)


def clear_disk_problem(agent: Agent) -> None:
    """Clear the problem after a successful write."""
    if agent.clear_problem("disk"):
        log_line(agent.log, Line.DISK_RECOVERED)
