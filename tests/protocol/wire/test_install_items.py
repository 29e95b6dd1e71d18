"""Install items of the plane, of this host and of an operator, and their order."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wire_items import CA, COPY, EXEC, config, one, refusal

from certctrl.errors import ConfigError, PlanError
from certctrl.model.plan import CopyAction, ObjectType, VerifyCommand, VerifyTls, WriteMethod
from certctrl.protocol.wire.install_config import (
    check_local_dependencies,
    install_config_from_wire,
    install_order,
    items_from_local,
    items_from_operator,
    new_items_from_operator,
)
from certctrl.protocol.wire.install_items import item_or_refused, unknown_keys
from certctrl.protocol.wire.reader import Misfit

# --- items -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "more",
    [
        {
            "enabled": None,
            "depends_on": "",
            "tags": [],
            "owner": "",
            "group": None,
            "mode": "",
            "check": [],
            "verify": {},
        },
        {"verify": None, "ob_id": 0, "ob_type": "", "ob_name": ""},
        {"depends_on": None, "check": "", "verify": [], "ob_id": "0", "unknown": {"x": 1}},
    ],
)
def test_unset_in_any_spelling(more: dict[str, Any]) -> None:
    bare = {name: value for name, value in COPY.items() if not name.startswith("ob_")}
    assert one(bare | more) == one(bare)


@pytest.mark.parametrize(("mode", "bits"), [("0640", 0o640), ("640", 0o640), ("0o600", 0o600), ("0444", 0o444)])
def test_modes(mode: str, bits: int) -> None:
    assert one(COPY | {"mode": mode}).mode == bits


@pytest.mark.parametrize(
    "change",
    [{"mode": 640}, {"mode": 0o640}, {"mode": "rw-r-----"}, {"mode": "4755"}, {"mode": "0888"}, {"mode": "64"},
     {"mode": "06400"}, {"from": []}, {"from": ["a"]}, {"from": "private.key"}, {"from": [""], "to": ["/a"]},
     {"to": ["/a", 5]}, {"ob_type": "user"}, {"ob_id": -1}, {"ob_id": "x"}, {"enabled": "yes"},
     {"continue_on_error": 1}, {"depends_on": "1"}, {"depends_on": [None]}, {"depends_on": [[1]]}, {"owner": 0},
     {"tags": [1]}, {"check": [1]}, {"type": ""}, {"type": 5}, {"type": None}],
)  # fmt: skip
def test_copies_that_do_not_fit(change: dict[str, Any]) -> None:
    (field,) = [name for name in change if name != "to"] or ["to"]
    assert_refused_alone(COPY | change, field)


def assert_refused_alone(item: dict[str, Any], field: str) -> None:
    """Assert that an item is refused for one field, that another one is not, and that an operator may not give it."""
    found = install_config_from_wire(config([item, CA])).items
    assert field in found[0].refused and "\n" not in found[0].refused
    assert found[1] == one(CA)
    with pytest.raises(Misfit):
        items_from_operator([item])
    with pytest.raises(ConfigError):
        items_from_local([item], strict=True)
    refused, other = items_from_local([item, CA])
    assert refused.id == f"local:{item['id']}" and field in refused.refused and not other.refused


@pytest.mark.parametrize(
    "change",
    [{"id": True}, {"id": 1.5}, {"id": None}, {"id": ""}, {"id": "x" * 201}, {"id": "a\nb"}, {"id": "local:1"}],
)
def test_an_item_without_a_usable_id_refuses_the_whole_config(change: dict[str, Any]) -> None:
    assert refusal(config([COPY | change])).reason == "schema"


def test_a_refused_item_is_known_as_far_as_it_fits() -> None:
    """Its object, its dependencies and the destinations of its files still count."""
    item = COPY | {"mode": "x", "depends_on": [3], "continue_on_error": True, "enabled": "no", "ob_name": "a"}
    copy, _ = install_config_from_wire(config([item, CA])).items
    assert copy == CopyAction(
        id="1",
        sources=("private.key", "fullchain.pem"),
        targets=("/a.key", "/a.pem"),
        ob_type=ObjectType.CERT,
        ob_id=7,
        ob_name="a",
        depends_on=("3",),
        continue_on_error=True,
        refused="enabled: expected true or false, got text",
    )


def test_only_the_agent_refuses_an_item() -> None:
    assert not one(COPY | {"refused": "no"}).refused


def test_a_copy_with_everything() -> None:
    verify = {"type": "tls", "host": "::1", "port": "8443", "server_name": "a.example", "starttls": "smtp"}
    item = COPY | {"owner": "root", "group": "ssl-cert", "mode": "0640", "check": ["/x", "{staged}"], "verify": verify,
                   "tags": ["web"], "ob_name": "a.example", "enabled": False, "continue_on_error": True}  # fmt: skip
    assert one(item) == CopyAction(
        id="1", sources=("private.key", "fullchain.pem"), targets=("/a.key", "/a.pem"), owner="root",
        group="ssl-cert", mode=0o640, check=("/x", "{staged}"), tags=("web",), ob_type="cert", ob_id=7,
        ob_name="a.example", enabled=False, continue_on_error=True,
        verify=VerifyTls(host="::1", port=8443, server_name="a.example", starttls="smtp"),
    )  # fmt: skip


def test_each_file_may_have_its_own_owner_group_and_mode() -> None:
    copy = one(COPY | {"owner": ["root", None], "group": ["ssl-cert", "www"], "mode": ["0640", "0644"]})
    assert isinstance(copy, CopyAction) and not copy.refused
    assert [copy.owner_of(n) for n in (0, 1)] == ["root", None]
    assert [copy.group_of(n) for n in (0, 1)] == ["ssl-cert", "www"]
    assert [copy.mode_of(n) for n in (0, 1)] == [0o640, 0o644]
    for wrong in ({"mode": ["0640"]}, {"owner": ["a", "b", "c"]}, {"group": [1, 2]}, {"mode": ["640", 420]}):
        assert one(COPY | wrong).refused
    assert one(COPY | {"modes": [1, 2], "owners": ["x"]}) == one(COPY), "no keys of the wire"


def test_a_copy_may_write_in_place() -> None:
    assert one(COPY).write == one(COPY | {"write": "replace"}).write == WriteMethod.REPLACE
    assert one(COPY | {"write": "in_place"}).write is WriteMethod.IN_PLACE
    for wrong in ("append", 1, ["in_place"]):
        assert one(COPY | {"write": wrong}).refused == "write: expected one of replace, in_place"


@pytest.mark.parametrize(
    ("item", "argv", "line"),
    [
        ({"cmd_argv": ["/x", "-a"]}, ("/x", "-a"), None),
        ({"cmd": ["/x", "-a"]}, ("/x", "-a"), None),
        ({"cmd_argv": [], "cmd": ["/x"]}, ("/x",), None),
        ({"cmd_argv": ["/x"], "cmd": "rm -rf /"}, ("/x",), None),
        ({"cmd_argv": ["/x"], "cmd": ""}, ("/x",), None),
        ({"cmd_argv": None, "cmd": "x | y"}, None, "x | y"),
    ],
)
def test_commands(item: dict[str, Any], argv: tuple[str, ...] | None, line: str | None) -> None:
    found = one({"type": "exec"} | item)
    assert (found.cmd_argv, found.cmd) == (argv, line)
    assert found.timeout_ms == 30_000


def test_an_exec_with_everything() -> None:
    item = EXEC | {"id": 1, "depends_on": [], "timeout_ms": 600_000, "run_as": "www-data", "env": {"A": "1", "B": ""},
                   "verify": {"type": "command", "cmd_argv": ["/check"]}}  # fmt: skip
    found = one(item)
    assert (found.timeout_ms, found.run_as, found.env) == (600_000, "www-data", {"A": "1", "B": ""})
    assert found.verify == VerifyCommand(cmd_argv=("/check",))
    assert one(item | {"timeout_ms": 0, "env": []}).timeout_ms == 30_000


@pytest.mark.parametrize(
    "change",
    [{"cmd_argv": []}, {"cmd_argv": ["/x", 1]}, {"cmd_argv": ["/x", ""]}, {"cmd_argv": "/x"},
     {"cmd_argv": None, "cmd": 5}, {"timeout_ms": -1}, {"timeout_ms": 600_001}, {"timeout_ms": 1.5},
     {"env": "A=1"}, {"env": {"A": 1}}, {"run_as": 0},
     {"verify": "x"}, {"verify": {"type": "command"}}, {"verify": {"type": "tls", "host": "a"}},
     {"verify": {"type": "tls", "host": "a", "port": 0}}, {"verify": {"type": "tls", "port": 443}},
     {"verify": {"type": "tls", "host": "a", "port": 443, "starttls": "telnet"}}, {"verify": {"host": "a"}}],
)  # fmt: skip
def test_commands_that_do_not_fit(change: dict[str, Any]) -> None:
    assert_refused_alone(EXEC | {"depends_on": []} | change, "cmd" if "cmd" in change else next(iter(change)))


@pytest.mark.parametrize(
    ("item", "why"),
    [
        (CA | {"type": "reboot"}, "type: unknown item type reboot"),
        (CA | {"type": "Copy"}, "type: unknown item type Copy"),
        (EXEC | {"verify": {"type": "prayer"}}, "verify.type: unknown verify type prayer"),
        (EXEC | {"verify": {"type": "tls", "host": "a", "port": 1, "starttls": "telnet"}}, "verify.starttls: expected"),
    ],
)
def test_an_item_for_a_newer_agent_is_refused_alone(item: dict[str, Any], why: str) -> None:
    copy, refused = install_config_from_wire(config([COPY, item])).items
    assert copy == one(COPY)
    assert (refused.id, refused.depends_on) == (str(item["id"]), tuple(map(str, item.get("depends_on", ()))))
    assert refused.refused.startswith(why)


# --- order -------------------------------------------------------------------------------------------------


def ca(item_id: object, *needs: object) -> dict[str, Any]:
    return {"id": item_id, "type": "import_ca", "depends_on": list(needs)}


def levels(*items: dict[str, Any]) -> list[list[str]]:
    found = install_config_from_wire(config(list(items)))
    return [[item.id for item in level] for level in install_order(found.items)]


def test_independent_items_share_a_level() -> None:
    assert levels() == []
    assert levels(ca(4, 2, 3), ca(1), ca(2, 1), ca(3, "1"), ca("free")) == [["1", "free"], ["2", "3"], ["4"]]
    assert levels(ca(1), ca(2, 1, 1)) == [["1"], ["2"]]


@pytest.mark.parametrize(
    ("items", "reason"),
    [
        ([ca(1, 1)], "cycle"),
        ([ca(1, 2), ca(2, 1)], "cycle"),
        ([ca(9), ca(1, 3), ca(2, 1), ca(3, 2)], "cycle"),
        ([ca(1), ca("1")], "duplicate-id"),
        ([ca(1), ca(1)], "duplicate-id"),
        ([ca(1, 2)], "unknown-dependency"),
        ([ca(1, "local:2")], "unknown-dependency"),
    ],
)
def test_dependencies_without_an_order(items: list[dict[str, Any]], reason: str) -> None:
    assert refusal(config(items)).reason == reason


@pytest.mark.parametrize(
    ("written", "host"),
    [("[::1]", "::1"), ("[fe80::1%eth0]", "fe80::1%eth0"), ("::1", "::1"), ("192.0.2.1", "192.0.2.1")],
)
def test_an_address_may_be_written_in_brackets(written: str, host: str) -> None:
    item = one(EXEC | {"depends_on": [], "verify": {"type": "tls", "host": written, "port": 1}})
    assert item.verify == VerifyTls(host=host, port=1)


NO_NAMES = (
    "a.example\r\nQUIT", "a.example\n", "a b", "a\tb", "a/b", "a:1", "a@b", "<b>", "a,b", "*.example", "a..b", ".a", "a" * 64,
    "[a.example]", "[", "fe80::1%a b", "a\u2028b", "a\u200bb", "a\0b", "a\x7f",
)  # fmt: skip


@pytest.mark.parametrize("text", NO_NAMES)
@pytest.mark.parametrize("field", ["host", "server_name"])
def test_endpoints_are_named_by_names(field: str, text: str) -> None:
    """Any other text of the plane would reach a resolver or, in SNI, a server."""
    verify = {"type": "tls", "host": "a.example", "port": 1} | {field: text}
    item = item_or_refused(EXEC | {"depends_on": [], "verify": verify}, "installs[0]")
    assert item.refused == f"verify.{field}: expected a domain name or an address"


@pytest.mark.parametrize(
    "name", ["a", "localhost", "a.example.", "b_1.example", "bücher.example", "例え.テスト", "हिन्दी.example"]
)
def test_names_of_endpoints(name: str) -> None:
    verify = {"type": "tls", "host": name, "port": 1, "server_name": name}
    assert one(EXEC | {"depends_on": [], "verify": verify}).verify == VerifyTls(host=name, port=1, server_name=name)


def test_an_empty_server_name_is_unset() -> None:
    verify = {"type": "tls", "host": "::1", "port": 1, "server_name": ""}
    assert one(EXEC | {"depends_on": [], "verify": verify}).verify == VerifyTls(host="::1", port=1)


@given(st.data(), st.integers(1, 12))
def test_every_item_comes_after_its_dependencies(data: st.DataObject, count: int) -> None:
    edges = {n: data.draw(st.sets(st.integers(0, count - 1), max_size=3)) for n in range(count)}
    items = [ca(n, *sorted(edges[n])) for n in range(count)]
    try:
        found = levels(*items)
    except PlanError as error:
        assert error.reason == "cycle"
        assert has_cycle(edges)
        return
    assert not has_cycle(edges)
    assert sorted(int(name) for level in found for name in level) == list(range(count))
    done: set[int] = set()
    for level in found:
        assert all(edges[int(name)] <= done for name in level)
        done |= {int(name) for name in level}


def has_cycle(edges: dict[int, set[int]]) -> bool:
    left = {n: set(needs) for n, needs in edges.items()}
    while free := [n for n, needs in left.items() if not needs & left.keys()]:
        for n in free:
            del left[n]
    return bool(left)


# --- this host's own rows ------------------------------------------------------------------------------------


def test_local_rows() -> None:
    rows = [{"id": "copy", **{k: v for k, v in COPY.items() if k != "id"}},
            {"id": 2, "type": "exec", "cmd_argv": ["/x"], "depends_on": ["copy", "12"]}]  # fmt: skip
    copy, run = items_from_local(rows)
    assert copy.id == "local:copy"
    assert run.id == "local:2"
    assert run.depends_on == ("local:copy", "12"), "a local id if there is one, otherwise an id of the plane"
    planes = install_config_from_wire(config([ca(12)])).items
    assert [[item.id for item in level] for level in install_order((*planes, copy, run))] == [
        ["12", "local:copy"],
        ["local:2"],
    ]
    assert items_from_local([]) == ()


@pytest.mark.parametrize(
    ("rows", "path"),
    [
        ([CA | {"enable": True}], "$[0].enable"),
        ([CA, {"id": 9, "type": "exec"}], "$[1].cmd_argv"),
        ([CA, CA], "$[1].id"),
        ([CA | {"id": "3"}, CA], "$[1].id"),
        ([CA | {"type": "reboot"}], "$[0].type"),
        ([ca(1, 2), ca(2, 1)], "$"),
        ([5], "$[0]"),
        ([{}], "$[0].type"),
    ],
)
def test_local_rows_that_are_wrong(rows: list[Any], path: str) -> None:
    with pytest.raises(ConfigError) as caught:
        items_from_local(rows, strict=True)
    assert caught.value.file == "installs.local.json"
    assert caught.value.path == path
    assert str(caught.value).startswith(f"installs.local.json: {path}: ")


STRANGE_LOCAL: list[tuple[dict[str, Any], str]] = [
    ({"enable": True}, "enable: unknown key; did you mean enabled?"),
    ({"type": "reboot"}, "type: unknown item type reboot (upgrade this agent, or remove the item)"),
    ({"write": "append"}, "write: expected one of replace, in_place"),
    ({"ob_type": "user"}, "ob_type: expected cert or ca"),
    ({"mode": "rw"}, "mode: expected octal text"),
    ({"to": []}, "to: expected a list as long as from: 2 paths, got 0"),
    ({"verify": {"type": "tls", "host": "a", "port": 1, "starttls": "telnet"}}, "verify.starttls: expected one of"),
    ({"verify": {"type": "tls", "host": "a", "port": 1, "start_tls": "smtp"}}, "verify.start_tls: unknown key"),
    ({"verify": {"type": "prayer"}}, "verify.type: unknown verify type prayer"),
    ({"verify": {"type": []}}, "verify.type: expected text, got a list"),
    ({"verify": {"type": {}}}, "verify.type: expected text, got an object"),
]


@pytest.mark.parametrize(("change", "why"), STRANGE_LOCAL)
def test_a_local_row_that_does_not_fit_is_refused_alone(change: dict[str, Any], why: str) -> None:
    """As for the plane's items; its dependents still know it."""
    refused, user, other = items_from_local([COPY | change, ca("b", COPY["id"]), ca("c")])
    assert refused.refused.startswith(why)
    assert (refused.id, user.depends_on) == ("local:1", ("local:1",))
    assert not user.refused and not other.refused
    with pytest.raises(ConfigError):
        items_from_local([COPY | change], strict=True)


