"""Decide what an unassignment, or a plane that does not know this host's certificates, may do.

Another plane, another device or an emptied database does not know the certificates here; that is not a reason to
remove them. Only an explicit, confirmed ``cert.unassigned`` from the plane and the stream that this host follows
removes one, after a grace time. Everything else stays in use, is reported, and waits for `cert-ctrl forget`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs

from certctrl.agent.alerts import UNASSIGNED, problem_key, raise_alert
from certctrl.agent.context import Agent
from certctrl.agent.log_lines import Line, log_line
from certctrl.agent.lost import check_disk
from certctrl.errors import GraceError, MaterialError
from certctrl.install.deploy.retry_table import cert_resource
from certctrl.install.installer import in_use
from certctrl.install.material.domains import plain_domain
from certctrl.model.certificate import CertificateSummary
from certctrl.model.records import CertRecord, KnownPlane, Standing
from certctrl.model.signals import Signal

UNKNOWN = "unknown-certificates"
MASS = "mass-unassignment"
DAY = 86_400.0
FEW = 3
"""Unassignments within a day that are never a mass."""
ASK_AGAIN_SECONDS = 3600.0
MAX_NAMED = 5
"""Certificates that a problem names."""


async def recover(agent: Agent) -> None:
    """Recover this host after the last run, and check whether it still follows the same plane."""
    await check_disk(agent, contents=False)  # the first comparison reads them
    await agent.installer.recover()
    await recognise_plane(agent)
    report_standings(agent)


async def recognise_plane(agent: Agent) -> KnownPlane:
    """Return the plane that this host follows; certificates of another one become foreign, durably."""
    _user_id, device_id = await agent.tokens.identity()
    server = agent.config.application.server_url.rstrip("/").lower()
    origin = f"{server} {device_id or '-'} {agent.device_id or '-'}"
    known: KnownPlane | None = await agent.offload(agent.store.session.load_known_plane)
    if known is not None and known.origin == origin:
        return known
    here = [record for record in agent.installer.records.values() if in_use(record)]
    if known is not None and here:
        log_line(agent.log, Line.PLANE_CHANGED, count=len(here), server=server)
        await agent.installer.update(attrs.evolve(record, standing=Standing.FOREIGN) for record in here)
        agent.plane_changed = True
    return await _follow(agent, origin, agent.plane.server_now() if known is not None else 0.0)


async def stream_lost(agent: Agent) -> None:
    """Record that the stream begins again at a plane that lists none of this host's certificates."""
    await _follow(agent, (await recognise_plane(agent)).origin, agent.plane.server_now())


async def _follow(agent: Agent, origin: str, since: float) -> KnownPlane:
    plane = KnownPlane(origin=origin, since=since)
    await agent.offload(agent.store.session.save_known_plane, plane)
    return plane


def shares_name(summary: CertificateSummary, record: CertRecord) -> bool:
    """Return whether a certificate of the plane is for a name of the one that has its id here."""
    names = {plain_domain(name) for name in (summary.domain_name, *summary.sans) if name}
    here = {plain_domain(name) for name in record.facts.domains}
    return not names or not here or not names.isdisjoint(here)


async def require_same(agent: Agent, record: CertRecord, summary: CertificateSummary) -> None:
    """Raise MaterialError if the plane's certificate with the id of one that is in use here is for other names."""
    if shares_name(summary, record):
        return
    await agent.installer.update([attrs.evolve(record, standing=Standing.FOREIGN)])
    report_standings(agent)
    raise MaterialError(
        f"the plane's certificate {record.cert_id} is for {summary.domain_name}, that of this host for {_name(record)}",
        reason="other-certificate",
        fix=f"to remove this host's: cert-ctrl forget --domain {_name(record)}",
    )


async def known_again(agent: Agent, cert_id: int) -> None:
    """Record that the plane offers a certificate: nothing is unassigned or foreign."""
    record = agent.installer.records.get(cert_id)
    if record is not None and (record.standing is not Standing.KNOWN or record.unassigned_at):
        await agent.installer.update([attrs.evolve(record, standing=Standing.KNOWN, unassigned_at=0.0)])
        report_standings(agent)


def no_order(agent: Agent, record: CertRecord, signal: Signal, known: KnownPlane) -> str:
    """Return why a signal must not remove a certificate of this host; empty: it may."""
    if record.standing is Standing.FOREIGN:
        return "this host has it from another control plane or device"
    if why := too_early(agent, signal, known):
        return why
    if signal.ts_ms / 1000 < record.facts.not_before:
        return "the certificate of this host was issued later"
    return ""


def too_early(agent: Agent, signal: Signal, known: KnownPlane) -> str:
    """Return that a signal is older than the stream that this host follows, as a sentence; empty: it is not."""
    if signal.ts_ms / 1000 < known.since <= agent.plane.server_now():  # otherwise the clock was ahead
        return "it comes from before this host followed these signals"
    return ""


def order_stands(record: CertRecord, known: KnownPlane) -> bool:
    """Return whether a confirmed unassignment, whose signal another one superseded, is still to be carried out."""
    return _is_ordered(record) and record.unassigned_at >= known.since


def _is_ordered(record: CertRecord) -> bool:
    """Return whether an unassignment of a certificate in use was confirmed, and it is not kept by the policy."""
    return record.standing is Standing.UNASSIGNED and record.unassigned_at > 0 and in_use(record)


