"""Push sockets pass a real HAProxy, which forwards TCP or ends TLS, and the plane knows the client's address."""

from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import trio
from fleet import PROGRAM, Fleet, Operator, wait_for
from nacl.public import PrivateKey
from plane_socket import Connection
from plane_world import REGISTER
from proving import answered, registration
from push_client import PushClient

from certctrl.sandbox.servers import HOST, free_port

pytestmark = pytest.mark.integration

BALANCER, CLIENT = "127.0.0.2", "127.0.0.3"
HAPROXY = """
defaults
    mode {mode}
    timeout connect 5s
    timeout client 60s
    timeout server 60s
    timeout tunnel 60s
frontend plane
    bind {host}:{port} {bind}
    default_backend planes
backend planes
    source {balancer}
    {option}
    server plane1 {plane} {server}
"""
MODES = {
    "tcp": {"mode": "tcp", "bind": "", "option": "balance leastconn", "server": "send-proxy-v2"},
    "http": {
        "mode": "http", "bind": "ssl crt {crt} alpn http/1.1", "option": "option forwardfor",
        "server": "ssl verify none alpn http/1.1",
    },
}  # fmt: skip
OPTIONS = {"tcp": "--proxy", "http": "--http-proxy"}


def bundle(data: Path, to: Path) -> Path:
    """Write the plane's certificate and key as HAProxy reads them."""
    to.touch(0o600)
    to.write_bytes((data / "tls.pem").read_bytes() + (data / "tls.key").read_bytes())
    return to


async def talk(port: int, ca: Path, operator: Operator, body: dict[str, Any]) -> str:
    """Register, open a socket, receive a signal, report it; return the type of the last message."""
    context = ssl.create_default_context(cafile=str(ca))

    @asynccontextmanager
    async def connected() -> AsyncIterator[trio.SSLStream[trio.SocketStream]]:
        sock = trio.socket.socket()
        await sock.bind((CLIENT, 0))
        await sock.connect((HOST, port))
        stream = trio.SSLStream(trio.SocketStream(sock), context, server_hostname=HOST, https_compatible=True)
        try:
            yield stream
        finally:
            await trio.aclose_forcefully(stream)

    async with connected() as one, connected() as two:
        http = Connection(one)
        challenge = (await http.ask("POST", REGISTER, body)).data
        device = (await http.ask("POST", REGISTER, answered(body, challenge))).data
        with trio.fail_after(120):
            return await _exchanged(
                PushClient(two, device["session"]["access_token"]), operator, device["device"]["id"]
            )


async def _exchanged(client: PushClient, operator: Operator, device_id: int) -> str:
    assert await client.upgrade() == 101
    await client.hello()
    home = f"/apiv1/users/1/devices/{device_id}"
    await trio.to_thread.run_sync(operator.call, "POST", f"{home}/resync", {})
    (signal,) = (await client.page())["signals"]
    answer = await client.outcomes([{"type": "signal.ack", "signal": signal, "outcome": "applied"}])
    assert isinstance(answer, dict)
    await trio.to_thread.run_sync(operator.call, "DELETE", home)
    assert (await client.closed()).code == 4403
    return str(answer["type"])


@pytest.mark.parametrize("mode", MODES)
def test_sockets_pass_haproxy(fleet: Fleet, need: Callable[[str], str], mode: str) -> None:
    haproxy, data, port = need("haproxy"), fleet.root / "plane", free_port()
    argv = [*PROGRAM, "plane", "serve", "--data", data, "--listen", f"{HOST}:0", OPTIONS[mode], BALANCER]
    fleet.child(argv, "plane.log").says("operator key")
    url = (data / "address").read_text().strip()
    operator = Operator(url, data / "ca.pem", (data / "operator.key").read_text().strip())
    facts = dict(MODES[mode])
    facts["bind"] = facts["bind"].format(crt=bundle(data, fleet.root / "haproxy.pem"))
    config = fleet.root / "haproxy.cfg"
    plane = url.rpartition("//")[2]
    config.write_text(HAPROXY.format(host=HOST, port=port, balancer=BALANCER, plane=plane, **facts))
    balancer = fleet.child([haproxy, "-db", "-f", config], "haproxy.log")

    def listens() -> bool:
        with suppress(OSError), socket.create_connection((HOST, port), 5):
            return True
        return False

    wait_for(listens, "HAProxy")
    body = registration("device-1", PrivateKey.generate()) | {"enrolment_token": operator.enrolment_token()}
    assert trio.run(talk, port, data / "ca.pem", operator, body) == "updates.outcomes_ack"
    (shown,) = operator.call("GET", "/apiv1/users/1/devices")
    assert shown["last_address"] == CLIENT
    assert balancer.running
