"""``cert-ctrl`` whose control plane has a wall clock that is ahead by the seconds in the file ``SET_CLOCK``."""

from __future__ import annotations

import os
import time
from pathlib import Path

from certctrl.plane import clock


def wall_now() -> float:
    return time.time() + float(Path(os.environ["SET_CLOCK"]).read_text())


if __name__ == "__main__":
    clock.wall_now = wall_now  # before the modules are imported that have it as a default
    from certctrl.__main__ import program

    program()
