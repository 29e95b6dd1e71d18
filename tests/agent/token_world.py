"""A TokenKeeper, a scripted plane, and wall clocks that follow the virtual one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import jwt
import trio

from certctrl.agent.tokens import TokenKeeper
from certctrl.model.config import AgentConfig, ApplicationConfig
from certctrl.model.records import Tokens
from certctrl.protocol.wire.tokens import Refreshed
from certctrl.store.disk.fs import RealFs
from certctrl.store.disk.tree import make_tree
from certctrl.store.layout import ConfigDir
from certctrl.store.state.session import SessionState

WALL = 1_790_000_000.0
KEY = "k" * 32


async def inline(call: Callable[..., Any], *args: object) -> Any:
    return call(*args)


class World:
    """One config directory, a scripted plane, and a wall clock that follows the virtual one."""

    def __init__(self, root: Path) -> None:
        self.layout = ConfigDir(root)
        make_tree(RealFs(), self.layout)
        self.store = SessionState(self.layout, RealFs())
        self.store.save_device_id("uuid")
        self.spent: list[str] = []
        self.deadlines: list[float] = []
        self.answer: Callable[[str], Awaitable[Refreshed]] = self.rotate
        self.server_skew: float | None = None
        self.features: frozenset[str] = frozenset()
        self.clock_error = 0.0
        self.lifetime = 900.0
        self.made = 0
        self.offload: Callable[..., Awaitable[Any]] = inline

    def wall_now(self) -> float:
        return WALL + trio.current_time() + self.clock_error

    def server_now(self) -> float:
        return self.wall_now() + (self.server_skew or 0.0)

    def access(self, lifetime: float | None = None) -> str:
        """Return a new access token as the plane would issue it now, by the plane's own (right) clock."""
        self.made += 1
        now = WALL + trio.current_time()
        lifetime = self.lifetime if lifetime is None else lifetime
        return jwt.encode({"sub": "7", "device_id": 9, "iat": now, "exp": now + lifetime, "n": self.made}, KEY)

    def stored(self, access: str, refresh: str = "canary-r0") -> None:
        self.store.save_tokens(Tokens(access_token=access, refresh_token=refresh))

    async def rotate(self, refresh_token: str) -> Refreshed:
        await trio.sleep(0.1)
        return Refreshed(access_token=self.access(), refresh_token=f"canary-r{len(self.spent)}", expires_in=None)

    async def refresh(self, refresh_token: str, device_public_id: str, *, deadline: float) -> Refreshed:
        assert device_public_id == "uuid"
        self.spent.append(refresh_token)
        self.deadlines.append(deadline)
        return await self.answer(refresh_token)

    def keeper(self, **settings: Any) -> TokenKeeper:
        return TokenKeeper(
            layout=self.layout,
            store=self.store,
            plane=self,  # type: ignore[arg-type]  # the two calls the keeper makes
            config=AgentConfig(application=ApplicationConfig(**settings)),
            wall_now=self.wall_now,
            offload=lambda call, *args: self.offload(call, *args),
            random=lambda: 1.0,
        )

    @property
    def on_disk(self) -> Tokens:
        found = self.store.load_tokens()
        assert found is not None
        return found


def failing(error: Exception) -> Callable[[str], Awaitable[Refreshed]]:
    async def answer(refresh_token: str) -> Refreshed:
        raise error

    return answer
