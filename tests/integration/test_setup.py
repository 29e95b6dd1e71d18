"""`setup`: a real control plane, a private host with its own users, a recording ``systemctl``, real terminals."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fleet import Operator, Plane, clean_environment, run_cli, wait_for
from middleman import middleman
from private_host import CTRL_C, PrivateHost, json_of, talk
from syscall_trace import PUBLIC
from test_first_contact import OTHER, fingerprint

from certctrl.store.layout import ConfigDir

pytestmark = [pytest.mark.integration, pytest.mark.root]
UNIT = "cert-ctrl.service"
START = f"enable --now {UNIT}"
QUESTIONS = ("URL of the control plane: ", "(at least 8): ", "(none: approve a code): ")


@pytest.fixture
def host(tmp_path: Path, need: Callable[[str], str]) -> PrivateHost:
    need("unshare")
    return PrivateHost(tmp_path)


@pytest.fixture
def token(host: PrivateHost, plane: Plane) -> str:
    """Make a token, in /etc/token of the host."""
    made = plane.operator.enrolment_token()
    (host.place / "etc" / "token").write_text(f"{made}\n")
    (host.place / "etc" / "token").chmod(0o600)
    return made


@pytest.fixture
def flags(plane: Plane) -> list[str]:
    return ["setup", "--server", plane.url, "--ca-fingerprint", fingerprint(plane.ca), "--token-file", "/etc/token"]


def files_below(root: Path) -> Iterator[tuple[Path, os.stat_result]]:
    for path in (root, *root.rglob("*")):
        yield path, path.lstat()


def require_private(host: PrivateHost) -> None:
    """Everything in the agent's directory is its user's, and nothing secret is open to others (umask 000)."""
    uid = host.uid("cert-ctrl")
    for path, facts in files_below(host.agent):
        assert facts.st_uid == uid, path
        if not stat.S_ISLNK(facts.st_mode) and path.name not in PUBLIC:
            assert not facts.st_mode & 0o077, path


def is_registered(host: PrivateHost) -> bool:
    return ConfigDir(host.agent).access_token.exists()


def test_flags_set_a_host_up_once(host: PrivateHost, plane: Plane, token: str, flags: list[str]) -> None:
    host.boots(UNIT)
    done = host.run(*flags, "--name", "web-1")
    assert (done.status, done.err) == (0, "")
    for text in (
        "user       cert-ctrl created",
        "directory  /etc/cert-ctrl created for user cert-ctrl",
        f"plane      {plane.url}; its CA: the one with the given fingerprint",
        "(web-1) of user 1",
        f"service    {UNIT} enabled and started",
    ):
        assert text in done.out
    assert host.calls() == [START]
    assert is_registered(host) and ConfigDir(host.agent).plane_ca.read_bytes() == plane.ca.read_bytes()
    require_private(host)
    before = {path: (facts.st_ino, facts.st_mtime_ns) for path, facts in files_below(host.agent) if path.is_file()}
    again = host.run("setup")
    assert (again.status, again.err) == (0, ""), "nothing has to be asked"
    assert f"service    {UNIT} is running" in again.out and "registered" not in again.out
    assert host.calls() == [START]
    assert {path: (path.lstat().st_ino, path.lstat().st_mtime_ns) for path in before} == before


def test_questions_on_a_terminal(host: PrivateHost, plane: Plane, token: str) -> None:
    host.boots(UNIT)
    typed = (plane.url, fingerprint(plane.ca)[:16].upper(), token)
    done = host.talk([(question, f"{text}\n") for question, text in zip(QUESTIONS, typed, strict=True)], "setup")
    assert done.status == 0 and "registered as device" in done.out and host.calls() == [START], done.out
    assert token not in done.out, "it is not shown"
    assert fingerprint(plane.ca)[16:] not in done.out, "what is shown before the answer would be copied"


def test_a_host_without_a_token_is_approved_by_its_code(host: PrivateHost, plane: Plane) -> None:
    host.boots(UNIT)
    approving = threading.Thread(target=approve_next, args=(plane.operator,))
    approving.start()
    words = ("setup", "--server", plane.url, "--ca-fingerprint", fingerprint(plane.ca))
    done = host.talk([(QUESTIONS[2], "\n")], *words)
    approving.join()
    assert done.status == 0 and "Waiting for approval" in done.out and "registered as device" in done.out, done.out


def approve_next(operator: Operator) -> None:
    waiting = wait_for(lambda: operator.call("GET", "/apiv1/device-grants"), "a request for approval")
    operator.call("POST", f"/apiv1/device-grants/{waiting[0]['user_code']}", {"approve": True, "user_id": 1})


def test_ctrl_c_while_a_code_waits_for_approval(host: PrivateHost, plane: Plane, token: str, flags: list[str]) -> None:
    host.boots(UNIT)
    done = host.talk([(QUESTIONS[2], "\n"), ("Waiting for approval", CTRL_C)], *flags[:-2])
    assert done.status == 130 and "Traceback" not in done.out and not is_registered(host), done.out
    assert done.out.count("cert-ctrl: interrupted") <= 1, "not for each of the two processes"
    again = host.run("setup", "--token-file", "/etc/token")
    assert again.status == 0 and is_registered(host), "URL and CA are configured"


def test_the_result_as_json(host: PrivateHost, plane: Plane, token: str, flags: list[str]) -> None:
    host.boots(UNIT)
    done = host.run(*flags, "--json")
    assert done.status == 0
    found = json.loads(done.out)
    assert found["dry_run"] is False
    assert [step["about"] for step in found["steps"]][:5] == ["user", "directory", "plane", "config", "device"]
    assert {"about": "service", "what": f"{UNIT} enabled and started"} in found["steps"]


def test_too_few_digits_are_asked_for_again(host: PrivateHost, plane: Plane) -> None:
    answers = [("(at least 8): ", "9f86\n"), ("(at least 8): ", "what?\n"), ("(at least 8): ", "\x04")]
    done = host.talk(answers, "setup", "--server", plane.url)
    assert done.status == 130 and done.out.count("a CA fingerprint has 8 to 64 hexadecimal digits") == 2
    assert not host.agent.exists() and host.uid("cert-ctrl") is None


@pytest.mark.parametrize(
    ("words", "missing"),
    [
        ([], "no control plane given"),
        (["--server", "https://plane.example"], "no CA of the control plane given"),
        (["--server", "https://plane.example", "--ca-fingerprint", OTHER], "no enrolment token given"),
        (["--server", "https://plane.example", "--ca-fingerprint", "0123"], "8 to 64 hexadecimal digits"),
        (["--system-ca", "--ca-fingerprint", OTHER], "--system-ca cannot be combined"),
        (["--server", "https://plane.example", "--system-ca", "--token-file", "/missing"], "cannot read /missing"),
    ],
)
def test_without_a_terminal_nothing_is_guessed(host: PrivateHost, words: list[str], missing: str) -> None:
    done = host.run("setup", *words)
    assert done.status == 2 and missing in done.err and "fix: " in done.err
    assert not host.agent.exists() and host.uid("cert-ctrl") is None


def test_a_middleman_gets_neither_token_nor_host(host: PrivateHost, plane: Plane, token: str, tmp_path: Path) -> None:
    host.boots(UNIT)
    with middleman(tmp_path) as between:
        typed = (between.url, fingerprint(plane.ca)[:16], token)
        done = host.talk([(question, f"{text}\n") for question, text in zip(QUESTIONS, typed, strict=True)], "setup")
        assert done.status == 69 and "nothing of it is used" in done.out, done.out
        assert [request.split(b"\r\n")[0] for request in between.received] == [b"GET /ca.pem HTTP/1.1"]
        assert token.encode() not in between.received[0]
    assert list(host.agent.iterdir()) == [] and host.calls() == []


def test_the_token_is_in_no_command_line_environment_or_output(
    host: PrivateHost, plane: Plane, token: str, flags: list[str], need: Callable[[str], str]
) -> None:
    host.boots(UNIT)
    trace = host.tools / "trace"
    strace = [need("strace"), "-f", "-v", "-s", "65536", "-o", "/opt/tools/trace", "-e", "trace=execve"]
    argv = host.argv(*flags[:-2], "--debug", wrapped=strace)
    done = subprocess.run(
        argv, env=host.environ(CERTCTRL_ENROLMENT_TOKEN=token), capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0 and is_registered(host), done.stderr
    calls = [line for line in trace.read_text().splitlines() if "execve(" in line and "= 0" in line]
    own = [line for line in calls if '"setup"' in line]
    assert len(calls) > len(own) + 5 and all(token in line for line in own), "the variable of the command itself"
    assert [line for line in calls if token in line and line not in own] == []
    assert token not in done.stdout + done.stderr
    for path, facts in files_below(host.agent):
        assert not stat.S_ISREG(facts.st_mode) or token.encode() not in path.read_bytes(), path


MOMENTS: dict[str, Callable[[PrivateHost], bool]] = {
    "the user exists": lambda host: host.uid("cert-ctrl") is not None,
    "the directory exists": lambda host: host.agent.exists(),
    "it is the user's": lambda host: host.agent.exists() and host.agent.stat().st_uid != 0,
    "the CA is written": lambda host: ConfigDir(host.agent).plane_ca.exists(),
    "the policy is written": lambda host: ConfigDir(host.agent).policy.exists(),
    "the key is made": lambda host: ConfigDir(host.agent).next_secret_key.exists(),
    "it is registered": is_registered,
    "the unit is started": lambda host: bool(host.calls()),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_an_interrupted_run_is_repeated(host: PrivateHost, token: str, flags: list[str], moment: str) -> None:
    host.boots(UNIT)
    host.kill_at(lambda: MOMENTS[moment](host), *flags)
    done = host.run(*flags)
    assert done.status == 0, done.err
    assert is_registered(host) and host.calls()[-1] == START
    require_private(host)


def test_a_directory_that_was_made_but_not_given_away(host: PrivateHost, token: str, flags: list[str]) -> None:
    """The moment between two system calls, which no kill hits reliably."""
    host.boots(UNIT)
    host.agent.mkdir(mode=0o755)
    done = host.run(*flags)
    assert done.status == 0, done.err
    require_private(host)


def test_a_dry_run_changes_asks_and_sends_nothing(host: PrivateHost, plane: Plane, flags: list[str]) -> None:
    host.boots(UNIT)
    before = (host.place / "etc" / "passwd").read_bytes()
    for words in (["setup"], flags):
        done = host.run(*words, "--dry-run")
        assert done.status == 0 and done.out.count("would be") == 6, done.out
    assert f"init --server {plane.url} --ca-fingerprint {fingerprint(plane.ca)}" in done.out
    assert "would be enabled and started: systemctl enable --now cert-ctrl.service" in done.out
    assert (host.place / "etc" / "passwd").read_bytes() == before and not host.agent.exists() and host.calls() == []


@pytest.mark.parametrize("booted", [False, True])
def test_without_systemd_or_its_unit_the_command_is_printed(
    host: PrivateHost, token: str, flags: list[str], booted: bool
) -> None:
    if booted:
        host.boots()
    done = host.run(*flags)
    why = "has no unit cert-ctrl.service" if booted else "not found"
    assert done.status == 0 and f"systemd {why}; run: cert-ctrl -c /etc/cert-ctrl --keep-running" in done.out
    assert is_registered(host) and host.calls() == []
    require_private(host)


def test_a_unit_of_root_has_a_directory_of_root(host: PrivateHost, token: str, flags: list[str]) -> None:
    host.boots(UNIT, user="")
    assert host.run(*flags).status == 0
    assert is_registered(host) and host.agent.stat().st_uid == 0 and host.uid("cert-ctrl") is None


def test_a_package_may_have_made_the_directory_for_the_unprivileged_unit(
    host: PrivateHost, token: str, flags: list[str]
) -> None:
    with (host.place / "etc" / "passwd").open("a") as file:
        file.write("cert-ctrl:x:990:990::/etc/cert-ctrl:/usr/sbin/nologin\n")
    host.agent.mkdir(mode=0o700)
    os.chown(host.agent, 990, 990)
    host.boots(UNIT, user="")
    assert host.run(*flags).status == 0
    assert is_registered(host) and host.agent.stat().st_uid == 0


def test_a_changed_configuration_restarts_what_runs(host: PrivateHost, token: str, flags: list[str]) -> None:
    host.boots(UNIT)
    assert host.run(*flags).status == 0
    unit = host.tools / "units" / UNIT
    unit.write_text(unit.read_text().replace("disabled", "enabled").replace("inactive", "active"))
    assert host.run("setup").status == 0
    assert host.run("setup", "--name", "another").status == 0
    assert host.calls() == [START, f"restart {UNIT}"]


def test_a_host_whose_files_are_damaged_is_not_set_up(
    host: PrivateHost, plane: Plane, token: str, flags: list[str]
) -> None:
    """Found by review: a registered host without the CA of its control plane ended with status 0."""
    host.boots(UNIT)
    assert host.run(*flags).status == 0
    ca, started = ConfigDir(host.agent).plane_ca, host.calls()
    ca.unlink()
    for words in ((), ("--dry-run",), ("--name", "another")):
        done = host.run("setup", *words)
        assert done.status == 78 and "ca_files: cannot read /etc/cert-ctrl/plane-ca.pem: No such file" in done.err
        assert "fix: " in done.err and host.calls() == started and "service" not in done.out, words
    ca.mkdir()
    assert host.run("setup").status == 78
    ca.rmdir()
    again = host.run("setup", "--ca-fingerprint", fingerprint(plane.ca))
    assert again.status == 0 and ca.read_bytes() == plane.ca.read_bytes(), "which repairs it"


def test_an_instance_has_its_own_user_and_unit(host: PrivateHost, token: str, flags: list[str]) -> None:
    host.boots("cert-ctrl@edge.service", user="cert-ctrl-edge")
    done = host.run("-c", "/etc/cert-ctrl-edge", *flags)
    assert done.status == 0 and host.calls() == ["enable --now cert-ctrl@edge.service"]
    assert (host.place / "etc" / "cert-ctrl-edge").stat().st_uid == host.uid("cert-ctrl-edge")


def test_a_directory_of_another_user_is_refused(host: PrivateHost, token: str, flags: list[str]) -> None:
    host.boots(UNIT)
    host.agent.mkdir(mode=0o700)
    (host.agent / "application.json").write_text("{}")
    done = host.run(*flags)
    assert done.status == 78 and "belongs to user root, but its unit runs as cert-ctrl" in done.err
    assert [path.name for path in host.agent.iterdir()] == ["application.json"]


def test_a_service_that_does_not_start_is_reported(host: PrivateHost, token: str, flags: list[str]) -> None:
    host.boots(UNIT)
    (host.tools / "refuses").touch()
    done = host.run(*flags)
    assert done.status == 1 and f"`systemctl {START}` ended with status 1" in done.err
    assert f"fix: journalctl -u {UNIT}" in done.err
    (host.tools / "refuses").unlink()
    assert host.run("setup").status == 0 and is_registered(host) and host.calls() == [START, START]


def test_a_refused_token_is_the_status_of_registration(host: PrivateHost, flags: list[str]) -> None:
    (host.place / "etc" / "token").write_text("et_wrong\n")
    done = host.run(*flags)
    assert done.status == 77 and "the control plane refuses this registration" in done.err
    assert "et_wrong" not in done.err and not is_registered(host)


def test_another_directory_is_the_callers_and_needs_no_unit(plane: Plane, tmp_path: Path) -> None:
    layout, file = ConfigDir(tmp_path / "agent"), tmp_path / "token"
    file.write_text(plane.operator.enrolment_token())
    words = ("-c", layout.root, "setup", "--server", plane.url, "--ca", plane.ca, "--token-file", file)
    for _ in range(2):
        done = run_cli(*words)
        assert done.returncode == 0, done.stderr
        assert f"service    run: cert-ctrl -c {layout.root} --keep-running" in done.stdout
    assert json_of(layout.application)["server_url"] == plane.url and layout.access_token.exists()


def test_ctrl_c_at_a_question_changes_nothing(plane: Plane, tmp_path: Path) -> None:
    root = tmp_path / "agent"
    argv = [sys.executable, "-m", "certctrl", "-c", str(root), "setup", "--server", plane.url]
    done = talk(argv, clean_environment(), [("(at least 8): ", CTRL_C)])
    assert done.status == 130 and "cert-ctrl: interrupted" in done.out and not root.exists()
