"""The install config in: verified hash, known types, unique ids, no cycle — or nothing at all (api.md §4).

One document, one verdict: an item that cannot be understood refuses the whole config before anything runs.
What an item *asks for* (paths, commands, virtual files) is judged later, item by item, by the host's policy.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from certctrl.errors import BadAnswerError, ConfigError, PlanError
from certctrl.model.plan import LOCAL_PREFIX, InstallConfig, InstallItem
from certctrl.protocol.wire.canonical import canonical_json
from certctrl.protocol.wire.install_items import UnknownKindError, item_from_wire
from certctrl.protocol.wire.reader import SAFE_INT, Misfit, Reader, kind_of, parse_json
from certctrl.text import one_line

LOCAL_FILE = "installs.local.json"
MAX_ITEMS = 10_000


def install_config_from_wire(data: object) -> InstallConfig:
    """Return the verified install config of a plane's ``data`` object.

    Raises PlanError with ``reason`` ``schema``, ``hash``, ``unknown-type``, ``duplicate-id``,
    ``unknown-dependency`` or ``cycle``. Whether the version may replace the one in force is the caller's to say.
    """
    try:
        top = Reader(data, "install config")
        digest = top.maybe_text("installs_hash_b64", "installs_hash", limit=256)
        config_id, version = top.integer("id"), top.integer("version", le=SAFE_INT)
        updated_at = top.moment("updated_at") or None
        raw_items = _verified_items(top, digest)
        items = tuple(item_from_wire(raw, f"installs[{i}]") for i, raw in enumerate(raw_items))
    except UnknownKindError as error:
        raise PlanError(str(error), reason="unknown-type", fix="upgrade this agent, or take the item out") from None
    except Misfit as misfit:
        raise PlanError(str(misfit), reason="schema") from None
    for item in items:
        if item.id.startswith(LOCAL_PREFIX):
            raise PlanError(f"item {item.id}: the prefix {LOCAL_PREFIX} belongs to this host", reason="schema")
    install_order(items)
    return InstallConfig(
        id=config_id, version=version, items=items, installs_hash_b64=digest or "", updated_at=updated_at
    )


def _verified_items(top: Reader, digest: str | None) -> list[Any]:
    """Return the raw items that the hash covers: the text ``installs_json`` when it is there, else ``installs``."""
    if digest is None:
        raise PlanError("the install config carries no hash", reason="hash")
    text, listed = top.maybe_text("installs_json", limit=4_194_304), top.raw.get("installs")
    if text is None:
        if not isinstance(listed, list):
            raise Misfit(f"{top.at('installs')}: expected a list, got {kind_of(listed)}")
        items: list[Any] = listed
    else:
        try:
            parsed = parse_json(text)
        except BadAnswerError:
            raise Misfit(f"{top.at('installs_json')}: not valid JSON") from None
        if not isinstance(parsed, list):
            raise Misfit(f"{top.at('installs_json')}: expected a list, got {kind_of(parsed)}")
        items = parsed
    if len(items) > MAX_ITEMS:
        raise Misfit(f"{top.at('installs')}: more than {MAX_ITEMS} items")
    try:
        hashed = canonical_json(items) if text is None else text
        if not _same_hash(digest, hashed):
            raise PlanError("the install config does not match its hash", reason="hash")
        # what is hashed is what counts; a second list that says something else is an attempt to be read instead
        if text is not None and listed is not None and canonical_json(listed) != canonical_json(items):
            raise PlanError("installs and installs_json say different things", reason="hash")
    except ValueError as error:
        raise PlanError(f"the install config cannot be hashed: {error}", reason="hash") from None
    return items


def _same_hash(digest: str, text: str) -> bool:
    """Compare with base64 or base64url, padded or not."""
    try:
        plain = digest.rstrip("=").replace("-", "+").replace("_", "/")
        claimed = base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except (binascii.Error, ValueError):
        return False
    return hmac.compare_digest(claimed, hashlib.sha256(text.encode("utf-8")).digest())


def items_from_local(rows: Sequence[Mapping[str, Any]]) -> tuple[InstallItem, ...]:
    """Return this host's own items (``installs.local.json``); ids get the prefix ``local:``.

    ``depends_on`` means a local item where one has that id, else one of the plane's. Raises ConfigError with
    the JSON path; unknown keys are errors here, because a person wrote them.
    """
    names = [str(row["id"]) for row in rows if isinstance(row, dict) and row.get("id") not in (None, "")]
    items = []
    for i, row in enumerate(rows):
        path = f"$[{i}]"
        try:
            items.append(item_from_wire(row, path, local_names=frozenset(names)))
        except (Misfit, UnknownKindError) as error:
            where, _, what = str(error).partition(": ")
            raise ConfigError(what, file=LOCAL_FILE, path=where) from None
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
    """Refuse a local row that depends on neither a local row nor one of the plane's items, given by their ids.

    Raises ConfigError with the names that there are.
    """
    here, theirs = [row.id for row in rows], list(planes)
    known = {*here, *theirs}
    for i, row in enumerate(rows):
        for name in row.depends_on:
            if name not in known:
                said = f"item {_named([row.id])} depends on {one_line(name, 80)}, which is not there"
                others = f"the plane's {_named(theirs)}" if theirs else _NO_PLANES
                raise ConfigError(
                    f"{said}; there are {_named(here)} here, and {others}", file=LOCAL_FILE, path=f"$[{i}].depends_on"
                )


_NO_PLANES = "no item of the plane's (its install config may not have been fetched yet)"
_MOST_NAMED = 20


def _named(ids: Sequence[str]) -> str:
    """Return ids as a person writes them into the local file."""
    more = ", …" if len(ids) > _MOST_NAMED else ""
    return ", ".join(one_line(one.removeprefix(LOCAL_PREFIX), 80) for one in ids[:_MOST_NAMED]) + more


def install_order(items: Iterable[InstallItem]) -> tuple[tuple[InstallItem, ...], ...]:
    """Return the items in levels: all of a level may run side by side, after all that they depend on.

    Disabled items keep their place, so that what depends on them keeps its own. Raises PlanError
    (``duplicate-id``, ``unknown-dependency``, ``cycle``).
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
            raise PlanError(
                f"item {one_line(item_id, 80)} depends on {one_line(name, 80)}, which is not there",
                reason="unknown-dependency",
            )
    levels = []
    while waiting:
        ready = [item for item in waiting.values() if not needs[item.id]]
        if not ready:
            stuck = ", ".join(one_line(name, 40) for name in sorted(waiting)[:5])
            raise PlanError(f"items depend on each other in a circle: {stuck}", reason="cycle")
        done = {item.id for item in ready}
        for item in ready:
            del waiting[item.id]
        for item_id in waiting:
            needs[item_id] -= done
        levels.append(tuple(ready))
    return tuple(levels)
