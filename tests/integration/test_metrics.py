"""Metrics over HTTP from the real daemon, as Prometheus reads them."""

from __future__ import annotations

import re
import socket
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from fleet import PROGRAM, USER, Fleet, Plane, run_cli, wait_for
from prometheus_client.parser import text_string_to_metric_families

pytestmark = pytest.mark.integration
MANUAL = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
DOCUMENTED = set(re.findall(r"^\| `(certctrl_\w+)` \|", MANUAL, flags=re.MULTILINE))


def scrape(port: int, path: str = "/metrics") -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as reply:
        assert reply.headers["content-type"].startswith("text/plain")
        return str(reply.read().decode())


def test_a_scrape_has_the_documented_metrics(fleet: Fleet, plane: Plane) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    agent = fleet.agent(
        plane, "measured", metrics_listen=f"127.0.0.1:{port}", poll_mode="interval", poll_interval_ms=100
    )
    row = plane.operator.issue("measured.example", agent.device_id)
    daemon = agent.start()
    agent.catches_up()
    wait_for(lambda: 'certctrl_polls_total{code="204"}' in scrape(port), "a poll without news in the figures")
    families = {family.name: family for family in text_string_to_metric_families(scrape(port))}

    reported = {name.removesuffix("_total").removesuffix("_info") for name in DOCUMENTED}
    ours = {name for name in families if name.startswith("certctrl_")}
    assert {name.removesuffix("_info") for name in ours} <= reported, "each family is documented"
    for name in ours:
        counter = families[name].type == "counter"
        assert not name.endswith(("_ms", "_minutes", "_percent")), name
        assert families[name].documentation, name
        assert not counter or all(sample.name.endswith(("_total", "_created")) for sample in families[name].samples)

    (expiry,) = families["certctrl_certificate_not_after_timestamp_seconds"].samples
    assert (expiry.labels["name"], expiry.labels["cert_id"]) == ("measured.example", str(row["id"]))
    (result,) = (sample for sample in families["certctrl_certificate_last_apply_result"].samples if sample.value == 1.0)
    assert result.labels["result"] == "applied"
    assert families["certctrl_stale"].samples[0].value == 0
    assert daemon.running
    with pytest.raises(urllib.error.HTTPError, match="404"):
        scrape(port, "/")
    assert daemon.stop() == 0


def test_a_revocation_counts_as_an_alert(fleet: Fleet, plane: Plane) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    agent = fleet.agent(plane, "alarmed", metrics_listen=f"127.0.0.1:{port}")
    row = plane.operator.issue("alarmed.example", agent.device_id)
    agent.start()
    agent.catches_up()
    assert "certctrl_alerts_total{" not in scrape(port)
    plane.operator.call("POST", f"/apiv1/users/{USER}/certificates/{row['id']}/revoke", {"reason": "key lost"})
    wait_for(lambda: 'certctrl_alerts_total{kind="revoked"} 1.0' in scrape(port), "the alert in the figures")
    assert "certctrl_problems 1.0" in scrape(port)


def test_a_public_metrics_address_needs_metrics_public(fleet: Fleet, plane: Plane) -> None:
    agent = fleet.agent(plane, "public", metrics_listen="0.0.0.0:9464")
    done = agent.cli("config", "check")
    assert done.returncode == 78
    assert "metrics_listen" in done.stderr
    assert "metrics_public" in done.stderr


def test_the_control_plane_has_the_documented_metrics(fleet: Fleet) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = ["--data", fleet.root / "plane", "--listen", "127.0.0.1:0", "--metrics", f"127.0.0.1:{port}"]
    child = fleet.child([*PROGRAM, "plane", "serve", *options], "plane.log")
    child.says("operator key", f"metrics        http://127.0.0.1:{port}/metrics")
    families = {family.name: family for family in text_string_to_metric_families(scrape(port))}
    ours = {name.removesuffix("_info") for name in families if name.startswith("certctrl_plane_")}
    assert ours == {
        name.removesuffix("_total").removesuffix("_info") for name in DOCUMENTED if name.startswith("certctrl_plane_")
    }
    assert families["certctrl_plane_ready"].samples[0].value == 1
    with socket.create_server(("127.0.0.1", 0)) as taken:
        used = f"127.0.0.1:{taken.getsockname()[1]}"
        done = run_cli("plane", "serve", "--data", fleet.root / "two", "--listen", "127.0.0.1:0", "--metrics", used)
    assert done.returncode == 69 and f"cannot listen on {used}" in done.stderr
    done = run_cli("plane", "serve", "--data", fleet.root / "two", "--metrics", "0.0.0.0:9465")
    assert done.returncode == 2 and "loopback" in done.stderr and "--metrics-public" in done.stderr
    assert child.stop() == 0
