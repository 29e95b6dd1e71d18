"""``cert-ctrl`` whose wall clock is off by the number of seconds in the file ``SET_CLOCK``."""

from __future__ import annotations

import os
import time
from pathlib import Path

from certctrl.__main__ import program
from certctrl.agent import clock


def wall_now() -> float:
    return time.time() + float(Path(os.environ["SET_CLOCK"]).read_text())


if __name__ == "__main__":
    clock.wall_now = wall_now
    program()
