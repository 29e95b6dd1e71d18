"""Peers of earlier releases: the control plane and the agent without some of the features of this one.

Both are those of this release behind a layer that takes away what an earlier release does not have: what it does not
announce, the endpoints that it does not have, the parameters and fields that it ignores or never sends.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Collection, Iterator
from typing import Any
from unittest.mock import patch
from urllib.parse import parse_qsl, urlencode

import attrs

from certctrl.agent.features import features_of
from certctrl.model.config import AgentConfig
from certctrl.model.features import ATOMIC_BATCH, BATCH_FETCH, DELTA, PRIORITY, PUSH, feature_names
from certctrl.model.policy import HostPolicy

SELF = "/apiv1/devices/self"
LIST = f"{SELF}/certificates"
SESSIONS = ("/apiv1/device/registration", "/auth/token/refresh")
ENDPOINTS = {BATCH_FETCH: f"{SELF}/deploy-materials", PUSH: f"{SELF}/stream"}
"""Feature -> the endpoint that a plane without it does not have."""
NOT_FOUND = json.dumps({"error": {"code": 4040, "what": "No such resource", "key": "NOT_FOUND", "params": {}}}).encode()

Scope, Message = dict[str, Any], dict[str, Any]


@attrs.define(eq=False)
class EarlierPlane:
    """An ASGI application without these features of another one; the set may be changed: an upgrade, a downgrade."""

    app: Callable[..., Any]
    lacking: set[str]

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket" and scope["path"] in self._absent():
            await send({"type": "websocket.close"})
            return
        if scope["path"] in self._absent():
            await answer(send, 404, [(b"content-type", b"application/json")], NOT_FOUND)
            return
        if scope["path"] == ENDPOINTS[PUSH]:  # an upgrade has no body
            await self.app(scope, receive, send)
            return
        started: Message = {}
        body = bytearray()

        async def collect(message: Message) -> None:
            if message["type"] == "http.response.start":
                started.update(message)
            elif message["type"] == "http.response.body":
                body.extend(message.get("body", b""))
                if not message.get("more_body"):
                    headers, content = self._answered(scope, started, bytes(body))
                    await answer(send, started["status"], headers, content)
            else:
                await send(message)

        await self.app(self._asked(scope), receive, collect)

    def _absent(self) -> set[str]:
        return {path for feature, path in ENDPOINTS.items() if feature in self.lacking}

    def _asked(self, scope: Scope) -> Scope:
        """Return a request without what the plane ignores."""
        if DELTA not in self.lacking or scope["type"] != "http" or not scope["path"].startswith(LIST):
            return scope
        query = [pair for pair in parse_qsl(scope["query_string"].decode(), True) if pair[0] != "updated_since"]
        headers = [pair for pair in scope["headers"] if pair[0] != b"if-none-match"]
        return {**scope, "query_string": urlencode(query).encode(), "headers": headers}

    def _answered(self, scope: Scope, started: Message, body: bytes) -> tuple[list[tuple[bytes, bytes]], bytes]:
        """Return the headers and body of an answer without what the plane never sends."""
        path, headers = scope["path"], list(started["headers"])
        if DELTA in self.lacking and path.startswith(LIST):
            headers = [pair for pair in headers if pair[0].lower() != b"etag"]
        if started["status"] != 200 or not body:
            return headers, body
        whole = json.loads(body)
        if path in SESSIONS and "features" in whole["data"]:
            left = [name for name in whole["data"]["features"] if name not in self.lacking]
            whole["data"]["features"] = left
            if self.lacking >= {*ENDPOINTS, DELTA, PRIORITY, ATOMIC_BATCH}:
                del whole["data"]["features"]  # the last release announces nothing at all
        elif path == f"{SELF}/updates":
            for signal in whole["data"]["signals"]:
                if PRIORITY in self.lacking:
                    signal.pop("priority", None)
                if ATOMIC_BATCH in self.lacking:
                    signal["ref"].pop("batch", None)
        elif path.startswith(LIST) and ATOMIC_BATCH in self.lacking:
            for row in whole["data"] if isinstance(whole["data"], list) else (whole["data"],):
                row.pop("batch", None)
        else:
            return headers, body
        content = json.dumps(whole).encode()
        headers = [pair for pair in headers if pair[0].lower() != b"content-length"]
        return [*headers, (b"content-length", b"%d" % len(content))], content


async def answer(send: Any, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@contextlib.contextmanager
def earlier_agent(lacking: Collection[str]) -> Iterator[None]:
    """Let the agents of this process be without these features; a set that changes takes effect at their next start."""

    def understood(value: Any) -> frozenset[str]:
        return feature_names(value) - frozenset(lacking)

    def announced(policy: HostPolicy, config: AgentConfig) -> tuple[str, ...]:
        return tuple(name for name in features_of(policy, config) if name not in lacking)

    with contextlib.ExitStack() as stack:
        for module in ("certctrl.store.state.session", "certctrl.protocol.wire.tokens"):
            stack.enter_context(patch(f"{module}.feature_names", understood))
        for module in ("certctrl.agent.acks", "certctrl.agent.reload"):
            stack.enter_context(patch(f"{module}.features_of", announced))
        yield
