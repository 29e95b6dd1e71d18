"""A stop and a restart under a herd of agents: each held poll is answered, and all come back."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.integration

PATIENCE = 600.0
MANY = 5000
"""Agents from which on the worst second is not chance."""


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    import fleet_rig

    return fleet_rig


@pytest.mark.parametrize("count", [50, pytest.param(10_000, marks=[pytest.mark.campaign, pytest.mark.timeout(3600)])])
def test_held_polls_are_answered_at_a_stop_and_agents_return_after_the_restart(
    rig: Any, tmp_path: Path, count: int
) -> None:
    rig.allow_files()
    fleet = rig.make_fleet(tmp_path / "plane", count)
    with rig.served_plane(fleet) as plane, rig.running_herd(plane, fleet.tokens, count) as herd:
        herd.obey("connect")
        herd.obey("park", wait=30, work=True, spread=False)
        plane.wait_quiet()
        herd.obey("mark")
        plane.process.send_signal(signal.SIGTERM)
        assert plane.process.wait(rig.PATIENCE) == 0
        stopped = herd.obey("stat")
        assert stopped["polls"] >= count, "also those that come in while it stops"
        assert stopped["refused"] == 0
        with rig.served_plane(fleet, port=plane.port) as again:
            herd.obey("parked")
            herd.begin("until", of="acked", count=count)
            operator = again.operator()
            operator.call("POST", f"/apiv1/users/1/certificates/{fleet.cert_id}/issues", {"action": "renew"})
            herd.answer()
            operator.close()
            assert herd.obey("stat")["refused"] == 0


@pytest.mark.parametrize("count", [50, pytest.param(10_000, marks=[pytest.mark.campaign, pytest.mark.timeout(3600)])])
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
def test_agents_return_evenly_and_with_one_poll_each(rig: Any, tmp_path: Path, count: int, signum: int) -> None:
    rig.allow_files()
    fleet = rig.make_fleet(tmp_path / "plane", count)
    with rig.served_plane(fleet) as plane, rig.running_herd(plane, fleet.tokens, count) as herd:
        herd.obey("connect")
        herd.obey("park", wait=25, work=False, spread=False, session=True)
        herd.obey("parked")
        herd.obey("mark")
        plane.process.send_signal(signum)
        plane.process.wait(rig.PATIENCE)
        gone = time.monotonic()
        with rig.served_plane(fleet, port=plane.port):
            herd.obey("parked")
            found = herd.obey("arrivals", since=gone, within=PATIENCE)
            assert (found["agents"], found["again"]) == (count, 0)
            if count >= MANY:
                assert found["worst"] <= 0.08 * count
            assert herd.obey("stat")["refused"] == 0
