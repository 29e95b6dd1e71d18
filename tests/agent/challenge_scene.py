"""Helpers for tests of challenges: signals, policy, the next run, and the daemon's task."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from typing import Any

import trio
from handler_world import NOW, TS, World

from certctrl.agent.context import Agent
from certctrl.agent.run import answer_challenges
from certctrl.model.policy import AcmeAnswers, HostPolicy
from certctrl.model.signals import (
    AcmeHttp01Start,
    AcmeHttp01Stop,
    ChallengeStart,
)

TOKEN = "LoqXcYV8q5ONbJQxbmR7SCTNo3tiAXDfowyjxAjEuX0"
THUMBPRINT = "9jg46WB3rR_AHD-EBXdN7cBkH1WOu0tA3M9fm21mqTI"
ANSWER = f"{TOKEN}.{THUMBPRINT}"
STOP = AcmeHttp01Stop(TS, TOKEN)


def start(
    kind: type[ChallengeStart] = AcmeHttp01Start,
    *,
    token: str = TOKEN,
    name: str = "www.example.com",
    life: float = 600,
) -> Any:
    expires = int((NOW + life) * 1000)
    return kind(TS, token, key_authorization=f"{token}.{THUMBPRINT}", identifier=name, expires_ms=expires)


def allow(scene: World, **settings: Any) -> None:
    scene.agent.policy = HostPolicy(acme=AcmeAnswers(**settings))


def restarted(scene: World) -> World:
    """Return the agent of the next run, with the same files and policy."""
    again = World(scene.layout.root)
    again.agent.policy = scene.agent.policy
    return again


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def while_answering(agent: Agent, body: Callable[[], Awaitable[None]]) -> None:
    """Run a body while the daemon's task for challenges runs."""
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer_challenges, agent)
            await trio.testing.wait_all_tasks_blocked()
            await body()
            nursery.cancel_scope.cancel()
