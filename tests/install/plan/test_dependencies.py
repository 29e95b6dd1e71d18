"""The certificates of an item, why it waits, and whether its command has run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import pytest
from planner_world import RELOAD, TLS, cert, copy, run

from certctrl.install.plan.dependencies import (
    Binding,
    activation_key,
    bind,
    connected_groups,
    copies_below,
    depended_on,
    enabled,
    gathered,
)
from certctrl.install.plan.values import DesiredCa, DesiredCert
from certctrl.model.plan import ExecAction, ImportCaAction, InstallItem, ObjectType, VerifyCommand

CERTS = {1: cert(1), 2: cert(2), 3: cert(3, "")}
CAS = {n: DesiredCa(ca_id=n, name="Private", fingerprint=f"f{n}") for n in (6, 7)}
CA = ObjectType.CA

# --- bindings and waits -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        (copy("x", 1), Binding(certs=(1,))),
        (copy("x", 3), Binding(certs=(3,), waits="certificate 3 is not on this host")),
        (copy("x", 9), Binding(certs=(9,), waits="certificate 9 is not on this host")),
        (copy("x", None, ob_name="a2.example"), Binding(certs=(2,))),
        (copy("x", None, ob_name="none"), Binding(waits="there is no certificate 'none' here")),
        (copy("x", None), Binding(waits="it names no certificate")),
        (run("x", ob_id=9), Binding(certs=(9,), waits="certificate 9 is not on this host")),
        (run("x", ob_name="a1.example"), Binding(certs=(1,))),
        (run("x"), Binding(certs=(1, 2, 3))),
        (run("x", "c2", "c1"), Binding(certs=(2, 1))),
        (run("x", "c3", "c8", "c1"), Binding(certs=(3, 8, 1))),
        (run("x", "c9", "c8", "c3"), Binding(certs=(9, 8, 3), waits="certificate 9, 8, 3 is not on this host")),
        (run("x", "c3", "c9", "c8", "c4"), Binding(certs=(3, 9, 8, 4), waits="certificate 3, 9, 8 is not on this host")),
        (run("x", "typo", "nameless"), Binding(waits="there is no certificate 'typo' here")),
        (run("x", "typo", "c1"), Binding(certs=(1,))),
        (run("x", "no1", "no2", "no3", "no4"), Binding(waits="no1, no2, no3, which it depends on, is disabled or missing")),
        (run("x", "no1", "c1"), Binding(certs=(1,))),
        (copy("x", 6, ob_type=CA, names=("ca.pem",)), Binding(cas=(6,))),
        (copy("x", 5, ob_type=CA, names=("ca.pem",)), Binding(cas=(5,), waits="CA 5 is not on this host yet")),
        (copy("x", None, ob_type=CA, ob_name="Private", names=("ca.pem",)), Binding(cas=(6,))),
        (ImportCaAction(id="x", ob_id=7), Binding(cas=(7,))),
        (ImportCaAction(id="x", ob_name="Private"), Binding(cas=(6,))),
        (ImportCaAction(id="x", ob_name="Public"), Binding(waits="there is no CA 'Public' here yet")),
        (ImportCaAction(id="x"), Binding(waits="it names no CA")),
        (run("x", "ca"), Binding(cas=(7,))),
        (run("x", "ca", "c1"), Binding(certs=(1,), cas=(7,))),
        (run("x", "ca", "c9"), Binding(certs=(9,), cas=(7,), waits="certificate 9 is not on this host")),
        (run("x", ob_type=CA, ob_id=6), Binding(cas=(6,))),
    ],
)  # fmt: skip
def test_an_item_is_about_its_object_or_those_of_its_dependencies(item: InstallItem, expected: Binding) -> None:
    others = [copy(f"c{n}", n) for n in (1, 2, 3, 4, 8, 9)]
    more = [copy("typo", None, ob_name="typo"), copy("nameless", None), ImportCaAction(id="ca", ob_id=7)]
    assert bind([item, *others, *more], CERTS, CAS)["x"] == expected
    assert bind([*others, *more, item], CERTS, CAS)["x"] == expected


def test_only_a_command_that_has_run_does_not_wait_for_a_withdrawn_certificate() -> None:
    items = [run("r", ob_id=3), run("new", ob_id=3), copy("c", 3), run("typo", ob_name="typo")]
    bound = bind(items, CERTS, {}, ran={"r", "c", "typo"})
    assert {name: bool(one.waits) for name, one in bound.items()} == {"r": False, "new": True, "c": True, "typo": True}


def test_commands_without_any_certificate_wait_for_one() -> None:
    assert bind([run("r")], {}, CAS)["r"].waits == "no certificate is on this host"


def test_a_name_means_the_first_certificate_that_is_here_to_stay() -> None:
    def named(*certs: tuple[int, str, bool]) -> tuple[int, ...]:
        here = {
            n: attrs.evolve(cert(n, generation), facts=attrs.evolve(cert(n).facts, name="www"), outgoing=outgoing)
            for n, generation, outgoing in certs
        }
        return bind([copy("c", None, ob_name="www")], here, {})["c"].certs

    assert named((5, "g", False), (3, "g", False), (7, "g", False)) == (3,)
    assert named((3, "", False), (5, "g", True)) == (5,)
    assert named((3, "g", True), (5, "g", False)) == (5,)
    second = attrs.evolve(cert(4).facts, domains=("first", "second"))
    assert bind([copy("c", None, ob_name="second")], {4: attrs.evolve(cert(4), facts=second)}, {})["c"].waits


# --- dependencies -----------------------------------------------------------------------------------------------------


def test_a_dependency_on_a_disabled_item_is_one_on_its_dependencies() -> None:
    items = [
        run("x", "off", "z", "off3"), run("off", "a", "off2", "z", enabled=False),
        run("off2", "b", "off", enabled=False), run("off3", "c", "off", enabled=False), run("z"), run("y", "z", "z"),
    ]  # fmt: skip
    assert enabled(items) == [run("x", "a", "b", "z", "c"), run("z"), run("y", "z", "z")]
    assert enabled(items[4:]) == items[4:]


def test_a_command_keeps_the_names_of_copies_that_are_all_disabled() -> None:
    """Without any dependency, it would be about all certificates."""
    off = [copy("c", 1, enabled=False), run("r0", "c", enabled=False), run("alone", enabled=False)]
    found = enabled(
        [run("a", "c"), run("b", "r0"), run("d", "alone"), run("e", "c", "gone"), run("f", "c", "alone"), *off]
    )
    assert {item.id: item.depends_on for item in found} == {
        "a": ("c",), "b": ("r0",), "d": (), "e": ("gone",), "f": ("c", "alone"),
    }  # fmt: skip


def test_dependencies_are_listed_nearest_first() -> None:
    items: list[InstallItem] = [
        run("d", "b", "c"), run("b", "a"), run("c", "a2", "gone"), run("a"), run("a2"), run("e", "d", "b"),
        run("p", "q", "a"), run("q", "p"),
    ]  # fmt: skip
    by_id = {item.id: item for item in items}
    assert depended_on("e", by_id) == ("d", "b", "c", "a", "a2")
    assert depended_on("p", by_id) == ("q", "a") and depended_on("q", by_id) == ("p", "a")
    assert depended_on("gone", by_id) == ()
    own = {name: (name,) for name in by_id} | {"a2": ("a",)}
    assert gathered(items, own) == {
        "a": (), "a2": (), "b": ("a",), "c": ("a",), "d": ("b", "a", "c"), "e": ("d", "b", "a", "c"),
        "p": ("q", "a"), "q": ("p", "a"),
    }  # fmt: skip


def test_the_copies_below_an_item() -> None:
    items = [copy("c", 1), copy("d", 1, depends_on=("r",)), run("r", "c"), ImportCaAction(id="i"), run("s", "d", "i")]
    assert copies_below(items) == {"c": (), "d": ("c",), "r": ("c",), "i": (), "s": ("d", "c")}


def test_a_group_contains_everything_planned_together() -> None:
    items = [
        copy("a", 1), run("ra", "a", env={"A": "1", "B": "2"}), run("rb", ob_id=2, env={"B": "2", "A": "1"}),
        copy("b", 3, targets=("/ssl/x", "/ssl/y")),
        copy("c", 4, targets=("/ssl/z", "/ssl/y")), ImportCaAction(id="i", ob_id=7), run("ri", "i", argv=("/bin/other",)),
        run("refused", ob_id=5, refused="unknown field"), run("lone", "gone", argv=("/bin/lone",)),
    ]  # fmt: skip
    certs = {n: cert(n) for n in range(1, 7)}
    groups = connected_groups(items, bind(items, certs, CAS), certs)
    named = [{node for node in group if node.startswith(("cert:", "ca:", "item:"))} for group in groups]
    assert sorted(map(sorted, named)) == [
        ["ca:7", "item:i", "item:ri"],
        ["cert:1", "cert:2", "item:a", "item:ra", "item:rb"],
        ["cert:3", "cert:4", "item:b", "item:c"],
        ["cert:5", "item:refused"],
        ["cert:6"],
        ["item:lone"],
    ]


# --- whether a command has run ----------------------------------------------------------------------------------------

COMMAND = run("r", "c", env={"B": "1", "A": "2"}, run_as="www", verify=TLS)
COPY = copy("c", 1, owner="root", group="ssl", mode=0o640)
BOUND = Binding(certs=(1, 2, 9), cas=(6, 9))


def key(
    command: ExecAction = COMMAND,
    *,
    copies: Sequence[InstallItem] = (COPY,),
    binding: Binding = BOUND,
    certs: Mapping[int, DesiredCert] = CERTS,
    cas: Mapping[int, DesiredCa] = CAS,
) -> str:
    return activation_key(command, binding, certs, cas, copies)


def test_recorded_keys_stay_valid() -> None:
    """Otherwise an upgrade would run every command again."""
    each = attrs.evolve(COPY, owners=("root", "www"), groups=("ssl", None), modes=(0o640, None))
    assert [key(), key(copies=[each]), key(ExecAction(id="s", cmd="echo"), copies=(), binding=Binding())] == [
        "9faa5d9d06eef22576bbc86c1aefc7865aa9af127a3bf4e2e9f03cce0bd695e8",
        "b73d71fbad058ef02911f07dbd5f7157155c786498433b0b6b6f2af7c201c8a1",
        "5e385ad0a2f70519b9ae6d5143533166328fafa576c6c6340d9a4bcc0984da2b",
    ]


@pytest.mark.parametrize(
    "changed",
    [
        {"command": attrs.evolve(COMMAND, cmd_argv=(*RELOAD, "x"))},
        {"command": attrs.evolve(COMMAND, cmd_argv=None, cmd="echo")},
        {"command": attrs.evolve(COMMAND, run_as=None)},
        {"command": attrs.evolve(COMMAND, env={"B": "1", "A": "3"})},
        {"command": attrs.evolve(COMMAND, verify=None)},
        {"command": attrs.evolve(COMMAND, verify=attrs.evolve(TLS, port=444))},
        {"command": attrs.evolve(COMMAND, verify=VerifyCommand(cmd_argv=("/bin/v",)))},
        {"copies": [attrs.evolve(COPY, id="d")]},
        {"copies": [attrs.evolve(COPY, sources=("chain.pem", "private.key"))]},
        {"copies": [attrs.evolve(COPY, targets=("/ssl/a", "/ssl/b"))]},
        {"copies": [attrs.evolve(COPY, owner=None)]},
        {"copies": [attrs.evolve(COPY, group=None)]},
        {"copies": [attrs.evolve(COPY, mode=None)]},
        {"copies": [attrs.evolve(COPY, owners=("root", None))]},
        {"copies": [attrs.evolve(COPY, groups=("ssl", None))]},
        {"copies": [attrs.evolve(COPY, modes=(0o640, None))]},
        {"copies": [COPY, attrs.evolve(COPY, id="d")]},
        {"copies": [attrs.evolve(COPY, enabled=False)]},
        {"certs": CERTS | {2: cert(2, "g2")}},
        {"certs": CERTS | {9: cert(9)}},
        {"cas": CAS | {6: attrs.evolve(CAS[6], fingerprint="other")}},
        {"cas": CAS | {9: CAS[6]}},
        {"binding": Binding(certs=(1,), cas=(6, 9))},
    ],
)
def test_a_command_is_due_after_a_change_of_itself_or_its_files(changed: dict[str, Any]) -> None:
    assert key(**changed) != key()


@pytest.mark.parametrize(
    "same",
    [
        {"command": attrs.evolve(COMMAND, id="x", tags=("t",), timeout_ms=1, continue_on_error=True, depends_on=())},
        {"command": attrs.evolve(COMMAND, env={"A": "2", "B": "1"})},
        {"copies": [attrs.evolve(COPY, tags=("t",), continue_on_error=True, check=("/bin/x",), verify=TLS)]},
        {"copies": [COPY, attrs.evolve(COPY, id="d", enabled=False), run("x"), ImportCaAction(id="i")]},
        {"certs": CERTS | {3: cert(3, "g2")}},
        {"cas": CAS | {7: attrs.evolve(CAS[7], fingerprint="other")}},
    ],
)
def test_other_changes_do_not_run_a_command_again(same: dict[str, Any]) -> None:
    assert key(**same) == key()
