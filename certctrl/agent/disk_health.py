"""Trouble with the state directory: noted once, told once, and taken back with the first write that works."""

from __future__ import annotations

from collections.abc import Awaitable

from certctrl.agent.context import Agent
from certctrl.agent.log_lines import Line, log_line
from certctrl.errors import DiskError


async def retry_writes(agent: Agent) -> None:
    """Try again to write what the disk refused; nothing else may come that would."""
    if agent.inbox.behind:
        await write_or_report(agent, agent.inbox.secure())


async def write_or_report(agent: Agent, writing: Awaitable[None]) -> None:
    """Await a write that may fail: what the disk refuses stays in memory and is written with the next change."""
    try:
        await writing
    except DiskError as error:
        report_disk_problem(agent, error)
    else:
        clear_disk_problem(agent)


def report_disk_problem(agent: Agent, error: DiskError) -> None:
    """Note that a state file could not be written."""
    if agent.report_problem("disk", str(error), error.fix or ""):
        log_line(agent.log, Line.DISK_FAILED, path=error.path, why=error)


def clear_disk_problem(agent: Agent) -> None:
    """Note that one could."""
    if agent.clear_problem("disk"):
        log_line(agent.log, Line.DISK_RECOVERED)
