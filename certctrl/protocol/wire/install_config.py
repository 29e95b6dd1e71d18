"""Read the install config, and refuse all of it for a wrong hash, duplicate ids, or dependencies that form a cycle.

A single invalid item, such as one of an unknown type, is refused alone. The host's policy checks paths, commands and
virtual files later, item by item.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from certctrl import lean
from certctrl.errors import BadAnswerError, ConfigError, PlanError
from certctrl.model.modes import open_mode
from certctrl.model.order import levels_of
from certctrl.model.paths import path_fault
from certctrl.model.plan import LOCAL_PREFIX, CopyAction, InstallConfig, InstallItem
from certctrl.protocol.wire.canonical import canonical_json, standard_base64
from certctrl.protocol.wire.install_items import (
    did_you_mean,
    item_from_operator,
    item_from_wire,
    item_or_refused,
)
from certctrl.protocol.wire.item_fields import MAX_ITEMS
from certctrl.protocol.wire.reader import (
    SAFE_INT,
    Misfit,
    alias,
    bounded_list,
    integer,
    moment,
    or_default,
    parse_json,
    text,
    unread,
    wire_class,
)
from certctrl.text import one_line

LOCAL_FILE = "installs.local.json"
MAX_LEVELS = 32
"""Items in the longest chain of dependencies."""
MAX_INSTALLS_TEXT = 4_194_304

FIELDS = (
    "id", "user_device_id", "version", "installs", "installs_json", "installs_hash_b64", "installs_hash", "updated_at",
)  # fmt: skip
"""The fields of an install config to store: those that this module reads, and its owner."""
_PATH = "install config"


@lean.frozen
class _Document:
    version: int
    id: int = 0
    installs_hash_b64: str | None = None
    updated_at: str | None = None
    installs: Any = None
    """Not yet structured: the hash is of the raw items, and an invalid item must not refuse the others."""
    installs_json: str | None = None

    @property
    def may_be_absent(self) -> bool:
        """Whether this document, if it has no items, means that the device has no config."""
        return self.installs_hash_b64 is None or not self.version


_read_document = wire_class(
    _Document,
    {
        "version": integer(le=SAFE_INT),
        "installs_hash_b64": text(256),
        "updated_at": or_default(moment),  # only for display
        "installs": unread,
        "installs_json": text(MAX_INSTALLS_TEXT),
    },
    prepare=alias("installs_hash_b64", "installs_hash"),
)


def install_config_from_wire(data: object) -> InstallConfig:
    """Return the verified install config of a plane's ``data`` object.

    A document without items, and without a hash or with version 0, means that the plane has no config for this device
    (``absent``). Raises PlanError with ``reason`` ``schema``, ``hash``, ``duplicate-id``, ``unknown-dependency``,
    ``cycle`` or ``depth``.
    The caller decides whether the version may replace the current one.
    """
    try:
        document = _read_document(data, _PATH)
        rows = _verified_items(document, document.installs)
        items = tuple(item_or_refused(row, f"installs[{i}]") for i, row in enumerate(rows))
    except Misfit as misfit:
        raise PlanError(str(misfit), reason="schema") from None
    _check_plane_ids(items)
    _check_depth(items)
    return InstallConfig(
        id=document.id,
        version=document.version,
        items=items,
        installs_hash_b64=document.installs_hash_b64 or "",
        updated_at=document.updated_at,
        absent=not items and document.may_be_absent,
    )


def listed_items(document: object) -> list[Any]:
    """Return the raw items of an operator's document: the list, or an object with it as ``installs``. Raises Misfit."""
    items = document.get("installs") if isinstance(document, dict) else document
    try:
        return bounded_list(items)
    except Misfit as misfit:
        raise Misfit(misfit.what, "installs") from None


def items_from_operator(data: object) -> tuple[InstallItem, ...]:
    """Return the items that an operator gives to the plane, after checking each and their dependencies.

    Raises Misfit with the JSON path, or PlanError (``schema``, ``duplicate-id``, ``unknown-dependency``, ``cycle``,
    ``depth``).
    """
    try:
        rows = bounded_list(data, MAX_ITEMS)
    except Misfit as misfit:
        raise Misfit(misfit.what, "installs") from None
    items = tuple(item_from_operator(row, f"installs[{i}]") for i, row in enumerate(rows))
    _check_plane_ids(items)
    _check_depth(items)
    return items


