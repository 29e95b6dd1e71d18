"""`plane rollout`, against a served plane."""

from __future__ import annotations

import json
from pathlib import Path
from time import sleep, time
from typing import Any

import pytest
from made_chains import made
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
    page = site("rollout", "list", "--state", "aborted", "--limit", "1", "--json")
    assert ([str(row["id"]) for row in page.json], page.err) == (
        [number],
        f"note: there may be more: add --before-id {number}\n",
    )
    assert site("rollout", "list", "--before-id", number, "--json").json == []
    assert "did you mean halted?" in site("rollout", "list", "--state", "haltd").err


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
        (("status", "999"), ExitStatus.FAILED, "No such rollout: 999; see plane rollout list"),
        (("abort", "999", "--yes"), ExitStatus.FAILED, "No such rollout: 999"),
        (("list", "--state", "halt"), ExitStatus.USAGE, "'halt' is not a state"),
        (("freeze", "x", "--end"), ExitStatus.USAGE, "both REASON and --end"),
    ):
        done = site("rollout", *argv)
        assert (done.status, says in done.err) == (status, True), (argv, done)


@pytest.mark.integration
def test_renewals_in_waves(site: PlaneSite) -> None:
    token = site("enrolment-token", "--uses", "0").output.strip()
    ids = []
    for name in ("w-1", "w-2", "w-3"):
        body = registration(f"id-of-{name}", PrivateKey.generate(), name) | {"enrolment_token": token}
        ids.append(str(site.register(body)["device"]["id"]))
    devices = [argument for one in ids for argument in ("--device", one)]
    number = str(site("issue", "waves.example.com", *devices, "--json").json["id"])
    plan = site("renew", "waves.example.com", "--rollout", "1", "--dry-run").output
    assert plan == "a rollout of the renewal of 1 certificate would have 2 waves of 1, 2 devices\n"
    assert [row for row in site("rollout", "list", "--json").json if row["kind"] == "renewal"] == []
    started = site("renew", number, "--rollout", "1", "--max-failures", "1", "--reason", "new chain", "--yes")
    rollout = str(site("rollout", "list", "--json").json[0]["id"])
    assert started.output == (
        f"rollout {rollout} of the renewal of 1 certificate has started: 2 waves of 1, 2 devices\n"
        f"follow it with: cert-ctrl plane rollout status {rollout}\n"
    )
    assert waiting(site, rollout)["note"] == "new chain"
    said = site("rollout", "status", rollout).output.splitlines()[0]
    what = f"rollout {rollout} of the renewal of certificate {number} (waves.example.com) is running"
    assert said == f"{what}, waits for the proof of 1 device of wave 1"
    refused = site("renew", number)
    assert (refused.status, f"Rollout {rollout} renews certificate {number}" in refused.err) == (1, True)
    ended = site("rollout", "abort", rollout, "--forward", "--yes").output
    assert ended == f"rollout {rollout} is aborted; 3 of 3 devices have the renewed certificates\n"
    assert site("rollout", "renewals").output == "renewals that are due reach all devices at once\n"
    plan = site("rollout", "renewals", "--over", "10", "--waves", "1,20%").output
    assert plan == "renewals that are due go in waves of 1, 20%, the rest if more than 10 devices share them\n"
    assert site("rollout", "renewals", "--off", "--json").json == {"over": None}
    for argv, says in (
        (("renew", number, "--rollout", ","), "--rollout names no size of a wave"),
        (("renew", number, "--rollout", "1,x"), "waves: 'x' is not the size of a wave"),
        (("renew", number, "--rollout", "1", "--together"), "A batch has 2 to 100 certificates, not 1"),
        (("import", "--cert", "c", "--key", "k", "--rollout", ","), "--rollout names no size of a wave"),
        (("import", "--cert", "c", "--key", "k", "--window", "22:00-06:00"), "are for --rollout"),
        (("renew", number, "--pause", "1h"), "are for --rollout"),
        (("rollout", "renewals", "--over", "3", "--off"), "both --over and --off"),
        (("rollout", "renewals", "--over", "0"), "--over"),
    ):
        done = site(*argv)
        assert (done.status, says in done.err) == (ExitStatus.USAGE, True), (argv, done)


@pytest.mark.integration
def test_sets_and_imports_in_waves(site: PlaneSite, tmp_path: Path) -> None:
    token = site("enrolment-token", "--uses", "0").output.strip()
    devices = []
    for name in ("s-1", "s-2", "s-3"):
        body = registration(f"id-of-{name}", PrivateKey.generate(), name) | {"enrolment_token": token}
        devices += ["--device", str(site.register(body)["device"]["id"])]
    ids = [str(site("issue", f"{name}.sets.example.com", *devices, "--json").json["id"]) for name in ("a", "b")]
    together = ("renew", *ids, "--together", "--rollout", "1", "--yes")
    plan = site(*together, "--dry-run").output
    assert plan == "a rollout of the renewal of 2 certificates would have 2 waves of 1, 2 devices\n"
    assert "of the renewal of 2 certificates has started: 2 waves of 1, 2 devices" in site(*together).output
    rollout = str(site("rollout", "list", "--json").json[0]["id"])
    assert waiting(site, rollout)["waits"] == "the proof of 1 device of wave 1"
    assert site("rollout", "abort", rollout, "--forward", "--yes").status == 0
    leaf = made("leaf", names=["a.sets.example.com"], start=time() - 100, end=time() + 86_400)
    (tmp_path / "a.pem").write_text(leaf.pem)
    key = tmp_path / "a.key"
    key.touch(0o600)
    key.write_text(leaf.key_pem)
    argv = ("import", "--cert", str(tmp_path / "a.pem"), "--key", str(key), "--renews", ids[0], "--rollout", "1")
    what = f"certificate {ids[0]} (a.sets.example.com)"
    assert site(*argv, "--dry-run").output == f"a rollout of {what} would have 2 waves of 1, 2 devices\n"
    assert len(site("rollout", "list", "--json").json) == int(rollout)
    assert f"of {what} has started: 2 waves of 1, 2 devices" in site(*argv).output
    assert "this certificate was imported already" in site(*argv).err
