"""Refused work is left out as a whole, and commands are followed by verification."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from planner_world import HOST, POLICY, RELOAD, TLS, World, cert, copy, only_set, plan, run, runs, writes

from certctrl.install.plan.inputs import DEBIAN, RED_HAT
from certctrl.install.plan.planner import cas_wanted, commands_of, programs
from certctrl.install.plan.policy import Refusal, explain
from certctrl.install.plan.render import LineKind, plan_lines, plan_text
from certctrl.install.plan.values import DesiredCa, DesiredCert, Destination, InstallPlan
from certctrl.model.plan import ImportCaAction, InstallItem, ObjectType, Verify, VerifyCommand, VerifyTls
from certctrl.model.policy import HostPolicy, NamedCommand, TrustStore

# --- verifying ----------------------------------------------------------------------------------------------------


def fingerprints(verify: Verify, *certs: DesiredCert) -> tuple[str, ...]:
    (found,) = only_set(plan([run("r", verify=verify)], *certs)).verifications
    return found.fingerprints


def test_an_endpoint_must_serve_the_certificate_for_its_name() -> None:
    assert fingerprints(VerifyTls(host="127.0.0.1", port=1, server_name="A2.example"), cert(1), cert(2)) == ("leaf2g1",)
    assert fingerprints(VerifyTls(host="a1.example", port=1), cert(1), cert(2)) == ("leaf1g1",)
    assert fingerprints(VerifyTls(host="127.0.0.1", port=1), cert(1), cert(2)) == ("leaf1g1", "leaf2g1")


def test_an_unproven_certificate_is_verified() -> None:
    """After a crash between switch and probe, nothing is left to write or run, but the verification is pending."""
    items, world = [copy("c", 1, verify=TLS), run("r", "c")], World()
    world.apply(plan(items, cert(1)), [cert(1)])
    found = plan(items, cert(1, proven=False), destinations=world.destinations, activations=world.activations)
    assert [step.kind for step in plan_lines(found)] == [LineKind.VERIFY]


def test_without_an_allowed_command_nothing_is_verified() -> None:
    items = [copy("c", 1, verify=TLS), run("r", "c", argv=("/bin/forbidden",))]
    found = plan(items, cert(1, "g2", live="g1", proven=False))
    assert [refusal.item for refusal in found.refusals] == ["r"]
    assert found.left_out == {1: [explain(found.refusals[0])]}
    assert LineKind.VERIFY not in [step.kind for step in plan_lines(found)]


def test_a_verify_command_needs_the_policy() -> None:
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
    assert "! refused  write /elsewhere/x/key" in plan_text(found) and '"/elsewhere/x"' in plan_text(found)


def test_halves_of_a_pair_are_written_together_or_not_at_all() -> None:
    key = copy("k", 1, names=("private.key",), targets=("/forbidden/dir/key",))
    chain = copy("f", 1, names=("fullchain.pem",))
    whole = copy("w", 1)
    found = plan([chain, key, whole, run("r", "f"), run("s", "w", argv=("/bin/other",))], cert(1))
    assert writes(found) == list(whole.targets)
    assert set(found.blocked) == {"f", "r"}
    assert runs(found) == [("s",)]


def test_a_refused_remote_command_does_not_keep_local_files_from_being_verified() -> None:
    remote = [copy("c", 1, verify=TLS), run("r", "c", argv=("/bin/unlisted",))]
    here = attrs.evolve(TLS, port=8443)
    local = [copy("local:c", 1, names=("chain.pem",), verify=here), run("local:r", "local:c")]
    (one,) = plan([*remote, *local], cert(1, proven=False)).groups
    assert [check.item for check in one.verifications] == ["local:c"], "whose command runs"
    (one,) = plan(remote, cert(1, proven=False)).groups
    assert one.verifications == (), "nothing is in service"
    alone = [copy("local:c", 1, names=("chain.pem",), verify=here), run("r", ob_id=1, argv=("/bin/unlisted",))]
    (one,) = plan(alone, cert(1, proven=False)).groups
    assert one.verifications == (), "no other command would load them"


def test_a_refused_remote_half_does_not_keep_local_items_from_being_written() -> None:
    remote = copy("k", 1, names=("private.key",), targets=("/forbidden/dir/key",))
    local = [copy("local:k", 1, names=("private.key",)), copy("local:f", 1, names=("fullchain.pem",))]
    found = plan([remote, copy("f", 1, names=("chain.pem",)), *local, run("local:r", "local:k", "local:f")], cert(1))
    assert writes(found) == [*local[0].targets, *local[1].targets]
    assert runs(found) == [("local:r",)]
    assert set(found.blocked) == {"f"}
    refused = copy("local:k", 1, names=("private.key",), mode=0o644)
    assert set(plan([refused, local[1]], cert(1)).blocked) == {"local:f"}, "local halves still form a pair"


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


def test_refusals_of_the_disk_count_too() -> None:
    found = plan(
        [copy("c", 1)],
        cert(1),
        destinations={"/ssl/c/private.key": Destination(refusal="its parent is a symbolic link")},
    )
    assert writes(found) == [] and "symbolic link" in found.refusals[0].why
    host = attrs.evolve(HOST, executables={RELOAD[0]: "others may write to it"})
    found = plan([run("r", ob_id=1)], cert(1), host=host)
    assert runs(found) == [] and "others may write" in found.refusals[0].why


def test_the_second_of_two_items_for_one_path_is_refused() -> None:
    items = [copy("a", 1, targets=("/ssl/x", "/ssl/y")), copy("b", 2, targets=("/ssl/y", "/ssl/z"))]
    found = plan(items, cert(1), cert(2))
    assert writes(found) == ["/ssl/x", "/ssl/y"]
    assert [(refusal.item, refusal.why) for refusal in found.refusals] == [("b", "item a writes it too")]


def test_a_local_item_keeps_its_path() -> None:
    items = [copy("a", 1, targets=("/ssl/x", "/ssl/y")), copy("local:b", 2, targets=("/ssl/y", "/ssl/z"))]
    found = plan(items, cert(1), cert(2))
    assert writes(found) == ["/ssl/y", "/ssl/z"]
    assert [(refusal.item, refusal.why) for refusal in found.refusals] == [("a", "item local:b writes it too")]


def test_the_first_item_by_order_keeps_a_path() -> None:
    items = [
        run("r", "a"), copy("a", 1, targets=("/ssl/x", "/ssl/y")), copy("b", 2, targets=("/ssl/z", "/ssl/y")),
        copy("c", 2, names=("chain.pem",), targets=("/ssl/w",)), copy("d", 1, targets=("/ssl/v", "/ssl/x")),
    ]  # fmt: skip
    found = plan(items, cert(1), cert(2))
    assert [(refusal.item, str(refusal)) for refusal in found.refusals] == [
        ("b", "write /ssl/y: item a writes it too"), ("d", "write /ssl/x: item a writes it too"),
    ]  # fmt: skip


def test_left_out_items_are_listed_in_order() -> None:
    items = [run("s", argv=("/bin/evil",)), run("z", "s", argv=("/bin/other",)), run("y", "z"), run("a", "s")]
    assert dict(plan(items, cert(1)).blocked) == {
        "z": "depends on item s, which is left out",
        "a": "depends on item s, which is left out",
        "y": "depends on item z, which is left out",
    }
    assert list(plan(items, cert(1)).blocked) == ["z", "a", "y"]


def test_a_command_is_left_out_once_none_of_its_copies_is_written() -> None:
    forbidden = copy("c1", 1, targets=("/no/way/a", "/no/way/b"))
    items = [run("s", argv=("/bin/evil",)), copy("c2", 2, depends_on=("s",)), forbidden, run("r", "c1", "c2")]
    found = plan(items, cert(1), cert(2))
    assert found.blocked == {
        "c2": "depends on item s, which is left out", "r": "depends on item c1, which is left out",
    }  # fmt: skip
    assert plan([items[0], items[1], copy("c3", 1), run("r", "c2", "c3")], cert(1), cert(2)).blocked.keys() == {"c2"}


def test_dependents_of_a_tolerated_item_are_not_left_out() -> None:
    tolerated = run("s", argv=("/bin/evil",), continue_on_error=True)
    found = plan([tolerated, run("ok", argv=("/bin/other",)), run("r", "s", "ok"), run("q", "s")], cert(1))
    assert (found.blocked, [refusal.item for refusal in found.refusals]) == ({}, ["s"])
    assert runs(found) == [("ok",), ("r", "q")]


def test_a_local_item_writes_outside_of_the_listed_directories() -> None:
    found = plan([copy("local:c", 1, targets=("/no/way/a", "/no/way/b"))], cert(1))
    assert writes(found) == ["/no/way/a", "/no/way/b"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"absent_users": ("www",)}, "run /usr/sbin/nginx -s reload: there is no user www on this host"),
        ({"absent_users": ("root",)}, ""),
        ({"scripts": {RELOAD: "its script is missing"}}, "run /usr/sbin/nginx -s reload: its script is missing"),
        ({"executables": {"/bin/other": "it is missing"}}, ""),
    ],
)
def test_a_command_needs_its_user_and_its_programs(changes: dict[str, Any], expected: str) -> None:
    policy = attrs.evolve(POLICY, run_as=("www",))
    found = plan([run("r", run_as="www")], cert(1), policy=policy, host=attrs.evolve(HOST, **changes))
    assert [str(refusal) for refusal in found.refusals] == [expected] * bool(expected)
    assert runs(found) == [("r",)] * (not expected)


@pytest.mark.parametrize(
    ("suggested", "line"),
    [
        (DEBIAN, '{"directory": "/usr/local/share/ca-certificates", "command": ["/usr/sbin/update-ca-certificates", '
                 '"--fresh"]}'),
        (RED_HAT, '{"directory": "/etc/pki/ca-trust/source/anchors", "command": ["/usr/bin/update-ca-trust"]}'),
        (TrustStore(directory="/ca"), '{"directory": "/ca", "command": []}'),
    ],
)  # fmt: skip
def test_without_a_trust_store_that_of_the_system_is_suggested(suggested: TrustStore, line: str) -> None:
    host = attrs.evolve(HOST, trust_store=suggested)
    (refusal,) = plan([ImportCaAction(id="i", ob_id=3)], cas={3: DesiredCa(ca_id=3, name="x")}, host=host).refusals
    assert (refusal.item, str(refusal)) == ("i", "import a CA: no trust store is named")
    assert refusal.line == f'"trust_store": {line}'


# --- what the items and the policy name ---------------------------------------------------------------------------


def test_the_commands_that_may_run_and_their_programs() -> None:
    items = [
        ImportCaAction(id="i", ob_id=3), copy("c", 1, check=("/bin/check", "{staged}"), verify=TLS), copy("d", 1),
        copy("e", 1, verify=VerifyCommand(cmd_argv=("/bin/verify",))), run("r"), run("again"),
        run("v", argv=("nginx",), verify=VerifyCommand(cmd_argv=("/bin/verify", "x"))), run("s", argv=None, cmd="echo"),
        run("off", argv=("/bin/off",), enabled=False), run("no", argv=("/bin/no",), refused="unknown field"),
        run("w", argv=("/bin/w",), verify=VerifyCommand(cmd_argv=())), run("empty", argv=None),
    ]  # fmt: skip
    policy = HostPolicy(commands={"x": NamedCommand(argv=("/bin/listed",))}, on_alert=("/bin/alert", "me"))
    argvs = (
        ("/bin/check", "{staged}"), ("/bin/verify",), RELOAD, ("/bin/verify", "x"), ("/bin/sh", "-c", "echo"),
        ("/bin/w",), ("/bin/sh", "-c", ""), ("/bin/listed",), ("/bin/alert", "me"),
    )  # fmt: skip
    assert commands_of(items, policy) == argvs
    assert programs(items, policy) == (
        "/bin/check", "/bin/verify", RELOAD[0], "/bin/sh", "/bin/w", "/bin/listed", "/bin/alert",
    )  # fmt: skip


def test_the_cas_that_enabled_items_name() -> None:
    items = [
        ImportCaAction(id="i", ob_id=3), ImportCaAction(id="off", ob_id=4, enabled=False), ImportCaAction(id="name"),
        copy("c", 5, ob_type=ObjectType.CA, names=("ca.pem",)), copy("cert", 6), run("r", ob_id=7),
        copy("typed", 8, ob_type=ObjectType.CERT),
    ]  # fmt: skip
    assert cas_wanted(items) == {3, 5}


def test_left_out_items_are_reported_for_their_certificates() -> None:
    found = InstallPlan(
        refusals=(Refusal(item="a", what="write /x", why="no"), Refusal(what="run it", why="never")),
        blocked={"b": "it depends on item a", "c": "so does it"},
        concerns={"a": (1, 2), "b": (2,), "c": ()},
    )
    assert found.left_out == {
        1: ["write /x: no"],
        2: ["write /x: no", "item b is left out: it depends on item a"],
        0: ["run it: never", "item c is left out: so does it"],
    }
