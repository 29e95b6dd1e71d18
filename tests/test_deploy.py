"""The files in deploy/ and of the project: settings that must stay, and names that must exist in the code."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"


def settings_of(name: str) -> dict[str, list[str]]:
    """Return a unit's settings; systemd allows a key more than once."""
    found: dict[str, list[str]] = {}
    for line in (DEPLOY / name).read_text(encoding="utf-8").splitlines():
        if "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


@pytest.mark.parametrize("name", ["cert-ctrl.service", "cert-ctrl@.service", "cert-ctrl-root.service"])
def test_the_daemon_cannot_write_the_files_that_decide_what_it_may_do(name: str) -> None:
    from certctrl.store.layout import ConfigDir

    unit, layout = settings_of(name), ConfigDir(Path("/etc/cert-ctrl-%i" if "@" in name else "/etc/cert-ctrl"))
    assert (unit["ProtectSystem"], unit["ReadOnlyPaths"]) == (["strict"], [str(layout.root)])
    writable = [Path(word.lstrip("-")) for words in unit["ReadWritePaths"] for word in words.split()]
    operators = (layout.policy, layout.local_installs, layout.application, layout.httpclient, layout.plane_ca)
    for path in operators:
        assert not any(path.is_relative_to(root) for root in writable), path
    for path in layout.directories()[1:]:
        assert any(path.is_relative_to(root) for root in writable), path


@pytest.mark.parametrize("name", ["cert-ctrl.service", "cert-ctrl@.service", "cert-ctrl-root.service"])
def test_systemd_does_not_restart_after_statuses_that_need_an_operator(name: str) -> None:
    unit = settings_of(name)
    assert unit["RestartPreventExitStatus"] == ["77 78"]
    assert (unit["Restart"], unit["StartLimitIntervalSec"]) == (["always"], ["0"])
    assert (unit["Type"], unit["NotifyAccess"], unit["KillMode"]) == (["notify"], ["main"], ["mixed"])
    assert int(unit["WatchdogSec"][0]) == 120
    assert unit["LimitCORE"] == ["0"]  # a core dump would contain keys and tokens


def test_the_control_plane_is_as_hardened_as_the_agent() -> None:
    agent, plane = settings_of("cert-ctrl.service"), settings_of("cert-ctrl-plane.service")
    first, last = list(agent).index("CapabilityBoundingSet"), list(agent).index("KeyringMode")
    sandbox = list(agent)[first : last + 1]
    assert "ProtectSystem" in sandbox and "SystemCallFilter" in sandbox
    assert {key: plane[key] for key in sandbox} == {key: agent[key] for key in sandbox}
    assert "ReadWritePaths" not in plane and plane["StateDirectoryMode"] == ["0700"]
    assert plane["LimitCORE"] == ["0"] and plane["RestartPreventExitStatus"] == ["2 78"]
    assert plane["LoadCredential"] == ["certctrl-database", "certctrl-storage-key", "certctrl-operator-key"]


def test_the_instances_differ_from_the_single_agent_only_in_their_directory() -> None:
    single, instance = settings_of("cert-ctrl.service"), settings_of("cert-ctrl@.service")
    for unit in (single, instance):
        unit.pop("Description")
    assert {key: [v.replace("cert-ctrl-%i", "cert-ctrl") for v in values] for key, values in instance.items()} == single


def test_each_instance_has_its_own_user() -> None:
    """Found by review: all instances ran as one user, which could read the keys of all."""
    instance = settings_of("cert-ctrl@.service")
    assert (instance["User"], instance["Group"]) == (["cert-ctrl-%i"], ["cert-ctrl-%i"])
    assert instance["ConfigurationDirectoryMode"] == ["0700"]


