"""The wall clock; the only module that reads it. It imports nothing else, so that any command may use it."""

from time import time


def wall_now() -> float:
    """Return seconds since the epoch."""
    return time()
