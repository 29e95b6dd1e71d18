"""Trouble with the state directory: noted once, told once, and taken back with the first write that works."""

from __future__ import annotations

from collections.abc import Awaitable

from certctrl.agent.context import Agent
from certctrl.agent.log_lines import Line, say
from certctrl.errors import DiskError


async def catch_up(agent: Agent) -> None:
    """Try again to write what the disk refused; nothing else may come that would."""
    if agent.inbox.behind:
        await tried(agent, agent.inbox.secure())


async def tried(agent: Agent, writing: Awaitable[None]) -> None:
    """Await a write that may fail: what the disk refuses stays in memory and is written with the next change."""
    try:
        await writing
    except DiskError as error:
        disk_trouble(agent, error)
    else:
        disk_is_well(agent)


def disk_trouble(agent: Agent, error: DiskError) -> None:
    """Note that a state file could not be written."""
    if agent.trouble("disk", str(error), error.fix or ""):
        say(agent.log, Line.DISK_FAILED, path=error.path, why=error)


def disk_is_well(agent: Agent) -> None:
    """Note that one could."""
    if agent.well("disk"):
        say(agent.log, Line.DISK_RECOVERED)
