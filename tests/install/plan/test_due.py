"""Which commands run and which endpoints are verified, for which reason."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from planner_world import HOST, POLICY, RELOAD, TLS, World, cert, copy, only_set, plan, run, runs

from certctrl.install.plan.policy import Grant
from certctrl.install.plan.values import DesiredCert, InstallPlan, Run, Verification
from certctrl.model.plan import InstallItem, VerifyCommand

OTHER = ("/bin/other",)
PAIR = [copy("c1", 1, verify=TLS), run("r1", "c1"), copy("c2", 2), run("r2", "c2", verify=attrs.evolve(TLS, port=444))]


def world_of(items: list[InstallItem], *certs: DesiredCert) -> World:
    """Return a host on which everything is done."""
    world = World()
    world.apply(plan(items, *certs), certs)
    return world


def again(items: list[InstallItem], world: World, *certs: DesiredCert, **more: Any) -> InstallPlan:
    return plan(items, *certs, destinations=world.destinations, activations=world.activations, **more)


def verified(found: InstallPlan) -> dict[str, frozenset[str]]:
    """Return the verifications, with the certificates whose files are their only reason."""
    return {one.item: one.for_files for group in found.groups for one in group.verifications}


def test_a_command_that_is_due_first_and_one_whose_files_changed() -> None:
    (first,) = only_set(plan(PAIR, cert(1), cert(2))).steps[-1].runs
    assert attrs.evolve(first, keys={}) == Run(
        items=("r1", "r2"), grant=Grant(argv=RELOAD, run_as=None, timeout=60.0, listed=True), cert_ids=(1, 2), keys={},
        why="never run before",
    )  # fmt: skip
    assert first.keys.keys() == {"r1", "r2"}
    world = world_of(PAIR, cert(1), cert(2))
    world.destinations.clear()
    (changed,) = only_set(again(PAIR, world, cert(1), cert(2))).steps[-1].runs
    both = frozenset({"cert:1", "cert:2"})
    assert changed == attrs.evolve(
        first, why="its certificates or files have changed", stale_marker=True, for_files=both
    )
    del world.activations["r2"]
    (half,) = only_set(again(PAIR, world, cert(1), cert(2))).steps[-1].runs
    assert half == attrs.evolve(first, stale_marker=True)


@pytest.mark.parametrize("tolerant", [(), ("r1",), ("r1", "r2")])
def test_a_shared_command_may_fail_if_all_its_items_say_so(tolerant: tuple[str, ...]) -> None:
    items = [attrs.evolve(item, continue_on_error=item.id in tolerant) for item in PAIR]
    (due,) = only_set(plan(items, cert(1), cert(2))).steps[-1].runs
    assert due.tolerant is (len(tolerant) == 2)


def test_finished_work_is_neither_run_nor_verified_again() -> None:
    assert again(PAIR, world_of(PAIR, cert(1), cert(2)), cert(1), cert(2)).groups == ()


def test_after_a_command_the_endpoints_of_its_items_are_verified() -> None:
    """One reload reads the files of both certificates."""
    assert verified(plan(PAIR, cert(1), cert(2))) == {"c1": frozenset({"cert:1"}), "r2": frozenset()}
    world = world_of(PAIR, cert(1), cert(2))
    del world.destinations["/ssl/c1/private.key"]
    assert verified(again(PAIR, world, cert(1), cert(2))) == {"c1": frozenset({"cert:1"})}
    world.destinations.clear()
    both = frozenset({"cert:1", "cert:2"})
    assert verified(again(PAIR, world, cert(1), cert(2))) == {"c1": frozenset({"cert:1"}), "r2": both}


def test_without_a_change_only_unproven_or_pending_are_verified() -> None:
    items: list[InstallItem] = [
        copy("x", 2, names=("chain.pem",)), copy("other", 2, verify=TLS), copy("c", 1, verify=TLS), copy("d", 1, names=()),
        copy("e", 1, names=("chain.pem",), verify=attrs.evolve(TLS, port=444)), run("all", argv=OTHER),
    ]  # fmt: skip
    world = world_of(items, cert(1), cert(2))
    assert verified(again(items, world, cert(1, proven=False), cert(2))) == {"c": frozenset(), "e": frozenset()}
    pending = attrs.evolve(cert(1), pending=("e", "gone"))
    assert verified(again(items, world, pending, cert(2))) == {"e": frozenset()}


def test_a_verification_expects_certificates_by_name() -> None:
    command = VerifyCommand(cmd_argv=OTHER)
    items = [
        copy("none", 1, names=("chain.pem",)), copy("c", 1, verify=TLS), copy("d", 1, names=("meta.json",), verify=command),
        run("r", verify=TLS, continue_on_error=True),
    ]  # fmt: skip
    one = attrs.evolve(cert(1), files=cert(1).files | {"meta.json": "meta"})
    (found,) = plan(items, one, cert(2, ""), policy=attrs.evolve(POLICY, run_as=())).groups
    grant = Grant(argv=OTHER, run_as=None, timeout=60.0, listed=True)
    assert found.verifications == (
        Verification(item="c", verify=TLS, fingerprints=("leaf1g1",), cert_ids=(1,), for_files=frozenset({"cert:1"})),
        Verification(item="d", verify=command, cert_ids=(1,), for_files=frozenset({"cert:1"}), grant=grant),
        Verification(item="r", verify=TLS, fingerprints=("leaf1g1",), cert_ids=(1, 2), tolerant=True),
    )


def test_a_group_names_its_items_and_the_copies_that_no_service_reads_yet() -> None:
    items: list[InstallItem] = [
        copy("a", 1), run("ra", "a"), copy("b", 1, names=("chain.pem",)), run("rb", "b", argv=OTHER),
        copy("c", 2, depends_on=("a",)), copy("d", 3, names=("chain.pem",), depends_on=("a",)), run("rd", ob_id=3),
        copy("e", 3, names=("meta.json",)), run("re", ob_id=3, argv=OTHER),
    ]  # fmt: skip
    three = attrs.evolve(cert(3), files=cert(3).files | {"meta.json": "meta"})
    group = only_set(plan(items, cert(1), cert(2), three, activations={"rb": "before", "re": "before"}))
    assert group.items == tuple(item.id for item in items)
    assert group.unserved == {"a"}
    assert only_set(plan(items, cert(1), cert(2), three)).unserved == {"a", "b", "d", "e"}, "c has no command"


def test_a_refused_command_runs_for_no_item() -> None:
    host = attrs.evolve(HOST, executables={RELOAD[0]: "others may write to it"})
    assert runs(plan([*PAIR, run("o", argv=OTHER)], cert(1), cert(2), host=host)) == [("o",)]
