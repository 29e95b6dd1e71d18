"""Fields of install items at their limits, and the messages of refusals."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from wire_items import CA, COPY, EXEC, config, one

from certctrl.errors import ConfigError, PlanError
from certctrl.model.plan import CopyAction, ExecAction, ImportCaAction, ObjectType, UnknownAction, VerifyTls
from certctrl.protocol.wire.install_config import (
    check_local_dependencies,
    install_config_from_wire,
    items_from_local,
    items_from_operator,
)
from certctrl.protocol.wire.install_items import item_or_refused
from certctrl.protocol.wire.reader import Misfit

RUN = EXEC | {"depends_on": []}
TLS = {"type": "tls", "host": "a", "port": 1}
LONG_LIST = [str(n) for n in range(1001)]

REFUSALS: list[tuple[dict[str, Any], str]] = [
    (COPY | {"from": []}, "from: nothing to copy"),
    (COPY | {"from": None}, "from: nothing to copy"),
    (COPY | {"from": ["private.key"]}, "to: expected a list as long as from: 1 paths, got 2"),
    (COPY | {"owner": ["a"]}, "owner: expected one value, or a list as long as from: 2, got 1"),
    (COPY | {"group": ["a", "b", "c"]}, "group: expected one value, or a list as long as from: 2, got 3"),
    (COPY | {"mode": ["0600"]}, "mode: expected one value, or a list as long as from: 2, got 1"),
    (COPY | {"owner": LONG_LIST}, "owner: more than 1000 items"),
    (COPY | {"group": [1, 2]}, "group: expected text, got a whole number"),
    (COPY | {"mode": ["0640", 420]}, "mode: expected text, got a whole number"),
    (COPY | {"depends_on": LONG_LIST}, "depends_on: more than 1000 items"),
    (COPY | {"depends_on": [""]}, "depends_on: expected an id (integer, or 1 to 200 printable characters), got empty text"),
    (COPY | {"depends_on": ["x" * 201]}, "depends_on: expected an id"),
    (COPY | {"mode": "0o640x"}, 'mode: expected octal text such as "0640"'),
    (COPY | {"mode": "x" * 9}, "mode: longer than 8 characters"),
    (COPY | {"ob_id": -1}, "ob_id: expected an integer from 0"),
    (RUN | {"cmd_argv": None}, "cmd_argv: no command"),
    (RUN | {"cmd_argv": None, "cmd": 0}, "cmd: expected text, got a whole number"),
    (RUN | {"cmd_argv": None, "cmd": {}}, "cmd: expected text, got an object"),
    (RUN | {"cmd_argv": None, "cmd": []}, "cmd_argv: no command"),
    (RUN | {"env": {"A": 1}}, "env.A: expected text, got a whole number"),
    (RUN | {"env": []}, ""),
    (RUN | {"env": [1]}, "env: expected an object, got a list"),
    (RUN | {"timeout_ms": 600_001}, "timeout_ms: expected an integer from 0 to 600000"),
    (RUN | {"verify": {"type": "command"}}, "verify.cmd_argv: no command"),
    (RUN | {"verify": {"type": "command", "cmd": ["/x", ""]}}, "verify.cmd[1]: empty"),
    (RUN | {"verify": TLS | {"host": "x" * 256}}, "verify.host: longer than 255 characters"),
    (RUN | {"verify": TLS | {"port": 65_536}}, "verify.port: expected an integer from 1 to 65535"),
    (RUN | {"verify": TLS | {"host": ""}}, "verify.host: missing"),
    (RUN | {"verify": {"type": "x" * 41}},
     f"verify.type: unknown verify type {'x' * 39}… (upgrade this agent, or remove the item)"),
    (CA | {"type": "x" * 41}, f"type: unknown item type {'x' * 39}… (upgrade this agent, or remove the item)"),
    (CA | {"type": "imports_ca"},
     "type: unknown item type imports_ca; did you mean import_ca? (upgrade this agent, or remove the item)"),
]  # fmt: skip


@pytest.mark.parametrize(("item", "why"), REFUSALS)
def test_a_refused_item_says_which_field_does_not_fit(item: dict[str, Any], why: str) -> None:
    found = item_or_refused(item, "installs[0]")
    assert found.refused.startswith(why) and bool(found.refused) is bool(why)
    assert found.id == str(item["id"])


@pytest.mark.parametrize(("mode", "bits"), [("0o640", 0o640), ("0o0640", 0o640), ("0640", 0o640), ("777", 0o777)])
def test_modes_are_octal_in_each_spelling(mode: str, bits: int) -> None:
    assert one(COPY | {"mode": mode}).mode == bits


def test_a_variable_without_a_value_is_empty() -> None:
    assert one(RUN | {"env": {"A": None, "B": "x"}}).env == {"A": "", "B": "x"}


def test_an_id_may_have_two_hundred_characters() -> None:
    item = item_or_refused(CA | {"id": "x" * 200, "depends_on": ["y" * 200]}, "installs[0]")
    assert (item.id, item.depends_on, item.refused) == ("x" * 200, ("y" * 200,), "")


@pytest.mark.parametrize("item", [{"type": "copy"}, {"type": "reboot"}, {"type": 5, "id": ""}, CA | {"id": None}])
def test_an_item_without_an_id_cannot_be_refused_alone(item: dict[str, Any]) -> None:
    with pytest.raises(Misfit) as caught:
        item_or_refused(item, "installs[3]")
    assert str(caught.value) == "installs[3].id: missing"


def test_lists_may_have_a_thousand_items() -> None:
    item = item_or_refused(COPY | {"depends_on": LONG_LIST[1:]}, "installs[0]")
    assert not item.refused and item.depends_on == tuple(LONG_LIST[1:])


@pytest.mark.parametrize("zone", ["eth0", "br-lan.10", "x" * 15])
def test_an_address_may_have_a_zone(zone: str) -> None:
    verify = {"type": "tls", "host": f"fe80::1%{zone}", "port": 65_535}
    assert one(RUN | {"verify": verify}).verify == VerifyTls(host=f"fe80::1%{zone}", port=65_535)
    long = one(RUN | {"verify": verify | {"host": f"fe80::1%{'x' * 16}"}})
    assert long.refused == "verify.host: expected a domain name or an address"


# --- refused items -----------------------------------------------------------------------------------------


def copy(sources: Any = ("private.key", "fullchain.pem"), targets: Any = (), **more: Any) -> CopyAction:
    return CopyAction(id="1", sources=sources, targets=targets, **({"ob_type": ObjectType.CERT, "ob_id": 7} | more))


CA_ACTION = ImportCaAction(id="3", ob_type=ObjectType.CA, ob_id=4)
KEPT: list[tuple[dict[str, Any], Any]] = [
    (COPY | {"mode": 5}, copy(targets=("/a.key", "/a.pem"))),
    (COPY | {"to": ["/a"]}, copy()),
    (COPY | {"to": ["/a", 5]}, copy()),
    (COPY | {"from": "private.key"}, copy(())),
    (COPY | {"from": [5], "to": 5}, copy(())),
    (COPY | {"to": [5], "ob_id": "x", "ob_type": "y", "ob_name": 5, "tags": 5, "depends_on": 5, "enabled": 5},
     copy(ob_id=None, ob_type=None)),
    (RUN | {"cmd_argv": 5, "tags": ["a"]}, ExecAction(id="2", tags=("a",))),
    (CA | {"enabled": 5}, CA_ACTION),
    (CA | {"enabled": False, "continue_on_error": 5}, attrs.evolve(CA_ACTION, enabled=False)),
    (CA | {"type": "reboot"}, UnknownAction(id="3", ob_type=ObjectType.CA, ob_id=4)),
    (CA | {"type": 5}, UnknownAction(id="3", ob_type=ObjectType.CA, ob_id=4)),
]  # fmt: skip


@pytest.mark.parametrize(("item", "kept"), KEPT)
def test_of_a_refused_item_the_fields_that_fit_are_kept(item: dict[str, Any], kept: object) -> None:
    """Its dependents still find it, and its files are still removed."""
    refused = item_or_refused(item, "installs[0]")
    assert refused.refused
    assert attrs.evolve(refused, refused="") == kept


# --- items of an operator ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"ob_type": "ca", "from": ["ca.pem", "meta.json"]},
        {"from": ["bundle.pfx?alias=web", "bundle.jks?alias=a.b-c_1"]},
        {"targets": "a key that resembles a known one only a little is for a newer agent"},
        {"owned_by": 1, "name": 2, "check_all": 3},
    ],
)
def test_items_that_an_operator_may_give(change: dict[str, Any]) -> None:
    (item,) = items_from_operator([COPY | change])
    assert isinstance(item, CopyAction) and item.sources == tuple(change.get("from", COPY["from"]))


@pytest.mark.parametrize(
    ("item", "why"),
    [
        (COPY | {"ob_type": "ca"}, "from[0]: unknown file private.key; there are ca.pem, ca.der, meta.json"),
        (COPY | {"ob_type": "ca", "from": ["ca.pem?alias=x", "ca.der"]},
         "from[0]: unknown file ca.pem?alias=x; did you mean ca.pem?"),
        (COPY | {"from": ["bundle.pfx?alias=-", "private.key"]}, "from[0]: unknown file bundle.pfx?alias=-"),
        (COPY | {"from": ["private.key", "bundle.jks?alias="]}, "from[1]: unknown file bundle.jks?alias="),
        (COPY | {"from": ["private.key?alias=x", "chain.pem"]}, "from[0]: unknown file private.key?alias=x"),
        (COPY | {"from": ["private.key", "x" * 41]}, f"from[1]: unknown file {'x' * 39}…; there are private.key, "),
        (RUN | {"timeout_ms": 0}, "timeout_ms: expected milliseconds above 0"),
        (RUN | {"timeout_ms": "0"}, "timeout_ms: expected milliseconds above 0"),
        (CA | {"ob_id": 0}, "ob_id: expected the id of a CA"),
    ],
)  # fmt: skip
def test_items_that_an_operator_may_not_give(item: dict[str, Any], why: str) -> None:
    with pytest.raises(Misfit) as caught:
        items_from_operator([item])
    assert str(caught.value).startswith(f"installs[0].{why}")


# --- local items ---------------------------------------------------------------------------------------------


def local(name: str, *needs: str) -> dict[str, Any]:
    return CA | {"id": name, "depends_on": list(needs)}


def unknown_dependency(rows: list[dict[str, Any]], planes: list[str]) -> str:
    with pytest.raises(ConfigError) as caught:
        check_local_dependencies(items_from_local(rows), planes)
    return str(caught.value)


def test_an_unknown_dependency_is_reported_with_at_most_twenty_known_ids() -> None:
    assert "here, and none from the plane (its install config may" in unknown_dependency([local("a", "x")], [])
    twenty = [f"i{n:02}" for n in range(20)]
    assert f"the plane's {', '.join(twenty)}" in unknown_dependency([local("a", "x")], twenty)
    assert unknown_dependency([local("a", "x")], twenty).endswith("i19")
    assert unknown_dependency([local("a", "x")], [*twenty, "i20"]).endswith("i19, …")
    assert unknown_dependency([local("a", "x")], ["y" * 80]).endswith(f" {'y' * 80}")
    assert unknown_dependency([local("a", "x")], ["y" * 81]).endswith(f" {'y' * 79}…")
    assert f"depends on {'x' * 79}…, which" in unknown_dependency([local("a", "x" * 81)], [])


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        ([local("a", "b"), local("b", "a")], "$: items depend on each other in a cycle: local:a, local:b"),
        ([local("a"), local("b"), local("a")], "$[2].id: the id 'local:a' is used twice"),
        ([local("a"), CA | {"id": None}], "$[1].id: missing"),
        ([local("a"), CA | {"id": ""}], "$[1].id: missing"),
    ],
)
def test_a_local_file_that_does_not_fit_says_why(rows: list[dict[str, Any]], why: str) -> None:
    with pytest.raises(ConfigError) as caught:
        items_from_local(rows)
    assert str(caught.value) == f"installs.local.json: {why}"


@pytest.mark.parametrize(
    ("items", "why"),
    [
        ([CA, CA], "the item id 3 is used twice"),
        ([CA | {"id": "x" * 81}] * 2, f"the item id {'x' * 79}… is used twice"),
        ([local("a", "b" * 81)], f"item a depends on {'b' * 79}…, which does not exist"),
        ([local("a" * 81, "b")], f"item {'a' * 79}… depends on b, which does not exist"),
        ([local(n, n) for n in "abcdef"], "items depend on each other in a cycle: a, b, c, d, e"),
        ([local("a" * 41, "a" * 41)], f"items depend on each other in a cycle: {'a' * 39}…"),
    ],
)
def test_items_without_an_order_are_named(items: list[dict[str, Any]], why: str) -> None:
    with pytest.raises(PlanError) as caught:
        install_config_from_wire(config(items))
    assert str(caught.value) == why
