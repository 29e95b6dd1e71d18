"""Real agents answer a real CA: http-01 by files and listeners, tls-alpn-01 for names and addresses."""

from __future__ import annotations

import json
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
from challenge_dns import ChallengeDns, challenge_dns
from fleet import USER, Agent, Fleet, Plane, wait_for
from pebble_server import Pebble, free_port, pebble_server

pytestmark = pytest.mark.integration


@attrs.define
class Scene:
    """A plane whose issuer ``le`` is a Pebble that asks at two ports of this host."""

    fleet: Fleet
    plane: Plane
    pebble: Pebble
    dns: ChallengeDns
    http_port: int
    tls_port: int

    def issuer(self, *challenges: dict[str, Any]) -> None:
        """Set the challenges of the issuer."""
        settings = {
            "directory_url": self.pebble.directory_url, "ca_file": str(self.pebble.ca_file), "terms_agreed": True,
            "challenges": list(challenges), "budget": "unlimited",
        }  # fmt: skip
        body = {"name": "le", "kind": "acme", "settings": settings, "replace": True}
        self.plane.operator.call("POST", "/apiv1/issuers", body)

    def agent(self, name: str, **acme: object) -> Agent:
        """Return a running agent with a policy for challenges, once the plane knows what it can do."""
        agent = self.fleet.agent(self.plane, name)
        (agent.layout.root / "policy.json").write_text(json.dumps({"acme": acme}))
        agent.start()
        if acme:
            wait_for(lambda: "acme" in str(self.device(agent)["features"]), f"{name} to announce what it can do")
        return agent

    def device(self, agent: Agent) -> Any:
        return self.plane.operator.call("GET", f"/apiv1/users/{USER}/devices/{agent.device_id}")

    def order(self, cert_id: int) -> Any:
        """Return the newest order of a certificate."""
        orders = self.plane.operator.call("GET", f"/apiv1/users/{USER}/orders")
        return [one for one in orders if one["cert_id"] == cert_id][-1]

    def issued(self, cert_id: int) -> Any:
        """Wait until a certificate is issued, and return it."""

        def done() -> Any:
            order = self.order(cert_id)
            assert not order["problem"], order
            return order["state"] == "done"

        wait_for(done, "the certificate")
        return self.plane.operator.call("GET", f"/apiv1/users/{USER}/certificates/{cert_id}")

    def refused(self, cert_id: int) -> Any:
        """Wait until an attempt has failed, and return the order."""
        return wait_for(lambda: self.order(cert_id)["problem"] and self.order(cert_id), "the attempt to fail")


@pytest.fixture(scope="module")
def scene(
    shared_fleet: Fleet, plane: Plane, need: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Scene]:
    ports = {"httpPort": free_port(), "tlsPort": free_port()}
    root = tmp_path_factory.mktemp("pebble")
    with challenge_dns(need) as dns, pebble_server(
        need, root, config=ports, options=["-dnsserver", dns.address]
    ) as pebble:  # fmt: skip
        yield Scene(shared_fleet, plane, pebble, dns, ports["httpPort"], ports["tlsPort"])


@pytest.fixture
def tokens() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="acme-", dir="/tmp") as found:
        Path(found).chmod(0o755)
        yield Path(found)


NGINX = """\
daemon off;
pid {place}/nginx.pid;
events {{ }}
http {{
    access_log off;
    client_body_temp_path {place}/tmp; proxy_temp_path {place}/tmp; fastcgi_temp_path {place}/tmp;
    uwsgi_temp_path {place}/tmp; scgi_temp_path {place}/tmp;
    server {{
        listen 127.0.0.1:{port};
        location /.well-known/acme-challenge/ {{ alias {tokens}/; }}
    }}
}}
"""


def serial_of(agent: Agent, cert_id: int) -> str:
    return wait_for(lambda: agent.serials().get(cert_id, ""), "the certificate on the host")


