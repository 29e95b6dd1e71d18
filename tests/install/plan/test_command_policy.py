"""The host's policy decides which commands run: others are refused, with the entry that would allow them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from certctrl.install.plan.policy import (
    AgentIdentity,
    Grant,
    Refusal,
    explain,
    judge_command,
    judge_exec,
    may_probe_anywhere,
)
from certctrl.install.plan.refusals import judge_argv
from certctrl.model.plan import ExecAction, VerifyTls
from certctrl.model.policy import HostPolicy, NamedCommand

IDENTITY = AgentIdentity(config_dir="/etc/cert-ctrl", user="cert-ctrl", group="cert-ctrl")
RELOAD = NamedCommand(argv=("/usr/sbin/nginx", "-s", "reload"), timeout_seconds=20.0)
DUMP = NamedCommand(argv=("/usr/bin/pg_ctl", "reload"), run_as="postgres", env=("PGDATA",))
POLICY = HostPolicy(commands={"nginx": RELOAD, "pg": DUMP}, run_as=("www-data",))
NOTHING = HostPolicy()


def allows_command(policy: HostPolicy, argv: Sequence[str], identity: AgentIdentity, **more: Any) -> bool:
    return isinstance(judge_command(policy, argv, identity, **more), Grant)


def refused(found: Grant | Refusal) -> Refusal:
    assert isinstance(found, Refusal)
    return found


def granted(found: Grant | Refusal) -> Grant:
    assert isinstance(found, Grant)
    return found


def test_only_the_exact_argv_is_allowed() -> None:
    assert allows_command(POLICY, RELOAD.argv, IDENTITY)
    for argv in [
        (*RELOAD.argv, "-c", "/tmp/x"), RELOAD.argv[:2], ("/usr/sbin/nginx",), ("nginx", "-s", "reload"),
        ("/usr/sbin/../sbin/nginx", "-s", "reload"), (), ("",), ("/usr/sbin/nginx", "-s", "reload\0"), ("unknown",),
    ]:  # fmt: skip
        assert not allows_command(POLICY, argv, IDENTITY)
    assert not allows_command(NOTHING, RELOAD.argv, IDENTITY)


def test_a_name_that_is_not_listed_is_refused_as_such() -> None:
    found = refused(judge_command(POLICY, ("nginx-reload",), IDENTITY, item="7"))
    assert (found.item, found.why, found.setting) == ("7", "policy.json lists no command named nginx-reload", "")
    assert found.fix == "cert-ctrl -c DIR policy allow command --name nginx-reload -- /PATH/TO/PROGRAM [ARGUMENT]..."
    assert explain(found) == f"run nginx-reload: {found.why}; to allow it: {found.fix}"
    assert refused(judge_command(POLICY, ("ngnix",), IDENTITY)).why.endswith("named ngnix; did you mean nginx?")
    assert "no command named pg2" in refused(judge_command(POLICY, ("pg2",), IDENTITY, local=True)).why
    hostile = refused(judge_command(POLICY, ("a;reboot\n",), IDENTITY))
    assert hostile.fix == "" and "\n" not in explain(hostile), "words of the plane are no command to copy"


@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("nginx", "the program nginx is not an absolute path"),
        ("bin/x", "the program bin/x is not an absolute path"),
        ("/usr/sbin/../bin/x", "the program /usr/sbin/../bin/x is not a plain absolute path (no '.', '..' or '//')"),
    ],
)
def test_a_program_without_an_absolute_path_is_refused(program: str, why: str) -> None:
    found = refused(judge_command(POLICY, (program, "-s"), IDENTITY))
    assert (found.why, found.setting, found.fix) == (why, "", "")


def test_a_command_can_be_requested_by_name() -> None:
    grant = judge_command(POLICY, ["nginx"], IDENTITY, timeout=60)
    assert isinstance(grant, Grant)
    assert (grant.argv, grant.timeout, grant.run_as, grant.listed) == (RELOAD.argv, 20.0, None, True)


def test_the_policys_limit_is_the_upper_bound() -> None:
    def limit(asked: float, policy: HostPolicy = POLICY) -> float:
        grant = judge_command(policy, RELOAD.argv, IDENTITY, timeout=asked)
        assert isinstance(grant, Grant)
        return grant.timeout

    assert [limit(5), limit(600), limit(0.001), limit(-1)] == [5.0, 20.0, 1.0, 1.0]
    generous = HostPolicy(commands={"x": attrs.evolve(RELOAD, timeout_seconds=9e9)})
    assert limit(9e9, generous) == 600.0


def test_remote_commands_can_be_switched_off() -> None:
    off = attrs.evolve(POLICY, remote_commands="off")
    refusal = refused(judge_command(off, RELOAD.argv, IDENTITY))
    assert refusal.line == '"remote_commands": "on"'
    assert allows_command(off, RELOAD.argv, IDENTITY, local=True), "the host's own rows are not remote"


def test_users() -> None:
    def user(argv: tuple[str, ...], run_as: str | None, local: bool = False) -> str | Refusal | None:
        found = judge_command(POLICY, argv, IDENTITY, run_as=run_as, local=local)
        return found if isinstance(found, Refusal) else found.run_as

    assert user(RELOAD.argv, None) is None
    assert user(RELOAD.argv, "cert-ctrl") is None
    assert user(RELOAD.argv, "www-data") == "www-data"
    assert user(DUMP.argv, None) == user(DUMP.argv, "postgres") == "postgres"
    assert isinstance(user(DUMP.argv, "root"), Refusal)
    assert isinstance(user(DUMP.argv, "cert-ctrl"), Refusal)
    refusal = user(RELOAD.argv, "root")
    assert isinstance(refusal, Refusal) and refusal.line == '"run_as": ["root"]'
    assert user(RELOAD.argv, "root", local=True) == "root"


def test_environment() -> None:
    def given_env(argv: tuple[str, ...], env: dict[str, str], local: bool = False) -> bool:
        return isinstance(judge_command(POLICY, argv, IDENTITY, env=env, local=local), Grant)

    assert given_env(DUMP.argv, {"PGDATA": "/x"})
    for name in ("LD_PRELOAD", "PATH", "BASH_ENV", "PGDATA", "a b", "", "X=Y", "É"):
        assert not given_env(RELOAD.argv, {name: "x"})
    assert not given_env(DUMP.argv, {"PGDATA": "a\0b"})
    assert given_env(RELOAD.argv, {"PGDATA": "x"}, local=True)


@pytest.mark.parametrize("variable", ["CERTCTRL_KEY_FILE", "CERTCTRL_NOTE", "CERTCTRL_"])
@pytest.mark.parametrize("local", [False, True])
def test_the_agents_variables_are_reserved(variable: str, local: bool) -> None:
    """An item could otherwise set one that the agent leaves out; no entry of the policy allows it."""
    listed = HostPolicy(commands={"nginx": attrs.evolve(RELOAD, env=(variable,))})
    found = refused(judge_command(listed, RELOAD.argv, IDENTITY, env={variable: "/tmp/x"}, local=local))
    assert found.why == f"may not be given the variable {variable}: names with CERTCTRL_ are the agent's"
    assert (found.setting, found.line, found.fix) == ("", "", "")


@pytest.mark.parametrize("milliseconds", [1, 1000, 19_999, 600_000])
def test_an_item_of_the_plane_cannot_shorten_an_allowed_command(milliseconds: int) -> None:
    grant = judge_exec(POLICY, ExecAction(id="9", cmd_argv=RELOAD.argv, timeout_ms=milliseconds), IDENTITY)
    assert isinstance(grant, Grant) and grant.timeout == 20.0


def test_the_hosts_own_items_have_their_own_limit() -> None:
    def limit(argv: tuple[str, ...], milliseconds: int) -> float:
        grant = judge_exec(POLICY, ExecAction(id="local:9", cmd_argv=argv, timeout_ms=milliseconds), IDENTITY)
        assert isinstance(grant, Grant)
        return grant.timeout

    assert [limit(RELOAD.argv, 5000), limit(RELOAD.argv, 60_000)] == [5.0, 20.0]
    assert [limit(("/bin/own",), 5000), limit(("/bin/own",), 60_000)] == [5.0, 60.0]


def test_a_refused_variable_names_an_entry_that_allows_it() -> None:
    refusal = refused(judge_command(POLICY, DUMP.argv, IDENTITY, env={"PGHOST": "x"}))
    assert refusal.value == {"pg": {"argv": list(DUMP.argv), "run_as": "postgres", "env": ["PGHOST"]}}


@given(st.lists(st.text(max_size=12), min_size=1, max_size=4), st.sampled_from([None, "games"]))
def test_the_offered_entry_allows_exactly_this_command(words: list[str], run_as: str | None) -> None:
    argv = ("/bin/x", *words)
    found = refused(judge_command(POLICY, argv, IDENTITY, run_as=run_as))
    if not found.setting:
        assert any(set(word) & {"\0"} for word in words)
        return
    ((name, entry),) = found.value.items()
    assert name not in POLICY.commands
    opened = attrs.evolve(
        POLICY, commands={**POLICY.commands, name: NamedCommand(argv=tuple(entry["argv"]), run_as=entry.get("run_as"))}
    )
    assert allows_command(opened, argv, IDENTITY, run_as=run_as)
    assert json.loads("{" + found.line + "}") == {"commands": found.value}
    assert found.line.isprintable()


def test_shell_lines_need_both_the_switch_and_the_list() -> None:
    item = ExecAction(id="9", cmd="echo hi; reboot")
    off = refused(judge_exec(POLICY, item, IDENTITY))
    assert (off.item, off.line) == ("9", '"shell": true')
    shell = attrs.evolve(POLICY, shell=True)
    assert refused(judge_exec(shell, item, IDENTITY)).setting == "commands"
    listed = attrs.evolve(shell, commands={"x": NamedCommand(argv=("/bin/sh", "-c", "echo hi; reboot"))})
    grant = judge_exec(listed, item, IDENTITY)
    assert isinstance(grant, Grant) and grant.argv == ("/bin/sh", "-c", "echo hi; reboot")
    assert isinstance(judge_exec(shell, attrs.evolve(item, id="local:9"), IDENTITY), Grant)
    assert isinstance(judge_exec(POLICY, attrs.evolve(item, id="local:9"), IDENTITY), Refusal)
    empty = ExecAction(id="local:9")
    assert granted(judge_exec(shell, empty, IDENTITY)).argv == ("/bin/sh", "-c", "")


def test_a_command_gets_the_user_and_the_environment_of_its_item() -> None:
    reload = ExecAction(id="9", cmd_argv=RELOAD.argv, run_as="www-data")
    assert granted(judge_exec(POLICY, reload, IDENTITY)).run_as == "www-data"
    dump = ExecAction(id="9", cmd_argv=DUMP.argv, env={"PGDATA": "/x"})
    assert granted(judge_exec(POLICY, dump, IDENTITY)).env == {"PGDATA": "/x"}
    assert refused(judge_exec(NOTHING, reload, IDENTITY)).item == "9"


def test_a_check_is_judged_as_a_command_of_its_item() -> None:
    argv = ("/bin/check", "{staged}")
    found = refused(judge_argv(POLICY, "9", argv, IDENTITY))
    assert (found.item, found.why) == ("9", "not among commands")
    assert granted(judge_argv(POLICY, "local:9", argv, IDENTITY)) == Grant(argv=argv, run_as=None, timeout=60.0)
    assert granted(judge_argv(POLICY, "9", RELOAD.argv, IDENTITY)).timeout == 20.0
    slow = HostPolicy(commands={"slow": attrs.evolve(RELOAD, timeout_seconds=300.0)})
    assert granted(judge_argv(slow, "9", RELOAD.argv, IDENTITY)).timeout == 300.0, "the policy's limit counts"


@pytest.mark.parametrize(
    ("argv", "more", "expected"),
    [
        (("/bin/x",), {}, Refusal(item="9", what="run /bin/x", why="not among commands", setting="commands",
                                  value={"x": {"argv": ["/bin/x"]}})),
        (RELOAD.argv, {"run_as": "root"}, Refusal(item="9", what="run /usr/sbin/nginx -s reload",
                                                  why="not allowed to run as root", setting="run_as", value="root")),
        (DUMP.argv, {"run_as": "root"}, Refusal(item="9", what="run /usr/bin/pg_ctl reload",
                                                why="it runs as postgres only")),
        (DUMP.argv, {"env": {"PGDATA": "/x", "PGHOST": "x"}}, Refusal(
            item="9", what="run /usr/bin/pg_ctl reload", why="may not be given the variable PGHOST", setting="commands",
            value={"pg": {"argv": list(DUMP.argv), "run_as": "postgres", "env": ["PGHOST"]}})),
        (("/bin/x", "\0"), {}, Refusal(item="9", what='run /bin/x \\x00', why="a word contains NUL or is not UTF-8")),
    ],
)  # fmt: skip
def test_a_refusal_names_the_item_the_command_and_the_entry(
    argv: tuple[str, ...], more: dict[str, Any], expected: Refusal
) -> None:
    assert judge_command(POLICY, argv, IDENTITY, item="9", **more) == expected


def test_switched_off_commands_are_refused_for_their_item() -> None:
    off = attrs.evolve(POLICY, remote_commands="off")
    assert [judge_command(off, RELOAD.argv, IDENTITY, **more).item for more in ({}, {"item": "9"})] == ["", "9"]


def test_a_granted_command_is_pinned_and_limited_as_the_policy_says() -> None:
    pinned = attrs.evolve(DUMP, sha256="0" * 64, script_sha256="1" * 64)
    policy = HostPolicy(commands={"pg": pinned})
    assert judge_command(policy, DUMP.argv, IDENTITY, env={"PGDATA": "/x"}) == Grant(
        argv=DUMP.argv, run_as="postgres", timeout=60.0, sha256="0" * 64, script_sha256="1" * 64,
        env={"PGDATA": "/x"}, listed=True,
    )  # fmt: skip
    own = judge_command(policy, ["/bin/own"], IDENTITY, local=True)
    assert own == Grant(argv=("/bin/own",), run_as=None, timeout=60.0)


@pytest.mark.parametrize(
    ("words", "allowed"),
    [
        (["x"] * 255, True), (["x"] * 256, False), (["x" * (65_536 - 6)], True), (["x" * (65_536 - 5)], False),
    ],
)  # fmt: skip
def test_a_command_has_a_bound(words: list[str], allowed: bool) -> None:
    assert allows_command(POLICY, ("/bin/x", *words), IDENTITY, local=True) is allowed


@pytest.mark.parametrize(("length", "allowed"), [(4096, True), (4097, False)])
def test_the_value_of_a_variable_has_a_bound(length: int, allowed: bool) -> None:
    assert allows_command(POLICY, DUMP.argv, IDENTITY, env={"PGDATA": "x" * length}) is allowed


@pytest.mark.parametrize(
    ("argv", "name"),
    [
        (("/usr/sbin/nginx", "-s", "reload"), "nginx-s-reload"),
        (("/bin/Reload it", "NOW!"), "reload-it-now"),
        (("/bin/-x", "y-"), "x-y"),
        (("/bin/_", "-"), "command"),
        (("/bin/" + "a" * 39, "b"), "a" * 39),
        (("/bin/" + "a" * 50,), "a" * 40),
        (("/bin/-" + "a" * 50,), "a" * 40),
        (("/bin/taken",), "taken-3"),
    ],
)
def test_an_offered_entry_has_a_free_name_after_the_command(argv: tuple[str, ...], name: str) -> None:
    policy = HostPolicy(commands=dict.fromkeys(("taken", "taken-2", "pg"), DUMP))
    assert list(refused(judge_command(policy, argv, IDENTITY)).value) == [name]


# --- probes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "listed", "allowed"),
    [
        ("www.example", (), False),
        ("www.example", ("other.example", "www.example:444"), False),
        ("www.example", ("other.example", "WWW.example"), True),
        ("Www.example", ("www.EXAMPLE:443",), True),
        ("2001:DB8::1", ("2001:db8::1",), True),
        ("2001:DB8::1", ("[2001:db8::1]",), True),
        ("2001:DB8::1", ("[2001:db8::1]:443",), True),
        ("2001:DB8::1", ("2001:db8::1:443",), False),
        ("www.example", ("[www.example]",), False),
    ],
)
def test_an_endpoint_elsewhere_is_probed_if_it_is_listed(host: str, listed: tuple[str, ...], allowed: bool) -> None:
    verify, policy = VerifyTls(host=host, port=443), HostPolicy(probe=listed)
    assert may_probe_anywhere(policy, verify, "9") is allowed
    assert may_probe_anywhere(policy, verify, "local:9"), "the operator's own items need no list"
