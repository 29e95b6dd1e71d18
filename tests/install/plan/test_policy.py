"""The host's policy decides which files are written: others are refused, with the line that would allow them."""

from __future__ import annotations

import posixpath
from typing import Any

import attrs
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from certctrl.install.plan.policy import (
    AgentIdentity,
    Refusal,
    explain,
    refuse_owner,
    refuse_path,
)
from certctrl.model.paths import is_below
from certctrl.model.plan import CopyAction
from certctrl.model.policy import HostPolicy, NamedCommand, TrustStore

IDENTITY = AgentIdentity(config_dir="/etc/cert-ctrl", user="cert-ctrl", group="cert-ctrl")
POLICY = HostPolicy(
    write_roots=("/etc/nginx/ssl", "/srv/tls/"),
    owners=("postgres",),
)
NOTHING = HostPolicy()


def allows_path(policy: HostPolicy, path: str, identity: AgentIdentity, *, local: bool = False) -> bool:
    return refuse_path(policy, path, identity, local=local) is None


def refused(found: Refusal | None) -> Refusal:
    assert isinstance(found, Refusal)
    return found


# --- paths --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config_dir", ["/etc/cert-ctrl", "/etc/cert-ctrl/"])
def test_out_of_the_box_only_certs_may_be_written(config_dir: str) -> None:
    identity = attrs.evolve(IDENTITY, config_dir=config_dir)
    assert allows_path(NOTHING, "/etc/cert-ctrl/certs/extra.pem", identity)
    assert not allows_path(NOTHING, "/etc/nginx/ssl/a.pem", identity)
    assert not allows_path(NOTHING, "/etc/cert-ctrl/policy.json", identity)


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


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("private.key", "too open: a private key at most 0640"),
        ("fullchain.pem", "too open: a public file at most 0644"),
    ],
)
def test_a_mode_that_is_too_open_names_the_bound(name: str, why: str) -> None:
    found = Refusal(item="1", what="set mode 0664", why=why)
    assert refuse_owner(POLICY, copy(mode=0o664, sources=(name,)), IDENTITY) == found
    each = copy(modes=(None, 0o664), sources=("chain.pem", name), targets=("/srv/tls/a", "/srv/tls/b"))
    assert refuse_owner(POLICY, each, IDENTITY) == found


def test_owners_are_listed_too() -> None:
    assert refuse_owner(POLICY, copy(owner="root", group="cert-ctrl"), IDENTITY) is None
    assert refuse_owner(POLICY, copy(owner="postgres"), IDENTITY) is None
    refusal = refused(refuse_owner(POLICY, copy(group="games"), IDENTITY))
    assert (refusal.item, refusal.line) == ("1", '"owners": ["games"]')
    assert refuse_owner(POLICY, copy(owner="games", id="local:1"), IDENTITY) is None