@pytest.mark.parametrize("rows", [[CA, CA], [ca(1, 2), ca(2, 1)], [{}], [CA | {"id": None}]])
def test_without_usable_ids_the_whole_local_file_is_refused(rows: list[Any]) -> None:
    with pytest.raises(ConfigError):
        items_from_local(rows)


def test_local_rows_may_depend_on_local_and_plane_items() -> None:
    rows = items_from_local([ca("a"), ca("b", "a"), ca("c", "local:a", 12), ca("d")])
    check_local_dependencies(rows, ["12"])
    assert [row.depends_on for row in rows] == [(), ("local:a",), ("local:a", "12"), ()]


@pytest.mark.parametrize("name", ["aa", "local:aa", "12", "local:12"])
def test_an_unknown_dependency_is_reported_with_the_known_ids(name: str) -> None:
    rows = items_from_local([ca("a"), ca("b", "a", name)])
    with pytest.raises(ConfigError) as caught:
        check_local_dependencies(rows, ["11", "x\x1b"])
    assert (caught.value.file, caught.value.path) == ("installs.local.json", "$[1].depends_on")
    for part in (f"item b depends on {name}, which", "a, b here", "the plane's 11, x\\x1b"):
        assert part in str(caught.value)


# --- items of an operator --------------------------------------------------------------------------------------


