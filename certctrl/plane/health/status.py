"""The status of a plane, for ``plane status``: addresses, problems and the contents of the database."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from certctrl import __version__
from certctrl.errors import CertctrlError
from certctrl.plane.clock import rfc3339
from certctrl.plane.core import Plane
from certctrl.plane.health.census import Census
from certctrl.plane.planes import Planes
from certctrl.plane.storage.data_dir import DataDir
from certctrl.plane.storage.database import Reader
from certctrl.plane.storage.schema import SCHEMA, scripts_to_run
from certctrl.plane.storage.sqlite_file import SqliteFile


async def running_status(plane: Plane) -> dict[str, Any]:
    """Return the status of a running plane; without ``database`` while that does not answer."""
    try:
        database = await plane.work_long(stored, plane.database, plane.wall_now, plane.jobs.owner)
    except CertctrlError as error:
        plane.storage_check.note_failure(error)
        database = None
    problems = plane.problems.now()
    unready = any(problem.name.prevents_ready for problem in problems)
    counters = plane.counters
    return {
        "status": "unavailable" if unready else "degraded" if problems else "ok",
        "version": __version__,
        "time": rfc3339(plane.wall_now()),
        "started_at": rfc3339(plane.planes.started_at),
        "address": plane.planes.address,
        "problems": [problem.shown() | {"detail": problem.what} for problem in problems],
        "polls": plane.stream.waiting_polls(),
        "sockets": plane.push.count(),
        "connections": plane.planes.connections(),
        "job_runs": {result: counters.job_runs(result) for result in ("ok", "failed")},
        "disk": disk_of(None if plane.data is None else plane.data.root),
        "database": database,
    }


def stopped_status(
    data: DataDir, wall_now: Callable[[], float], connect: Callable[[], Any] | None = None
) -> dict[str, Any]:
    """Return the status of a stopped plane, without changing anything.

    Raises ConfigError, DiskError and DatabaseAwayError if its database cannot be read, or only by a newer release.
    """
    if connect is None:
        with closing(SqliteFile(data.database)) as file:
            scripts_to_run(file.schema_version(), str(data.database))
            file.refuse_moved()
            database = stored(file, wall_now)
    else:
        with closing(connect()) as server, server.snapshot():
            scripts_to_run(server.schema_version(), server.name)
            database = stored(server, wall_now)
    return {"status": "stopped", "time": rfc3339(wall_now()), "disk": disk_of(data.root), "database": database}


def stored(reader: Reader, wall_now: Callable[[], float], name: str = "") -> dict[str, Any]:
    """Return counts of the database, in the caller's unit of work; only the schema version if the schema is older."""
    version = reader.schema_version()
    shown = {"engine": reader.engine, "schema": version, "schema_known": len(SCHEMA), "bytes": reader.size()}
    if version < len(SCHEMA):
        return shown
    census = Census(reader, wall_now)
    return shown | census.counts() | {"ending": census.ending(), "planes": Planes(reader, name, wall_now).shown()}


def disk_of(directory: Path | None) -> dict[str, int] | None:
    """Return free bytes and size of the file system of a directory; None if unknown."""
    if directory is None:
        return None
    try:
        found = os.statvfs(directory)
    except OSError:
        return None
    return {"free": found.f_bavail * found.f_frsize, "size": found.f_blocks * found.f_frsize}
