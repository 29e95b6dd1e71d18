"""Rollouts over real agents: one to its end, over a killed plane, and one to its halt by a host's policy."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fleet import Agent, Fleet, Plane, run_cli, wait_for

pytestmark = pytest.mark.integration
DOMAIN = "rolled.example.com"


def plane_command(plane: Plane, *words: str) -> Any:
    done = run_cli("plane", *words, "--data", str(plane.data), "--json")
    assert done.stdout, done.stderr
    return json.loads(done.stdout)


def item(agent_paths: str) -> list[dict[str, Any]]:
    return [
        {"id": "copy", "type": "copy", "ob_name": DOMAIN, "from": ["fullchain.pem"], "to": [agent_paths], "mode": "0644"}
    ]  # fmt: skip


def test_rollouts_of_real_agents(fleet: Fleet) -> None:
    plane = fleet.plane()
    agents = [fleet.agent(plane, f"a{number}") for number in range(3)]
    targets = fleet.root / "targets"
    for agent in agents:
        (targets / agent.name).mkdir(parents=True)
        agent.layout.policy.write_text(json.dumps({"write_roots": [str(targets / agent.name)]}))
    cert = plane.operator.issue(DOMAIN, *(agent.device_id for agent in agents))
    for agent in agents:
        agent.start()
        agent.catches_up()
    file = fleet.root / "profile.json"

    def start(path: str) -> str:
        file.write_text(json.dumps(item(path)))
        return str(plane_command(plane, "rollout", "start", "web", str(file), "--devices", "*", "--waves", "1,1")["id"])

    def state(rollout: str) -> str:
        return str(plane_command(plane, "rollout", "status", rollout)["state"])

    def written(agent: Agent, name: str) -> bool:
        path = targets / agent.name / name
        return path.exists() and "BEGIN CERTIFICATE" in path.read_text()

    first = start(f"{targets}/{{device.name}}/first.pem")
    wait_for(lambda: written(agents[0], "first.pem"), "the first wave")
    plane.child.kill()
    plane.start()
    wait_for(lambda: state(first) == "done", "the rollout to end")
    assert all(written(agent, "first.pem") for agent in agents)

    agents[1].layout.policy.write_text("{}")  # this host allows nothing
    agents[1].cli("apply")
    agents[1].daemon.stop()
    agents[1].start()
    second = start(f"{targets}/{{device.name}}/second.pem")
    wait_for(lambda: state(second) == "halted", "the rollout to halt")
    shown = plane_command(plane, "rollout", "status", second)
    assert shown["reason"] == "1 device failed, none may fail"
    (failed,) = [one for one in shown["devices"] if one["state"] == "failed"]
    assert failed["name"] == "a1"
    assert "policy" in failed["detail"]
    assert [written(agent, "second.pem") for agent in agents] == [True, False, False]

    plane.operator.renew(cert["id"])  # renewals do not wait for rollouts
    for agent in agents:
        agent.catches_up()
    assert [written(agent, "second.pem") for agent in agents] == [True, False, False]
