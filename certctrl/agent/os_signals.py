"""Handle the OS signals SIGTERM, SIGINT, SIGHUP and SIGUSR1.

Trio coalesces OS signals: each means "at least once since the last one was read". A second SIGTERM or SIGINT cancels
everything immediately; the unit's ``TimeoutStopSec`` stays the last resort.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import trio

from certctrl import lean
from certctrl.agent.early_signals import CAUGHT, STOPPING, early_signals


@lean.frozen(kw_only=True)
class OnSignal:
    """Callbacks for the OS signals; all synchronous."""

    stop: Callable[[str], None]
    """First SIGTERM or SIGINT: stop in order."""
    cancel: Callable[[], None]
    """Second SIGTERM or SIGINT: cancel everything now."""
    reload: Callable[[], None]
    """SIGHUP: read the configuration again at the next step."""
    poll_now: Callable[[], None]
    """SIGUSR1."""


async def watch_os_signals(on: OnSignal, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> Any:
    """Watch for OS signals until cancelled, including those that arrived before.

    Ready (``nursery.start``) once they are caught.
    """
    early, stopped = early_signals(), False
    with trio.open_signal_receiver(*CAUGHT) as caught:
        task_status.started()
        for signum in early.take():
            stopped |= _act(signum, on, stopped)
        async for signum in caught:
            if stopped and signum in STOPPING:
                on.cancel()
                return
            stopped |= _act(signum, on, stopped)


def _act(signum: int, on: OnSignal, stopped: bool) -> bool:
    """Call the callback of a signal; return whether it started the orderly stop."""
    if signum in STOPPING:
        if not stopped:
            on.stop(signal.Signals(signum).name)
        return True
    if signum == signal.SIGHUP:
        on.reload()
    else:
        on.poll_now()
    return False
