"""The wall clock: the one place that reads it. Imports nothing else, so that every command may use it."""

from time import time


def wall_now() -> float:
    """Return seconds since the epoch."""
    return time()
