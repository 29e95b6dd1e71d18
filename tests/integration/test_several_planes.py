"""Two real planes on one real PostgreSQL behind a real HAProxy, which forwards TCP without stickiness."""

from __future__ import annotations

import contextlib
import http.client
import signal
import ssl
from collections.abc import Callable

import pytest
from fleet import PATIENCE, Fleet, wait_for
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


def test_without_a_ready_plane_all_get_connections(planes: Planes, own_postgres: PostgresServer) -> None:
    assert asked(planes, "/health/ready") == 200
    own_postgres.stop(signal.SIGQUIT)
    wait_for(lambda: asked(planes, "/health/ready") == 503, "the planes to notice that the database is away")
    wait_for(lambda: asked(planes, "/health/live") == 200, "HAProxy to give connections to planes that are not ready")
    own_postgres.start()
    wait_for(lambda: asked(planes, "/health/ready") == 200, "the planes to be ready again")
    assert planes.operator.call("GET", "/apiv1/users")


def asked(planes: Planes, path: str) -> int:
    """Return the status of an answer through HAProxy; 0 without one."""
    context = ssl.create_default_context(cafile=str(planes.ca))
    connection = http.client.HTTPSConnection(planes.url.rpartition("/")[2], timeout=PATIENCE, context=context)
    with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
        connection.request("GET", path)
        return connection.getresponse().status
    return 0


def renewed(planes: Planes, cert_id: int) -> bool:
    """Renew a certificate; return False if the connection was to a plane that has just ended."""
    with contextlib.suppress(OSError):
        planes.operator.renew(cert_id)
        return True
    return False
