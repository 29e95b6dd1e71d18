"""Push sockets over TLS, of a served plane: a stop, a client that does not read, and one that vanishes."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from plane_socket import FAST, connected, enrolled, fds_back_to, operator_key
from postgres_server import PostgresServer
from push_client import PushClient

from certctrl.plane.core import Plane
from certctrl.plane.serve import PlaneAddress, serve_plane
from certctrl.plane.storage import postgres_wakes
from certctrl.plane.storage.data_dir import DataDir


@asynccontextmanager
async def two_planes(tmp_path: Path, postgres: PostgresServer) -> AsyncIterator[tuple[PlaneAddress, PlaneAddress]]:
    """Two served planes on one database."""
    from certctrl.plane.storage.moving import move
    from certctrl.plane.storage.postgres import PostgresDatabase

    Plane.open(tmp_path / "one").close()
    (tmp_path / "two").mkdir()
    for key in ("storage.key", "operator.key"):
        shutil.copy(tmp_path / "one" / key, tmp_path / "two" / key)
    connect = partial(PostgresDatabase, postgres.database())
    move(DataDir(tmp_path / "one"), connect)
    async with trio.open_nursery() as nursery:
        serve = partial(serve_plane, settings=FAST, connect=connect)
        yield await nursery.start(serve, tmp_path / "one"), await nursery.start(serve, tmp_path / "two")
        nursery.cancel_scope.cancel()


async def test_a_stop_ends_sockets_with_1012(tmp_path: Path, form: Any) -> None:
    async with trio.open_nursery() as nursery:
        address = await nursery.start(partial(serve_plane, tmp_path / "plane", settings=FAST))
        async with connected(address, operator_key(address)) as operator:
            session = (await enrolled(operator, form))["session"]
        async with connected(address) as connection:
            client = PushClient(connection.stream, session["access_token"])
            assert await client.upgrade() == 101
            await client.hello()
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 60):
                end = await client.closed()
            assert (end.code, end.retry_after >= 1) == (1012, True)


async def test_a_pushed_signal_and_its_outcome_pass_over_tls(served: PlaneAddress, form: Any) -> None:
    async with connected(served, operator_key(served)) as operator:
        done = await enrolled(operator, form)
        home = f"/apiv1/users/1/devices/{done['device']['id']}"
        async with connected(served) as connection:
            client = PushClient(connection.stream, done["session"]["access_token"])
            assert await client.upgrade() == 101
            await client.hello()
            assert (await operator.ask("POST", f"{home}/resync", {})).status == 202
            with trio.fail_after(60):
                (signal_,) = (await client.page())["signals"]
                event = {"type": "signal.ack", "signal": signal_, "outcome": "applied"}
                answer = await client.outcomes([event])
            assert isinstance(answer, dict)
            assert answer["type"] == "updates.outcomes_ack"
            assert [one["outcome"] for one in (await operator.ask("GET", f"{home}/outcomes")).data] == ["applied"]
            assert (await operator.ask("GET", home)).data["online"] is True


async def test_sockets_that_vanish_leave_no_files(served: PlaneAddress, form: Any) -> None:
    async with connected(served, operator_key(served)) as operator:
        token = (await enrolled(operator, form))["session"]["access_token"]
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(5):
            async with connected(served) as connection:
                client = PushClient(connection.stream, token)
                assert await client.upgrade() == 101
                await client.hello()
        await fds_back_to(before)


async def test_processes_on_postgresql_notify_each_other(
    tmp_path: Path, form: Any, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the sweep: signals, questions, revocations and newer sockets."""
    monkeypatch.setattr(postgres_wakes, "SWEEP_SECONDS", 10_000.0)
    async with two_planes(tmp_path, postgres) as (one, two):
        with trio.fail_after(120):
            await _across(one, two, form)


async def _across(one: PlaneAddress, two: PlaneAddress, form: Callable[..., Any]) -> None:
    async with connected(one, operator_key(one)) as operator, connected(two) as other, connected(one) as third:
        done = await enrolled(operator, lambda *args: form(*args) | {"features": ["key-proof", "push"]})
        home = f"/apiv1/users/1/devices/{done['device']['id']}"
        client = PushClient(other.stream, done["session"]["access_token"])
        assert await client.upgrade() == 101
        await client.hello()
        assert (await operator.ask("POST", f"{home}/resync", {})).status == 202
        cursor = (await client.page())["cursor"]

        async def answer() -> None:
            message = await client.expect("ask.question")
            await client.send("ask.answer", {"answer": {"a": 1}}, message["id"])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer)
            record = (await operator.ask("POST", f"{home}/questions", {"question": "plan"})).data
        assert record["answer"] == {"a": 1}
        newer = PushClient(third.stream, done["session"]["access_token"])
        assert await newer.upgrade() == 101
        await newer.hello(cursor)
        assert (await client.closed()).code == 4409
        async with connected(two, operator_key(two)) as elsewhere:
            assert (await elsewhere.ask("DELETE", home)).status == 200
        assert (await newer.closed()).code == 4403
