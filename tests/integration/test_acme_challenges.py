"""A real CA (Pebble) that asks a real BIND and the plane: several challenges in one order, and a refusal in words."""

from __future__ import annotations

import json
import re
import sys
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from acme_world import AcmeWorld, make_world
from cryptography import x509
from dns_servers import DnsServerProcess, Key, Servers, dns_servers, zone_text
from fleet import Fleet, run_cli
from pebble_server import pebble_server

from certctrl.plane.challenges.making import check_challenges, make_solver
from certctrl.plane.challenges.plane_http import answer_challenges
from certctrl.plane.challenges.published import PublishedProofs
from certctrl.plane.challenges.solver_kind import SolverParts
from certctrl.plane.commands import DIRECTORIES_VARIABLE
from certctrl.plane.issuers.issuer import IssuerError

pytestmark = pytest.mark.integration

KEY = Key()
SECRETS = {"tsig_key": KEY.file.encode()}
ZONE = "example.com"


@pytest.fixture(scope="module")
def servers(need: Callable[[str], str]) -> Iterator[Servers]:
    with dns_servers(need) as made:
        yield made


@pytest.fixture(scope="module")
def bind(servers: Servers) -> DnsServerProcess:
    return servers.bind({ZONE: zone_text(ZONE, ["127.0.0.1"], "web IN A 127.0.0.1\nhook IN A 127.0.0.1")}, KEY)


@pytest.fixture
async def world() -> AsyncIterator[AcmeWorld]:
    made = make_world(time.time)
    yield made
    made.plane.close()


def use(world: AcmeWorld, *entries: dict[str, Any]) -> None:
    """Let the world's issuer answer by entries of ``challenges``."""
    parts = SolverParts(
        world.plane.database, world.plane.stream, time.time, PublishedProofs(world.plane.database, time.time), "le", 1
    )
    world.real_solver = make_solver(parts, check_challenges(list(entries), SECRETS), SECRETS)


async def test_three_ways_in_one_order(
    need: Callable[[str], str], bind: DnsServerProcess, world: AcmeWorld, tmp_path: Path, nursery: trio.Nursery,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    nursery.start_soon(answer_challenges, listeners, world.plane.database, time.time)
    hook = tmp_path / "commands" / "nsupdate-hook"
    hook.parent.mkdir(mode=0o755)
    monkeypatch.setenv(DIRECTORIES_VARIABLE, str(hook.parent))
    (tmp_path / "key").write_text(KEY.file)
    hook.write_text(
        "#!/bin/sh\n[ $1 = present ] && word='update add' || word='update delete'\n"
        f'printf "server {bind.address} {bind.port}\\nzone {ZONE}\\n$word $2 60 TXT \\"$3\\"\\nsend\\n"'
        f" | {need('nsupdate')} -k {tmp_path}/key\n"
    )
    hook.chmod(0o755)
    waiting = {"resolvers": [bind.place], "port": bind.port}
    use(
        world,
        {"type": "plane-http", "domains": ["web.example.com"]},
        {"type": "command", "domains": ["hook.example.com"], "command": str(hook), **waiting},
        {"type": "rfc2136", **waiting},
    )
    config = {"httpPort": listeners[0].socket.getsockname()[1]}
    with pebble_server(need, tmp_path / "pebble", config=config, options=["-dnsserver", bind.place]) as pebble:
        issuer = world.issuer(directory_url=pebble.directory_url, ca_file=str(pebble.ca_file))
        names = ("web.example.com", "hook.example.com", "example.com", "*.example.com", "*.web.example.com")
        issued = await issuer.issue(world.request(*names))
    leaf = x509.load_pem_x509_certificate(issued.certificate_pem.encode())
    found = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert set(found.get_values_for_type(x509.DNSName)) == set(names)
    for name in names:
        assert bind.texts(f"_acme-challenge.{name.removeprefix('*.')}") == []
    assert not world.plane.database.all("SELECT token FROM http_challenges")


async def test_a_ca_that_sees_another_dns(
    need: Callable[[str], str], servers: Servers, bind: DnsServerProcess, world: AcmeWorld, tmp_path: Path
) -> None:
    """The refusal says what the CA says, and what is seen from here."""
    stale = servers.knot("127.0.53.21", {ZONE: zone_text(ZONE, ["127.0.53.21"])}, KEY)
    use(world, {"type": "rfc2136", "resolvers": [bind.place], "port": bind.port})
    with pebble_server(need, tmp_path / "pebble", options=["-dnsserver", stale.place]) as pebble:
        issuer = world.issuer(directory_url=pebble.directory_url, ca_file=str(pebble.ca_file))
        with pytest.raises(IssuerError) as caught:
            await issuer.issue(world.request("www.example.com"))
    assert re.search(
        r"the CA refused www\.example\.com by dns-01: .+ – asked for TXT _acme-challenge\.www\.example\.com with the value"
        r" [\w-]{43}: its authoritative server answers with this value now; the CA may have asked before, or sees other",
        str(caught.value),
    )
    assert bind.texts("_acme-challenge.www.example.com") == []


async def test_a_ca_that_offers_nothing_for_a_wildcard(
    need: Callable[[str], str], world: AcmeWorld, tmp_path: Path
) -> None:
    use(world, {"type": "plane-http"})
    with pebble_server(need, tmp_path / "pebble") as pebble:
        issuer = world.issuer(directory_url=pebble.directory_url, ca_file=str(pebble.ca_file))
        with pytest.raises(IssuerError) as caught:
            await issuer.issue(world.request("*.example.com"))
    assert str(caught.value) == "*.example.com is a wildcard, which only dns-01 proves; configured for it: plane-http"
    assert caught.value.is_permanent and "rfc2136" in str(caught.value.fix)


def test_plane_serve_as_a_command(fleet: Fleet) -> None:
    """Its one line of JSON names the address; a CA that has no token there gets 404."""
    argv = [sys.executable, "-m", "certctrl", "plane", "serve", "--data", fleet.root / "p", "--listen", "127.0.0.1:0"]
    child = fleet.child([*argv, "--acme-http", "127.0.0.1:0", "--json"], "plane.log")
    child.says("acme_http_url")
    line = next(line for line in child.text.splitlines() if line.startswith("{"))
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(f"{json.loads(line)['acme_http_url']}/.well-known/acme-challenge/x", timeout=30)
    assert child.stop() == 0


def test_plane_serve_at_a_bad_address(fleet: Fleet) -> None:
    done = run_cli("plane", "serve", "--data", fleet.root / "p", "--acme-http", "80")
    assert done.returncode == 2
    assert "--acme-http '80' is not HOST:PORT" in done.stderr and "--acme-http 0.0.0.0:80" in done.stderr
