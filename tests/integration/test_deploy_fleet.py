"""`deploy/fleet/fleet.py`: a fleet on one machine that loses a control plane, as docs/postgresql.md tells it."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fleet import PATIENCE, ROOT, clean_environment, processes_naming, run_cli, wait_for

pytestmark = pytest.mark.integration

SCRIPT = ROOT / "deploy" / "fleet" / "fleet.py"
AGENTS = 3


class Script:
    """The script with its directory."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command of the script until it ends."""
        return subprocess.run(
            [sys.executable, SCRIPT, self.root, *words], env=clean_environment(), capture_output=True, text=True,
            timeout=10 * PATIENCE, check=False,
        )  # fmt: skip

    def done(self, *words: str) -> str:
        """Run a command, which must succeed, and return what it prints."""
        done = self.run(*words)
        assert done.returncode == 0, f"{done.stdout}{done.stderr}{self.logs()}"
        return done.stdout

    def status(self) -> dict[str, Any]:
        return dict(json.loads(self.done("status", "--json")))

    def all_wait(self) -> bool:
        """Return whether each agent waits at some control plane."""
        return bool(self.status()["polls"] == AGENTS)

    def logs(self) -> str:
        return "\n".join(f"{path.name}:\n{path.read_text()}" for path in sorted(self.root.glob("logs/*.log")))


@pytest.fixture
def script(need: Callable[[str], str], need_module: Callable[[str], None]) -> Iterator[Script]:
    need("haproxy")
    need_module("psycopg")
    root = Path(tempfile.mkdtemp(prefix="fleet-"))  # short: the path of a socket has at most 107 bytes
    root.chmod(0o755)  # PostgreSQL runs as another user
    script = Script(root)
    try:
        yield script
    finally:
        script.run("stop")
        left = processes_naming(str(root))
        shutil.rmtree(root)
        assert left == []


def test_a_fleet_loses_a_control_plane(script: Script) -> None:
    assert "Now: " in script.done("start", "--agents", str(AGENTS))
    refused = script.run("start")
    assert refused.returncode == 1 and "is running" in refused.stderr
    wait_for(script.all_wait, "all agents to wait")
    shown = script.done("status")
    assert f"{AGENTS} of {AGENTS} agents wait for signals" in shown and "PLANE" in shown

    victim = next(plane["number"] for plane in script.status()["planes"] if plane["status"]["polls"])
    script.done("kill", str(victim))
    planes = script.status()["planes"]
    assert [plane["pid"] is None for plane in planes] == [number == victim for number in (1, 2, 3)]
    wait_for(script.all_wait, "all agents to wait at the other control planes")
    assert script.done("renew").count("renewed certificate") == AGENTS
    wait_for(lambda: has_renewed(script.root), "the renewed certificates on all agents")

    script.done("revive", str(victim))
    assert all(plane["status"]["status"] == "ok" for plane in script.status()["planes"])
    script.done("stop")
    assert processes_naming(str(script.root)) == []
    script.done("start")
    wait_for(script.all_wait, "all agents to wait after a restart of everything")


def test_mistakes_are_named(script: Script) -> None:
    done = script.run("watch")
    assert done.returncode == 1 and "contains no fleet; start it first" in done.stderr
    (script.root / "fleet.json").write_text(
        '{"port": 1, "planes": [2], "agents": 1, "processes": {"plane1": [1, "x"]}}'
    )
    done = script.run("kill", "2")
    assert done.returncode == 1 and "there is no control plane 2" in done.stderr
    assert script.status()["planes"][0]["pid"] is None, "a process that has its number now is another one"
    assert script.run("start", "--agents", "1000").returncode == 2


def has_renewed(root: Path) -> bool:
    """Return whether each agent serves the newest certificate of the control planes."""
    for number in (1, 2, 3):
        with contextlib.suppress(AssertionError, ValueError):
            listed = run_cli("plane", "certificates", "--json", "--data", root / f"plane{number}")
            newest = {row["serial_number"] for row in json.loads(listed.stdout)}
            return serials(root) == newest
    return False


def serials(root: Path) -> set[str]:
    """Return the serials of the certificates on all agents."""
    from cryptography import x509

    found = set()
    for path in root.glob("agents/*/certs/*.crt"):
        digits = f"{x509.load_pem_x509_certificate(path.read_bytes()).serial_number:x}"
        found.add(bytes.fromhex(digits.zfill(len(digits) + len(digits) % 2)).hex(":"))
    return found
