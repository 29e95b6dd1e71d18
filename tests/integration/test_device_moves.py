"""A host moves from one real control plane to another: its certificates stay in use until those of the new one arrive."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from fleet import Agent, Fleet, Plane, run_cli, served, wait_for

from certctrl.errors import ExitStatus

pytestmark = pytest.mark.integration


def on_disk(agent: Agent) -> dict[str, str]:
    """Return the digests of certificates, keys and configuration."""
    root = agent.layout.root
    files = [*root.glob("certs/**/*"), *root.glob("keys/*"), *root.glob("*.json"), *root.glob("*.pem")]
    return {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in files if file.is_file()}


def register_there(there: Plane, new: Path) -> int:
    """Register the host at another plane, with a directory of its own; return the device there."""
    token = new.parent / "token"
    token.write_text(there.operator.enrolment_token())
    for words in (
        ("init", "--server", there.url, "--ca", there.ca, "--name", "web-1"),
        ("register", "--enrolment-token-file", token, "--json"),
    ):
        done = run_cli("-c", new, *words)
        assert done.returncode == 0, done.stderr
    return int(json.loads(done.stdout)["device_id"])


def test_a_host_moves_to_another_plane(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    with Fleet(tmp_path / "a") as one, Fleet(tmp_path / "b") as two:
        here, there = one.plane(), two.plane()
        agent = one.agent(here, "web-1")
        for name in ("a.example", "b.example"):
            here.operator.issue(name, agent.device_id)
        item = {
            "id": "copy",
            "type": "copy",
            "ob_name": "a.example",
            "from": ["certificate.pem"],
            "to": [f"{tmp_path}/a.pem"],
        }
        here.operator.put_items(agent.device_id, [item])
        agent.start()
        agent.catches_up()
        wait_for(lambda: agent.state.installed.load_install_config() is not None, "the install config")
        former = {name: served(agent.layout, name) for name in ("a.example", "b.example")}
        before = on_disk(agent)

        new = tmp_path / "next"
        device_id = register_there(there, new)
        there.operator.issue("other.example")  # the ids of the two planes differ
        there.operator.issue("a.example", device_id)  # id 2, which b.example has here
        lacking = agent.cli("move", str(new), "--dry-run")
        assert lacking.returncode == ExitStatus.FAILED
        for text in ("for all names of b.example", "a.example (certificate 2) has an id there", "no install items"):
            assert text in lacking.stderr
        refused = agent.cli("move", str(new), "--json")
        assert (refused.returncode, json.loads(refused.stdout)["moved"]) == (ExitStatus.FAILED, False)
        assert on_disk(agent) == before

        assert run_cli("plane", "unassign", "2", "--device", "web-1", "--data", there.data).returncode == 0
        for name in ("a.example", "b.example"):
            there.operator.issue(name, device_id)
        there.operator.put_items(device_id, [item])
        ready = agent.cli("move", str(new), "--dry-run")
        assert ready.returncode == 0 and "it has the names of 2 certificates, and 1 item" in ready.stdout
        assert agent.cli("move", str(new)).returncode == ExitStatus.BUSY
        assert on_disk(agent) == before

        assert agent.daemon.stop() == 0
        moved = agent.cli("move", str(new))
        assert moved.returncode == 0, moved.stderr
        assert f"this host follows {there.url}" in moved.stdout
        assert {name: served(agent.layout, name) for name in former} == former
        assert "this host follows" in agent.cli("move", str(new)).stdout
        assert run_cli("-c", new, "poll-now").returncode == ExitStatus.NOT_REGISTERED

        agent.plane, agent.device_id = there, device_id
        agent.start()
        expected = {row["domain_name"]: row["serial_number"] for row in certificates(there) if row["id"] > 2}
        wait_for(lambda: {name: served(agent.layout, name) for name in former} == expected, "the new certificates")

        done = run_cli("plane", "device", "decommission", "web-1", "--data", here.data)
        assert done.returncode == 0 and "2 certificates withdrawn" in done.stdout
        there.operator.renew(next(row["id"] for row in certificates(there) if row["id"] > 2))
        wait_for(
            lambda: served(agent.layout, "a.example") not in ("", expected["a.example"], former["a.example"]),
            "the renewal by the new plane",
        )
        assert agent.daemon.running


def certificates(plane: Plane) -> list[dict[str, str]]:
    done = run_cli("plane", "certificates", "--json", "--data", plane.data)
    rows: list[dict[str, str]] = json.loads(done.stdout)
    return rows
