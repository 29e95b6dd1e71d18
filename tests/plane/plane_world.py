"""An in-process plane with its own clock, and clients without sockets."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import attrs
import trio
from nacl.public import PrivateKey
from proving import answered, registration
from units import Units

from certctrl.plane.core import Plane
from certctrl.plane.http.faults import Faults

WALL = 1_790_000_000.0
PUBLIC_ID = "23229bf7-5172-02c7-59a2-76d5b4a40090"
UPDATES = "/apiv1/devices/self/updates"
REGISTER = "/apiv1/device/registration"


@attrs.define
class Clock:
    """Clocks that tests advance: ``wall`` may jump, ``steady`` may not."""

    wall: float = WALL
    steady: float = 0.0

    def advance(self, seconds: float) -> None:
        self.wall += seconds
        self.steady += seconds


@attrs.frozen
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def data(self) -> Any:
        assert self.status < 300, self.body
        return self.json["data"]

    @property
    def key(self) -> str:
        """The key of an error, after checking its shape."""
        error = self.json["error"]
        assert set(error) == {"code", "what", "key", "params"}
        assert isinstance(error["code"], int)
        assert isinstance(error["what"], str)
        assert isinstance(error["params"], dict)
        return str(error["key"])

    @property
    def what(self) -> str:
        """The message of an error."""
        return str(self.json["error"]["what"])


@attrs.define(eq=False)
class Client:
    """Calls an ASGI application as a server would."""

    app: Callable[..., Any]
    token: str = ""
    address: str = "192.0.2.7"
    gone: trio.Event | None = None
    """Set to close the connection from the client's side."""

    async def __call__(
        self,
        method: str,
        path: str,
        json_body: object = None,
        *,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        target, _, query = path.partition("?")
        sent = {"host": "plane.test", **({"authorization": f"Bearer {self.token}"} if self.token else {})}
        if json_body is not None:
            body, sent["content-type"] = json.dumps(json_body).encode(), "application/json"
        sent |= {name.lower(): value for name, value in (headers or {}).items()}
        if body is not None:
            sent.setdefault("content-length", str(len(body)))
        scope = {
            "type": "http", "http_version": "1.1", "method": method, "scheme": "https", "path": target,
            "raw_path": target.encode(), "query_string": query.encode(), "root_path": "",
            "headers": [(name.encode(), value.encode()) for name, value in sent.items()],
            "client": (self.address, 12345), "server": ("plane.test", 443), "state": {},
        }  # fmt: skip
        inbox = [{"type": "http.request", "body": body or b"", "more_body": False}]
        started: dict[str, Any] = {}
        chunks: list[bytes] = []

        async def receive() -> dict[str, Any]:
            if inbox:
                return inbox.pop()
            if self.gone is None:
                await trio.sleep_forever()
            else:
                await self.gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                assert not started
                started.update(message)
            else:
                chunks.append(message.get("body", b""))

        await self.app(scope, receive, send)
        got: dict[str, str] = {}
        for name, value in started["headers"]:
            key = name.decode().lower()
            got[key] = f"{got[key]}\n{value.decode()}" if key in got else value.decode()
        return Reply(started["status"], got, b"".join(chunks))


@attrs.define(eq=False)
class Device(Client):
    """A client that is a registered device."""

    id: int = 0
    user_id: int = 1
    refresh_token: str = ""
    public_id: str = ""
    secret: PrivateKey = attrs.field(factory=PrivateKey.generate)

    @property
    def home(self) -> str:
        return f"/apiv1/users/{self.user_id}/devices/{self.id}"

    async def poll(self, cursor: str | None = None, **query: int) -> Reply:
        asked = {**({"cursor": cursor} if cursor else {}), **query}
        return await self("GET", UPDATES + "?" + "&".join(f"{name}={value}" for name, value in asked.items()))


@attrs.define(eq=False)
class World:
    """One plane with its clients."""

    plane: Plane
    clock: Clock
    app: Callable[..., Any]
    faults: Faults
    operator: Client
    stranger: Client
    units: Units

    async def register(self, body: dict[str, Any]) -> Reply:
        """Register with these fields, answering the challenge; return the last reply."""
        reply = await self.stranger("POST", REGISTER, body)
        if reply.status == 200 and "challenge_b64" in reply.data:
            reply = await self.stranger("POST", REGISTER, answered(body, reply.data))
        return reply

    async def device(self, public_id: str = PUBLIC_ID, name: str = "web-1") -> Device:
        """Register a device with an enrolment token."""
        token = self.plane.enrolment.new_token(1)["token"]
        secret = PrivateKey.generate()
        reply = await self.register(registration(public_id, secret, name) | {"enrolment_token": token})
        device, session = reply.data["device"], reply.data["session"]
        return Device(
            self.app, session["access_token"], id=device["id"], user_id=device["user_id"],
            refresh_token=session["refresh_token"], public_id=public_id, secret=secret,
        )  # fmt: skip
