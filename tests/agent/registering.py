"""A host that registers, and a scripted plane that answers it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import jwt
import trio

from certctrl.agent.register import DeviceFlowPrompt, Registered, register
from certctrl.model.config import AgentConfig, ApplicationConfig
from certctrl.model.records import Recommended
from certctrl.protocol.device_flow import GrantPending, GrantReady, GrantStarted
from certctrl.protocol.wire.registration import Registration
from certctrl.store.disk.fs import Fs, RealFs
from certctrl.store.disk.tree import make_tree
from certctrl.store.layout import ConfigDir
from certctrl.store.state.session import SessionState

WALL = 1_790_000_000.0
URL = "https://plane.example:8443"
READY = GrantReady(user_id=7, registration_code="canary-code", ttl=300.0)
STARTED = GrantStarted(
    device_code="canary-device-code",
    user_code="BDFH-JLNP",
    verification_uri=f"{URL}/device",
    verification_uri_complete=f"{URL}/device?code=BDFH-JLNP",
    interval=5.0,
    expires_in=600.0,
)


FILES = ["device_id", "device_public_key", "device_secret_key", "refresh_token", "access_token"]


def access(device_id: int, number: int = 0) -> str:
    return jwt.encode({"sub": "7", "device_id": device_id, "exp": 2**31, "n": number, "x": "canary-access"}, "k" * 32)


@attrs.define(eq=False)
class FakePlane:
    """A scripted plane that records its requests."""

    grants: list[Any] = attrs.field(factory=list)
    answers: list[Any] = attrs.field(factory=list)
    """Exceptions, or callables that are awaited, before a registration succeeds."""
    started: GrantStarted = STARTED
    device_id: int = 9
    recommended: Recommended | None = None
    polls: list[float] = attrs.field(factory=list)
    asked: list[str] = attrs.field(factory=list)
    """Device ids for which an approval was requested."""
    forms: list[dict[str, Any]] = attrs.field(factory=list)
    at_post: Callable[[dict[str, Any]], None] = lambda form: None

    async def start_grant(self, scopes: object, *, name: str, platform: str, device_public_id: str) -> GrantStarted:
        assert name and platform, "the approval page shows both"
        self.asked.append(device_public_id)
        return self.started

    async def poll_grant(self, device_code: str) -> Any:
        assert device_code == self.started.device_code
        self.polls.append(trio.current_time())
        return self.grants.pop(0) if self.grants else GrantPending()

    async def register(self, **form: Any) -> Registration:
        self.forms.append(form)
        self.at_post(form)
        if self.answers:
            answer = self.answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            await answer()
        number = len(self.forms)
        return Registration(
            device_id=self.device_id, user_id=7, device_public_id=form["device_public_id"], name="web-1",
            status="active", access_token=access(self.device_id, number), refresh_token=f"canary-refresh-{number}",
            expires_in=900.0, recommended=self.recommended,
        )  # fmt: skip


@attrs.define(eq=False)
class Host:
    """A config directory, and what its operator sees."""

    layout: ConfigDir
    fs: Fs = attrs.field(factory=RealFs)
    prompts: list[DeviceFlowPrompt] = attrs.field(factory=list)

    def __attrs_post_init__(self) -> None:
        make_tree(self.fs, self.layout)

    @property
    def store(self) -> SessionState:
        return SessionState(self.layout, self.fs)

    async def register(self, plane: FakePlane, *, token: str | None = None, url: str = URL) -> Registered:
        config = AgentConfig(application=ApplicationConfig(server_url=url, name="web-1"))
        return await register(
            self.layout, self.store, plane, config,  # type: ignore[arg-type]  # the calls it makes
            enrolment_token=token, show=self.prompts.append, wall_now=lambda: WALL + trio.current_time(), fs=self.fs,
        )  # fmt: skip
