"""Plans turn items, destinations and policy into ordered work, and are empty only if there is none."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
from planner_world import POLICY, RELOAD, TLS, World, cert, copy, only_set, plan, run, runs, writes

from certctrl.install.plan.copy_items import Indexer, ItemIndex
from certctrl.install.plan.dependencies import bind, depended_on, ordered_steps
from certctrl.install.plan.planner import cas_wanted, programs
from certctrl.install.plan.render import LineKind, plan_lines, plan_text
from certctrl.install.plan.values import DesiredCa, DesiredCert, Destination
from certctrl.model.certificate import CertFacts
from certctrl.model.plan import ImportCaAction, InstallItem, ObjectType, VerifyCommand
from certctrl.model.policy import HostPolicy, TrustStore

# --- what is due --------------------------------------------------------------------------------------------------


def test_nothing_to_do_is_an_empty_plan() -> None:
    found = plan([], cert(1))
    assert (plan_lines(found), found.refusals, plan_text(found)) == ((), (), "Nothing to do.")


def test_new_material_is_switched_copied_reloaded_and_verified_in_that_order() -> None:
    items = [copy("c", 1, verify=TLS), run("r", "c")]
    found = plan(items, cert(1, "g2", live="g1", proven=False))
    assert [step.kind for step in plan_lines(found)] == [
        LineKind.SWITCH, LineKind.WRITE, LineKind.WRITE, LineKind.RUN, LineKind.VERIFY,
    ]  # fmt: skip
    assert only_set(found).verifications[0].fingerprints == ("leaf1g2",)


def test_unchanged_bytes_are_not_written_and_reload_nothing() -> None:
    items, world = [copy("c", 1), run("r", "c")], World()
    world.apply(plan(items, cert(1)), [cert(1)])
    assert plan_lines(plan(items, cert(1), destinations=world.destinations, activations=world.activations)) == ()


def test_a_changed_file_is_restored_and_its_service_reloaded() -> None:
    items, world = [copy("c", 1), run("r", "c"), run("x", argv=("/bin/other",), ob_id=2)], World()
    certs = [cert(1), cert(2)]
    world.apply(plan(items, *certs), certs)
    world.destinations["/ssl/c/private.key"] = Destination(sha256="tampered", mode=0o600)
    found = plan(items, *certs, destinations=world.destinations, activations=world.activations)
    assert writes(found) == ["/ssl/c/private.key"]
    assert runs(found) == [("r",)]
    (due,) = only_set(found).steps[1].runs
    assert due.stale_marker, "the marker says done: after a crash nothing would reload"


def test_only_the_files_of_examined_certificates_are_compared() -> None:
    """A renewal of one certificate must not read the files of a thousand others."""
    items = [copy("c1", 1), copy("c2", 2), run("r", "c1", "c2")]
    found = plan(items, cert(1), cert(2), examine={2})
    assert writes(found) == ["/ssl/c2/fullchain.pem", "/ssl/c2/private.key"]
    assert found.targets == {1: items[0].targets, 2: items[1].targets}


def test_no_command_runs_whose_copies_are_not_examined() -> None:
    """They may not be there yet: a command must not have succeeded before them."""
    items = [
        copy("c1", 1),
        run("r1", "c1"),
        copy("c2", 2),
        run("r2", "c2", argv=("/bin/other",)),
        run("both", "c1", "c2"),
    ]
    assert runs(plan(items, cert(1), cert(2), examine={2})) == [("both",), ("r2",)]


# --- commands -----------------------------------------------------------------------------------------------------


def test_twenty_certificates_of_one_service_are_one_group_and_one_reload() -> None:
    items: list[InstallItem] = []
    for n in range(1, 21):
        items += [copy(f"c{n}", n), run(f"r{n}", f"c{n}")]
    certs = [cert(n, "g2", live="g1", proven=False) for n in range(1, 21)]
    found = plan(items, *certs)
    one = only_set(found)
    assert len(one.switches) == 20
    assert len(runs(found)) == 1 and set(runs(found)[0]) == {f"r{n}" for n in range(1, 21)}
    assert one.steps[-1].runs and not one.steps[-1].writes


def test_different_services_are_different_groups() -> None:
    items = [copy("c1", 1), run("r1", "c1"), copy("c2", 2), run("r2", "c2", argv=("/bin/other",))]
    assert [one.cert_ids for one in plan(items, cert(1), cert(2)).groups] == [(1,), (2,)]


def test_a_command_is_bound_to_its_certificates() -> None:
    items = [copy("c1", 1), copy("c2", 2), run("own", ob_id=2), run("deps", "mid"), run("mid", "c1"), run("all")]
    certs = {n: cert(n) for n in (1, 2, 3)}
    bound = bind(items, certs, {})
    assert {name: bound[name].certs for name in ("own", "deps", "all")} == {
        "own": (2,), "deps": (1,), "all": (1, 2, 3),
    }  # fmt: skip


def test_items_may_name_a_certificate_instead_of_its_number() -> None:
    items = [copy("c", None, ob_name="a2.example"), copy("x", None, ob_name="none"), copy("y", None)]
    found = plan(items, cert(1), cert(2))
    assert found.concerns["c"] == (2,)
    assert set(found.waiting) == {"x", "y"}


def test_a_name_means_the_present_certificate_and_not_a_withdrawn_one() -> None:
    gone, here = (
        attrs.evolve(cert(n, live), facts=CertFacts(cert_id=n, name="www", domains=("www",)))
        for n, live in ((1, ""), (2, "g1"))
    )
    found = plan([copy("c", None, ob_name="www")], gone, here)
    assert found.concerns["c"] == (2,) and not found.waiting


def test_a_command_runs_again_when_its_definition_its_files_or_its_material_change() -> None:
    items, world = [copy("c", 1), run("r", "c")], World()
    world.apply(plan(items, cert(1)), [cert(1)])

    def due(items: Sequence[InstallItem], one: DesiredCert) -> bool:
        return bool(runs(plan(items, one, destinations=world.destinations, activations=world.activations)))

    assert not due(items, cert(1))
    assert due(items, cert(1, "g2"))
    assert due([items[0], run("r", "c", argv=("/bin/other",))], cert(1))
    moved = attrs.evolve(items[0], targets=("/ssl/c/fullchain.pem", "/ssl/c/new.key"))
    assert due([moved, items[1]], cert(1))
    assert not due([items[0], attrs.evolve(items[1], timeout_ms=99, tags=("x",))], cert(1))


def test_a_withdrawn_certificate_is_a_change_for_its_commands() -> None:
    items, world = [run("r", ob_id=1), run("all", argv=("/bin/other",)), copy("c", 1)], World()
    certs = [cert(1), cert(2)]
    world.apply(plan(items, *certs), certs)
    gone = attrs.evolve(cert(1), generation="", live="", files={})
    found = plan(items, gone, cert(2), activations=world.activations)
    assert runs(found) == [("r",), ("all",)]
    assert set(found.waiting) == {"c"}
    assert set(plan(items, gone, cert(2)).waiting) == {"c", "r"}, "a command that never ran has nothing to undo"


def test_items_of_absent_certificates_wait_and_delay_no_others() -> None:
    items = [copy("c1", 1), copy("c9", 9), run("r", "c1", "c9"), run("r9", "c9", argv=("/bin/other",))]
    found = plan(items, cert(1))
    assert set(found.waiting) == {"c9", "r9"}
    assert writes(found) == ["/ssl/c1/fullchain.pem", "/ssl/c1/private.key"]
    assert runs(found) == [("r",)]


def test_a_copy_under_the_id_of_a_former_command_waits_like_any_other() -> None:
    found = plan(
        [copy("1", 3, ob_type=ObjectType.CA, names=("ca.pem",)), copy("2", 9)], activations={"1": "x", "2": "x"}
    )
    assert set(found.waiting) == {"1", "2"}


def test_a_command_for_copies_of_nothing_on_this_host_waits() -> None:
    typo = copy("c2", None, ob_name="typo.example")
    other = ("/bin/other",)
    items = [copy("c1", 1), run("r1", "c1"), typo, run("r2", "c2", argv=other), run("after", "r2", argv=other)]
    found = plan(items, cert(1))
    assert runs(found) == [("r1",)]
    assert {name: found.waiting[name] for name in ("r2", "after")} == dict.fromkeys(
        ("r2", "after"), "there is no certificate 'typo.example' here"
    )
    assert found.concerns["r2"] == found.concerns["after"] == ()


def test_a_command_whose_copies_are_disabled_waits() -> None:
    other = ("/bin/other",)
    items = [
        copy("c1", 1), run("r1", "c1"), copy("c2", 2, enabled=False), run("r2", "c2", argv=other),
        run("after", "r2", argv=other), run("hook", "off", argv=other), run("off", "c2", argv=other, enabled=False),
    ]  # fmt: skip
    found = plan(items, cert(1), cert(2))
    assert runs(found) == [("r1",)]
    assert set(found.waiting) == {"r2", "after", "hook"}
    assert "c2, which it depends on, is disabled" in found.waiting["r2"]
    assert found.concerns["r2"] == found.concerns["after"] == ()


def test_a_command_whose_dependencies_do_not_exist_waits() -> None:
    """A local item may name one of the plane's that was removed."""
    found = plan([copy("c1", 1), run("r1", "c1"), run("local:r", "gone", argv=("/bin/other",))], cert(1))
    assert (runs(found), set(found.waiting)) == ([("r1",)], {"local:r"})