async def let_grace_pass(agent: Agent, record: CertRecord) -> None:
    """Note a confirmed unassignment. Raises GraceError until its grace time is over, and if too many came."""
    now = agent.wall_now()
    fresh = record.standing is not Standing.UNASSIGNED or not 0 < record.unassigned_at <= now  # the clock was ahead
    if fresh:
        record = attrs.evolve(record, standing=Standing.UNASSIGNED, unassigned_at=now)
        await agent.installer.update([record])
        agent.unassigned_since[record.cert_id] = agent.installer.retries.steady_now()
    if mass := _mass(agent):
        if problem_key(MASS) not in agent.problems:
            await raise_alert(agent, MASS, *_too_many(mass))
        raise GraceError("more than half of all certificates were unassigned; kept", seconds=ASK_AGAIN_SECONDS)
    waited = now - record.unassigned_at
    if (since := agent.unassigned_since.get(record.cert_id)) is not None:
        waited = min(waited, agent.installer.retries.steady_now() - since)  # the wall clock may have been set ahead
    left = agent.policy.unassign_grace - waited
    if left <= 0:
        agent.unassigned_since.pop(record.cert_id, None)
        return
    if fresh:
        log_line(agent.log, Line.CERT_UNASSIGNING, cert_id=record.cert_id, name=record.name, delay=round(left))
        await raise_alert(agent, UNASSIGNED, *_leaving(record), cert_id=record.cert_id)
    raise GraceError(f"unassigned; taken out of use in {left:.0f} s", seconds=left)


def _is_leaving(agent: Agent, record: CertRecord) -> bool:
    """Return whether a certificate is in use, and its unassignment is still to be carried out."""
    if record.standing is not Standing.UNASSIGNED or not in_use(record):
        return False
    resource = cert_resource(record.cert_id)
    arrived = any(entry.signal.resource == resource for entry in agent.inbox.entries())
    return arrived or agent.installer.retries.carries(resource)


def _mass(agent: Agent) -> list[CertRecord]:
    """Return the certificates unassigned within a day, if they are more than a few and more than half of all.

    Those that are still to be taken out of use count regardless of their age: only an operator can decide.
    """
    records, now = agent.installer.records.values(), agent.wall_now()
    recent = [
        one
        for one in records
        if one.standing is Standing.UNASSIGNED and (0 <= now - one.unassigned_at < DAY or _is_leaving(agent, one))
    ]
    everything = {one.cert_id for one in (*recent, *filter(in_use, records))}
    return recent if len(recent) > FEW and 2 * len(recent) > len(everything) else []


def report_standings(agent: Agent) -> None:
    """Report certificates that need an operator's decision, or will soon be removed, as problems in `status`."""
    records = sorted(agent.installer.records.values(), key=lambda record: record.cert_id)
    leaving = [one for one in records if _is_leaving(agent, one)]
    ids = {one.cert_id for one in leaving}
    lost = [one for one in records if _is_ordered(one) and one.cert_id not in ids]
    kept = [one for one in records if in_use(one) and one.standing in (Standing.UNLISTED, Standing.FOREIGN)]
    unknown = sorted((*kept, *lost), key=lambda record: record.cert_id)
    found = {problem_key(UNKNOWN): _unknown(unknown)} if unknown else {}
    found |= {problem_key(UNASSIGNED, one.cert_id): _leaving(one) for one in leaving}
    if leaving and (mass := _mass(agent)):
        found[problem_key(MASS)] = _too_many(mass)
    mine = tuple(problem_key(kind) for kind in (UNKNOWN, UNASSIGNED, MASS))
    for key in [key for key in agent.problems if key.startswith(mine) and key not in found]:
        agent.clear_problem(key)
    for key, problem in found.items():
        agent.report_problem(key, *problem)


async def note_standings(agent: Agent, standings: Mapping[int, Standing]) -> None:
    """Record what a comparison found, report it, and alert if the plane knows fewer certificates than before."""
    records = agent.installer.records
    changed = [
        attrs.evolve(records[cert_id], standing=standing, unassigned_at=0.0)
        for cert_id, standing in standings.items()
        if records[cert_id].standing is not standing
    ]
    if changed:
        await agent.installer.update(changed)
    report_standings(agent)
    unknown = agent.problems.get(problem_key(UNKNOWN))
    fewer = agent.plane_changed or any(one.standing is not Standing.KNOWN for one in changed)
    agent.plane_changed = False
    if unknown is not None and fewer:
        await raise_alert(agent, UNKNOWN, unknown.what, unknown.fix)


def _unknown(records: Sequence[CertRecord]) -> tuple[str, str]:
    what = f"the control plane does not know {_named(records)} of this host; kept in use"
    return what, f"assign them there; to remove one here: cert-ctrl forget --domain {_name(records[0])}"


def _leaving(record: CertRecord) -> tuple[str, str]:
    what = f"{record.facts} was unassigned and will be taken out of use"
    return what, f"assign it again to keep it; to remove it now: cert-ctrl forget --domain {_name(record)}"


def _too_many(records: Sequence[CertRecord]) -> tuple[str, str]:
    what = f"the control plane unassigned {_named(records)}, more than half of this host's, within a day; kept in use"
    return what, f"assign them again; to remove one here: cert-ctrl forget --domain {_name(records[0])}"


def _named(records: Sequence[CertRecord]) -> str:
    names = ", ".join(_name(record) for record in records[:MAX_NAMED])
    more = f" and {len(records) - MAX_NAMED} more" if len(records) > MAX_NAMED else ""
    return f"{names}{more}"


def _name(record: CertRecord) -> str:
    return record.facts.domains[0] if record.facts.domains else record.name