def test_items_of_an_operator() -> None:
    rows = [COPY, EXEC, CA | {"note": "unknown keys are for newer agents"}]
    assert items_from_operator(rows) == install_config_from_wire(config(rows)).items
    assert items_from_operator([]) == ()
    assert unknown_keys(rows) == ["installs[2].note"]


@pytest.mark.parametrize(
    ("items", "why"),
    [
        ("x", "installs: expected a list, got text"),
        ([CA | {"id": n} for n in range(1001)], "installs: more than 1000 items"),
        ([1], "installs[0]: expected an object, got a whole number"),
        ([COPY, {"type": "copy"}], "installs[1].id: missing"),
        ([COPY | {"type": "delete"}], "installs[0].type: unknown item type delete"),
        ([COPY | {"type": "Copy"}], "installs[0].type: unknown item type Copy; did you mean copy?"),
        ([COPY | {"ownr": "root"}], "installs[0].ownr: unknown key; did you mean owner?"),
        ([EXEC | {"timeout": 5}], "installs[0].timeout: unknown key; did you mean timeout_ms?"),
        (
            [COPY | {"verify": {"type": "tls", "host": "x", "port": 1, "servername": "x"}}],
            "installs[0].verify.servername: unknown key; did you mean server_name?",
        ),
        (
            [COPY | {"from": ["private.key", "fullchain.pme"]}],
            "installs[0].from[1]: unknown file fullchain.pme; did you mean fullchain.pem?",
        ),
        (
            [COPY | {"from": ["ca.pem", "zz"]}],
            "installs[0].from[0]: unknown file ca.pem; did you mean chain.pem?",
        ),
        ([COPY | {"to": ["/one"]}], "installs[0].to: expected a list as long as from: 2 paths, got 1"),
        ([COPY | {"to": ["/a", "relative"]}], "installs[0].to[1]: expected an absolute path without .."),
        ([COPY | {"to": ["/a/../b", "/c"]}], "installs[0].to[0]: expected an absolute path without .."),
        ([COPY | {"to": ["/a\0", "/c"]}], "installs[0].to[0]: expected an absolute path without .."),
        ([COPY | {"verify": {"type": "tls", "host": "x"}}], "installs[0].verify.port: missing"),
        ([COPY | {"verify": {"type": "ping"}}], "installs[0].verify.type: unknown verify type ping"),
        ([EXEC | {"timeout_ms": 0}], "installs[0].timeout_ms: expected milliseconds above 0"),
        ([EXEC | {"cmd_argv": None, "cmd": ["/x", 1]}], "installs[0].cmd[1]: expected text, got a whole number"),
        ([EXEC | {"env": {"A\n": 1}}], "installs[0].env.A\\n: expected text, got a whole number"),
        ([{"id": 1, "type": "import_ca"}], "installs[0].ob_id: expected the id of a CA"),
    ],
)
def test_an_item_of_an_operator_that_does_not_fit(items: object, why: str) -> None:
    with pytest.raises(Misfit) as caught:
        items_from_operator(items)
    assert str(caught.value) == why
    assert str(caught.value).startswith(f"{caught.value.path}: ")


