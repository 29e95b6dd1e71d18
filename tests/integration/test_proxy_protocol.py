"""A real HAProxy names the clients of a control plane, with both versions of its PROXY protocol."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from fleet import PROGRAM, Fleet, Operator, wait_for
from nacl.public import PrivateKey
from plane_world import REGISTER
from proving import answered, registration

from certctrl.sandbox.servers import HOST, free_port

pytestmark = pytest.mark.integration

BALANCER, CLIENT = "127.0.0.2", "127.0.0.3"
UPDATES = "/apiv1/devices/self/updates"
HAPROXY = """
defaults
    mode tcp
    timeout connect 5s
    timeout client 60s
    timeout server 60s
frontend plane
    bind {host}:{port}
    default_backend planes
backend planes
    source {balancer}
    option httpchk GET /health
    server plane1 {plane} {sends} check check-ssl verify none inter 100ms
"""


class Client:
    """A device behind the load balancer, on an address of its own."""

    def __init__(self, port: int, ca: Path) -> None:
        context = ssl.create_default_context(cafile=str(ca))
        self._connection = http.client.HTTPSConnection(
            HOST, port, timeout=60, context=context, source_address=(CLIENT, 0)
        )

    def close(self) -> None:
        self._connection.close()

    def ask(self, method: str, path: str, body: object = None, token: str = "") -> tuple[int, Any]:
        headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {token}"} if token else {})
        self._connection.request(method, path, None if body is None else json.dumps(body), headers)
        answer = self._connection.getresponse()
        text = answer.read()
        return answer.status, json.loads(text)["data"] if text else None


@pytest.mark.parametrize("sends", ["send-proxy", "send-proxy-v2"])
def test_haproxy_names_the_client(fleet: Fleet, need: Callable[[str], str], sends: str) -> None:
    """The health checks of HAProxy, whose header names no client, pass too; other peers need no header."""
    haproxy, data, port = need("haproxy"), fleet.root / "plane", free_port()
    argv = [*PROGRAM, "plane", "serve", "--data", data, "--listen", f"{HOST}:0", "--proxy", BALANCER]
    fleet.child(argv, "plane.log").says("operator key")
    url = (data / "address").read_text().strip()
    operator = Operator(url, data / "ca.pem", (data / "operator.key").read_text().strip())
    config = fleet.root / "haproxy.cfg"
    plane = url.rpartition("//")[2]
    config.write_text(HAPROXY.format(host=HOST, port=port, balancer=BALANCER, plane=plane, sends=sends))
    balancer = fleet.child([haproxy, "-db", "-f", config], "haproxy.log")

    def is_balanced() -> bool:
        with closing(Client(port, data / "ca.pem")) as client, suppress(OSError):
            return client.ask("GET", "/health")[0] == 200
        return False

    wait_for(is_balanced, "the plane behind HAProxy")
    with closing(Client(port, data / "ca.pem")) as client:
        body = registration("device-1", PrivateKey.generate()) | {"enrolment_token": operator.enrolment_token()}
        _, challenge = client.ask("POST", REGISTER, body)
        _, device = client.ask("POST", REGISTER, answered(body, challenge))
        assert client.ask("GET", UPDATES, token=device["session"]["access_token"])[0] == 204
    (shown,) = operator.call("GET", "/apiv1/users/1/devices")
    assert shown["last_address"] == CLIENT
    assert balancer.running, "HAProxy still runs, and its checks pass"
    assert "is DOWN" not in balancer.text
    with socket.create_connection((HOST, int(plane.rpartition(":")[2])), 60, (BALANCER, 0)) as without_header:
        without_header.sendall(b"\x16\x03\x01" + bytes(40))
        without_header.settimeout(60)
        with suppress(ConnectionResetError):
            assert without_header.recv(100) == b"", "a listed proxy without header is refused"
