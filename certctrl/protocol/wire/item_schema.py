"""The JSON Schema of install items, from which the tables of docs/items.md are generated.

It describes one spelling of each key, where this version also reads others, and refuses unknown keys, which the control plane
stores for newer agents. What a schema cannot express, such as lists of equal length and dependencies, is checked by
`items_from_operator` only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from certctrl import lean
from certctrl.model.plan import CA_FILES, CERT_FILES, ObjectType, StartTls, WriteMethod
from certctrl.protocol.wire.item_fields import DEFAULT_TIMEOUT_MS, MAX_ITEMS, MAX_TIMEOUT_MS
from certctrl.protocol.wire.reader import SAFE_INT

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_TEXT = {"type": "string", "minLength": 1}
_ID = {"anyOf": [{"type": "integer"}, {"type": "string", "minLength": 1, "maxLength": 200}]}
_ARGV = {"type": "array", "items": {"type": "string"}, "minItems": 1}
_OBJECT_ID = {"anyOf": [{"type": "integer", "minimum": 1, "maximum": SAFE_INT}, {"const": "{cert.id}"}]}
_MODE = {"type": "string", "pattern": "^(0o)?0?[0-7]{3}$"}
_PATH = {"type": "string", "pattern": "^(/|\\{)(?!(.*/)?\\.\\.(/|$))"}
_HOST = {"type": "string", "minLength": 1, "maxLength": 255}
_FILE = {
    "anyOf": [
        {"enum": sorted({*CERT_FILES, *CA_FILES})},
        {"type": "string", "pattern": "^.*\\.(pfx|jks)\\?alias=[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"},
    ]
}


def _each(one: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema of one value for all files, or of a list with a value or null for each."""
    return {"anyOf": [one, {"type": "array", "items": {"anyOf": [one, {"type": "null"}]}, "maxItems": MAX_ITEMS}]}


@lean.frozen
class Key:
    """One key of an item."""

    name: str
    value: Mapping[str, Any]
    """Its schema."""
    about: str
    """For the table; Markdown."""
    default: str = "none"
    """For the table; ``required`` if it has none."""
    row: str = ""
    """The names in its row, if it shares one with other keys that follow."""


def _verify() -> dict[str, Any]:
    tls = {
        "type": {"const": "tls"},
        "host": _HOST,
        "port": {"type": "integer", "minimum": 1, "maximum": 65_535},
        "server_name": _HOST,
        "starttls": {"enum": [str(one) for one in StartTls]},
    }
    command = {"type": {"const": "command"}, "cmd_argv": _ARGV}
    return {"oneOf": [_object(tls, ["type", "host", "port"]), _object(command, ["type", "cmd_argv"])]}


