"""The policy and the local items: judged before they are believed, mistakes reported."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from typing import Any

import pytest
from config_dir import FS

from certctrl.errors import ConfigError
from certctrl.model.policy import HostPolicy, MaintenanceWindow, NamedCommand, TrustStore
from certctrl.store.config.files import (
    load_local_installs,
    load_policy,
    save_policy,
)
from certctrl.store.layout import ConfigDir

FULL = HostPolicy(
    write_roots=("/etc/ssl/site",),
    probe=("www.example.com", "mx.example:25", "192.0.2.1:443", "2001:db8::1", "[2001:db8::1]:443"),
    commands={"reload": NamedCommand(argv=("/usr/sbin/nginx", "-s", "reload"), run_as="www", sha256="0" * 64)},
    remote_commands="off",
    run_as=("www",),
    owners=("www",),
    shell=True,
    plaintext_keys=True,
    trust_on_first_use=True,
    on_revoked="placeholder",
    on_alert=("/usr/local/bin/alert",),
    window=MaintenanceWindow(days=("sat", "sun"), from_="22:00", to="04:00", timezone="UTC"),
    trust_store=TrustStore(directory="/usr/local/share/ca-certificates", command=("/usr/sbin/update-ca-certificates",)),
)


@pytest.mark.parametrize("policy", [HostPolicy(), FULL], ids=["out of the box", "everything set"])
def test_a_policy_round_trips(layout: ConfigDir, policy: HostPolicy) -> None:
    save_policy(FS, layout, policy)
    assert load_policy(layout) == policy
    assert stat.S_IMODE(layout.policy.stat().st_mode) == 0o644


def test_the_window_is_saved_with_its_documented_keys(layout: ConfigDir) -> None:
    save_policy(FS, layout, FULL)
    assert json.loads(layout.policy.read_text())["window"]["from"] == "22:00"
    assert "null" not in layout.policy.read_text(), "unset keys are left out"


def test_no_policy_allows_nothing(layout: ConfigDir) -> None:
    layout.policy.unlink()
    assert load_policy(layout) == HostPolicy()


WRONG_POLICIES: list[tuple[dict[str, Any], str, str]] = [
    ({"write_roots": ["/"]}, "write_roots[0]", "below /"),
    ({"write_roots": ["/a", "etc"]}, "write_roots[1]", "absolute"),
    ({"write_roots": ["/etc/../root"]}, "write_roots[0]", "absolute"),
    ({"write_roots": ["/etc/"]}, "write_roots[0]", "final slash"),
    ({"write_roots": ["//etc"]}, "write_roots[0]", "absolute"),
    ({"probe": ["a.example", "a b"]}, "probe[1]", "HOST"),
    ({"probe": ["a.example:0"]}, "probe[0]", "HOST"),
    ({"probe": ["a.example:https"]}, "probe[0]", "HOST"),
    ({"probe": ["10.0.0.0/8"]}, "probe[0]", "HOST"),
    ({"probe": [""]}, "probe[0]", "HOST"),
    ({"write_root": ["/a"]}, "write_root", "unknown key"),
    ({"commands": {"a": {"argv": []}}}, "commands.a.argv", "empty list"),
    ({"commands": {"a": {"argv": ["nginx"]}}}, "commands.a.argv[0]", "absolute"),
    ({"commands": {"a": {"argv": "/usr/sbin/nginx -s reload"}}}, "commands.a.argv", "expected a list, found text"),
    ({"commands": {"a": {}}}, "commands.a.argv", "is missing"),
    ({"commands": {"a": {"argv": ["/x"], "timeout_seconds": 601}}}, "commands.a.timeout_seconds", "1 to 600"),
    ({"commands": {"a": {"argv": ["/x"], "sha256": "zz"}}}, "commands.a.sha256", "64 lower-case hex"),
    ({"remote_commands": True}, "remote_commands", "expected text, found true or false"),
    ({"remote_commands": "offf"}, "remote_commands", "expected one of on, off"),
    ({"on_revoked": "delete"}, "on_revoked", "expected one of"),
    ({"on_alert": ["alert"]}, "on_alert[0]", "absolute"),
    ({"shell": "no"}, "shell", "expected true or false, found text"),
    ({"window": {"days": []}}, "window.days", "at least one"),
    ({"window": {"days": ["Sat"]}}, "window.days[0]", "expected one of mon"),
    ({"window": {"from": "24:01"}}, "window.from", "HH:MM"),
    ({"window": {"to": "7:00"}}, "window.to", "HH:MM"),
    ({"window": {"timezone": "Mars/Olympus"}}, "window.timezone", "time zone"),
    ({"window": {"timezone": "../../etc/passwd"}}, "window.timezone", "time zone"),
    ({"window": {"override_when_life_below": 2}}, "window.override_when_life_below", "0 to 1"),
    ({"trust_store": {"directory": "ca"}}, "trust_store.directory", "absolute"),
    ({"trust_store": {"command": []}}, "trust_store.command", "empty list"),
]


@pytest.mark.parametrize(("body", "path", "what"), WRONG_POLICIES, ids=[str(wrong[0])[:50] for wrong in WRONG_POLICIES])
def test_a_wrong_policy_is_reported(layout: ConfigDir, body: dict[str, Any], path: str, what: str) -> None:
    layout.policy.write_text(json.dumps(body))
    with pytest.raises(ConfigError) as caught:
        load_policy(layout)
    assert (caught.value.file, caught.value.path) == (str(layout.policy), path)
    assert what in str(caught.value)
    assert caught.value.fix


@pytest.mark.parametrize(
    ("body", "what", "fix"),
    [
        ('{"probe": ["a b"]}', "probe[0]: expected HOST", ""),
        ('{"write_roots": ["/"]}', "write_roots[0]: expected a directory below /", "name a directory"),
        ('{"shell": 1}', "shell: expected true or false", ""),
        ("[]", "expected an object, found a list", ""),
        ("{", "invalid JSON at line 1", "correct it; {} means all defaults"),
    ],
)
def test_the_way_to_correct_a_policy_is_named(layout: ConfigDir, body: str, what: str, fix: str) -> None:
    layout.policy.write_text(body)
    with pytest.raises(ConfigError) as caught:
        load_policy(layout)
    assert str(caught.value).startswith(f"{layout.policy}: {what}")
    assert caught.value.fix == (fix or f"correct it in {layout.policy}")


def load_local(layout: ConfigDir) -> object:
    if not layout.local_installs.exists():
        layout.local_installs.write_text("[]")
    return load_local_installs(layout)


DECISIVE = pytest.mark.parametrize(
    ("load", "name"), [(load_policy, "policy.json"), (load_local, "installs.local.json")], ids=["policy", "local items"]
)
"""Files that decide what is written and run: one rule for both."""


@DECISIVE
@pytest.mark.parametrize("mode", [0o664, 0o646])
def test_a_file_that_others_can_write_decides_nothing(
    load: Callable[[ConfigDir], object], name: str, mode: int, layout: ConfigDir
) -> None:
    load(layout)
    (layout.root / name).chmod(mode)
    with pytest.raises(ConfigError) as caught:
        load(layout)
    assert caught.value.file == str(layout.root / name)
    assert caught.value.fix == f"chmod go-w {layout.root / name}"


@pytest.mark.root
@DECISIVE
def test_a_file_of_another_user_decides_nothing(
    load: Callable[[ConfigDir], object], name: str, layout: ConfigDir
) -> None:
    load(layout)
    os.chown(layout.root / name, 65534, 65534)
    with pytest.raises(ConfigError, match="belongs to user 65534") as caught:
        load(layout)
    assert caught.value.file == str(layout.root / name)
    assert caught.value.fix == f"review it, then chown root {layout.root / name}"


@pytest.mark.root
@DECISIVE
def test_a_file_of_root_decides_for_another_user(
    load: Callable[[ConfigDir], object], name: str, layout: ConfigDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(layout)
    monkeypatch.setattr(os, "geteuid", lambda: 65534)
    assert load(layout) in (HostPolicy(), ())


@DECISIVE
@pytest.mark.parametrize("mode", [0o755, 0o444, 0o600])
def test_a_file_that_others_can_only_read_decides(
    load: Callable[[ConfigDir], object], name: str, mode: int, layout: ConfigDir
) -> None:
    load(layout)
    (layout.root / name).chmod(mode)
    assert load(layout) in (HostPolicy(), ())


def test_a_wrong_policy_is_not_saved(layout: ConfigDir) -> None:
    before = layout.policy.read_bytes()
    with pytest.raises(ConfigError) as caught:
        save_policy(FS, layout, HostPolicy(write_roots=("/",)))
    assert (caught.value.file, caught.value.path) == (str(layout.policy), "write_roots[0]")
    assert layout.policy.read_bytes() == before


ITEM = {"id": "local:1", "type": "copy"}


@pytest.mark.parametrize("body", [[ITEM], {"installs": [ITEM]}])
def test_local_items_are_a_list_or_under_installs(layout: ConfigDir, body: object) -> None:
    assert load_local_installs(layout) == ()
    layout.local_installs.write_text(json.dumps(body))
    assert load_local_installs(layout) == (ITEM,)


@pytest.mark.parametrize(
    ("body", "path"),
    [("{}", "installs"), ('"x"', ""), ("[1]", "[0]"), ('{"installs":[{},"x"]}', "installs[1]"), ("", "")],
)
def test_wrong_local_items_are_reported(layout: ConfigDir, body: str, path: str) -> None:
    layout.local_installs.write_text(body)
    with pytest.raises(ConfigError) as caught:
        load_local_installs(layout)
    assert (caught.value.file, caught.value.path) == (str(layout.local_installs), path)
    assert caught.value.fix
