"""Planes served over TLS on one PostgreSQL database."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import trio
from plane_socket import FAST, UPDATES, Answer, connected, enrolled, operator_key
from postgres_server import postgres_server

from certctrl.plane.core import Plane
from certctrl.plane.serve import serve_plane
from certctrl.plane.storage.data_dir import DataDir


async def test_a_change_at_one_plane_answers_a_poll_held_by_another(
    tmp_path: Path, form: Any, need: Callable[[str], str], need_module: Callable[[str], None]
) -> None:
    need_module("psycopg")
    from certctrl.plane.storage.moving import move
    from certctrl.plane.storage.postgres import PostgresDatabase

    answers: list[Answer] = []
    Plane.open(tmp_path / "one").close()
    (tmp_path / "two").mkdir()
    for key in ("storage.key", "operator.key"):
        shutil.copy(tmp_path / "one" / key, tmp_path / "two" / key)
    with postgres_server(need) as server:
        connect = partial(PostgresDatabase, server.database())
        move(DataDir(tmp_path / "one"), connect)
        async with trio.open_nursery() as nursery:
            one, two = [
                await nursery.start(partial(serve_plane, tmp_path / name, settings=FAST, connect=connect))
                for name in ("one", "two")
            ]
            async with connected(one, operator_key(one)) as operator:
                done = await enrolled(operator, form)
                issue = {"domain_name": "a.example", "device_ids": [done["device"]["id"]]}
                async with connected(two, done["session"]["access_token"]) as device:
                    cursor = (await device.ask("GET", UPDATES)).headers["etag"]

                    async def poll() -> None:
                        answers.append(await device.ask("GET", f"{UPDATES}?wait=30&cursor={cursor}"))

                    async with trio.open_nursery() as polling:
                        polling.start_soon(poll)
                        assert (await operator.ask("POST", "/apiv1/users/1/certificates", issue)).status == 201
                    assert [found["type"] for found in answers[0].data["signals"]] == ["cert.renewed"]
                    server.stop(signal.SIGQUIT)
                    refused = await device.ask("GET", UPDATES)
                    assert (refused.status, refused.headers["retry-after"]) == (503, "5")
                    server.start()
                    assert (await device.ask("GET", UPDATES)).status == 200
            nursery.cancel_scope.cancel()
