"""Rounds of alerts in processes that kill themselves, one for each line ``DATABASE NOW KILL_AT`` of standard input.

``KILL_AT`` is the number of the step before which a round ends by SIGKILL; steps are the begin and the end of each unit of
work and of each delivery. For each line it prints the number of steps, ``killed``, or ``failed``. It forks, which costs less than
to start an interpreter, and so has no threads itself.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trio

from certctrl.plane.ca.issuer import inline
from certctrl.plane.core import Plane
from certctrl.plane.settings import PlaneSettings
from certctrl.plane.storage.keyring import Keyring
from certctrl.plane.storage.sqlite import SqliteDatabase

KEY, OPERATOR_KEY = b"k" * 32, "ok_" + "x" * 40
_FAILED = 255


def one_round(file: str, now: float, kill_at: int) -> int:
    """Run a round; return the number of its steps."""
    steps = [0]

    def step() -> None:
        if steps[0] == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        steps[0] += 1

    def around(function: Callable[..., Any]) -> Callable[..., Any]:
        async def run(*args: Any, **kwargs: Any) -> Any:
            step()
            result = await function(*args, **kwargs)
            step()
            return result

        return run

    database = SqliteDatabase(Path(file))
    with database.transaction():
        plane = Plane(
            None, database, Keyring(KEY, OPERATOR_KEY), settings=PlaneSettings(), wall_now=lambda: now,
            monotonic=lambda: 0.0, offload=inline,
        )  # fmt: skip
    runner = plane.alerts.runner
    runner.begun = -1e9
    for owner, name in ((database, "work"), (database, "work_long"), (plane.alerts.senders, "deliver")):
        setattr(owner, name, around(getattr(owner, name)))
    trio.run(runner.run_once)
    return steps[0]


def main() -> None:
    """Run a round for each line."""
    for line in sys.stdin:
        file, now, kill_at = line.split()
        pid = os.fork()
        if pid == 0:
            status = _FAILED
            try:
                status = one_round(file, float(now), int(kill_at))
            finally:
                os._exit(status)
        ended = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        print({-signal.SIGKILL: "killed", _FAILED: "failed"}.get(ended, ended), flush=True)


if __name__ == "__main__":
    main()
