"""Bind items to certificates, group and order connected items, and compute activation keys. Pure.

The *activation key* of a command is a hash of the command and of the generations that it runs for. A command is due
if the recorded key differs: so it runs at least once after each change, even across restarts, and not for unchanged
bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeVar

import attrs

from certctrl import lean
from certctrl.install.material.domains import plain_domain
from certctrl.install.plan.values import DesiredCa, DesiredCert
from certctrl.model.order import levels_of
from certctrl.model.plan import CopyAction, ExecAction, ImportCaAction, InstallItem, ObjectType

BATCH = "batch:"
"""Start of the name of an atomic batch in a group."""


@lean.frozen(kw_only=True)
class Binding:
    """The certificates and CAs of one item."""

    certs: tuple[int, ...] = ()
    cas: tuple[int, ...] = ()
    waits: str = ""
    """Why the item waits; empty if it does not."""

    @property
    def nodes(self) -> frozenset[str]:
        """Their names in a group."""
        return frozenset((*(f"cert:{cert}" for cert in self.certs), *(f"ca:{ca}" for ca in self.cas)))


def bind(
    items: Sequence[InstallItem],
    certs: Mapping[int, DesiredCert],
    cas: Mapping[int, DesiredCa],
    ran: Collection[str] = (),
) -> dict[str, Binding]:
    """Return item id -> binding: to its own object, otherwise those of its dependencies, otherwise all certificates.

    A command whose dependencies name only objects that are not on this host waits; it is not bound to all certificates.
    ``ran``: commands that have run before; they do not wait for a certificate that has been withdrawn since.
    """
    known = {item.id for item in items}
    own = {item.id: _own(item, certs, cas, known) for item in items}
    certs_below = gathered(items, {name: one.certs for name, one in own.items()})
    cas_below = gathered(items, {name: one.cas for name, one in own.items()})
    waits_below = gathered(items, {name: (one.waits,) if one.waits else () for name, one in own.items()})
    bound = {}
    for item in items:
        binding = own[item.id]
        if not (binding.certs or binding.cas or binding.waits) and isinstance(item, ExecAction):
            below = (certs_below[item.id], cas_below[item.id], waits_below[item.id])
            binding = _of_dependencies(*below, certs)
        has_run = isinstance(item, ExecAction) and item.id in ran
        waits = binding.waits or ("" if has_run else _waits(item, binding, certs, cas))
        bound[item.id] = attrs.evolve(binding, waits=waits)
    return bound


def _own(
    item: InstallItem, certs: Mapping[int, DesiredCert], cas: Mapping[int, DesiredCa], known: Collection[str]
) -> Binding:
    if item.ob_type is ObjectType.CA or isinstance(item, ImportCaAction):
        named = [ca.ca_id for ca in cas.values() if item.ob_name is not None and ca.name == item.ob_name]
        found = (item.ob_id,) if item.ob_id is not None else tuple(named[:1])
        missing = "it names no CA" if item.ob_name is None else f"there is no CA {item.ob_name!r} here yet"
        return Binding(cas=found, waits="" if found else missing)
    if item.ob_id is not None:
        return Binding(certs=(item.ob_id,))
    if item.ob_name is not None:
        names = names_given(item.ob_name)
        named_so = [one for one in certs.values() if not names.isdisjoint((one.name, *one.facts.domains[:1]))]
        # the lowest id, as for public names; outgoing and withdrawn certificates pass the name to the next one
        named_so.sort(key=lambda one: (not one.generation, one.outgoing, one.cert_id))
        wanted = [one.cert_id for one in named_so]
        return Binding(
            certs=tuple(wanted[:1]), waits="" if wanted else f"there is no certificate {item.ob_name!r} here"
        )
    if isinstance(item, CopyAction):
        return Binding(waits="it names no certificate")
    gone = bool(item.depends_on) and not any(name in known for name in item.depends_on)
    return Binding(
        waits=f"{', '.join(item.depends_on[:3])}, which it depends on, is disabled or missing" if gone else ""
    )


def names_given(ob_name: str) -> frozenset[str]:
    """Return the certificate names that ``ob_name`` may mean: as written, and with international labels as ``xn--``."""
    return frozenset((ob_name, plain_domain(ob_name)))


def _of_dependencies(
    found: tuple[int, ...], found_cas: tuple[int, ...], waits: tuple[str, ...], certs: Iterable[int]
) -> Binding:
    """Return the binding of a command that names no object, from those of its dependencies."""
    if found or found_cas:
        return Binding(certs=found, cas=found_cas)
    return Binding(waits=waits[0]) if waits else Binding(certs=tuple(sorted(certs)))


def _waits(item: InstallItem, binding: Binding, certs: Mapping[int, DesiredCert], cas: Mapping[int, DesiredCa]) -> str:
    for ca_id in binding.cas:
        if ca_id not in cas:
            return f"CA {ca_id} is not on this host yet"
    if binding.cas and not binding.certs:
        return ""
    here = [cert for cert in binding.certs if cert in certs and certs[cert].generation]
    if isinstance(item, CopyAction) and len(here) < len(binding.certs):
        return f"certificate {binding.certs[0]} is not on this host"
    if isinstance(item, ExecAction) and not here:
        names = ", ".join(str(cert) for cert in binding.certs[:3])
        return f"certificate {names} is not on this host" if names else "no certificate is on this host"
    return ""


def enabled(items: Sequence[InstallItem]) -> list[InstallItem]:
    """Return the enabled items; a dependency on a disabled item becomes one on that item's dependencies.

    A command whose copies are all disabled keeps their names: it waits (`bind`), and is not bound to all certificates.
    """
    off = {item.id: item for item in items if not item.enabled}
    if not off:
        return list(items)
    return [
        attrs.evolve(item, depends_on=_around(item, off)) if not off.keys().isdisjoint(item.depends_on) else item
        for item in items
        if item.enabled
    ]


def _around(item: InstallItem, off: Mapping[str, InstallItem]) -> tuple[str, ...]:
    found: dict[str, None] = {}
    todo, seen = list(item.depends_on), set[str]()
    while todo:
        name = todo.pop(0)
        if name not in off:
            found[name] = None
        elif name not in seen:
            seen.add(name)
            todo = [*off[name].depends_on, *todo]
    copies = [name for name in item.depends_on if name in seen] if _has_copy(seen, off) else []
    return tuple(found or copies)


def _has_copy(names: Iterable[str], items: Mapping[str, InstallItem]) -> bool:
    return any(isinstance(items[name], CopyAction) for name in names)


def depended_on(item_id: str, by_id: Mapping[str, InstallItem]) -> tuple[str, ...]:
    """Return the ids that an item depends on, directly or indirectly, nearest first; without unknown ids."""
    found: dict[str, None] = {}
    todo = [item_id]
    while todo:
        item = by_id.get(todo.pop(0))
        new = [name for name in (item.depends_on if item else ()) if name in by_id and name not in found]
        found |= dict.fromkeys(new)
        todo += new
    found.pop(item_id, None)
    return tuple(found)


T = TypeVar("T")


def gathered(items: Sequence[InstallItem], own: Mapping[str, tuple[T, ...]]) -> dict[str, tuple[T, ...]]:
    """Return for each item the union of ``own`` over the items that it depends on, directly or indirectly.

    Each item extends the results of its dependencies, so the cost of a chain is linear in its length.
    """
    by_id = {item.id: item for item in items}
    levels, stuck = levels_of({item.id: {one for one in item.depends_on if one in by_id} for item in items})
    found: dict[str, tuple[T, ...]] = {}
    for name in (name for level in levels for name in level):
        known: tuple[T, ...] = ()
        for needed in by_id[name].depends_on:
            if needed in found:
                known = _united(_united(known, own[needed]), found[needed])
        found[name] = known
    for name in stuck:  # a cycle: one by one
        found[name] = tuple(dict.fromkeys(one for below in depended_on(name, by_id) for one in own[below]))
    return found


def _united(first: tuple[T, ...], second: tuple[T, ...]) -> tuple[T, ...]:
    if not second or first == second:
        return first
    return tuple(dict.fromkeys((*first, *second))) if first else second


def copies_below(items: Sequence[InstallItem]) -> dict[str, tuple[str, ...]]:
    """Return for each item the ids of the copy items that it depends on, directly or indirectly."""
    return gathered(items, {item.id: (item.id,) if isinstance(item, CopyAction) else () for item in items})


def activation_key(
    item: ExecAction,
    binding: Binding,
    certs: Mapping[int, DesiredCert],
    cas: Mapping[int, DesiredCa],
    copies: Iterable[InstallItem],
) -> str:
    """Return the hash of a command, and of the paths and contents of the files that it depends on (``copies``)."""
    generations = {str(cert): certs[cert].generation for cert in binding.certs if cert in certs}
    places = {
        copy.id: [copy.sources, copy.targets, copy.owner, copy.group, copy.mode, *_each(copy)]
        for copy in copies
        if isinstance(copy, CopyAction) and copy.enabled
    }
    facts: list[Any] = [
        item.cmd_argv, item.cmd, item.run_as, dict(item.env), attrs.asdict(item.verify) if item.verify else None,
        places, generations, {str(ca): cas[ca].fingerprint for ca in binding.cas if ca in cas},
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _each(copy: CopyAction) -> list[Any]:
    """Return a copy item's settings per file; empty if it has none, so that existing keys stay valid."""
    return [copy.owners, copy.groups, copy.modes] if copy.owners or copy.groups or copy.modes else []


