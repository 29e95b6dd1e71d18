"""``plane status``: what a control plane serves, what is wrong, and what its database contains."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import typer

from certctrl.cli.output import table, write_error, write_line
from certctrl.cli.plane.connection import DATA_VARIABLE, OperatorApi, call_plane, shared_options, show
from certctrl.cli.plane.database import DatabaseFile, DatabaseUrl, connector, database_address
from certctrl.errors import ExitStatus, TransportError, UsageError

_PATH = "/apiv1/plane/status"


def status(ctx: typer.Context, database: DatabaseUrl = "", database_file: DatabaseFile = "") -> int:
    """Show the state of the control plane and its problems.

    Also shows its database, devices, certificates near their end, jobs and disk. With --data it also works while the
    control plane is stopped; for one on PostgreSQL, add --database. Exit status: 0 no problem, 1 it has a
    problem, an overdue job or a certificate on a device that has expired, 3 it is not running.

    \b
    cert-ctrl plane status --data /var/lib/plane
    """
    try:
        found = call_plane(ctx, _running)
    except (TransportError, UsageError) as error:
        stopped = None if shared_options(ctx).server else _stopped(ctx, database, database_file)
        if stopped is None:
            raise
        found = stopped
        if isinstance(error, TransportError):
            write_error(f"note: {error}")
    show(ctx, found, lambda: _print(found))
    if found["status"] == "stopped":
        return ExitStatus.NOT_RUNNING
    return ExitStatus.DONE if _is_well(found) else ExitStatus.FAILED


async def _running(api: OperatorApi) -> dict[str, Any]:
    return dict(await api.call("GET", _PATH))


def _stopped(ctx: typer.Context, url: str, file: str) -> dict[str, Any] | None:
    """Return what the data directory and the database say; None without a data directory."""
    directory = shared_options(ctx).data or os.environ.get(DATA_VARIABLE, "")
    if not directory or not Path(directory).is_dir():
        return None
    connect = connector(database_address(url, file, os.environ), migrate=False)
    from certctrl.plane.clock import wall_now
    from certctrl.plane.health.status import stopped_status
    from certctrl.plane.storage.data_dir import DataDir

    return stopped_status(DataDir(Path(directory)), wall_now, connect)


def _is_well(found: Mapping[str, Any]) -> bool:
    database = found["database"]
    if found["problems"] or database is None:
        return False
    overdue = any(job["overdue"] for job in database["jobs"].values())
    return not overdue and not database["certificates"]["ended"]


def _print(found: Mapping[str, Any]) -> None:
    for name, text in _lines(found):
        write_line(f"{name:<14} {text}")
    database = found["database"] or {}
    if database.get("planes"):
        heads = ("host", "address", "version", "seen", "polls", "connections")
        write_line()
        table(heads, [_plane_row(row) for row in database["planes"]])
    if database.get("ending"):
        rows = [(str(row["id"]), row["domain_name"], row["not_after"]) for row in database["ending"]]
        write_line()
        table(("id", "domain", "ends"), rows)


def _lines(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the lines above the tables."""
    if found["status"] == "stopped":
        yield "control plane", "not running"
    else:
        running = f"{found['status']}, version {found['version']}, since {found['started_at']}"
        yield "control plane", running
        sockets = f", push sockets: {found['sockets']}" if "sockets" in found else ""  # not of an older plane
        yield "agents", f"waiting polls: {found['polls']}{sockets}, connections: {found['connections']}"
    for problem in found.get("problems", ()):
        detail = f": {problem['detail']}" if problem["detail"] != problem["what"] else ""
        yield "problem", f"{problem['what']} (since {problem['since']}){detail}"
    yield from _of_database(found["database"])
    if "job_runs" in found:
        runs = found["job_runs"]
        yield "jobs done", f"{runs['ok']} ok, {runs['failed']} failed, since the start"
    if found["disk"] is not None:
        disk = found["disk"]
        yield "disk", f"{_size(disk['free'])} of {_size(disk['size'])} free in the data directory"


def _of_database(database: Mapping[str, Any] | None) -> Iterator[tuple[str, str]]:
    if database is None:
        yield "database", "does not answer"
        return
    yield "database", f"{database['engine']}, schema {database['schema']}, {_size(database['bytes'])}"
    if "devices" not in database:
        yield "schema", f"this release needs schema {database['schema_known']}: start the control plane to migrate it"
        return
    devices, certificates = database["devices"], database["certificates"]
    yield "devices", ", ".join(f"{devices[state]} {state}" for state in ("active", "silent", "expected", "revoked"))
    if database.get("agents"):  # an older control plane does not count them
        yield "versions", ", ".join(f"{count} of {version}" for version, count in database["agents"].items())
    ending = f"{certificates['ending']} near their end, {certificates['ended']} expired on devices"
    yield "certificates", f"{certificates['active']} active, {ending}"
    for kind, job in database["jobs"].items():
        states = ("scheduled", "due", "overdue", "running")
        yield "jobs", f"{kind}: " + ", ".join(f"{job[state]} {state}" for state in states)


def _plane_row(row: Mapping[str, Any]) -> tuple[str, ...]:
    seen = "this one" if row["this"] else row["seen_at"] if row["running"] else f"{row['seen_at']}, not running"
    return (row["host"], row["address"], row["version"], seen, str(row["polls"]), str(row["connections"]))


def _size(count: int) -> str:
    """Return a number of bytes for operators."""
    for unit, least in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= least:
            return f"{count / least:.1f} {unit}"
    return f"{count} bytes"
