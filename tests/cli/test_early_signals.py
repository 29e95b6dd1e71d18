"""Signals in the first moments of a service: real processes that signal themselves before they watch."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from certctrl.model.records import DeviceKeys, Tokens
from certctrl.store.layout import ConfigDir
from certctrl.store.state.store import StateStore

DAEMON = """
import os, sys
sys.argv = ["cert-ctrl", "-c", sys.argv[1], "--keep-running"]
sent = [int(number) for number in {signums!r}.split()]

def audit(event, arguments):
    if event == "import" and arguments[0] == "certctrl.cli.main":
        while sent:
            os.kill(os.getpid(), sent.pop(0))

sys.addaudithook(audit)
from certctrl.__main__ import program
program()
"""
PLANE = DAEMON.replace(
    '"-c", sys.argv[1], "--keep-running"', '"plane", "serve", "--data", sys.argv[1], "--listen", "127.0.0.1:0"'
)


def run(program: str, directory: object, *signums: signal.Signals) -> subprocess.CompletedProcess[str]:
    """Run a service that gets these signals before any code of the command line is imported."""
    code = program.format(signums=" ".join(str(int(signum)) for signum in signums))
    return subprocess.run(
        [sys.executable, "-c", code, str(directory)], capture_output=True, text=True, timeout=120, check=False
    )


@pytest.fixture
def registered(layout: ConfigDir, store: StateStore) -> ConfigDir:
    store.session.save_device_id("23229bf7-5172-02c7-59a2-76d5b4a40090")
    store.session.save_device_keys(DeviceKeys(public=b"p" * 32, secret=b"s" * 32))
    store.session.save_tokens(Tokens(access_token="access", refresh_token="refresh"))
    return layout


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_before_the_daemon_watches_ends_it_with_zero(signum: signal.Signals, registered: ConfigDir) -> None:
    done = run(DAEMON, registered.root, signum)
    assert done.returncode == 0, done.stderr
    assert f"Stopped: asked to stop {signum.name}" in done.stderr


def test_a_reload_before_the_daemon_watches_does_not_end_it(registered: ConfigDir) -> None:
    done = run(DAEMON, registered.root, signal.SIGHUP, signal.SIGUSR1, signal.SIGTERM)
    assert done.returncode == 0, done.stderr
    assert "Immediate poll requested by SIGUSR1" in done.stderr
    assert "Stopped: asked to stop SIGTERM" in done.stderr


def test_a_second_stop_before_the_daemon_watches_ends_it_immediately(registered: ConfigDir) -> None:
    assert run(DAEMON, registered.root, signal.SIGTERM, signal.SIGTERM).returncode == -signal.SIGTERM


def test_a_stop_before_the_plane_watches_ends_it_with_zero(tmp_path: object) -> None:
    done = run(PLANE, f"{tmp_path}/plane", signal.SIGTERM)
    assert done.returncode == 0, done.stderr
