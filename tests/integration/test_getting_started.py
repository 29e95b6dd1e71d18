"""The commands of docs/getting-started.md, word for word, in two directories."""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import Person
from fleet import wait_for
from pages import Terminal, blocks, free_address

SOME_CODE, ADDRESS = "CTRX-GKVD", "127.0.0.1:8443"
PICTURES = os.environ.get("CERTCTRL_TEST_PICTURES", "")
pytestmark = pytest.mark.integration


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    shell = Terminal(tmp_path, {ADDRESS: free_address()})
    yield shell
    shell.close()
    if PICTURES:
        (Path(PICTURES) / "getting-started.txt").write_text("".join(shell.transcript))


def approve_on_the_page(person: Person, said: str, key: str) -> None:
    found = re.search(r"https://\S+/device\S*", said)
    code = re.search(r"\b[A-Z0-9]{4}-[A-Z0-9]{4}\b", said)
    assert found and code
    person.open(found[0])
    person.type(key)
    if person.heading() == "Approve a device":
        person.type(code[0])
    assert person.heading() == "Approve this device?"
    assert code[0] in person.text()
    assert socket.gethostname() in person.text()
    assert "unknown" not in person.text()
    person.picture("getting-started")
    person.press("Approve")
    assert "is approved" in person.heading()


def test_every_command_works_as_told(terminal: Terminal, start_browser: Callable[..., Any], tmp_path: Path) -> None:
    pictures = Path(PICTURES) if PICTURES else tmp_path
    status_of = {"status --daemon": (0,)}
    seen: dict[str, str] = {}
    for commands, quoted in blocks("getting-started.md"):
        said = ""
        for command in commands:
            if "plane serve" in command:
                read = terminal.leave_running(command, "operator key")
                said += read()
            elif command.endswith(" register"):
                read = terminal.leave_running(command, r"[A-Z0-9]{4}-[A-Z0-9]{4}")
                key = (tmp_path / "one/plane/operator.key").read_text().strip()
                approve_on_the_page(Person(start_browser(), pictures, "page"), read(), key)
                process = terminal.running[-1][0]
                assert wait_for(lambda p=process: p.poll() is not None, "register to end")  # type: ignore[misc]
                assert process.returncode == 0
                said += read()
                terminal.running.pop()
                terminal.transcript.append(said)
            elif "plane approve" in command:  # the other way; here the page was used
                said = seen["register"]
            elif "--keep-running" in command:
                terminal.leave_running(command, r"\[Agent\] Ready")
            else:
                if "list-certs" in command:
                    wait_for(lambda c=command: "www.example.com" in terminal.type(c), "the certificate to arrive")  # type: ignore[misc]
                said += terminal.type(command, statuses=status_of.get(command.split("agent ")[-1], (0,)))
            seen[command.split()[-1]] = said
        terminal.check([text for text in quoted if text != SOME_CODE], said)
    agent = tmp_path / "two/agent"
    status = terminal.type("cert-ctrl -c two/agent status --json", statuses=(0, 1))
    wait_for(
        lambda: not (agent / "certs/www.example.com.crt").exists(), "the revoked certificate to be taken out of use"
    )
    alarm = wait_for(
        lambda: "revoked" in terminal.type("cert-ctrl -c two/agent status", statuses=(0, 1)), "the alarm in status"
    )
    assert alarm
    assert json.loads(status)["running"] is True
    assert set(terminal.close().values()) == {0}
