"""The commands of docs/getting-started.md, word for word, in two directories."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import Person
from fleet import clean_environment, wait_for

ROOT = Path(__file__).parents[2]
MANUAL = (ROOT / "docs" / "getting-started.md").read_text(encoding="utf-8")
SOME_CODE, ADDRESS = "CTRX-GKVD", "127.0.0.1:8443"
PICTURES = os.environ.get("CERTCTRL_TEST_PICTURES", "")
pytestmark = pytest.mark.integration


def blocks() -> Iterator[tuple[list[str], list[str]]]:
    """Yield the commands of each shell block with the outputs that the text behind it quotes after an arrow."""
    found = re.split(r"^```sh\n(.*?)^```\n", MANUAL, flags=re.MULTILINE | re.DOTALL)
    for commands, text in zip(found[1::2], found[2::2], strict=True):
        reported = re.search(r"^→(.*?)(?:\n\n|\Z)", text, flags=re.MULTILINE | re.DOTALL)
        quoted = re.findall(r"`([^`]+)`", re.split(r"[.,] ", reported[1], maxsplit=1)[0]) if reported else []
        yield commands.splitlines(), quoted


def pattern(quoted: str, address: str) -> str:
    quoted = quoted.replace(ADDRESS, address)
    return re.escape(re.sub(r"\s+", " ", quoted)).replace("…", ".+").replace("NAME", ".+").replace(r"\ ", r"\s+")


class Terminal:
    """A directory that stands for two machines, and the commands typed there."""

    def __init__(self, where: Path) -> None:
        self.where = where
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        tools = where / "bin"
        tools.mkdir()
        (tools / "cert-ctrl").write_text(f'#!/bin/sh\nexec {sys.executable} -m certctrl "$@"\n')
        (tools / "cert-ctrl").chmod(0o755)
        self.environ = clean_environment(PATH=f"{tools}:{os.environ['PATH']}", COLUMNS="120")
        self.running: list[tuple[subprocess.Popen[str], Path]] = []
        self.transcript: list[str] = []

    def _words(self, command: str, code: str) -> str:
        return command.replace(ADDRESS, self.address).replace(SOME_CODE, code)

    def type(self, command: str, *, code: str = "", statuses: tuple[int, ...] = (0,)) -> str:
        words = ["bash", "-c", self._words(command, code)]
        done = subprocess.run(
            words, cwd=self.where, env=self.environ, capture_output=True, text=True, timeout=90, check=False
        )
        self.transcript.append(f"$ {words[2]}\n{done.stdout}{done.stderr}[{done.returncode}]\n")
        assert done.returncode in statuses, self.transcript[-1]
        assert "Traceback" not in done.stderr
        return done.stdout

    def leave_running(self, command: str, until: str) -> Callable[[], str]:
        """Start a long-running command; return a function that returns its output."""
        output = self.where / f"terminal-{len(self.transcript)}.txt"
        with output.open("w") as sink:
            words = ["bash", "-c", f"exec {self._words(command, '')}"]
            process = subprocess.Popen(words, cwd=self.where, env=self.environ, stdout=sink, stderr=sink, text=True)
        self.running.append((process, output))
        self.transcript.append(f"$ {words[2]} &\n")
        wait_for(lambda: re.search(until, output.read_text()) or process.poll() is not None, f"{until} of {command}")
        self.transcript.append(output.read_text())
        assert re.search(until, output.read_text()), self.transcript[-1]
        return output.read_text

    def close(self) -> dict[str, int]:
        ended = {}
        for process, output in reversed(self.running):
            process.terminate()
            ended[output.name] = process.wait(timeout=60)
        return ended


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    shell = Terminal(tmp_path)
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
    code = ""
    for commands, quoted in blocks():
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
                said += terminal.type(command, code=code, statuses=status_of.get(command.split("agent ")[-1], (0,)))
            seen[command.split()[-1]] = said
        for text in quoted:
            if text == SOME_CODE:
                continue
            assert re.search(pattern(text, terminal.address), said), (text, said)
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
