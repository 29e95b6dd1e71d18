"""Options of `cert-ctrl plane serve`, and what it logs."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from certctrl.cli.main import run_command
from certctrl.cli.plane.addresses import parse_listen
from certctrl.errors import ExitStatus, UsageError


@pytest.mark.parametrize("option", ["--proxy", "--http-proxy"])
@pytest.mark.parametrize("text", ["balancer.example", "10.0.0.1/8", "10.0.0.0/33", ""])
def test_proxies_are_addresses_or_networks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, text: str
) -> None:
    assert run_command(["plane", "serve", "--data", str(tmp_path / "plane"), option, text]) == ExitStatus.USAGE
    err = capsys.readouterr().err
    assert f"{option} {text!r} is not an address or network" in err
    assert "fix: use for example 192.0.2.10" in err
    assert not (tmp_path / "plane").exists()


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:8443", ("127.0.0.1", 8443)), ("[::1]:0", ("::1", 0)), (":443", ("0.0.0.0", 443)),
        ("plane.example:65535", ("plane.example", 65535)),
    ],
)  # fmt: skip
def test_listen_addresses(text: str, address: tuple[str, int]) -> None:
    assert parse_listen(text) == address


@pytest.mark.parametrize("text", ["", "8443", "127.0.0.1", "x:", "x:y", "x:65536", "::1:8443", "x:-1", "x:１"])
def test_invalid_listen_addresses(text: str) -> None:
    with pytest.raises(UsageError):
        parse_listen(text)


@pytest.mark.integration
@pytest.mark.parametrize(("options", "is_logged"), [([], True), (["-q"], False)])
def test_a_served_plane_logs_what_it_does(tmp_path: Path, options: list[str], is_logged: bool) -> None:
    """Found by review: only warnings appeared, no registration, approval or end of a problem."""
    argv = [sys.executable, "-m", "certctrl", *options, "plane", "serve", "--data", str(tmp_path / "plane")]
    with subprocess.Popen(
        [*argv, "--listen", "127.0.0.1:0", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        url = json.loads(process.stdout.readline())["url"]
        process.send_signal(signal.SIGTERM)
        _, logged = process.communicate(timeout=60)
    assert process.returncode == 0
    assert (f"control plane at {url}" in logged) is is_logged
