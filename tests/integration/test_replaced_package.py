"""The package of a running daemon is replaced, as by ``pip install --upgrade``: it ends in order, and nothing has failed."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from fleet import ROOT, Agent, Child, Fleet, Plane, run_cli, wait_for

from certctrl import __version__
from certctrl.errors import ExitStatus

pytestmark = pytest.mark.integration
SAID = f"the installed package changed (was {__version__}): restarting"


class Site:
    """A directory of installed packages with ours, and a program that runs from it."""

    def __init__(self, root: Path, fleet: Fleet) -> None:
        self.root, self.fleet, self._starts = root, fleet, 0
        self.install()

    def install(self) -> None:
        shutil.copytree(ROOT / "certctrl", self.root / "certctrl", ignore=shutil.ignore_patterns("__pycache__"))

    def run(self, *words: str | Path, until: str) -> Child:
        """Start a command; return when it has said that it is ready."""
        self._starts += 1
        argv = [sys.executable, "-P", "-m", "certctrl", *words]
        started = self.fleet.child(argv, f"replaced.{self._starts}.log", PYTHONPATH=str(self.root))
        started.says(until)
        return started


class AgentSite(Site):
    """One with an agent."""

    def __init__(self, root: Path, fleet: Fleet, agent: Agent) -> None:
        super().__init__(root, fleet)
        self.agent = agent

    def start(self) -> Child:
        return self.run("-c", self.agent.layout.root, "--keep-running", until="Ready: poll mode")


@pytest.fixture
def site(tmp_path: Path, fleet: Fleet, plane: Plane) -> AgentSite:
    agent = fleet.agent(plane)
    plane.operator.issue("replaced.example.com", agent.device_id)
    return AgentSite(tmp_path / "site", fleet, agent)


def upgrade(site: Site) -> None:
    """Put another release in place: modules that go on with names that the old ones have not."""
    (site.root / "certctrl").rename(site.root / "~ertctrl")
    site.install()
    for path in (site.root / "certctrl").rglob("*.py"):
        path.write_text(f"{path.read_text()}\nOF_THE_NEXT_RELEASE = True\n")
    withdrawal = site.root / "certctrl/install/deploy/withdrawal.py"
    withdrawal.write_text(
        withdrawal.read_text() + "from certctrl.errors import OF_THE_NEXT_RELEASE as OF_THE_NEXT_RELEASE\n"
    )


def take_away(site: Site) -> None:
    """Stop between the two halves of an upgrade."""
    (site.root / "certctrl").rename(site.root / "~ertctrl")


def change_one_file_after_the_other(site: Site) -> None:
    """Replace the late module, and what the daemon is compared with only while it is imported, as dpkg may."""
    place = site.root / "certctrl"
    withdrawal = place / "install/deploy/withdrawal.py"
    withdrawal.write_text(
        f"import os\nos.utime({str(place / '__init__.py')!r}, (1, 1))\n"
        "from certctrl.errors import OF_THE_NEXT_RELEASE as OF_THE_NEXT_RELEASE\n"
        + withdrawal.read_text().replace("from __future__ import annotations\n", "")
    )


@pytest.mark.parametrize("replace", [upgrade, take_away, change_one_file_after_the_other])
def test_a_signal_that_needs_a_late_module_is_handled_after_the_restart(
    site: AgentSite, replace: Callable[[Site], None]
) -> None:
    agent, daemon = site.agent, site.start()
    agent.catches_up()
    (cert_id,) = agent.serials()
    wait_for(lambda: not agent.state.session.load_inbox(), "the start to be over")
    daemon.send(signal.SIGSTOP)  # so that nothing else is imported first
    replace(site)
    agent.plane.operator.call("POST", f"/apiv1/users/1/certificates/{cert_id}/revoke", {"reason": "key lost"})
    daemon.send(signal.SIGCONT)
    assert daemon.wait() == ExitStatus.BUSY, daemon.text
    assert daemon.text.count(SAID) == 1 and "Stopped: installed package changed" in daemon.text
    for word in ("Unexpected", "Traceback", "Failed:", "internal error"):
        assert word not in daemon.text
    assert [entry.signal.type for entry in agent.state.session.load_inbox()] == ["cert.revoked"]
    assert not agent.layout.retries.exists() or "revoked" not in agent.layout.retries.read_text()
    shutil.rmtree(site.root / "certctrl", ignore_errors=True)
    site.install()
    again = site.start()
    wait_for(lambda: not agent.serials(), "the revocation")
    wait_for(lambda: not agent.state.session.load_inbox(), "its outcome")
    wait_for(agent.has_reported_all, "its report")
    assert again.stop() == 0
    outcomes = [one["outcome"] for one in agent.plane.operator.outcomes(agent.device_id)]
    # on a busy machine, the comparison after the start finds the revocation before its signal is handled
    assert "applied" in outcomes and set(outcomes) <= {"applied", "unchanged", "superseded"}, "no failure was counted"


def test_a_command_is_told_to_try_again(site: AgentSite) -> None:
    daemon = site.start()
    site.agent.catches_up()
    upgrade(site)
    done = site.agent.cli("plan")
    assert done.returncode == ExitStatus.BUSY
    assert f"the installed package changed (was {__version__}); the daemon restarts" in done.stderr
    assert "fix: try again" in done.stderr
    assert daemon.wait() == ExitStatus.BUSY and daemon.text.count(SAID) == 1


def test_a_stop_after_an_upgrade_is_a_stop(site: AgentSite) -> None:
    """As in `pip install --upgrade` and then `systemctl restart`."""
    daemon = site.start()
    site.agent.catches_up()
    upgrade(site)
    assert daemon.stop() == 0 and SAID not in daemon.text, daemon.text


def test_touching_nothing_of_ours_changes_nothing(site: AgentSite, tmp_path: Path) -> None:
    daemon = site.start()
    site.agent.catches_up()
    os.utime(site.root / "certctrl")
    assert site.agent.cli("plan").returncode == 0
    assert daemon.stop() == 0


ADD = ("plane", "issuers", "add", "own", "--kind", "command", "--set", 'command=["/usr/bin/false"]')


@pytest.mark.parametrize("replace", [upgrade, take_away])
def test_a_control_plane_issues_on_until_it_is_restarted(
    tmp_path: Path, fleet: Fleet, replace: Callable[[Site], None]
) -> None:
    site, data = Site(tmp_path / "site", fleet), tmp_path / "plane"
    served = site.run("plane", "serve", "--data", data, "--listen", "127.0.0.1:0", until="operator key")
    replace(site)
    issued = run_cli("plane", "issue", "replaced.example.com", "--data", data)
    assert issued.returncode == 0, issued.stderr
    assert "'/usr/bin/false' is not a program that the control plane may run" in run_cli(*ADD, "--data", data).stderr
    assert served.stop() == 0
    assert "Traceback" not in served.text and "cannot be used" not in served.text