def same_command(item: ExecAction) -> str:
    """Return a key that is equal for exec items with the same command."""
    return json.dumps([item.cmd_argv, item.cmd, item.run_as, dict(item.env)], sort_keys=True)


def connected_groups(
    items: Sequence[InstallItem],
    bound: Mapping[str, Binding],
    certs: Iterable[int],
    together: Mapping[int, str] = MappingProxyType({}),
) -> list[set[str]]:
    """Return connected sets of ``cert:7``, ``ca:3``, ``item:x``, ``batch:b``.

    An item is connected to its certificates, its dependencies, and to items with the same command (one service, one
    reload) or the same target; certificates with the same name in ``together`` are connected. So each set can be
    planned separately.
    """
    parent: dict[str, str] = {}

    def root(node: str) -> str:
        parent.setdefault(node, node)
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for cert in certs:
        me = root(f"cert:{cert}")
        if cert in together:
            parent[root(f"{BATCH}{together[cert]}")] = me
    known = {item.id for item in items}
    for item in items:
        me = root(f"item:{item.id}")
        others = [*bound[item.id].nodes, *(f"item:{name}" for name in item.depends_on if name in known)]
        if isinstance(item, ExecAction) and not item.refused:
            others.append(f"command:{same_command(item)}")
        elif isinstance(item, CopyAction):
            others += [f"path:{path}" for path in item.targets]
        for other in others:
            parent[root(other)] = root(me)
    groups: dict[str, set[str]] = {}
    for node in list(parent):
        groups.setdefault(root(node), set()).add(node)
    return list(groups.values())


def ordered_steps(items: Sequence[InstallItem]) -> list[list[tuple[str, ...]]]:
    """Return steps of groups of item ids; exec items with the same command form one group, in their latest step.

    If that would create a cycle, each item is its own group.
    """
    by_command = {item.id: same_command(item) if isinstance(item, ExecAction) else f"item:{item.id}" for item in items}
    alone = {item.id: f"item:{item.id}" for item in items}
    return _ordered_steps(items, by_command) or _ordered_steps(items, alone) or [[(item.id,) for item in items]]


def _ordered_steps(items: Sequence[InstallItem], node_of: Mapping[str, str]) -> list[list[tuple[str, ...]]]:
    members: dict[str, list[str]] = {}
    needs: dict[str, set[str]] = {}
    for item in items:
        node = node_of[item.id]
        members.setdefault(node, []).append(item.id)
        needs.setdefault(node, set()).update(node_of[name] for name in item.depends_on if name in node_of)
        needs[node].discard(node)
    levels, stuck = levels_of(needs)
    return [] if stuck else [[tuple(members[node]) for node in level] for level in levels]
