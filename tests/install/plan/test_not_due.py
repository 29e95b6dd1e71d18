"""Failed work that is not due yet is left out of a plan; all other work stays."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from planner_world import TLS, cert, copy, plan, run, runs, writes

from certctrl.install.plan.retries import retriable, switch_due, without_not_due
from certctrl.install.plan.values import DesiredCa, DesiredCert, GroupPlan, InstallPlan, Step, Write
from certctrl.model.certificate import CertFacts
from certctrl.model.plan import InstallItem, ObjectType, OutcomeKind
from certctrl.model.records import CertRecord

OTHER = ("/bin/other",)
ITEMS: list[InstallItem] = [
    copy("c1", 1, names=("chain.pem",), verify=TLS), run("r1", "c1"),
    copy("c2", 2, names=("chain.pem",)), copy("c3", 3, names=("chain.pem",)), run("r23", "c2", "c3", argv=OTHER),
    copy("a", 9, ob_type=ObjectType.CA, names=("ca.pem",)),
]  # fmt: skip
CERTS = {n: cert(n, proven=n != 1) for n in (1, 2, 3)}
CA = DesiredCa(ca_id=9, name="ca", files={"ca.pem": "x"})
WHOLE = plan(ITEMS, *CERTS.values(), cas={9: CA})


def record(n: int, *pending: str, generation: str = "g1") -> CertRecord:
    return CertRecord(facts=CERTS[n].facts, generation=generation, pending=pending)


def work(found: InstallPlan) -> set[str]:
    """Return the items with work, and those that are verified."""
    verified = {f"{one.item} verified" for group in found.groups for one in group.verifications}
    written = {write.item for group in found.groups for step in group.steps for write in step.writes}
    return written | {name for names in runs(found) for name in names} | verified


ALL = {"c1", "r1", "c1 verified", "c2", "c3", "r23", "a"}


@pytest.mark.parametrize(
    ("not_due", "due_now", "items_not_due", "left_out", "recorded"),
    [
        ([record(1, "c1")], (), (), {"c1", "c1 verified"}, {1}),
        ([record(1, "r1")], (), (), {"r1"}, {1}),
        ([record(1, "r1", "c1")], (), (), {"c1", "c1 verified", "r1"}, {1}),
        ([record(1, "r1", "c1"), record(2, "c2")], (), ("a",), {"c1", "c1 verified", "r1", "c2", "a"}, {1, 2}),
        ([record(1, "r1"), record(2, "c2")], {1}, (), {"c2"}, {2}),
        ([record(2, "r23"), record(3)], (), (), {"r23"}, {2}),
        ([], (), ("a",), {"a"}, set()),
        # due:
        ([record(1)], (), (), set(), set()),
        ([record(1, "r1")], {1}, (), set(), set()),
        ([record(2, "r23")], {3}, (), set(), set()),
        ([record(1, "r1", generation="g0")], (), (), set(), set()),
        ([record(1, "gone")], (), ("gone",), set(), set()),
        ([], (), ("c1", "r1"), set(), set()),
    ],
)  # fmt: skip
def test_failed_items_are_left_out_until_they_or_their_certificates_are_due(
    not_due: list[CertRecord], due_now: set[int], items_not_due: tuple[str, ...], left_out: set[str], recorded: set[int]
) -> None:
    assert work(WHOLE) == ALL
    found = without_not_due(WHOLE, CERTS, not_due, due_now, items_not_due)
    assert (ALL - work(found), found.not_due) == (left_out, recorded)
    assert not any(group.idle for group in found.groups)
    assert all(step.writes or step.runs for group in found.groups for step in group.steps)
    assert attrs.evolve(found, groups=(), not_due=frozenset()) == attrs.evolve(WHOLE, groups=()), (
        "the rest is unchanged"
    )
    assert (found == WHOLE) is not bool(left_out)


def test_a_shared_command_runs_for_the_item_that_is_due() -> None:
    items = [copy("c1", 1), run("r1", "c1"), copy("c2", 2), run("r2", "c2")]
    found = without_not_due(plan(items, cert(1), cert(2)), CERTS, [record(1, "r1", "c1")], ())
    assert (runs(found), writes(found)) == ([("r1", "r2")], list(items[2].targets))


def test_a_command_that_is_not_due_runs_if_its_files_are_written_again() -> None:
    """It has succeeded before: nothing else would show later that its service has not read them."""
    items, certs = [copy("c", 1), run("r", "c")], {1: cert(1)}
    keys = plan(items, *certs.values()).groups[0].steps[-1].runs[0].keys
    record = CertRecord(facts=certs[1].facts, generation=certs[1].live, pending=("r",))
    again = plan(items, *certs.values(), activations=keys)
    assert [bool(step.writes) for step in again.groups[0].steps] == [True, False]
    assert without_not_due(again, certs, [record], ()).groups[0].steps == again.groups[0].steps
    first = plan(items, *certs.values())
    assert [step.runs for step in without_not_due(first, certs, [record], ()).groups[0].steps] == [()]


def test_a_pair_is_due_as_a_whole() -> None:
    """One half failed and the other has changed since: neither is written without the other."""

    def write(item: str, file_group: str) -> Write:
        return Write(
            item=item, cert_id=1, source="private.key", path=f"/{item}", mode=0o600, uid=None, gid=None,
            why="new", is_new=True, file_group=file_group,
        )  # fmt: skip

    steps = (Step((write("key", "cert:1"), write("cert", "cert:1"), write("other", "item:other"))),)
    plan = InstallPlan(
        groups=(GroupPlan(cert_ids=(1,), steps=steps),), concerns=dict.fromkeys(("key", "cert", "other"), (1,))
    )
    certs = {1: DesiredCert(facts=CertFacts(cert_id=1, name="a"), live="g", generation="g")}
    record = CertRecord(facts=CertFacts(cert_id=1, name="a"), generation="g", pending=("key",))
    due_only = without_not_due(plan, certs, [record], ())
    assert [one.item for one in due_only.groups[0].steps[0].writes] == ["other"]
    assert due_only.not_due == {1}
    assert without_not_due(plan, certs, [record], {1}) == plan == without_not_due(plan, certs, [], ())
    others = attrs.evolve(plan, concerns=dict.fromkeys(("key", "cert", "other"), (2,)))
    both = certs | {2: DesiredCert(facts=CertFacts(cert_id=2, name="b"), live="g", generation="g")}
    records = [record, attrs.evolve(record, facts=CertFacts(cert_id=2, name="a"))]
    assert without_not_due(others, both, records, {1}).not_due == {2}, "new work is recorded even if items are pending"
    behind = {1: DesiredCert(facts=CertFacts(cert_id=1, name="a"), live="h", generation="h")}
    assert without_not_due(plan, behind, [record], ()) == plan, "a crash left another generation live"


def test_a_shared_command_is_due_only_for_files_once_it_has_run_for_all_its_items() -> None:
    items = [copy("c", 1), run("a", "c"), run("b", "c")]
    first = plan(items, cert(1))
    (due,) = first.groups[0].steps[-1].runs
    assert due.for_files == frozenset(), "never run before"
    (again,) = plan(items, cert(1), activations=due.keys).groups[0].steps[-1].runs
    assert again.for_files == {"cert:1"}
    (half,) = plan(items, cert(1), activations={"a": due.keys["a"]}).groups[0].steps[-1].runs
    assert half.for_files == frozenset()


# --- staged material and failed items ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outcome", "due", "expected"),
    [
        (OutcomeKind.FAILED, 200.0, 200.0),
        (OutcomeKind.ROLLED_BACK, 200.0, 200.0),
        (OutcomeKind.FAILED, 50.0, 50.0),
        (OutcomeKind.APPLIED, 200.0, 100.0),
        (None, 200.0, 100.0),
        (None, 50.0, 50.0),
    ],
)
def test_only_a_failed_switch_delays_the_next_one(outcome: OutcomeKind | None, due: float, expected: float) -> None:
    assert switch_due(attrs.evolve(record(1), last_outcome=outcome), due, 100.0) == expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, True),
        ({"pending": ()}, False),
        ({"generation": ""}, False),
        ({"staged": "g2"}, False),
        ({"held": True}, False),
    ],
)
def test_failed_items_are_retried_alone_if_no_switch_will_do_it(changes: dict[str, Any], expected: bool) -> None:
    assert retriable(attrs.evolve(record(1, "r1"), **changes)) is expected
