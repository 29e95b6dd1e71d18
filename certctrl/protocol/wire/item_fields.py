"""The fields of install items: copy, exec and import_ca, in each spelling that planes use (docs/protocol.md)."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from typing import Any

from certctrl import lean
from certctrl.model.plan import (
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
    or_default,
    text,
    texts,
    wire_class,
)
from certctrl.text import is_name, kind_of, one_line

MAX_ITEMS = 1000
"""Items of one install config, and names in one ``depends_on``."""
MAX_TIMEOUT_MS = 600_000
DEFAULT_TIMEOUT_MS = 30_000

ALIAS = re.compile(r"\A(.*\.(?:pfx|jks))\?alias=[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z", re.ASCII)
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
ITEM_KEYS = {
    "copy": _COMMON_KEYS | {"from", "to", "owner", "group", "mode", "write", "check", "verify"},
    "exec": _COMMON_KEYS | {"cmd_argv", "cmd", "timeout_ms", "run_as", "env", "verify"},
    "import_ca": _COMMON_KEYS,
}
VERIFY_KEYS = {
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
    kind = item_kind(value)
    if kind not in _VERIFY:
        raise UnknownKindError(f"unknown verify type {one_line(kind, 40)}", ".type")
    return CONVERTER.structure(value, _VERIFY[kind])


def item_kind(value: object) -> str:
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
ITEMS: dict[str, Read[InstallItem]] = {
    "copy": _read_copy,
    "exec": _read_exec,
    "import_ca": wire_class(ImportCaAction, _COMMON, omit=_NEVER_READ),
}
read_common = wire_class(
    UnknownAction,
    {
        "id": _item_id,
        "enabled": or_default(flag, True),
        "continue_on_error": or_default(flag, False),
        "depends_on": or_default(_item_ids, ()),
        "tags": or_default(texts, ()),
        "ob_type": or_default(_object_type, None),
        "ob_id": or_default(_object_id, None),
        "ob_name": or_default(text(1024), None),
    },
    omit=_NEVER_READ,
)
