"""From items, facts and policy to ordered work: pure, and empty exactly when there is nothing to do."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from certctrl.install.binding import bind, components, depended_on, levels
from certctrl.install.index import Indexer, ItemIndex
from certctrl.install.planner import cas_wanted, plan_for, programs
from certctrl.install.policy import Ground, explain
from certctrl.install.scene import Host
from certctrl.install.steps import DesiredCa, DesiredCert, Fact, InstallPlan, PlanSet, StepKind
from certctrl.model.plan import (
    CopyAction,
    ExecAction,
    ImportCaAction,
    InstallItem,
    Verify,
    VerifyCommand,
    VerifyTls,
)
from certctrl.model.policy import HostPolicy, NamedCommand, TrustStore

HOST = Host(
    ground=Ground(config_dir="/etc/cc", user="root", group="root"), users={"root": 0, "www": 33}, groups={"ssl": 44}
)
RELOAD = ("/usr/sbin/nginx", "-s", "reload")
POLICY = HostPolicy(
    write_roots=("/ssl",),
    commands={"nginx": NamedCommand(argv=RELOAD), "other": NamedCommand(argv=("/bin/other",))},
    owners=("www", "ssl"),
)
TLS = VerifyTls(host="a1.example", port=443)


def cert(n: int, generation: str = "g1", *, live: str | None = None, proven: bool = True) -> DesiredCert:
    return DesiredCert(
        cert_id=n, name=f"a{n}.example", generation=generation, live=generation if live is None else live,
        files={name: f"{name}@{n}@{generation}" for name in ("private.key", "fullchain.pem", "chain.pem")},
        domains=(f"a{n}.example",), fingerprint=f"leaf{n}{generation}", proven=proven,
    )  # fmt: skip


def copy(n: str, ob: int | None, *, names: Sequence[str] = ("fullchain.pem", "private.key"), **more: Any) -> CopyAction:
    targets = tuple(f"/ssl/{n}/{name}" for name in names)
    return CopyAction(**{"id": n, "ob_id": ob, "sources": tuple(names), "targets": targets} | more)


def run(n: str, *needs: str, argv: tuple[str, ...] | None = RELOAD, **more: Any) -> ExecAction:
    return ExecAction(id=n, depends_on=needs, cmd_argv=argv, **more)


def plan(
    items: Sequence[InstallItem],
    *certs: DesiredCert,
    facts: Mapping[str, Fact] | None = None,
    activations: Mapping[str, str] | None = None,
    policy: HostPolicy = POLICY,
    host: Host = HOST,
    **more: Any,
) -> InstallPlan:
    wanted = {one.cert_id: one for one in certs}
    return plan_for(items, wanted, facts or {}, policy, activations or {}, host=host, **more)


@attrs.define
class World:
    """A disk and its markers, changed exactly as a plan says."""

    facts: dict[str, Fact] = attrs.field(factory=dict)
    activations: dict[str, str] = attrs.field(factory=dict)

    def apply(
        self, done: InstallPlan, certs: Sequence[DesiredCert], cas: Mapping[int, DesiredCa] | None = None
    ) -> None:
        by_id = {one.cert_id: one for one in certs}
        for one in done.sets:
            for level in one.levels:
                for write in level.writes:
                    files = (
                        by_id[write.cert_id].files if write.cert_id is not None else (cas or {})[write.ca_id or 0].files
                    )
                    self.facts[write.path] = Fact(
                        sha256=files.get(write.source, ""), mode=write.mode, uid=write.uid or 0, gid=write.gid or 0
                    )
                for due in level.runs:
                    self.activations |= due.keys

    def settled(self, certs: Sequence[DesiredCert]) -> list[DesiredCert]:
        return [attrs.evolve(one, live=one.generation, proven=True) for one in certs]


def only_set(found: InstallPlan) -> PlanSet:
    (one,) = found.sets
    return one


def runs(found: InstallPlan) -> list[tuple[str, ...]]:
    return [due.items for one in found.sets for level in one.levels for due in level.runs]


def writes(found: InstallPlan) -> list[str]:
    return [write.path for one in found.sets for level in one.levels for write in level.writes]


# --- what is due --------------------------------------------------------------------------------------------------


def test_nothing_to_do_is_an_empty_plan() -> None:
    found = plan([], cert(1))
    assert (found.steps, found.refusals, found.diff) == ((), (), "Nothing to do.")


def test_new_material_is_switched_copied_reloaded_and_verified_in_that_order() -> None:
    items = [copy("c", 1, verify=TLS), run("r", "c")]
    found = plan(items, cert(1, "g2", live="g1", proven=False))
    assert [step.kind for step in found.steps] == [
        StepKind.SWITCH, StepKind.WRITE, StepKind.WRITE, StepKind.RUN, StepKind.VERIFY,
    ]  # fmt: skip
    assert only_set(found).verifications[0].fingerprints == ("leaf1g2",)


def test_unchanged_bytes_are_not_written_and_reload_nothing() -> None:
    items, world = [copy("c", 1), run("r", "c")], World()
    world.apply(plan(items, cert(1)), [cert(1)])
    assert plan(items, cert(1), facts=world.facts, activations=world.activations).steps == ()


def test_a_file_that_somebody_changed_is_put_right_and_its_service_reloaded() -> None:
    items, world = [copy("c", 1), run("r", "c"), run("x", argv=("/bin/other",), ob_id=2)], World()
    certs = [cert(1), cert(2)]
    world.apply(plan(items, *certs), certs)
    world.facts["/ssl/c/private.key"] = Fact(sha256="tampered", mode=0o600)
    found = plan(items, *certs, facts=world.facts, activations=world.activations)
    assert writes(found) == ["/ssl/c/private.key"]
    assert runs(found) == [("r",)]
    (due,) = only_set(found).levels[1].runs
    assert due.stale_marker, "the marker says done: after a crash nobody would reload"


@pytest.mark.parametrize(
    ("fact", "fields", "why"),
    [
        (Fact(sha256="x", mode=0o600), {}, "other bytes"),
        (Fact(sha256="private.key@1@g1", mode=0o644), {}, "mode 0644 -> 0600"),
        (Fact(sha256="private.key@1@g1", mode=0o640), {}, ""),
        (Fact(sha256="private.key@1@g1", mode=0o640), {"mode": 0o600}, "mode 0640 -> 0600"),
        (Fact(sha256="private.key@1@g1", mode=0o600, uid=5), {}, ""),
        (Fact(sha256="private.key@1@g1", mode=0o600, uid=5), {"owner": "www"}, "owner 5 -> 33"),
        (Fact(sha256="private.key@1@g1", mode=0o600, gid=5), {"group": "ssl"}, "group 5 -> 44"),
        (Fact(), {}, "new"),
    ],
)
def test_bytes_mode_and_owner_are_compared(fact: Fact, fields: dict[str, Any], why: str) -> None:
    found = plan([copy("c", 1, names=("private.key",), **fields)], cert(1), facts={"/ssl/c/private.key": fact})
    assert [write.why for one in found.sets for level in one.levels for write in level.writes] == [why] * bool(why)


def test_an_owner_that_nobody_asked_to_change_stays() -> None:
    fact = Fact(sha256="x", mode=0o640, uid=5, gid=6)
    found = plan([copy("c", 1, names=("private.key",))], cert(1), facts={"/ssl/c/private.key": fact})
    (write,) = only_set(found).levels[0].writes
    assert (write.uid, write.gid, write.mode) == (5, 6, 0o640)


# --- commands -----------------------------------------------------------------------------------------------------


def test_twenty_certificates_of_one_service_are_one_set_and_one_reload() -> None:
    items: list[InstallItem] = []
    for n in range(1, 21):
        items += [copy(f"c{n}", n), run(f"r{n}", f"c{n}")]
    certs = [cert(n, "g2", live="g1", proven=False) for n in range(1, 21)]
    found = plan(items, *certs)
    one = only_set(found)
    assert len(one.switches) == 20
    assert len(runs(found)) == 1 and set(runs(found)[0]) == {f"r{n}" for n in range(1, 21)}
    assert one.levels[-1].runs and not one.levels[-1].writes


def test_different_services_are_different_sets() -> None:
    items = [copy("c1", 1), run("r1", "c1"), copy("c2", 2), run("r2", "c2", argv=("/bin/other",))]
    assert [one.cert_ids for one in plan(items, cert(1), cert(2)).sets] == [(1,), (2,)]


def test_what_a_command_is_about() -> None:
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


def test_a_command_runs_again_when_its_definition_its_files_or_its_material_change() -> None:
    items, world = [copy("c", 1), run("r", "c")], World()
    world.apply(plan(items, cert(1)), [cert(1)])

    def due(items: Sequence[InstallItem], one: DesiredCert) -> bool:
        return bool(runs(plan(items, one, facts=world.facts, activations=world.activations)))

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


def test_items_of_absent_certificates_wait_and_hold_up_nobody() -> None:
    items = [copy("c1", 1), copy("c9", 9), run("r", "c1", "c9"), run("r9", "c9", argv=("/bin/other",))]
    found = plan(items, cert(1))
    assert set(found.waiting) == {"c9", "r9"}
    assert writes(found) == ["/ssl/c1/fullchain.pem", "/ssl/c1/private.key"]
    assert runs(found) == [("r",)]


def test_a_copy_under_the_id_of_a_former_command_waits_like_any_other() -> None:
    found = plan([copy("1", 3, ob_type="ca", names=("ca.pem",)), copy("2", 9)], activations={"1": "x", "2": "x"})
    assert set(found.waiting) == {"1", "2"}


def test_commands_without_any_certificate_wait() -> None:
    assert plan([run("r")]).waiting == {"r": "no certificate is on this host"}


def test_order_follows_dependencies_and_a_command_stands_in_its_latest_place() -> None:
    files = copy("b", 1, depends_on=("stop",))
    items = [run("start", "b", argv=("/bin/other",)), files, run("stop", argv=RELOAD, ob_id=1)]
    one = only_set(plan(items, cert(1)))
    assert [(bool(level.writes), [due.items for due in level.runs]) for level in one.levels] == [
        (False, [("stop",)]), (True, []), (False, [("start",)]),
    ]  # fmt: skip
    same = [copy("a", 1), run("r1", "a"), copy("b", 1, depends_on=("x",)), run("x", argv=("/bin/other",), ob_id=1),
            run("r2", "b")]  # fmt: skip
    found = plan(same, cert(1))
    assert [set(group) for group in runs(found)] == [{"x"}, {"r1", "r2"}]


def test_the_same_command_before_and_after_stays_two_commands() -> None:
    items = [run("r1", ob_id=1), copy("c", 1, depends_on=("r1",)), run("r2", "c")]
    assert runs(plan(items, cert(1))) == [("r1",), ("r2",)]
    assert levels([run("a", "b"), run("b", "a")]) == [[("a", "b")]]
    circle = [copy("a", 1, depends_on=("b",)), copy("b", 1, depends_on=("a",))]
    assert levels(circle) == [[("a",), ("b",)]], "a circle that got this far is not followed for ever"


def test_disabled_items_do_nothing() -> None:
    assert plan([copy("c", 1, enabled=False), run("r", "c", enabled=False)], cert(1)).steps == ()
    assert ItemIndex.of([copy("c", 1, enabled=False)]).copies(1, "", ()) == []


# --- verifying ----------------------------------------------------------------------------------------------------


def fingerprints(verify: Verify, *certs: DesiredCert) -> tuple[str, ...]:
    (found,) = only_set(plan([run("r", verify=verify)], *certs)).verifications
    return found.fingerprints


def test_an_endpoint_must_serve_the_certificate_for_its_name() -> None:
    assert fingerprints(VerifyTls(host="127.0.0.1", port=1, server_name="A2.example"), cert(1), cert(2)) == ("leaf2g1",)
    assert fingerprints(VerifyTls(host="a1.example", port=1), cert(1), cert(2)) == ("leaf1g1",)
    assert fingerprints(VerifyTls(host="127.0.0.1", port=1), cert(1), cert(2)) == ("leaf1g1", "leaf2g1")


def test_what_was_switched_but_never_proven_is_verified() -> None:
    """After a crash between switch and probe nothing is left to write or run, but the proof is still owed."""
    items, world = [copy("c", 1, verify=TLS), run("r", "c")], World()
    world.apply(plan(items, cert(1)), [cert(1)])
    found = plan(items, cert(1, proven=False), facts=world.facts, activations=world.activations)
    assert [step.kind for step in found.steps] == [StepKind.VERIFY]


def test_what_no_command_may_bring_into_service_is_not_looked_for_there() -> None:
    items = [copy("c", 1, verify=TLS), run("r", "c", argv=("/bin/forbidden",))]
    found = plan(items, cert(1, "g2", live="g1", proven=False))
    assert [refusal.item for refusal in found.refusals] == ["r"]
    assert found.left_out == {1: [explain(found.refusals[0])]}
    assert StepKind.VERIFY not in [step.kind for step in found.steps]


def test_verify_by_command_needs_the_hosts_word() -> None:
    items = [copy("c", 1, verify=VerifyCommand(cmd_argv=("/bin/other",)))]
    assert only_set(plan(items, cert(1))).verifications[0].grant is not None
    refused = plan([copy("c", 1, verify=VerifyCommand(cmd_argv=("/bin/evil",)))], cert(1))
    assert writes(refused) == [] and refused.refusals[0].setting == "commands"


# --- refusals -----------------------------------------------------------------------------------------------------


def test_an_item_with_one_forbidden_target_writes_none() -> None:
    found = plan([copy("c", 1, targets=("/ssl/ok", "/elsewhere/x/key"))], cert(1))
    assert writes(found) == []
    (refusal,) = found.refusals
    assert (refusal.item, refusal.line) == ("c", '"write_roots": ["/elsewhere/x"]')
    assert "! refused  write /elsewhere/x/key" in found.diff and '"/elsewhere/x"' in found.diff


def test_halves_of_a_pair_are_written_together_or_not_at_all() -> None:
    key = copy("k", 1, names=("private.key",), targets=("/forbidden/dir/key",))
    chain = copy("f", 1, names=("fullchain.pem",))
    whole = copy("w", 1)
    found = plan([chain, key, whole, run("r", "f"), run("s", "w", argv=("/bin/other",))], cert(1))
    assert writes(found) == list(whole.targets)
    assert set(found.blocked) == {"f", "r"}
    assert runs(found) == [("s",)]


def test_one_refused_copy_does_not_keep_the_service_of_the_others_from_reloading() -> None:
    items = [copy("c1", 1), copy("c2", 2, targets=("/no/way/a", "/no/way/b")), run("r", "c1", "c2")]
    found = plan(items, cert(1), cert(2))
    assert runs(found) == [("r",)] and found.blocked == {}
    assert found.concerns["c2"] == (2,)


@pytest.mark.parametrize(
    ("item", "why"),
    [
        (copy("c", 1, names=("nonsense",)), "no such virtual file"),
        (copy("c", 1, names=("../../etc/shadow",)), "no such virtual file"),
        (copy("c", 1, mode=0o644), "too open"),
        (copy("c", 1, owner="root", group="ssl"), ""),
        (copy("c", 1, owner="games"), "owners"),
        (copy("local:c", 1, owner="games"), "no such user"),
        (copy("c", 1, check=("/bin/unlisted", "{staged}")), "not among commands"),
        (copy("c", 1, targets=("/ssl/same", "/ssl/same")), "writes it too"),
        (ImportCaAction(id="i", ob_id=3), "no trust store"),
    ],
)
def test_more_refusals(item: InstallItem, why: str) -> None:
    found = plan([item], cert(1), cas={3: DesiredCa(ca_id=3, name="x")})
    assert [why in refusal.why for refusal in found.refusals] == [True] * bool(why)
    assert bool(writes(found)) is not bool(why)


def test_what_the_disk_says_counts_too() -> None:
    found = plan([copy("c", 1)], cert(1), facts={"/ssl/c/private.key": Fact(refusal="its parent is a symbolic link")})
    assert writes(found) == [] and "symbolic link" in found.refusals[0].why
    host = attrs.evolve(HOST, executables={RELOAD[0]: "others may write to it"})
    found = plan([run("r", ob_id=1)], cert(1), host=host)
    assert runs(found) == [] and "others may write" in found.refusals[0].why


def test_the_second_of_two_items_for_one_path_is_refused() -> None:
    items = [copy("a", 1, targets=("/ssl/x", "/ssl/y")), copy("b", 2, targets=("/ssl/y", "/ssl/z"))]
    found = plan(items, cert(1), cert(2))
    assert writes(found) == ["/ssl/x", "/ssl/y"]
    assert [(refusal.item, refusal.why) for refusal in found.refusals] == [("b", "item a writes it too")]


# --- CAs ----------------------------------------------------------------------------------------------------------


def test_cas_are_imported_copied_and_announced() -> None:
    policy = attrs.evolve(POLICY, trust_store=TrustStore(directory="/usr/local/share/ca-certificates"))
    items = [
        ImportCaAction(id="i", ob_id=3),
        copy("c", 3, ob_type="ca", names=("ca.pem",)),
        run("r", "c"),
        ImportCaAction(id="later", ob_id=4),
    ]
    ca = DesiredCa(ca_id=3, name="Private", files={"ca.pem": "ca@3"}, fingerprint="f3")
    world, known = World(), {3: ca}
    found = plan(items, cas=known, policy=policy)
    assert [step.kind for step in found.steps] == [StepKind.IMPORT_CA, StepKind.WRITE, StepKind.RUN]
    assert found.waiting == {"later": "CA 4 is not on this host yet"}
    world.apply(found, [], known)
    known = {3: attrs.evolve(ca, imported=True)}
    again = plan(items, cas=known, policy=policy, facts=world.facts, activations=world.activations)
    assert again.steps == ()
    world.facts["/ssl/c/ca.pem"] = Fact(sha256="other", mode=0o644)
    again = plan(items, cas=known, policy=policy, facts=world.facts, activations=world.activations)
    assert [step.kind for step in again.steps] == [StepKind.WRITE, StepKind.RUN]
    assert cas_wanted(items) == {3, 4}


# --- the whole ----------------------------------------------------------------------------------------------------

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


@settings(max_examples=300)
@given(items=plans, here=worlds)
def test_carrying_out_a_plan_leaves_nothing_to_do(items: list[InstallItem], here: dict[int, str]) -> None:
    certs = [cert(n, generation, live="g1", proven=False) for n, generation in here.items()]
    world = World()
    first = plan(items, *certs)
    refused = {refusal.item for refusal in first.refusals}
    for step in first.steps:
        assert step.item not in refused | first.blocked.keys() | first.waiting.keys()
    for path in writes(first):
        assert path in ("/ssl/a", "/ssl/b", "/ssl/c", "/ssl/d") or any(item.id == "local:x" for item in items)
        assert ".." not in path
    assert len(writes(first)) == len(set(writes(first)))
    world.apply(first, certs)
    settled = world.settled(certs)
    second = plan(items, *settled, facts=world.facts, activations=world.activations)
    assert second.steps == ()
    assert {refusal.item for refusal in second.refusals} == refused
    assert json.loads(json.dumps(first.shown()))["refusals"] == [
        json.loads(json.dumps(attrs.asdict(refusal) | {"line": refusal.line})) for refusal in first.refusals
    ]
    assert bool(first.diff == "Nothing to do.") is not bool(
        first.steps or first.refusals or first.waiting or first.blocked
    )


@given(items=plans)
def test_sets_are_a_partition(items: list[InstallItem]) -> None:
    certs = {n: cert(n) for n in range(1, 5)}
    bound = bind(items, certs, {})
    nodes = [node for group in components(items, bound, certs) for node in group]
    assert len(nodes) == len(set(nodes))
    assert {f"item:{item.id}" for item in items} <= set(nodes)
    placed = [name for level in levels(items) for group in level for name in group]
    assert sorted(placed) == sorted(item.id for item in items)


def test_small_questions() -> None:
    items = [
        copy("c", 1, names=("bundle.pfx",)),
        copy("d", 2, names=("bundle.jks",)),
        copy("e", None, ob_name="a1.example", names=("chain.pem", "nonsense")),
        copy("f", 1, ob_type="ca", names=("ca.pem",)),
        run("r", verify=VerifyCommand(cmd_argv=("/bin/v", "x"))),
    ]
    indexer = Indexer()
    index = indexer.of(items)
    assert index.files(1, "x", ("a1.example", "b")) == index.files(1, "a1.example", ()) == {"bundle.pfx", "chain.pem"}
    assert index.files(2, "x", ()) == {"bundle.jks"}
    assert indexer.of(items) is index and indexer.of(list(items)) is not index
    assert programs(items, HostPolicy()) == (RELOAD[0], "/bin/v")
    assert depended_on("a", {"a": run("a", "b", "zz"), "b": run("b", "a")}) == ("b",)


def test_only_some_certificates_files_are_compared() -> None:
    """A renewal of one certificate does not read the files of a thousand others."""
    items = [copy("c1", 1), copy("c2", 2), run("r", "c1", "c2")]
    found = plan(items, cert(1), cert(2), examine={2})
    assert writes(found) == ["/ssl/c2/fullchain.pem", "/ssl/c2/private.key"]
    assert found.targets == {1: items[0].targets, 2: items[1].targets}


def test_other_peoples_text_cannot_forge_a_line_of_the_plan() -> None:
    found = plan([copy("c\n~ switch", 1, targets=("/ssl/a\n+ x", "/ssl/b"))], cert(1))
    assert all(line.startswith(("! ", "~ ", "? ", "> ", ". ", "  ")) for line in found.diff.splitlines())
    assert "c\n" not in found.diff
