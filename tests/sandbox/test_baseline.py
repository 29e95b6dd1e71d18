"""The client of the comparison works after hours, when its first access token has expired."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from certctrl.model.answer import Answer
from certctrl.model.config import AgentConfig
from certctrl.model.records import Tokens
from certctrl.net.control_plane import ControlPlane
from certctrl.sandbox.baseline import BaselineClient
from certctrl.store.disk.fs import RealFs
from certctrl.store.layout import ConfigDir
from certctrl.store.state.session import SessionState


class ExpiredToken:
    """An `Http` whose plane accepts only the access token of the last refresh."""

    async def request(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        json: object = None,
        **_options: object,
    ) -> Answer:
        if path.endswith("/updates"):
            if (headers or {})["authorization"] != "Bearer new":
                return answer(401, {"error": {"code": "INVALID_TOKEN"}})
            return answer(200, {"data": {"cursor": "1-0", "signals": []}})
        assert json == {"refresh_token": "rt_first", "device_public_id": "device-1"}
        return answer(200, {"data": {"access_token": "new", "refresh_token": "rt_second"}})

    async def aclose(self) -> None:
        pass


def answer(status: int, body: object) -> Answer:
    return Answer(status, {"content-type": "application/json", "etag": '"1-0"'}, json.dumps(body).encode())


async def test_an_expired_access_token_is_refreshed_before_measuring(tmp_path: Path) -> None:
    store = SessionState(ConfigDir(tmp_path), RealFs())
    (tmp_path / "state").mkdir()
    store.save_device_id("device-1")
    store.save_tokens(Tokens(access_token="old", refresh_token="rt_first"))
    http = ExpiredToken()
    plane = ControlPlane(http, AgentConfig(), wall_now=lambda: 0.0)
    client = BaselineClient(
        http=http, plane=plane, store=store, pair=tmp_path, cert_id=1, user_id=1, wall_now=lambda: 0.0
    )
    await client.refresh()
    assert await client._poll(0) == []
    assert store.load_tokens() == Tokens(access_token="new", refresh_token="rt_second")
