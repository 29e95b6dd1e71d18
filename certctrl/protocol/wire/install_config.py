"""Read the install config: the hash matches, types are known, ids are unique, and there is no cycle.

One item that does not fit refuses the whole document, before anything runs. The host's policy judges paths, commands
and virtual files later, item by item.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs

from certctrl.errors import BadAnswerError, ConfigError, PlanError
from certctrl.model.plan import LOCAL_PREFIX, InstallConfig, InstallItem
from certctrl.protocol.wire.canonical import canonical_json
from certctrl.protocol.wire.install_items import UnknownKindError, did_you_mean, item_from_operator, item_from_wire
from certctrl.protocol.wire.reader import (
    SAFE_INT,
    Misfit,
    alias,
    bounded_list,
    integer,
    moment,
    parse_json,
    text,
    wire_class,
)
from certctrl.text import one_line

LOCAL_FILE = "installs.local.json"
MAX_OPERATOR_ITEMS = 1000
"""Items that an operator may give to the plane; a host accepts ten times as many."""
MAX_INSTALLS_TEXT = 4_194_304

_PATH = "install config"


@attrs.frozen
class _Document:
    id: int
    version: int
    installs_hash_b64: str | None = None
    updated_at: str | None = None
    installs_json: str | None = None


_read_document = wire_class(
    _Document,
    {
        "version": integer(le=SAFE_INT),
        "installs_hash_b64": text(256),
        "updated_at": moment,
        "installs_json": text(MAX_INSTALLS_TEXT),
    },
    prepare=alias("installs_hash_b64", "installs_hash"),
)


def install_config_from_wire(data: object) -> InstallConfig:
    """Return the verified install config of a plane's ``data`` object.

    Raises PlanError with ``reason`` ``schema``, ``hash``, ``unknown-type``, ``duplicate-id``,
    ``unknown-dependency`` or ``cycle``. The caller decides whether the version may replace the current one.
    """
    try:
        document = _read_document(data, _PATH)
        rows = _verified_items(document, data.get("installs") if isinstance(data, dict) else None)
        items = tuple(item_from_wire(row, f"installs[{i}]") for i, row in enumerate(rows))
    except UnknownKindError as error:
        raise PlanError(str(error), reason="unknown-type", fix="upgrade this agent, or remove the item") from None
    except Misfit as misfit:
        raise PlanError(str(misfit), reason="schema") from None
    _check_plane_ids(items)
    install_order(items)
    return InstallConfig(
        id=document.id,
        version=document.version,
        items=items,
        installs_hash_b64=document.installs_hash_b64 or "",
        updated_at=document.updated_at,
    )


def items_from_operator(data: object) -> tuple[InstallItem, ...]:
    """Return the items that an operator gives to the plane, after checking each and their dependencies.

    Raises Misfit with the JSON path, or PlanError (``schema``, ``duplicate-id``, ``unknown-dependency``, ``cycle``).
    """
    try:
        rows = bounded_list(data, MAX_OPERATOR_ITEMS)
    except Misfit as misfit:
        raise Misfit(misfit.what, "installs") from None
    items = tuple(item_from_operator(row, f"installs[{i}]") for i, row in enumerate(rows))
    _check_plane_ids(items)
    install_order(items)
    return items


def _check_plane_ids(items: Iterable[InstallItem]) -> None:
    for item in items:
        if item.id.startswith(LOCAL_PREFIX):
            raise PlanError(f"item {item.id}: the prefix {LOCAL_PREFIX} is reserved for the host", reason="schema")


def _verified_items(document: _Document, listed: object) -> list[Any]:
    """Return the raw items that the hash covers: the text ``installs_json`` if set, otherwise ``installs``."""
    digest, text = document.installs_hash_b64, document.installs_json
    if digest is None:
        raise PlanError("the install config has no hash", reason="hash")
    items = _listed_items(text, listed)
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
        return bounded_list(value)
    except Misfit as misfit:
        raise Misfit(misfit.what, f"{_PATH}.{name}") from None


def _same_hash(digest: str, text: str) -> bool:
    """Return whether base64 or base64url, padded or not, is the hash of a text."""
    try:
        plain = digest.rstrip("=").replace("-", "+").replace("_", "/")
        claimed = base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except (binascii.Error, ValueError):
        return False
    return hmac.compare_digest(claimed, hashlib.sha256(text.encode("utf-8")).digest())


def items_from_local(rows: Sequence[Mapping[str, Any]]) -> tuple[InstallItem, ...]:
    """Return this host's own items (``installs.local.json``); their ids get the prefix ``local:``.

    ``depends_on`` names a local item if one has that id, otherwise an item of the plane. Raises ConfigError with the
    JSON path, also for unknown keys: an operator wrote them.
    """
    names = [str(row["id"]) for row in rows if isinstance(row, dict) and row.get("id") not in (None, "")]
    items = []
    for i, row in enumerate(rows):
        path = f"$[{i}]"
        try:
            items.append(item_from_wire(row, path, local_names=frozenset(names)))
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
_MOST_NAMED = 20


def _named(ids: Sequence[str]) -> str:
    """Return ids as they are written in the local file."""
    more = ", …" if len(ids) > _MOST_NAMED else ""
    return ", ".join(one_line(one.removeprefix(LOCAL_PREFIX), 80) for one in ids[:_MOST_NAMED]) + more


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
    levels = []
    while waiting:
        ready = [item for item in waiting.values() if not needs[item.id]]
        if not ready:
            stuck = ", ".join(one_line(name, 40) for name in sorted(waiting)[:5])
            raise PlanError(f"items depend on each other in a cycle: {stuck}", reason="cycle")
        done = {item.id for item in ready}
        for item in ready:
            del waiting[item.id]
        for item_id in waiting:
            needs[item_id] -= done
        levels.append(tuple(ready))
    return tuple(levels)
