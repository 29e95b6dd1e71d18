"""`plane setup`: on a private host, with a recording ``systemctl``; then a host with the line that it prints."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from fleet import run_cli, wait_for
from private_host import PrivateHost
from test_first_contact import fingerprint

from certctrl.store.layout import ConfigDir

pytestmark = [pytest.mark.integration, pytest.mark.root]
UNIT, USER = "cert-ctrl-plane.service", "cert-ctrl-plane"
START = f"enable --now {UNIT}"
NAME = "plane.example.com"
OPTIONS = "PLANE_OPTIONS=--listen 0.0.0.0:8443 --hostname plane.example.com\n"


@pytest.fixture
def host(tmp_path: Path, need: Callable[[str], str]) -> PrivateHost:
    need("unshare")
    made = PrivateHost(tmp_path)
    (made.place / "etc" / "default").mkdir(exist_ok=True)
    return made


def options(host: PrivateHost) -> Path:
    return host.place / "etc" / "default" / "cert-ctrl-plane"


def line_of(out: str) -> list[str]:
    """Return the words of the line to paste on hosts."""
    return shlex.split(out.partition("paste on each: ")[2].partition("\n")[0])


def require_private(host: PrivateHost) -> None:
    public = re.compile(r"(\.?(issuing-)?ca|tls)\.pem(\.\w+\.tmp)?")  # a killed run leaves its temporary file
    for path in (host.plane, *host.plane.rglob("*")):
        assert path.stat().st_uid == host.uid(USER), path
        assert public.fullmatch(path.name) or not path.stat().st_mode & 0o077, path


def test_a_control_plane_is_set_up_once(host: PrivateHost) -> None:
    host.boots(UNIT, user=USER)
    done = host.run("plane", "setup", "--hostname", "Plane.Example.COM.")
    assert (done.status, done.err) == (0, "")
    assert options(host).read_text() == OPTIONS and options(host).stat().st_mode & 0o777 == 0o644
    assert host.calls() == [START]
    require_private(host)
    ca = fingerprint(host.plane / "ca.pem")
    line = ["cert-ctrl", "setup", "--server", f"https://{NAME}:8443", "--ca-fingerprint", ca]
    assert line_of(done.out) == line
    assert (host.plane / "operator.key").read_text().strip() not in done.out
    for words in ([], ["--hostname", NAME], ["--listen", "0.0.0.0:8443"]):
        again = host.run("plane", "setup", *words)
        assert (again.status, again.err, line_of(again.out)) == (0, "", line)
        assert f"{UNIT} is running" in again.out
    assert host.calls() == [START]


def test_other_options_are_kept_and_contradictions_refused(host: PrivateHost) -> None:
    host.boots(UNIT, user=USER)
    text = 'PLANE_OPTIONS="--listen=0.0.0.0:9443 --hostname old.example --metrics 127.0.0.1:9465"\n'
    options(host).write_text(text)
    done = host.run("plane", "setup")
    assert done.status == 0 and line_of(done.out)[3] == "https://old.example:9443"
    done = host.run("plane", "setup", "--hostname", NAME)
    assert done.status == 78 and "has other options: --listen 0.0.0.0:9443 --hostname old.example" in done.err
    assert "systemctl restart cert-ctrl-plane.service" in done.err
    assert options(host).read_text() == text


def test_options_of_a_drop_in_are_not_overridden(host: PrivateHost) -> None:
    host.boots(UNIT, user=USER)
    unit = host.tools / "units" / UNIT
    unit.write_text(unit.read_text() + 'Environment=A=b "PLANE_OPTIONS=--database postgresql://db/plane"\n')
    done = host.run("plane", "setup", "--hostname", NAME)
    assert done.status == 78 and "a drop-in of cert-ctrl-plane.service sets PLANE_OPTIONS" in done.err
    assert not options(host).exists() and host.calls() == []


def test_the_printed_url_is_the_one_that_is_served(host: PrivateHost) -> None:
    host.boots(UNIT, user=USER)
    options(host).write_text("PLANE_OPTIONS=--hostname plane.example --public-url https://certs.example/\n")
    done = host.run("plane", "setup")
    assert done.status == 0 and line_of(done.out)[3] == "https://certs.example"


def test_the_name_is_asked_for_on_a_terminal(host: PrivateHost) -> None:
    host.boots(UNIT, user=USER)
    comment = "# Options, for example:\n#PLANE_OPTIONS=--listen 0.0.0.0:1"
    options(host).write_text(comment)
    done = host.talk([("]: ", f"{NAME}\n")], "plane", "setup")
    assert done.status == 0 and options(host).read_text() == f"{comment}\n{OPTIONS}", done.out


@pytest.mark.parametrize(
    ("words", "missing"),
    [
        ([], "no host name given"),
        (["--hostname", "a b"], "--hostname 'a b'"),
        (["--hostname", "x --operator-key-file /etc/shadow"], "--hostname 'x"),
        (["--hostname", NAME, "--listen", "8443 --http 0.0.0.0:80"], "is not HOST:PORT"),
        (["--hostname", NAME, "--listen", "a b:80"], "is not HOST:PORT"),
    ],
)
def test_nothing_is_guessed_or_passed_on(host: PrivateHost, words: list[str], missing: str) -> None:
    host.boots(UNIT, user=USER)
    done = host.run("plane", "setup", *words)
    assert done.status == 2 and missing in done.err, done.err
    assert host.uid(USER) is None and not host.plane.exists() and not options(host).exists()


MOMENTS: dict[str, Callable[[PrivateHost], bool]] = {
    "the user exists": lambda host: host.uid(USER) is not None,
    "the directory exists": lambda host: host.plane.exists(),
    "the options are written": lambda host: options(host).exists(),
    "the unit is started": lambda host: bool(host.calls()),
    "the storage key is made": lambda host: (host.plane / "storage.key").exists(),
    "the database is made": lambda host: (host.plane / "plane.db").exists(),
    "the CA is written": lambda host: (host.plane / "ca.pem").exists(),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_an_interrupted_run_is_repeated(host: PrivateHost, moment: str) -> None:
    host.boots(UNIT, user=USER)
    words = ("plane", "setup", "--hostname", NAME)
    host.kill_at(lambda: MOMENTS[moment](host), *words)
    done = host.run(*words)
    assert done.status == 0, done.err
    assert host.calls()[-1] == START and options(host).read_text() == OPTIONS
    require_private(host)
    assert line_of(done.out)[-1] == fingerprint(host.plane / "ca.pem")


def test_a_dry_run_changes_nothing(host: PrivateHost) -> None:
    host.boots(UNIT, user=USER)
    done = host.run("plane", "setup", "--hostname", NAME, "--dry-run")
    assert done.status == 0 and done.out.count("would be") == 4, done.out
    assert host.uid(USER) is None and not host.plane.exists() and not options(host).exists() and host.calls() == []


def test_two_machines_without_systemd_with_the_printed_lines_only(host: PrivateHost) -> None:
    """Set up, run the printed command, paste the printed line: the agent is registered, each as its own user."""
    done = host.run("plane", "setup", "--hostname", "localhost", "--listen", "127.0.0.1:0")
    assert done.status == 0, done.err
    (command,) = [line.partition("run: ")[2] for line in done.out.splitlines() if "run: " in line]
    serving = subprocess.Popen(
        host.argv(*shlex.split(command)[1:]), env=host.environ(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        address = host.plane / "address"
        wait_for(lambda: address.exists() and address.read_text(), "the control plane to serve")
        wait_for(lambda: run_cli("plane", "status", "--data", host.plane).returncode != 3, "it to answer")
        assert Path(f"/proc/{serving.pid}").stat().st_uid == host.uid(USER), "not as root"
        made = host.run("plane", "enrolment-token", "--data", "/var/lib/cert-ctrl-plane")
        (host.place / "etc" / "token").write_text(made.out)
        line = line_of(done.out)
        line[3] = address.read_text().strip()  # port 0 was any free one
        joined = host.run(*line[1:], "--token-file", "/etc/token")
        assert joined.status == 0 and "registered as device 1" in joined.out, joined.err
        assert ConfigDir(host.agent).access_token.stat().st_uid == host.uid("cert-ctrl") != host.uid(USER)
    finally:
        os.kill(serving.pid, signal.SIGTERM)
        serving.wait(60)
