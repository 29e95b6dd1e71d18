"""Root's policy: trusted only if nobody but root can write it, and every mistake is named."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from helper_world import rule, write_policy

from certctrl.errors import CertctrlError, ConfigError
from certctrl.helper.policy import load_policy, rules_of
from certctrl.store.disk.fs import RealFs
from certctrl.store.disk.helper import FileRule, rule_for

ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def fault_of(path: Path, entry: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        load_policy(RealFs(), write_policy(path, entry, "agent"))
    assert caught.value.fix or "agent" in str(caught.value)
    return str(caught.value)


def test_a_policy_is_read(tmp_path: Path) -> None:
    entry = {"files": [rule("/etc/x/a.key")], "units": {"nginx.service": ["reload"]}, "reloads_per_minute": 3}
    found = load_policy(RealFs(), write_policy(tmp_path / "p.json", entry, "agent"))
    assert rules_of(found["agent"]) == (FileRule(path="/etc/x/a.key", owner="0", group="0", mode=0o600, uid=0, gid=0),)
    assert (found["agent"].units, found["agent"].reloads_per_minute) == ({"nginx.service": ("reload",)}, 3)


@pytest.mark.parametrize(
    ("path", "fault"),
    [
        ("etc/x", "absolute"),
        ("/etc/x/../shadow", "normalized"),
        ("/etc//x", "normalized"),
        ("/etc/*/a.pem", "only the name"),
        ("/etc/*.pem", "too near"),
        ("/a.pem", "too near"),
        ("/proc/sys/kernel/core_pattern", "nothing is written below"),
        ("/etc/systemd/system/a.service", "nothing is written below"),
        ("/usr/local/lib/systemd/system/a.service", "nothing is written below"),
        ("/etc/x/a\n.pem", "not printable"),
    ],
)
def test_paths_that_are_refused(tmp_path: Path, path: str, fault: str) -> None:
    assert fault in fault_of(tmp_path / "p.json", {"files": [rule(path)]})


def test_the_policy_cannot_name_itself(tmp_path: Path) -> None:
    assert "this policy" in fault_of(tmp_path / "p.json", {"files": [rule(tmp_path / "p.json")]})


@pytest.mark.parametrize("mode", ["0666", "0755", "4600", "600", "0o600", "rw", "", "00600", "\u0660644"])
def test_modes_that_are_refused(tmp_path: Path, mode: str) -> None:
    assert "mode" in fault_of(tmp_path / "p.json", {"files": [rule("/etc/x/a", mode=mode)]})


@pytest.mark.parametrize(
    "unit",
    ["nginx", "-H.service", "--root=x.service", "ngi*.service", "a b.service", "[a].service", "", "../x.service", "x.target",
     "nginx.service\n", "ngin\u0445.service"],
)  # fmt: skip
def test_units_that_are_refused(tmp_path: Path, unit: str) -> None:
    assert "whole name" in fault_of(tmp_path / "p.json", {"units": {unit: ["reload"]}})


@pytest.mark.parametrize("verbs", [[], ["stop"], ["reload", "start"]])
def test_verbs_that_are_refused(tmp_path: Path, verbs: list[str]) -> None:
    assert "reload, restart or both" in fault_of(tmp_path / "p.json", {"units": {"nginx.service": verbs}})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        '{"a": {"file": []}}',
        '{"a": {"files": [{"path": "/etc/x/a"}]}}',
        '{"a": {}, "a": {}}',
        "[" * 9999,
    ],
)
def test_what_is_not_a_policy(tmp_path: Path, text: str) -> None:
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(ConfigError, match="json"):
        load_policy(RealFs(), tmp_path / "p.json")


def test_a_missing_and_a_huge_policy(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no policy"):
        load_policy(RealFs(), tmp_path / "p.json")
    (tmp_path / "p.json").write_text(" " * (1 << 17))
    with pytest.raises(CertctrlError, match="more than 65536"):
        load_policy(RealFs(), tmp_path / "p.json")


@ROOT
def test_a_policy_that_others_could_change_is_not_used(tmp_path: Path, need_acl: Any) -> None:
    path = write_policy(tmp_path / "p.json", {})
    for change, undo, why in (
        (lambda: os.chown(path, 65534, 0), lambda: os.chown(path, 0, 0), "does not belong to root"),
        (lambda: path.chmod(0o666), lambda: path.chmod(0o644), "can be written by others"),
        (
            lambda: os.chown(path, 0, 65534) or path.chmod(0o664),
            lambda: os.chown(path, 0, 0) or path.chmod(0o644),
            "group",
        ),
        (lambda: os.chown(tmp_path, 65534, 0), lambda: os.chown(tmp_path, 0, 0), "belongs to user 65534"),
        (lambda: tmp_path.chmod(0o777), lambda: tmp_path.chmod(0o700), "can be written by others"),
    ):
        change()
        with pytest.raises(CertctrlError, match=why):
            load_policy(RealFs(), path)
        undo()
        load_policy(RealFs(), path)


def test_a_policy_is_not_read_through_a_link(tmp_path: Path) -> None:
    write_policy(tmp_path / "p.json", {})
    (tmp_path / "link.json").symlink_to("p.json")
    with pytest.raises(CertctrlError):
        load_policy(RealFs(), tmp_path / "link.json")


@pytest.mark.parametrize(
    ("pattern", "path", "named"),
    [
        ("/x/a.pem", "/x/a.pem", True),
        ("/x/a.pem", "/x/a.pemm", False),
        ("/x/*.pem", "/x/a.pem", True),
        ("/x/*.pem", "/x/.pem", False),
        ("/x/*", "/x/.a.pem", False),
        ("/x/*.pem", "/x/y/a.pem", False),
        ("/x/*.pem", "/x/a.pem/b", False),
        ("/x/a*b*c", "/x/a-b-b-c", True),
        ("/x/a*b*c", "/x/ac", False),
        ("/x/ab*ba", "/x/aba", False),
        ("/x/[a].*", "/x/a.pem", False),
        ("/x/?.pem", "/x/a.pem", False),
    ],
)
def test_patterns(pattern: str, path: str, named: bool) -> None:
    assert FileRule(path=pattern, owner="0", group="0", mode=0o600).names(path) is named


def test_an_exact_rule_comes_before_patterns() -> None:
    rules = [FileRule(path=path, owner="0", group="0", mode=0o600) for path in ("/x/*", "/x/*.pem", "/x/a.pem")]
    assert [rule_for(rules, path) for path in ("/x/a.pem", "/x/b.pem", "/y/a")] == [rules[2], rules[0], None]


def test_a_rule_for_an_account_that_is_missing_spoils_no_other(tmp_path: Path) -> None:
    entry = {"files": [rule("/etc/x/a", owner="no-such-user"), rule("/etc/x/b")]}
    path = tmp_path / "p.json"
    path.write_text(json.dumps({"agent": entry}))
    assert [one.uid for one in rules_of(load_policy(RealFs(), path)["agent"])] == [None, 0]
