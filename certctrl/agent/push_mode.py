"""The interface of push mode, so that an agent in another mode does not load it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

from certctrl.model.questions import QuestionKind
from certctrl.protocol.events import PollAnswer
from certctrl.protocol.steps import Poll

Questions = Callable[[QuestionKind], Awaitable[Any]]
"""Answers a question of the plane, as the command with its name does with ``--json``."""


class PushMode(Protocol):
    """Polls on a socket; see `certctrl.agent.push.Push`."""

    @property
    def is_open(self) -> bool:
        """Whether there is a socket that works."""
        ...

    def view(self) -> dict[str, Any]:
        """Return the transport in use, and why, for the status."""
        ...

    def try_now(self) -> None:
        """Try push with the next poll."""
        ...

    async def poll(self, token: str, step: Poll) -> PollAnswer:
        """Perform one poll."""
        ...

    async def post(self, notices: Sequence[Mapping[str, Any]]) -> bool:
        """Report outcomes; return False if they are to be sent as a request."""
        ...

    async def aclose(self) -> None:
        """Close the socket."""
        ...
