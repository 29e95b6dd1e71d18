"""Look at what endpoints serve between deployments: a service may return to an old certificate, or fail, by itself.

A look changes nothing and takes no lock. Its result is discarded if the same certificate is deployed meanwhile.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import trio

from certctrl import lean
from certctrl.errors import ProbeFault
from certctrl.install.deploy.commands import wanted_leaves
from certctrl.install.deploy.context import Context, Locks
from certctrl.install.deploy.groups import bound_now
from certctrl.install.plan.dependencies import enabled
from certctrl.install.plan.planner import expected_at
from certctrl.install.plan.policy import may_probe_anywhere
from certctrl.install.plan.values import DesiredCert
from certctrl.install.probe.looked import Leaf
from certctrl.model.plan import CopyAction, ExecAction, InstallItem, VerifyTls
from certctrl.model.records import Standing

AT_ONCE = 4
"""Endpoints that are asked at the same time."""
CONFIRM_SECONDS = 10.0
"""Seconds until an endpoint that was wrong is asked again: a service that restarts is not wrong."""


@lean.frozen(kw_only=True)
class Served:
    """What an endpoint serves in the place of a certificate."""

    endpoint: str
    """In words, as in messages."""
    leaf: Leaf | None = None
    """None: it serves none."""
    fault: ProbeFault | None = None
    """None: it serves the certificate."""


@lean.frozen(kw_only=True)
class Round:
    """The result of a round of looks."""

    served: Mapping[int, Sequence[Served]]
    """By certificate id; empty for one that no endpoint is named for."""
    unsure: frozenset[int]
    """Certificates of which nothing is known, because a deployment was at work."""


@lean.frozen(eq=False)
class _Target:
    verify: VerifyTls
    certs: tuple[DesiredCert, ...]
    anywhere: bool

    @property
    def nodes(self) -> frozenset[str]:
        return frozenset(cert.node for cert in self.certs)


_Found = Mapping[int, Served] | None
"""Certificate id -> what was seen; None: a deployment was at work."""


async def look_round(
    context: Context, locks: Locks, items: Sequence[InstallItem], only: Collection[int] | None = None
) -> Round:
    """Ask the endpoints of all certificates, or of some; what is wrong counts if it still is after a while."""
    targets, live = _targets(context, items)
    if only is not None:
        targets = [one for one in targets if any(cert.facts.cert_id in only for cert in one.certs)]
        live = {i: cert for i, cert in live.items() if i in only}
    found = await _ask_all(context, locks, targets)
    if again := [one for one in targets if _is_doubtful(found[one])]:
        await trio.sleep(CONFIRM_SECONDS)
        found |= await _ask_all(context, locks, again)
    served: dict[int, dict[str, Served]] = {cert_id: {} for cert_id in live}
    unsure = {cert.facts.cert_id for one, answers in found.items() if answers is None for cert in one.certs}
    records = context.records.certificates  # some may have been deployed since they were asked
    unsure |= {i for i, cert in live.items() if i not in records or records[i].generation != cert.generation}
    for cert_id, seen in ((i, seen) for answers in found.values() for i, seen in (answers or {}).items() if i in live):
        before = served[cert_id].get(seen.endpoint)
        if before is None or before.fault is None:  # two items may ask it for different keys: what is wrong counts
            served[cert_id][seen.endpoint] = seen
    known = {i: [*one.values()] for i, one in served.items() if i not in unsure}
    return Round(served=known, unsure=frozenset(unsure & live.keys()))


def _is_doubtful(found: _Found) -> bool:
    return found is None or any(one.fault is not None for one in found.values())


def _targets(context: Context, items: Sequence[InstallItem]) -> tuple[list[_Target], dict[int, DesiredCert]]:
    """Return the endpoints that items name for live certificates of this plane, and these certificates."""
    bound, certs = bound_now(context, items, {})
    records = context.records.certificates
    live = {i: one for i, one in certs.items() if one.generation and records[i].standing is Standing.KNOWN}
    found: dict[tuple[VerifyTls, tuple[int, ...]], _Target] = {}
    for item in enabled(items):
        if not isinstance(item, CopyAction | ExecAction) or not isinstance(item.verify, VerifyTls) or item.refused:
            continue
        about = [live[i] for i in bound[item.id].certs if i in live]
        mine = tuple(expected_at(item.verify, about))
        if mine:
            key = (item.verify, tuple(cert.facts.cert_id for cert in mine))
            anywhere = may_probe_anywhere(context.policy(), item.verify, item.id)
            anywhere = anywhere or (key in found and found[key].anywhere)
            found[key] = _Target(item.verify, mine, anywhere)
    return [*found.values()], live


async def _ask_all(context: Context, locks: Locks, targets: Iterable[_Target]) -> dict[_Target, _Found]:
    found: dict[_Target, _Found] = {}
    due = iter([*targets])

    async def work() -> None:
        for one in due:
            found[one] = await _ask(context, locks, one)

    async with trio.open_nursery() as nursery:
        for _ in range(AT_ONCE):
            nursery.start_soon(work, name="look at endpoints")
    return found


async def _ask(context: Context, locks: Locks, target: _Target) -> _Found:
    ids, records = [cert.facts.cert_id for cert in target.certs], context.records.certificates
    before = [records.get(i) for i in ids]
    if not locks.are_free(target.nodes):
        return None
    fingerprints = [cert.facts.fingerprint_sha256 for cert in target.certs]
    wanted = await context.offload(wanted_leaves, context, fingerprints, target.certs)
    look = await context.probe.look(target.verify, wanted, anywhere=target.anywhere)
    if not locks.are_free(target.nodes) or any(records.get(i) is not one for i, one in zip(ids, before, strict=True)):
        return None
    if look.fault is ProbeFault.NOT_OURS:  # an endpoint that must not be asked says nothing
        return {}
    from certctrl.install.probe.tls import endpoint_text  # here: only hosts that probe need it

    endpoint = endpoint_text(target.verify)
    if look.fault is not None:
        return dict.fromkeys(ids, Served(endpoint=endpoint, leaf=look.wrong, fault=look.fault))
    return {
        cert.facts.cert_id: Served(endpoint=endpoint, leaf=_leaf_of(cert))
        for cert in target.certs
        if cert.facts.fingerprint_sha256 in look.right
    }


def _leaf_of(cert: DesiredCert) -> Leaf:
    facts = cert.facts
    return Leaf(fingerprint=facts.fingerprint_sha256, serial=facts.serial, not_after=facts.not_after)
