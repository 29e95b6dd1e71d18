"""One process of the refresh race (`test_token_race.py`): asks with its token until the server says it is over.

Usage: race_worker.py CONFIG_DIR URL CA_FILE. Real keeper, real files, real TLS. Prints nothing of the tokens.
"""

from __future__ import annotations

import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import trio

from certctrl.agent import token_refresh, tokens
from certctrl.errors import CertctrlError, NotRegisteredError
from certctrl.model.config import AgentConfig, ApplicationConfig, HttpClientConfig
from certctrl.net.control_plane import ControlPlane
from certctrl.net.transport import HttpcoreHttp
from certctrl.store.disk.fs import RealFs
from certctrl.store.layout import ConfigDir
from certctrl.store.state.session import SessionState

OVER, RELOGIN = 0, 9
# Expiries come faster here than any plane sends them.
tokens.YOUNG_SECONDS = 0.0
tokens.FIRST_BACKOFF = tokens.LAST_BACKOFF = 0.02
token_refresh.LOCK_SECONDS = 60.0


class Signed(HttpcoreHttp):
    """Identifies the process to the server."""

    async def request(self, method: str, path: str, *, headers: Any = None, **options: Any) -> Any:
        return await super().request(method, path, headers=dict(headers or {}) | {"x-pid": str(os.getpid())}, **options)


async def main(root: Path, url: str, ca_file: str) -> int:
    config = AgentConfig(
        application=ApplicationConfig(server_url=url), httpclient=HttpClientConfig(ca_files=(ca_file,))
    )
    layout = ConfigDir(root)
    store = SessionState(layout, RealFs())
    http = Signed(config, root=root, wall_now=time.time)
    plane = ControlPlane(http, config, wall_now=time.time)
    keeper = tokens.TokenKeeper(
        layout=layout, store=store, plane=plane, config=config, wall_now=time.time, offload=trio.to_thread.run_sync
    )
    try:
        while True:
            try:
                token = await keeper.current()
                ask = partial(http.request, "GET", "/check", deadline=20, cap=65536)
                answer = await ask(headers={"authorization": f"Bearer {token}"})
                if answer.status == 410:
                    return OVER
                if answer.status == 401:
                    await keeper.refresh(token)
            except NotRegisteredError:
                return RELOGIN
            except CertctrlError:
                await trio.sleep(0.01)
    finally:
        await http.aclose()


if __name__ == "__main__":
    sys.exit(trio.run(main, Path(sys.argv[1]), sys.argv[2], sys.argv[3]))
