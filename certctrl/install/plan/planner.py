"""Plan: from items, certificates, facts on disk and the host's policy to ordered work. Pure.

The runner performs what is planned here and nothing else; `cert-ctrl plan` prints the same plan. Going back after a
failure is the plan for the state before. What the policy does not allow is left out whole: a copy item with one
forbidden target writes none of its targets, and files of one certificate that are only useful together (a key here,
its certificate there) are written together or not at all.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TypeVar

import attrs

from certctrl.install.material.domains import covers, plain_domain
from certctrl.install.material.formats import KEY_FILES
from certctrl.install.plan.dependencies import activation_key, bind, components, depended_on, enabled, levels
from certctrl.install.plan.inputs import Host, Scene
from certctrl.install.plan.pairs import Unit, units_of
from certctrl.install.plan.policy import KEY_MODES, PUBLIC_MODES, Grant, Refusal, judge_exec
from certctrl.install.plan.refusals import argvs_of, blocked_items, collisions, judge_argv, refusal_of
from certctrl.install.plan.values import (
    DesiredCa,
    DesiredCert,
    Fact,
    InstallPlan,
    Level,
    PlanSet,
    Run,
    Verification,
    Write,
)
from certctrl.model.plan import CopyAction, ExecAction, ImportCaAction, InstallItem, VerifyCommand, VerifyTls
from certctrl.model.policy import HostPolicy
from certctrl.model.records import CertRecord

Named = TypeVar("Named", DesiredCert, CertRecord)


def plan_for(
    items: Sequence[InstallItem],
    certs: Mapping[int, DesiredCert],
    facts: Mapping[str, Fact],
    policy: HostPolicy,
    activations: Mapping[str, str],
    *,
    host: Host,
    cas: Mapping[int, DesiredCa] | None = None,
    examine: Collection[int] | None = None,
) -> InstallPlan:
    """Return the plan that brings this host to ``certs`` and ``items``.

    ``facts``: what is at each absolute destination (absent: no file). ``activations``: item id -> key noted at its
    last success. ``examine``: compare files of these certificates only; those of others count as right (a renewal
    of one need not read the files of a thousand). None: compare all.
    """
    wanted = enabled(items)
    bound = bind(wanted, certs, cas or {}, ran=activations.keys())
    by_id = {item.id: item for item in wanted}
    scene = Scene(by_id, certs, cas or {}, facts, policy, activations, host, bound, examine)
    refusals = [refusal for item in wanted if (refusal := refusal_of(scene, item)) is not None]
    refusals += collisions(wanted, {refusal.item for refusal in refusals})
    refused = {refusal.item for refusal in refusals}
    blocked = blocked_items(scene, refused)
    left_out = refused | blocked.keys()
    waiting = {item.id: bound[item.id].waits for item in wanted if bound[item.id].waits and item.id not in left_out}
    doable = [item for item in wanted if item.id not in left_out and item.id not in waiting]
    copies = [item for item in doable if isinstance(item, CopyAction)]
    units = units_of(doable, {item.id: bound[item.id].certs for item in copies})
    scene = attrs.evolve(scene, writes={item.id: _writes(scene, item, units[item.id]) for item in copies})
    sets = [_plan_set(scene, nodes, doable, left_out) for nodes in components(wanted, bound, certs)]
    return InstallPlan(
        sets=tuple(one for one in sets if not one.idle),
        refusals=tuple(refusals),
        waiting=waiting,
        blocked=blocked,
        concerns={item.id: bound[item.id].certs for item in wanted},
        targets=_targets(scene, doable),
    )


def _targets(scene: Scene, doable: Sequence[InstallItem]) -> dict[int, tuple[str, ...]]:
    found: dict[int, tuple[str, ...]] = {}
    for item in doable:
        if isinstance(item, CopyAction):
            for cert in scene.bound[item.id].certs:
                found[cert] = found.get(cert, ()) + item.targets
    return found


def programs(items: Iterable[InstallItem], policy: HostPolicy) -> tuple[str, ...]:
    """Return every executable that the items might run here."""
    argvs = [argv for item in items if item.enabled for argv in argvs_of(item)]
    argvs += [command.argv for command in policy.commands.values()]
    return tuple(dict.fromkeys(argv[0] for argv in argvs if argv and argv[0].startswith("/")))


def cas_wanted(items: Iterable[InstallItem]) -> frozenset[int]:
    """Return the ids of the CAs that enabled items are about."""
    return frozenset(
        item.ob_id
        for item in items
        if item.enabled and item.ob_id is not None and (item.ob_type == "ca" or isinstance(item, ImportCaAction))
    )


# --- what is to be done -------------------------------------------------------------------------------------------


def _writes(scene: Scene, item: CopyAction, unit: Unit) -> tuple[Write, ...]:
    """Return the files of a copy item that are not as they should be."""
    binding = scene.bound[item.id]
    if scene.examine is not None and set(binding.certs).isdisjoint(scene.examine):
        return ()
    cert = scene.certs[binding.certs[0]] if binding.certs else None
    source_files = cert.files if cert is not None else scene.cas[binding.cas[0]].files
    found = []
    for name, path in zip(item.sources, item.targets, strict=True):
        fact = scene.facts.get(path, Fact())
        uid = scene.host.users[item.owner] if item.owner is not None else None
        gid = scene.host.groups[item.group] if item.group is not None else None
        mode = _mode(item, name, fact)
        if why := _difference(fact, source_files.get(name, ""), mode, uid, gid):
            found.append(
                Write(
                    item=item.id,
                    cert_id=cert.cert_id if cert else None,
                    ca_id=None if cert else binding.cas[0],
                    source=name,
                    path=path,
                    mode=mode,
                    why=why,
                    unit=unit.name,
                    tolerant=unit.tolerant,
                    uid=uid if uid is not None or fact.sha256 is None else fact.uid,
                    gid=gid if gid is not None or fact.sha256 is None else fact.gid,
                )
            )
    return tuple(found)


def _mode(item: CopyAction, name: str, fact: Fact) -> int:
    """Return the mode of a target: the item's, else that of the file there unless too open, else the usual one."""
    if item.mode is not None:
        return item.mode
    most, usual = (KEY_MODES, 0o600) if name in KEY_FILES else (PUBLIC_MODES, 0o644)
    return fact.mode if fact.sha256 is not None and not fact.mode & ~most and fact.mode & 0o400 else usual