def test_one_agent_by_listeners_for_names_and_an_address(scene: Scene) -> None:
    agent = scene.agent(
        "both", http01_listen=f"127.0.0.1:{scene.http_port}", tls_alpn01_listen=f"0.0.0.0:{scene.tls_port}"
    )
    scene.issuer({"type": "agent-tls-alpn", "domains": ["127.0.0.5", "tls.example.com"]}, {"type": "agent-http"})
    names = ["www.example.com", "tls.example.com", "127.0.0.5"]
    made = scene.plane.operator.issue(names[0], agent.device_id, sans=names[1:], issuer="le")
    shown = scene.issued(made["id"])
    assert {shown["domain_name"], *shown["sans"]} == {*names}
    assert serial_of(agent, made["id"]) == shown["serial_number"]
    types = [one["signal"]["type"] for one in scene.plane.operator.outcomes(agent.device_id)]
    assert {"acme.http01.start", "acme.tls_alpn01.start"} <= {*types}
    wait_for(lambda: not agent.state.session.load_challenges(), "the answers to be taken back")
    agent.daemon.stop()


def test_a_name_of_two_hosts_is_answered_by_both(scene: Scene) -> None:
    agents = [scene.agent(f"host-{n}", http01_listen=f"127.0.0.{n}:{scene.http_port}") for n in (2, 3)]
    scene.dns.set_addresses("two.example.com", ["127.0.0.2", "127.0.0.3"])
    scene.issuer({"type": "agent-http"})
    made = scene.plane.operator.issue("two.example.com", *(one.device_id for one in agents), issuer="le")
    scene.issued(made["id"])
    for agent in agents:
        serial_of(agent, made["id"])
        outcomes = scene.plane.operator.outcomes(agent.device_id)
        start = [one for one in outcomes if one["signal"]["type"] == "acme.http01.start"]
        assert [one["outcome"] for one in start] == ["applied"]
        agent.daemon.stop()


def test_an_agent_that_allows_nothing_fails_the_order_at_once(scene: Scene) -> None:
    agent = scene.agent("closed")
    scene.issuer({"type": "agent-http"})
    made = scene.plane.operator.issue("closed.example.com", agent.device_id, issuer="le")
    order = scene.refused(made["id"])
    assert "device closed does not answer http-01 challenges" in order["problem"]
    assert "policy.json" in order["fix"]
    (agent.layout.root / "policy.json").write_text(
        json.dumps({"acme": {"http01_listen": f"127.0.0.1:{scene.http_port}"}})
    )
    agent.daemon.send(signal.SIGHUP)
    wait_for(lambda: "acme-http01" in scene.device(agent)["features"], "the reloaded policy to be announced")
    scene.plane.operator.call("POST", f"/apiv1/users/{USER}/orders/{order['id']}/retry")
    wait_for(lambda: scene.order(made["id"])["state"] == "done", "the certificate")
    agent.daemon.stop()


def test_a_web_server_gives_the_answers(scene: Scene, tokens: Path, need: Callable[[str], str], tmp_path: Path) -> None:
    config = tmp_path / "nginx.conf"
    config.write_text(NGINX.format(place=tmp_path, port=scene.http_port, tokens=tokens))
    web = scene.fleet.child([need("nginx"), "-p", tmp_path, "-e", tmp_path / "error.log", "-c", config], "web.log")
    agent = scene.agent("served", http01_directory=str(tokens), names=["*.example.com"])
    scene.issuer({"type": "agent-http"})
    made = scene.plane.operator.issue("served.example.com", agent.device_id, issuer="le")
    scene.issued(made["id"])
    wait_for(lambda: not os.listdir(tokens), "the answer to be taken back")
    other = scene.plane.operator.issue("served.example.org", agent.device_id, issuer="le")
    assert "add it to acme.names" in scene.refused(other["id"])["problem"]
    agent.daemon.stop()
    web.stop()


def test_a_killed_agent_leaves_no_file(scene: Scene, tokens: Path) -> None:
    """The CA asks at a port where nothing listens, so the answer stays until the attempt has failed."""
    agent = scene.agent("files", http01_directory=str(tokens))
    scene.issuer({"type": "agent-http", "wait_seconds": 30})
    scene.plane.operator.issue("files.example.com", agent.device_id, issuer="le")
    wait_for(lambda: os.listdir(tokens), "the answer")
    agent.daemon.kill()
    agent.start()
    wait_for(
        lambda: not os.listdir(tokens) and not agent.state.session.load_challenges(), "the answer to be taken back"
    )
    agent.daemon.stop()
