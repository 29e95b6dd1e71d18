"""doctor and the root helper: what the items need, what its policy lacks, and what keeps it from answering."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import attrs
import pytest
from helper_world import direct, rule, write_policy

from certctrl.cli.doctor import helper as check
from certctrl.cli.doctor.finding import CheckContext
from certctrl.errors import DiskError
from certctrl.helper.client import HelperClient
from certctrl.model.plan import CopyAction
from certctrl.store.disk.fs import RealFs
from certctrl.store.layout import ConfigDir
from certctrl.store.state.store import StateStore

from .doctor_helpers import CONFIG, found

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="pretends to be another user")


@pytest.fixture
def context(layout: ConfigDir, monkeypatch: pytest.MonkeyPatch) -> CheckContext:
    """An unprivileged agent with items for a file of postgres, and for a unit."""
    items = [
        {"id": "pair", "type": "copy", "ob_id": 1, "from": ["private.key", "fullchain.pem"],
         "to": ["/etc/ssl/db/server.key", "/etc/ssl/db/server.crt"], "owner": "daemon"},
        {"id": "reload", "type": "exec", "cmd_argv": ["reload db"], "depends_on": ["pair"]},
        {"id": "polkit", "type": "exec", "cmd_argv": ["/usr/bin/systemctl", "start", "cert-ctrl-reload@web.service"]},
    ]  # fmt: skip
    argv = ["/usr/bin/systemctl", "reload", "db.service"]
    for path, body in ((layout.local_installs, items), (layout.policy, {"commands": {"reload db": {"argv": argv}}})):
        path.write_text(json.dumps(body))
        path.chmod(0o600)
    monkeypatch.setattr(check.os, "geteuid", lambda: 4711)
    monkeypatch.setattr(check, "own_names", lambda: ("cert-ctrl", "cert-ctrl"))
    monkeypatch.setattr(check, "POLKIT", str(layout.policy))
    fs = RealFs()
    return CheckContext(layout=layout, fs=fs, store=StateStore(layout, fs), environ={}, now=lambda: 0.0, config=CONFIG)


def findings(context: CheckContext) -> list[tuple[str, str, str]]:
    return found(check.helper_findings(context), "helper")


def with_helper(monkeypatch: pytest.MonkeyPatch, client: Any) -> None:
    class Client:
        at = staticmethod(lambda path: client)

    monkeypatch.setattr(check, "HelperClient", Client)


def test_without_a_helper_its_lines_are_named(context: CheckContext) -> None:
    key, chain, unit = findings(context)
    start = 'systemctl enable --now cert-ctrl-helper.socket, and in /etc/cert-ctrl-helper.json, below "cert-ctrl": '
    line = '{"path": "/etc/ssl/db/server.key", "owner": "daemon", "group": "root", "mode": "0600"}'
    assert (key[0], key[2]) == ("WARN", f'{start}"files": [{line}]')
    assert "server.crt" in chain[1] and '"mode": "0644"' in chain[2]
    assert unit[2] == f'{start}"units": {{"db.service": ["reload"]}}'


def test_without_polkit_its_units_are_named(context: CheckContext, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then nothing else lets the agent's user start `cert-ctrl-reload@`."""
    monkeypatch.setattr(check, "POLKIT", str(context.layout.root / "missing"))
    *_, unit, web = findings(context)
    assert '"db.service"' in unit[2]
    assert '"units": {"web.service": ["reload"]}' in web[2]


def test_the_lines_of_doctor_are_accepted(
    context: CheckContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [json.loads("{" + fix.partition('cert-ctrl": ')[2] + "}") for _, _, fix in findings(context)]
    entry = {"files": [row for one in lines for row in one.get("files", [])], "units": lines[-1]["units"]}
    with_helper(monkeypatch, direct(policy=write_policy(tmp_path / "p.json", entry)).client)
    (finding,) = findings(context)
    assert finding[0] == "OK" and "2 rules for files, 1 unit" in finding[1]


def test_a_rule_for_other_files_does_not_help(
    context: CheckContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = {"files": [rule("/etc/ssl/db/server.crt")], "units": {"db.service": ["restart"]}}
    with_helper(monkeypatch, direct(policy=write_policy(tmp_path / "p.json", entry)).client)
    key, unit = findings(context)
    assert "server.key" in key[1] and key[2].startswith("in /etc/cert-ctrl-helper.json")
    assert "db.service" in unit[1]


def test_a_helper_that_does_not_answer_is_a_failure(context: CheckContext, monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(request: Any, data: Any, seconds: float) -> Any:
        raise DiskError("cannot ask the root helper: Permission denied", fix="look")

    with_helper(monkeypatch, HelperClient(ask))
    assert findings(context) == [("FAIL", "cannot ask the root helper: Permission denied", "look")]


def test_no_line_is_named_for_what_the_host_refuses(context: CheckContext, monkeypatch: pytest.MonkeyPatch) -> None:
    """A control plane, or who has taken the agent over, may ask for any path; root is not told to allow it."""
    copies = [
        CopyAction(id=f"of-the-plane-{n}", ob_id=1, sources=("fullchain.pem",), targets=(path,), owner="daemon")
        for n, path in enumerate(("/etc/cron.d/job", "/etc/ssl/db/a.pem"))
    ]
    monkeypatch.setattr("certctrl.agent.install_config.active_items", lambda layout, installed: copies)
    context.layout.policy.write_text(json.dumps({"write_roots": ["/etc/ssl/db"]}))
    (finding,) = findings(context)
    assert "/etc/ssl/db/a.pem" in finding[1]


def test_a_helper_for_another_agent_is_no_failure(
    context: CheckContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = write_policy(tmp_path / "p.json", {}, user="someone-else")
    with_helper(monkeypatch, direct(policy=policy).client)
    assert [kind for kind, _, _ in findings(context)] == ["FAIL"], "its items need one"
    context.layout.local_installs.write_text("[]")
    assert findings(context) == []


def test_a_socket_of_another_agent_is_named(
    context: CheckContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    socket = tmp_path / "helper.sock"
    socket.touch()
    monkeypatch.setattr(check, "HelperClient", HelperClient)
    monkeypatch.setattr(HelperClient, "is_there", False)
    config = attrs.evolve(CONFIG, application=attrs.evolve(CONFIG.application, helper_socket=str(socket)))
    first = findings(attrs.evolve(context, config=config))[0]
    assert first[2].startswith(
        f"let cert-ctrl connect to {socket} (SupplementaryGroups=cert-ctrl in its unit), and in "
    )


def test_without_need_and_without_helper_nothing_is_said(context: CheckContext) -> None:
    context.layout.local_installs.write_text("[]")
    assert findings(context) == []


def test_an_agent_of_root_needs_none(context: CheckContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check.os, "geteuid", lambda: 0)
    assert findings(context) == []
    assert findings(attrs.evolve(context, config=None)) == []
