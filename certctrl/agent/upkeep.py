"""Small services of the daemon: the access token kept fresh, metrics while they are switched on."""

from __future__ import annotations

import trio

from certctrl.agent.context import Agent
from certctrl.agent.messages import Line, say
from certctrl.errors import NotRegisteredError
from certctrl.model.status import Stop, StopReason

LOOK_EVERY = 300.0
"""Seconds between two looks for something that waits for the window; when one is known, until it opens."""


async def keep_tokens(agent: Agent) -> None:
    """Keep the access token fresh until cancelled; a refused refresh ends the session."""
    try:
        await agent.tokens.keep_token_fresh()
    except NotRegisteredError as error:
        agent.figures.token_refreshes["refused"] += 1
        agent.stop_with(Stop(StopReason.REFRESH_REFUSED, str(error)))


async def keep_window(agent: Agent) -> None:
    """Switch what waits for the maintenance window when it opens, until cancelled."""
    while True:
        opening = agent.installer.next_window()
        pause = LOOK_EVERY if opening is None else min(LOOK_EVERY, max(1.0, opening - agent.wall_now()))
        await trio.sleep(pause)
        if opening is not None and agent.wall_now() >= opening:
            await agent.installer.converge_all(agent.items)


async def serve_metrics_while_on(agent: Agent) -> None:
    """Serve or write metrics if the configuration says so; trouble switches them off and nothing else."""
    settings = agent.config.application
    if not settings.metrics_listen and not settings.metrics_textfile:
        return
    from certctrl.agent.metrics import publish_metrics  # imports prometheus_client: only when switched on

    try:
        await publish_metrics(agent)
    except (OSError, ImportError) as error:
        say(agent.log, Line.METRICS_FAILED, why=error)
        agent.trouble("metrics", f"metrics are off: {error}", "correct metrics_listen or metrics_textfile")
