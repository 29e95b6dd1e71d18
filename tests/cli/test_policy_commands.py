"""`policy`: entries are added as printed, once, and only after confirmation."""

from __future__ import annotations

import grp
import io
import json
import sys
from collections.abc import Callable
from typing import Any

import attrs
import pytest

from certctrl.cli.policy_changes import Change, Kind, apply_change
from certctrl.install.plan.inputs import DEBIAN, RED_HAT
from certctrl.install.plan.policy import AgentIdentity, Refusal, explain, judge_command
from certctrl.install.plan.refusals import no_trust_store
from certctrl.model.policy import HostPolicy, TrustStore
from certctrl.store.layout import ConfigDir

from .conftest import Ran

Run = Callable[..., Ran]


def policy_of(layout: ConfigDir) -> dict[str, Any]:
    return dict(json.loads(layout.policy.read_text()))


@pytest.mark.parametrize(
    ("words", "key", "value"),
    [
        (["path", "/etc/nginx/tls/"], "write_roots", ["/etc/nginx/tls"]),
        (["run-as", "daemon"], "run_as", ["daemon"]),
        (["owner", "daemon"], "owners", ["daemon"]),
        (["probe", "mx.example:25"], "probe", ["mx.example:25"]),
        (
            ["trust-store", "--", "/srv/cas/", "/bin/true", "--fresh"],
            "trust_store",
            {"directory": "/srv/cas", "command": ["/bin/true", "--fresh"]},
        ),
        (["trust-store", "/srv/cas"], "trust_store", {"directory": "/srv/cas"}),
        (["shell"], "shell", True),
        (["plaintext-keys"], "plaintext_keys", True),
        (["command", "--", "/usr/sbin/nginx", "-s", "reload"], "commands", None),
    ],
)
def test_allow_adds_one_entry_and_is_idempotent(
    words: list[str], key: str, value: object, layout: ConfigDir, ran: Run
) -> None:
    before = policy_of(layout)
    done = ran("-c", layout.root, "policy", "allow", "--yes", *words)
    assert done.status == 0 and f'Adds to policy.json: "{key}": ' in done.out
    after = policy_of(layout)
    if value is not None:
        assert after[key] == value
    assert {name: got for name, got in after.items() if name != key} == {n: g for n, g in before.items() if n != key}
    again = ran("-c", layout.root, "policy", "allow", "--yes", *words)
    assert (again.status, again.out[:17]) == (0, "Already allowed: ")
    assert policy_of(layout) == after


def test_the_printed_line_matches_the_file(layout: ConfigDir, ran: Run) -> None:
    done = ran(
        "-c",
        layout.root,
        "policy",
        "allow",
        "-y",
        "command",
        "--name",
        "reload",
        "--run-as",
        "daemon",
        "--",
        "/bin/true",
        "x y",
    )
    line = done.out.split("Adds to policy.json: ")[1].splitlines()[0]
    wanted = json.loads("{" + line + "}")["commands"]["reload"]
    assert wanted == {"argv": ["/bin/true", "x y"], "run_as": "daemon"}
    assert {name: policy_of(layout)["commands"]["reload"][name] for name in wanted} == wanted


@pytest.mark.parametrize(
    "words",
    [
        ["run-as", "no-such-user"],
        ["owner", "no-such-group"],
        ["command", "--run-as", "no-such-user", "--", "/bin/true"],
    ],
)
def test_an_account_that_does_not_exist_is_not_allowed(words: list[str], layout: ConfigDir, ran: Run) -> None:
    before = layout.policy.read_bytes()
    done = ran("-c", layout.root, "policy", "allow", "--yes", *words)
    assert done.status == 2 and "no-such-" in done.err and "on this host" in done.err
    assert layout.policy.read_bytes() == before


