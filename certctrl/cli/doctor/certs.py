"""Check the certificates on disk (key, chain, validity) and that endpoints serve them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import attrs
import trio

from certctrl.cli.doctor.finding import CheckContext, Finding, Level, Report, fail, failed, guarded, ok, warn
from certctrl.cli.facts import gather
from certctrl.cli.output import duration, remaining
from certctrl.errors import CertctrlError, ProbeError
from certctrl.model.plan import CopyAction, ExecAction, VerifyTls
from certctrl.model.records import CertRecord, Standing
from certctrl.text import one_line

PROBE_SECONDS = 10.0
REVOKED_FIX = "issue a new certificate on the control plane, or unassign this one there"
TRIES, PAUSE_SECONDS = 6, 0.5
"""Attempts to see a consistent certificate while a daemon may be changing it."""


def certificate_findings(context: CheckContext) -> Iterator[Finding]:
    """Yield the findings of each deployed certificate."""
    try:
        records = deployed(context)
    except CertctrlError:
        return  # reported by the check of the state files
    if not records:
        yield ok("certificate", "none deployed yet")
    from certctrl.install.deploy.names import public_names  # here: it needs most of the installer

    names = public_names((one.facts, one.outgoing) for one in records)
    for record in records:
        public = names[record.cert_id]
        yield from guarded("certificate", lambda record=record, public=public: _one(context, record, public))  # type: ignore[misc]


def deployed(context: CheckContext) -> list[CertRecord]:
    """Return the records of the certificates that are live. Raises DiskError."""
    return [record for record in context.store.installed.load_certificates().values() if record.generation]


def _one(context: CheckContext, record: CertRecord, public: str) -> Iterator[Finding]:
    """Check one certificate, which has a ``public`` name; repeat while a running daemon may be changing it."""
    found: list[Finding] = []
    for attempt in range(1, TRIES + 1):
        found = list(guarded("certificate", lambda record=record: _on_disk(context, record, public)))  # type: ignore[misc]
        if all(finding.level is not Level.FAIL for finding in found) or not gather(context.layout)["running"]:
            break
        if attempt < TRIES:
            time.sleep(PAUSE_SECONDS)
            record = context.store.installed.load_certificates().get(record.cert_id, record)
    yield from found


def _on_disk(context: CheckContext, record: CertRecord, public: str) -> Iterator[Finding]:
    from certctrl.store.deployments.generations import GenerationStore

    store, who = GenerationStore(context.layout, context.fs), str(record.facts)
    live = store.live_id(record.name)
    if live != record.generation:  # true for a moment of every deployment
        what = (
            f"{who}: certs/.live/{record.name} points to {live or 'nothing'}, but the record says {record.generation}"
        )
        yield fail("certificate", what, "cert-ctrl -c DIR apply")
        return
    key, chain = (store.read(record.name, live, name) for name in ("private.key", "fullchain.pem"))
    fault = _pair_fault(key, chain, record)
    if fault:
        yield fail(
            "certificate",
            f"{who}: {fault}",
            f"cert-ctrl -c DIR apply; if that does not help: cert-ctrl -c DIR renew --domain {_known_as(record)}",
        )
        return
    if broken := store.public.broken(public, record.name):
        yield fail("certificate", f"{who}: {', '.join(broken)} does not lead to it", "cert-ctrl -c DIR apply")
        return
    if (retired := _retired(record, bool(store.manifest(record.name, live)["facts"].get("placeholder")))) is not None:
        yield retired
        return
    yield _validity(context, *_with_chain_end(record, chain), who)
    if error := _last_error(context, record):
        yield warn("certificate", f"{who}: last attempt: {error}", "cert-ctrl -c DIR history")
    if record.standing in (Standing.UNLISTED, Standing.FOREIGN):
        yield warn("certificate", f"{who}: the control plane does not know it; kept in use", _forget(record))
    if record.held:
        yield warn(
            "certificate",
            f"{who}: held after a rollback, renewals are not deployed",
            f"cert-ctrl -c DIR rollback --domain {_known_as(record)} --release",
        )


def _retired(record: CertRecord, placeholder: bool) -> Finding | None:
    """Return what is wrong with a certificate that should no longer be used; None if it may be."""
    if placeholder:
        why, fix = ("revoked", REVOKED_FIX) if record.revoked else ("unassigned", _forget(record))
        return fail("certificate", f"{record.facts}: {why}, replaced by a self-signed placeholder", fix)
    if record.revoked:
        return fail("certificate", f"{record.facts}: revoked, but still in use (on_revoked is keep)", REVOKED_FIX)
    return None


def _forget(record: CertRecord) -> str:
    return f"assign it there; to remove it here: cert-ctrl -c DIR forget --domain {_known_as(record)}"


def _last_error(context: CheckContext, record: CertRecord) -> str:
    """Return why the last attempt at a certificate failed; empty: it did not."""
    retries, _ = context.store.installed.load_retries()
    found = [retry.last_error for retry in retries if retry.key == f"cert:{record.cert_id}"]
    return found[0] if found and record.failing else ""


def _pair_fault(key_pem: bytes, chain_pem: bytes, record: CertRecord) -> str:
    """Return the mismatch of key, certificate and record on disk; empty if they match."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

    try:
        leaf = x509.load_pem_x509_certificates(chain_pem)[0]
        key = load_pem_private_key(key_pem, None, unsafe_skip_rsa_key_validation=True)
    except (ValueError, TypeError, IndexError, x509.InvalidVersion):
        return "the key or certificate on disk cannot be parsed"
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if key.public_key().public_bytes(*form) != leaf.public_key().public_bytes(*form):
        return "the private key on disk does not match its certificate"
    if leaf.fingerprint(hashes.SHA256()).hex() != record.facts.fingerprint_sha256:
        return "the certificate on disk is not the recorded one"
    return ""


