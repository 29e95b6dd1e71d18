"""Keep the C library's memory small: one heap for all threads, and free pages go back to the system."""

from __future__ import annotations

import gc
import linecache
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

from certctrl.store.structure import strict_converter

_M_ARENA_MAX = -8
"""mallopt(3), ``malloc.h``."""


def share_one_heap() -> None:
    """Let all threads allocate from one heap; to be called before the first thread starts.

    glibc gives each thread a separate heap, whose pages stay resident after the thread's work.
    """
    if (set_option := _glibc("mallopt")) is not None:
        import ctypes

        set_option(ctypes.c_int(_M_ARENA_MAX), ctypes.c_int(1))


def release_memory() -> None:
    """Collect garbage and return free pages to the system, if the C library can.

    Also drops what is made again when needed: the source text that attrs and cattrs keep for debuggers of each method
    they generate, the import system's lists of directories, and the converter of the operator's files and journals.
    """
    linecache.clearcache()
    sys.path_importer_cache.clear()
    strict_converter.cache_clear()
    gc.collect()
    if (trim := _glibc("malloc_trim")) is not None:
        import ctypes

        trim(ctypes.c_size_t(0))


@cache
def _glibc(name: str) -> Callable[..., Any] | None:
    """Return a function of glibc; other C libraries have neither the function nor the need for it."""
    import ctypes  # here: only the daemon needs it

    return getattr(ctypes.CDLL(None), name, None)