RULE = """
var rule, now = 0, results = [];
var polkit = {Result: {YES: "yes", NO: "no", NOT_HANDLED: "-"}, addRule: function (given) { rule = given; },
              log: function (text) {}};
Date.now = function () { return now * 1000; };
%s
JSON.parse(process.argv[1]).forEach(function (asked) {
    var details = {verb: asked.verb, unit: asked.unit};
    now = asked.at;
    results.push(rule({id: asked.id, lookup: function (name) { return details[name]; }}, {user: asked.user}));
});
console.log(JSON.stringify(results));
"""
MANAGE = "org.freedesktop.systemd1.manage-units"


def asked(unit: str = "nginx", *, at: float = 0.0, **more: str) -> dict[str, object]:
    unit = f"cert-ctrl-reload@{unit}.service"
    return {"id": MANAGE, "verb": "start", "unit": unit, "user": "cert-ctrl", "at": at} | more


def decided(*requests: dict[str, object]) -> list[str]:
    """Return the results of the polkit rule."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("no JavaScript here")
    rule = (DEPLOY / "polkit" / "50-cert-ctrl.rules").read_text(encoding="utf-8")
    argv = [node, "-e", RULE.replace("%s", rule), json.dumps(requests)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True)
    results: list[str] = json.loads(done.stdout)
    return results


def test_the_polkit_rule_allows_listed_services_only() -> None:
    """Found by review: the agent's user could reload any service of the host."""
    assert decided(asked(), asked("haproxy")) == ["yes", "yes"]
    others = [
        asked("ssh"), asked("nginx.service"), asked("nginx@x"), asked(""), asked(user="www-data"),
        asked(user="cert-ctrl-edge"), asked(user="constructor"), asked(verb="restart"), asked(verb="stop"),
        asked(id="org.freedesktop.systemd1.reload-daemon"), asked() | {"unit": "nginx.service"},
    ]  # fmt: skip
    assert set(decided(*others)) == {"-"}


def test_the_polkit_rule_limits_the_rate() -> None:
    requests = [asked(at=float(second)) for second in range(31)]
    assert decided(*requests) == ["yes"] * 30 + ["no"]
    later = [asked("haproxy", at=31.0), asked(at=60.5), asked(at=60.6)]
    assert decided(*requests, *later)[31:] == ["yes", "yes", "no"], "other services, and later"
    assert decided(*requests, asked(at=-3600.0))[31:] == ["yes"], "a clock that was set back"


def test_only_the_root_unit_has_capabilities() -> None:
    root = "CAP_CHOWN CAP_FOWNER CAP_DAC_OVERRIDE CAP_SETUID CAP_SETGID CAP_KILL"
    assert settings_of("cert-ctrl-root.service")["CapabilityBoundingSet"] == [root]
    for name in ("cert-ctrl.service", "cert-ctrl@.service", "cert-ctrl-reload@.service"):
        assert settings_of(name)["CapabilityBoundingSet"] == [""]


def test_the_plain_unit_has_the_lines_of_the_spec() -> None:
    plain = settings_of("cert-ctrl-plain.service")
    spec = {
        "Description": "Certificate Control Agent",
        "Wants": "network-online.target",
        "Type": "simple",
        "User": "cert-ctrl",
        "Group": "cert-ctrl",
        "ExecStart": "/usr/local/bin/cert-ctrl -c /etc/cert-ctrl --keep-running",
        "Restart": "always",
        "RestartSec": "10s",
        "WantedBy": "multi-user.target",
    }
    assert {key: plain[key] for key in spec} == {key: [value] for key, value in spec.items()}
    assert "network-online.target" in plain["After"][0].split()


# --- units: a line that one of them has and another lacks is a decision ------------------------------------------

MODEL = "cert-ctrl.service"
DAEMONS = (MODEL, "cert-ctrl@.service", "cert-ctrl-root.service", "cert-ctrl-plain.service", "cert-ctrl-plane.service")
OF_A_DAEMON = {"Description", "User", "Group", "ExecStart", "ConditionPathExists", "RestartSec", "After"}
"""What each daemon has in its own way, if it has it."""
OF_THE_AGENT = {
    "ConfigurationDirectory",
    "ConfigurationDirectoryMode",
    "ReadOnlyPaths",
    "ReadWritePaths",
    "Environment",
}
BY_REQUEST = {
    "Wants",
    "Restart",
    "RestartSec",
    "RestartPreventExitStatus",
    "WatchdogSec",
    "WantedBy",
    "ExecReload",
}
NOTIFIED = {"NotifyAccess", "WatchdogSec"}


