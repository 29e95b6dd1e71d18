"""Watch the expiry of certificates: warn, request a renewal, alert if none arrives."""

from __future__ import annotations

import trio

from certctrl.agent.alerts import EXPIRY, clear_alerts, raise_alert
from certctrl.agent.context import Agent
from certctrl.agent.expiry import Finding, RenewalRequests, Urgency, find_expiring, next_check, time_left
from certctrl.agent.log_lines import Line, log_line
from certctrl.errors import CertctrlError, UsageError
from certctrl.model.records import CertRecord, Standing


async def guard_expiry(agent: Agent) -> None:
    """Watch the remaining lifetime of all certificates until cancelled; works while the plane is down."""
    requests = RenewalRequests()
    warned: dict[int, tuple[str, Urgency]] = {}
    while True:
        now = agent.wall_now()
        findings = find_expiring(agent.installer.records.values(), agent.config.application, now)
        for finding in findings:
            here = await agent.installer.renewal_here(finding.record)
            step = (finding.record.facts.serial, finding.urgency)
            if warned.get(finding.record.cert_id) != step:
                warned[finding.record.cert_id] = step
                await _warn(agent, finding, here)
            if not _is_renewed(agent, here, now) and requests.due(finding, trio.current_time()):
                accepted = await _request(agent, finding.record)
                requests.record(finding, trio.current_time(), accepted=accepted)
        for cert_id in warned.keys() - {finding.record.cert_id for finding in findings}:
            del warned[cert_id]
            clear_alerts(agent, cert_id, EXPIRY)
        pause = next_check(agent.installer.records.values(), agent.config.application, agent.wall_now())
        with trio.move_on_after(min(pause, requests.next_due(trio.current_time()))):
            await agent.lifetimes_changed.wait_value(True)  # a certificate deployed since may be due before that
        agent.lifetimes_changed.value = False


def _is_renewed(agent: Agent, here: CertRecord | None, now: float) -> bool:
    """Return whether a staged renewal is here that is not due for renewal itself."""
    return here is not None and not find_expiring([here], agent.config.application, now)


async def _warn(agent: Agent, finding: Finding, here: CertRecord | None) -> None:
    record, left = finding.record, time_left(finding.remaining)
    if finding.urgency is Urgency.DUE:
        log_line(agent.log, Line.EXPIRY_WARNING, cert_id=record.cert_id, name=record.name, left=left)
        return
    if finding.urgency is Urgency.EXPIRED:
        log_line(agent.log, Line.EXPIRED, cert_id=record.cert_id, name=record.name)
    why, fix = _why_not_renewed(agent, record) if here is not None else _NOT_ARRIVED
    ends = "has expired" if finding.urgency is Urgency.EXPIRED else f"expires in {left}"
    what = f"{record.facts} {ends} and {why}"
    await raise_alert(agent, finding.urgency.value, what, fix, cert_id=record.cert_id, name=record.name)


_NOT_ARRIVED = (
    "no renewal has arrived",
    "check on the plane why it is not renewed; `cert-ctrl status` shows whether this host reaches it",
)


def _why_not_renewed(agent: Agent, record: CertRecord) -> tuple[str, str]:
    """Return why a staged renewal is not in use, and the fix."""
    if record.held:
        name = record.facts.domains[0] if record.facts.domains else record.name
        return "its renewal is held back by a rollback", f"cert-ctrl rollback --domain {name} --release"
    if record.failing and (error := agent.installer.last_error(record.cert_id)):
        return f"its renewal could not be deployed: {error}", "fix that, then run `cert-ctrl apply --now`"
    return "its renewal waits for the maintenance window", "`cert-ctrl apply --now` ignores it"


async def _request(agent: Agent, record: CertRecord) -> bool:
    try:
        await request_renewal(agent, record, "expiry guard")
    except CertctrlError as error:
        log_line(agent.log, Line.EXPIRY_RENEWAL_FAILED, cert_id=record.cert_id, name=record.name, why=error)
        return False
    log_line(agent.log, Line.EXPIRY_RENEWAL_ASKED, cert_id=record.cert_id, name=record.name)
    return True


async def request_renewal(agent: Agent, record: CertRecord, reason: str) -> None:
    """Request a renewal from the plane; the new material arrives as ``cert.renewed``.

    Raises UsageError for a certificate of another plane: its id would be that of a different one.
    """
    if record.standing is Standing.FOREIGN:
        fix = "assign a certificate for these names to this device, then cert-ctrl forget"
        raise UsageError(f"{record.name} is not from this control plane", fix=fix)
    user_id, _device_id = await agent.tokens.identity()
    await agent.authorized(lambda token: agent.plane.request_renewal(token, user_id, record.cert_id, reason))
