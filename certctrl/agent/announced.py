"""Decide whether what a signal announced has arrived.

Signals and resources may come from different replicas or caches of a plane. If an answer does not show yet what a
signal announced, the signal is retried for about an hour; without that, the change would be lost until the next full
comparison. An answer that is newer than the signal ends the wait immediately.
"""

from __future__ import annotations

from datetime import datetime

from certctrl.agent.certificate_list import list_certificates
from certctrl.agent.context import Agent
from certctrl.errors import LaggingError, PlaneError
from certctrl.install.plan.retries import LAGGING_FAILURES
from certctrl.model.certificate import CertFacts, CertificateSummary
from certctrl.model.features import ATOMIC_BATCH
from certctrl.model.records import RetryKind, retry_key
from certctrl.model.signals import CertRenewed, InstallUpdated, Signal, identity
from certctrl.protocol.wire.canonical import standard_base64
from certctrl.store.state.installed import StoredInstallConfig
from certctrl.text import same_serial

GONE = frozenset({404, 410})
"""Statuses that mean the plane has no such resource for this device."""


def wait_is_over(agent: Agent, signal: Signal) -> bool:
    """Return whether the plane has had enough time to show what a signal announced."""
    retry = agent.installer.retries.rows().get(retry_key(signal))
    return (
        retry is not None
        and retry.kind is RetryKind.LAGGING
        and retry.failures >= LAGGING_FAILURES
        and retry.signal is not None
        and identity(retry.signal) == identity(signal)
    )


def require_arrival(agent: Agent, signal: Signal, missing: str) -> None:
    """Raise LaggingError with what is missing, unless the plane has had enough time."""
    if not wait_is_over(agent, signal):
        raise LaggingError(missing)


async def find_certificate(agent: Agent, cert_id: int) -> CertificateSummary | None:
    """Return the plane's detail of a certificate; None if this device does not have it (404, 410)."""
    try:
        return await agent.authorized(lambda token: agent.plane.fetch_certificate(token, cert_id))
    except PlaneError as error:
        if error.status in GONE:
            return None
        raise


async def is_listed(agent: Agent, cert_id: int) -> bool:
    """Return whether the plane's list of this device's certificates has a certificate."""
    return any(one.id == cert_id for one in await list_certificates(agent))


def is_current(summary: CertificateSummary, signal: Signal) -> bool:
    """Return whether an answer includes everything up to a signal: it was updated then or later."""
    try:
        updated = datetime.fromisoformat(summary.updated_at).timestamp()
    except ValueError:  # unknown
        return False
    return updated * 1000 >= signal.ts_ms  # whole seconds do not order events of one second


async def missing_renewal(agent: Agent, signal: CertRenewed, fetched: CertFacts) -> str:
    """Return how a fetched certificate differs from the announced one; empty: it has arrived."""
    if signal.serial is None or is_serial(signal.serial, fetched.serial) or wait_is_over(agent, signal):
        return ""
    if fetched.not_before * 1000 > signal.ts_ms:  # issued since
        return ""
    summary = await find_certificate(agent, signal.cert_id)
    if summary is not None and is_current(summary, signal) and is_serial(summary.serial_number, fetched.serial):
        return ""
    return f"the plane announced serial {signal.serial}, but still offers {fetched.serial}"


async def unannounced_batch(agent: Agent, signal: CertRenewed, fetched: CertFacts) -> bool:
    """Return whether a fetched certificate belongs to an atomic batch that its signal does not name.

    The signals of the batch are on a later page, or the signal names no serial. Switched now, the certificate would go
    without the others.
    """
    announced = signal.serial is not None and is_serial(signal.serial, fetched.serial)
    if announced or ATOMIC_BATCH not in agent.plane.features:
        return False
    record = agent.installer.records.get(signal.cert_id)
    is_here = record is not None and record.facts.fingerprint_sha256 == fetched.fingerprint_sha256
    if is_here or wait_is_over(agent, signal):
        return False
    summary = await find_certificate(agent, signal.cert_id)
    if summary is None or summary.batch is None or not is_serial(summary.serial_number, fetched.serial):
        return False
    return signal.batch is None or signal.batch.id != summary.batch.id


def missing_install_config(signal: InstallUpdated, stored: StoredInstallConfig | None) -> str:
    """Return which announced install config is not the stored one, nor older than it; empty: it has arrived."""
    if not signal.version:
        return ""
    offered = "none" if stored is None else f"version {stored.version}"
    if stored is not None:
        here = stored.raw.get("id") or 0
        config_id = str(here if not here or signal.config_id is None else signal.config_id)
        newest = stored.high_water.get(config_id, 0)
        seen = stored.hash_seen(config_id, signal.version) if newest == signal.version else ""
        if newest > signal.version or (newest == signal.version and _fits(signal.installs_hash_b64, seen)):
            return ""
    return f"the plane announced version {signal.version} of the install config, but still offers {offered}"


def _fits(announced: str | None, seen: str) -> bool:
    if not announced or not seen:
        return True
    one, other = standard_base64(announced), standard_base64(seen)
    return one == other or len(one) != len(other)  # hashes of different forms cannot be compared


def is_serial(reported: str, here: str) -> bool:
    """Return whether the plane reports the serial that this host has recorded for a certificate."""
    try:
        return same_serial(reported, int(here.replace(":", ""), 16))
    except ValueError:  # none is known
        return not (reported or here)
