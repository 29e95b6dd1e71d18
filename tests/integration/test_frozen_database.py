"""A control plane stops in order although its PostgreSQL server keeps all connections and answers nothing."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fleet import PROGRAM, Child, Fleet, run_cli, wait_for
from plane_requests import ask, enrolled
from plane_world import UPDATES
from postgres_server import PostgresServer

from certctrl.sandbox.servers import HOST

pytestmark = pytest.mark.integration


def serve(fleet: Fleet, data: Path, log: str, *options: str) -> Child:
    child = fleet.child([*PROGRAM, "plane", "serve", "--data", data, "--listen", f"{HOST}:0", *options], log)
    child.says("operator key")
    return child


def test_a_stop_ends_while_the_database_answers_nothing(fleet: Fleet, own_postgres: PostgresServer) -> None:
    data, url = fleet.root / "plane", own_postgres.database()
    assert serve(fleet, data, "sqlite.log").stop() == 0
    assert run_cli("plane", "migrate-to", url, "--data", data).returncode == 0
    child = serve(fleet, data, "plane.log", "--database", url)
    key = (data / "operator.key").read_text().strip()
    token = enrolled(data, key)["access_token"]
    with ThreadPoolExecutor() as pool:
        poll = pool.submit(ask, data, "GET", f"{UPDATES}?wait=30", token=token)
        wait_for(
            lambda: poll.done() or ask(data, "GET", "/apiv1/plane/status", token=key)[1]["data"]["polls"],
            "a poll to wait",
        )
        with own_postgres.frozen():
            child.says("problem database_away")  # units of work wait for the server
            assert child.stop() == 0
            assert poll.result()[0] == 204
    assert "not stopped after 20 s, ending anyway" in child.text
