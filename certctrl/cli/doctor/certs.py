"""Checks of the certificates: the files on disk belong together and last; each endpoint serves what is on disk."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import trio

from certctrl.cli.doctor.finding import CheckContext, Finding, Level, Report, fail, failed, guarded, ok, warn
from certctrl.cli.facts import gather
from certctrl.cli.output import duration, remaining
from certctrl.errors import CertctrlError, ProbeError
from certctrl.model.plan import CopyAction, ExecAction, VerifyTls
from certctrl.model.records import CertRecord

PROBE_SECONDS = 10.0
REVOKED_FIX = "issue a new one at the plane, or unassign this one there"
TRIES, PAUSE_SECONDS = 6, 0.5
"""How often a certificate is looked at while a daemon may be changing it."""


def certificate_findings(context: CheckContext) -> Iterator[Finding]:
    """Yield what is found about each deployed certificate on disk."""
    try:
        records = deployed(context)
    except CertctrlError:
        return  # said by the check of the state files
    if not records:
        yield ok("certificate", "none deployed yet")
    for record in records:
        yield from guarded("certificate", lambda record=record: _one(context, record))  # type: ignore[misc]


def deployed(context: CheckContext) -> list[CertRecord]:
    """Return the records of the certificates that are live. Raises DiskError."""
    return [record for record in context.store.load_certificates().values() if record.generation]


def _one(context: CheckContext, record: CertRecord) -> Iterator[Finding]:
    """Look at one certificate; what the daemon is changing at this moment is given time to come to rest."""
    found: list[Finding] = []
    for look in range(1, TRIES + 1):
        found = list(guarded("certificate", lambda record=record: _on_disk(context, record)))  # type: ignore[misc]
        if all(finding.level is not Level.FAIL for finding in found) or not gather(context.layout)["running"]:
            break
        if look < TRIES:
            time.sleep(PAUSE_SECONDS)
            record = context.store.load_certificates().get(record.cert_id, record)
    yield from found


def _on_disk(context: CheckContext, record: CertRecord) -> Iterator[Finding]:
    from certctrl.store.deployments.generations import GenerationStore

    store, who = GenerationStore(context.layout, context.fs), f"certificate {record.cert_id} ({record.name})"
    live = store.live_id(record.name)
    if live != record.generation:  # for a moment of every deployment it is so
        what = f"{who}: certs/.live/{record.name} points at {live or 'nothing'}, recorded is {record.generation}"
        yield fail("certificate", what, "cert-ctrl -c DIR apply")
        return
    key, chain = (store.read(record.name, live, name) for name in ("private.key", "fullchain.pem"))
    fault = _pair_fault(key, chain, record)
    if fault:
        yield fail("certificate", f"{who}: {fault}", "cert-ctrl -c DIR apply; if it stays, renew it at the plane")
        return
    if store.manifest(record.name, live)["facts"].get("placeholder"):
        yield fail("certificate", f"{who}: was revoked; a self-signed placeholder stands in for it", REVOKED_FIX)
        return
    if record.revoked:
        yield fail("certificate", f"{who}: was revoked, and is kept in use (on_revoked is keep)", REVOKED_FIX)
        return
    yield _validity(context, record, who)
    if record.last_error:
        yield warn("certificate", f"{who}: last attempt: {record.last_error}", "see cert-ctrl -c DIR history")
    if record.held:
        yield warn(
            "certificate",
            f"{who}: held after a rollback",
            f"cert-ctrl -c DIR rollback --domain {_known_as(record)} --release",
        )


def _pair_fault(key_pem: bytes, chain_pem: bytes, record: CertRecord) -> str:
    """Return what is wrong with key and leaf as they lie on disk; empty: they belong together and to the record."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

    try:
        leaf = x509.load_pem_x509_certificates(chain_pem)[0]
        key = load_pem_private_key(key_pem, None, unsafe_skip_rsa_key_validation=True)
    except (ValueError, TypeError, IndexError):
        return "key or certificate on disk cannot be read"
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if key.public_key().public_bytes(*form) != leaf.public_key().public_bytes(*form):
        return "the private key on disk does not belong to the certificate beside it"
    if leaf.fingerprint(hashes.SHA256()).hex() != record.facts.fingerprint_sha256:
        return "the certificate on disk is not the one that was recorded"
    return ""


