"""Compare the whole host with the plane; differences become signals in the inbox.

It catches what signals missed: at start, after a 409 or ``state.resync_required``, and every few hours. It changes
nothing itself, so that a resync during a burst coalesces with the burst and every repair takes the same path.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime

import attrs
import trio

from certctrl import lean
from certctrl.agent.alerts import problem_key, restore_revocations
from certctrl.agent.announced import is_serial
from certctrl.agent.atomic_batches import batch_of
from certctrl.agent.certificate_list import list_certificates
from certctrl.agent.context import Agent
from certctrl.agent.host_keys import csr_signals, forget_unwanted_keys
from certctrl.agent.install_config import note_idle_items, refresh_install_config
from certctrl.agent.log_lines import Line, log_line
from certctrl.agent.lost import check_disk
from certctrl.agent.standing import UNKNOWN, note_standings, recognise_plane, shares_name, stream_lost
from certctrl.backoff import grown, jittered
from certctrl.errors import (
    CertctrlError,
    DiskError,
    NotRegisteredError,
    PlaneError,
    PlanError,
    TransportError,
    VersionRollbackError,
)
from certctrl.install.installer import in_use
from certctrl.model.certificate import CertificateSummary
from certctrl.model.records import CertRecord, Stage, Standing
from certctrl.model.signals import (
    MAX_IN_BATCH,
    AtomicBatch,
    CaAssigned,
    CertRenewed,
    CertRevoked,
    InstallUpdated,
    Signal,
)

FIRST_RETRY = 60.0
LAST_RETRY = 900.0
MAX_DIFFERENCES = 1000
"""Most differences that one comparison admits; the next comparison follows once these were tried."""
BEHIND = "server-behind"
UNKNOWN_CAS = "unknown-cas"
DISAGREEMENTS = frozenset({BEHIND, UNKNOWN_CAS, problem_key(UNKNOWN)})
"""Problems that lagging answers of a plane may cause; after them, the next comparison comes sooner."""


@lean.frozen(kw_only=True)
class Differences:
    """The result of a comparison."""

    signals: tuple[Signal, ...]
    behind: tuple[str, ...]
    """What is older on the plane than on this host; then nothing is rolled back."""
    standings: Mapping[int, Standing]
    """Certificates in use on this host, as the plane lists them, by id. One that is not listed stays."""


def compare(
    listed: Sequence[CertificateSummary], records: Mapping[int, CertRecord], ts_ms: int, *, behind: Sequence[str] = ()
) -> Differences:
    """Compare the plane's list with this host's records; ``behind``: other evidence that the plane is behind."""
    signals: list[Signal] = []
    older, standings = list(behind), dict[int, Standing]()
    for summary in listed:
        record = records.get(summary.id)
        here = record is not None and bool(record.generation)
        foreign = record is not None and record.standing is Standing.FOREIGN
        if record is not None and in_use(record):
            if not shares_name(summary, record):
                standings[summary.id] = Standing.FOREIGN
                continue
            if not foreign or _same(summary, record):  # otherwise once the plane's own one is staged
                standings[summary.id] = Standing.KNOWN
        if summary.status == "revoked":
            if here:
                signals.append(CertRevoked(ts_ms=ts_ms, cert_id=summary.id))
        elif summary.status in ("", "active", "issued", "valid"):
            if record is not None and here and not foreign and _older(summary, record):
                older.append(f"certificate {summary.id} ({record.name}) is older there than here")
            elif record is None or not here or record.stage is not Stage.ACTIVATED or not _same(summary, record):
                signals.append(CertRenewed(ts_ms=ts_ms, cert_id=summary.id, serial=summary.serial_number or None))
    if not older:
        known = {summary.id for summary in listed}
        for cert_id, record in records.items():
            if record.generation and cert_id not in known and record.standing is Standing.KNOWN:
                standings[cert_id] = Standing.UNLISTED
    return Differences(signals=_with_batches(signals, listed), behind=tuple(older), standings=standings)


def _with_batches(signals: Sequence[Signal], listed: Sequence[CertificateSummary]) -> tuple[Signal, ...]:
    """Add the listed atomic batches to the signals, with the size of their differing part: the rest is in use."""
    batches = {summary.id: summary.batch.id for summary in listed if summary.batch is not None}
    renewed = [one.cert_id for one in signals if isinstance(one, CertRenewed)]
    sizes = Counter(batches[cert_id] for cert_id in renewed if cert_id in batches)

    def with_batch(signal: Signal) -> Signal:
        size = sizes[batches.get(signal.cert_id, "")] if isinstance(signal, CertRenewed) else 0
        if not isinstance(signal, CertRenewed) or not 2 <= size <= MAX_IN_BATCH:
            return signal
        batch = batches[signal.cert_id]
        return attrs.evolve(signal, batch=AtomicBatch(id=batch, size=size))

    return tuple(map(with_batch, signals))


async def renewal_in_batch(agent: Agent, signal: CertRenewed) -> CertRenewed | None:
    """Return a signal's renewal as the plane's list has it; admit the others of its atomic batch with it, if it has one.

    The plane's list decides how many they are: the rest is in use. None: the list does not show this renewal yet.
    """
    listed = await list_certificates(agent)
    later = signal.ts_ms + 1  # than what it replaces, which counts as done, and earlier than what the plane sends next
    found = compare(listed, agent.installer.records, later).signals
    renewals = {one.cert_id: one for one in found if isinstance(one, CertRenewed)}
    mine = renewals.get(signal.cert_id)
    if mine is not None and mine.batch is not None:
        agent.admit([one for one in renewals.values() if one.batch == mine.batch])
        await agent.inbox.secure()
    return mine


def compare_cas(listed: Mapping[int, str] | None, here: Collection[int], ts_ms: int) -> tuple[Signal, ...]:
    """Compare the CAs that the plane lists (None: it has no such list) with those of this host.

    One that is missing there is not removed: a trust store is not emptied because a plane has forgotten.
    """
    missing = sorted((listed or {}).keys() - set(here))
    return tuple(CaAssigned(ts_ms=ts_ms, ca_id=ca_id, ca_name=(listed or {})[ca_id] or None) for ca_id in missing)


def _report_unknown_cas(agent: Agent, listed: Mapping[int, str] | None) -> None:
    unknown = sorted(agent.installer.cas - listed.keys()) if listed is not None else []
    if not unknown:
        agent.clear_problem(UNKNOWN_CAS)
        return
    what = f"the control plane does not list CA {', '.join(map(str, unknown))} of this host; still trusted"
    fix = f"assign it there; to remove it from this host: cert-ctrl forget --ca {unknown[0]}"
    agent.report_problem(UNKNOWN_CAS, what, fix)


def _same(summary: CertificateSummary, record: CertRecord) -> bool:
    if summary.fingerprint_sha256:
        return _hex(summary.fingerprint_sha256) == _hex(record.facts.fingerprint_sha256)
    return is_serial(summary.serial_number, record.facts.serial)


def _hex(text: str) -> str:
    return text.replace(":", "").lower().lstrip("0")


def _older(summary: CertificateSummary, record: CertRecord) -> bool:
    if _same(summary, record):
        return False
    try:
        return datetime.fromisoformat(summary.not_before).timestamp() < record.facts.not_before
    except ValueError:
        return False


async def plan_resync(agent: Agent, why: str, *, new_stream: bool = False) -> int:
    """Compare with the plane, admit the differences as signals, and return how many there are.

    ``new_stream``: the plane does not know the cursor; if it knows no certificate of this host either, it was emptied.
    Raises PlaneError, TransportError, DiskError. Certificates are compared even if the install config is refused.
    """
    log_line(agent.log, Line.RESYNC_STARTED, why=why)
    await check_disk(agent)
    await recognise_plane(agent)
    changed, behind = await _refreshed_items(agent)
    ts_ms = agent.plane.own_signal_ms()
    here = {cert_id for cert_id, record in agent.installer.records.items() if record.generation}
    staged_keys = agent.store.staged_keys.all()
    listed = await list_certificates(agent)
    restore_revocations(agent, listed)
    await forget_unwanted_keys(agent, staged_keys, {one.id: one for one in listed})
    cas = await agent.authorized(agent.plane.fetch_cas)
    found = compare(listed, agent.installer.records, ts_ms, behind=behind)
    if new_stream and Standing.KNOWN not in found.standings.values():
        await stream_lost(agent)
    # not of certificates that were deployed while the list was fetched
    await note_standings(agent, {i: one for i, one in found.standings.items() if i in here})
    _report_behind(agent, found.behind)
    _report_unknown_cas(agent, cas)
    signals = [*found.signals, *csr_signals(listed, ts_ms), *compare_cas(cas, agent.installer.cas, ts_ms)]
    if changed or await agent.installer.unfinished(agent.items):
        stored = agent.store.installed.load_install_config()
        config_id = int(stored.raw.get("id") or 0) if stored else None
        signals.append(InstallUpdated(ts_ms, config_id, stored.version if stored else None))
    await note_idle_items(agent)
    await _admit(agent, _portion(agent, signals))
    log_line(agent.log, Line.RESYNC_DONE, certificates=len(listed), changed=len(signals))
    agent.counters.reconciles["ok"] += 1
    return len(signals)


def _portion(agent: Agent, signals: Sequence[Signal]) -> Sequence[Signal]:
    """Return the differences to admit now; request another comparison if these are not all."""
    if len(signals) <= MAX_DIFFERENCES:
        return signals
    known = {(one.signal.resource, one.signal.type) for one in agent.inbox.entries()} | _retried(agent)
    left = [one for one in signals if (one.resource, one.type) not in known]
    if len(left) <= MAX_DIFFERENCES:
        return left
    agent.reconcile_requested.value = True
    cut = {batch_of(one) for one in left[:MAX_DIFFERENCES]} & {batch_of(one) for one in left[MAX_DIFFERENCES:]} - {""}
    return [one for one in left[:MAX_DIFFERENCES] if batch_of(one) not in cut]  # an atomic batch comes whole


def _retried(agent: Agent) -> set[tuple[str, str]]:
    return {(one.resource, one.signal.type) for one in agent.installer.retries.signals() if one.signal}


async def _admit(agent: Agent, signals: Sequence[Signal]) -> None:
    """Admit the differences, durably. Raises DiskError.

    As long as the disk refuses even earlier signals, this comparison fails and is repeated: what is retried already
    keeps its growing pauses, because a new signal would start again with the shortest one each time.
    """
    try:
        await agent.inbox.secure()
    except DiskError:
        retried = _retried(agent)
        agent.admit([one for one in signals if (one.resource, one.type) not in retried])
        raise
    agent.admit(signals)
    await agent.inbox.secure()


async def _refreshed_items(agent: Agent) -> tuple[bool, list[str]]:
    """Fetch the install config; return whether it changed, and what shows that the plane is behind."""
    try:
        return await refresh_install_config(agent), []
    except VersionRollbackError as error:
        return False, [f"install config: {error}"]
    except PlanError:
        return False, []  # reported; certificates are compared with the active one


def _report_behind(agent: Agent, behind: Sequence[str]) -> None:
    for what in behind:
        log_line(agent.log, Line.SERVER_BEHIND, what=what)
    if behind:
        agent.report_problem(BEHIND, "; ".join(behind), "issue newer versions at the plane")
    else:
        agent.clear_problem(BEHIND)


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
    why, failures, disagreed = "start", 0, 0
    while True:
        if len(entries := agent.inbox.entries()) >= MAX_DIFFERENCES:
            await agent.inbox.wait_for_outcomes(entries)
        try:
            await plan_resync(agent, why)
            failures, why = 0, "periodic"
            interval = float(agent.config.application.reconcile_interval_seconds)
            disagreed = disagreed + 1 if DISAGREEMENTS & agent.problems.keys() else 0
            if disagreed:  # perhaps only a replica that lags
                interval = grown(FIRST_RETRY, interval, disagreed)
            delay = interval * (0.9 + 0.2 * agent.random())
        except NotRegisteredError:
            return  # the poller gets the same error and ends the session
        except CertctrlError as error:
            agent.counters.reconciles["failed"] += 1
            failures += 1
            delay = jittered(grown(FIRST_RETRY, LAST_RETRY, failures), agent.random())
            log_line(agent.log, Line.RESYNC_FAILED, why=error, delay=round(delay))
        with trio.move_on_after(delay):
            await agent.reconcile_requested.wait_value(True)
            why = "requested"
        agent.reconcile_requested.value = False