def _difference(fact: Fact, sha256: str, mode: int, uid: int | None, gid: int | None) -> str:
    if fact.sha256 is None:
        return "new"
    changes = ["other bytes"] if fact.sha256 != sha256 else []
    changes += [f"mode {fact.mode:04o} -> {mode:04o}"] if fact.mode != mode else []
    changes += [f"owner {fact.uid} -> {uid}"] if uid is not None and fact.uid != uid else []
    changes += [f"group {fact.gid} -> {gid}"] if gid is not None and fact.gid != gid else []
    return ", ".join(changes)


def _plan_set(scene: Scene, nodes: set[str], doable: Sequence[InstallItem], left_out: Collection[str]) -> PlanSet:
    mine = [item for item in doable if f"item:{item.id}" in nodes]
    ids = tuple(sorted(int(node[5:]) for node in nodes if node.startswith("cert:")))
    certs = [scene.certs[cert] for cert in ids if cert in scene.certs]
    switches = tuple(cert for cert in certs if cert.generation and cert.generation != cert.live)
    touched = {write.node for item in mine for write in scene.writes.get(item.id, ())}
    runs = {run.items: run for run in _runs(scene, mine, touched)}
    steps = []
    for level in levels(mine):
        writes = tuple(write for group in level for name in group for write in scene.writes.get(name, ()))
        due = tuple(run for run in runs.values() if any(set(run.items) <= set(group) for group in level))
        if writes or due:
            steps.append(Level(writes, due))
    unproven = {cert.node for cert in certs if cert.generation and not cert.proven}
    # what no command may bring into service cannot be seen in service either
    unserved = {
        f"cert:{cert}"
        for name in left_out
        if isinstance(scene.items[name], ExecAction)
        for cert in scene.bound[name].certs
    }
    imports = tuple(
        ca
        for item in mine
        if isinstance(item, ImportCaAction)
        for ca in scene.bound[item.id].cas
        if not scene.cas[ca].imported
    )
    return PlanSet(
        cert_ids=ids,
        switches=switches,
        levels=tuple(steps),
        verifications=_verifications(scene, mine, touched - unserved, unproven - unserved, runs.values()),
        imports=imports,
        items=tuple(item.id for item in mine),
        unserved=_unserved(scene, mine),
    )


