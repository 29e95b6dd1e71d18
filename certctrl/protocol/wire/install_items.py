"""One install item in (api.md §4 and §8): copy, exec or import_ca, with what the live service spells differently."""

from __future__ import annotations

import re
from typing import Any

from certctrl.model.plan import (
    LOCAL_PREFIX,
    CopyAction,
    ExecAction,
    ImportCaAction,
    InstallItem,
    Verify,
    VerifyCommand,
    VerifyTls,
)
from certctrl.protocol.wire.reader import Misfit, Reader, kind_of
from certctrl.text import one_line

CERT_FILES = (
    "private.key",
    "certificate.pem",
    "chain.pem",
    "fullchain.pem",
    "combined.pem",
    "certificate.der",
    "bundle.pfx",
    "bundle.jks",
    "meta.json",
)
"""Virtual files of a certificate."""
CA_FILES = ("ca.pem", "ca.der", "meta.json")
"""Virtual files of a CA."""
MAX_TIMEOUT_MS = 600_000

_OCTAL = re.compile(r"(0o)?0?[0-7]{3}", re.ASCII)
_BRACKETED = re.compile(r"\A\[([^\[\]]*:[^\[\]]*)\]\Z")  # an IPv6 address as in a URL; no resolver knows it so
_STARTTLS = ("smtp", "imap", "postgres")
_COMMON = frozenset(("id", "type", "enabled", "continue_on_error", "depends_on", "tags", "ob_type", "ob_id", "ob_name"))
_KEYS = {
    "copy": _COMMON | {"from", "to", "owner", "group", "mode", "check", "verify"},
    "exec": _COMMON | {"cmd_argv", "cmd", "timeout_ms", "run_as", "env", "verify"},
    "import_ca": _COMMON,
}


class UnknownKindError(Exception):
    """An item or verify type that this version does not know: the config is for a newer agent."""


def item_from_wire(raw: object, path: str, *, local_names: frozenset[str] | None = None) -> InstallItem:
    """Return one item; ``local_names`` (ids of this host's own rows) makes it strict and prefixes the id.

    Raises Misfit and UnknownKindError.
    """
    row = Reader(raw, path)
    kind = row.text("type", limit=64)
    if kind not in _KEYS:
        raise UnknownKindError(f"{row.at('type')}: unknown item type {one_line(kind, 40)}")
    if local_names is not None and (unknown := sorted(map(str, row.raw.keys() - _KEYS[kind]))):
        raise Misfit(f"{row.at(one_line(unknown[0], 40))}: unknown key; known are {', '.join(sorted(_KEYS[kind]))}")
    common = _common(row, local_names)
    if kind == "copy":
        return _copy(row, common)
    if kind == "exec":
        return _exec(row, common)
    return ImportCaAction(**common)


def _common(row: Reader, local_names: frozenset[str] | None) -> dict[str, Any]:
    item_id = _id_of(*row.required("id")[::-1], row)
    depends_on = _ids_of(row, "depends_on")
    if local_names is not None:
        item_id = LOCAL_PREFIX + item_id
        depends_on = tuple(LOCAL_PREFIX + name if name in local_names else name for name in depends_on)
    ob_type = row.maybe_text("ob_type", limit=32)
    if ob_type not in (None, "cert", "ca"):
        raise Misfit(f"{row.at('ob_type')}: expected cert or ca")
    return {
        "id": item_id,
        "enabled": row.flag("enabled", True),
        "continue_on_error": row.flag("continue_on_error", False),
        "depends_on": depends_on,
        "tags": row.texts("tags"),
        "ob_type": ob_type,
        "ob_id": row.maybe_integer("ob_id") or None,
        "ob_name": row.maybe_text("ob_name", limit=1024),
    }


def _id_of(value: Any, name: str, row: Reader) -> str:
    if type(value) is int:
        return str(value)
    if isinstance(value, str) and 0 < len(value) <= 200 and value.isprintable():
        return value
    raise Misfit(f"{row.at(name)}: expected an id (integer, or 1 to 200 printable characters), got {kind_of(value)}")


def _ids_of(row: Reader, name: str) -> tuple[str, ...]:
    value = row.find(name)[1]
    if value is None:
        return ()
    if not isinstance(value, list):
        raise Misfit(f"{row.at(name)}: expected a list, got {kind_of(value)}")
    return tuple(_id_of(one, name, row) for one in value)


def _copy(row: Reader, common: dict[str, Any]) -> CopyAction:
    sources, targets = row.texts("from"), row.texts("to")
    if not sources:
        raise Misfit(f"{row.at('from')}: nothing to copy")
    if len(sources) != len(targets):
        raise Misfit(f"{row.at('to')}: {len(targets)} paths for {len(sources)} files")
    return CopyAction(
        **common,
        sources=sources,
        targets=targets,
        owner=row.maybe_text("owner", limit=256),
        group=row.maybe_text("group", limit=256),
        mode=_mode(row),
        check=row.texts("check") or None,
        verify=_verify(row),
    )


def _mode(row: Reader) -> int | None:
    """Return permission bits from octal text: a bare number would be octal to one reader and decimal to another."""
    text = row.maybe_text("mode", limit=8)
    if text is None:
        return None
    if not _OCTAL.fullmatch(text):
        raise Misfit(f'{row.at("mode")}: expected octal text such as "0640"')
    return int(text.removeprefix("0o"), 8)


def _exec(row: Reader, common: dict[str, Any]) -> ExecAction:
    argv, line = row.texts("cmd_argv"), row.raw.get("cmd")
    if not argv and isinstance(line, list):
        argv, line = row.texts("cmd"), None
    shell = None if argv or not line else row.maybe_text("cmd")
    if not argv and shell is None:
        raise Misfit(f"{row.at('cmd_argv')}: no command")
    env = row.find("env")[1]
    reader = Reader({} if env in (None, []) else env, row.at("env"))
    return ExecAction(
        **common,
        cmd_argv=argv or None,
        cmd=shell,
        timeout_ms=row.maybe_integer("timeout_ms", le=MAX_TIMEOUT_MS) or 30_000,
        run_as=row.maybe_text("run_as", limit=256),
        env={name: reader.maybe_text(name) or "" for name in reader.raw},
        verify=_verify(row),
    )


def _verify(row: Reader) -> Verify | None:
    value = row.find("verify")[1]
    if value in (None, {}, []):
        return None
    verify = Reader(value, row.at("verify"))
    kind = verify.text("type", limit=64)
    if kind == "command":
        argv = verify.texts("cmd_argv")
        if not argv:
            raise Misfit(f"{verify.at('cmd_argv')}: no command")
        return VerifyCommand(cmd_argv=argv)
    if kind != "tls":
        raise UnknownKindError(f"{verify.at('type')}: unknown verify type {one_line(kind, 40)}")
    starttls = verify.maybe_text("starttls", limit=32)
    if starttls not in (None, *_STARTTLS):
        raise Misfit(f"{verify.at('starttls')}: expected one of {', '.join(_STARTTLS)}")
    return VerifyTls(
        host=_BRACKETED.sub(r"\1", verify.text("host", limit=255)),
        port=verify.integer("port", ge=1, le=65_535),
        server_name=verify.maybe_text("server_name", limit=255),
        starttls=starttls,
    )
