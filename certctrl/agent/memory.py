"""Return free memory to the system: after a burst, the C library keeps the pages otherwise."""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import cache


def release_memory() -> None:
    """Collect garbage and return free pages to the system, if the C library can."""
    gc.collect()
    if (trim := _trim_call()) is not None:
        trim(0)


@cache
def _trim_call() -> Callable[[int], int] | None:
    import ctypes  # here: only the daemon needs it

    call = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc only; others return pages automatically
    if call is not None:
        call.argtypes, call.restype = (ctypes.c_size_t,), ctypes.c_int
    return call
