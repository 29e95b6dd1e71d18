"""Two live copies of one device: both report it, neither breaks the other, and it ends when one stops."""

from __future__ import annotations

import json
import shutil

import pytest
from fleet import Agent, Fleet, Plane, wait_for

pytestmark = pytest.mark.integration
SAID = "another agent polls as this device"


def status(agent: Agent) -> dict[str, list[dict[str, str]]]:
    found: dict[str, list[dict[str, str]]] = json.loads(agent.cli("status", "--json").stdout)
    return found


def complains(agent: Agent) -> bool:
    return any(problem["what"].startswith(SAID) for problem in status(agent)["problems"])


def test_two_live_copies_are_recognised_and_reported(fleet: Fleet, plane: Plane) -> None:
    first = fleet.agent(plane, "first", poll_mode="interval", poll_interval_ms=200)
    second = fleet.agent(plane, "second", poll_mode="interval", poll_interval_ms=200)
    shutil.rmtree(second.layout.root)
    shutil.copytree(first.layout.root, second.layout.root, symlinks=True)
    one, two = first.start(), second.start()
    wait_for(lambda: complains(first) and complains(second), "both copies to say so")
    problem = next(p for p in status(first)["problems"] if p["what"].startswith(SAID))
    assert "cert-ctrl register" in problem["fix"]
    one.says("Another agent polls as this device")
    assert one.text.count("Another agent polls") == 1, "reported once, not at each poll"

    # both sessions work
    row = plane.operator.issue("copied.example", 1)
    for agent in (first, second):
        wait_for(lambda agent=agent: agent.serials() == {row["id"]: row["serial_number"]}, "the certificate")  # type: ignore[misc]
    assert (one.running, two.running) == (True, True)
    assert (one.stop(), two.stop()) == (0, 0)
