"""The JSON Schema of install items agrees with the code that reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from certctrl.errors import PlanError
from certctrl.protocol.wire.install_config import items_from_operator
from certctrl.protocol.wire.item_fields import ITEM_KEYS, VERIFY_KEYS
from certctrl.protocol.wire.item_schema import item_schema
from certctrl.protocol.wire.reader import Misfit

SCHEMA = item_schema()
VALIDATOR = Draft202012Validator(SCHEMA)
RECIPES = sorted((Path(__file__).parents[3] / "deploy/services").glob("*/items.json"))
COPY = {"id": "c", "type": "copy", "from": ["fullchain.pem"], "to": ["/etc/tls/a.pem"]}
EXEC = {"id": 7, "type": "exec", "cmd_argv": ["reload"]}
TLS = {"type": "tls", "host": "127.0.0.1", "port": 443}


def read(items: Any) -> bool:
    """Return whether the control plane accepts items."""
    try:
        items_from_operator(items)
    except (Misfit, PlanError):
        return False
    return True


def test_it_is_a_schema_that_names_every_key() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    for kind, keys in ITEM_KEYS.items():
        assert SCHEMA["$defs"][kind]["properties"].keys() == keys
    forms = {
        form["properties"]["type"]["const"]: form["properties"].keys() for form in SCHEMA["$defs"]["verify"]["oneOf"]
    }
    assert {kind: keys | ({"cmd"} if kind == "command" else set()) for kind, keys in forms.items()} == VERIFY_KEYS


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.parent.name)
def test_recipes_are_valid(path: Path) -> None:
    document = json.loads(path.read_text(encoding="utf-8"))
    VALIDATOR.validate(document)
    VALIDATOR.validate(document if isinstance(document, dict) else {"installs": document, "devices": "web", "order": 7})


@pytest.mark.parametrize(
    "item",
    [
        COPY | {"owner": ["root", None], "from": ["private.key", "chain.pem"], "to": ["/a", "/b"], "mode": "0640"},
        COPY | {"verify": TLS | {"server_name": "a.example", "starttls": "smtp"}, "write": "in_place", "enabled": False},
        COPY | {"from": ["bundle.jks?alias=tomcat"], "check": ["nginx", "-t"], "ob_type": "ca", "ob_id": 3, "tags": ["x"]},
        EXEC | {"env": {"A": "b"}, "timeout_ms": 600_000, "run_as": "www", "verify": {"type": "command", "cmd_argv": ["x"]}},
        {"id": 1, "type": "exec", "cmd": "systemctl reload nginx", "continue_on_error": True, "depends_on": []},
        {"id": 1, "type": "import_ca", "ob_id": 7, "ob_name": "lab"},
    ],
)  # fmt: skip
def test_what_both_accept(item: dict[str, Any]) -> None:
    assert list(VALIDATOR.iter_errors([item])) == []
    assert read([item]) or item.get("ob_type") == "ca"


@pytest.mark.parametrize(
    "item",
    [
        1, {}, {"id": 1}, {"type": "copy"}, COPY | {"type": "cpoy"}, COPY | {"form": []}, COPY | {"from": []},
        COPY | {"from": ["fullchian.pem"]}, COPY | {"to": ["etc/a.pem"]}, COPY | {"to": ["/a/../b"]}, COPY | {"to": ["/.."]},
        COPY | {"mode": "0999"}, COPY | {"mode": 640}, COPY | {"write": "inplace"}, COPY | {"check": "nginx -t"},
        COPY | {"verify": {"type": "tls", "host": "x"}}, COPY | {"verify": TLS | {"port": 0}},
        COPY | {"verify": TLS | {"starttls": "sip"}}, COPY | {"verify": {"type": "ping"}}, COPY | {"enabled": "yes"},
        COPY | {"verify": {"type": "command", "cmd_argv": []}}, COPY | {"id": ""}, COPY | {"id": "x" * 201},
        COPY | {"ob_id": -1}, COPY | {"ob_type": "key"}, COPY | {"tags": "web"}, COPY | {"depends_on": "x"},
        {"id": 1, "type": "exec"}, EXEC | {"timeout_ms": 0}, EXEC | {"timeout_ms": 600_001}, EXEC | {"env": {"A": 1}},
        {"id": 1, "type": "import_ca"}, EXEC | {"id": True},
    ],
)  # fmt: skip
def test_what_both_refuse(item: Any) -> None:
    assert not read([item])
    assert not VALIDATOR.is_valid([item])
