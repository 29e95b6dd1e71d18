"""End the process if an orderly stop takes too long.

A thread that waits for a database server cannot be cancelled, and over a Unix socket or to a machine that only answers
keepalives it may wait forever. Ending the process loses what kill -9 would lose: when devices have last polled.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading

from certctrl.errors import ExitStatus

STOP_SECONDS = 20.0
"""Longer than a plane needs to answer thousands of polls, shorter than systemd waits."""

_SAY_SECONDS = 1.0

log = logging.getLogger("certctrl.Plane")


def end_in_time() -> None:
    """End this process as after an orderly stop, unless it has ended within ``STOP_SECONDS``."""
    timer = threading.Timer(STOP_SECONDS, _end)
    timer.daemon = True
    timer.start()


def _end() -> None:
    says = threading.Thread(target=_say, daemon=True)
    says.start()
    says.join(_SAY_SECONDS)
    os._exit(ExitStatus.DONE)


def _say() -> None:
    """Log why; this blocks if the log is a full pipe."""
    log.error("not stopped after %.0f s, ending anyway: the last polls of devices are not saved", STOP_SECONDS)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):  # None, broken and closed ones
            stream.flush()
