"""dns-01 at real servers: BIND and Knot, primaries and secondaries, accepted and refused updates."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest
import trio
from dns_servers import DnsServerProcess, Key, Servers, dns_servers, zone_text
from shared_solver import shared

from certctrl.plane.challenges.rfc2136 import Rfc2136Settings, Rfc2136Solver
from certctrl.plane.challenges.rfc2136_entry import Rfc2136Kind, read_keys
from certctrl.plane.challenges.solver import Proof, dns_record_value
from certctrl.plane.clock import wall_now
from certctrl.plane.issuers.issuer import IssuerError
from certctrl.plane.storage.sqlite import SqliteDatabase

pytestmark = pytest.mark.integration

KEY = Key()
ZONE = "example.com"
RECORD = "_acme-challenge.www.example.com"


def proof(identifier: str = "www.example.com", token: str = "t1") -> Proof:
    return Proof(kind="dns-01", identifier=identifier, token=token, key_authorization=f"{token}.account")


def solver(primary: DnsServerProcess, key: Key | None = KEY, **fields: object) -> Rfc2136Solver:
    """Return the solver of an entry as an operator writes it, with the server as its only resolver."""
    given = {"tsig_key": key.file.encode()} if key else {}
    entry = {"resolvers": [primary.place], "port": primary.port, "propagation_seconds": 20, **fields}
    checked = Rfc2136Kind().check(entry, "challenges[0]", given)
    settings = Rfc2136Settings(
        server=checked.server, zone=checked.zone, ttl=checked.ttl,
        authoritative=checked.authoritative_servers, propagation_seconds=checked.propagation_seconds,
    )  # fmt: skip
    return Rfc2136Solver(settings, read_keys(checked.keys, given), checked.lookup)


@pytest.fixture(scope="module")
def servers(need: Callable[[str], str]) -> Iterator[Servers]:
    with dns_servers(need) as made:
        yield made


@pytest.fixture(scope="module")
def bind(servers: Servers) -> DnsServerProcess:
    """A BIND that is the only server of three zones."""
    delegating = f"{zone_text('example.org', ['127.0.0.1'])}\n_acme-challenge.www IN CNAME www.acme.example.net.\n"
    return servers.bind(
        {
            ZONE: zone_text(ZONE, ["127.0.0.1"], "* IN CNAME elsewhere.example.org."),
            "example.org": delegating,
            "acme.example.net": zone_text("acme.example.net", ["127.0.0.1"]),
        },
        KEY,
    )


@pytest.fixture(scope="module")
def knot(servers: Servers) -> DnsServerProcess:
    return servers.knot("127.0.53.2", {ZONE: zone_text(ZONE, ["127.0.53.2"])}, KEY)


@pytest.fixture(params=["bind", "knot"])
def primary(request: pytest.FixtureRequest) -> DnsServerProcess:
    server: DnsServerProcess = request.getfixturevalue(request.param)
    return server


async def test_a_wildcard_and_its_base_next_to_foreign_records(primary: DnsServerProcess) -> None:
    """Everything is found: the zone and its primary by SOA, the servers by NS."""
    answers, other = solver(primary), solver(primary)
    foreign, both = [proof(token="foreign")], [proof(), proof(token="t2")]
    await other.present(foreign)
    await answers.present(both)
    values = sorted(map(dns_record_value, [*foreign, *both]))
    assert primary.texts(RECORD) == values
    await answers.clean_up(both)
    assert primary.texts(RECORD) == [dns_record_value(foreign[0])]
    await other.clean_up(foreign)
    assert primary.texts(RECORD) == []
    await answers.clean_up(both)  # again, as after a crash


async def test_a_hundred_names_in_one_update(primary: DnsServerProcess) -> None:
    answers, proofs = solver(primary), [proof(f"host{n}.example.com", f"t{n}") for n in range(100)]
    await answers.present(proofs)
    assert primary.texts("_acme-challenge.host99.example.com") == [dns_record_value(proofs[99])]
    await answers.clean_up(proofs)
    assert primary.texts("_acme-challenge.host99.example.com") == []


async def test_two_orders_share_a_proof(bind: DnsServerProcess) -> None:
    with closing(SqliteDatabase(None)) as memory:
        first, second = (shared(solver(bind), memory, wall_now) for _ in range(2))
        await first.present([proof()])
        await second.present([proof()])
        await first.clean_up([proof()])
        assert bind.texts(RECORD) == [dns_record_value(proof())]
        await second.clean_up([proof()])
        assert bind.texts(RECORD) == []


async def test_a_key_of_512_bits(servers: Servers) -> None:
    key = Key("other-key", "hmac-sha512")
    server = servers.bind({ZONE: zone_text(ZONE, ["127.0.0.1"])}, key)
    await solver(server, key).present([proof()])
    assert server.texts(RECORD) == [dns_record_value(proof())]
    server.stop()


async def test_a_delegated_record_is_written_where_its_cname_leads(bind: DnsServerProcess) -> None:
    answers, mine = solver(bind), [proof("www.example.org")]
    await answers.present(mine)
    assert bind.texts("www.acme.example.net") == [dns_record_value(mine[0])]
    await answers.clean_up(mine)
    assert bind.texts("www.acme.example.net") == []


async def test_a_wildcard_cname_is_no_delegation(bind: DnsServerProcess) -> None:
    """The record itself replaces what the wildcard would answer."""
    answers, mine = solver(bind), [proof("any.example.com")]
    await answers.present(mine)
    assert bind.texts("_acme-challenge.any.example.com") == [dns_record_value(mine[0])]
    await answers.clean_up(mine)


async def test_servers_at_ipv6_addresses(servers: Servers) -> None:
    if not has_ipv6():
        pytest.skip("this machine has no IPv6")
    server = servers.knot("::1", {ZONE: zone_text(ZONE, ["::1"])}, KEY)
    answers = solver(server)
    await answers.present([proof()])
    assert server.texts(RECORD) == [dns_record_value(proof())]
    await answers.clean_up([proof()])
    assert server.texts(RECORD) == []
    server.stop()


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


# --- secondaries ----------------------------------------------------------------------------------------------------


@pytest.fixture
def pair(servers: Servers) -> Iterator[tuple[DnsServerProcess, DnsServerProcess]]:
    """A BIND, and a Knot that copies its zone every two seconds, without being notified."""
    primary = servers.bind({ZONE: zone_text(ZONE, ["127.0.0.1", "127.0.53.6"])}, KEY)
    secondary = servers.knot("127.0.53.6", {ZONE: ""}, KEY, port=primary.port, primary="127.0.0.1")
    yield primary, secondary
    secondary.stop()
    primary.stop()


async def test_a_lagging_secondary_is_waited_for(pair: tuple[DnsServerProcess, DnsServerProcess]) -> None:
    primary, secondary = pair
    answers = solver(primary)
    await answers.present([proof()])
    assert secondary.texts(RECORD) == [dns_record_value(proof())]
    text = await answers.explain(proof())
    assert "2 authoritative servers answer with this value now" in text


async def test_a_dead_secondary_does_not_stop_an_order(pair: tuple[DnsServerProcess, DnsServerProcess]) -> None:
    primary, secondary = pair
    secondary.stop()
    await solver(primary).present([proof()])
    assert primary.texts(RECORD) == [dns_record_value(proof())]


async def test_a_secondary_that_never_gets_the_record(servers: Servers) -> None:
    text = zone_text(ZONE, ["127.0.0.1", "127.0.53.8"])
    primary = servers.bind({ZONE: text}, KEY)
    stale = servers.knot("127.0.53.8", {ZONE: text}, KEY, port=primary.port)
    answers = solver(primary, propagation_seconds=2)
    with pytest.raises(IssuerError) as caught:
        await answers.present([proof()])
    assert str(caught.value) == (
        f"TXT {RECORD} is not on every authoritative server after 2 s: ns2.example.com ({stale.place})"
        " answers that the name does not exist (NXDOMAIN)"
    )
    assert caught.value.fix and "allow-transfer" in caught.value.fix and not caught.value.is_permanent
    text = await answers.explain(proof())
    assert "only ns1.example.com (127.0.0.1" in text and "the others lag" in text
    primary.stop(), stale.stop()


async def test_a_lame_delegation(servers: Servers) -> None:
    primary = servers.bind({ZONE: zone_text(ZONE, ["127.0.0.1", "127.0.53.10"])}, KEY)
    other = {"example.net": zone_text("example.net", ["127.0.53.10"])}
    lame = servers.knot("127.0.53.10", other, KEY, port=primary.port)
    answers = solver(primary)
    await answers.present([proof()])
    text = await answers.explain(proof())
    assert f"ns2.example.com ({lame.place}) is not authoritative for the zone (REFUSED)" in text
    primary.stop(), lame.stop()


# --- refused updates ------------------------------------------------------------------------------------------------


async def refused(answers: Rfc2136Solver) -> tuple[str, str]:
    with pytest.raises(IssuerError) as caught:
        await answers.present([proof()])
    assert "\n" not in str(caught.value) and caught.value.fix
    assert KEY.secret not in f"{caught.value!r} {caught.value.fix}"
    return str(caught.value), caught.value.fix


async def test_no_key(primary: DnsServerProcess) -> None:
    what, fix = await refused(solver(primary, None))
    assert "refuses an update of example.com without a TSIG key: " in what
    assert fix == "give the issuer a TSIG key that the server accepts" or "primary" in fix


async def test_an_unknown_key(primary: DnsServerProcess) -> None:
    what, fix = await refused(solver(primary, Key("stranger")))
    assert "does not accept the TSIG key (BADKEY); key stranger" in what
    assert fix == "add the key stranger to the server by this name; in Knot, also to an acl of the zone"


async def test_another_secret(primary: DnsServerProcess) -> None:
    what, fix = await refused(solver(primary, Key()))
    assert "knows the TSIG key with another secret or algorithm (BADSIG)" in what
    assert fix == "give the issuer the secret and algorithm that the server has for acme-update"


async def test_a_clock_that_is_wrong(primary: DnsServerProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library signs with the time of this host."""

    class Late:
        @staticmethod
        def time() -> float:
            import time

            return time.time() - 3600

    monkeypatch.setattr("dns.message.time", Late)
    monkeypatch.setattr("dns.renderer.time", Late)
    what, fix = await refused(solver(primary))
    assert "has a clock that differs from this control plane's by more than five minutes (BADTIME)" in what
    assert "NTP" in fix