def _known_as(record: CertRecord) -> str:
    return record.facts.domains[0] if record.facts.domains else record.name


def _validity(context: CheckContext, record: CertRecord, who: str) -> Finding:
    from certctrl.agent.expiry import warn_below
    from certctrl.model.config import ApplicationConfig

    now = context.now()
    left, settings = record.facts.not_after - now, context.config.application if context.config else ApplicationConfig()
    renew = f"cert-ctrl -c DIR renew --domain {_known_as(record)}"
    if record.facts.not_before > now:
        what = f"{who}: not valid for another {duration(record.facts.not_before - now)}"
        return fail("certificate", what, "wait, or check this host's clock")
    if left <= 0:
        return fail("certificate", f"{who}: {remaining(left)}", renew)
    if left < warn_below(record, settings):
        return warn("certificate", f"{who}: expires in {remaining(left)}", renew)
    return ok("certificate", f"{who}: key and certificate fit, {remaining(left)} left")


async def check_endpoints(context: CheckContext, report: Report) -> None:
    """Report for every endpoint that the plan verifies whether it serves what is on disk; all are asked at once."""
    try:
        wanted = endpoints(context)
    except CertctrlError as error:
        report(failed("endpoint", error))
        return

    async def one(verify: VerifyTls, records: list[CertRecord]) -> None:
        report(await _served(verify, records))

    async with trio.open_nursery() as nursery:
        for verify, records in wanted:
            nursery.start_soon(one, verify, records)


def endpoints(context: CheckContext) -> list[tuple[VerifyTls, list[CertRecord]]]:
    """Return each TLS endpoint of the install items with the deployed certificates it may serve."""
    from certctrl.agent.install_config import items_in_force
    from certctrl.install.plan.dependencies import bind
    from certctrl.install.plan.planner import expected_at
    from certctrl.install.plan.values import DesiredCert

    records = {record.cert_id: record for record in deployed(context)}
    items = items_in_force(context.layout, context.store)
    certs = {
        one.cert_id: DesiredCert(facts=one.facts, generation=one.generation, live=one.generation)
        for one in records.values()
    }
    found: dict[VerifyTls, dict[int, CertRecord]] = {}
    bound = bind(items, certs, {})
    for item in items:
        verify: Any = item.verify if isinstance(item, CopyAction | ExecAction) and item.enabled else None
        if isinstance(verify, VerifyTls):
            here = [records[cert_id] for cert_id in bound[item.id].certs if cert_id in records]
            found.setdefault(verify, {}).update({one.cert_id: one for one in expected_at(verify, here)})
    return [(verify, list(certs.values())) for verify, certs in found.items() if certs]


async def _served(verify: VerifyTls, records: list[CertRecord]) -> Finding:
    from certctrl.install.probe.tls import served_fingerprint

    where = f"{verify.host}:{verify.port}" + (f" ({verify.server_name})" if verify.server_name else "")
    names = ", ".join(record.name for record in records)
    try:
        served = await served_fingerprint(verify, deadline=trio.current_time() + PROBE_SECONDS)
    except ProbeError as error:
        return fail("endpoint", str(error), error.fix or "see the service's log")
    if served in {record.facts.fingerprint_sha256 for record in records}:
        return ok("endpoint", f"{where} serves {names} as it is on disk")
    what = f"{where} serves {served[:16]}…, which is not {names} as it is on disk"
    return fail("endpoint", what, "reload the service (cert-ctrl -c DIR apply); see that it reads the deployed files")
