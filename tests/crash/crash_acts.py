"""The acts of a traced process: one-shot commands and store code on the real disk, in a single thread.

All of it is the product's code except the network (`Link` sends requests over a Unix socket to the plane in the test's
process) and the thread pool (calls run inline, because strace counts per thread).
"""

from __future__ import annotations

import base64
import json as jsonlib
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
import trio

from certctrl.agent import oneshot
from certctrl.agent.register import register
from certctrl.agent.setup import Seams, open_agent
from certctrl.errors import TransportError
from certctrl.model.answer import Answer
from certctrl.model.config import AgentConfig
from certctrl.net.control_plane import ControlPlane
from certctrl.net.http import target_of
from certctrl.store.config.files import load_config
from certctrl.store.disk.fs import RealFs
from certctrl.store.layout import ConfigDir
from certctrl.store.state.session import SessionState


@attrs.define
class Link:
    """An `Http` connected to the plane in the test's process."""

    path: str

    async def request(
        self, method: str, path: str, *, query: Mapping[str, str | int] | None = None,
        headers: Mapping[str, str] | None = None, json: Any = None, deadline: float, cap: int,
    ) -> Answer:  # fmt: skip
        asked = {"method": method, "target": target_of(path, query), "headers": dict(headers or {}), "json": json}
        try:
            stream = await trio.open_unix_socket(self.path)
        except OSError as error:
            raise TransportError(f"no plane: {error}", fix="start it") from None
        async with stream:
            await stream.send_all(jsonlib.dumps(asked).encode() + b"\n")
            data = b""
            async for part in stream:
                data += part
        answer = jsonlib.loads(data)
        return Answer(answer["status"], answer["headers"], base64.b64decode(answer["body"]))

    async def aclose(self) -> None:
        pass


async def inline(call: Callable[..., Any], *args: Any) -> Any:
    return call(*args)


@attrs.define
class Job:
    """The parameters of one act."""

    root: str
    plane: str
    later: float = 0.0
    """Seconds by which the clock is ahead, so that retries are due."""
    arguments: dict[str, Any] = attrs.field(factory=dict)

    @property
    def config_dir(self) -> Path:
        return Path(self.root) / "agent"

    def wall_now(self) -> float:
        return time.time() + self.later

    @property
    def seams(self) -> Seams:
        return Seams(
            http=lambda config, layout: Link(self.plane), wall_now=self.wall_now, offload=inline,
            random=lambda: 0.5, environ={},
        )  # fmt: skip


async def poll(job: Job) -> None:
    await oneshot.poll_once(job.config_dir, job.seams)


async def roll_back(job: Job) -> None:
    await oneshot.rollback(job.config_dir, job.arguments["domain"], job.arguments["to"], job.seams)


async def enrol(job: Job) -> None:
    layout, fs = ConfigDir(job.config_dir), RealFs()
    config: AgentConfig = load_config(layout, {}).config
    await register(
        layout, SessionState(layout, fs), ControlPlane(Link(job.plane), config, wall_now=job.wall_now), config,
        enrolment_token=job.arguments["token"], show=lambda prompt: None, wall_now=job.wall_now,
    )  # fmt: skip


async def refresh(job: Job) -> None:
    """Start as the daemon does, refresh once, then use the new access token.

    The daemon keeps tokens in memory until the disk takes them. This process ends, so it leaves unsaved tokens unused,
    like a daemon that is killed now.
    """
    async with open_agent(job.config_dir, job.seams) as agent:
        await agent.installer.recover()
        token = await agent.tokens.refresh(await agent.tokens.current())
        if not agent.tokens._refresher.unsaved:
            await agent.plane.fetch_certificates(token)


async def recover(job: Job) -> None:
    async with open_agent(job.config_dir, job.seams) as agent:
        await agent.installer.recover()


ACTS: dict[str, Callable[[Job], Awaitable[None]]] = {
    "poll": poll, "roll_back": roll_back, "enrol": enrol, "refresh": refresh, "recover": recover,
}  # fmt: skip


def run(act: str, job: Job) -> None:
    """Run one act until it ends."""
    logging.getLogger("certctrl").addHandler(logging.NullHandler())
    trio.run(ACTS[act], job)
