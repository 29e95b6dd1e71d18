"""Propose the items and commands that take certificates over in place, added to what a host has already. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import attrs

from certctrl import lean
from certctrl.install.adopt.in_use import InUse, groups_by_service
from certctrl.install.adopt.uses import Service, Use, concrete
from certctrl.install.material.domains import is_covered
from certctrl.model.modes import has_key
from certctrl.model.paths import is_below
from certctrl.model.plan import VerifyTls, WriteMethod
from certctrl.store.layout import safe_name
from certctrl.text import one_line

RELOAD_SECONDS, CHECK_SECONDS = 60, 20
_KEY_MODE, _PUBLIC_MODE = 0o600, 0o644
_KEY_BITS, _PUBLIC_BITS = 0o640, 0o644


@lean.frozen(kw_only=True)
class Known:
    """A certificate that the control plane has delivered to this host."""

    cert_id: int
    domains: tuple[str, ...]
    """The primary one first."""
    key: str = ""
    """Kind of key, as in `Leaf`; empty: not known."""


@lean.frozen(kw_only=True)
class Target:
    """A file as the agent would find it."""

    mode: int = _KEY_MODE
    in_place: bool = False
    """Whether it can only be written over."""
    fault: str = ""
    """Why the agent cannot write it."""
    fix: str = ""


@lean.frozen(kw_only=True)
class HostFacts:
    """The host that certificates are taken over on."""

    config_dir: str
    items: tuple[dict[str, Any], ...]
    """Items of ``installs.local.json``."""
    taken: Mapping[str, str]
    """Path -> item that writes it already, of the operator or of the control plane."""
    commands: Mapping[str, Sequence[str]]
    """Commands of ``policy.json``."""
    known: tuple[Known, ...]
    reloads: Mapping[Service, Sequence[str]]
    checks: Mapping[Service, Sequence[str]]
    """Checks whose helpers are installed."""
    target: Callable[[str], Target]


@lean.frozen(kw_only=True)
class Takeover:
    """A certificate that can be taken over, or is already."""

    found: InUse
    items: tuple[str, ...]
    """Ids of the items that do it, in their order."""
    known: Known | None = None
    """The certificate that takes its place; None: it is not on this host yet."""
    missing: tuple[str, ...] = ()
    """Names of the present certificate that the new one does not have."""
    notes: tuple[str, ...] = ()
    is_done: bool = False
    """Whether other items do it already, so that nothing is added."""


@lean.frozen(kw_only=True)
class Proposal:
    """What would be added to the files of the operator."""

    takeovers: tuple[Takeover, ...]
    left: tuple[InUse, ...]
    """Certificates that cannot be taken over, with the reason."""
    items: tuple[dict[str, Any], ...]
    """All items of ``installs.local.json`` afterwards."""
    added: tuple[dict[str, Any], ...]
    """Those that are new or changed."""
    commands: Mapping[str, dict[str, Any]]
    """Name -> new command of ``policy.json``."""


def propose(found: Iterable[InUse], host: HostFacts) -> Proposal:
    """Return what takes certificates over; applied twice, it adds nothing."""
    maker = _Maker(host)
    for one in found:
        maker.add(one)
    return maker.proposal()


class _Maker:
    def __init__(self, host: HostFacts) -> None:
        self._host = host
        self._items = [dict(item) for item in host.items]
        self._changed: dict[str, dict[str, Any]] = {}
        self._commands: dict[str, dict[str, Any]] = {}
        self._takeovers: list[Takeover] = []
        self._left: list[InUse] = []

    def proposal(self) -> Proposal:
        return Proposal(
            takeovers=tuple(self._takeovers),
            left=tuple(self._left),
            items=tuple(self._items),
            added=tuple(self._changed.values()),
            commands=self._commands,
        )

    def add(self, found: InUse) -> None:
        """Add the items of one certificate, or the reason why it is left."""
        paths = [path for _, path in found.files]
        if any(is_below(path, self._host.config_dir) for path in paths):
            self._takeovers.append(Takeover(found=found, items=(), is_done=True))
            return
        writers = {path: self._host.taken[path] for path in paths if path in self._host.taken}
        used = {path for use in found.uses for _, path in use.files} or set(paths)
        if used <= writers.keys():
            items = tuple(dict.fromkeys(writers.values()))
            self._takeovers.append(Takeover(found=found, items=items, is_done=True))
            return
        if writers:
            path, item = next(iter(writers.items()))
            what = f"item {one_line(item)} writes {one_line(path)} already, but not all of its files"
            self._leave(found, what, "add the others to that item")
        elif found.fault:
            self._left.append(found)
        elif bad := next((target for path in paths if (target := self._host.target(path)).fault), None):
            self._leave(found, bad.fault, bad.fix)
        else:
            self._take(found)

    def _leave(self, found: InUse, fault: str, fix: str) -> None:
        self._left.append(attrs.evolve(found, fault=fault, fix=fix))

    def _take(self, found: InUse) -> None:
        assert found.leaf is not None, "judged"
        known, why = self._match(found)
        if why:
            self._leave(found, why, "issue one of each kind of key (--key-type), then run this again")
            return
        name = known.domains[0] if known is not None else found.names[0]
        services = groups_by_service(found.uses)
        notes: list[str] = []
        reference = self._reference(known, name)
        items = []
        for number, (service, uses) in enumerate(services.items()):
            copied = self._copied(found, notes) if number == 0 else self._carried(service, name)
            items.append(self._copy(service, name, uses, found, reference | copied, notes))
        reloads = [
            self._reload(Service(service), item) for service, item in zip(services, items, strict=True) if service
        ]
        missing = _uncovered(found.names, known.domains) if known is not None else []
        ids = (*items, *reloads)
        self._takeovers.append(
            Takeover(found=found, items=ids, known=known, missing=tuple(missing), notes=tuple(dict.fromkeys(notes)))
        )

    # --- the certificate ----------------------------------------------------------------------------------------

    def _match(self, found: InUse) -> tuple[Known | None, str]:
        """Return the certificate of this host that takes its place, if there is one, or why it cannot be told."""
        assert found.leaf is not None
        configured = dict.fromkeys(name for use in found.uses for name in use.names)
        wanted = configured.keys() - _uncovered(configured, found.names) or found.names
        covering = [one for one in self._host.known if one.domains and not _uncovered(wanted, one.domains)]
        twins = [one for one in self._takeovers if _are_twins(one.found, found)]
        same_kind = [one for one in covering if _algorithm(one.key) == _algorithm(found.leaf.key)]
        if twins:
            free = [one for one in same_kind if all(one is not twin.known for twin in twins)]
            kind = _algorithm(found.leaf.key)
            return (free[0], "") if free else (None, f"a second certificate for these names, with a key of kind {kind}")
        ranked = sorted(
            covering,
            key=lambda one: (
                len(_uncovered(found.names, one.domains)),
                one not in same_kind,
                set(one.domains) != set(found.names),
                one.cert_id,
            ),
        )
        return (ranked[0] if ranked else None), ""

    def _reference(self, known: Known | None, name: str) -> dict[str, Any]:
        """Return how an item refers to a certificate: by its name, which renewals and reissues keep, if that is unique."""
        if known is not None and sum(one.domains[:1] == known.domains[:1] for one in self._host.known) > 1:
            return {"ob_type": "cert", "ob_id": known.cert_id}
        return {"ob_type": "cert", "ob_name": name}

    # --- items --------------------------------------------------------------------------------------------------

    def _copied(self, found: InUse, notes: list[str]) -> dict[str, Any]:
        """Return the files of the copy item, with their modes."""
        fields: dict[str, Any] = {"from": [one for one, _ in found.files], "to": [path for _, path in found.files]}
        modes: list[str | None] = []
        for virtual, path in found.files:
            present = self._host.target(path).mode
            usual, bits = (_KEY_MODE, _KEY_BITS) if has_key(virtual) else (_PUBLIC_MODE, _PUBLIC_BITS)
            if has_key(virtual) and present & ~bits:
                notes.append(f"{path} has mode {present:04o}; its key gets {present & bits:04o}, so check who reads it")
            modes.append(None if present & bits == usual else f"{present & bits:04o}")
        if any(modes):
            fields["mode"] = modes
        if any(self._host.target(path).in_place for _, path in found.files):
            fields["write"] = WriteMethod.IN_PLACE.value
        return fields

    def _carried(self, service: str, name: str) -> dict[str, Any]:
        """Return a file of no importance: the item only carries check and probe of a further service."""
        taken = {path for item in self._items for path in item.get("to") or ()} | self._host.taken.keys()
        base = f"{self._host.config_dir}/certs/{safe_name(name)}.{service}"
        numbered = (f"{base}.json" if n == 1 else f"{base}-{n}.json" for n in range(1, len(taken) + 3))
        return {"from": ["meta.json"], "to": [next(path for path in numbered if path not in taken)]}

    def _copy(
        self, service: str, name: str, uses: Sequence[Use], found: InUse, fields: Mapping[str, Any], notes: list[str]
    ) -> str:
        """Add a copy item; return its id."""
        item: dict[str, Any] = {"id": self._free_id(f"{service or 'files'} {name}"), "type": "copy", **fields}
        if service and (check := self._check(Service(service), found)):
            item["check"] = [check]
        elif service:
            notes.append(f"no check before a change: the helpers of the recipe for {service} are not installed")
        endpoint = next((use.endpoint for use in uses if use.endpoint is not None), None)
        if endpoint is not None:
            item["verify"] = _verify(endpoint, found.names)
        else:
            what = f"where {service} serves it" if service else "what reads it"
            notes.append(f"no probe after a change: {what} is not known")
        self._items.append(item)
        self._changed[str(item["id"])] = item
        return str(item["id"])

    def _check(self, service: Service, found: InUse) -> str:
        """Return the name of the command that checks staged files for a service; empty if there is none."""
        is_combined = any(virtual == "combined.pem" for virtual, _ in found.files)
        if service is Service.HAPROXY and not is_combined:  # its check loads that file
            return self._command("check pair", self._host.checks.get(Service.APACHE), CHECK_SECONDS)
        return self._command(f"check {service}", self._host.checks.get(service), CHECK_SECONDS)

    def _reload(self, service: Service, copy: str) -> str:
        """Add the item that reloads a service after a copy, or the copy to the item that exists; return its id."""
        name = self._command(f"reload {service}", self._host.reloads[service], RELOAD_SECONDS)
        for item in self._items:
            if item.get("type") == "exec" and item.get("cmd_argv") == [name] and item.get("enabled", True) is True:
                needs = item.get("depends_on") or []
                if needs and isinstance(needs, list):
                    item["depends_on"] = [*needs, copy]
                    self._changed[str(item["id"])] = item
                    return str(item["id"])
        item = {"id": self._free_id(name), "type": "exec", "depends_on": [copy], "cmd_argv": [name]}
        self._items.append(item)
        self._changed[str(item["id"])] = item
        return str(item["id"])

    def _command(self, name: str, argv: Sequence[str] | None, seconds: int) -> str:
        """Return the name of a command of the policy, which is added unless a command has that name; empty without argv."""
        if name in self._host.commands or name in self._commands:
            return name
        if argv is None:
            return ""
        self._commands[name] = {"argv": list(argv), "timeout_seconds": seconds}
        return name

    def _free_id(self, wanted: str) -> str:
        taken = {str(item.get("id")) for item in self._items}
        wanted = one_line(wanted, 180)
        return next(
            one for n in range(1, len(taken) + 3) if (one := wanted if n == 1 else f"{wanted} {n}") not in taken
        )


def _uncovered(names: Iterable[str], domains: Iterable[str]) -> list[str]:
    """Return the names that a certificate for some domains does not have."""
    covering = frozenset(domains)
    return [name for name in names if not is_covered(name, covering)]


def _algorithm(key: str) -> str:
    return key.partition(" ")[0]


def _are_twins(one: InUse, other: InUse) -> bool:
    """Return whether two certificates are for the same names, but with other kinds of keys."""
    assert one.leaf is not None or other.leaf is not None
    kinds = {_algorithm(found.leaf.key) for found in (one, other) if found.leaf is not None}
    return set(one.names) == set(other.names) and len(kinds) > 1


def _verify(endpoint: VerifyTls, names: Sequence[str]) -> dict[str, Any]:
    """Return the probe of an item; without a configured name, it asks for one of the certificate's."""
    found: dict[str, Any] = {"type": "tls", "host": endpoint.host, "port": endpoint.port}
    if endpoint.starttls is not None:
        found["starttls"] = endpoint.starttls.value
    asked = endpoint.server_name or next((plain for name in names if (plain := concrete(name))), None)
    if asked and not _is_address(asked):
        found["server_name"] = asked
    return found


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
