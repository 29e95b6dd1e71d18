"""The process of the root helper: how it starts, that it ends when idle, and whether a client has gone."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest
from helper_world import direct, write_policy

from certctrl.errors import ConfigError, ExitStatus
from certctrl.helper import serve


def pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def test_it_ends_when_idle(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        requests = direct(policy=write_policy(tmp_path / "p.json", {})).requests
        serve.Server(listener, requests, idle=0.01).run()


def test_a_closed_connection_is_noticed() -> None:
    here, there = pair()
    here.settimeout(serve.REQUEST_SECONDS)  # as while it is served
    assert not serve._is_gone(here)
    there.close()
    assert serve._is_gone(here)
    here.close()


@pytest.mark.parametrize("environ", [{}, {"LISTEN_FDS": "1"}, {"LISTEN_PID": "1", "LISTEN_FDS": "1"}])
def test_it_is_started_by_its_socket_only(environ: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"cert-ctrl-helper\.socket") as caught:
        serve.inherited(environ)
    assert caught.value.fix == "systemctl enable --now cert-ctrl-helper.socket"


def test_by_hand_it_says_how_it_is_started(capsys: pytest.CaptureFixture[str]) -> None:
    assert serve.main([], {}) == ExitStatus.CONFIG
    assert "fix: systemctl enable --now cert-ctrl-helper.socket" in capsys.readouterr().err


def test_a_policy_is_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_policy(tmp_path / "p.json", {}, "agent")
    assert serve.main(["--check", "--policy", str(path)], {}) == ExitStatus.DONE
    assert capsys.readouterr().out == f"{path}: no mistakes; users: agent\n"
    write_policy(path, {"unit": {}}, "agent")
    assert serve.main(["--check", "--policy", str(path)], {}) == ExitStatus.CONFIG
    assert "agent.unit: unknown key" in capsys.readouterr().err


def test_the_example_of_a_policy_is_valid(tmp_path: Path) -> None:
    example = Path(__file__).parents[2] / "deploy" / "cert-ctrl-helper.json"
    (tmp_path / "p.json").write_text(example.read_text(encoding="utf-8"))
    assert serve.main(["--check", "--policy", str(tmp_path / "p.json")], {}) == ExitStatus.DONE


def test_it_loads_neither_trio_nor_the_network() -> None:
    names = [
        "trio",
        "httpx",
        "ssl",
        "cryptography",
        "typer",
        "asyncio",
        "certctrl.net",
        "certctrl.agent",
        "certctrl.plane",
    ]
    code = f"import certctrl.helper.serve, sys; print(*sorted({set(names)!r} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout == "\n"
