"""After any plan has been performed, nothing is left to do; no plan exceeds the policy."""

from __future__ import annotations

import json

import attrs
from examples import at_most
from hypothesis import given, settings
from hypothesis import strategies as st
from planner_world import RELOAD, TLS, World, cert, copy, plan, writes

from certctrl.install.plan.dependencies import bind, connected_groups, ordered_steps
from certctrl.install.plan.render import plan_json, plan_lines, plan_text
from certctrl.model.plan import CopyAction, ExecAction, InstallItem

cert_numbers = st.integers(1, 4)
item_ids = st.sampled_from([f"i{n}" for n in range(6)] + ["local:x"])
argvs = st.sampled_from([RELOAD, ("/bin/other",), ("/bin/evil",)])
needs = st.lists(item_ids, max_size=2).map(tuple)
copies = st.builds(
    CopyAction,
    id=item_ids,
    ob_id=st.none() | cert_numbers,
    sources=st.just(("fullchain.pem", "private.key")),
    targets=st.tuples(*[st.sampled_from(["/ssl/a", "/ssl/b", "/ssl/c", "/ssl/d", "/evil/e", "/ssl/../x"])] * 2),
    depends_on=needs,
    enabled=st.booleans() | st.just(True),
    owner=st.sampled_from([None, "www", "games"]),
    verify=st.sampled_from([None, TLS]),
)
execs = st.builds(
    ExecAction, id=item_ids, ob_id=st.none() | cert_numbers, cmd_argv=argvs, depends_on=needs,
    verify=st.sampled_from([None, TLS]),
)  # fmt: skip
plans = st.lists(copies | execs, max_size=6, unique_by=lambda item: item.id)
worlds = st.dictionaries(cert_numbers, st.sampled_from(["", "g1", "g2"]), max_size=4)


@settings(max_examples=at_most(300))
@given(items=plans, here=worlds)
def test_performing_a_plan_leaves_nothing_to_do(items: list[InstallItem], here: dict[int, str]) -> None:
    certs = [cert(n, generation, live="g1", proven=False) for n, generation in here.items()]
    world = World()
    first = plan(items, *certs)
    refused = {refusal.item for refusal in first.refusals}
    for step in plan_lines(first):
        assert step.item not in refused | first.blocked.keys() | first.waiting.keys()
    for path in writes(first):
        assert path in ("/ssl/a", "/ssl/b", "/ssl/c", "/ssl/d") or any(item.id == "local:x" for item in items)
        assert ".." not in path
    assert len(writes(first)) == len(set(writes(first)))
    world.apply(first, certs)
    settled = world.settled(certs)
    second = plan(items, *settled, destinations=world.destinations, activations=world.activations)
    assert plan_lines(second) == ()
    assert {refusal.item for refusal in second.refusals} == refused
    assert json.loads(json.dumps(plan_json(first)))["refusals"] == [
        json.loads(json.dumps(attrs.asdict(refusal) | {"line": refusal.line})) for refusal in first.refusals
    ]
    assert bool(plan_text(first) == "Nothing to do.") is not bool(
        plan_lines(first) or first.refusals or first.waiting or first.blocked
    )


@given(items=plans)
def test_groups_are_a_partition(items: list[InstallItem]) -> None:
    certs = {n: cert(n) for n in range(1, 5)}
    bound = bind(items, certs, {})
    nodes = [node for group in connected_groups(items, bound, certs) for node in group]
    assert len(nodes) == len(set(nodes))
    assert {f"item:{item.id}" for item in items} <= set(nodes)
    placed = [name for step in ordered_steps(items) for group in step for name in group]
    assert sorted(placed) == sorted(item.id for item in items)


def test_foreign_text_cannot_forge_a_line_of_the_plan() -> None:
    found = plan([copy("c\n~ switch", 1, targets=("/ssl/a\n+ x", "/ssl/b"))], cert(1))
    assert all(line.startswith(("! ", "~ ", "? ", "> ", ". ", "  ")) for line in plan_text(found).splitlines())
    assert "c\n" not in plan_text(found)
