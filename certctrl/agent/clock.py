"""The clocks; the only module that reads them. It imports nothing else, so that any command may use it."""

from time import CLOCK_BOOTTIME, clock_gettime, time


def wall_now() -> float:
    """Return seconds since the epoch."""
    return time()


def steady_now() -> float:
    """Return seconds since this host was started, suspensions included; this clock cannot be set."""
    return clock_gettime(CLOCK_BOOTTIME)