def _with_chain_end(record: CertRecord, chain_pem: bytes) -> tuple[CertRecord, str]:
    """Return the record with the end of its chain on disk, and which issuer ends before the certificate, if one does."""
    from cryptography import x509

    leaf, *above = x509.load_pem_x509_certificates(chain_pem)
    first = min(above, key=lambda one: one.not_valid_after_utc, default=leaf)
    if first.not_valid_after_utc >= leaf.not_valid_after_utc:
        return record, ""
    ends = min(record.facts.not_after, first.not_valid_after_utc.timestamp())
    record = attrs.evolve(record, facts=attrs.evolve(record.facts, not_after=ends))
    return record, f" with its issuer {one_line(first.subject.rfc4514_string(), 80)}"


def _known_as(record: CertRecord) -> str:
    return record.facts.domains[0] if record.facts.domains else record.name


def _validity(context: CheckContext, record: CertRecord, issuer: str, who: str) -> Finding:
    from certctrl.agent.expiry import warn_below
    from certctrl.model.config import ApplicationConfig

    now = context.now()
    left, settings = record.facts.not_after - now, context.config.application if context.config else ApplicationConfig()
    renew = f"cert-ctrl -c DIR renew --domain {_known_as(record)}"
    if record.facts.not_before > now:
        what = f"{who}: becomes valid in {duration(record.facts.not_before - now)}"
        return fail("certificate", what, "wait, or correct this host's clock")
    if left <= 0:
        return fail("certificate", f"{who}: {remaining(left)}{issuer}", renew)
    if left < warn_below(record, settings):
        return warn("certificate", f"{who}: expires in {remaining(left)}{issuer}", renew)
    return ok("certificate", f"{who}: key matches, expires in {remaining(left)}{issuer}")


async def check_endpoints(context: CheckContext, report: Report) -> None:
    """Report for every endpoint of the plan whether it serves the certificate on disk; check them concurrently."""
    try:
        wanted = endpoints(context)
    except CertctrlError as error:
        report(failed("endpoint", error))
        return

    async def one(verify: VerifyTls, records: list[CertRecord], anywhere: bool) -> None:
        report(await _served(context, verify, records, anywhere=anywhere))

    async with trio.open_nursery() as nursery:
        for endpoint in wanted:
            nursery.start_soon(one, *endpoint)


def endpoints(context: CheckContext) -> list[tuple[VerifyTls, list[CertRecord], bool]]:
    """Return each TLS endpoint of the install items, the certificates that it may serve, and if it may be elsewhere."""
    from certctrl.agent.install_config import active_items
    from certctrl.install.plan.dependencies import bind
    from certctrl.install.plan.planner import expected_at
    from certctrl.install.plan.policy import may_probe_anywhere
    from certctrl.install.plan.values import DesiredCert
    from certctrl.store.config.files import load_policy

    policy = load_policy(context.layout)
    records = {record.cert_id: record for record in deployed(context)}
    items = active_items(context.layout, context.store.installed)
    certs = {
        one.cert_id: DesiredCert(facts=one.facts, generation=one.generation, live=one.generation)
        for one in records.values()
    }
    found: dict[VerifyTls, dict[int, CertRecord]] = {}
    anywhere: dict[VerifyTls, bool] = {}
    bound = bind(items, certs, {})
    for item in items:
        verify: Any = item.verify if isinstance(item, CopyAction | ExecAction) and item.enabled else None
        if isinstance(verify, VerifyTls):
            here = [records[cert_id] for cert_id in bound[item.id].certs if cert_id in records]
            found.setdefault(verify, {}).update({one.cert_id: one for one in expected_at(verify, here)})
            anywhere[verify] = anywhere.get(verify, False) or may_probe_anywhere(policy, verify, item.id)
    return [(verify, list(certs.values()), anywhere[verify]) for verify, certs in found.items() if certs]


async def _served(context: CheckContext, verify: VerifyTls, records: list[CertRecord], *, anywhere: bool) -> Finding:
    from certctrl.install.deploy.commands import key_kind
    from certctrl.install.probe.tls import served_fingerprint

    live = context.layout.live
    wanted = {
        one.facts.fingerprint_sha256: key_kind(context.fs, live / one.name / "certificate.pem") for one in records
    }
    where = f"{verify.host}:{verify.port}" + (f" ({verify.server_name})" if verify.server_name else "")
    names = ", ".join(record.name for record in records)
    try:
        deadline = trio.current_time() + PROBE_SECONDS
        served = await served_fingerprint(verify, wanted, deadline=deadline, anywhere=anywhere)
    except ProbeError as error:
        return fail("endpoint", str(error), error.fix or "check the log of the service")
    if served in wanted:
        return ok("endpoint", f"{where} serves the certificate on disk ({names})")
    what = f"{where} serves another certificate ({served[:16]}…) than the one on disk ({names})"
    return fail("endpoint", what, "cert-ctrl -c DIR apply, and check that the service reads the deployed files")