USELESS: list[tuple[list[dict[str, Any]], str]] = [
    ([COPY | {"to": ["/a", "/b"]}, COPY | {"id": 9, "to": ["/x", "/b"]}], "[1].to[1]: item 1 writes /b, too"),
    ([COPY | {"to": ["/one", "/one"]}], "[0].to[1]: item 1 writes /one, too"),
    ([COPY | {"to": ["/a//b", "/c"]}], "[0].to[0]: it is not normalized ('..', '.', '//' or a final '/')"),
    ([COPY | {"mode": "0644"}], "[0].mode: 0644 is too open: a private key at most 0640"),
    ([COPY | {"mode": ["0640", "0664"]}], "[0].mode[1]: 0664 is too open: a public file at most 0644"),
    ([COPY | {"to": ["/a", "/c/"]}], "[0].to[1]: it is not normalized ('..', '.', '//' or a final '/')"),
]
"""Items that every host refuses -> why."""


@pytest.mark.parametrize(("rows", "why"), USELESS)
def test_targets_and_modes_that_every_host_refuses_are_mistakes(rows: list[dict[str, Any]], why: str) -> None:
    """The commands name them; a host refuses only the item, and stored items may be older than these checks."""
    with pytest.raises(Misfit) as caught:
        new_items_from_operator(rows)
    assert str(caught.value) == f"installs{why}"
    with pytest.raises(ConfigError) as local:
        items_from_local(rows, strict=True)
    assert str(local.value) == f"installs.local.json: ${why}"
    assert len(items_from_operator(rows)) == len(items_from_local(rows)) == len(rows)