def new_items_from_operator(data: object) -> tuple[InstallItem, ...]:
    """Return the own items that an operator gives to a device, without copies that every host refuses or leaves idle.

    Stored items may be older than these checks, so `items_from_operator` does without. Raises like it.
    """
    items = items_from_operator(data)
    for i, item in enumerate(items):
        if isinstance(item, CopyAction) and item.ob_id is None and item.ob_name is None:
            raise Misfit("missing, and so is ob_id: the item names no certificate or CA", f"installs[{i}].ob_name")
        check_modes(item, f"installs[{i}]")
    _check_targets(items, "installs")
    return items


def check_modes(item: InstallItem, path: str) -> None:
    """Raise Misfit for a mode that is too open for the files of a copy: every host refuses it."""
    if isinstance(item, CopyAction) and (found := open_mode(item)):
        raise Misfit(f"{found.mode:04o} is {found.why}", f"{path}.mode{found.place}")


def _check_targets(items: Iterable[InstallItem], path: str) -> None:
    """Raise Misfit for a target that is not normalized, or that an item before has: a host refuses those."""
    writers: dict[str, str] = {}
    for i, item in enumerate(items):
        for j, target in enumerate(item.targets if isinstance(item, CopyAction) else ()):
            if fault := path_fault(target):
                raise Misfit(fault, f"{path}[{i}].to[{j}]")
            if not item.enabled:
                continue
            if target in writers:
                what = f"item {_named([writers[target]])} writes {one_line(target, 100)}, too"
                raise Misfit(what, f"{path}[{i}].to[{j}]")
            writers[target] = item.id


def _check_depth(items: Iterable[InstallItem]) -> None:
    if (depth := len(install_order(items))) > MAX_LEVELS:
        what = f"items depend on each other in a chain of {depth}; at most {MAX_LEVELS} are allowed"
        raise PlanError(what, reason="depth")


def _check_plane_ids(items: Iterable[InstallItem]) -> None:
    for item in items:
        if item.id.startswith(LOCAL_PREFIX):
            raise PlanError(f"item {item.id}: the prefix {LOCAL_PREFIX} is reserved for the host", reason="schema")


def _verified_items(document: _Document, listed: object) -> list[Any]:
    """Return the raw items that the hash covers: the text ``installs_json`` if set, otherwise ``installs``."""
    digest, text = document.installs_hash_b64, document.installs_json
    items = [] if document.may_be_absent and text is None and listed is None else _listed_items(text, listed)
    if digest is None:
        if not items:
            return items
        raise PlanError("the install config has no hash", reason="hash")
    try:
        hashed = canonical_json(items) if text is None else text
        if not _same_hash(digest, hashed):
            raise PlanError("the install config does not match its hash", reason="hash")
        # Only the hashed text counts. A second list that differs may be an attack on readers of that list.
        if text is not None and listed is not None and canonical_json(listed) != canonical_json(items):
            raise PlanError("installs and installs_json differ", reason="hash")
    except ValueError as error:
        raise PlanError(f"the install config cannot be hashed: {error}", reason="hash") from None
    return items


def _listed_items(text: str | None, listed: object) -> list[Any]:
    name, value = "installs", listed
    if text is not None:
        name = "installs_json"
        try:
            value = parse_json(text)
        except BadAnswerError:
            raise Misfit("not valid JSON", f"{_PATH}.{name}") from None
    try:
        return bounded_list(value, MAX_ITEMS)
    except Misfit as misfit:
        raise Misfit(misfit.what, f"{_PATH}.{name}") from None


def _same_hash(digest: str, text: str) -> bool:
    """Return whether base64 or base64url, padded or not, is the hash of a text."""
    try:
        plain = standard_base64(digest)
        claimed = base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except (binascii.Error, ValueError):
        return False
    return hmac.compare_digest(claimed, hashlib.sha256(text.encode()).digest())