def test_a_command_after_a_disabled_command_for_everything_is_for_everything() -> None:
    items = [run("off", enabled=False), run("r", "off")]
    assert plan(items, cert(1), cert(2)).concerns["r"] == (1, 2)


def test_commands_without_any_certificate_wait() -> None:
    assert plan([run("r")]).waiting == {"r": "no certificate is on this host"}


def test_order_follows_dependencies_and_a_shared_command_comes_last() -> None:
    files = copy("b", 1, depends_on=("stop",))
    items = [run("start", "b", argv=("/bin/other",)), files, run("stop", argv=RELOAD, ob_id=1)]
    one = only_set(plan(items, cert(1)))
    assert [(bool(step.writes), [due.items for due in step.runs]) for step in one.steps] == [
        (False, [("stop",)]), (True, []), (False, [("start",)]),
    ]  # fmt: skip
    same = [copy("a", 1), run("r1", "a"), copy("b", 1, depends_on=("x",)), run("x", argv=("/bin/other",), ob_id=1),
            run("r2", "b")]  # fmt: skip
    found = plan(same, cert(1))
    assert [set(group) for group in runs(found)] == [{"x"}, {"r1", "r2"}]


def test_the_same_command_before_and_after_stays_two_commands() -> None:
    items = [run("r1", ob_id=1), copy("c", 1, depends_on=("r1",)), run("r2", "c")]
    assert runs(plan(items, cert(1))) == [("r1",), ("r2",)]
    assert ordered_steps([run("a", "b"), run("b", "a")]) == [[("a", "b")]]
    circle = [copy("a", 1, depends_on=("b",)), copy("b", 1, depends_on=("a",))]
    assert ordered_steps(circle) == [[("a",), ("b",)]], "a cycle ends"


