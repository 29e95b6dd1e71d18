"""Push sockets of real agents on two real planes with one real PostgreSQL: a plane is killed, and the server crashes."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from signal import SIGQUIT
from typing import Any

import pytest
from fleet import Agent, Fleet, wait_for
from postgres_server import PostgresServer
from several_planes import Planes

from certctrl.errors import PlaneError

pytestmark = pytest.mark.integration


def uses_push(agent: Agent) -> bool:
    done = agent.cli("status", "--daemon", "--json")
    return ((json.loads(done.stdout).get("poll") or {}).get("transport") or {}).get("uses") == "push"


def renewed(planes: Planes, cert_id: int) -> bool:
    with contextlib.suppress(OSError, PlaneError, AssertionError):
        planes.operator.renew(cert_id)
        return True
    return False


def asked(planes: Planes, device_id: int) -> Any:
    """Ask an agent; return the result, or None without an answer."""
    with contextlib.suppress(OSError, PlaneError, AssertionError):
        path = f"/apiv1/users/1/devices/{device_id}/questions"
        return planes.operator.call("POST", path, {"question": "status", "timeout_seconds": 5})["result"]
    return None


def test_sockets_outlive_planes_and_the_database(
    fleet: Fleet, need: Callable[[str], str], own_postgres: PostgresServer
) -> None:
    planes = Planes(fleet, need("haproxy"), own_postgres.database())
    agents = [fleet.agent(planes, name, poll_mode="push") for name in ("first", "second")]
    row = planes.operator.issue("shared.example", *(agent.device_id for agent in agents))
    for agent in agents:
        agent.start()
        agent.catches_up()
        wait_for(lambda agent=agent: uses_push(agent), "push")
    planes.children[1].kill()
    began = time.monotonic()
    asked(planes, agents[0].device_id)  # its socket may have been at either
    assert time.monotonic() - began < 60
    wait_for(lambda: renewed(planes, row["id"]), "the other plane to answer")
    for agent in agents:
        agent.catches_up()
        wait_for(lambda agent=agent: asked(planes, agent.device_id) == "answered", "an answer")
    planes.restart(1)
    own_postgres.stop(SIGQUIT)
    own_postgres.start()
    wait_for(lambda: renewed(planes, row["id"]), "the database to answer")
    for agent in agents:
        agent.catches_up()
        wait_for(agent.has_reported_all, "all outcomes to be reported")
    assert all(agent.daemon.running for agent in agents)
    assert planes.faults == []
