"""Read one install item, for a host or, more strictly, for the operator who gives it to the plane (docs/protocol.md)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, assert_never

import attrs

from certctrl.model.plan import (
    CA_FILES,
    CERT_FILES,
    LOCAL_PREFIX,
    CopyAction,
    ExecAction,
    ImportCaAction,
    InstallItem,
    ObjectType,
    UnknownAction,
)
from certctrl.protocol.wire.item_fields import (
    ALIAS,
    ITEM_KEYS,
    ITEMS,
    VERIFY_KEYS,
    UnknownKindError,
    item_kind,
    read_common,
)
from certctrl.protocol.wire.reader import Misfit, or_default, texts
from certctrl.text import nearest, one_line

_TYPO = 0.75
"""Similarity from which an unknown key counts as a misspelled one."""


def item_from_wire(raw: object, path: str, *, local_names: frozenset[str] | None = None) -> InstallItem:
    """Return one item; ``local_names`` (ids of this host's own rows) refuses unknown keys and prefixes the id.

    Raises Misfit, and UnknownKindError for a type that this version does not know.
    """
    try:
        kind = item_kind(raw)
    except Misfit as misfit:
        raise Misfit(misfit.what, path + misfit.path) from None
    if kind not in ITEMS:
        hint = did_you_mean(kind, ITEMS)
        raise UnknownKindError(f"unknown item type {one_line(kind, 40)}{hint}", f"{path}.type")
    if local_names is not None:
        _refuse_unknown_keys(raw, kind, path)
    item = ITEMS[kind](raw, path)
    if local_names is None:
        return item
    _refuse_no_targets(item, path)
    return _as_local(item, local_names)


def _as_local(item: InstallItem, local_names: Collection[str]) -> InstallItem:
    needs = tuple(LOCAL_PREFIX + name if name in local_names else name for name in item.depends_on)
    return attrs.evolve(item, id=LOCAL_PREFIX + item.id, depends_on=needs)


def _refuse_unknown_keys(raw: Any, kind: str, path: str) -> None:
    for where, key, known in _unknown_keys(raw, kind):
        hint = did_you_mean(key, known) or f"; known are {', '.join(sorted(known))}"
        raise Misfit(f"unknown key{hint}", f"{path}{where}")


def _refuse_typos(raw: Any, kind: str, path: str) -> None:
    """Raise Misfit for an unknown key that resembles a known one; others may be for newer agents."""
    for where, key, known in _unknown_keys(raw, kind):
        if hint := did_you_mean(key, known, cutoff=_TYPO):
            raise Misfit(f"unknown key{hint}", f"{path}{where}")


def unknown_keys(rows: Sequence[Any]) -> list[str]:
    """Return the paths of keys that this version does not read, in items that are otherwise valid."""
    return [
        f"installs[{i}]{where}" for i, row in enumerate(rows) for where, _, _ in _unknown_keys(row, str(row["type"]))
    ]


def _unknown_keys(raw: Mapping[str, Any], kind: str) -> Iterator[tuple[str, str, Collection[str]]]:
    """Yield the path, the key and the known keys of each unknown key of an item and its verify object."""
    verify = raw.get("verify")
    verify_kind = verify.get("type") if isinstance(verify, dict) else None  # not yet checked: of any type
    parts: list[tuple[str, Mapping[str, Any], Collection[str]]] = [("", raw, ITEM_KEYS[kind])]
    if isinstance(verify, dict) and isinstance(verify_kind, str) and verify_kind in VERIFY_KEYS:
        parts.append((".verify", verify, VERIFY_KEYS[verify_kind]))
    for where, part, known in parts:
        for key in sorted(map(str, part.keys() - set(known))):
            yield f"{where}.{one_line(key, 40)}", key, known


def did_you_mean(word: str, known: Iterable[str], *, cutoff: float = 0.6) -> str:
    """Return ``; did you mean X?`` for the most similar known word, or nothing."""
    near = nearest(word, known, cutoff=cutoff)
    return f"; did you mean {one_line(near, 80)}?" if near else ""


def _refuse_no_targets(item: InstallItem, path: str) -> None:
    if isinstance(item, CopyAction) and not item.targets:
        raise Misfit(f"expected a list as long as from: {len(item.sources)} paths, got 0", f"{path}.to")


def item_or_refused(raw: object, path: str, *, local_names: frozenset[str] | None = None) -> InstallItem:
    """Return one item; an invalid one is ``refused``, so that the others still run.

    ``local_names``: as for `item_from_wire`. Raises Misfit only if the id is invalid: the items that depend on it would
    be unknown.
    """
    try:
        return item_from_wire(raw, path, local_names=local_names)
    except Misfit as misfit:
        common = read_common(raw, path)
        why = f"{misfit.path.removeprefix(path).lstrip('.')}: {misfit.what}"
        if isinstance(misfit, UnknownKindError):
            why += " (upgrade this agent, or remove the item)"
    fields = attrs.asdict(common, recurse=False) | {"refused": why}
    refused = _refused(raw if isinstance(raw, dict) else {}, fields)
    return refused if local_names is None else _as_local(refused, local_names)


def _refused(row: dict[str, Any], fields: dict[str, Any]) -> InstallItem:
    match row.get("type"):
        case "copy":  # a revoked certificate must still be removed from its targets
            sources, targets = (or_default(texts, ())(row.get(name)) for name in ("from", "to"))
            return CopyAction(**fields, sources=sources, targets=targets if len(targets) == len(sources) else ())
        case "exec":
            return ExecAction(**fields)
        case "import_ca":
            return ImportCaAction(**fields)
        case _:
            return UnknownAction(**fields)


def item_from_operator(raw: object, path: str) -> InstallItem:
    """Return one item that an operator gives to the plane, checked more strictly than hosts do.

    Raises Misfit.
    """
    item = item_from_wire(raw, path)
    if isinstance(raw, dict):
        _refuse_typos(raw, item_kind(raw), path)
    match item:
        case CopyAction():
            _refuse_no_targets(item, path)
            files = CA_FILES if item.ob_type is ObjectType.CA else CERT_FILES
            for i, name in enumerate(item.sources):
                if ALIAS.sub(r"\1", name) not in files:
                    hint = did_you_mean(name, files) or f"; there are {', '.join(files)}"
                    raise Misfit(f"unknown file {one_line(name, 40)}{hint}", f"{path}.from[{i}]")
            for i, target in enumerate(item.targets):
                if not target.startswith("/") or "\0" in target or ".." in target.split("/"):
                    raise Misfit("expected an absolute path without ..", f"{path}.to[{i}]")
        case ExecAction():
            if isinstance(raw, dict) and raw.get("timeout_ms") in (0, "0"):
                raise Misfit("expected milliseconds above 0", f"{path}.timeout_ms")
        case ImportCaAction():
            if item.ob_id is None:
                raise Misfit("expected the id of a CA", f"{path}.ob_id")
        case UnknownAction():
            raise Misfit("unknown item type", f"{path}.type")
        case _:
            assert_never(item)
    return item
