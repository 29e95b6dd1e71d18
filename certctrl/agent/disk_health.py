"""Problems with the state directory: reported once, cleared on the next successful write."""

from __future__ import annotations

from collections.abc import Awaitable

from certctrl.agent.context import Agent
from certctrl.agent.log_lines import Line, log_line
from certctrl.errors import DiskError


async def retry_writes(agent: Agent) -> None:
    """Retry writes that the disk refused, in case no other change does."""
    if agent.inbox.behind:
        await write_or_report(agent, agent.inbox.secure())


async def write_or_report(agent: Agent, writing: Awaitable[None]) -> None:
    """Await a write and report its failure; refused data stays in memory until the next write."""
    try:
        await writing
    except DiskError as error:
        report_disk_problem(agent, error)
    else:
        clear_disk_problem(agent)


def report_disk_problem(agent: Agent, error: DiskError) -> None:
    """Report that a state file could not be written."""
    if agent.report_problem("disk", str(error), error.fix or ""):
        log_line(agent.log, Line.DISK_FAILED, path=error.path, why=error)


def clear_disk_problem(agent: Agent) -> None:
    """Clear the problem after a successful write."""
    if agent.clear_problem("disk"):
        log_line(agent.log, Line.DISK_RECOVERED)
