"""The plane of the trials: the real one, in a thread of the test, on a Unix socket, with a fresh copy of its data.

It is outside the host: its state survives every crash of the host. When refresh tokens rotate, it repeats the answer
to the last refresh while the new tokens are unused, as docs/protocol.md asks of a plane that rotates; ``spends``
counts the refreshes of each token.
"""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import trio

from certctrl.plane.core import Plane
from certctrl.plane.http.app import make_app
from certctrl.plane.settings import PlaneSettings


async def call(app: Any, method: str, target: str, headers: dict[str, str], body: bytes) -> dict[str, Any]:
    """Call an ASGI application as a server does."""
    path, _, query = target.partition("?")
    sent = {"host": "plane.test", "content-length": str(len(body))} | {k.lower(): v for k, v in headers.items()}
    scope = {
        "type": "http", "http_version": "1.1", "method": method, "scheme": "https", "path": path,
        "raw_path": path.encode(), "query_string": query.encode(), "root_path": "",
        "headers": [(name.encode(), value.encode()) for name, value in sent.items()],
        "client": ("192.0.2.7", 1), "server": ("plane.test", 443), "state": {},
    }  # fmt: skip
    inbox = [{"type": "http.request", "body": body, "more_body": False}]
    head: dict[str, Any] = {}
    parts: list[bytes] = []

    async def receive() -> dict[str, Any]:
        return inbox.pop() if inbox else await trio.sleep_forever()

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            head.update(message)
        else:
            parts.append(message.get("body", b""))

    await app(scope, receive, send)
    got = {name.decode().lower(): value.decode() for name, value in head["headers"]}
    return {"status": head["status"], "headers": got, "body": b"".join(parts)}


class PlaneThread:
    """One plane at a time behind one socket; call the methods from the test's thread."""

    def __init__(self, socket: Path) -> None:
        self.socket = socket
        self.plane: Plane | None = None
        self.spends: dict[str, int] = {}
        self.events: list[dict[str, Any]] = []
        """All events that the agent reported since the plane was opened."""
        self._app: Any = None
        self._repeat: tuple[str, dict[str, Any]] | None = None
        self._token: trio.lowlevel.TrioToken | None = None
        self._scope: trio.CancelScope | None = None
        self._up = threading.Event()
        self._thread = threading.Thread(target=trio.run, args=(self._main,), daemon=True)

    @contextmanager
    def running(self) -> Iterator[PlaneThread]:
        self._thread.start()
        assert self._up.wait(20), "the plane's thread does not start"
        try:
            yield self
        finally:
            self.close()
            assert self._token is not None and self._scope is not None
            trio.from_thread.run_sync(self._scope.cancel, trio_token=self._token)
            self._thread.join(20)

    def open(self, data: Path, settings: dict[str, Any]) -> None:
        """Open the plane of a data directory, replacing the previous one."""
        figures = {"poll_rate": 1e6, "poll_burst": 10**6, "access_token_seconds": 10**6} | settings

        async def renewed() -> None:
            self._closed()
            self.plane = Plane.open(data, settings=PlaneSettings(**figures))
            self._app, self._repeat, self.spends, self.events = make_app(self.plane), None, {}, []

        self.do(renewed)

    def close(self) -> None:
        async def closed() -> None:
            self._closed()

        self.do(closed)

    def _closed(self) -> None:
        if self.plane is not None:
            self.plane.close()
            self.plane = None

    def do(self, work: Callable[[], Any]) -> Any:
        """Run an async function in the plane's thread."""
        return trio.from_thread.run(work, trio_token=self._token)

    def operate(self, method: str, path: str, fields: Any = None) -> Any:
        """Send a request as the operator and return the answer's data."""

        async def operated() -> Any:
            assert self.plane is not None
            headers = {"authorization": f"Bearer {self.plane.operator_key}", "content-type": "application/json"}
            answer = await call(self._app, method, path, headers, json.dumps(fields or {}).encode())
            assert answer["status"] < 300, answer
            return json.loads(answer["body"]).get("data") if answer["body"] else None

        return self.do(operated)

    def renew_together(self, cert_ids: list[int]) -> None:
        """Renew certificates as an atomic batch, and wait until it has left."""
        self.operate("POST", "/apiv1/users/1/renewals", {"cert_ids": cert_ids, "together": True})

        async def released() -> None:
            plane = self.plane
            assert plane is not None
            with trio.fail_after(60):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(plane.order_runner.run)
                    while await plane.work(plane.batches.open_batches, 1):
                        await trio.sleep(0.01)
                    nursery.cancel_scope.cancel()

        self.do(released)

    def waiting(self, cursor: str) -> int:
        """Return how many signals for the one device follow a cursor."""

        async def counted() -> int:
            assert self.plane is not None
            return self.plane.stream.waiting({1: cursor}).get(1, 0)

        return int(self.do(counted))

    async def _main(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        listener = trio.socket.socket(trio.socket.AF_UNIX)
        await listener.bind(str(self.socket))
        listener.listen(16)
        with trio.CancelScope() as self._scope:
            self._up.set()
            await trio.serve_listeners(self._serve, [trio.SocketListener(listener)])

    async def _serve(self, stream: trio.SocketStream) -> None:
        try:
            async with stream:
                data = b""
                while not data.endswith(b"\n"):
                    part = await stream.receive_some()
                    if not part:
                        return
                    data += part
                answer = await self._answer(json.loads(data))
                await stream.send_all(json.dumps(answer | {"body": base64.b64encode(answer["body"]).decode()}).encode())
        except trio.BrokenResourceError:
            pass  # the agent was killed while it waited

    async def _answer(self, asked: dict[str, Any]) -> dict[str, Any]:
        if self.plane is None:
            return {"status": 503, "headers": {"content-type": "application/json"}, "body": b"{}"}
        target, fields = asked["target"], asked["json"]
        body = b"" if fields is None else json.dumps(fields).encode()
        headers = asked["headers"] | ({"content-type": "application/json"} if body else {})
        if target == "/auth/token/refresh":
            return await self._refresh(asked["method"], target, headers, body, fields["refresh_token"])
        if self._repeat is not None and json.loads(self._repeat[1]["body"])["data"]["access_token"] in str(headers):
            self._repeat = None  # the new tokens are in use: the old one again is a theft
        if target.endswith("/notify"):
            self.events += fields["events"]
        return await call(self._app, asked["method"], target, headers, body)

    async def _refresh(self, method: str, target: str, headers: dict[str, str], body: bytes, token: str) -> Any:
        self.spends[token] = self.spends.get(token, 0) + 1
        if self._repeat is not None and self._repeat[0] == token:
            return self._repeat[1]
        answer = await call(self._app, method, target, headers, body)
        if answer["status"] == 200:
            self._repeat = (token, answer)
        return answer
