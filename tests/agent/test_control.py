"""The control socket, with real sockets."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import stat
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from certctrl.agent.control import perform, serve_control
from certctrl.errors import BusyError
from certctrl.store.disk.fs import RealFs

LOG = logging.getLogger("certctrl.test")


async def echo(request: dict[str, Any]) -> Any:
    return {"got": request.get("value")}


async def busy(_request: dict[str, Any]) -> Any:
    raise BusyError("another command is running", fix="wait")


async def broken(_request: dict[str, Any]) -> Any:
    raise RuntimeError("secret text")


OPERATIONS = {"echo": echo, "busy": busy, "broken": broken}


@pytest.mark.parametrize(
    ("line", "exit_status"),
    [(b"not json", 2), (b"[1]", 2), (b'{"op":"nope"}', 2), (b'{"op":"busy"}', 75), (b'{"op":"broken"}', 1),
     (b"[" * 60_000, 2), (b'{"op":[]}', 2), (b'{"op":{"a":1}}', 2), (b'{"op":7}', 2), (b"\xff", 2)],
    ids=lambda value: repr(value[:20]) if isinstance(value, bytes) else "",
)  # fmt: skip
async def test_failures_are_answered_not_raised(line: bytes, exit_status: int) -> None:
    reply = await perform(line, OPERATIONS, LOG)
    assert reply["ok"] is False
    assert reply["exit"] == exit_status
    assert "secret" not in json.dumps(reply)


def ask(path: Path, payload: bytes) -> bytes:
    folder = os.open(path.parent, os.O_PATH)
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(5)
            client.connect(f"/proc/self/fd/{folder}/{path.name}")
            client.sendall(payload)
            answer = b""
            while part := client.recv(4096):
                answer += part
            return answer
    finally:
        os.close(folder)


async def test_a_request_over_the_real_socket(tmp_path: Path) -> None:
    deep = tmp_path / ("x" * 60) / ("y" * 60)  # longer than a Unix socket's path may be
    deep.mkdir(parents=True)
    path = deep / "agent.sock"
    path.write_text("left by a dead daemon")
    async with trio.open_nursery() as nursery:
        await nursery.start(serve_control, RealFs(), path, lambda: OPERATIONS, LOG)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        answer = await trio.to_thread.run_sync(ask, path, b'{"op":"echo","value":7}\n')
        assert json.loads(answer) == {"ok": True, "data": {"got": 7}}
        nursery.cancel_scope.cancel()
    assert not path.exists()


async def test_invalid_and_idle_clients_do_not_stop_the_service(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    async with trio.open_nursery() as nursery:
        await nursery.start(serve_control, RealFs(), path, lambda: OPERATIONS, LOG)
        with contextlib.suppress(OSError):  # hung up on before all of it was sent
            await trio.to_thread.run_sync(ask, path, b"\xff" * 200_000 + b"\n")
        with socket.socket(socket.AF_UNIX) as silent:
            silent.connect(str(path))
            answer = await trio.to_thread.run_sync(ask, path, b'{"op":"echo","value":1}\n')
        assert json.loads(answer)["ok"] is True
        nursery.cancel_scope.cancel()


async def test_a_client_that_hangs_up_during_the_answer_ends_nothing(tmp_path: Path) -> None:
    """The error of sending comes from inside a nursery, so in a group."""
    path = tmp_path / "agent.sock"
    client = socket.socket(socket.AF_UNIX)

    async def hang_up(_request: dict[str, Any]) -> Any:
        client.close()
        return "x" * 1_000_000

    async with trio.open_nursery() as nursery:
        await nursery.start(serve_control, RealFs(), path, lambda: OPERATIONS | {"hang up": hang_up}, LOG)
        client.connect(str(path))
        client.sendall(b'{"op":"hang up"}\n')
        await trio.testing.wait_all_tasks_blocked(0.01)
        answer = await trio.to_thread.run_sync(ask, path, b'{"op":"echo","value":1}\n')
        assert json.loads(answer)["ok"] is True
        nursery.cancel_scope.cancel()