def test_a_disabled_item_may_have_the_targets_of_another() -> None:
    rows = [COPY | {"id": 9, "enabled": False}, COPY]
    for each in (rows, rows[::-1]):
        assert len(new_items_from_operator(each)) == len(items_from_local(each, strict=True)) == 2


def test_a_new_copy_names_a_certificate() -> None:
    """A host would wait for it forever."""
    rows = [{name: value for name, value in COPY.items() if not name.startswith("ob_")}]
    with pytest.raises(Misfit, match=r"installs\[0\]\.ob_name: missing"):
        new_items_from_operator(rows)
    assert items_from_operator(rows)


@pytest.mark.parametrize(
    ("items", "reason", "why"),
    [
        ([CA, CA], "duplicate-id", "twice"),
        ([EXEC], "unknown-dependency", "item 2 depends on 1, which does not exist"),
        (
            [CA | {"id": "copy-nginx"}, CA | {"id": "b", "depends_on": ["copy_nginx"]}],
            "unknown-dependency",
            r"depends on copy_nginx, which does not exist; did you mean copy-nginx\?",
        ),
        ([ca(1, 2) | {"ob_id": 1}, ca(2, 1) | {"ob_id": 1}], "cycle", "cycle: 1, 2"),
        ([CA | {"id": "local:1"}], "schema", "reserved"),
    ],
)
def test_items_of_an_operator_that_do_not_fit_together(items: object, reason: str, why: str) -> None:
    with pytest.raises(PlanError, match=why) as caught:
        items_from_operator(items)
    assert caught.value.reason == reason
