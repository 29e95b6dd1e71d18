"""The host's policy decides: what it does not list is refused, with the line that would allow it."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Sequence
from typing import Any

import attrs
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from certctrl.install.plan.policy import (
    AgentIdentity,
    Grant,
    Refusal,
    explain,
    judge_command,
    judge_exec,
    refuse_owner,
    refuse_path,
)
from certctrl.model.paths import is_below
from certctrl.model.plan import CopyAction, ExecAction
from certctrl.model.policy import HostPolicy, NamedCommand, TrustStore

IDENTITY = AgentIdentity(config_dir="/etc/cert-ctrl", user="cert-ctrl", group="cert-ctrl")
RELOAD = NamedCommand(argv=("/usr/sbin/nginx", "-s", "reload"), timeout_seconds=20.0)
DUMP = NamedCommand(argv=("/usr/bin/pg_ctl", "reload"), run_as="postgres", env=("PGDATA",))
POLICY = HostPolicy(
    write_roots=("/etc/nginx/ssl", "/srv/tls/"),
    commands={"nginx": RELOAD, "pg": DUMP},
    run_as=("www-data",),
    owners=("postgres",),
)
NOTHING = HostPolicy()


def allows_path(policy: HostPolicy, path: str, identity: AgentIdentity, *, local: bool = False) -> bool:
    return refuse_path(policy, path, identity, local=local) is None


def allows_command(policy: HostPolicy, argv: Sequence[str], identity: AgentIdentity, **more: Any) -> bool:
    return isinstance(judge_command(policy, argv, identity, **more), Grant)


def refused(found: Grant | Refusal | None) -> Refusal:
    assert isinstance(found, Refusal)
    return found


# --- paths --------------------------------------------------------------------------------------------------------


def test_out_of_the_box_only_certs_may_be_written() -> None:
    assert allows_path(NOTHING, "/etc/cert-ctrl/certs/extra.pem", IDENTITY)
    assert not allows_path(NOTHING, "/etc/nginx/ssl/a.pem", IDENTITY)


@pytest.mark.parametrize("path", ["/etc/nginx/ssl/a.pem", "/srv/tls/deep/er/b.key", "/srv/tls/…/ü.pem"])
def test_below_a_root_is_allowed(path: str) -> None:
    assert allows_path(POLICY, path, IDENTITY)


@pytest.mark.parametrize(
    "path",
    [
        "/etc/nginx/ssl", "/etc/nginx/ssl/", "/etc/nginx/sslx/a", "/etc/nginx/ssl/../a", "/etc/nginx/ssl/./a",
        "/etc/nginx//ssl/a", "etc/nginx/ssl/a", "", "/", "/etc/nginx/ssl/a\0b", "/etc/nginx/ssl/a\nb",
        "/etc/nginx/ssl/\udc80", "/etc/nginx/ssl/" + "a" * 256, "/etc/nginx/ssl/" + "a/" * 2500 + "a",
        "/etc/nginx/ssl/\x9b31m", "/srv/tls",
    ],
)  # fmt: skip
def test_paths_that_are_not_below_a_root_are_refused(path: str) -> None:
    refusal = refused(refuse_path(POLICY, path, IDENTITY))
    assert refusal.why
    assert "\n" not in str(refusal) and "\0" not in str(refusal)


@pytest.mark.parametrize(
    "path",
    [
        "/etc/cert-ctrl/policy.json", "/etc/cert-ctrl/state/inbox.json", "/etc/cert-ctrl/keys/dev_sk.bin",
        "/etc/cert-ctrl/certs/.live/a/private.key", "/etc/cert-ctrl/certs/.generations/x", "/etc/cert-ctrl/certs/.x",
        "/etc/cert-ctrl/certs/chains/a.pem", "/etc/cert-ctrl/installs.local.json", "/etc/cert-ctrl/certs",
    ],
)  # fmt: skip
@pytest.mark.parametrize("local", [False, True])
def test_no_setting_opens_the_agents_own_tree(path: str, local: bool) -> None:
    everything = HostPolicy(write_roots=("/", "/etc", "/etc/cert-ctrl"))
    refusal = refused(refuse_path(everything, path, IDENTITY, local=local))
    assert (refusal.setting, refusal.line) == ("", "")


def test_the_program_of_an_allowed_command_is_never_overwritten() -> None:
    policy = HostPolicy(write_roots=("/usr/local/bin",), commands={"x": NamedCommand(argv=("/usr/local/bin/hook",))})
    assert not allows_path(policy, "/usr/local/bin/hook", IDENTITY)
    assert allows_path(policy, "/usr/local/bin/other", IDENTITY)


def test_programs_of_the_operator_are_never_overwritten() -> None:
    policy = attrs.evolve(
        POLICY, on_alert=("/srv/tls/page", "me"), trust_store=TrustStore(directory="/x", command=("/srv/tls/update",))
    )
    for path in ("/srv/tls/page", "/srv/tls/update"):
        assert allows_path(POLICY, path, IDENTITY) and not allows_path(policy, path, IDENTITY, local=True)


def test_a_refused_path_names_the_line_that_opens_it() -> None:
    refusal = refused(refuse_path(NOTHING, "/etc/nginx/ssl/a.pem", IDENTITY))
    assert refusal.line == '"write_roots": ["/etc/nginx/ssl"]'
    assert explain(refusal).endswith('policy.json needs "write_roots": ["/etc/nginx/ssl"]')
    assert allows_path(HostPolicy(write_roots=(refusal.value,)), "/etc/nginx/ssl/a.pem", IDENTITY)


def test_no_line_is_offered_that_would_open_the_whole_host() -> None:
    assert refused(refuse_path(NOTHING, "/etc/passwd", IDENTITY)).line == ""
    assert refused(refuse_path(NOTHING, "/vmlinuz", IDENTITY)).line == ""


def test_local_items_need_no_root_but_a_normalized_path() -> None:
    assert allows_path(NOTHING, "/etc/nginx/ssl/a.pem", IDENTITY, local=True)
    assert not allows_path(NOTHING, "/etc/nginx/../a.pem", IDENTITY, local=True)


pieces = st.sampled_from(
    ["etc", "nginx", "ssl", "..", ".", "", "a", "ssl\0", "cert-ctrl", "certs", ".live", "srv", "tls"]
)
paths = st.one_of(st.text(max_size=40), st.lists(pieces, max_size=7).map("/".join), st.lists(pieces).map(
    lambda parts: "/etc/nginx/ssl/" + "/".join(parts)))  # fmt: skip


@given(paths)
@example("/etc/nginx/ssl/../../passwd")
def test_allowed_paths_are_below_a_root(path: str) -> None:
    if allows_path(POLICY, path, IDENTITY):
        assert posixpath.normpath(path) == path
        roots = ("/etc/nginx/ssl", "/srv/tls", "/etc/cert-ctrl/certs")
        assert any(posixpath.commonpath([root, path]) == root and path != root for root in roots)
        assert not path.startswith(("/etc/cert-ctrl/certs/.", "/etc/cert-ctrl/state"))


def test_is_below_is_strict_about_roots() -> None:
    assert is_below("/a/b", "/a/") and is_below("/a", "/")
    assert not is_below("/a", "/a") and not is_below("/a/b", "a") and not is_below("/a/b", "/a/..")


# --- owners and modes ---------------------------------------------------------------------------------------------


def copy(**fields: Any) -> CopyAction:
    return CopyAction(**{"id": "1", "sources": ("private.key",), "targets": ("/srv/tls/a",)} | fields)


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o400, 0o440, None])
def test_modes_for_keys(mode: int | None) -> None:
    assert refuse_owner(POLICY, copy(mode=mode), IDENTITY) is None


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o660, 0o4600, 0o700, 0o777, 0o602])
def test_too_open_modes_for_keys(mode: int) -> None:
    for name in ("private.key", "combined.pem", "bundle.pfx", "bundle.jks"):
        assert refuse_owner(POLICY, copy(mode=mode, sources=("chain.pem", name)), IDENTITY)
    assert refuse_owner(POLICY, copy(mode=mode, id="local:1"), IDENTITY), "no setting makes a key world-readable"


def test_modes_for_public_files() -> None:
    assert refuse_owner(POLICY, copy(mode=0o644, sources=("fullchain.pem",)), IDENTITY) is None
    assert refuse_owner(POLICY, copy(mode=0o666, sources=("fullchain.pem",)), IDENTITY)
    assert refuse_owner(POLICY, copy(mode=0o755, sources=("fullchain.pem",)), IDENTITY)


def test_owners_are_listed_too() -> None:
    assert refuse_owner(POLICY, copy(owner="root", group="cert-ctrl"), IDENTITY) is None
    assert refuse_owner(POLICY, copy(owner="postgres"), IDENTITY) is None
    refusal = refused(refuse_owner(POLICY, copy(group="games"), IDENTITY))
    assert refusal.line == '"owners": ["games"]'
    assert refuse_owner(POLICY, copy(owner="games", id="local:1"), IDENTITY) is None


# --- commands -----------------------------------------------------------------------------------------------------


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
    assert refused(judge_exec(POLICY, item, IDENTITY)).line == '"shell": true'
    shell = attrs.evolve(POLICY, shell=True)
    assert refused(judge_exec(shell, item, IDENTITY)).setting == "commands"
    listed = attrs.evolve(shell, commands={"x": NamedCommand(argv=("/bin/sh", "-c", "echo hi; reboot"))})
    grant = judge_exec(listed, item, IDENTITY)
    assert isinstance(grant, Grant) and grant.argv == ("/bin/sh", "-c", "echo hi; reboot")
    assert isinstance(judge_exec(shell, attrs.evolve(item, id="local:9"), IDENTITY), Grant)
    assert isinstance(judge_exec(POLICY, attrs.evolve(item, id="local:9"), IDENTITY), Refusal)
