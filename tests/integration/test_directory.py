"""A config directory: several on a host, moved, restored from a backup, and of constant size."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
from fleet import Agent, Fleet, Plane, served, wait_for

pytestmark = pytest.mark.integration

NAMES = ("a.example.com", "b.example.com")


def make(fleet: Fleet, plane: Plane, name: str = "agent", **settings: object) -> Agent:
    """Return an agent with two certificates, stopped."""
    agent = fleet.agent(plane, name, **settings)
    for domain in NAMES:
        plane.operator.issue(f"{name}.{domain}", agent.device_id)
    agent.start()
    agent.catches_up()
    assert agent.daemon.stop() == 0
    return agent


def renew_all(agent: Agent) -> None:
    for cert_id in agent.plane.operator.assigned(agent.device_id):
        agent.plane.operator.renew(cert_id)


# --- several on one host ----------------------------------------------------------------------------------------------


def test_agents_with_separate_directories_do_not_affect_each_other(fleet: Fleet, plane: Plane) -> None:
    agents = [make(fleet, plane, name) for name in ("web", "mail", "db")]
    for agent in agents:
        agent.start()
    for agent in agents:
        renew_all(agent)
    for agent in agents:
        agent.catches_up()
        assert agent.cli("poll-now").returncode == 0
        assert {path.name for path in agent.layout.certs.glob("*.crt")} == {
            f"{agent.name}.{name}.crt" for name in NAMES
        }
    agents[0].daemon.kill()
    assert agents[0].cli("status").returncode == 3
    assert agents[1].cli("status").returncode == 0
    for agent in agents[1:]:
        renew_all(agent)
        agent.catches_up()
        assert agent.daemon.stop() == 0
        assert "copy" not in agent.daemon.text


# --- moved, restored --------------------------------------------------------------------------------------------------


def links(root: Path) -> dict[Path, str]:
    """Return every symbolic link below a directory and its text."""
    found = [Path(folder) / name for folder, folders, files in os.walk(root) for name in (*folders, *files)]
    return {path: os.readlink(path) for path in found if path.is_symlink()}


def test_a_directory_copied_elsewhere_works(fleet: Fleet, plane: Plane) -> None:
    agent = make(fleet, plane)
    before, old = agent.serials(), agent.layout.root
    assert links(old) and not [text for text in links(old).values() if text.startswith("/")]
    agent.moved_to(fleet.root / "somewhere" / "else")
    assert not old.exists()
    assert agent.serials() == before
    agent.start()
    agent.daemon.says("Compared with the plane: 2 certificates, 0 differences")
    renew_all(agent)
    agent.catches_up()
    assert agent.daemon.stop() == 0
    assert not [text for text in links(agent.layout.root).values() if text.startswith("/")]
    assert not old.exists()


def test_a_backup_restored_over_it_converges(fleet: Fleet, plane: Plane) -> None:
    agent = make(fleet, plane)
    root, backup = agent.layout.root, fleet.root / "backup"
    shutil.copytree(root, backup, symlinks=True)
    old = agent.serials()
    agent.start()
    for _ in range(2):
        renew_all(agent)
        agent.catches_up()
    agent.daemon.stop()
    newest = agent.serials()
    shutil.copytree(backup, root, symlinks=False, dirs_exist_ok=True, ignore=lambda *_: ["certs"])
    shutil.rmtree(root / "certs")
    shutil.copytree(backup / "certs", root / "certs", symlinks=True)
    assert agent.serials() == old
    agent.start()
    agent.catches_up()
    assert agent.serials() == newest
    wait_for(lambda: not agent.state.session.load_inbox(), "the replayed signals to be done")
    assert agent.daemon.stop() == 0


def test_a_backup_unpacked_over_newer_files_converges(fleet: Fleet, plane: Plane) -> None:
    """Unpack as tar does: old links and records, and newer generations next to them."""
    agent = make(fleet, plane)
    root, backup = agent.layout.root, fleet.root / "backup"
    shutil.copytree(root, backup, symlinks=True)
    agent.start()
    renew_all(agent)
    agent.catches_up()
    agent.daemon.stop()
    newest = agent.serials()
    for path, text in links(backup).items():
        there = root / path.relative_to(backup)
        there.unlink()
        there.symlink_to(text)
    for path in (backup / "state").iterdir():
        if path.is_file():
            shutil.copy2(path, root / "state")
    assert agent.serials() != newest
    agent.start()
    agent.catches_up()
    assert agent.serials() == newest
    assert agent.daemon.stop() == 0


# --- modes ------------------------------------------------------------------------------------------------------------


def test_account_keys_become_private_at_start(fleet: Fleet, plane: Plane) -> None:
    agent = fleet.agent(plane)
    key = agent.layout.account_keys / "acme.pem"
    key.write_text("an account key")
    key.chmod(0o644)
    agent.layout.account_keys.chmod(0o755)
    agent.start()
    assert agent.daemon.stop() == 0
    assert oct(agent.layout.account_keys.stat().st_mode & 0o7777) == "0o700"
    assert oct(key.stat().st_mode & 0o7777) == "0o600"
    assert f"Permissions repaired: {key} was 0o644, is 0o600" in agent.daemon.text


# --- many renewals ----------------------------------------------------------------------------------------------------


def inventory(root: Path) -> Counter[str]:
    """Return the number of files and directories per directory."""
    return Counter(str(Path(folder).relative_to(root).parent if ".generations" in folder else Path(folder).relative_to(root))
                   for folder, folders, files in os.walk(root) for _ in (*folders, *files))  # fmt: skip


def at_rest(root: Path) -> Counter[str]:
    """Return the inventory of a directory in which nothing is being written: temporary files are not counted."""
    found = inventory(root)

    def same() -> bool:
        nonlocal found
        time.sleep(0.5)
        before, found = found, inventory(root)
        return found == before

    wait_for(same, "a moment without a change")
    return found


def live_through(agent: Agent, renewals: int) -> None:
    for _ in range(renewals):
        renew_all(agent)
        agent.catches_up()
    wait_for(lambda: not agent.state.session.load_inbox() and agent.has_reported_all(), "everything to be done")
    folders = [agent.layout.generations / record.name for record in agent.state.installed.load_certificates().values()]
    wait_for(lambda: all(len(list(folder.iterdir())) == 1 + 2 for folder in folders), "old generations to be pruned")


@pytest.mark.parametrize("renewals", [8, pytest.param(300, marks=pytest.mark.campaign)])
def test_renewals_do_not_make_the_directory_grow(renewals: int, fleet: Fleet, plane: Plane) -> None:
    agent = make(fleet, plane, poll_mode="interval", poll_interval_ms=100, history_entries=10, keep_generations=2)
    agent.configure("log_config.json", file="agent.log", max_bytes=4096, keep_files=2)
    agent.start()
    live_through(agent, renewals)
    wait_for(lambda: len(list(agent.layout.logs.iterdir())) == 1 + 2, "the log to have as many files as it may")
    first = at_rest(agent.layout.root)
    size = sum(path.stat().st_size for path in agent.layout.root.rglob("*") if path.is_file())
    live_through(agent, renewals)
    second = Counter[str]()

    def settled() -> bool:
        nonlocal second
        second = inventory(agent.layout.root)
        return second == first

    wait_for(settled, f"the directory to be as large as before: {first}")
    grown = sum(path.stat().st_size for path in agent.layout.root.rglob("*") if path.is_file()) - size
    print(f"{4 * renewals} renewals: {first.total()} files and folders, then {second.total()}; {grown} bytes more")
    for record in agent.state.installed.load_certificates().values():
        assert served(agent.layout, record.name) == record.facts.serial
    assert len(agent.state.installed.load_history()) <= 10 + 10  # trimmed occasionally, not at each entry
    assert len(list(agent.layout.logs.iterdir())) == 1 + 2
    assert max(path.stat().st_size for path in agent.layout.logs.iterdir()) < 2 * 4096
    agent.daemon.send(signal.SIGTERM)
    assert agent.daemon.wait() == 0
