"""`cert-ctrl plane status` while the control plane runs, while it is stopped, and its errors."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from postgres_server import PostgresServer

from certctrl.cli.main import run_command
from certctrl.cli.plane import status as command
from certctrl.plane.core import Plane
from certctrl.plane.storage.data_dir import DataDir

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    monkeypatch.delenv("CERTCTRL_PLANE_DATA", raising=False)

    def call(*words: str | Path) -> tuple[int, str, str]:
        capsys.readouterr()
        status = run_command(["plane", "status", *map(str, words)])
        done = capsys.readouterr()
        return status, done.out, done.err

    return call


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    """The data directory of a control plane that served once, at a port where nothing listens."""
    with Plane.open(tmp_path / "plane") as plane:
        plane.housekeeping.tidy()
    (tmp_path / "plane" / "local_address").write_text("https://127.0.0.1:1\n")
    return tmp_path / "plane"


def running(**changes: object) -> dict[str, Any]:
    job = {"scheduled": 1, "due": 0, "overdue": 0, "running": 0}
    database = {
        "engine": "PostgreSQL", "schema": 7, "schema_known": 7, "bytes": 3 * 2**20, "jobs": {"housekeeping": job},
        "devices": {"active": 50, "silent": 1, "expected": 2, "revoked": 3}, "agents": {"0.2.0": 47, "0.1.0": 3},
        "certificates": {"active": 9, "ending": 1, "ended": 0},
        "ending": [{"id": 4, "user_id": 1, "domain_name": "a.example", "not_after": "2026-12-01T00:00:00Z"}],
        "planes": [
            {"host": "one", "address": "https://127.0.0.1:1", "version": "0.1.0", "started_at": "x", "polls": 20,
             "seen_at": "2026-11-29T10:00:00Z", "running": True, "this": True, "connections": 21},
            {"host": "two", "address": "https://127.0.0.1:2", "version": "0.1.0", "started_at": "x", "polls": 30,
             "seen_at": "2026-11-29T09:00:00Z", "running": False, "this": False, "connections": 31},
        ],
    }  # fmt: skip
    return {
        "status": "ok", "version": "0.1.0", "time": "x", "started_at": "2026-11-29T09:00:00Z", "address": "x",
        "problems": [], "polls": 20, "connections": 21, "job_runs": {"ok": 7, "failed": 1},
        "disk": {"free": 5 * 2**30, "size": 10 * 2**30}, "database": database,
    } | changes  # fmt: skip


def test_a_running_control_plane_is_shown(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "call_plane", lambda *_: running())
    status, out, _ = cli()
    assert status == 0
    assert out.splitlines() == [
        "control plane  ok, version 0.1.0, since 2026-11-29T09:00:00Z",
        "agents         waiting polls: 20, connections: 21",
        "database       PostgreSQL, schema 7, 3.0 MiB",
        "devices        50 active, 1 silent, 2 expected, 3 revoked",
        "versions       47 of 0.2.0, 3 of 0.1.0",
        "certificates   9 active, 1 near their end, 0 expired on devices",
        "jobs           housekeeping: 1 scheduled, 0 due, 0 overdue, 0 running",
        "jobs done      7 ok, 1 failed, since the start",
        "disk           5.0 GiB of 10.0 GiB free in the data directory",
        "",
        *out.splitlines()[10:],
    ]
    assert "this one" in out and "not running" in out and "a.example" in out
    assert json.loads(cli("--json")[1]) == running()


def test_problems_are_shown_and_make_the_status_1(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = {"key": "database_away", "what": "The database does not answer", "since": "x", "detail": "db: refused"}
    found = running(status="unavailable", problems=[problem], database=None)
    monkeypatch.setattr(command, "call_plane", lambda *_: found)
    status, out, _ = cli()
    assert status == 1
    assert "problem        The database does not answer (since x): db: refused" in out.splitlines()
    assert "database       does not answer" in out.splitlines()


@pytest.mark.parametrize("part", ["certificates", "jobs"])
def test_what_is_overdue_makes_the_status_1(cli: Cli, monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    found = running()
    if part == "jobs":
        found["database"]["jobs"]["housekeeping"]["overdue"] = 1
    else:
        found["database"]["certificates"]["ended"] = 1
    monkeypatch.setattr(command, "call_plane", lambda *_: found)
    assert cli()[0] == 1


def test_a_stopped_control_plane_is_shown_without_a_change(cli: Cli, stopped: Path) -> None:
    before = (stopped / "plane.db").read_bytes()
    status, out, err = cli("--data", stopped)
    assert status == 3
    assert out.startswith("control plane  not running\ndatabase       SQLite, schema ")
    assert "nothing listens" in err
    assert (stopped / "plane.db").read_bytes() == before
    assert json.loads(cli("--data", stopped, "--json")[1])["status"] == "stopped"


def test_an_older_database_is_not_migrated(cli: Cli, stopped: Path) -> None:
    with closing(sqlite3.connect(stopped / "plane.db")) as connection:
        connection.execute("DROP TABLE planes")
        connection.execute("PRAGMA user_version = 6")
    status, out, _ = cli("--data", stopped)
    assert status == 3 and "start the control plane to migrate it" in out
    with closing(sqlite3.connect(stopped / "plane.db")) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (6,)


def test_a_moved_database_is_refused(cli: Cli, stopped: Path) -> None:
    with closing(sqlite3.connect(stopped / "plane.db")) as connection:
        connection.execute("INSERT INTO settings VALUES ('moved_to', 'postgresql://db/plane')")
        connection.commit()
    status, _, err = cli("--data", stopped)
    assert status == 78 and "was moved to postgresql://db/plane" in err and "--database" in err


def test_a_damaged_file_and_a_missing_one_are_named(cli: Cli, stopped: Path, tmp_path: Path) -> None:
    (stopped / "plane.db").write_bytes(b"no database" * 1000)
    status, _, err = cli("--data", stopped)
    assert status == 74 and "plane.db" in err
    (stopped / "plane.db").unlink()
    assert cli("--data", stopped)[0] == 78
    status, _, err = cli("--data", tmp_path / "nothing")
    assert status == 2 and "cannot read the control plane's address" in err


def test_a_stopped_control_plane_on_a_server(cli: Cli, stopped: Path, postgres: PostgresServer) -> None:
    from certctrl.plane.storage.moving import move
    from certctrl.plane.storage.postgres import PostgresDatabase

    url = postgres.database()
    status, _, err = cli("--data", stopped, "--database", url)
    assert status == 78 and "contains no control plane" in err
    move(DataDir(stopped), lambda: PostgresDatabase(url))
    status, out, _ = cli("--data", stopped, "--database", url)
    assert status == 3 and "database       PostgreSQL, schema " in out
