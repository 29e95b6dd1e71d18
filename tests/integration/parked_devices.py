"""Many devices that poll as the protocol says, without a host behind them: one task and one connection each."""

from __future__ import annotations

import contextlib
import json
import random
import ssl
from collections.abc import AsyncIterator
from typing import Any

import attrs
import httpx
import trio
from nacl.public import PrivateKey
from plane_world import REGISTER, UPDATES
from proving import answered, registration

WAIT_SECONDS = 30
_RECONNECT_SECONDS = 0.5
_REFRESH = "/auth/token/refresh"

Signal = tuple[str, int, str]
"""Type, ``ts_ms`` and ``ref`` as sorted JSON."""


@attrs.define(eq=False)
class ParkedDevice:
    """A registered device; `poll` follows its cursor forever."""

    public_id: str
    http: httpx.AsyncClient
    random: random.Random
    id: int = 0
    received: list[Signal] = attrs.field(factory=list)
    """All signals of all pages, in order."""
    received_at: dict[Signal, float] = attrs.field(factory=dict)
    """When each came first, by Trio's clock."""
    polls: list[float] = attrs.field(factory=list)
    """When the poll that received each began."""
    reconnects: int = 0
    refused: int = 0
    """Answers with 429 or 503."""
    copies_suspected: bool = False
    """Whether a control plane took it for two."""
    _tokens: dict[str, Any] = attrs.field(factory=dict, repr=False)
    _cursor: str = ""
    _asked: float = 0.0

    async def register(self, token: str) -> None:
        """Register by an enrolment token."""
        body = registration(self.public_id, PrivateKey.generate(), self.public_id) | {"enrolment_token": token}
        challenge = (await self.http.post(REGISTER, json=body)).json()["data"]
        done = (await self.http.post(REGISTER, json=answered(body, challenge))).json()["data"]
        self.id, self._tokens = int(done["device"]["id"]), done["session"]

    async def poll(self) -> None:
        """Poll forever; raises AssertionError for an answer that the protocol does not have here."""
        while True:
            try:
                answer = await self._ask()
            except httpx.TransportError:  # a control plane has died; another one answers
                self.reconnects += 1
                await trio.sleep(self.random.uniform(0, _RECONNECT_SECONDS))
            else:
                await self._take(answer)

    async def _ask(self) -> httpx.Response:
        self._asked = trio.current_time()
        query = {"wait": str(WAIT_SECONDS)} | ({"cursor": self._cursor} if self._cursor else {})
        headers = {"authorization": f"Bearer {self._tokens['access_token']}", "cert-ctrl-instance": self.public_id}
        return await self.http.get(UPDATES, params=query, headers=headers)

    async def _take(self, answer: httpx.Response) -> None:
        self.copies_suspected |= "cert-ctrl-copies" in answer.headers
        match answer.status_code:
            case 200:
                data = answer.json()["data"]
                for signal in data["signals"]:
                    self._note((signal["type"], signal["ts_ms"], json.dumps(signal["ref"], sort_keys=True)))
                self._cursor = data["cursor"]
            case 204:
                self._cursor = answer.headers["etag"]
            case 401:
                await self._refresh()
            case 429 | 503:
                self.refused += 1
                await trio.sleep(float(answer.headers["retry-after"]))
            case status:
                raise AssertionError(f"{self.public_id}: {status} {answer.text}")

    def _note(self, signal: Signal) -> None:
        self.received.append(signal)
        self.polls.append(self._asked)
        self.received_at.setdefault(signal, trio.current_time())

    async def _refresh(self) -> None:
        body = {"refresh_token": self._tokens["refresh_token"], "device_public_id": self.public_id}
        with contextlib.suppress(httpx.TransportError):
            answer = await self.http.post(_REFRESH, json=body)
            assert answer.status_code in (200, 429, 503), answer.text
            if answer.status_code == 200:
                self._tokens |= answer.json()["data"]


def client(url: str, ca: str, **more: Any) -> httpx.AsyncClient:
    """Return an HTTP client of the planes behind ``url``, which trusts a CA file."""
    return httpx.AsyncClient(
        base_url=url, verify=ssl.create_default_context(cafile=ca), timeout=2 * WAIT_SECONDS, trust_env=False, **more
    )


@contextlib.asynccontextmanager
async def parked_devices(
    url: str, ca: str, token: str, count: int, seed: random.Random
) -> AsyncIterator[list[ParkedDevice]]:
    """Register devices and let them poll in the block."""
    async with contextlib.AsyncExitStack() as stack, trio.open_nursery() as nursery:
        devices = []
        for number in range(count):
            http = await stack.enter_async_context(client(url, ca))
            devices.append(ParkedDevice(f"parked-{number}", http, random.Random(seed.random())))
            await devices[-1].register(token)
            nursery.start_soon(devices[-1].poll)
        yield devices
        nursery.cancel_scope.cancel()
