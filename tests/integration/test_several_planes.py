"""Two real planes on one real PostgreSQL behind a real HAProxy, which forwards TCP without stickiness."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
from fleet import Fleet, wait_for
from nacl.public import PrivateKey
from plane_world import REGISTER
from postgres_server import PostgresServer
from proving import answered, registration
from several_planes import Planes

pytestmark = pytest.mark.integration


@pytest.fixture
def planes(fleet: Fleet, need: Callable[[str], str], own_postgres: PostgresServer) -> Planes:
    return Planes(fleet, need("haproxy"), own_postgres.database())


def test_agents_live_on_when_either_plane_is_killed(fleet: Fleet, planes: Planes) -> None:
    """Each request of `Operator` has a connection of its own, so the planes answer in turn."""
    token = planes.operator.enrolment_token()
    body = registration("device-by-hand", PrivateKey.generate()) | {"enrolment_token": token}
    challenge = planes.operator.call("POST", REGISTER, body)
    assert planes.operator.call("POST", REGISTER, answered(body, challenge))["device"]["status"] == "active"

    agents = [fleet.agent(planes, name) for name in ("first", "second")]
    for agent in agents:
        agent.start()
    row = planes.operator.issue("shared.example", *(agent.device_id for agent in agents))
    for agent in agents:
        agent.catches_up()
    for number in (0, 1):
        planes.children[number].kill()
        wait_for(lambda: renewed(planes, row["id"]), "the other plane to answer")
        for agent in agents:
            agent.catches_up()
        planes.restart(number)
        renewed(planes, row["id"])
        for agent in agents:
            agent.catches_up()
    assert all(agent.daemon.running for agent in agents)
    shown = planes.operator.call("GET", "/apiv1/users/1/devices")
    assert [device["copies_suspected"] for device in shown] == [False] * 3


def renewed(planes: Planes, cert_id: int) -> bool:
    """Renew a certificate; return False if the connection was to a plane that has just ended."""
    with contextlib.suppress(OSError):
        planes.operator.renew(cert_id)
        return True
    return False