def _sandbox() -> set[str]:
    lines = list(settings_of(MODEL))
    return {*lines[lines.index("CapabilityBoundingSet") :]} - {"WantedBy", "LimitCORE", "LimitNOFILE"}


LACKS: dict[str, set[str]] = {
    "cert-ctrl@.service": set(),
    "cert-ctrl-root.service": {"User", "Group", "PrivateUsers"},  # it needs the users of the host
    # old releases of systemd; the limit of starts has another name there, and RestartSec is longer than its interval
    "cert-ctrl-plain.service": {
        *_sandbox(), *NOTIFIED, "StartLimitIntervalSec", "OOMPolicy",
        "ConfigurationDirectory", "ConfigurationDirectoryMode", "ReadOnlyPaths", "ReadWritePaths",
    },
    # it sets itself up (plane setup), and its memory depends on the fleet
    "cert-ctrl-plane.service": {*OF_THE_AGENT - {"Environment"}, "ConditionPathExists", "MemoryMax"},
    # started for a request, as root, and ended by itself; RemoveIPC is for units with a user
    "cert-ctrl-helper.service": {
        *BY_REQUEST, "NotifyAccess", "User", "Group", "PrivateUsers", "RemoveIPC", "ConditionPathExists", "OOMPolicy", "KillMode",
        *OF_THE_AGENT - {"ReadOnlyPaths", "ReadWritePaths"},
    },
    "cert-ctrl-reload@.service": {
        *BY_REQUEST, "NotifyAccess", "User", "Group", "PrivateUsers", "RemoveIPC", "ConditionPathExists", "OOMPolicy",
        "KillMode", "TimeoutStopSec", *OF_THE_AGENT, "LimitNOFILE",
    },
}  # fmt: skip
"""Lines of the model that a unit deliberately has not."""
DIFFERS: dict[str, set[str]] = {
    "cert-ctrl@.service": {"ConfigurationDirectory", "ReadOnlyPaths", "ReadWritePaths"},
    "cert-ctrl-root.service": {"ReadWritePaths", "CapabilityBoundingSet", "SystemCallFilter"},
    "cert-ctrl-plain.service": {"Type"},
    "cert-ctrl-plane.service": {  # 2: its options are in a file of the operator
        "Environment", "RestartPreventExitStatus", "TimeoutStopSec", "OOMPolicy", "LimitNOFILE", "TasksMax",
    },
    "cert-ctrl-helper.service": {
        "Type", "TimeoutStopSec", "ReadOnlyPaths", "ReadWritePaths", "CapabilityBoundingSet", "RestrictAddressFamilies",
        "SystemCallFilter", "LimitNOFILE", "MemoryMax", "TasksMax",
    },
    "cert-ctrl-reload@.service": {"Type", "RestrictAddressFamilies"},
}  # fmt: skip
"""Lines that a unit deliberately has with another value."""


def test_every_unit_is_compared() -> None:
    assert {path.name for path in DEPLOY.glob("*.service")} == {MODEL, *LACKS} == {MODEL, *DIFFERS}
    assert {*DAEMONS} <= {MODEL, *LACKS}


@pytest.mark.parametrize("name", sorted(LACKS))
def test_no_unit_has_forgotten_a_line_of_the_others(name: str) -> None:
    """Found by review: the plain unit restarted a revoked agent forever, and let others read what it made."""
    model, unit = settings_of(MODEL), settings_of(name)
    assert {key for key in model if key not in unit} == LACKS[name]
    different = {key for key in model if key in unit and model[key] != unit[key]}
    assert different - OF_A_DAEMON == DIFFERS[name]


