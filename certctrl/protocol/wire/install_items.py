"""Read one install item: copy, exec or import_ca, in each spelling that planes use (docs/protocol.md)."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, assert_never

import attrs

from certctrl import lean
from certctrl.model.plan import (
    CA_FILES,
    CERT_FILES,
    LOCAL_PREFIX,
    CopyAction,
    ExecAction,
    ImportCaAction,
    InstallItem,
    ObjectType,
    StartTls,
    UnknownAction,
    Verify,
    VerifyCommand,
    VerifyTls,
    WriteMethod,
)
from certctrl.protocol.wire.reader import (
    CONVERTER,
    Hook,
    Misfit,
    Read,
    bounded_list,
    flag,
    integer,
    text,
    texts,
    wire_class,
)
from certctrl.text import is_name, kind_of, nearest, one_line

MAX_ITEMS = 1000
"""Items of one install config, and names in one ``depends_on``."""
MAX_TIMEOUT_MS = 600_000
DEFAULT_TIMEOUT_MS = 30_000

_ALIAS = re.compile(r"\A(.*\.(?:pfx|jks))\?alias=[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z", re.ASCII)
"""A keystore with the alias of its entry."""
_OCTAL = re.compile(r"(0o)?0?[0-7]{3}", re.ASCII)
_BRACKETED = re.compile(r"\A\[([^\[\]]*:[^\[\]]*)\]\Z")  # an IPv6 address as in a URL, which resolvers do not accept
_ZONE = re.compile(r"[A-Za-z0-9_.-]{1,15}", re.ASCII)  # the name of an interface
_OBJECT_TYPES = tuple(ObjectType)
_STARTTLS = tuple(StartTls)
_WRITE_METHODS = tuple(WriteMethod)
_COMMON_KEYS = frozenset(
    ("id", "type", "enabled", "continue_on_error", "depends_on", "tags", "ob_type", "ob_id", "ob_name")
)
_KEYS = {
    "copy": _COMMON_KEYS | {"from", "to", "owner", "group", "mode", "write", "check", "verify"},
    "exec": _COMMON_KEYS | {"cmd_argv", "cmd", "timeout_ms", "run_as", "env", "verify"},
    "import_ca": _COMMON_KEYS,
}


_TYPO = 0.75
"""Similarity from which an unknown key counts as a misspelled one."""
_VERIFY_KEYS = {
    "command": frozenset(("type", "cmd_argv", "cmd")),
    "tls": frozenset(("type", "host", "port", "server_name", "starttls")),
}


class UnknownKindError(Misfit):
    """An item or verify type that this version does not know: the item is for a newer agent."""


# --- fields ------------------------------------------------------------------------------------------------


def _item_id(value: Any, _: Any = None) -> str:
    if type(value) is int:
        return str(value)
    if isinstance(value, str) and 0 < len(value) <= 200 and value.isprintable():
        return value
    raise Misfit(f"expected an id (integer, or 1 to 200 printable characters), got {kind_of(value)}")


def _item_ids(value: Any, _: Any = None) -> tuple[str, ...]:
    return tuple(map(_item_id, bounded_list(value, MAX_ITEMS)))


def _object_type(value: Any, _: Any = None) -> ObjectType:
    if value not in _OBJECT_TYPES:
        raise Misfit("expected cert or ca")
    return ObjectType(value)


def _object_id(value: Any, _: Any = None) -> int | None:
    return _any_integer(value) or None


def _mode(value: Any, _: Any = None) -> int:
    """Return permission bits from octal text; a bare number could be meant as octal or as decimal."""
    octal = _mode_text(value)
    if not _OCTAL.fullmatch(octal):
        raise Misfit('expected octal text such as "0640"')
    return int(octal, 8)


def _argv(value: Any, _: Any = None) -> tuple[str, ...] | None:
    return texts(value) or None


def _timeout(value: Any, _: Any = None) -> int:
    return _any_timeout(value) or DEFAULT_TIMEOUT_MS


def _environment(value: Any, _: Any = None) -> dict[str, str]:
    if value == []:
        return {}
    if not isinstance(value, dict):
        raise Misfit(f"expected an object, got {kind_of(value)}")
    found = {}
    for name, entry in value.items():
        try:
            found[name] = "" if entry is None else _any_text(entry)
        except Misfit as misfit:
            raise Misfit(misfit.what, f".{one_line(name, 40)}") from None
    return found


def _starttls(value: Any, _: Any = None) -> StartTls:
    return StartTls(_one_of(value, _STARTTLS))


def _write(value: Any, _: Any = None) -> WriteMethod:
    return WriteMethod(_one_of(value, _WRITE_METHODS))


def _one_of(value: Any, known: Sequence[str]) -> str:
    if value not in known:
        raise Misfit(f"expected one of {', '.join(known)}")
    return str(value)


def _host(value: Any, _: Any = None) -> str:
    """Return a domain name or address; the sender must not choose any other input of resolvers and servers."""
    host = _BRACKETED.sub(r"\1", _host_text(value))
    address, _, zone = host.partition("%")
    try:
        ipaddress.ip_address(address)
    except ValueError:
        if not is_name(host):
            raise Misfit("expected a domain name or an address") from None
    else:
        if zone and not _ZONE.fullmatch(zone):
            raise Misfit("expected a domain name or an address")
    return host


def _verify(value: Any, _: Any = None) -> Verify | None:
    if value in ({}, []):
        return None
    kind = _kind(value)
    if kind not in _VERIFY:
        raise UnknownKindError(f"unknown verify type {one_line(kind, 40)}", ".type")
    return CONVERTER.structure(value, _VERIFY[kind])


def _kind(value: object) -> str:
    """Return the type of an item or verify object."""
    return _read_kind(value, "").type


_any_integer = integer()
_any_text = text()
_any_timeout = integer(le=MAX_TIMEOUT_MS)
_host_text = text(255)
_mode_text = text(8)


# --- classes -----------------------------------------------------------------------------------------------


@lean.frozen
class _Kind:
    type: str


_read_kind = wire_class(_Kind, {"type": text(64)})


def _with_command(verify: VerifyCommand) -> VerifyCommand:
    if not verify.cmd_argv:
        raise Misfit("no command", ".cmd_argv")
    return verify


def _one_command(row: dict[str, Any]) -> dict[str, Any]:
    """Normalise a command: ``cmd_argv`` comes first; ``cmd`` may be a shell line or a list of arguments."""
    line = row.pop("cmd", None)
    if row.get("cmd_argv", []) != []:
        return row
    if isinstance(line, list):
        try:
            return row | {"cmd_argv": list(texts(line))}
        except Misfit as misfit:
            raise Misfit(misfit.what, f".cmd{misfit.path}") from None
    return row | {"cmd": line}


wire_class(VerifyCommand, prepare=lambda row: {"cmd_argv": []} | _one_command(row), check=_with_command)
wire_class(VerifyTls, {"host": _host, "port": integer(1, 65_535), "server_name": _host, "starttls": _starttls})
_VERIFY: dict[str, type[Verify]] = {"command": VerifyCommand, "tls": VerifyTls}

_NEVER_READ = ("refused",)
_COMMON: dict[str, Hook] = {
    "id": _item_id,
    "depends_on": _item_ids,
    "ob_type": _object_type,
    "ob_id": _object_id,
    "ob_name": text(1024),
}


def _paired(copy: CopyAction) -> CopyAction:
    if not copy.sources:
        raise Misfit("nothing to copy", ".from")
    for name, each in (("owner", copy.owners), ("group", copy.groups), ("mode", copy.modes)):
        if each and len(each) != len(copy.sources):
            raise Misfit(
                f"expected one value, or a list as long as from: {len(copy.sources)}, got {len(each)}", f".{name}"
            )
    if copy.targets and len(copy.sources) != len(copy.targets):
        raise Misfit(f"expected a list as long as from: {len(copy.sources)} paths, got {len(copy.targets)}", ".to")
    return copy


def _runnable(action: ExecAction) -> ExecAction:
    if action.cmd_argv is None and action.cmd is None:
        raise Misfit("no command", ".cmd_argv")
    return action


def _each(hook: Hook) -> Hook:
    """Return a hook for a list with one value, or null, for each file."""

    def structure(value: Any, _: Any = None) -> tuple[Any, ...]:
        return tuple(None if one is None else hook(one) for one in bounded_list(value, MAX_ITEMS))

    return structure


def _with_lists(row: dict[str, Any]) -> dict[str, Any]:
    """Move lists of owners, groups and modes to fields of their own."""
    row = {"from": [], "to": []} | row
    for one, each in (("owner", "owners"), ("group", "groups"), ("mode", "modes")):
        row.pop(each, None)  # not a key of the wire
        if isinstance(row.get(one), list):
            row[each] = row.pop(one)
    return row


_read_copy = wire_class(
    CopyAction,
    _COMMON
    | {"owner": text(256), "group": text(256), "mode": _mode, "write": _write, "check": _argv, "verify": _verify}
    | {"owners": _each(text(256)), "groups": _each(text(256)), "modes": _each(_mode)},
    names={"sources": "from", "targets": "to"},
    shown={"owners": "owner", "groups": "group", "modes": "mode"},
    omit=_NEVER_READ,
    prepare=_with_lists,
    check=_paired,
)
_read_exec = wire_class(
    ExecAction,
    _COMMON | {"cmd_argv": _argv, "timeout_ms": _timeout, "run_as": text(256), "env": _environment, "verify": _verify},
    omit=_NEVER_READ,
    prepare=_one_command,
    check=_runnable,
)
_ITEMS: dict[str, Read[InstallItem]] = {
    "copy": _read_copy,
    "exec": _read_exec,
    "import_ca": wire_class(ImportCaAction, _COMMON, omit=_NEVER_READ),
}


def _readable(hook: Hook, default: Any) -> Hook:
    """Return a hook with ``default`` for invalid values, so that the other fields of a refused item are still known."""

    def structure(value: Any, _: Any = None) -> Any:
        try:
            return hook(value)
        except Misfit:
            return default

    return structure


_read_common = wire_class(
    UnknownAction,
    {
        "id": _item_id,
        "enabled": _readable(flag, True),
        "continue_on_error": _readable(flag, False),
        "depends_on": _readable(_item_ids, ()),
        "tags": _readable(texts, ()),
        "ob_type": _readable(_object_type, None),
        "ob_id": _readable(_object_id, None),
        "ob_name": _readable(text(1024), None),
    },
    omit=_NEVER_READ,
)


def item_from_wire(raw: object, path: str, *, local_names: frozenset[str] | None = None) -> InstallItem:
    """Return one item; ``local_names`` (ids of this host's own rows) refuses unknown keys and prefixes the id.

    Raises Misfit, and UnknownKindError for a type that this version does not know.
    """
    try:
        kind = _kind(raw)
    except Misfit as misfit:
        raise Misfit(misfit.what, path + misfit.path) from None
    if kind not in _ITEMS:
        hint = did_you_mean(kind, _ITEMS)
        raise UnknownKindError(f"unknown item type {one_line(kind, 40)}{hint}", f"{path}.type")
    if local_names is not None:
        _refuse_unknown_keys(raw, kind, path)
    item = _ITEMS[kind](raw, path)
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
    parts: list[tuple[str, Mapping[str, Any], Collection[str]]] = [("", raw, _KEYS[kind])]
    if isinstance(verify, dict) and verify.get("type") in _VERIFY_KEYS:
        parts.append((".verify", verify, _VERIFY_KEYS[verify["type"]]))
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
        common = _read_common(raw, path)
        why = f"{misfit.path.removeprefix(path).lstrip('.')}: {misfit.what}"
        if isinstance(misfit, UnknownKindError):
            why += " (upgrade this agent, or remove the item)"
    fields = attrs.asdict(common, recurse=False) | {"refused": why}
    refused = _refused(raw if isinstance(raw, dict) else {}, fields)
    return refused if local_names is None else _as_local(refused, local_names)


def _refused(row: dict[str, Any], fields: dict[str, Any]) -> InstallItem:
    match row.get("type"):
        case "copy":  # a revoked certificate must still be removed from its targets
            sources, targets = (_readable(texts, ())(row.get(name)) for name in ("from", "to"))
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
        _refuse_typos(raw, _kind(raw), path)
    match item:
        case CopyAction():
            _refuse_no_targets(item, path)
            files = CA_FILES if item.ob_type is ObjectType.CA else CERT_FILES
            for i, name in enumerate(item.sources):
                if _ALIAS.sub(r"\1", name) not in files:
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
