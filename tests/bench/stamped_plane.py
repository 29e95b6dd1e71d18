"""The served control plane with time stamps of publications: ``python stamped_plane.py serve OPTIONS``.

Two functions are wrapped. One line of JSON is printed for each commit of signals: ``{"published": [device ids], "at"}``,
where ``at`` is when the commit was durable, on the monotonic clock, which all processes of a machine share. Nothing
else of the product is changed.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import time
from collections.abc import Callable, Collection
from typing import Any

from certctrl.cli.main import run_command
from certctrl.plane.storage.signal_stream import SignalStream
from certctrl.plane.storage.sqlite import SqliteDatabase


def stamp_commits(run: Callable[..., int]) -> Callable[..., int]:
    """Keep when the last commit was durable."""

    @functools.wraps(run)
    def stamped(self: Any, sql: str, *parameters: Any) -> int:
        changed = run(self, sql, *parameters)
        if sql == "COMMIT":
            self.committed_at = time.monotonic()
        return changed

    return stamped


def stamp_publications(init: Callable[..., None]) -> Callable[..., None]:
    """Print the devices of each commit of signals, once their waiters have been woken."""

    @functools.wraps(init)
    def stamped(self: SignalStream, database: Any, **options: Any) -> None:
        def say(device_ids: Collection[int]) -> None:
            line = json.dumps({"published": sorted(device_ids), "at": database.committed_at}) + "\n"
            os.write(1, line.encode())

        init(self, database, **options)
        self.announce = say

    return stamped


if __name__ == "__main__":
    SqliteDatabase.run = stamp_commits(SqliteDatabase.run)  # type: ignore[method-assign]
    SignalStream.__init__ = stamp_publications(SignalStream.__init__)  # type: ignore[method-assign]
    raise SystemExit(run_command(["plane", *sys.argv[1:]]))
