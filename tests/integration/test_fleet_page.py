"""The commands of docs/fleet.md, word for word: three hosts, a rollout to its end, and one to its halt."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from fleet import wait_for
from pages import Terminal, blocks, free_address

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1200)]


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    shell = Terminal(tmp_path, {"127.0.0.1:8443": free_address()}, CERTCTRL_PLANE_DATA=f"{tmp_path}/plane")
    yield shell
    pids = tmp_path / "pids"
    for pid in pids.read_text().split() if pids.exists() else ():
        with suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
    shell.close()


def test_every_command_works_as_told(terminal: Terminal, tmp_path: Path) -> None:
    serve, hosts, start, done, wrong, halted, back, renewal = [
        ("\n".join(commands), quoted) for commands, quoted in blocks("fleet.md")
    ]
    terminal.check(serve[1], terminal.leave_running(serve[0], "operator key")())

    def ends(rollout: int, state: str) -> None:
        command = f"cert-ctrl plane rollout status {rollout}"
        wait_for(lambda: f"is {state}" in terminal.type(command, statuses=(0, 1)), f"rollout {rollout} to be {state}")

    def live(host: str) -> str:
        path = tmp_path / f"tls/{host}/www.example.com.pem"
        return path.read_text() if path.exists() else ""

    for script, quoted in (hosts, start):
        terminal.check(quoted, terminal.type(script))
    wait_for(lambda: live("web-3"), "the last wave")
    ends(1, "done")
    terminal.check(done[1], terminal.type(done[0]))
    first = live("web-1")
    assert first and live("web-2") == live("web-3") == first
    terminal.type(wrong[0])
    ends(2, "halted")
    said = terminal.type(halted[0])  # the status of its last command is 0
    terminal.check(halted[1], said)
    assert "stuck: the host refuses an install item (plan, item-refused)" in said
    assert "  where:   1 device; since " in said
    assert "not below a directory of write_roots; to allow it, policy.json needs" in said
    terminal.check(back[1], terminal.type(back[0]))
    wait_for(lambda: "nothing needs you" in terminal.type("cert-ctrl plane causes"), "the cause to go")
    terminal.check(renewal[1], terminal.type(renewal[0]))
    wait_for(lambda: first not in (live("web-1"), live("web-2"), live("web-3")), "the renewed certificate everywhere")
    terminal.type("kill $(cat pids)")