@pytest.mark.parametrize("name", DAEMONS)
def test_statuses_that_need_an_operator_end_every_daemon(name: str) -> None:
    from certctrl.errors import ExitStatus

    unit = settings_of(name)
    statuses = {int(word) for word in unit["RestartPreventExitStatus"][0].split()}
    assert unit["Restart"] == ["always"] and ExitStatus.CONFIG in statuses
    assert (ExitStatus.NOT_REGISTERED in statuses) is ("plane" not in name)


def test_the_sample_directory_is_accepted(tmp_path: Path) -> None:
    from certctrl.store.config.files import load_config, load_local_installs, load_policy
    from certctrl.store.layout import ConfigDir

    root = tmp_path / "agent"
    root.mkdir(mode=0o700)
    for sample in (DEPLOY / "config").iterdir():
        (root / sample.name).write_text(sample.read_text(encoding="utf-8"), encoding="utf-8")
        (root / sample.name).chmod(0o600)
    layout = ConfigDir(root)
    assert load_config(layout, {}).config.application.server_url == "https://plane.example.com"
    policy = load_policy(layout)
    items = load_local_installs(layout)
    allowed = {command.argv for command in policy.commands.values()}
    assert {tuple(item["cmd_argv"]) for item in items if item["type"] == "exec"} == allowed
    for item in items:
        assert all(path.startswith(policy.write_roots) for path in item.get("to", ()))


# --- metrics: rules and dashboard may only name what the agent exposes -------------------------------------------


def exposed_names() -> set[str]:
    from certctrl.agent.counters import Counters
    from certctrl.agent.metric_families import AgentCollector, View
    from certctrl.plane.health import metric_families as plane
    from certctrl.plane.health.counters import DatabaseCalls, PlaneCounters

    names = set()
    agents = AgentCollector(View(counters=Counters(), status={}, records=())).collect()
    for family in (*agents, *plane.families(plane.View(counters=PlaneCounters(), database=DatabaseCalls()))):
        names.add(family.name)
        names |= {f"{family.name}_total"} if family.type == "counter" else set()
        names |= {f"{family.name}_{end}" for end in ("bucket", "sum", "count")} if family.type == "histogram" else set()
    return names


@pytest.mark.parametrize(
    "file",
    ["prometheus/alerts.yml", "prometheus/plane-alerts.yml", "grafana/cert-ctrl.json", "grafana/cert-ctrl-plane.json"],
)
def test_metrics_named_in_deploy_exist(file: str) -> None:
    pytest.importorskip("prometheus_client")
    used = set(re.findall(r"\bcertctrl_[a-z_]+", (DEPLOY / file).read_text(encoding="utf-8")))
    assert used
    assert used <= exposed_names()


@pytest.mark.parametrize("file", ["alerts.yml", "plane-alerts.yml"])
def test_every_alert_names_its_fix(file: str) -> None:
    text = (DEPLOY / "prometheus" / file).read_text(encoding="utf-8")
    alerts = text.split("- alert: ")[1:]
    assert len(alerts) >= 10
    for alert in alerts:
        assert all(f"{key}:" in alert for key in ("expr", "severity", "summary", "description")), alert


@pytest.mark.parametrize("file", ["cert-ctrl.json", "cert-ctrl-plane.json"])
def test_the_dashboard_is_complete(file: str) -> None:
    board = json.loads((DEPLOY / "grafana" / file).read_text(encoding="utf-8"))
    panels = board["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) >= 10
    assert all(target["expr"] for panel in panels for target in panel["targets"])
    cells = [(p["gridPos"]["x"] + dx, p["gridPos"]["y"] + dy) for p in panels
             for dx in range(p["gridPos"]["w"]) for dy in range(p["gridPos"]["h"])]  # fmt: skip
    assert len(set(cells)) == len(cells), "panels overlap"


# --- the project ------------------------------------------------------------------------------------------------------


def test_ci_runs_the_command_of_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    command = next(line for line in readme.splitlines() if line.endswith(".venv/bin/nox"))
    assert command in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()


def test_the_version_is_in_the_changelog() -> None:
    import certctrl

    assert f"## [{certctrl.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