def items_from_local(rows: Sequence[Mapping[str, Any]], *, strict: bool = False) -> tuple[InstallItem, ...]:
    """Return this host's own items (``installs.local.json``); their ids get the prefix ``local:``.

    ``depends_on`` names a local item if one has that id, otherwise an item of the plane. An invalid item, or one with
    an unknown key, is refused alone; with ``strict``, to check a file, it is an error. Raises ConfigError with the
    JSON path.
    """
    read = item_from_wire if strict else item_or_refused
    names = [str(row["id"]) for row in rows if isinstance(row, dict) and "id" in row]
    items = []
    for i, row in enumerate(rows):
        path = f"$[{i}]"
        try:
            items.append(read(row, path, local_names=frozenset(names)))
        except Misfit as misfit:
            raise ConfigError(misfit.what, file=LOCAL_FILE, path=misfit.path) from None
    if strict:
        try:
            for i, item in enumerate(items):
                check_modes(item, f"$[{i}]")
            _check_targets(items, "$")
        except Misfit as misfit:
            raise ConfigError(misfit.what, file=LOCAL_FILE, path=misfit.path) from None
    seen: set[str] = set()
    for i, item in enumerate(items):
        if item.id in seen:
            raise ConfigError(f"the id {item.id!r} is used twice", file=LOCAL_FILE, path=f"$[{i}].id")
        seen.add(item.id)
    try:
        _levels(items, missing_ok=True)
    except PlanError as error:
        raise ConfigError(str(error), file=LOCAL_FILE, path="$") from None
    return tuple(items)


def check_local_dependencies(rows: Sequence[InstallItem], planes: Iterable[str]) -> None:
    """Check that every dependency of a local item exists; ``planes`` are the ids of the plane's items.

    Raises ConfigError with the known ids.
    """
    here, theirs = [row.id for row in rows], list(planes)
    known = {*here, *theirs}
    for i, row in enumerate(rows):
        for name in row.depends_on:
            if name not in known:
                what = f"item {_named([row.id])} depends on {one_line(name, 80)}, which does not exist"
                others = f"the plane's {_named(theirs)}" if theirs else _NO_PLANES
                raise ConfigError(
                    f"{what}; known items: {_named(here)} here, and {others}",
                    file=LOCAL_FILE,
                    path=f"$[{i}].depends_on",
                )


_NO_PLANES = "none from the plane (its install config may not have been fetched yet)"
_MAX_NAMED = 20


def _named(ids: Sequence[str]) -> str:
    """Return ids as the local file contains them."""
    more = ", …" if len(ids) > _MAX_NAMED else ""
    return ", ".join(one_line(one.removeprefix(LOCAL_PREFIX), 80) for one in ids[:_MAX_NAMED]) + more


def install_order(items: Iterable[InstallItem]) -> tuple[tuple[InstallItem, ...], ...]:
    """Return the items in levels: items of a level depend only on earlier levels and may run concurrently.

    Disabled items keep their level, and so do items that depend on them. Raises PlanError (``duplicate-id``,
    ``unknown-dependency``, ``cycle``).
    """
    return _levels(items, missing_ok=False)


def _levels(items: Iterable[InstallItem], *, missing_ok: bool) -> tuple[tuple[InstallItem, ...], ...]:
    waiting: dict[str, InstallItem] = {}
    for item in items:
        if item.id in waiting:
            raise PlanError(f"the item id {one_line(item.id, 80)} is used twice", reason="duplicate-id")
        waiting[item.id] = item
    needs = {one.id: {name for name in one.depends_on if not missing_ok or name in waiting} for one in waiting.values()}
    for item_id, names in needs.items():
        for name in names - waiting.keys():
            hint = did_you_mean(name, waiting)
            raise PlanError(
                f"item {one_line(item_id, 80)} depends on {one_line(name, 80)}, which does not exist{hint}",
                reason="unknown-dependency",
            )
    levels, stuck = levels_of(needs)
    if stuck:
        cycle = ", ".join(one_line(name, 40) for name in sorted(stuck)[:5])
        raise PlanError(f"items depend on each other in a cycle: {cycle}", reason="cycle")
    return tuple(tuple(waiting[name] for name in level) for level in levels)
