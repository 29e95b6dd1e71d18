"""Checks the items an operator puts, so that a slip is told to the operator and not to a hundred hosts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from certctrl.plane.errors import ErrorResponse, bad_request

_TYPES = ("copy", "exec", "import_ca")
_MOST = 1000


def check_items(items: Any) -> None:
    """Raise 400 naming the item for anything that is not of api.md §4, refers to nothing, or goes in a circle."""
    if not isinstance(items, list):
        raise bad_request("installs must be a list of items", field="installs")
    if len(items) > _MOST:
        raise bad_request(f"At most {_MOST} items", field="installs")
    after: dict[str, list[str]] = {}
    for position, item in enumerate(items):
        where = f"installs[{position}]"
        if not isinstance(item, dict):
            raise bad_request(f"{where} must be an object", field=where)
        _check_item(item, where)
        if str(item["id"]) in after:
            raise bad_request(f"{where}: id {item['id']!r} is there twice", field=f"{where}.id")
        after[str(item["id"])] = [str(name) for name in item.get("depends_on", [])]
    _check_order(after)


def _check_item(item: Mapping[str, Any], where: str) -> None:
    if isinstance(item.get("id"), bool) or not isinstance(item.get("id"), str | int) or item["id"] == "":
        raise _wrong(where, "id", "a text or a number")
    if item.get("type") not in _TYPES:
        raise _wrong(where, "type", f"one of {', '.join(_TYPES)}")
    for name in ("enabled", "continue_on_error"):
        if not isinstance(item.get(name, True), bool):
            raise _wrong(where, name, "true or false")
    for name in ("depends_on", "tags"):
        if not isinstance(item.get(name, []), list):
            raise _wrong(where, name, "a list")
    if item.get("ob_type") not in (None, "", "cert", "ca"):
        raise _wrong(where, "ob_type", "cert or ca")
    if item["type"] == "copy":
        _check_copy(item, where)
    elif item["type"] == "exec":
        _check_exec(item, where)
    elif not isinstance(item.get("ob_id"), int):
        raise _wrong(where, "ob_id", "the id of a CA")
    _check_verify(item.get("verify"), where)


def _check_copy(item: Mapping[str, Any], where: str) -> None:
    sources, targets = item.get("from"), item.get("to")
    if not _texts(sources) or not sources:
        raise _wrong(where, "from", "a list of file names")
    if not _texts(targets) or len(targets or ()) != len(sources):
        raise _wrong(where, "to", "a list of paths as long as from")
    if not all(path.startswith("/") and "\0" not in path and ".." not in path.split("/") for path in targets or ()):
        raise _wrong(where, "to", "absolute paths without ..")
    if item.get("check") is not None and not _texts(item["check"]):
        raise _wrong(where, "check", "a list of texts")


def _check_exec(item: Mapping[str, Any], where: str) -> None:
    if item.get("cmd_argv"):
        if not _texts(item["cmd_argv"]):
            raise _wrong(where, "cmd_argv", "a list of texts")
    elif not isinstance(item.get("cmd"), str) or not item["cmd"]:
        raise _wrong(where, "cmd_argv", "a list of texts (or cmd, a shell line)")
    timeout = item.get("timeout_ms", 30_000)
    if isinstance(timeout, bool) or not isinstance(timeout, int) or timeout < 1:
        raise _wrong(where, "timeout_ms", "milliseconds above 0")


def _check_verify(verify: Any, where: str) -> None:
    if verify is None:
        return
    if not isinstance(verify, dict) or verify.get("type") not in ("command", "tls"):
        raise _wrong(where, "verify.type", "command or tls")
    if verify["type"] == "command":
        if not _texts(verify.get("cmd_argv")) or not verify["cmd_argv"]:
            raise _wrong(where, "verify.cmd_argv", "a list of texts")
    elif not isinstance(verify.get("host"), str) or not isinstance(verify.get("port"), int):
        raise _wrong(where, "verify", "host and port")


def _check_order(after: Mapping[str, list[str]]) -> None:
    for name, needs in after.items():
        for need in needs:
            if need not in after:
                raise bad_request(f"Item {name!r} depends on {need!r}, which is not there", field="depends_on")
    done: set[str] = set()
    while left := [name for name in after if name not in done]:
        ready = [name for name in left if done.issuperset(after[name])]
        if not ready:
            raise bad_request(f"Items wait for each other in a circle: {', '.join(left)}", field="depends_on")
        done.update(ready)


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _wrong(where: str, field: str, expected: str) -> ErrorResponse:
    return bad_request(f"{where}.{field}: expected {expected}", field=f"{where}.{field}")