def test_disabled_items_do_nothing() -> None:
    assert plan_lines(plan([copy("c", 1, enabled=False), run("r", "c", enabled=False)], cert(1))) == ()
    assert ItemIndex.of([copy("c", 1, enabled=False)]).copies(CertFacts(cert_id=1, name="")) == []


def test_dependants_of_a_disabled_item_keep_their_order() -> None:
    items = [
        copy("c", 1), run("last", "off"), run("off", "off2", enabled=False),
        run("off2", "first", enabled=False), run("first", "c", argv=("/bin/other",)),
    ]  # fmt: skip
    found = plan(items, cert(1), cert(2))
    assert runs(found) == [("first",), ("last",)]
    assert found.concerns["last"] == (1,), "and is about what it would be about with it"


def test_helpers_of_the_planner() -> None:
    items = [
        copy("c", 1, names=("bundle.pfx",)),
        copy("d", 2, names=("bundle.jks",)),
        copy("e", None, ob_name="a1.example", names=("chain.pem", "nonsense")),
        copy("f", 1, ob_type=ObjectType.CA, names=("ca.pem",)),
        run("r", verify=VerifyCommand(cmd_argv=("/bin/v", "x"))),
    ]
    indexer = Indexer()
    index = indexer.of(items)
    by_domain = CertFacts(cert_id=1, name="x", domains=("a1.example", "b"))
    by_name = CertFacts(cert_id=1, name="a1.example")
    assert index.files(by_domain) == index.files(by_name) == {"bundle.pfx", "chain.pem"}
    assert index.files(CertFacts(cert_id=2, name="x")) == {"bundle.jks"}
    assert indexer.of(items) is index and indexer.of(list(items)) is not index
    assert programs(items, HostPolicy()) == (RELOAD[0], "/bin/v")
    assert depended_on("a", {"a": run("a", "b", "zz"), "b": run("b", "a")}) == ("b",)


# --- CAs ----------------------------------------------------------------------------------------------------------


def test_cas_are_imported_copied_and_announced() -> None:
    policy = attrs.evolve(POLICY, trust_store=TrustStore(directory="/usr/local/share/ca-certificates"))
    items = [
        ImportCaAction(id="i", ob_id=3),
        copy("c", 3, ob_type=ObjectType.CA, names=("ca.pem",)),
        run("r", "c"),
        ImportCaAction(id="later", ob_id=4),
    ]
    ca = DesiredCa(ca_id=3, name="Private", files={"ca.pem": "ca@3"}, fingerprint="f3")
    world, known = World(), {3: ca}
    found = plan(items, cas=known, policy=policy)
    assert [step.kind for step in plan_lines(found)] == [LineKind.IMPORT_CA, LineKind.WRITE, LineKind.RUN]
    assert found.waiting == {"later": "CA 4 is not on this host yet"}
    world.apply(found, [], known)
    known = {3: attrs.evolve(ca, imported=True)}
    again = plan(items, cas=known, policy=policy, destinations=world.destinations, activations=world.activations)
    assert plan_lines(again) == ()
    world.destinations["/ssl/c/ca.pem"] = Destination(sha256="other", mode=0o644)
    again = plan(items, cas=known, policy=policy, destinations=world.destinations, activations=world.activations)
    assert [step.kind for step in plan_lines(again)] == [LineKind.WRITE, LineKind.RUN]
    assert cas_wanted(items) == {3, 4}


def test_an_item_may_name_a_certificate_as_it_is_typed() -> None:
    here = attrs.evolve(cert(1), facts=attrs.evolve(cert(1).facts, name="b", domains=("xn--bcher-kva.example",)))
    item = copy("c", None, ob_name="Bücher.example")
    assert plan([item], here).concerns == {"c": (1,)}
    assert ItemIndex.of([item]).copies(here.facts) == [item]
    assert ItemIndex.of([copy("c", None, ob_name="b")]).copies(here.facts) != []
