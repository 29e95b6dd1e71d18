"""Run the sandbox as an operator does: real plane, real agent, real TLS service, each a separate process."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import signal
import stat
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from fleet import processes_in, processes_naming, sessions_naming

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.integration


def start(*options: str | Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "certctrl", "sandbox", *map(str, options)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def play(*options: str | Path, timeout: float = 120) -> tuple[int, list[dict[str, Any]], str]:
    with start("--json", *options) as process:
        out, err = process.communicate(timeout=timeout)
    return process.returncode, [json.loads(line) for line in out.splitlines()], err


def lines_until(process: subprocess.Popen[str], event: str) -> Iterator[dict[str, Any]]:
    assert process.stdout is not None
    for line in process.stdout:
        reported = json.loads(line)
        yield reported
        if reported["event"] == event:
            return


@pytest.mark.parametrize("service", ["nginx", "builtin"])
def test_what_is_issued_is_served(service: str, need: Callable[[str], str], tmp_path: Path) -> None:
    if service == "nginx":
        need("nginx")
    kept = tmp_path / "show"
    status, reported, err = play("--service", service, "--duration", "8", "--certs", "2", "--every", "1", "--dir", kept)
    summary = reported[-1]
    assert (status, summary["problems"]) == (0, []), err
    assert summary["event"] == "summary"
    assert summary["renewals"] >= 3
    assert summary["served"] == summary["issued"] == 2 + summary["renewals"]
    assert (summary["revocations"], summary["withdrawn"], summary["mismatches"]) == (1, 1, 0)
    # a renewal that a resync or the new install config deploys is served before its signal is handled
    assert summary["renewals"] - 2 <= summary["latency_ms"]["count"] <= summary["renewals"]
    assert 0 < summary["latency_ms"]["p50"] <= summary["latency_ms"]["p99"]
    assert summary["floor_ms"]["count"] > 0, "the baseline client was measured in the same run"
    assert 0 < summary["floor_ms"]["p50"] <= summary["floor_ms"]["p99"]
    assert {"registered", "polled", "signal", "checked", "reloaded", "deployed", "served", "revoked", "gone"} <= {
        line["event"] for line in reported
    }
    assert {entry.name for entry in kept.iterdir()} == {"plane", "agent", "service"}
    for directory in ("plane", "agent"):
        assert stat.S_IMODE((kept / directory).stat().st_mode) == 0o700
    assert processes_naming(str(kept)) == []


@pytest.mark.parametrize("acme", ["pebble", pytest.param("ari", marks=pytest.mark.campaign)])
def test_acme_certificates_are_proven_by_the_agent_and_renewed_by_time(
    acme: str, need: Callable[[str], str], need_module: Callable[[str], None], tmp_path: Path
) -> None:
    if acme == "pebble":
        need("pebble")
    else:
        need_module("acme2certifier")
    options = ["--acme", *([acme] if acme != "pebble" else []), "--service", "builtin", "--certs", "1"]
    status, reported, err = play(*options, "--duration", "1", "--dir", tmp_path / "show", timeout=280)
    summary = reported[-1]
    assert (status, summary["problems"]) == (0, []), err
    assert summary["served"] == summary["issued"] >= 2, "verified by the root of the CA"
    assert summary["renewals"] >= 1, "nobody has asked for it"
    signals = [line["type"] for line in reported if line["event"] == "signal"]
    assert signals.count("acme.http01.start") >= 1
    assert processes_naming(str(tmp_path)) == [], "the CA has ended, too"


ONE_SCREEN = 40
SHORT = ["--service", "builtin", "--duration", "8", "--every", "1"]


def test_in_a_pipe_one_screen_of_short_lines_ends_with_the_verdict() -> None:
    with start(*SHORT) as process:
        out, err = process.communicate(timeout=120)
    lines = out.splitlines()
    assert process.returncode == 0, err
    assert len(lines) <= ONE_SCREEN, out
    assert [line for line in lines if len(line) > 100] == []
    assert lines[-1] == "PASSED, every certificate that was issued was also served."
    assert re.search(r"app1\.sandbox\.test serves \w\w:\w\w…\w\w:\w\w after \d+ ms$", out, re.MULTILINE)
    assert not re.search(r"(\w\w:){6}", out), "no serial in full length"
    assert "\x1b" not in out


def test_on_a_terminal_a_table_is_redrawn_and_the_verdict_is_last() -> None:
    shown, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    command = [sys.executable, "-m", "certctrl", "sandbox", *SHORT]
    environment = os.environ | {"TERM": "xterm"}
    with subprocess.Popen(
        command, cwd=ROOT, stdin=terminal, stdout=terminal, stderr=terminal, env=environment
    ) as process:
        os.close(terminal)
        out = b"".join(iter(partial(read_or_end, shown), b"")).decode()
    os.close(shown)
    assert process.returncode == 0, out
    assert out.count("certificate") > 10, "drawn again and again"
    assert out.count("\x1b[?25l") == out.count("\x1b[?25h") == 1, "the cursor is hidden, then shown again"
    table, _, summary = out.partition("\x1b[?25h")
    assert summary.splitlines()[-1] == "PASSED, every certificate that was issued was also served."
    assert len(summary.splitlines()) < 10
    assert re.search(r"app1\.sandbox\.test .*served", table)
    assert re.search(r"app3\.sandbox\.test .*revoked", table)


def read_or_end(terminal: int) -> bytes:
    """Read from a terminal; nothing when its last program has ended."""
    try:
        return os.read(terminal, 65_536)
    except OSError:
        return b""


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_cleans_up(signum: signal.Signals, tmp_path: Path) -> None:
    kept = tmp_path / "show"
    with start("--json", "--service", "builtin", "--duration", "0", "--certs", "2", "--dir", kept) as process:
        reported = list(lines_until(process, "renewed"))
        process.send_signal(signum)
        out, _ = process.communicate(timeout=90)
    assert reported[-1]["event"] == "renewed"
    assert process.returncode == 130
    assert json.loads(out.splitlines()[-1])["problems"] == []
    assert processes_naming(str(kept)) == []


@pytest.mark.parametrize("service", ["nginx", "builtin"])
def test_nothing_outlives_a_sandbox_that_is_killed(service: str, need: Callable[[str], str], tmp_path: Path) -> None:
    if service == "nginx":
        need("nginx")
    kept = tmp_path / "show"
    with start("--json", "--service", service, "--duration", "0", "--certs", "1", "--dir", kept) as process:
        list(lines_until(process, "up"))
        sessions = sessions_naming(str(kept / "service"))
        assert processes_in(sessions)
        process.kill()
    until = time.monotonic() + 20
    while (processes_naming(str(kept)) or processes_in(sessions)) and time.monotonic() < until:
        time.sleep(0.1)
    assert processes_naming(str(kept)) == processes_in(sessions) == []


def test_other_commands_work_on_it_meanwhile(tmp_path: Path) -> None:
    kept = tmp_path / "show"
    with start("--json", "--service", "builtin", "--duration", "0", "--certs", "2", "--dir", kept) as process:
        list(lines_until(process, "renewed"))
        ask = [sys.executable, "-m", "certctrl", "-c", str(kept / "agent")]
        done = {
            name: subprocess.run(
                [*ask, *name.split()], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
            )
            for name in ("status --json", "list-certs")
        }
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=90)
    assert json.loads(done["status --json"].stdout)["running"] is True
    assert "app1.sandbox.test" in done["list-certs"].stdout


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--service", "apache"], "not one of nginx, builtin, auto"),
        (["--certs", "0"], "not from 1 to 200"),
        (["--dir", "."], "is not empty"),
    ],
)
def test_mistakes_are_one_line_and_status_2(options: list[str], said: str) -> None:
    with start(*options) as process:
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, "")
    assert said in err
    assert "Traceback" not in err
