"""A control plane whose data cannot be written starts, serves what it can, and says so."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from fleet import PROGRAM, Child, Fleet
from plane_requests import ask, enrolled
from plane_world import PUBLIC_ID, UPDATES

from certctrl.sandbox.servers import HOST

pytestmark = pytest.mark.integration
PERMISSIONS = {"the directory": (0o500, 0o600), "the database": (0o700, 0o400), "both": (0o500, 0o400)}


def serve(fleet: Fleet, data: Path, need: Callable[[str], str], port: int = 0) -> Child:
    """Start a plane that permissions apply to, even if root runs the test."""
    become = [need("setpriv"), "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    listen = f"{HOST}:{port}"
    child = fleet.child([*become, *PROGRAM, "plane", "serve", "--data", data, "--listen", listen], "plane.log")
    child.says("operator key")
    return child


@pytest.mark.parametrize(
    ("what", "killed"),
    [("the directory", False), ("the database", False), ("the database", True), ("both", False), ("both", True)],
)
def test_a_plane_starts_read_only(fleet: Fleet, need: Callable[[str], str], what: str, killed: bool) -> None:
    data = fleet.root / "plane"
    child = serve(fleet, data, need)
    key = (data / "operator.key").read_text().strip()
    port = int((data / "address").read_text().strip().rpartition(":")[2])
    session = enrolled(data, key)
    if killed:
        child.kill()
    else:
        assert child.stop() == 0
    directory_mode, file_mode = PERMISSIONS[what]
    for path in data.glob("plane.db*"):
        path.chmod(file_mode)
    data.chmod(directory_mode)
    child = serve(fleet, data, need, port)
    assert "opened read-only: nothing can be changed until the next start" in child.text
    refresh = {"refresh_token": session["refresh_token"], "device_public_id": PUBLIC_ID}
    status, answer = ask(data, "POST", "/auth/token/refresh", refresh)
    assert status == 200
    assert ask(data, "GET", UPDATES, token=answer["data"]["access_token"])[0] == 204
    assert [row["id"] for row in ask(data, "GET", "/apiv1/users/1/devices", token=key)[1]["data"]] == [1]
    status, answer = ask(data, "POST", "/apiv1/users", {"name": "another"}, key)
    assert (status, answer["error"]["params"]["problem"]) == (503, "read_only")
    status, answer = ask(data, "GET", "/health")
    assert (status, [shown["key"] for shown in answer["error"]["params"]["problems"]]) == (503, ["read_only"])
    assert ask(data, "GET", "/health/live")[0] == 200
    assert child.stop() == 0
    data.chmod(0o700)
    for path in data.glob("plane.db*"):
        path.chmod(0o600)
    child = serve(fleet, data, need, port)
    assert ask(data, "POST", "/apiv1/users", {"name": "another"}, key)[0] == 201
    assert child.stop() == 0
