"""OS signals, sent for real to this process."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

import pytest
import trio

from certctrl.agent.early_signals import CAUGHT, catch_early_signals, early_signals
from certctrl.agent.os_signals import OnSignal, watch_os_signals
from certctrl.agent.systemd import Notifier, feed_watchdog


async def test_each_signal_has_its_meaning() -> None:
    seen: list[str] = []
    on = OnSignal(
        stop=lambda name: seen.append(f"stop {name}"),
        cancel=lambda: seen.append("cancel"),
        reload=lambda: seen.append("reload"),
        poll_now=lambda: seen.append("poll"),
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(watch_os_signals, on)
        for signum in (signal.SIGUSR1, signal.SIGHUP, signal.SIGTERM, signal.SIGINT):
            count = len(seen)
            os.kill(os.getpid(), signum)
            with trio.fail_after(60):
                while len(seen) == count:
                    await trio.sleep(0.001)
    assert seen == ["poll", "reload", "stop SIGTERM", "cancel"]


async def test_signals_that_came_before_are_replayed() -> None:
    seen: list[str] = []
    on = OnSignal(
        stop=lambda name: seen.append(f"stop {name}"),
        cancel=lambda: seen.append("cancel"),
        reload=lambda: seen.append("reload"),
        poll_now=lambda: seen.append("poll"),
    )
    before = {signum: signal.getsignal(signum) for signum in CAUGHT}
    try:
        catch_early_signals()
        for signum in (signal.SIGUSR1, signal.SIGUSR1, signal.SIGHUP, signal.SIGTERM):
            signal.raise_signal(signum)
        async with trio.open_nursery() as nursery:
            await nursery.start(watch_os_signals, on)
            signal.raise_signal(signal.SIGTERM)
        assert seen == ["poll", "reload", "stop SIGTERM", "cancel"]
        signal.raise_signal(signal.SIGHUP)  # the process is about to exit: kept, and nobody asks
        assert early_signals().take() == [signal.SIGHUP]
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def drain(manager: socket.socket) -> list[bytes]:
    manager.setblocking(False)
    datagrams = []
    while True:
        try:
            datagrams.append(manager.recv(4096))
        except BlockingIOError:
            return datagrams


@pytest.mark.parametrize("abstract", [False, True])
async def test_the_service_manager_is_notified_by_the_real_loop(tmp_path: Path, abstract: bool) -> None:
    name = f"\0certctrl-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(name)
        manager.settimeout(5)
        shown = "@" + name[1:] if abstract else name
        notifier = Notifier({"NOTIFY_SOCKET": shown, "WATCHDOG_USEC": "20000"})
        notifier.ready("polling")
        assert manager.recv(4096) == b"READY=1\nSTATUS=polling"
        with trio.move_on_after(0.2):
            await feed_watchdog(notifier)
        assert set(drain(manager)) == {b"WATCHDOG=1"}
        notifier.reloading()
        notifier.stopping("SIGTERM")
        reloading, stopping = drain(manager)
        assert reloading.startswith(b"RELOADING=1\nMONOTONIC_USEC=")
        assert stopping == b"STOPPING=1\nSTATUS=SIGTERM"


def test_without_a_manager_nothing_is_sent() -> None:
    notifier = Notifier({"WATCHDOG_USEC": "junk"})
    notifier.ready("x")
    assert notifier.watchdog_seconds == 0
    Notifier({"NOTIFY_SOCKET": "/nonexistent/socket"}).watchdog()
