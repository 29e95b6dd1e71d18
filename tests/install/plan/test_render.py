"""A plan is shown to the operator line by line, and to programs as JSON."""

from __future__ import annotations

import json

import attrs
import pytest
from planner_world import RELOAD, TLS, cert

from certctrl.install.plan.policy import Grant, Refusal
from certctrl.install.plan.render import plan_json, plan_lines, plan_text
from certctrl.install.plan.values import GroupPlan, InstallPlan, Run, Step, Verification, Write
from certctrl.model.plan import StartTls, VerifyCommand, VerifyTls

GRANT = Grant(argv=RELOAD, run_as=None, timeout=60.0)
KEY = Write(
    item="c", cert_id=1, source="private.key", path="/ssl/c/private.key", mode=0o600, uid=None, gid=None, why="new",
    is_new=True,
)  # fmt: skip
CA = attrs.evolve(KEY, item="a", cert_id=None, ca_id=3, source="ca.pem", path="/ssl/a/ca.pem", mode=0o644, uid=33)
IN_PLACE = attrs.evolve(KEY, path="/ssl/c/mounted.key", gid=44, why="other bytes", in_place=True)
RUN = Run(items=("r1", "r2"), grant=GRANT, cert_ids=(1, 2), keys={}, why="never run before")
OTHER_USER = attrs.evolve(RUN, items=("s",), grant=attrs.evolve(GRANT, argv=("/bin/x", "a b"), run_as="www"))
SERVED = Verification(item="c", verify=TLS, fingerprints=("0123456789abcdef0123", "fedcba98"), cert_ids=(1,))
MAIL = attrs.evolve(
    SERVED, item="m", verify=VerifyTls(host="::1", port=25, server_name="mx.example", starttls=StartTls.SMTP)
)
COMMAND = Verification(item="v", verify=VerifyCommand(cmd_argv=("check", "it")), cert_ids=(2,), grant=GRANT)
PLAN = InstallPlan(
    groups=(
        GroupPlan(
            cert_ids=(1, 2),
            switches=(
                cert(1, "g2", live="g1"),
                cert(2, live=""),
                attrs.evolve(cert(4, "g3", live="g2"), made="without the chain"),
            ),
            imports=(3,),
            steps=(Step((KEY, CA, IN_PLACE), (RUN,)), Step(runs=(OTHER_USER,))),
            verifications=(SERVED, MAIL, COMMAND),
        ),
        GroupPlan(cert_ids=(), imports=(9,)),
    ),
    refusals=(
        Refusal(item="f", what="write /x/y/z", why="not below", setting="write_roots", value="/x/y"),
        Refusal(what="run it", why="it is too long"),
    ),
    blocked={"b": "depends on item f, which is left out"},
    waiting={"w": "certificate 9 is not on this host"},
    held={5: "held since yesterday"},
)


def test_each_kind_of_line_names_action_and_reason() -> None:
    assert plan_text(PLAN).splitlines() == [
        "~ switch  certs/.live/a1.example",
        "            certificate 1: g1 -> g2",
        "~ switch  certs/.live/a2.example",
        "            certificate 2: nothing -> g1",
        "~ switch  certs/.live/a4.example",
        "            certificate 4: g2 -> without the chain",
        "+ import  CA 3",
        "            not in the trust store",
        "~ write   /ssl/c/private.key 0600",
        "            item c: private.key, new",
        "~ write   /ssl/a/ca.pem 0644 33:-",
        "            item a: ca.pem, new",
        "~ write   /ssl/c/mounted.key 0600 -:44",
        "            item c: private.key, other bytes, in place",
        "> run     /usr/sbin/nginx -s reload",
        "            item r1, r2: never run before",
        "> run     /bin/x a b as www",
        "            item s: never run before",
        "? verify  a1.example:443",
        "            item c: serves 0123456789abcdef… or fedcba98…",
        "? verify  ::1:25 for mx.example (smtp)",
        "            item m: serves 0123456789abcdef… or fedcba98…",
        "? verify  /usr/sbin/nginx -s reload",
        "            item v: exits with 0",
        "+ import  CA 9",
        "            not in the trust store",
        '! refused  write /x/y/z: not below; to allow it, policy.json needs "write_roots": ["/x/y"] (item f)',
        "! refused  run it: it is too long",
        "! left out item b: depends on item f, which is left out",
        ". waiting  item w: certificate 9 is not on this host",
        ". staged   certificate 5: held since yesterday",
    ]


def test_programs_get_the_items_certificates_and_commands_of_each_line() -> None:
    found = [(line.kind.value, line.item, line.cert_ids, line.argv) for line in plan_lines(PLAN)]
    assert found == [
        ("switch", "", (1,), ()),
        ("switch", "", (2,), ()),
        ("switch", "", (4,), ()),
        ("import_ca", "", (), ()),
        ("write", "c", (1,), ()),
        ("write", "a", (), ()),
        ("write", "c", (1,), ()),
        ("run", "r1", (1, 2), RELOAD),
        ("run", "s", (1, 2), ("/bin/x", "a b")),
        ("verify", "c", (1,), ()),
        ("verify", "m", (1,), ()),
        ("verify", "v", (2,), RELOAD),
        ("import_ca", "", (), ()),
    ]


def test_a_verify_command_without_a_grant_is_shown_as_requested() -> None:
    plan = InstallPlan(groups=(GroupPlan(cert_ids=(), verifications=(attrs.evolve(COMMAND, grant=None),)),))
    (line,) = plan_lines(plan)
    assert (line.what, line.argv) == ("check it", ("check", "it"))


def test_a_plan_as_json() -> None:
    found = json.loads(json.dumps(plan_json(PLAN)))
    assert found == {
        "changes": True,
        "diff": plan_text(PLAN),
        "awaited": [],
        "steps": json.loads(json.dumps([attrs.asdict(line) for line in plan_lines(PLAN)])),
        "refusals": [
            {"item": "f", "what": "write /x/y/z", "why": "not below", "setting": "write_roots", "value": "/x/y",
             "fix": "", "line": '"write_roots": ["/x/y"]'},
            {"item": "", "what": "run it", "why": "it is too long", "setting": "", "value": None, "fix": "",
             "line": ""},
        ],
        "blocked": {"b": "depends on item f, which is left out"},
        "waiting": {"w": "certificate 9 is not on this host"},
        "held": {"5": "held since yesterday"},
    }  # fmt: skip
    assert found["steps"][0] == {
        "kind": "switch", "what": "certs/.live/a1.example", "why": "certificate 1: g1 -> g2", "item": "",
        "cert_ids": [1], "argv": [],
    }  # fmt: skip


@pytest.mark.parametrize(
    "plan", [InstallPlan(), attrs.evolve(PLAN, groups=())], ids=["empty", "left out and waiting only"]
)
def test_a_plan_without_work_changes_nothing(plan: InstallPlan) -> None:
    found = plan_json(plan)
    assert (found["changes"], found["steps"]) == (False, [])
    assert (plan_text(plan) == "Nothing to do.") is (plan == InstallPlan())


def test_a_plan_names_certificates_not_issued_yet() -> None:
    awaited = [{"cert_id": 7, "order_id": 12, "name": "www.example.com"}]
    shown = plan_json(InstallPlan(), awaited)
    assert shown["diff"].splitlines() == [
        "Nothing to do.",
        ". awaited  certificate 7 (www.example.com): its key is made here, order 12 of the control plane is not deployed yet",
    ]
    assert (shown["changes"], shown["awaited"]) == (False, awaited)
