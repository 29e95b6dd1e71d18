"""The doctor on this host: each check finds its problem, names the fix, and changes nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from acl import set_acl

from certctrl.cli.doctor import host
from certctrl.cli.doctor.daemon import check_plan
from certctrl.cli.doctor.finding import CheckContext, Finding
from certctrl.cli.doctor.host import host_findings
from certctrl.model.policy import AcmeAnswers, HostPolicy, NamedCommand, TrustStore
from certctrl.model.records import Recommended
from certctrl.store.config.files import save_policy
from certctrl.store.disk.fs import RealFs
from certctrl.store.layout import ConfigDir
from certctrl.store.state.store import StateStore

from .conftest import NOW, FakeDaemon, Ran, running_status
from .doctor_helpers import found, register

# --- this host ----------------------------------------------------------------------------------------------------


def test_a_healthy_host(context: CheckContext) -> None:
    register(context.store)
    findings = list(host_findings(context))
    assert [str(one.level) for one in findings] == ["OK"] * len(findings)
    assert {one.check for one in findings} == {"config", "permissions", "disk", "state", "device", "policy"}


def test_wrong_configuration(context: CheckContext) -> None:
    context.layout.application.write_text('{"server_url": "https://p", "poll_limt": 1}')
    ((level, what, fix),) = found(host_findings(context), "config")
    assert level == "FAIL" and "poll_limt" in what and fix


def test_a_poll_mode_that_is_not_the_recommended_one(context: CheckContext) -> None:
    assert found(host_findings(context), "polling") == []
    context.store.session.save_recommended(Recommended("long-poll"))
    ((level, what, fix),) = found(host_findings(context), "polling")
    assert (level, fix) == ("WARN", 'set "poll_mode": "long-poll" in application.json')
    assert what == "poll_mode is interval (default); the control plane recommends long-poll"
    settings = json.loads(context.layout.application.read_text()) | {"poll_mode": "interval"}
    context.layout.application.write_text(json.dumps(settings))
    ((level, what, fix),) = found(host_findings(context), "polling")
    assert (level, fix) == ("OK", "") and "recommends long-poll" in what, "an operator chose it"
    context.store.session.save_recommended(Recommended("interval"))
    assert found(host_findings(context), "polling") == []
    context.layout.recommended.write_text("{")
    ((level, what, _),) = found(host_findings(context), "polling")
    assert level == "FAIL" and "recommended.json" in what


def test_open_permissions_are_reported_and_left(context: CheckContext) -> None:
    register(context.store)
    context.layout.refresh_token.chmod(0o644)
    ((level, what, fix),) = found(host_findings(context), "permissions")
    assert level == "FAIL" and str(context.layout.refresh_token) in what
    assert fix == f"chmod 0600 {context.layout.refresh_token}"
    assert context.layout.refresh_token.stat().st_mode & 0o777 == 0o644, "the doctor changes nothing"


@pytest.mark.parametrize(
    ("changes", "level", "words"),
    [
        ({"f_bavail": 1000, "f_frsize": 4096}, "FAIL", "4 MiB free"),
        ({"f_bavail": 20_000, "f_frsize": 4096}, "WARN", "78 MiB free"),
        ({"f_flag": os.ST_RDONLY}, "FAIL", "read-only"),
        ({"f_files": 1000, "f_favail": 3}, "FAIL", "3 inodes free"),
    ],
)
def test_disk_space(
    changes: dict[str, int], level: str, words: str, context: CheckContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = {"f_bavail": 1 << 30, "f_frsize": 4096, "f_flag": 0, "f_files": 10_000, "f_favail": 9_000} | changes

    class Facts:
        def __init__(self) -> None:
            self.__dict__.update(facts)

    monkeypatch.setattr(host.os, "statvfs", lambda _path: Facts())
    assert any(said == level and words in what for said, what, _ in found(host_findings(context), "disk"))


def test_each_damaged_state_file_is_named(context: CheckContext) -> None:
    register(context.store)
    for path in (context.layout.inbox, context.layout.certificates, context.layout.pending_acks):
        path.write_text("{")
        path.chmod(0o600)
    damaged = found(host_findings(context), "state")
    assert len(damaged) == 3 and all(level == "FAIL" and fix for level, _, fix in damaged)
    assert all(any(name in what for _, what, _ in damaged) for name in ("inbox", "certificates", "pending_acks"))


def test_not_registered(context: CheckContext) -> None:
    assert found(host_findings(context), "device") == [
        ("FAIL", "not registered: no device key", "cert-ctrl -c DIR register")
    ]


@pytest.mark.parametrize(
    ("public", "said"), [(b"p" * 32, "does not match its secret key"), (bytes(32), "dev_pk.bin is damaged")]
)
def test_a_device_key_pair_that_does_not_match(context: CheckContext, public: bytes, said: str) -> None:
    register(context.store)
    assert [level for level, _, _ in found(host_findings(context), "device")] == ["OK"]
    context.layout.device_public_key.write_bytes(public)
    ((level, what, _),) = found(host_findings(context), "device")
    assert level == "FAIL" and said in what


def test_problems_of_a_policy(context: CheckContext, tmp_path: Path) -> None:
    real, link, loose = tmp_path / "real", tmp_path / "link", tmp_path / "loose"
    real.mkdir()
    link.symlink_to(real)
    loose.mkdir()
    loose.chmod(0o777)
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o777)
    policy = HostPolicy(
        write_roots=(str(real), str(link), str(loose), str(tmp_path / "missing")),
        commands={
            "good": NamedCommand(argv=("/bin/true",)),
            "bad": NamedCommand(argv=(str(script),), run_as="nosuchuser"),
        },
        run_as=("root",), owners=("root", "nosuchgroup"), shell=True, plaintext_keys=True,
        on_alert=("/nonexistent/page",),
    )  # fmt: skip
    save_policy(RealFs(), context.layout, policy)
    findings = found(host_findings(context), "policy")
    text = "\n".join(f"{level} {what}" for level, what, _ in findings)
    for words in (
        f"FAIL write_roots: {link} contains a symbolic link", f"FAIL write_roots: {loose} can be written by others",
        f"WARN write_roots: {tmp_path}/missing: No such file", "FAIL commands.bad: ", "FAIL on_alert: ",
        "FAIL no user nosuchuser", "FAIL owners: no user or group nosuchgroup",
        "WARN the control plane may run shell lines", "WARN private keys are accepted even if not sealed",
    ):  # fmt: skip
        assert words in text
    assert "commands.good" not in text and f"{real}:" not in text
    assert all(fix for _, _, fix in findings)


def write_root_findings(context: CheckContext, root: Path, *owners: str) -> list[str]:
    save_policy(RealFs(), context.layout, HostPolicy(write_roots=(str(root),), owners=owners))
    return [what for level, what, _ in found(host_findings(context), "policy") if level != "OK"]


def test_a_write_root_is_judged_as_a_deployment_does(
    context: CheckContext, tmp_path: Path, need_acl: Callable[[Path], None]
) -> None:
    """By the whole way and effective rights, not by the mode of the last directory."""
    need_acl(tmp_path)
    above, root = tmp_path / "above", tmp_path / "above" / "root"
    root.mkdir(parents=True)
    assert write_root_findings(context, root) == []
    set_acl(root, "user::7 user:1234:7 group::5 mask::7 other::5")
    assert write_root_findings(context, root) == [f"write_roots: {root} can be written by user 1234 (mode 0775)"]
    set_acl(root, "user::7 user:1234:7 group::5 mask::5 other::5")
    assert write_root_findings(context, root) == [], "the mask takes the right away"
    above.chmod(0o777)
    assert write_root_findings(context, root) == [f"write_roots: {above} can be written by others (mode 0777)"]


@pytest.mark.root
def test_a_write_root_may_belong_to_an_allowed_owner(context: CheckContext, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    os.chown(root, 65534, 0)
    assert write_root_findings(context, root) == [
        f"write_roots: {root} belongs to user 65534, who could change what is in it"
    ]
    assert write_root_findings(context, root, "nobody") == []


def test_a_changed_pinned_script_is_found(context: CheckContext) -> None:
    context.store.installed.save_pins({"/bin/true": "ab" * 32})
    ((level, what, fix),) = [one for one in found(host_findings(context), "policy") if one[0] != "OK"]
    assert level == "FAIL" and what.startswith("script pinned at its first run: /bin/true")
    assert "trust reset --scripts" in fix


def test_a_missing_trust_store_is_found(context: CheckContext, tmp_path: Path) -> None:
    save_policy(RealFs(), context.layout, HostPolicy(trust_store=TrustStore(directory=str(tmp_path / "none"))))
    ((level, what, _),) = [one for one in found(host_findings(context), "policy") if one[0] != "OK"]
    assert (level, what) == ("FAIL", f"trust_store: no directory {tmp_path}/none")


def test_a_directory_for_challenges_that_cannot_be_used_is_found(context: CheckContext, tmp_path: Path) -> None:
    directory = tmp_path / "tokens"
    save_policy(RealFs(), context.layout, HostPolicy(acme=AcmeAnswers(http01_directory=str(directory))))
    ((level, what, fix),) = [one for one in found(host_findings(context), "policy") if one[0] != "OK"]
    assert (level, fix) == ("FAIL", f"mkdir -p {directory}") and what.startswith("acme.http01_directory: there is no")
    directory.mkdir()
    directory.chmod(0o777)
    ((level, what, fix),) = [one for one in found(host_findings(context), "policy") if one[0] != "OK"]
    assert level == "FAIL" and "can be written by others" in what and fix
    directory.chmod(0o755)
    assert {one[0] for one in found(host_findings(context), "policy")} == {"OK"}


async def test_refusals_are_found_without_a_daemon(context: CheckContext) -> None:
    context.layout.local_installs.write_text('[{"id": "c", "type": "exec", "cmd_argv": ["reload-nginx"]}]')
    notes: list[Finding] = []
    before = sorted(str(path) for path in context.layout.root.rglob("*"))
    await check_plan(context, notes.append)
    ((level, what, fix),) = [(str(one.level), one.what, one.fix) for one in notes]
    assert level == "WARN" and what.startswith("refused: run reload-nginx: ") and fix
    assert sorted(str(path) for path in context.layout.root.rglob("*")) == before, "nothing is changed"


async def test_invalid_items_are_a_finding(context: CheckContext) -> None:
    context.layout.local_installs.write_text("x")
    notes: list[Finding] = []
    await check_plan(context, notes.append)
    assert [str(one.level) for one in notes] == ["FAIL"] and "installs.local.json" in notes[0].what


# --- the command ------------------------------------------------------------------------------------------------


def test_the_report_of_a_fresh_directory(layout: ConfigDir, ran: Callable[..., Ran]) -> None:
    done = ran("-c", layout.root, "doctor", "--offline")
    assert done.status == 1 and done.err == ""
    lines = done.out.splitlines()
    assert "FAIL  device: not registered: no device key" in lines
    assert lines[lines.index("FAIL  device: not registered: no device key") + 1] == (
        f"      fix: cert-ctrl -c {layout.root} register"
    )
    assert lines[-1].endswith("1 failure, 1 warning")


def test_json_and_a_running_daemon(
    layout: ConfigDir, store: StateStore, daemon: Callable[..., FakeDaemon], ran: Callable[..., Ran]
) -> None:
    register(store)
    line = '"commands": {"x": {"argv": ["/bin/x"]}}'
    refusals = [
        {"item": "a", "what": "run /bin/x", "why": "not among commands", "setting": "commands", "line": line},
        {"item": "b", "what": "run /bin/y", "why": "others may write to /bin/y", "setting": "", "line": ""},
        {"item": "local:c", "what": "write /x/y", "why": "/x is a link", "setting": "", "line": ""},
    ]
    replies = {
        "status": running_status(
            health="degraded", problems=[{"what": "breaker open", "since": NOW, "fix": "cert-ctrl -c DIR poll-now"}]
        ),
        "plan": {"refusals": refusals},
    }
    daemon(lambda request: {"ok": True, "data": replies[request["op"]]})
    done = ran("-c", layout.root, "doctor", "--offline", "--json")
    assert done.status == 1
    rows = {(row["check"], row["level"]): row for row in done.json()}
    assert rows["daemon", "FAIL"]["fix"] == f"cert-ctrl -c {layout.root} poll-now"
    refused = {row["what"].partition(":")[2].strip(): row["fix"] for row in done.json() if row["check"] == "plan"}
    assert refused == {
        "run /bin/x: not among commands": f"cert-ctrl -c {layout.root} policy allow (adds {line})",
        "run /bin/y: others may write to /bin/y": "fix the reason on this host, or change the item in the install config "
        "on the control plane",
        "write /x/y: /x is a link": "fix the reason on this host, or change the item in installs.local.json",
    }


def test_no_failures_is_status_0(
    layout: ConfigDir, store: StateStore, daemon: Callable[..., FakeDaemon], ran: Callable[..., Ran]
) -> None:
    register(store)
    replies = {"status": running_status(), "plan": {"refusals": []}}
    daemon(lambda request: {"ok": True, "data": replies[request["op"]]})
    done = ran("-c", layout.root, "doctor", "--offline")
    assert done.status == 0 and done.out.splitlines()[-1].endswith("0 failures, 0 warnings")


@pytest.mark.parametrize(
    ("transport", "level", "what"),
    [
        (None, None, ""),
        ({"uses": "push"}, "OK", "signals arrive on a push socket"),
        ({"uses": "long-poll", "why": "status 403"}, "WARN", "no push, signals arrive by long polls: status 403"),
    ],
)
def test_the_transport_in_use_is_a_finding(
    transport: dict[str, str] | None,
    level: str | None,
    what: str,
    layout: ConfigDir,
    store: StateStore,
    daemon: Callable[..., FakeDaemon],
    ran: Callable[..., Ran],
) -> None:
    register(store)
    poll = running_status()["poll"] | ({} if transport is None else {"transport": transport})
    replies = {"status": running_status(poll=poll), "plan": {"refusals": []}}
    daemon(lambda request: {"ok": True, "data": replies[request["op"]]})
    rows = [row for row in ran("-c", layout.root, "doctor", "--offline", "--json").json() if row["check"] == "push"]
    assert [(row["level"], row["what"]) for row in rows] == ([] if level is None else [(level, what)])
    assert all(("WebSocket upgrades" in row["fix"]) == (level == "WARN") for row in rows)


def test_an_invalid_configuration_does_not_stop_the_other_checks(layout: ConfigDir, ran: Callable[..., Ran]) -> None:
    layout.application.write_text("{")
    rows = ran("-c", layout.root, "doctor", "--json").json()
    checks = [row["check"] for row in rows]
    assert {"config", "permissions", "disk", "state", "device", "policy", "daemon"} <= set(checks)
    assert "dns" not in checks, "without a configuration the plane is unknown"