async def test_a_key_without_the_right(servers: Servers) -> None:
    policy = f"update-policy {{ grant {KEY.name} name _acme-challenge.other.example.com TXT; }};"
    server = servers.bind({ZONE: zone_text(ZONE, ["127.0.0.1"])}, KEY, policy=policy)
    answers, allowed = solver(server), [proof("other.example.com")]
    await answers.present(allowed)
    assert server.texts("_acme-challenge.other.example.com") == [dns_record_value(allowed[0])]
    await answers.clean_up(allowed)
    assert server.texts("_acme-challenge.other.example.com") == []
    what, fix = await refused(solver(server))
    assert what == (
        f"the DNS server ns1.example.com ({server.place}) refuses an update of example.com"
        f" signed with the key {KEY.name}: REFUSED"
    )
    assert fix.startswith(f"allow the key {KEY.name} to update TXT _acme-challenge records of example.com (BIND: upd")
    server.stop()


async def test_a_key_of_knot_without_the_right(servers: Servers) -> None:
    """The acl of docs/challenges.md; Knot answers as if it did not know the key."""
    acl = "    update-type: TXT\n    update-owner: name\n    update-owner-match: equal\n    update-owner-name: [_acme-challenge.ok]\n"
    server = servers.knot("127.0.53.14", {ZONE: zone_text(ZONE, ["127.0.53.14"])}, KEY, acl=acl)
    answers = solver(server)
    await answers.present([proof("ok.example.com")])
    assert server.texts("_acme-challenge.ok.example.com") == [dns_record_value(proof("ok.example.com"))]
    await answers.clean_up([proof("ok.example.com")])
    what, fix = await refused(answers)
    assert "does not accept the TSIG key (BADKEY)" in what and "in Knot, also to an acl of the zone" in fix
    server.stop()


