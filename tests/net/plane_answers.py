"""A scripted HTTP client, answers of a plane, and a ControlPlane that uses them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import attrs

from certctrl.model.answer import Answer
from certctrl.model.config import AgentConfig, ApplicationConfig, HttpClientConfig
from certctrl.net.control_plane import ControlPlane
from certctrl.net.stream import Stream

WALL = 1_790_000_000.0
HTML = Answer(200, {"content-type": "text/html"}, b"<html>Please sign in</html>")


@attrs.define
class Sent:
    """One request as passed to the transport."""

    method: str
    path: str
    query: dict[str, Any]
    headers: dict[str, str]
    json: Any
    deadline: float
    cap: int


Scripted = Answer | Exception | Callable[[], Answer]
"""An answer, an error to raise, or a function that returns or raises one."""


class FakeHttp:
    """Answer by path, or from a list in order; record the requests."""

    def __init__(self, *answers: Scripted, by_path: dict[str, Scripted] | None = None) -> None:
        self.answers = list(answers)
        self.by_path = by_path or {}
        self.sent: list[Sent] = []

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str | int] | None = None,
        headers: Mapping[str, str] | None = None,
        json: object = None,
        deadline: float,
        cap: int,
    ) -> Answer:
        self.sent.append(Sent(method, path, dict(query or {}), dict(headers or {}), json, deadline, cap))
        answer = self.by_path[path] if path in self.by_path else self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer() if callable(answer) else answer

    async def open_stream(
        self, path: str, *, subprotocol: str, headers: Mapping[str, str], deadline: float, cap: int
    ) -> Stream | Answer:
        raise AssertionError("these tests open no socket")

    async def aclose(self) -> None:
        pass


def ok(data: object, status: int = 200, **headers: str) -> Answer:
    return Answer(status, {"content-type": "application/json", **headers}, json.dumps({"data": data}).encode())


def refusal(status: int, key: str = "", what: str = "no", **params: object) -> Answer:
    body = {"error": {"code": status * 10, "what": what, "key": key, "params": params}}
    return Answer(status, {"content-type": "application/json"}, json.dumps(body).encode())


def page(status: int) -> Answer:
    return Answer(status, {"content-type": "text/html"}, b"<html>404</html>")


def plane_of(http: FakeHttp, **application: Any) -> ControlPlane:
    config = AgentConfig(
        application=ApplicationConfig(server_url="https://plane.example", **application),
        httpclient=HttpClientConfig(request_timeout_seconds=30.0, long_poll_extra_seconds=5.0),
    )
    return ControlPlane(http, config, wall_now=lambda: WALL)
