"""Push through real proxies: HAProxy that passes upgrades or denies them, and tinyproxy as a CONNECT proxy."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import trustme
from fleet import HOST, Agent, Entrance, Fleet, Plane, wait_for

from certctrl.sandbox.servers import free_port

pytestmark = pytest.mark.integration

HAPROXY = """\
global
    maxconn 200
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
    timeout tunnel {tunnel}
frontend agents
    bind 127.0.0.1:{port} ssl crt {pem}
{rules}    default_backend plane
backend plane
    server plane {address} ssl verify none
"""
DENY = "    http-request deny deny_status 403 if { req.hdr(upgrade) -m found }\n"
STRIP = "    http-request del-header upgrade\n    http-request del-header connection\n"
TINYPROXY = """\
Port {port}
Listen 127.0.0.1
Timeout 600
MaxClients 50
LogFile "{place}/tinyproxy.log"
PidFile "{place}/tinyproxy.pid"
Allow 127.0.0.1
"""


def accepts(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((HOST, port), timeout=5):
        return True
    return False


class Balancer:
    """HAProxy before a plane; its rules may be changed."""

    def __init__(
        self, fleet: Fleet, plane: Plane, program: str, *, name: str = HOST, rules: str = "", tunnel: str = "1h"
    ) -> None:
        self._fleet, self._plane, self._program, self._tunnel = fleet, plane, program, tunnel
        authority = trustme.CA()
        self.ca, self.port = fleet.root / "proxy-ca.pem", free_port()
        authority.cert_pem.write_to_path(self.ca)
        self._pem, self._config = fleet.root / "proxy.pem", fleet.root / "haproxy.cfg"
        authority.issue_cert(name, HOST).private_key_and_cert_chain_pem.write_to_path(self._pem)
        self.url = f"https://{name}:{self.port}"
        self.operator, self._starts = plane.operator, 0
        self.start(rules)

    def start(self, rules: str) -> None:
        self._starts += 1
        address = self._plane.url.rpartition("//")[2]
        self._config.write_text(
            HAPROXY.format(port=self.port, pem=self._pem, rules=rules, address=address, tunnel=self._tunnel)
        )
        self.child = self._fleet.child([self._program, "-db", "-f", self._config], f"haproxy.{self._starts}.log")
        wait_for(lambda: accepts(self.port), "HAProxy to accept connections")

    def change(self, rules: str) -> None:
        self.child.kill()
        self.start(rules)


def transport(agent: Agent) -> dict[str, Any]:
    done = agent.cli("status", "--daemon", "--json")
    return dict((json.loads(done.stdout).get("poll") or {}).get("transport") or {})


def uses(agent: Agent, what: str) -> Callable[[], bool]:
    return lambda: transport(agent).get("uses") == what


def renewals_arrive(agent: Agent) -> None:
    for cert_id in agent.serials():
        agent.plane.operator.renew(cert_id)
    agent.catches_up()


def begin(fleet: Fleet, plane: Entrance, **settings: Any) -> Agent:
    agent = fleet.agent(plane, poll_mode="push", **settings)
    plane.operator.issue("push.example.com", agent.device_id)
    agent.start()
    agent.catches_up()
    return agent


def test_push_works_and_stops_cleanly(fleet: Fleet, plane: Plane) -> None:
    agent = begin(fleet, plane)
    wait_for(uses(agent, "push"), "push")
    renewals_arrive(agent)
    wait_for(agent.has_reported_all, "all outcomes to be reported")
    assert agent.cli("poll-now").returncode == 0
    assert "Transport: push" in agent.cli("status").stdout
    assert agent.daemon.stop(signal.SIGTERM) == 0


def test_haproxy_passes_upgrades(fleet: Fleet, plane: Plane, need: Callable[[str], str]) -> None:
    agent = begin(fleet, Balancer(fleet, plane, need("haproxy")))
    wait_for(uses(agent, "push"), "push")
    renewals_arrive(agent)


@pytest.mark.parametrize("rules", [DENY, STRIP], ids=["denies", "strips"])
def test_behind_an_haproxy_without_upgrades_the_agent_polls_and_says_so(
    fleet: Fleet, plane: Plane, need: Callable[[str], str], rules: str
) -> None:
    balancer = Balancer(fleet, plane, need("haproxy"), rules=rules)
    agent = begin(fleet, balancer)
    wait_for(lambda: transport(agent).get("next_try_at"), "a failed try of push")
    assert transport(agent)["uses"] == "long-poll"
    renewals_arrive(agent)
    assert "; no push: " in agent.cli("status").stdout
    findings = json.loads(agent.cli("doctor", "--json").stdout)
    assert [one["level"] for one in findings if one["check"] == "push"] == ["WARN"]
    balancer.change("")
    agent.cli("poll-now")  # which also tries push
    wait_for(uses(agent, "push"), "push after the change of the proxy")
    renewals_arrive(agent)


def test_a_restarted_haproxy_loses_no_signal(fleet: Fleet, plane: Plane, need: Callable[[str], str]) -> None:
    balancer = Balancer(fleet, plane, need("haproxy"))
    agent = begin(fleet, balancer)
    wait_for(uses(agent, "push"), "push")
    for _ in range(3):
        balancer.child.kill()
        for cert_id in agent.serials():
            plane.operator.renew(cert_id)
        balancer.start("")
        agent.catches_up()
        agent.cli("poll-now")
        wait_for(uses(agent, "push"), "push again")


def resolvable_name() -> str:
    """Return a name of this host that the agent does not take for loopback; empty if there is none."""
    name = socket.gethostname()
    with contextlib.suppress(OSError):
        if name != "localhost" and socket.gethostbyname(name).startswith("127."):
            return name
    return ""


def test_push_goes_through_a_connect_proxy(fleet: Fleet, plane: Plane, need: Callable[[str], str]) -> None:
    haproxy, tinyproxy = need("haproxy"), need("tinyproxy")
    name = resolvable_name()
    if not name:
        pytest.skip("this host's name does not resolve to its loopback address")
    balancer = Balancer(fleet, plane, haproxy, name=name)
    port, config = free_port(), fleet.root / "tinyproxy.conf"
    config.write_text(TINYPROXY.format(port=port, place=fleet.root))
    fleet.child([tinyproxy, "-d", "-c", config], "tinyproxy.out")
    wait_for(lambda: accepts(port), "tinyproxy to accept connections")
    agent = fleet.agent(balancer, poll_mode="push")  # type: ignore[arg-type]
    agent.configure("httpclient_config.json", proxy=f"http://127.0.0.1:{port}")
    plane.operator.issue("tunnel.example.com", agent.device_id)
    agent.start()
    agent.catches_up()
    wait_for(uses(agent, "push"), "push through the proxy")
    renewals_arrive(agent)
    assert "CONNECT" in (fleet.root / "tinyproxy.log").read_text(errors="replace")


def test_a_proxy_that_is_gone_is_named(fleet: Fleet, plane: Plane) -> None:
    name = resolvable_name() or "plane.invalid"
    gone = SimpleNamespace(url=plane.url, ca=plane.ca, operator=plane.operator)
    agent = fleet.agent(gone, poll_mode="push")  # type: ignore[arg-type]
    agent.configure("httpclient_config.json", proxy=f"http://127.0.0.1:{free_port()}")
    agent.configure(server_url=f"https://{name}:1")
    daemon = agent.start()
    daemon.says("the proxy 127.0.0.1:")
    assert daemon.stop() == 0
