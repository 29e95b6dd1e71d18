"""Everyday mistakes of operators: one line with the error, one with the fix, and the exit status."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fleet import PROGRAM, ROOT, Agent, Fleet, Plane, clean_environment, run_cli

from certctrl.store.config.files import init_config_dir
from certctrl.store.disk.fs import RealFs
from certctrl.store.layout import ConfigDir

pytestmark = pytest.mark.integration

Done = subprocess.CompletedProcess[str]


def says(done: Done, status: int, what: str, fix: str) -> None:
    """Check the whole standard error of a failure: the error, the fix, and nothing else."""
    lines = done.stderr.splitlines()
    assert done.returncode == status, done.stderr
    assert len(lines) == 2, done.stderr
    assert re.fullmatch(f"cert-ctrl: error: {what}", lines[0]), lines[0]
    assert re.fullmatch(f"fix: {fix}", lines[1]), lines[1]


@pytest.fixture
def fresh(tmp_path: Path, plane: Plane) -> Path:
    """Return a config directory that was never registered."""
    root = tmp_path / "fresh"
    init_config_dir(RealFs(), ConfigDir(root), server_url=plane.url, ca_pem=plane.ca.read_bytes())
    return root


@pytest.fixture(scope="module")
def agent(shared_fleet: Fleet, plane: Plane) -> Agent:
    """Return a registered agent without a daemon."""
    return shared_fleet.agent(plane)


# --- the server's URL and its CA --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "what"),
    [
        ("plane.example.com", "server URL: expected an https URL with a host name"),
        ("http://plane.example.com", "server URL: expected https; plain http is for loopback hosts only"),
        ("https://127.0.0.1:8443/apiv1", "server URL: expected scheme, host and port, without a path"),
        ("https://me:secret@127.0.0.1", "server URL: expected scheme, host and port, without credentials or query"),
    ],
)
def test_an_invalid_url_is_refused_immediately(url: str, what: str, tmp_path: Path) -> None:
    done = run_cli("-c", tmp_path / "a", "init", "--server", url)
    says(done, 78, what, r"write https://HOST\[:PORT\]")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("url", "what", "fix"),
    [
        ("https://127.0.0.1:1", r"nothing listens at 127\.0\.0\.1:1 \(connection refused\)",
         "check server_url, and that the plane runs"),
        ("https://no.such.host.invalid", "cannot resolve the host of no.such.host.invalid:443: .*",
         r"check the name in server_url, then this host's DNS \(getent hosts NAME\)"),
    ],
)  # fmt: skip
def test_a_wrong_server_url(url: str, what: str, fix: str, tmp_path: Path) -> None:
    root = tmp_path / "a"
    assert run_cli("-c", root, "init", "--server", url).returncode == 0
    soon = "timeout:1 attempts:1"  # where no name server answers, too
    says(run_cli("-c", root, "register", RES_OPTIONS=soon), 69, what, fix)


@pytest.mark.parametrize("given", ["another plane's", "none"])
def test_a_wrong_ca(given: str, tmp_path: Path, plane: Plane, agent: Agent) -> None:
    root, trust = tmp_path / "a", ["--ca", _another_ca(tmp_path)] if given != "none" else []
    assert run_cli("-c", root, "init", "--server", plane.url, *trust).returncode == 0
    whose = "the CA in ca_files" if trust else "a CA this host trusts"
    what = rf"the certificate of \S+ is not signed by {whose} \(.*\)"
    if trust:
        fix = "compare the plane's CA with ca_files in httpclient_config.json; if it changed on purpose, replace it"
        says(run_cli("-c", root, "register"), 69, what, fix)
        return
    says(run_cli("-c", root, "register"), 69, what, f"add the plane's CA: cert-ctrl -c {root} init --ca FILE")
    assert run_cli("-c", root, "init", "--ca", plane.ca).returncode == 0, "the advice, as printed"
    says(run_cli("-c", root, "poll-now"), 77, "this device is not registered .*", f"cert-ctrl -c {root} register")


def _another_ca(tmp_path: Path) -> Path:
    trustme = pytest.importorskip("trustme")
    path = tmp_path / "other-ca.pem"
    trustme.CA().cert_pem.write_to_path(path)
    return path


def test_an_invalid_ca_file(tmp_path: Path, plane: Plane) -> None:
    done = run_cli("-c", tmp_path / "a", "init", "--server", plane.url, "--ca", "/etc/passwd")
    says(done, 78, "/etc/passwd: contains no certificate in PEM format", "export the CA certificate in PEM format .*")


# --- the plane is down ------------------------------------------------------------------------------------------------


@pytest.fixture
def deserted(fleet: Fleet) -> Agent:
    """Return a registered agent with an expired access token, whose plane is down."""
    plane = fleet.plane(access_token_seconds=3, poll_rate=1000.0, poll_burst=1000)
    agent = fleet.agent(plane, poll_mode="interval", poll_interval_ms=200, breaker_failures=3)
    plane.child.kill()
    agent.outlives_its_token()
    return agent


def test_the_plane_is_down_for_a_command(deserted: Agent) -> None:
    what = r"nothing listens at 127\.0\.0\.1:\d+ \(connection refused\)"
    says(deserted.cli("poll-now"), 69, what, "check server_url, and that the plane runs")
    done = deserted.cli("doctor")
    assert done.returncode == 1
    assert re.search(rf"FAIL  tls: {what}\n +fix: check server_url, and that the plane runs\n", done.stdout)


def test_the_plane_is_down_for_the_daemon(deserted: Agent) -> None:
    """With an expired token no poll is sent, but the log, the alert and poll-now give the reason."""
    daemon = deserted.start()
    daemon.says("[WARN] [Token] Token refresh failed: nothing listens at")
    asked = deserted.cli("poll-now")
    assert asked.returncode == 69
    assert asked.stdout.startswith("Polled: token refresh failed: nothing listens at 127.0.0.1:")
    daemon.says("[CRITICAL] [Poll] Circuit breaker open after 3 consecutive failures; probing slowly")
    shown = deserted.cli("status")
    assert shown.returncode == 1
    assert "Problem: the control plane gave no usable answer 3 times in a row" in shown.stdout
    assert "fix: `cert-ctrl doctor` shows why; `cert-ctrl poll-now` resumes" in shown.stdout
    deserted.plane.start()
    assert deserted.cli("poll-now").stdout.startswith("Polled: 20")  # immediately, regardless of the backoff
    daemon.says("[INFO] [Poll] Circuit breaker closed")
    assert daemon.stop() == 0
    assert "Traceback" not in daemon.text


# --- the clock --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shift", "what", "fix"),
    [
        ("+3y", r"the certificate of \S+ has expired, or this host's clock is wrong: it says 20\d\d-.* UTC",
         "compare with `date -u` elsewhere; if the clock is right, renew the plane's own certificate"),
        ("-3y", r"the certificate of \S+ is not valid yet by this host's clock, which says 20\d\d-.* UTC",
         r"set this host's clock \(timedatectl set-ntp true\)"),
    ],
)  # fmt: skip
def test_a_clock_that_is_years_off(shift: str, what: str, fix: str, agent: Agent, need: Callable[[str], str]) -> None:
    argv = [need("faketime"), "-f", shift, *PROGRAM, "-c", str(agent.layout.root), "poll-now"]
    done = subprocess.run(
        argv, cwd=ROOT, env=clean_environment(), capture_output=True, text=True, timeout=60, check=False
    )
    says(done, 69, what, fix)


def test_a_clock_an_hour_ahead_is_reported_and_causes_no_request_storm(
    fleet: Fleet, plane: Plane, need: Callable[[str], str]
) -> None:
    need("faketime")
    agent = fleet.agent(plane, poll_mode="interval", poll_interval_ms=200)
    library = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
    daemon = agent.start(LD_PRELOAD=str(library), FAKETIME="+3600", FAKETIME_DONT_FAKE_MONOTONIC="1")
    daemon.says("this host's clock differs")
    daemon.says("204 No Content", count=10)
    assert daemon.stop() == 0
    # Before the plane's first answer the token looks expired; from then on it is judged by the plane's clock.
    assert daemon.text.count("Token refresh successful") <= 1


# --- the config directory ---------------------------------------------------------------------------------------------


def test_a_world_readable_directory_becomes_private_again(agent: Agent) -> None:
    opened = {agent.layout.root: 0o755, agent.layout.keys: 0o755, agent.layout.device_secret_key: 0o644,
              agent.layout.refresh_token: 0o644, agent.layout.account_keys: 0o755}  # fmt: skip
    closed = {path: path.stat().st_mode & 0o7777 for path in opened}
    for path, mode in opened.items():
        path.chmod(mode)
    daemon = agent.start()
    for path, mode in opened.items():
        assert f"Permissions repaired: {path} was {mode:#o}, is {closed[path]:#o}" in daemon.text
        assert path.stat().st_mode & 0o7777 == closed[path]
    assert daemon.stop() == 0


@pytest.mark.root
@pytest.mark.parametrize("which", ["state", "device_secret_key", "policy"])
def test_files_of_another_user_are_refused(which: str, fleet: Fleet, plane: Plane) -> None:
    agent = fleet.agent(plane)
    path = getattr(agent.layout, which)
    os.chown(path, 65534, -1)
    done = agent.cli("--keep-running")
    says(done, 78, rf"{path}: .*65534.*", rf"chown 0 {path}, or run as user 65534")


@pytest.mark.parametrize(
    ("file", "text", "what", "fix"),
    [
        ("application.json", {"poll_interval": 5}, "{}: poll_interval: unknown key", r"did you mean 'poll_interval_ms'\?"),
        ("application.json", {"poll_interval_ms": "5s"}, "{}: poll_interval_ms: expected a whole number, found text",
         "correct it in {}"),
        ("application.json", {"poll_interval_ms": 1}, "{}: poll_interval_ms: .*10.*", "correct it in {}"),
        ("log_config.json", {"level": "LOUD"}, "{}: level: expected .*INFO.*", "correct it in {}"),
        ("httpclient_config.json", {"ca_files": ["gone.pem"]}, ".*ca_files: cannot read .*gone.pem: No such file.*",
         "set it to a readable PEM file .*"),
    ],
)  # fmt: skip
def test_a_configuration_with_a_mistake(file: str, text: object, what: str, fix: str, fresh: Path) -> None:
    path = fresh / file
    path.write_text(json.dumps(json.loads(path.read_text()) | text))  # type: ignore[operator]
    for command in ("register", "--keep-running"):
        if command == "--keep-running" and "ca_files" in json.dumps(text):
            continue  # an unregistered daemon ends before it reads them
        says(run_cli("-c", fresh, command), 78, what.format(path), fix.format(path))


def test_a_variable_with_a_mistake(fresh: Path) -> None:
    done = run_cli("-c", fresh, "register", CERTCTRL_POLL_INTERVAL="3")
    says(done, 78, "environment: CERTCTRL_POLL_INTERVAL: no such setting", r"did you mean CERTCTRL_POLL_INTERVAL_MS\?")


def test_no_config_directory(tmp_path: Path) -> None:
    what = f"{tmp_path}/none: no such directory"
    says(run_cli("-c", tmp_path / "none", "--keep-running"), 78, what, "cert-ctrl -c .*/none init --server URL")
    says(
        run_cli("-c", "", "poll-now"), 2, "no config directory given", "add -c DIR, or leave -c out for /etc/cert-ctrl"
    )


# --- other processes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["--keep-running", "poll-now", "renew --domain a.example", "apply", "plan"])
def test_not_registered(command: str, fresh: Path) -> None:
    what = rf"this device is not registered \({fresh}/state holds no tokens\)"
    says(run_cli("-c", fresh, *command.split()), 77, what, f"cert-ctrl -c {fresh} register")


def test_not_registered_for_status(fresh: Path) -> None:
    done = run_cli("-c", fresh, "status")
    assert (done.returncode, done.stderr) == (77, "")
    assert done.stdout.startswith("Daemon Status: Not running (not registered)\n")
    assert f"fix: cert-ctrl -c {fresh} register, then start the daemon" in done.stdout


@pytest.fixture
def running(agent: Agent) -> Iterator[Agent]:
    agent.start()
    yield agent
    assert agent.daemon.stop(signal.SIGTERM) == 0


def test_a_second_daemon(running: Agent) -> None:
    root, pid = running.layout.root, running.daemon.pid
    what = rf"another cert-ctrl \(pid {pid}\) is running in {root}"
    says(running.cli("--keep-running"), 75, what, f"see cert-ctrl -c {root} status --daemon, or stop it: kill {pid}")
    assert running.cli("status", "--daemon").returncode == 0
