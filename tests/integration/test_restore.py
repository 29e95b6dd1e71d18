"""A control plane is restored from an older backup while its agents run: nothing leaves service, all converge."""

from __future__ import annotations

import pytest
from fleet import Fleet, run_cli, wait_for

from certctrl.errors import ExitStatus

pytestmark = pytest.mark.integration


def test_agents_keep_what_a_restored_plane_has_forgotten(fleet: Fleet) -> None:
    plane = fleet.plane()
    agents = [fleet.agent(plane, name) for name in ("one", "two")]
    kept = [plane.operator.issue(f"{agent.name}.example", agent.device_id)["id"] for agent in agents]
    for agent in agents:
        agent.start()
        agent.catches_up()
    file, data = fleet.root / "backup.db", ("--data", plane.data)
    done = run_cli("plane", "backup", file, *data)
    assert done.returncode == 0, done.stderr
    assert f"{file}: 2 devices, 2 certificates" in done.stdout

    lost = plane.operator.issue("lost.example", agents[0].device_id)["id"]
    plane.operator.renew(kept[0])
    for agent in agents:
        agent.catches_up()
    before = [agent.serials() for agent in agents]
    assert lost in before[0]

    busy = run_cli("plane", "restore", file, *data)
    assert (busy.returncode, "is served by another plane" in busy.stderr) == (ExitStatus.BUSY, True)
    plane.child.stop()
    done = run_cli("plane", "restore", file, *data)
    assert done.returncode == 0, done.stderr
    assert "restored 2 devices and 2 certificates of 20" in done.stdout
    assert "plane.db.before-restore" in done.stdout
    plane.start()

    again = plane.operator.issue("new.example", agents[0].device_id)["id"]
    assert again not in before[0]
    wait_for(lambda: again in agents[0].serials(), "the certificate that was issued after the restore")
    plane.operator.renew(kept[1])
    wait_for(lambda: agents[1].serials() != before[1], "the renewal after the restore")
    agents[1].catches_up()
    serials = agents[0].serials()
    assert serials == before[0] | {again: serials[again]}, "what the plane has forgotten stays in use"
    plane.operator.renew(kept[0])  # newer than the renewal that the plane has forgotten
    wait_for(lambda: agents[0].serials()[kept[0]] == plane.operator.serial(kept[0]), "the renewal issued again")
    assert agents[0].serials()[lost] == before[0][lost]
    assert all(agent.daemon.running for agent in agents)