def _unserved(scene: Scene, items: Sequence[InstallItem]) -> frozenset[str]:
    """Return the copies whose command has never succeeded: one that depends on them, else one of their certificate."""
    execs = {item.id: set(depended_on(item.id, scene.items)) for item in items if isinstance(item, ExecAction)}
    found = set[str]()
    for item in items:
        if isinstance(item, CopyAction):
            mine = set(scene.bound[item.id].certs)
            users = [name for name, below in execs.items() if item.id in below]
            users = users or [name for name in execs if mine & set(scene.bound[name].certs)]
            if users and not scene.activations.keys() & set(users):
                found.add(item.id)
    return frozenset(found)


def _runs(scene: Scene, items: Sequence[InstallItem], touched: Collection[str]) -> list[Run]:
    """Return the commands that are due, one for all items that ask for the same."""
    due: dict[str, list[tuple[ExecAction, str, bool]]] = {}
    for group in (group for level in levels(items) for group in level):
        for item in (scene.items[name] for name in group):
            if not isinstance(item, ExecAction):
                continue
            binding = scene.bound[item.id]
            key = activation_key(item, binding, scene.certs, scene.cas, scene.items)
            noted = scene.activations.get(item.id)
            if noted != key or not binding.nodes.isdisjoint(touched):
                due.setdefault("\n".join(group), []).append((item, key, noted == key))
    found = []
    for members in due.values():
        item = members[0][0]
        judged = judge_exec(scene.policy, item, scene.host.ground)
        if isinstance(judged, Refusal):
            continue
        certs = tuple(sorted({cert for one, _, _ in members for cert in scene.bound[one.id].certs}))
        nodes = frozenset[str]().union(*(scene.bound[one.id].nodes for one, _, _ in members))
        first = any(one.id not in scene.activations for one, _, _ in members)
        found.append(
            Run(
                items=tuple(one.id for one, _, _ in members),
                grant=judged,
                cert_ids=certs,
                keys={one.id: key for one, key, _ in members},
                tolerant=all(one.continue_on_error for one, _, _ in members),
                why="never run before" if first else "what it serves has changed",
                stale_marker=any(stale for _, _, stale in members),
                for_files=nodes.intersection(touched) if all(stale for _, _, stale in members) else frozenset(),
            )
        )
    return found


def _verifications(
    scene: Scene, items: Sequence[InstallItem], touched: Collection[str], unproven: Collection[str], runs: Iterable[Run]
) -> tuple[Verification, ...]:
    """Return what is to be proven: after a command, for what changed or was never proven, and what is owed still."""
    found, run_of = [], {name: run for run in runs for name in run.items}
    for item in items:
        if isinstance(item, ImportCaAction) or item.verify is None:
            continue
        about = [scene.certs[cert] for cert in scene.bound[item.id].certs if cert in scene.certs]
        run, nodes = run_of.get(item.id), {cert.node for cert in about}
        firm = not nodes.isdisjoint(unproven) or any(item.id in cert.owed for cert in about)
        firm = firm or (run is not None and not run.for_files)
        files = nodes.intersection(touched) | (run.for_files if run is not None else set())
        if not (firm or files):
            continue
        grant = None
        if isinstance(item.verify, VerifyCommand):
            judged = judge_argv(scene.policy, item.id, item.verify.cmd_argv, scene.host.ground)
            grant = judged if isinstance(judged, Grant) else None
        shown_there = tuple(cert for cert in about if cert.generation)
        found.append(
            Verification(
                item=item.id,
                verify=item.verify,
                grant=grant,
                tolerant=item.continue_on_error,
                for_files=frozenset() if firm else frozenset(files),
                cert_ids=tuple(cert.cert_id for cert in about),
                fingerprints=_fingerprints(item.verify, shown_there) if isinstance(item.verify, VerifyTls) else (),
            )
        )
    return tuple(one for one in found if one.grant is not None or one.fingerprints)


def _fingerprints(verify: VerifyTls, certs: Sequence[DesiredCert]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(cert.facts.fingerprint_sha256 for cert in expected_at(verify, certs)))


def expected_at(verify: VerifyTls, certs: Sequence[Named]) -> Sequence[Named]:
    """Return the certificates that are right at an endpoint: those for its name, else all."""
    name = plain_domain(verify.server_name or verify.host)
    return [cert for cert in certs if any(covers(domain, name) for domain in cert.facts.domains)] or certs
