"""Items that this version cannot carry out are left out like those that the policy forbids; plans of many items."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import attrs
import pytest
from planner_world import TLS, cert, copy, plan, run

from certctrl.install.plan.dependencies import copies_below, depended_on, gathered
from certctrl.install.plan.values import InstallPlan
from certctrl.model.plan import ExecAction, ImportCaAction, InstallItem, UnknownAction

WHY = "verify.type: unknown verify type prayer"


def refused(item: InstallItem) -> InstallItem:
    return attrs.evolve(item, refused=WHY)


def written(found: InstallPlan) -> set[str]:
    return {write.item for group in found.groups for step in group.steps for write in step.writes}


def run_items(found: InstallPlan) -> list[tuple[str, ...]]:
    return [one.items for group in found.groups for step in group.steps for one in step.runs]


def test_an_unknown_item_is_refused_with_its_dependents_and_the_others_run() -> None:
    strange = UnknownAction(id="s", refused="type: unknown item type reboot")
    found = plan([copy("c", 1), run("r", "c"), strange, run("after", "s", argv=("/bin/other",))], cert(1, live=""))
    assert [(one.item, str(one)) for one in found.refusals] == [
        ("s", "carry out item s: type: unknown item type reboot")
    ]
    assert found.blocked == {"after": "depends on item s, which is left out"}
    assert written(found) == {"c"} and run_items(found) == [("r",)]


def test_a_refused_command_is_reported_for_the_certificates_that_it_serves() -> None:
    items = [copy("c", 1, verify=TLS), refused(run("r", "c"))]
    found = plan(items, cert(1, live="", proven=False))
    assert found.left_out == {1: [f"carry out item r: {WHY}"]}
    assert written(found) == {"c"} and not run_items(found)
    assert not any(group.verifications for group in found.groups), "nothing serves it yet"


def test_half_a_pair_is_not_written_without_a_refused_half() -> None:
    key, chain = copy("k", 1, names=["private.key"]), copy("f", 1, names=["fullchain.pem"])
    found = plan([refused(key), chain, copy("other", 2)], cert(1, live=""), cert(2, live=""))
    assert found.blocked == {"f": "forms a pair with item k, which is refused"}
    assert written(found) == {"other"}


def test_a_refused_copy_does_not_stop_the_command_of_other_copies() -> None:
    found = plan([refused(copy("a", 1)), copy("b", 2), run("r", "a", "b")], cert(1, live=""), cert(2, live=""))
    assert not found.blocked and run_items(found) == [("r",)]


def test_a_copy_without_targets_writes_nothing_and_its_command_runs() -> None:
    found = plan([copy("c", 1, targets=()), run("r", "c")], cert(1, "g2", live="g1"))
    assert not found.refusals and not written(found) and run_items(found) == [("r",)]


# --- many items ---------------------------------------------------------------------------------------------------


def chain(length: int, first: InstallItem) -> list[InstallItem]:
    names = [first.id, *(f"e{n}" for n in range(1, length))]
    return [first, *(run(name, before, argv=("/bin/other",)) for before, name in pairwise(names))]


def work(of: Callable[[], Any]) -> int:
    """Return how many functions a call calls: its work, independent of the load of the machine."""
    calls = 0

    def count(_: object, event: str, __: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        of()
    finally:
        sys.setprofile(before)
    return calls


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("first", [copy("c", 1), refused(copy("c", 1)), ImportCaAction(id="c", ob_id=1)])
def test_the_work_for_a_chain_grows_with_its_length_only(first: InstallItem, backwards: bool) -> None:
    def planned(items: Sequence[InstallItem]) -> Callable[[], InstallPlan]:
        return lambda: plan(items[::-1] if backwards else items, cert(1, live=""))

    planned(chain(20, first))()
    short, long = work(planned(chain(100, first))), work(planned(chain(1000, first)))
    assert long <= 11 * short


def test_copies_below_an_item_are_its_dependencies() -> None:
    items: list[InstallItem] = [
        copy("a", 1), run("b", "a"), run("c", "a", "x"), copy("d", 2, depends_on=("b", "c")), run("e", "d", "c"),
        run("p", "q", "a"), run("q", "p"), run("r", "p", "d"), run("s", "s"),
    ]  # fmt: skip
    by_id = {item.id: item for item in items}
    for name, found in gathered(items, {name: (name,) for name in by_id}).items():
        assert set(found) - {name} == set(depended_on(name, by_id)), name
    assert {name: set(found) for name, found in copies_below(items).items()} == {
        "a": set(), "b": {"a"}, "c": {"a"}, "d": {"a"}, "e": {"a", "d"}, "p": {"a"}, "q": {"a"}, "r": {"a", "d"},
        "s": set(),
    }  # fmt: skip
    assert isinstance(by_id["b"], ExecAction)