@pytest.mark.parametrize("group_only", ["nogroup", "shadow"])
def test_an_owner_may_be_a_group(group_only: str, layout: ConfigDir, ran: Run) -> None:
    try:
        grp.getgrnam(group_only)
    except KeyError:
        pytest.skip(f"no group {group_only} here")
    assert ran("-c", layout.root, "policy", "allow", "--yes", "owner", group_only).status == 0


def test_allow_does_not_offer_an_account_that_does_not_exist(
    layout: ConfigDir, ran: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusal = {
        "item": "1", "what": "run /bin/true", "why": "not allowed to run as no-such-user", "setting": "run_as",
        "value": "no-such-user",
    }  # fmt: skip
    monkeypatch.setattr("certctrl.cli.commands.plan.fetch_plan", lambda _invoked: {"refusals": [refusal]})
    before = layout.policy.read_bytes()
    done = ran("-c", layout.root, "policy", "allow", "--yes")
    assert done.status == 1
    assert "Cannot be allowed: there is no user 'no-such-user' on this host" in done.out
    assert layout.policy.read_bytes() == before


@pytest.mark.parametrize(
    "words",
    [("command", "--", "/usr/bin/no-such-program", "x"), ("trust-store", "/srv/cas", "/usr/bin/no-such-program")],
)
def test_a_program_that_is_not_there_is_noted(layout: ConfigDir, ran: Run, words: tuple[str, ...]) -> None:
    """A typing error; or the program is installed later, so it may be allowed already."""
    done = ran("-c", layout.root, "policy", "allow", "-y", *words)
    assert (done.status, done.err) == (0, "note: there is no program /usr/bin/no-such-program on this host yet\n")
    assert not ran("-c", layout.root, "policy", "allow", "-y", "command", "--", "/bin/true", "y").err


def test_two_commands_may_not_share_a_name(layout: ConfigDir, ran: Run) -> None:
    assert ran("-c", layout.root, "policy", "allow", "-y", "command", "--name", "r", "--", "/bin/true").status == 0
    done = ran("-c", layout.root, "policy", "allow", "-y", "command", "--name", "r", "--", "/bin/false")
    assert done.status == 2 and "another command is named 'r'" in done.err
    assert policy_of(layout)["commands"]["r"]["argv"] == ["/bin/true"]


@pytest.mark.parametrize(
    "words",
    [["path"], ["path", "a", "b"], ["path", "relative"], ["shell", "x"], ["nonsense"], ["command", "nginx"], ["command"],
     ["path", "/x", "--name", "n"], ["owner", "a", "--run-as", "b"], ["path", "/"], ["path", "/etc/../x"], ["path", "//x"],
     ["trust-store"], ["trust-store", "x"], ["trust-store", "/x", "update"], ["trust-store", "/x", "--name", "n"]],
)  # fmt: skip
def test_invalid_arguments_change_nothing(words: list[str], layout: ConfigDir, ran: Run) -> None:
    before = layout.policy.read_bytes()
    done = ran("-c", layout.root, "policy", "allow", "--yes", *words)
    assert done.status == 2 and done.err.startswith("cert-ctrl: error: ")
    assert layout.policy.read_bytes() == before


def test_an_invalid_value_is_not_written(layout: ConfigDir, ran: Run) -> None:
    before = layout.policy.read_bytes()
    done = ran("-c", layout.root, "policy", "allow", "--yes", "command", "--", "/usr/../bin/true")
    assert done.status == 78
    assert layout.policy.read_bytes() == before


def test_without_confirmation_nothing_is_allowed(layout: ConfigDir, ran: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    done = ran("-c", layout.root, "policy", "allow", "shell")
    assert done.status == 2 and "--yes" in done.err
    assert not policy_of(layout)["shell"]


@pytest.mark.parametrize(("answer", "status"), [("y\n", 0), ("n\n", 1), ("\n", 1)])
def test_the_operator_is_asked(
    answer: str, status: int, layout: ConfigDir, ran: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    stdin = io.StringIO(answer)
    stdin.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stdin", stdin)
    assert ran("-c", layout.root, "policy", "allow", "shell").status == status
    assert policy_of(layout)["shell"] == (status == 0)


REFUSALS = [
    {"item": "1", "what": "write /etc/x/a.pem", "why": "not below a directory of write_roots", "setting": "write_roots", "value": "/etc/x"},
    {"item": "2", "what": "write /etc/x/b.pem", "why": "not below a directory of write_roots", "setting": "write_roots", "value": "/etc/x"},
    {"item": "3", "what": "run /bin/true", "why": "not among commands", "setting": "commands", "value": {"true": {"argv": ["/bin/true"]}}},
    {"item": "ca", "what": "import a CA", "why": "no trust store is named", "setting": "trust_store",
     "value": {"directory": "/srv/cas", "command": ["/bin/true", "--fresh"]}},
    {"item": "4", "what": "write /state/x", "why": "it is the agent's own state", "setting": "", "value": None},
]  # fmt: skip


def test_allow_asks_about_each_refusal_of_the_plan(
    layout: ConfigDir, ran: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("certctrl.cli.commands.plan.fetch_plan", lambda _invoked: {"refusals": REFUSALS})
    done = ran("-c", layout.root, "policy", "allow", "--yes")
    assert done.status == 0
    assert "Refused regardless of policy.json: write /state/x: it is the agent's own state" in done.out
    assert policy_of(layout)["write_roots"] == ["/etc/x"]
    assert list(policy_of(layout)["commands"]) == ["true"]
    assert policy_of(layout)["trust_store"] == {"directory": "/srv/cas", "command": ["/bin/true", "--fresh"]}


def test_allow_continues_with_refusals_that_appear_later(
    layout: ConfigDir, ran: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plan reports one refusal of an item at a time."""
    switch = {
        "item": "3",
        "what": "run /bin/true",
        "why": "remote commands are off",
        "setting": "remote_commands",
        "value": "on",
    }
    layout.policy.write_text('{"remote_commands": "off"}')

    def plan(_invoked: object) -> dict[str, Any]:
        if policy_of(layout)["remote_commands"] == "off":
            return {"refusals": [switch]}
        return {"refusals": [] if policy_of(layout)["commands"] else REFUSALS[2:3]}

    monkeypatch.setattr("certctrl.cli.commands.plan.fetch_plan", plan)
    done = ran("-c", layout.root, "policy", "allow", "--yes")
    assert done.status == 0
    assert "Requested: run the listed commands; now for run /bin/true (remote commands are off)" in done.out
    assert list(policy_of(layout)["commands"]) == ["true"]


def test_a_command_that_is_not_listed_gets_the_command_that_lists_it(
    layout: ConfigDir, ran: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Items of the recipes name their command; only the operator knows its program."""
    judged = judge_command(HostPolicy(), ("nginx-reload",), AgentIdentity(config_dir=str(layout.root)), item="1")
    assert isinstance(judged, Refusal)
    plan = {"changes": False, "diff": f"! refused  {explain(judged)}", "refusals": [attrs.asdict(judged)]}
    monkeypatch.setattr("certctrl.cli.commands.plan.fetch_plan", lambda _invoked: plan)
    fix = f"cert-ctrl -c {layout.root} policy allow command --name nginx-reload -- /PATH/TO/PROGRAM [ARGUMENT]..."
    why = "run nginx-reload: policy.json lists no command named nginx-reload"
    assert ran("-c", layout.root, "policy", "allow", "--yes") == (1, f"Refused: {why}\nTo allow it: {fix}\n", "")
    assert ran("-c", layout.root, "plan") == (1, f"! refused  {why}; to allow it: {fix}\n", "")
    said = fix.replace("/PATH/TO/PROGRAM [ARGUMENT]...", "/bin/true").split()[3:]
    assert ran("-c", layout.root, *said[:2], "--yes", *said[2:]).status == 0
    assert policy_of(layout)["commands"]["nginx-reload"]["argv"] == ["/bin/true"]


@pytest.mark.parametrize("suggested", [DEBIAN, RED_HAT])
def test_a_trust_store_that_the_planner_suggests_can_be_allowed(suggested: TrustStore) -> None:
    value = no_trust_store(suggested).value
    policy = apply_change(HostPolicy(), Change("trust_store", value, "why"))
    assert policy.trust_store == suggested


def test_another_trust_store_is_not_overwritten(layout: ConfigDir, ran: Run) -> None:
    assert ran("-c", layout.root, "policy", "allow", "-y", "trust-store", "/srv/cas").status == 0
    done = ran("-c", layout.root, "policy", "allow", "-y", "trust-store", "/srv/others")
    assert done.status == 2 and "the trust store is already /srv/cas" in done.err
    assert policy_of(layout)["trust_store"] == {"directory": "/srv/cas"}


def test_allow_without_refusals(layout: ConfigDir, ran: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("certctrl.cli.commands.plan.fetch_plan", lambda _invoked: {"refusals": []})
    assert ran("-c", layout.root, "policy", "allow") == (
        0,
        "The plan has no refusals.\n",
        "",
    )


def test_allow_prints_json(layout: ConfigDir, ran: Run) -> None:
    shown = ran("-c", layout.root, "policy", "allow", "path", "/etc/x", "--yes", "--json")
    line = '"write_roots": ["/etc/x"]'
    assert shown.json() == {"file": str(layout.policy), "written": True, "allowed": [line]}
    assert f"Adds to policy.json: {line}\n" in shown.err
    again = ran("-c", layout.root, "policy", "allow", "path", "/etc/x", "--yes", "--json")
    assert again.json() == {"file": str(layout.policy), "written": False, "allowed": [line]}


def test_every_kind_in_the_help_exists(layout: ConfigDir, ran: Run) -> None:
    listed = " ".join(ran("policy", "allow", "--help").out.split())
    assert f"One of: {', '.join(Kind)}." in listed
    for kind in Kind:
        assert "unknown kind" not in ran("-c", layout.root, "policy", "allow", "--yes", kind).err
    assert "unknown kind 'paths'" in ran("-c", layout.root, "policy", "allow", "--yes", "paths").err


def test_policy_show_as_text_and_json(layout: ConfigDir, ran: Run) -> None:
    layout.policy.write_text(
        json.dumps(
            {
                "write_roots": ["/etc/nginx/tls"],
                "commands": {"r": {"argv": ["/bin/true"], "run_as": "web", "sha256": "ab" * 32}},
                "on_alert": ["/usr/local/bin/page"],
                "acme": {"http01_directory": "/srv/acme", "tls_alpn01_listen": "[::]:443", "names": ["a.test"]},
                "window": {"days": ["sat"], "from": "22:00", "to": "04:00"},
            }
        )
    )
    out = ran("-c", layout.root, "policy", "show").out
    assert f"May write below: {layout.certs}, /etc/nginx/tls\n" in out
    assert "May run: /bin/true as web (r, at most 60 s, pinned by hash)\n" in out
    assert "Answers http-01 challenges of CAs: by files in /srv/acme for a.test\n" in out
    assert "Answers tls-alpn-01 challenges of CAs: by [::]:443 for a.test\n" in out
    assert "Deploys in: sat 22:00-04:00 UTC\n" in out and "On alert: /usr/local/bin/page\n" in out
    shown = ran("-c", layout.root, "policy", "show", "--json").json()
    assert shown["window"]["from"] == "22:00" and "from_" not in shown["window"]
    layout.policy.write_text('{"remote_commands": "off", "commands": {"r": {"argv": ["/bin/true"]}}}')
    out = ran("-c", layout.root, "policy", "show").out
    assert "May run: nothing (remote_commands is off)\n" in out
    assert "Answers challenges of CAs: none\n" in out