def _object(properties: Mapping[str, Any], required: list[str]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


_BOOLEAN = {"type": "boolean"}
_VERIFY_REF = {"$ref": "#/$defs/verify"}
COMMON = (
    Key("id", _ID, "integer, or 1 to 200 printable characters; unique", "required"),
    Key("type", {"enum": ["copy", "exec", "import_ca"]}, "`copy`, `exec` or `import_ca`", "required"),
    Key("enabled", _BOOLEAN, "`false` leaves the item out", "`true`"),
    Key("continue_on_error", _BOOLEAN, "`true` lets the deployment succeed although this item fails", "`false`"),
    Key("depends_on", {"type": "array", "items": _ID, "maxItems": MAX_ITEMS}, "ids of items that run first; no cycles"),
    Key("tags", {"type": "array", "items": {"type": "string"}}, "list of text, for the operator"),
    Key("ob_type", {"enum": [str(one) for one in ObjectType]}, "`cert` or `ca`", "by `type`"),
    Key("ob_id", _OBJECT_ID, "id of the certificate or CA on the control plane"),
    Key(
        "ob_name",
        {"type": "string", "maxLength": 1024},
        "the certificate's primary domain, or the CA's name; used without `ob_id`",
    ),
)
COPY = (
    Key("from", {"type": "array", "items": _FILE, "minItems": 1}, "virtual files, see below", "required"),
    Key("to", {"type": "array", "items": _PATH, "minItems": 1}, "absolute paths, as many as in `from`", "required"),
    Key(
        "owner",
        _each({"type": "string", "maxLength": 256}),
        "user and group of the files; a list gives each file its own, `null` the default",
        "the agent's",
        "`owner`, `group`",
    ),
    Key("group", _each({"type": "string", "maxLength": 256}), ""),
    Key(
        "mode",
        _each(_MODE),
        'octal text, at most `"0640"` with a private key and `"0644"` without; a list as for `owner`',
        '`"0600"`, `"0644"`',
    ),
    Key(
        "write",
        {"enum": [str(one) for one in WriteMethod]},
        '`"replace"`, or `"in_place"` for files that cannot be replaced, see below',
        '`"replace"`',
    ),
    Key(
        "check",
        _ARGV,
        "command as a list; it must exit with 0 before anything is switched; `{staged}` is the directory of the new files",
    ),
    Key("verify", _VERIFY_REF, "see below"),
)
EXEC = (
    Key(
        "cmd_argv",
        _ARGV,
        "the command as a list, or a list with the name of a command of `policy.json`",
        "this or `cmd`",
    ),
    Key("cmd", _TEXT, "a shell line; refused unless the policy allows a shell", ""),
    Key(
        "timeout_ms",
        {"type": "integer", "minimum": 1, "maximum": MAX_TIMEOUT_MS},
        f"milliseconds, at most {MAX_TIMEOUT_MS // 1000} 000; only for items of the host, "
        "for others the limit is `timeout_seconds` in `policy.json`",
        f"{DEFAULT_TIMEOUT_MS // 1000} 000",
    ),
    Key("run_as", {"type": "string", "maxLength": 256}, "user", "the agent's"),
    Key("env", {"type": "object", "additionalProperties": {"type": "string"}}, "variables, name to text"),
    Key("verify", _VERIFY_REF, "see below"),
)
KINDS: Mapping[str, tuple[Key, ...]] = {"copy": COPY, "exec": EXEC, "import_ca": ()}


def item_schema() -> dict[str, Any]:
    """Return the JSON Schema of a file with install items: a list, an object with it, or a profile."""
    items = {"type": "array", "items": {"$ref": "#/$defs/item"}, "maxItems": MAX_ITEMS}
    document = {
        "installs": items,
        "devices": {"type": "string", "description": "which devices have this profile: a tag expression"},
        "order": {"type": "integer", "minimum": 0, "maximum": 9999, "description": "place among profiles"},
    }
    return {
        "$schema": DIALECT,
        "title": "Install items of certctrl",
        "description": "For installs.local.json, cert-ctrl plane install-config put and cert-ctrl plane profile put",
        "anyOf": [items, {"type": "object", "properties": document, "required": ["installs"]}],
        "$defs": {
            "item": {
                "type": "object",
                "required": ["id", "type"],
                "properties": {"type": COMMON[1].value},
                "allOf": [
                    {"if": {"properties": {"type": {"const": kind}}}, "then": {"$ref": f"#/$defs/{kind}"}}
                    for kind in KINDS
                ],
            },
            **{kind: _kind(kind) for kind in KINDS},
            "verify": _verify(),
        },
    }


def _kind(kind: str) -> dict[str, Any]:
    keys = (*COMMON, *KINDS[kind])
    properties = {key.name: {**key.value, "description": _plain(key)} for key in keys} | {"type": {"const": kind}}
    found = _object(properties, [key.name for key in keys if key.default == "required"])
    if kind == "exec":
        found["anyOf"] = [{"required": ["cmd_argv"]}, {"required": ["cmd"]}]
    if kind == "import_ca":
        found["required"] = [*found["required"], "ob_id"]
    return found


def _plain(key: Key) -> str:
    return key.about.replace("`", "") or key.name
