"""The client of the control socket: answers, errors, timeouts, sockets of other users."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from certctrl.cli import control
from certctrl.cli.control import RefusedByDaemon, ask
from certctrl.errors import BusyError, DiskError, TransportError
from certctrl.store.disk.fs import RealFs
from certctrl.store.disk.tree import make_tree
from certctrl.store.layout import ConfigDir

from .conftest import Answer, FakeDaemon

Daemon = Callable[[Answer], FakeDaemon]


def test_no_socket_means_no_daemon(layout: ConfigDir) -> None:
    assert ask(layout, "status") is None


def test_a_stale_socket_means_no_daemon(layout: ConfigDir) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(layout.control_socket))
    assert layout.control_socket.exists()
    assert ask(layout, "status") is None


def test_request_and_answer_are_one_line_each(layout: ConfigDir, daemon: Daemon) -> None:
    fake = daemon(lambda request: {"ok": True, "data": {"echo": request["domain"]}})
    reply = ask(layout, "renew", domain="ex\u00e4mple.com\n")
    assert reply is not None and reply.data == {"echo": "ex\u00e4mple.com\n"}
    assert fake.requests == [{"op": "renew", "domain": "ex\u00e4mple.com\n"}]


def test_an_empty_answer_is_an_answer(layout: ConfigDir, daemon: Daemon) -> None:
    daemon(lambda _request: {"ok": True, "data": None})
    reply = ask(layout, "x")
    assert reply is not None and reply.data is None


def test_a_large_answer_is_complete(layout: ConfigDir, daemon: Daemon) -> None:
    daemon(lambda _request: {"ok": True, "data": "x" * 3_000_000})
    reply = ask(layout, "plan")
    assert reply is not None and len(reply.data) == 3_000_000


@pytest.mark.parametrize(("exit_status", "expected"), [(2, 2), (69, 69), (77, 77), (12345, 1)])
def test_an_error_of_the_daemon_keeps_text_and_exit_status(
    exit_status: int, expected: int, layout: ConfigDir, daemon: Daemon
) -> None:
    daemon(lambda _request: {"ok": False, "error": "no such domain", "fix": "known: a", "exit": exit_status})
    with pytest.raises(RefusedByDaemon, match="no such domain") as caught:
        ask(layout, "renew", domain="b")
    assert (caught.value.exit_status, caught.value.fix) == (expected, "known: a")


@pytest.mark.parametrize("raw", [b"", b"not json\n", b"[]\n", b"{}\n", b'{"ok": tr'])
def test_an_invalid_answer_is_a_busy_error(raw: bytes, layout: ConfigDir, daemon: Daemon) -> None:
    daemon(lambda _request: raw)
    with pytest.raises(BusyError, match="no answer from the daemon"):
        ask(layout, "status")


def test_the_wait_for_a_hanging_daemon_is_bounded(layout: ConfigDir, daemon: Daemon) -> None:
    daemon(lambda _request: time.sleep(2) or {"ok": True})
    with pytest.raises(BusyError, match=r"did not answer `status` within 0.2 s"):
        ask(layout, "status", seconds=0.2)


def test_a_socket_of_another_user_is_refused(
    layout: ConfigDir, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = daemon(lambda _request: {"ok": True, "data": "secrets"})
    monkeypatch.setattr(os, "geteuid", lambda: 4242)

    def peer(_sock: Any, *_args: Any) -> bytes:
        return control.struct.pack("3i", 1, 6666, 6666)

    monkeypatch.setattr(socket.socket, "getsockopt", peer)
    with pytest.raises(TransportError, match="served by user id 6666"):
        ask(layout, "status")
    assert fake.requests == [], "no request was sent"


@pytest.mark.parametrize(
    ("uid", "me", "trusted"), [(0, 0, True), (0, 4242, True), (4242, 4242, True), (4242, 0, False)]
)
def test_users_that_are_trusted_as_the_daemon(
    uid: int, me: int, trusted: bool, layout: ConfigDir, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root has become the owner of the directory before it asks: no other user's daemon is believed."""
    daemon(lambda _request: {"ok": True, "data": 1})
    monkeypatch.setattr(os, "geteuid", lambda: me)
    monkeypatch.setattr(socket.socket, "getsockopt", lambda *_a: control.struct.pack("3i", 1, uid, 0))
    if trusted:
        assert ask(layout, "status") is not None
    else:
        with pytest.raises(TransportError):
            ask(layout, "status")


def test_a_path_longer_than_a_socket_address_works(tmp_path: Path) -> None:
    deep = ConfigDir(tmp_path / ("d" * 120) / "agent")
    make_tree(RealFs(), deep)
    assert ask(deep, "status") is None
    folder = os.open(deep.state, os.O_RDONLY | os.O_DIRECTORY)
    short = ConfigDir(deep.root)
    short.control_socket = Path(f"/proc/self/fd/{folder}/agent.sock")
    fake = FakeDaemon(short, lambda _request: {"ok": True, "data": "here"})
    try:
        reply = ask(deep, "status")
        assert reply is not None and reply.data == "here"
    finally:
        fake.close()
        os.close(folder)


@pytest.mark.root
def test_a_socket_without_permission_names_the_fix(layout: ConfigDir, daemon: Daemon) -> None:
    daemon(lambda _request: {"ok": True})
    layout.root.chmod(0o755)
    layout.root.parent.chmod(0o755)
    layout.state.chmod(0o755)
    layout.control_socket.chmod(0o600)
    os.seteuid(65534)
    try:
        with pytest.raises(DiskError, match="cannot reach the daemon") as caught:
            ask(layout, "status")
        assert "run as root" in str(caught.value.fix)
    finally:
        os.seteuid(0)
