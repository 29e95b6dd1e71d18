"""Run the commands of a page of the documentation, as an operator types them, and check what the page says they print."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from os import environ
from pathlib import Path

from fleet import clean_environment, wait_for

DOCS = Path(__file__).parents[2] / "docs"


def blocks(page: str) -> Iterator[tuple[list[str], list[str]]]:
    """Yield the commands of each shell block with the outputs that the text behind it quotes after an arrow.

    Those are in the first clause; a line that ends with a backslash continues.
    """
    text = (DOCS / page).read_text(encoding="utf-8")
    found = re.split(r"^```sh\n(.*?)^```\n", text, flags=re.MULTILINE | re.DOTALL)
    for commands, behind in zip(found[1::2], found[2::2], strict=True):
        reported = re.match(r"→(.*?)(?:\n\n|\Z)", behind, flags=re.DOTALL)
        quoted = re.findall(r"`([^`]+)`", re.split(r"[.,] ", reported[1], maxsplit=1)[0]) if reported else []
        yield commands.replace("\\\n", "").splitlines(), quoted


def pattern(quoted: str) -> str:
    """Return the pattern of a quoted output, where ``…`` and ``NAME`` stand for anything."""
    quoted = re.escape(re.sub(r"\s+", " ", quoted))
    return quoted.replace("…", ".+").replace("NAME", ".+").replace(r"\ ", r"\s+")


def free_address() -> str:
    """Return an address of this host that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return f"127.0.0.1:{free.getsockname()[1]}"


class Terminal:
    """A directory with a ``cert-ctrl`` on its path, and the commands typed there."""

    def __init__(self, where: Path, words: Mapping[str, str], **environment: str) -> None:
        """``words`` are replaced in commands and quoted outputs: addresses and directories."""
        self.where, self.words = where, words
        self.tools = where / "bin"
        self.tools.mkdir()
        self.tool("cert-ctrl", f'#!/bin/sh\nexec {sys.executable} -m certctrl "$@"\n')
        self.environ = clean_environment(PATH=f"{self.tools}:{environ['PATH']}", COLUMNS="120", **environment)
        self.running: list[tuple[subprocess.Popen[str], Path]] = []
        self.transcript: list[str] = []

    def tool(self, name: str, script: str) -> None:
        """Put a script on the path."""
        (self.tools / name).write_text(script)
        (self.tools / name).chmod(0o755)

    def here(self, text: str) -> str:
        """Return a text of the page with the addresses and directories of this test."""
        for old, new in self.words.items():
            text = text.replace(old, new)
        return text

    def type(self, command: str, *, statuses: tuple[int, ...] = (0,)) -> str:
        """Run a command until it ends; return its standard output."""
        words = ["bash", "-c", self.here(command)]
        done = subprocess.run(
            words, cwd=self.where, env=self.environ, capture_output=True, text=True, timeout=900, check=False
        )
        self.transcript.append(f"$ {words[2]}\n{done.stdout}{done.stderr}[{done.returncode}]\n")
        assert done.returncode in statuses, self.transcript[-1]
        assert "Traceback" not in done.stderr
        return done.stdout

    def leave_running(self, command: str, until: str) -> Callable[[], str]:
        """Start a long-running command; return a function that returns its output."""
        output = self.where / f"terminal-{len(self.transcript)}.txt"
        with output.open("w") as sink:
            words = ["bash", "-c", f"exec {self.here(command)}"]
            process = subprocess.Popen(words, cwd=self.where, env=self.environ, stdout=sink, stderr=sink, text=True)
        self.running.append((process, output))
        self.transcript.append(f"$ {words[2]} &\n")
        wait_for(lambda: re.search(until, output.read_text()) or process.poll() is not None, f"{until} of {command}")
        self.transcript.append(output.read_text())
        assert re.search(until, output.read_text()), self.transcript[-1]
        return output.read_text

    def check(self, quoted: list[str], said: str) -> None:
        """Check that outputs contain what the page quotes."""
        for text in quoted:
            assert re.search(pattern(self.here(text)), said), (text, said)

    def close(self) -> dict[str, int]:
        """End what runs; return the exit statuses."""
        ended = {}
        for process, output in reversed(self.running):
            process.terminate()
            ended[output.name] = process.wait(timeout=60)
        return ended
