"""`plane ask` and a real agent in push mode: the answers are those of the commands, and the host has the last word."""

from __future__ import annotations

import json
import signal
import subprocess

import pytest
from fleet import Agent, Fleet, Plane, run_cli, wait_for

from certctrl.store.disk.fs import RealFs
from certctrl.store.state.installed import InstalledState

pytestmark = pytest.mark.integration


def ask(plane: Plane, agent: Agent, question: str) -> subprocess.CompletedProcess[str]:
    return run_cli("plane", "ask", str(agent.device_id), question, "--data", str(plane.data), "--json")


def answer_of(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_questions_are_answered_audited_and_refused_by_the_policy(fleet: Fleet, plane: Plane) -> None:
    agent = fleet.agent(plane, poll_mode="push")
    plane.operator.issue("ask.example.com", agent.device_id)
    agent.start()
    agent.catches_up()
    agent.daemon.says("Receiving signals on a socket")
    answers = {question: answer_of(ask(plane, agent, question)) for question in ("status", "plan", "doctor", "history")}
    assert json.loads(agent.cli("status", "--json").stdout)["device_id"] in answers["status"]
    assert '"push"' in answers["status"]
    assert "signals arrive on a push socket" in answers["doctor"]
    assert "ask.example.com" in answers["history"]
    assert json.loads(answers["plan"])
    text = agent.daemon.text
    history = InstalledState(agent.layout, RealFs()).load_history()
    for question in answers:
        assert f"Answered the control plane's question: {question}" in text
        assert [one["outcome"] for one in history if one.get("name") == f"question: {question}"] == ["answered"]
    agent.layout.policy.write_text('{"remote_questions": "off"}')
    agent.daemon.send(signal.SIGHUP)
    agent.daemon.says("Configuration reloaded")
    refused = ask(plane, agent, "status")
    assert refused.returncode != 0
    assert "policy" in refused.stdout + refused.stderr
    wait_for(lambda: "REFUSED_BY_POLICY" in agent.daemon.text, "the refusal to be logged")
    assert agent.daemon.stop() == 0
