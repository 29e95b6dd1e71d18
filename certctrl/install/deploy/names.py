"""Assign names: the directory of a certificate, and its public name in ``certs/``.

Several certificates may be for one domain: an RSA and an ECDSA one, or a certificate and its successor. The one with
the lowest id has the plain name (``www``), the others have their id in it (``www+5``); revoked and unassigned ones come
last. So the public names depend only on the certificates of this host, even if it was rebuilt; when the first one is
removed, the next one gets its name. Directories keep the name of their first delivery.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import attrs

from certctrl.install.deploy.context import Context, Locks
from certctrl.install.plan.values import DesiredCert
from certctrl.model.certificate import CertFacts
from certctrl.store.layout import OWN_MARK, safe_name


def name_of_domain(cert_id: int, domain: str) -> str:
    """Return the plain name of a certificate by its primary domain, which may be empty."""
    return safe_name(domain) if domain.strip() else own_name("certificate", cert_id)


def own_name(plain: str, cert_id: int) -> str:
    """Return the public name of a certificate while another one has the plain name."""
    return f"{plain}{OWN_MARK}{cert_id}"


def plain_name(facts: CertFacts) -> str:
    """Return the name of a certificate without its id."""
    plain, mark, number = facts.name.rpartition(OWN_MARK)
    if mark and number == str(facts.cert_id):
        return plain
    old_form = f"-{facts.cert_id}"  # of earlier releases
    if facts.domains and facts.name.endswith(old_form):
        domain = safe_name(facts.domains[0])
        return domain if facts.name == f"{domain}{old_form}" else facts.name
    return facts.name


def public_names(here: Iterable[tuple[CertFacts, bool]]) -> dict[int, str]:
    """Return id -> public name; ``here``: facts and `CertRecord.outgoing` of each certificate of this host."""
    bearers: dict[str, list[tuple[bool, int]]] = {}
    for facts, outgoing in here:
        bearers.setdefault(plain_name(facts), []).append((outgoing, facts.cert_id))
    found: dict[int, str] = {}
    for plain, those in bearers.items():
        first, *others = sorted(those)
        found[first[1]] = plain
        found |= {cert_id: own_name(plain, cert_id) for _, cert_id in others}
    return found


def shared(context: Context) -> bool:
    """Return whether a directory lacks its certificate's plain name because another directory has it."""
    here = (record for record in context.records.certificates.values() if record.generation)
    return any(record.name != plain_name(record.facts) for record in here)


def publish(
    context: Context, *, switched: Collection[DesiredCert] = (), without: int | None = None, always: bool = False
) -> None:
    """Correct the public names, after a switch or before a removal. Blocks on the disk; raises DiskError.

    ``switched``: certificates that the records do not describe yet. ``without``: one that is removed. ``always``: even
    if no name is known to differ from its directory's.
    """
    here: dict[int, tuple[CertFacts, bool]] = {
        record.cert_id: (record.facts, record.outgoing)
        for record in list(context.records.certificates.values())
        if record.generation and record.cert_id != without
    }
    here |= {cert.cert_id: (cert.facts, cert.outgoing) for cert in switched}
    names = public_names(here.values())
    others = {cert_id: name for cert_id, name in names.items() if name != here[cert_id][0].name}
    if others or context.public or always:
        wanted = {name: here[cert_id][0].name for cert_id, name in names.items()}
        context.generations.public.publish(wanted)
    context.public.clear()
    context.public.update(others)


async def repair_links(context: Context, locks: Locks, *, change: bool = True) -> list[str]:
    """Restore public names that do not lead to their certificates, and return their paths; only that without ``change``.

    Those of certificates on which another call works are left to the next call. Raises DiskError.
    """
    broken: dict[int, list[str]] = await context.offload(_broken_links, context)
    if not change:
        return [path for paths in broken.values() for path in paths]
    mine = {f"cert:{cert_id}": cert_id for cert_id in broken if locks.try_acquire({f"cert:{cert_id}"})}
    try:
        return await context.offload(_restore_links, context, [*mine.values()]) if mine else []
    finally:
        locks.release(mine.keys())


def _broken_links(context: Context) -> dict[int, list[str]]:
    """Return certificate id -> public paths that do not lead to it. Blocks on the disk."""
    here = {one.cert_id: one for one in list(context.records.certificates.values()) if one.generation}
    names = public_names((one.facts, one.outgoing) for one in here.values())
    found = {i: context.generations.public.broken(name, here[i].name) for i, name in names.items()}
    return {cert_id: paths for cert_id, paths in found.items() if paths}


def _restore_links(context: Context, cert_ids: Collection[int]) -> list[str]:
    """Restore the public names of some certificates, which are locked; return their paths. Blocks on the disk."""
    broken = {i: paths for i, paths in _broken_links(context).items() if i in cert_ids}
    records = context.records.certificates
    here = [(one.facts, one.outgoing) for one in list(records.values()) if one.generation]
    wanted = {name: records[i].name for i, name in public_names(here).items() if i in broken}
    context.generations.public.publish(wanted, always=True)
    return [path for paths in broken.values() for path in paths]


async def settle_names(context: Context) -> None:
    """Correct the public names if any differs from its directory's, and save the records. Raises DiskError."""
    if not (context.public or shared(context)):
        return
    await context.offload(publish, context)
    for record in list(context.records.certificates.values()):
        links = context.links_of(record)
        if record.generation and record.targets[: len(links)] not in (links, ()):
            context.records.note(attrs.evolve(record, targets=links + record.targets[len(links) :]))
