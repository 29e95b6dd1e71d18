"""Report what the agent does not log: each command as it runs, each deployment as it is recorded."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import trio

from certctrl.install.process import Proc
from certctrl.install.process.result import CommandResult
from certctrl.sandbox.narrator import Narrator
from certctrl.sandbox.serials import short_serial
from certctrl.sandbox.servers import Server

READ_SECONDS = 0.05
"""Pause between two reads of the audit log."""


class NarratedProc(Proc):
    """Runs commands and reports each one."""

    def __init__(self, narrator: Narrator, server: Server) -> None:
        super().__init__()
        self._narrator = narrator
        self._server = server

    async def run(self, argv: Sequence[str], **options: Any) -> CommandResult:
        """Run one command; see ``Proc.run``."""
        result = await super().run(argv, **options)
        event, sentence = "checked", f"{self._server.label} checked the staged files"
        if tuple(argv) == self._server.reload_argv:
            event, sentence = "reloaded", f"reloaded {self._server.label}"
        text = f"{sentence}: exit status {result.status}, {result.seconds * 1000:.0f} ms"
        routine = result.status == 0
        self._narrator.write("agent", event, text, routine=routine, argv=list(argv), status=result.status)
        return result


async def follow_history(narrator: Narrator, history: Path, follower: trio.CancelScope) -> None:
    """Report each deployment that the agent records in its audit log, until ``follower`` is cancelled."""
    with follower:
        await _follow(narrator, history)


async def _follow(narrator: Narrator, history: Path) -> None:
    reported = 0
    while True:
        lines = _lines_of(history)
        for line in lines[reported:]:
            entry = json.loads(line)
            facts = {key: entry[key] for key in ("name", "serial", "outcome")}
            text = f"{entry['outcome']}: {entry['name']}, serial {short_serial(entry['serial'])}"
            narrator.write("agent", "deployed", text, routine=entry["outcome"] == "applied", **facts)
        reported = len(lines)
        await trio.sleep(READ_SECONDS)


def _lines_of(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []
