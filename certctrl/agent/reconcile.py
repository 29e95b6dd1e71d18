"""Compare the whole host with the plane; differences become signals in the inbox.

It catches what signals missed: at start, after a 409 or ``state.resync_required``, and every few hours. It changes
nothing itself, so that a resync during a burst coalesces with the burst and every repair takes the same path.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime

import attrs
import trio

from certctrl.agent.alerts import restore_revocations
from certctrl.agent.context import Agent
from certctrl.agent.install_config import refresh_install_config
from certctrl.agent.log_lines import Line, log_line
from certctrl.backoff import grown, jittered
from certctrl.errors import (
    CertctrlError,
    NotRegisteredError,
    PlaneError,
    PlanError,
    TransportError,
    VersionRollbackError,
)
from certctrl.model.certificate import CertificateSummary
from certctrl.model.records import CertRecord, Stage
from certctrl.model.signals import (
    CaAssigned,
    CaUnassigned,
    CertRenewed,
    CertRevoked,
    CertUnassigned,
    InstallUpdated,
    Signal,
)
from certctrl.text import same_serial

FIRST_RETRY = 60.0
LAST_RETRY = 900.0


@attrs.frozen(kw_only=True)
class Differences:
    """The result of a comparison."""

    signals: tuple[Signal, ...]
    behind: tuple[str, ...]
    """What is older on the plane than on this host; then nothing is rolled back or removed."""


def compare(
    listed: Sequence[CertificateSummary], records: Mapping[int, CertRecord], ts_ms: int, *, behind: Sequence[str] = ()
) -> Differences:
    """Compare the plane's list with this host's records; ``behind``: other evidence that the plane is behind."""
    signals: list[Signal] = []
    older = list(behind)
    for summary in listed:
        record = records.get(summary.id)
        here = record is not None and bool(record.generation)
        if summary.status == "revoked":
            if here:
                signals.append(CertRevoked(ts_ms=ts_ms, cert_id=summary.id))
        elif summary.status in ("", "active", "issued", "valid"):
            if record is not None and here and _older(summary, record):
                older.append(f"certificate {summary.id} ({record.name}) is older there than here")
            elif record is None or not here or record.stage is not Stage.ACTIVATED or not _same(summary, record):
                signals.append(CertRenewed(ts_ms=ts_ms, cert_id=summary.id, serial=summary.serial_number or None))
    if not older:
        known = {summary.id for summary in listed}
        signals += [
            CertUnassigned(ts_ms=ts_ms, cert_id=record.cert_id)
            for record in records.values()
            if record.generation and record.cert_id not in known
        ]
    return Differences(signals=tuple(signals), behind=tuple(older))


def compare_cas(listed: Mapping[int, str] | None, here: Collection[int], ts_ms: int) -> tuple[Signal, ...]:
    """Compare the CAs that the plane lists (None: it has no such list) with those of this host."""
    if listed is None:
        return ()
    found: dict[int, Signal] = {ca_id: CaUnassigned(ts_ms=ts_ms, ca_id=ca_id) for ca_id in set(here) - listed.keys()}
    for ca_id in listed.keys() - here:
        found[ca_id] = CaAssigned(ts_ms=ts_ms, ca_id=ca_id, ca_name=listed[ca_id] or None)
    return tuple(found[ca_id] for ca_id in sorted(found))


def _same(summary: CertificateSummary, record: CertRecord) -> bool:
    if summary.fingerprint_sha256:
        return _hex(summary.fingerprint_sha256) == _hex(record.facts.fingerprint_sha256)
    try:
        return same_serial(summary.serial_number, int(_hex(record.facts.serial), 16))
    except ValueError:  # none is known
        return not (summary.serial_number or record.facts.serial)


def _hex(text: str) -> str:
    return text.replace(":", "").lower().lstrip("0")


def _older(summary: CertificateSummary, record: CertRecord) -> bool:
    if _same(summary, record):
        return False
    try:
        return datetime.fromisoformat(summary.not_before).timestamp() < record.facts.not_before
    except ValueError:
        return False


async def plan_resync(agent: Agent, why: str) -> int:
    """Compare with the plane, admit the differences as signals, and return how many there are.

    Raises PlaneError, TransportError, DiskError. Certificates are compared even if the install config is refused.
    """
    log_line(agent.log, Line.RESYNC_STARTED, why=why)
    behind: list[str] = []
    changed = False
    try:
        changed = await refresh_install_config(agent)
    except VersionRollbackError as error:
        behind.append(f"install config: {error}")
    except PlanError:
        pass  # reported; certificates are compared with the active one
    listed = await agent.authorized(agent.plane.fetch_certificates)
    restore_revocations(agent, listed)
    cas = await agent.authorized(agent.plane.fetch_cas)
    ts_ms = int(agent.wall_now() * 1000)
    found = compare(listed, agent.installer.records, ts_ms, behind=behind)
    for what in found.behind:
        log_line(agent.log, Line.SERVER_BEHIND, what=what)
    if found.behind:
        agent.report_problem("server-behind", "; ".join(found.behind), "issue newer versions at the plane")
    else:
        agent.clear_problem("server-behind")
    signals = list(found.signals)
    signals += () if found.behind else compare_cas(cas, agent.installer.cas, ts_ms)
    if changed or await agent.installer.unfinished(agent.items):
        stored = agent.store.installed.load_install_config()
        signals.append(
            InstallUpdated(
                ts_ms=ts_ms,
                config_id=int(stored.raw.get("id") or 0) if stored else None,
                version=stored.version if stored else None,
            )
        )
    agent.admit(signals)
    await agent.inbox.secure()
    log_line(agent.log, Line.RESYNC_DONE, certificates=len(listed), changed=len(signals))
    agent.counters.reconciles["ok"] += 1
    return len(signals)


async def try_resync(agent: Agent, why: str) -> tuple[int, str]:
    """Compare with the plane; return the number of differences, and why the plane is unreachable, if it is.

    Raises PlaneError if the plane answers with a refusal.
    """
    try:
        return await plan_resync(agent, why), ""
    except TransportError as error:
        return 0, str(error)
    except PlaneError as error:
        if error.status < 500:
            raise
        return 0, str(error)


async def reconcile_forever(agent: Agent) -> None:
    """Reconcile at start and then every ``reconcile_interval_seconds``, with jitter, until cancelled."""
    why, failures = "start", 0
    while True:
        try:
            await plan_resync(agent, why)
            failures, why = 0, "periodic"
            delay = agent.config.application.reconcile_interval_seconds * (0.9 + 0.2 * agent.random())
        except NotRegisteredError:
            return  # the poller gets the same error and ends the session
        except CertctrlError as error:
            agent.counters.reconciles["failed"] += 1
            failures += 1
            delay = jittered(grown(FIRST_RETRY, LAST_RETRY, failures), agent.random())
            log_line(agent.log, Line.RESYNC_FAILED, why=error, delay=round(delay))
        with trio.move_on_after(delay):
            await agent.reconcile_requested.wait_value(True)
            why = "the configuration was read again"
        agent.reconcile_requested.value = False
