"""Planes served over TLS on one PostgreSQL database."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
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


async def test_requests_that_would_wait_for_a_slow_database_are_refused_early(
    tmp_path: Path,
    form: Any,
    need: Callable[[str], str],
    need_module: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A lock on a table keeps the only connection busy; the polls before that are answered once it is gone."""
    need_module("psycopg")
    from certctrl.plane.storage.moving import move
    from certctrl.plane.storage.postgres import PostgresDatabase

    opened: list[PostgresDatabase] = []
    Plane.open(tmp_path / "plane").close()
    monkeypatch.setattr("certctrl.plane.http.middleware.MAX_BACKLOG", 0.05)
    with postgres_server(need) as server:
        url = server.database()

        def connect() -> PostgresDatabase:
            opened.append(PostgresDatabase(f"{url}&options=-c%20lock_timeout%3D300s", connections=1))
            return opened[-1]

        move(DataDir(tmp_path / "plane"), partial(PostgresDatabase, url))
        async with trio.open_nursery() as nursery:
            plane = await nursery.start(partial(serve_plane, tmp_path / "plane", settings=FAST, connect=connect))
            async with connected(plane, operator_key(plane)) as operator:
                token = (await enrolled(operator, form))["session"]["access_token"]
            other, answers = opened[0].connections.open(), list[int]()
            other.execute("LOCK TABLE devices IN ACCESS EXCLUSIVE MODE")

            async def poll() -> None:
                async with connected(plane, token) as device:
                    answers.append((await device.ask("GET", UPDATES)).status)

            async with trio.open_nursery() as polling:
                with trio.fail_after(60):
                    polling.start_soon(poll)
                    while opened[0]._limiter.available_tokens:
                        await trio.sleep(0.01)
                    polling.start_soon(poll)
                    while opened[0].backlog() < 0.1:
                        await trio.sleep(0.01)
                async with connected(plane, token) as device:
                    refused = await device.ask("POST", "/apiv1/devices/self/notify", {"events": []})
                    assert (refused.status, refused.headers["connection"]) == (503, "close")
                    assert json.loads(refused.body)["error"]["params"]["problem"] == "overload"
                assert not answers
                other.close()
            assert answers == [204, 204]
            nursery.cancel_scope.cancel()
