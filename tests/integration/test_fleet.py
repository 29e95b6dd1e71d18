"""The fleet ends everything that a test started, even the children of a process that was killed."""

from __future__ import annotations

from pathlib import Path

import pytest
from fleet import Fleet, processes_in, processes_naming, wait_for

pytestmark = pytest.mark.integration


def test_a_killed_service_leaves_no_workers(tmp_path: Path) -> None:
    worker = f"sleep 1000; : {tmp_path}"
    with Fleet(tmp_path) as fleet:
        master = fleet.child(["/bin/sh", "-c", f"/bin/sh -c '{worker}' & wait"], "master.log")
        wait_for(lambda: len(processes_in([master.pid])) == 3, "master, worker and sleep")
        master.kill()
        assert len(processes_in([master.pid])) == 2, "SIGKILL ends the master only"
    wait_for(lambda: not processes_in([master.pid]), "the workers to end")
    assert processes_naming(str(tmp_path)) == []
