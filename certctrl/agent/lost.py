"""Detect deployed certificates that were deleted or damaged on disk, which are fetched again; restore public names."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import attrs

from certctrl.agent.alerts import report_disk_problem
from certctrl.agent.context import Agent
from certctrl.agent.log_lines import Line, log_line
from certctrl.errors import DiskError
from certctrl.model.records import Stage

LOST = "lost-certificates"
NAMES = "public-names"
MAX_NAMED = 5
"""Most certificates that the problem names."""


async def check_disk(agent: Agent, *, change: bool = True, contents: bool = True) -> bool:
    """Report the certificates that are not whole on disk although they were deployed; return whether there are new ones.

    They count as absent from now on, so that the next comparison fetches them; not without ``change``. Also restores
    public names, and clears up after a failing disk. ``contents``: also compare the bytes of files.
    """
    try:
        if change:
            await agent.installer.clear_up()
        found = await agent.installer.lost(contents=contents)
        if found and change:
            await agent.installer.update(attrs.evolve(one, generation="", activated="") for one in found)
        if change or not found:  # without files, no name leads to them
            await _check_names(agent, change=change)
    except DiskError as error:  # nothing is known
        report_disk_problem(agent, error)
        return False
    if not change:
        _report(agent, [one.name for one in found])
        return bool(found)
    if found:
        agent.lost |= {one.cert_id: one.name for one in found}
        log_line(agent.log, Line.CERTS_LOST, names=_named(agent.lost.values()))
        agent.reconcile_requested.value = True
    report_lost(agent)
    return bool(found)


async def _check_names(agent: Agent, *, change: bool) -> None:
    paths = await agent.installer.repair_links(change=change)
    if paths and change:
        log_line(agent.log, Line.NAMES_RESTORED, names=_named(paths))
    elif paths:
        what = f"does not lead to its certificate: {_named(paths)}"
        agent.report_problem(NAMES, what, "cert-ctrl apply restores it")


async def remove_old_generations(agent: Agent) -> None:
    """Remove generations that are no longer kept: after the outcomes, because nothing waits for it."""
    try:
        await agent.installer.prune()
    except DiskError as error:
        report_disk_problem(agent, error)


def report_lost(agent: Agent) -> None:
    """Report the certificates that are still lost as a problem of the status."""
    if agent.lost:
        records = agent.installer.records
        back = {i for i, one in records.items() if one.generation or one.stage is Stage.WITHDRAWN}
        agent.lost = {i: name for i, name in agent.lost.items() if i in records and i not in back}
    _report(agent, list(agent.lost.values()))


def _report(agent: Agent, names: Sequence[str]) -> None:
    if names:
        agent.report_problem(
            LOST, f"deployed, but not on disk, or changed there: {_named(names)}", "cert-ctrl apply fetches them again"
        )
    else:
        agent.clear_problem(LOST)


def _named(names: Collection[str]) -> str:
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join([*names][:MAX_NAMED]) + more
