"""`plane rollout`, against a served plane."""

from __future__ import annotations

import json
from pathlib import Path
from time import sleep
from typing import Any

import pytest
from nacl.public import PrivateKey
from plane_commands import PlaneSite
from proving import registration

from certctrl.errors import ExitStatus

FILES = {
    "id": "files", "type": "copy", "ob_name": "www.example.com", "from": ["combined.pem"], "to": ["/etc/tls/www.pem"],
}  # fmt: skip


def waiting(site: PlaneSite, rollout: str) -> dict[str, Any]:
    """Return a rollout once its first round has run."""
    for _ in range(600):
        found: dict[str, Any] = json.loads(site("rollout", "status", rollout, "--json").out)
        if found["waits"] or found["state"] != "running":
            return found
        sleep(0.1)
    raise AssertionError("no round has run")


@pytest.mark.integration
def test_a_rollout_from_its_plan_to_its_abort(site: PlaneSite, tmp_path: Path) -> None:
    token = site("enrolment-token", "--tag", "rolled", "--uses", "0").output.strip()
    for name in ("r-1", "r-2", "r-3"):
        site.register(registration(f"id-of-{name}", PrivateKey.generate(), name) | {"enrolment_token": token})
    file = tmp_path / "p.json"
    file.write_text(json.dumps({"devices": "rolled", "installs": [FILES]}))
    assert site("rollout", "list").output == "no rollouts\n"
    plan = site("rollout", "start", "rolled", str(file), "--waves", "1", "--dry-run").output.splitlines()
    assert plan == [
        "3 devices (r-1, r-2, r-3): + files", "a rollout of profile rolled would have 2 waves of 1, 2 devices",
    ]  # fmt: skip
    started = site("rollout", "start", "rolled", str(file), "--waves", "1", "--max-failures", "1", "--pause", "10m")
    assert "has started: 2 waves of 1, 2 devices" in started.output
    rollout = site("rollout", "list", "--json").json[0]
    number = str(rollout["id"])
    assert (rollout["state"], rollout["version"]) == ("running", 2)
    found = waiting(site, number)
    assert found["waits"] == "the proof of 1 device of wave 1"
    assert found["rules"]["pause_seconds"] == 600
    said = site("rollout", "status", number).output
    assert (
        f"rollout {number} of profile rolled, version 2, is running, waits for the proof of 1 device of wave 1" in said
    )
    refused = site("profile", "put", "rolled", str(file))
    assert (refused.status, f"Rollout {number} of this profile is running: abort it first" in refused.err) == (1, True)
    assert site("rollout", "pause", number).output == f"rollout {number} is paused; 1 of 3 devices have version 2\n"
    assert site("rollout", "resume", number).status == 0
    assert site("rollout", "freeze", "a fair").output == "rollouts are frozen: a fair\n"
    assert site("rollout", "freeze", "--json").json == {"frozen": True, "reason": "a fair"}
    assert "waits for the end of the freeze: a fair" in site("rollout", "list").output
    assert site("rollout", "freeze", "--end").output == "rollouts are not frozen\n"
    assert (
        site("rollout", "abort", number, "--yes").output
        == f"rollout {number} is aborted; 1 of 3 devices have version 2\n"
    )
    assert site("rollout", "status", number).status == ExitStatus.FAILED
    assert site("rollout", "list", "--state", "running").output == "no rollouts\n"


@pytest.mark.integration
def test_mistakes_are_named(site: PlaneSite, tmp_path: Path) -> None:
    file = tmp_path / "p.json"
    file.write_text(json.dumps([FILES]))
    start = ("start", "q", str(file), "--devices", "nobody")
    for argv, status, says in (
        (start, ExitStatus.FAILED, "changes no config: there is nothing to roll out"),
        ((*start, "--waves", "1,x"), ExitStatus.USAGE, "waves: 'x' is not the size of a wave"),
        ((*start, "--pause", "soon"), ExitStatus.USAGE, "'soon' is not a time"),
        ((*start, "--window", "22-6"), ExitStatus.USAGE, "windows: '22-6' is not a window"),
        ((*start, "--serial", "a b"), ExitStatus.USAGE, "serial: "),
        ((*start, "--canary", "a and"), ExitStatus.USAGE, "canary: character 6: expected a tag"),
        (("status", "999"), ExitStatus.FAILED, "No such rollout: 999"),
        (("abort", "999", "--yes"), ExitStatus.FAILED, "No such rollout: 999"),
        (("list", "--state", "halt"), ExitStatus.USAGE, "'halt' is not a state"),
        (("freeze", "x", "--end"), ExitStatus.USAGE, "both REASON and --end"),
    ):
        done = site("rollout", *argv)
        assert (done.status, says in done.err) == (status, True), (argv, done)