async def test_a_server_that_does_not_have_the_zone(primary: DnsServerProcess) -> None:
    what, fix = await refused(solver(primary, zone="com", server=primary.place))
    assert "NOTAUTH" in what or "REFUSED" in what
    assert "zone" in fix


async def test_a_server_that_is_not_there(bind: DnsServerProcess) -> None:
    what, fix = await refused(solver(bind, server="127.0.53.250:9"))
    assert what == "cannot update example.com: the DNS server 127.0.53.250:9 refuses the connection"
    assert "set server" in fix


async def test_a_resolver_that_is_not_there(bind: DnsServerProcess) -> None:
    what, fix = await refused(solver(bind, resolvers=["127.0.53.250:9"]))
    assert what.startswith("cannot look up CNAME _acme-challenge.www.example.com: the DNS server 127.0.53.250:9")
    assert "resolv.conf" in fix


async def test_cancelled_while_it_waits(servers: Servers) -> None:
    text = zone_text(ZONE, ["127.0.0.1", "127.0.53.13"])
    primary = servers.bind({ZONE: text}, KEY)
    stale = servers.knot("127.0.53.13", {ZONE: text}, KEY, port=primary.port)
    answers = solver(primary)
    with trio.move_on_after(2) as scope:
        await answers.present([proof()])
    assert scope.cancelled_caught
    await answers.clean_up([proof()])
    assert primary.texts(RECORD) == []
    primary.stop(), stale.stop()


def test_the_keys_of_the_tools(need: Callable[[str], str]) -> None:
    import subprocess

    from certctrl.plane.challenges.tsig_keys import read_key

    made = subprocess.run([need("tsig-keygen"), "-a", "hmac-sha512", "k1"], capture_output=True, check=True)
    assert read_key(made.stdout, secret_name="x").name == "k1"
    if shutil.which("keymgr", path="/usr/sbin:/usr/bin"):
        made = subprocess.run([need("keymgr"), "-t", "k2", "hmac-sha256"], capture_output=True, check=True)
        key = read_key(made.stdout, secret_name="x")
        assert (key.name, key.algorithm, len(key.secret)) == ("k2", "hmac-sha256", 32)
