"""Plan ordered work from items, certificates, the state of destinations and the host's policy. Pure.

The installer carries out this plan and nothing else; `cert-ctrl plan` prints the same plan. A rollback is the plan for
the previous state. Forbidden items are left out as a whole: a copy item with one forbidden target writes none of its
targets, and files of one certificate that only work together (a key here, its certificate there) are written together
or not at all.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TypeVar

import attrs

from certctrl.install.material.domains import is_covered, plain_domain
from certctrl.install.plan.copy_items import FileGroup, file_groups_of
from certctrl.install.plan.dependencies import (
    activation_key,
    bind,
    connected_groups,
    copies_below,
    enabled,
    ordered_steps,
)
from certctrl.install.plan.inputs import Host, PlanInputs
from certctrl.install.plan.policy import Grant, Refusal, judge_exec
from certctrl.install.plan.refusals import argvs_of, blocked_items, collisions, judge_argv, refusal_of
from certctrl.install.plan.values import (
    DesiredCa,
    DesiredCert,
    Destination,
    GroupPlan,
    InstallPlan,
    Run,
    Step,
    Verification,
    Write,
)
from certctrl.model.modes import KEY_MODES, PUBLIC_MODES, has_key
from certctrl.model.plan import (
    CopyAction,
    ExecAction,
    ImportCaAction,
    InstallItem,
    ObjectType,
    VerifyCommand,
    VerifyTls,
    WriteMethod,
)
from certctrl.model.policy import HostPolicy
from certctrl.model.records import CertRecord

Named = TypeVar("Named", DesiredCert, CertRecord)


def plan_for(
    items: Sequence[InstallItem],
    certs: Mapping[int, DesiredCert],
    destinations: Mapping[str, Destination],
    policy: HostPolicy,
    activations: Mapping[str, str],
    *,
    host: Host,
    cas: Mapping[int, DesiredCa] | None = None,
    examine: Collection[int] | None = None,
    together: Mapping[int, str] = MappingProxyType({}),
) -> InstallPlan:
    """Return the plan that brings this host to ``certs`` and ``items``.

    ``destinations``: path -> its state (absent: no file). ``activations``: item id -> key of its last success.
    ``examine``: compare only the files of these certificates, assume that the others are right, and run no command
    that depends on others, so that one renewal need not read the files of a thousand; None: compare all.
    ``together``: as for `connected_groups`.
    """
    wanted = enabled(items)
    bound = bind(wanted, certs, cas or {}, ran=activations.keys())
    by_id = {item.id: item for item in wanted}
    below = copies_below(wanted)
    inputs = PlanInputs(by_id, certs, cas or {}, destinations, policy, activations, host, bound, below, examine)
    refusals = [refusal for item in wanted if (refusal := refusal_of(inputs, item)) is not None]
    refusals += collisions(wanted, {refusal.item for refusal in refusals})
    refused = {refusal.item for refusal in refusals}
    blocked = blocked_items(inputs, refused)
    left_out = refused | blocked.keys()
    waiting = {item.id: bound[item.id].waits for item in wanted if bound[item.id].waits and item.id not in left_out}
    doable = [item for item in wanted if item.id not in left_out and item.id not in waiting]
    copies = [item for item in doable if isinstance(item, CopyAction)]
    file_groups = file_groups_of(doable, {item.id: bound[item.id].certs for item in copies})
    unmade = _unmade(inputs, copies)
    able = [item for item in doable if item.id not in unmade]
    writes = {item.id: _writes(inputs, item, file_groups[item.id]) for item in copies if item.id not in unmade}
    inputs = attrs.evolve(inputs, writes=writes)
    connected = connected_groups(wanted, bound, certs, together)
    groups = [_group_plan(inputs, nodes, able, left_out) for nodes in connected]
    return InstallPlan(
        groups=tuple(one for one in groups if not one.idle),
        refusals=tuple(refusals),
        waiting=waiting,
        blocked=blocked,
        concerns={item.id: bound[item.id].certs for item in wanted},
        targets=_targets(inputs, doable),
    )


def _unmade(inputs: PlanInputs, copies: Sequence[CopyAction]) -> set[str]:
    """Return copies of files that could not be made yet, and items that form a pair with one or depend on one.

    The certificate's record has the reason.
    """
    found = {item.id for item in copies if not _has_sources(inputs, item)}
    return found | blocked_items(inputs, found).keys() if found else found


def _is_left_alone(inputs: PlanInputs, cert_ids: Collection[int]) -> bool:
    """Return whether an item has certificates, none of which is examined."""
    return inputs.examine is not None and bool(cert_ids) and set(cert_ids).isdisjoint(inputs.examine)


def _has_sources(inputs: PlanInputs, item: CopyAction) -> bool:
    binding = inputs.bound[item.id]
    if not binding.certs or _is_left_alone(inputs, binding.certs):
        return True
    return inputs.certs[binding.certs[0]].files.keys() >= {name for name, _ in item.pairs}


def _targets(inputs: PlanInputs, doable: Sequence[InstallItem]) -> dict[int, tuple[str, ...]]:
    found: dict[int, tuple[str, ...]] = {}
    for item in doable:
        if isinstance(item, CopyAction):
            for cert in inputs.bound[item.id].certs:
                found[cert] = found.get(cert, ()) + item.targets
    return found


def programs(items: Iterable[InstallItem], policy: HostPolicy) -> tuple[str, ...]:
    """Return all executables in the items and the policy."""
    return tuple(dict.fromkeys(argv[0] for argv in commands_of(items, policy)))


def commands_of(items: Iterable[InstallItem], policy: HostPolicy) -> tuple[tuple[str, ...], ...]:
    """Return all commands that the items might run, by their words."""
    argvs = [argv for item in items if item.enabled and not item.refused for argv in argvs_of(item)]
    argvs += policy.argvs
    return tuple(dict.fromkeys(argv for argv in argvs if argv and argv[0].startswith("/")))


def cas_wanted(items: Iterable[InstallItem]) -> frozenset[int]:
    """Return the ids of the CAs that enabled items name."""
    return frozenset(
        item.ob_id
        for item in items
        if item.enabled
        and item.ob_id is not None
        and (item.ob_type is ObjectType.CA or isinstance(item, ImportCaAction))
    )


# --- work ---------------------------------------------------------------------------------------------------------


def _writes(inputs: PlanInputs, item: CopyAction, file_group: FileGroup) -> tuple[Write, ...]:
    """Return the files of a copy item that differ from the desired state."""
    binding = inputs.bound[item.id]
    if inputs.examine is not None and set(binding.certs).isdisjoint(inputs.examine):
        return ()
    cert = inputs.certs[binding.certs[0]] if binding.certs else None
    source_files = cert.files if cert is not None else inputs.cas[binding.cas[0]].files
    found = []
    for number, (name, path) in enumerate(item.pairs):
        there = inputs.destinations.get(path, Destination())
        owner, group = item.owner_of(number), item.group_of(number)
        uid = inputs.host.users[owner] if owner is not None else None
        gid = inputs.host.groups[group] if group is not None else None
        mode = _mode(item.mode_of(number), name, there)
        if there.given is not None:
            uid, gid, mode = there.given.uid, there.given.gid, there.given.mode
        if why := _difference(there, source_files[name], mode, uid, gid):
            found.append(
                Write(
                    item=item.id,
                    cert_id=cert.cert_id if cert else None,
                    ca_id=None if cert else binding.cas[0],
                    source=name,
                    path=path,
                    mode=mode,
                    why=why,
                    is_new=there.sha256 is None,
                    file_group=file_group.name,
                    tolerant=file_group.tolerant,
                    in_place=item.write is WriteMethod.IN_PLACE,
                    helper=there.given is not None,
                    uid=uid if uid is not None or there.sha256 is None else there.uid,
                    gid=gid if gid is not None or there.sha256 is None else there.gid,
                )
            )
    return tuple(found)


def _mode(given: int | None, name: str, there: Destination) -> int:
    """Return the mode of a target: the item's, otherwise the current file's unless too open, otherwise a default."""
    if given is not None:
        return given
    most, usual = (KEY_MODES, 0o600) if has_key(name) else (PUBLIC_MODES, 0o644)
    if there.has_acl:  # without the group bits, no entry of the list could read the file
        return there.mode & most | 0o400
    return there.mode if there.sha256 is not None and not there.mode & ~most and there.mode & 0o400 else usual


def _difference(there: Destination, sha256: str, mode: int, uid: int | None, gid: int | None) -> str:
    if there.sha256 is None:
        return "new"
    changes = ["other bytes"] if there.sha256 != sha256 else []
    changes += [f"mode {there.mode:04o} -> {mode:04o}"] if there.mode != mode else []
    changes += [f"owner {there.uid} -> {uid}"] if uid is not None and there.uid != uid else []
    changes += [f"group {there.gid} -> {gid}"] if gid is not None and there.gid != gid else []
    return ", ".join(changes)


def _group_plan(
    inputs: PlanInputs, nodes: set[str], doable: Sequence[InstallItem], left_out: Collection[str]
) -> GroupPlan:
    mine = [item for item in doable if f"item:{item.id}" in nodes]
    ids = tuple(sorted(int(node[5:]) for node in nodes if node.startswith("cert:")))
    certs = [inputs.certs[cert] for cert in ids if cert in inputs.certs]
    switches = tuple(cert for cert in certs if cert.generation and cert.generation != cert.live)
    if not mine:  # as for most certificates of a burst
        return GroupPlan(cert_ids=ids, switches=switches)
    touched = {write.node for item in mine for write in inputs.writes.get(item.id, ())}
    runs = {run.items: run for run in _runs(inputs, mine, touched)}
    run_of = {name: run for run in runs.values() for name in run.items}
    steps = []
    for step in ordered_steps(mine):
        writes = tuple(write for group in step for name in group for write in inputs.writes.get(name, ()))
        due = tuple({run_of[name].items: run_of[name] for group in step for name in group if name in run_of}.values())
        if writes or due:
            steps.append(Step(writes, due))
    unproven = {cert.node for cert in certs if cert.generation and not cert.proven}
    # without an allowed command nothing is in service, so there is nothing to verify
    idle = _without_command(inputs, mine, left_out, nodes)
    served = [item for item in mine if item.id not in idle]
    imports = tuple(
        ca
        for item in mine
        if isinstance(item, ImportCaAction)
        for ca in inputs.bound[item.id].cas
        if not inputs.cas[ca].imported
    )
    return GroupPlan(
        cert_ids=ids,
        switches=switches,
        steps=tuple(steps),
        verifications=_verifications(inputs, served, touched, unproven, runs.values()),
        imports=imports,
        items=tuple(item.id for item in mine),
        unserved=_unserved(inputs, mine),
    )


def _unserved(inputs: PlanInputs, items: Sequence[InstallItem]) -> frozenset[str]:
    """Return copies whose command has never succeeded."""
    users = _commands_of(inputs, items, [item for item in items if isinstance(item, ExecAction)])
    return frozenset(copy for copy, names in users.items() if names and not inputs.activations.keys() & set(names))


def _without_command(
    inputs: PlanInputs, items: Sequence[InstallItem], left_out: Collection[str], nodes: Collection[str]
) -> set[str]:
    """Return copies whose commands are all left out; ``nodes``: the group."""
    if not left_out:
        return set()
    connected = [inputs.items[node[5:]] for node in sorted(nodes) if node.startswith("item:")]
    execs = [item for item in connected if isinstance(item, ExecAction)]
    users = _commands_of(inputs, items, execs)
    return {copy for copy, names in users.items() if names and all(name in left_out for name in names)}


def _commands_of(inputs: PlanInputs, items: Sequence[InstallItem], execs: Sequence[ExecAction]) -> dict[str, list[str]]:
    """Return copy -> the commands that depend on it, otherwise those of its certificate."""
    below = {item.id: set(inputs.copies_below[item.id]) for item in execs}
    found = dict[str, list[str]]()
    for item in items:
        if isinstance(item, CopyAction):
            mine = set(inputs.bound[item.id].certs)
            users = [name for name, copies in below.items() if item.id in copies]
            found[item.id] = users or [name for name in below if mine & set(inputs.bound[name].certs)]
    return found


def _runs(inputs: PlanInputs, items: Sequence[InstallItem], touched: Collection[str]) -> list[Run]:
    """Return the commands that are due, one for all items that request it."""
    due: dict[str, list[tuple[ExecAction, str, bool]]] = {}
    for group in (group for step in ordered_steps(items) for group in step):
        for item in (inputs.items[name] for name in group):
            if not isinstance(item, ExecAction):
                continue
            binding = inputs.bound[item.id]
            copies = [inputs.items[name] for name in inputs.copies_below[item.id]]
            if copies and _is_left_alone(inputs, binding.certs):  # they may not be there yet
                continue
            key = activation_key(item, binding, inputs.certs, inputs.cas, copies)
            noted = inputs.activations.get(item.id)
            if noted != key or not binding.nodes.isdisjoint(touched):
                due.setdefault("\n".join(group), []).append((item, key, noted == key))
    found = []
    for members in due.values():
        item = members[0][0]
        judged = judge_exec(inputs.policy, item, inputs.host.identity)
        if isinstance(judged, Refusal):
            continue
        certs = tuple(sorted({cert for one, _, _ in members for cert in inputs.bound[one.id].certs}))
        nodes = frozenset[str]().union(*(inputs.bound[one.id].nodes for one, _, _ in members))
        first = any(one.id not in inputs.activations for one, _, _ in members)
        found.append(
            Run(
                items=tuple(one.id for one, _, _ in members),
                grant=judged,
                cert_ids=certs,
                keys={one.id: key for one, key, _ in members},
                tolerant=all(one.continue_on_error for one, _, _ in members),
                why="never run before" if first else "its certificates or files have changed",
                stale_marker=any(stale for _, _, stale in members),
                for_files=nodes.intersection(touched) if all(stale for _, _, stale in members) else frozenset(),
            )
        )
    return found


def _verifications(
    inputs: PlanInputs,
    items: Sequence[InstallItem],
    touched: Collection[str],
    unproven: Collection[str],
    runs: Iterable[Run],
) -> tuple[Verification, ...]:
    """Return due verifications: after a command, for changed or unproven certificates, and those still pending."""
    found, run_of = [], {name: run for run in runs for name in run.items}
    for item in items:
        if not isinstance(item, CopyAction | ExecAction) or item.verify is None:
            continue
        about = [inputs.certs[cert] for cert in inputs.bound[item.id].certs if cert in inputs.certs]
        run, nodes = run_of.get(item.id), {cert.node for cert in about}
        unconditional = not nodes.isdisjoint(unproven) or any(item.id in cert.pending for cert in about)
        unconditional = unconditional or (run is not None and not run.for_files)
        files = nodes.intersection(touched) | (run.for_files if run is not None else set())
        if not (unconditional or files):
            continue
        grant = None
        if isinstance(item.verify, VerifyCommand):
            judged = judge_argv(inputs.policy, item.id, item.verify.cmd_argv, inputs.host.identity)
            grant = judged if isinstance(judged, Grant) else None
        present = tuple(cert for cert in about if cert.generation)
        found.append(
            Verification(
                item=item.id,
                verify=item.verify,
                grant=grant,
                tolerant=item.continue_on_error,
                for_files=frozenset() if unconditional else frozenset(files),
                cert_ids=tuple(cert.cert_id for cert in about),
                fingerprints=_fingerprints(item.verify, present) if isinstance(item.verify, VerifyTls) else (),
            )
        )
    return tuple(one for one in found if one.grant is not None or one.fingerprints)


def _fingerprints(verify: VerifyTls, certs: Sequence[DesiredCert]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(cert.facts.fingerprint_sha256 for cert in expected_at(verify, certs)))


def expected_at(verify: VerifyTls, certs: Sequence[Named]) -> Sequence[Named]:
    """Return the certificates that an endpoint may serve: those for its name, otherwise all."""
    name = plain_domain(verify.server_name or verify.host)
    return [cert for cert in certs if is_covered(name, cert.facts.domains)] or certs
