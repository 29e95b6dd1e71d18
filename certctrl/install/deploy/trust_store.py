"""Import CAs into the system trust store and remove them (Debian and Red Hat: a directory and a command).

A file is removed only if its name and hash show that the agent wrote it. If the store's command fails, the previous file is
restored and the command runs again, so that file and store agree.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import attrs
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from certctrl.errors import CertctrlError, MaterialError
from certctrl.install.deploy.context import Context
from certctrl.install.deploy.observe import destination_of, system_trust_store
from certctrl.install.deploy.record_store import audit_entry
from certctrl.install.material.private_key import MIN_RSA_BITS, UNREADABLE, check_curve
from certctrl.install.plan.policy import explain
from certctrl.install.plan.refusals import no_trust_store
from certctrl.model.paths import path_fault
from certctrl.model.plan import InstallItem, ObjectType, Outcome, OutcomeKind, cause_of, named_cause
from certctrl.model.policy import TrustStore
from certctrl.model.records import CaRecord
from certctrl.store.deployments.file_set import FileSet, FileWrite, remove_unchanged
from certctrl.store.layout import CA_FILE_PREFIX, safe_name
from certctrl.text import one_line

COMMAND_SECONDS = 120.0


def checked_ca(pem: str, now: float, *, brainpool: bool = False) -> tuple[str, str, float]:
    """Return (re-encoded PEM, fingerprint, not_after) of one CA certificate. Raises MaterialError."""
    try:
        (found,) = x509.load_pem_x509_certificates(pem.encode())
        is_ca = found.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        ends = found.not_valid_after_utc.timestamp()
        key = found.public_key()
    except (*UNREADABLE, x509.ExtensionNotFound, x509.DuplicateExtension):
        raise MaterialError("this is not a single CA certificate in PEM", reason="ca-unreadable") from None
    weak = isinstance(key, rsa.RSAPublicKey) and key.key_size < MIN_RSA_BITS
    try:
        if isinstance(key, ec.EllipticCurvePublicKey):
            check_curve(key.curve, brainpool=brainpool)
        if weak or not is_ca:
            raise MaterialError("its key is too weak" if weak else "it is not a CA certificate", reason="ca-unfit")
    except MaterialError as error:
        what = f"this certificate is not fit for a trust store: {error}"
        raise MaterialError(what, reason="ca-unfit", fix=error.fix) from None
    if ends <= now:
        raise MaterialError("this CA certificate has expired", reason="expired", fix="assign a newer one in the plane")
    return found.public_bytes(Encoding.PEM).decode(), found.fingerprint(hashes.SHA256()).hex(), ends


async def import_ca(context: Context, ca_id: int, name: str, pem: str, items: Sequence[InstallItem]) -> Outcome:
    """Import a CA into the trust store, and keep it for copy items; if its bytes are unchanged, no command runs."""
    now = context.wall_now()
    try:
        clean, fingerprint, ends = checked_ca(pem, now, brainpool=context.policy().brainpool)
    except MaterialError as error:
        return Outcome(kind=OutcomeKind.FAILED, detail=str(error), cause=cause_of(error, "trust"))
    store, before = context.policy().trust_store, context.records.cas.get(str(ca_id))
    record = CaRecord(
        ca_id=ca_id,
        name=name,
        path="",
        sha256=hashlib.sha256(clean.encode()).hexdigest(),
        fingerprint_sha256=fingerprint,
        not_after=ends,
        pem=clean,
    )
    if store.directory is None:
        return await _keep(context, record, items)
    path = before.path if before is not None and before.path else str(_path(store.directory, ca_id, name))
    there = await context.offload(destination_of, context, path, (store.directory,))
    if there.refusal or path_fault(path):
        what = f"will not write {one_line(path)}: {there.refusal}"
        return Outcome(kind=OutcomeKind.FAILED, detail=what, cause=named_cause("trust", "policy"))
    if before is not None and before.sha256 == record.sha256 == there.sha256 and before.path:
        return Outcome(kind=OutcomeKind.UNCHANGED)
    return await _import(context, store, before, attrs.evolve(record, path=path))


async def _keep(context: Context, record: CaRecord, items: Sequence[InstallItem]) -> Outcome:
    """Keep a CA for copy items only, on a host whose policy names no trust store."""
    context.records.note_ca(record, record.ca_id)
    await context.records.save()
    if any(item.enabled and item.ob_type is ObjectType.CA and item.ob_id == record.ca_id for item in items):
        return Outcome(
            kind=OutcomeKind.APPLIED, detail="kept for the items that copy it; policy.json names no trust store"
        )
    what = explain(no_trust_store(system_trust_store()))
    return Outcome(kind=OutcomeKind.FAILED, detail=what, cause=named_cause("trust", "no-trust-store"))


async def _import(context: Context, store: TrustStore, before: CaRecord | None, record: CaRecord) -> Outcome:
    """Write a CA's file, run the store's command, and record both."""
    write = FileWrite(path=Path(record.path), data=record.pem.encode(), mode=0o644, uid=None, gid=None)
    try:
        await _put(context, store, write)
    except CertctrlError as error:
        _audit(context, OutcomeKind.FAILED, before, record, str(error))
        await context.records.save()
        return Outcome(kind=OutcomeKind.FAILED, detail=str(error), cause=cause_of(error, "trust"))
    context.records.note_ca(record, record.ca_id)
    _audit(context, OutcomeKind.APPLIED, before, record)
    await context.records.save()
    return Outcome(kind=OutcomeKind.APPLIED)


def _audit(
    context: Context, kind: OutcomeKind, before: CaRecord | None, after: CaRecord | None, detail: str = ""
) -> None:
    """Add a change of the trust store to the audit log; ``after``: None for a removal."""
    about = after or before
    assert about is not None
    entry = audit_entry(
        about,
        at=context.wall_now(),
        outcome=kind.value,
        before=before.sha256[:32] if before is not None and before.path else "",
        after=after.sha256[:32] if after is not None else "",
        detail=detail,
    )
    context.records.audit(entry)


def _path(directory: str, ca_id: int, name: str) -> Path:
    # Debian's update-ca-certificates reads *.crt only; Red Hat's reads any name
    return Path(directory) / f"{CA_FILE_PREFIX}{safe_name(name)[:80]}-{ca_id}.crt"


async def _put(context: Context, store: TrustStore, write: FileWrite) -> None:
    copies = FileSet(context.layout, context.fs, left=context.left)
    await context.offload(_begin, copies, write)
    try:
        await _update(context, store)
    except BaseException:
        await context.offload(copies.undo)
        await context.offload(copies.close)
        await _update_again(context, store)
        raise
    await context.offload(copies.close)


def _begin(copies: FileSet, write: FileWrite) -> None:
    copies.begin([write])
    copies.commit()


async def remove_ca(context: Context, ca_id: int) -> Outcome:
    """Remove a CA from the trust store if its file is unchanged."""
    record = context.records.cas.get(str(ca_id))
    if record is None:
        return Outcome(kind=OutcomeKind.UNCHANGED, detail="not known on this host")
    why = ""
    if record.path:
        try:
            why = await context.offload(remove_unchanged, context.fs, record.path, record.sha256)
            if not why:  # even if it was already gone: the store may still contain it
                await _update(context, context.policy().trust_store)
        except CertctrlError as error:
            return Outcome(kind=OutcomeKind.FAILED, detail=str(error), cause=cause_of(error, "trust"))
    context.records.note_ca(None, ca_id)
    detail = f"{one_line(record.path)} stays: {why}" if why else ""
    if record.path:
        _audit(context, OutcomeKind.APPLIED, record, None, detail)
    await context.records.save()
    return Outcome(kind=OutcomeKind.APPLIED, detail=detail)


async def _update(context: Context, store: TrustStore) -> None:
    """Run the store's command, which policy.json names. Raises CommandError."""
    if store.command:
        result = await context.proc.run(store.command, timeout=COMMAND_SECONDS)
        result.check("the command of the trust store")


async def _update_again(context: Context, store: TrustStore) -> None:
    try:
        await _update(context, store)
    except CertctrlError as error:
        context.log.warning("The command of the trust store failed again after the rollback: %s", error)
