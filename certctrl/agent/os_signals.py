"""Handle the OS signals SIGTERM, SIGINT, SIGHUP and SIGUSR1.

Trio coalesces OS signals: each means "at least once since the last one was read". A second SIGTERM or SIGINT cancels
everything immediately; the unit's ``TimeoutStopSec`` stays the last resort.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import attrs
import trio

STOPPING = frozenset({signal.SIGTERM, signal.SIGINT})


@attrs.frozen(kw_only=True)
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
    """Watch for OS signals until cancelled; ready (``nursery.start``) once they are caught."""
    stopped = False
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1) as caught:
        task_status.started()
        async for signum in caught:
            if signum in STOPPING:
                if stopped:
                    on.cancel()
                    return
                stopped = True
                on.stop(signal.Signals(signum).name)
            elif signum == signal.SIGHUP:
                on.reload()
            else:
                on.poll_now()
