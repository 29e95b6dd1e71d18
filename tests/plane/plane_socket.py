"""A TLS connection with minimal HTTP, and clients of the served plane that use it."""

from __future__ import annotations

import json
import os
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import attrs
import trio
from nacl.public import PrivateKey
from proving import answered

from certctrl.plane.serve import PlaneAddress
from certctrl.plane.settings import PlaneSettings

UPDATES = "/apiv1/devices/self/updates"
REGISTER = "/apiv1/device/registration"
FAST = PlaneSettings(poll_rate=10_000, poll_burst=10_000)


@attrs.frozen
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def data(self) -> Any:
        assert self.status < 300, self.body
        return json.loads(self.body)["data"]


@attrs.define(eq=False)
class Connection:
    """One TLS connection with minimal HTTP."""

    stream: trio.SSLStream[trio.SocketStream]
    token: str = ""
    buffer: bytes = b""

    async def ask(self, method: str, path: str, body: object = None, **headers: str) -> Answer:
        data = b"" if body is None else json.dumps(body).encode()
        lines = [f"{method} {path} HTTP/1.1", "Host: plane"]
        lines += [f"Authorization: Bearer {self.token}"] if self.token else []
        if body is not None:
            lines += ["Content-Type: application/json", f"Content-Length: {len(data)}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        await self.stream.send_all("\r\n".join([*lines, "", ""]).encode() + data)
        return await self.answer()

    async def answer(self) -> Answer:
        while b"\r\n\r\n" not in self.buffer:
            await self._more()
        head, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
        first, *rest = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in rest)}
        length = int(headers.get("content-length", "0"))
        while len(self.buffer) < length:
            await self._more()
        body, self.buffer = self.buffer[:length], self.buffer[length:]
        return Answer(int(first.split()[1]), headers, body)

    async def _more(self) -> None:
        data = await self.stream.receive_some(65_536)
        if not data:
            raise EOFError
        self.buffer += data


def port_of(address: PlaneAddress) -> int:
    return int(address.url.rpartition(":")[2])


@asynccontextmanager
async def connected(address: PlaneAddress, token: str = "") -> AsyncIterator[Connection]:
    context = ssl.create_default_context(cafile=str(address.ca_file))
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    stream = await trio.open_ssl_over_tcp_stream(
        "127.0.0.1", port_of(address), ssl_context=context, https_compatible=True
    )
    try:
        yield Connection(stream, token)
    finally:
        await trio.aclose_forcefully(stream)


def operator_key(address: PlaneAddress) -> str:
    return address.operator_key_file.read_text().strip()


async def enrolled(operator: Connection, form: Callable[..., dict[str, Any]], public_id: str = "device-1") -> Any:
    token = (await operator.ask("POST", "/apiv1/users/1/enrolment-tokens", {})).data["token"]
    body = form(public_id, PrivateKey.generate()) | {"enrolment_token": token}
    challenge = (await operator.ask("POST", REGISTER, body)).data
    return (await operator.ask("POST", REGISTER, answered(body, challenge))).data


async def fds_back_to(before: int) -> None:
    """Wait until no more file descriptors are open than before."""
    with trio.fail_after(15):
        while len(os.listdir("/proc/self/fd")) > before:
            await trio.sleep(0.05)
