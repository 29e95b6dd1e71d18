"""Each alert rule in ``deploy/prometheus`` fires when it should and is silent otherwise, as Prometheus' own tool sees it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.integration

RULES = Path(__file__).parents[2] / "deploy" / "prometheus"
DAY = 86_400
SAMPLES = 30 * 24 * 8
"""Length of the series, one sample each two minutes: the longest rule waits a week."""


def steady(value: float) -> str:
    """Return a series that keeps one value."""
    return f"{value}x{SAMPLES}"


def growing(step: float) -> str:
    """Return a counter that grows by ``step`` with each sample."""
    return f"0+{step}x{SAMPLES}"


def life(left: float, whole: float) -> dict[str, str]:
    """Return the series of a certificate that has ``left`` of its ``whole`` seconds at the moment of evaluation (2 h)."""
    labels = '{instance="web-1",name="a.example"}'
    end = 2 * 3600 + left
    return {
        f"certctrl_certificate_not_after_timestamp_seconds{labels}": steady(end),
        f"certctrl_certificate_not_before_timestamp_seconds{labels}": steady(end - whole),
    }


def histogram(name: str, slow: bool) -> dict[str, str]:
    """Return a histogram whose observations lie all above the largest bound, or all below the smallest."""
    low, high = (0, 60) if slow else (60, 60)
    return {
        f'{name}_bucket{{instance="plane-1",le="0.1"}}': growing(low),
        f'{name}_bucket{{instance="plane-1",le="30"}}': growing(high),
        f'{name}_bucket{{instance="plane-1",le="+Inf"}}': growing(high),
    }


AGENT: dict[str, tuple[str, dict[str, str], dict[str, str]]] = {
    # alert: when it is evaluated, series with which it fires, series with which it does not
    "CertCtrlDown": ("1h", {'up{job="cert-ctrl"}': steady(0)}, {'up{job="cert-ctrl"}': steady(1)}),
    "CertCtrlStale": ("1h", {"certctrl_stale": steady(1)}, {"certctrl_stale": steady(0)}),
    "CertCtrlBreakerOpen": ("1h", {"certctrl_breaker_open": steady(1)}, {"certctrl_breaker_open": steady(0)}),
    "CertCtrlCertificateExpired": ("2h", life(-60, 90 * DAY), life(60 * DAY, 90 * DAY)),
    "CertCtrlCertificateExpiresSoon": ("2h", life(6 * DAY, 90 * DAY), life(60 * DAY, 90 * DAY)),
    "CertCtrlDeploymentFails": (
        "1h",
        {"certctrl_certificate_last_apply_success": steady(0)},
        {"certctrl_certificate_last_apply_success": steady(1)},
    ),
    "CertCtrlStuck": ("1h", {"certctrl_stuck_items": steady(2)}, {"certctrl_stuck_items": steady(0)}),
    "CertCtrlQuarantined": ("1h", {"certctrl_quarantined_signals": steady(1)}, {"certctrl_quarantined_signals": steady(0)}),
    "CertCtrlTokenExpired": (
        "1h",
        {"certctrl_token_expiry_timestamp_seconds": steady(600)},
        {"certctrl_token_expiry_timestamp_seconds": steady(3600)},
    ),
    "CertCtrlOutcomesDropped": (
        "1h", {"certctrl_acks_dropped_total": growing(1)}, {"certctrl_acks_dropped_total": steady(7)},
    ),
    "CertCtrlRaisedAlert": (
        "1h", {'certctrl_alerts_total{kind="held"}': growing(1)}, {'certctrl_alerts_total{kind="held"}': steady(7)},
    ),
    "CertCtrlHeld": ("7d1h", {"certctrl_certificate_held": steady(1)}, {"certctrl_certificate_held": steady(0)}),
}  # fmt: skip
REQUESTS = "certctrl_plane_requests_total"
PLANE: dict[str, tuple[str, dict[str, str], dict[str, str]]] = {
    "CertCtrlPlaneDown": ("1h", {'up{job="cert-ctrl-plane"}': steady(0)}, {'up{job="cert-ctrl-plane"}': steady(1)}),
    "CertCtrlPlaneNotReady": ("1h", {"certctrl_plane_ready": steady(0)}, {"certctrl_plane_ready": steady(1)}),
    "CertCtrlPlaneProblem": (
        "1h",
        {'certctrl_plane_problem{problem="disk-low"}': steady(1)},
        {'certctrl_plane_problem{problem="disk-low"}': steady(0)},
    ),
    "CertCtrlPlaneErrors": (
        "1h", {REQUESTS + '{code="500",route="/x"}': growing(1)}, {REQUESTS + '{code="500",route="/x"}': steady(3)},
    ),
    "CertCtrlPlaneRefuses": (
        "1h",
        {REQUESTS + '{code="503"}': growing(1), REQUESTS + '{code="200"}': growing(9)},
        {REQUESTS + '{code="503"}': growing(1), REQUESTS + '{code="200"}': growing(99)},
    ),
    "CertCtrlPlaneRefusesConnections": (
        "1h",
        {'certctrl_plane_connections_refused_total{reason="all"}': growing(1)},
        {'certctrl_plane_connections_refused_total{reason="all"}': steady(9)},
    ),
    "CertCtrlPlaneLateWakes": (
        "1h", histogram("certctrl_plane_wake_duration_seconds", True),
        histogram("certctrl_plane_wake_duration_seconds", False),
    ),
    "CertCtrlPlaneSlowDatabase": (
        "1h", histogram("certctrl_plane_database_duration_seconds", True),
        histogram("certctrl_plane_database_duration_seconds", False),
    ),
    "CertCtrlPlaneJobsOverdue": (
        "1h",
        {'certctrl_plane_jobs{kind="order",state="overdue"}': steady(1)},
        {'certctrl_plane_jobs{kind="order",state="waiting"}': steady(1)},
    ),
    "CertCtrlPlaneCertificatesEnding": (
        "2h",
        {'certctrl_plane_certificates{state="ending"}': steady(1)},
        {'certctrl_plane_certificates{state="ending"}': steady(0)},
    ),
    "CertCtrlPlaneCertificatesEnded": (
        "1h",
        {'certctrl_plane_certificates{state="ended"}': steady(1)},
        {'certctrl_plane_certificates{state="ended"}': steady(0)},
    ),
    "CertCtrlPlaneSilentDevices": (
        "2h",
        {'certctrl_plane_devices{state="silent"}': steady(1)},
        {'certctrl_plane_devices{state="silent"}': steady(0)},
    ),
}  # fmt: skip


def run(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)


def fires(alert: str, at: str, series: dict[str, str], expected: bool) -> dict[str, Any]:
    """Return a test of one rule, in the words of ``promtool test rules``."""
    values = [{"series": name, "values": value} for name, value in series.items()]
    count = f'count(ALERTS{{alertname="{alert}",alertstate="firing"}}) or vector(0)'
    samples = [{"labels": "{}", "value": int(expected)}]
    return {
        "name": f"{alert} {'fires' if expected else 'is silent'}",
        "interval": "2m",
        "input_series": values,
        "promql_expr_test": [{"expr": count, "eval_time": at, "exp_samples": samples}],
    }


@pytest.mark.parametrize(("file", "table"), [("alerts.yml", AGENT), ("plane-alerts.yml", PLANE)])
def test_each_rule_fires_when_it_should_and_is_silent_otherwise(
    tmp_path: Path, need: Callable[[str], str], file: str, table: dict[str, tuple[str, dict[str, str], dict[str, str]]]
) -> None:
    rules = RULES / file
    assert rules.read_text(encoding="utf-8").count("- alert: ") == len(table), "a rule without a test, or the reverse"
    tests = [
        fires(alert, at, series, expected)
        for alert, (at, bad, good) in table.items()
        for series, expected in ((bad, True), (good, False))
    ]
    (tmp_path / "tests.yml").write_text(
        json.dumps({"rule_files": [str(rules)], "evaluation_interval": "10m", "tests": tests}), encoding="utf-8"
    )
    checked = run(need("promtool"), "check", "rules", str(rules))
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert f"{len(table)} rules found" in checked.stdout
    done = run(need("promtool"), "test", "rules", str(tmp_path / "tests.yml"))
    assert done.returncode == 0, done.stdout + done.stderr
