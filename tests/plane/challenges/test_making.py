"""The list ``challenges`` of an issuer's settings: what is accepted, and what is said about mistakes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from engine_plane import plane_on

from certctrl.errors import ConfigError
from certctrl.plane.ca.issuer import inline
from certctrl.plane.challenges.at_hosts import HostSolver
from certctrl.plane.challenges.command import CommandSolver
from certctrl.plane.challenges.making import TYPES, check_challenges, make_solver
from certctrl.plane.challenges.plane_http import PlaneHttpSolver
from certctrl.plane.challenges.published import PublishedProofs
from certctrl.plane.challenges.rfc2136 import Rfc2136Solver
from certctrl.plane.challenges.solver_kind import SolverParts
from certctrl.plane.commands import DIRECTORIES_VARIABLE
from certctrl.plane.core import Plane
from certctrl.plane.storage.sqlite import SqliteDatabase

KEY = b'key "acme" { algorithm hmac-sha256; secret "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="; };'
SECRETS = {"tsig_key": KEY, "api_token": b"t0k3n"}


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A program that the plane may run."""
    monkeypatch.setenv(DIRECTORIES_VARIABLE, str(tmp_path))
    tmp_path.chmod(0o755)
    place = tmp_path / "dns-hook"
    place.write_text("#!/bin/sh\n")
    place.chmod(0o755)
    return str(place)


def parts_of(plane: Plane, memory: SqliteDatabase) -> SolverParts:
    return SolverParts(memory, plane.stream, plane.wall_now, PublishedProofs(memory, plane.wall_now), "le")


def test_everything_has_a_default(program: str) -> None:
    entries = [
        {"type": "rfc2136"}, {"type": "command", "command": program}, {"type": "plane-http"}, {"type": "agent-http"},
        {"type": "agent-tls-alpn"},
    ]  # fmt: skip
    checked = check_challenges(entries, SECRETS)
    waiting = {"resolvers": [], "authoritative": [], "port": 53, "propagation_seconds": 120}
    assert checked == [
        {
            "type": "rfc2136", "domains": [], "server": "", "zone": "", "ttl": 60,
            "keys": [{"secret": "tsig_key", "name": "", "algorithm": "", "zones": []}], **waiting,
        },
        {
            "type": "command", "domains": [], "challenge": "dns-01", "command": [program], "cleanup_command": [],
            "arguments": "append", "timeout_seconds": 120, "secrets": [], "propagation": "authoritative", **waiting,
        },
        {"type": "plane-http", "domains": []},
        {"type": "agent-http", "domains": [], "devices": [], "wait_seconds": 180},
        {"type": "agent-tls-alpn", "domains": [], "devices": [], "wait_seconds": 180},
    ]  # fmt: skip
    assert check_challenges(checked, SECRETS) == checked == json.loads(json.dumps(checked))


@pytest.fixture
def memory() -> Iterator[SqliteDatabase]:
    """A database in memory."""
    with closing(SqliteDatabase(None, inline)) as database:
        yield database


def test_solvers_of_all_types(program: str, memory: SqliteDatabase) -> None:
    plane = plane_on(memory)
    entries = [
        {
            "type": "rfc2136", "domains": ["Example.COM.", "*.bücher.example"], "server": "ns1.example.com",
            "zone": "example.com.", "authoritative": ["192.0.2.1", "[2001:db8::1]:5353"], "resolvers": "192.0.2.9:54",
            "keys": [{"secret": "tsig_key", "zones": ["example.com"]}], "ttl": 0, "propagation_seconds": 1.5,
        },
        {"type": "command", "command": [program, "--zone", "x"], "secrets": ["api_token"], "challenge": "http-01"},
        {"type": "plane-http", "domains": ["192.0.2.17/24", "192.0.2.17", "*"]},
        {"type": "agent-http", "devices": ["web-1", "7"], "wait_seconds": 30},
        {"type": "agent-tls-alpn"},
    ]  # fmt: skip
    checked = check_challenges(entries, SECRETS)
    assert checked[0]["domains"] == ["example.com", "*.xn--bcher-kva.example"]
    assert checked[2]["domains"] == ["192.0.2.0/24", "192.0.2.17/32", "*"]
    chosen = make_solver(parts_of(plane, memory), checked, SECRETS)
    solvers = [type(rule.solver) for rule in chosen._rules]
    assert solvers == [Rfc2136Solver, CommandSolver, PlaneHttpSolver, HostSolver, HostSolver]
    assert [rule.solver.kinds for rule in chosen._rules[3:]] == [("http-01",), ("tls-alpn-01",)]
    assert "t0k3n" not in repr(chosen._rules) and "MDEyMzQ1" not in repr(chosen._rules)


@pytest.mark.parametrize(
    ("entries", "what", "fix"),
    [
        ({}, "challenges: is an object", 'use a list such as [{"type": "plane-http"}]'),
        ([], "challenges: is empty", 'use a list such as [{"type": "plane-http"}]'),
        (["x"], "challenges[0]: is text", 'use an object such as {"type": "rfc2136"}'),
        ([{}], "challenges[0].type: is missing", f"use one of {', '.join(TYPES)}"),
        ([{"type": "rfc2316"}], "challenges[0].type: is 'rfc2316'", "use 'rfc2136'"),
        ([{"type": "plane-http"}] * 51, "challenges: has more than 50 entries", "use fewer"),
        (
            [{"type": "plane-http"}, {"type": "rfc2136", "sever": "x"}],
            "challenges[1].sever: is not a field of this type", "use 'server'",
        ),
        ([{"type": "plane-http", "port": 1}], "challenges[0].port: is not a field of this type", "use type, domains"),
        (
            [{"type": "plane-http", "domains": ["a b"]}], "challenges[0].domains: contains 'a b'",
            "use for example example.com, *.example.com, 192.0.2.0/24 or *",
        ),
        ([{"type": "agent-http", "wait_seconds": 0}], "challenges[0].wait_seconds: is 0", "use a number from 1 to 3600"),
        ([{"type": "agent-tls-alpn", "devices": 7}], "challenges[0].devices: is a whole number", "use a list of texts"),
        ([{"type": "agent-http", "device": "x"}], "challenges[0].device: is not a field of this type", "use 'devices'"),
        ([{"type": "rfc2136", "ttl": -1}], "challenges[0].ttl: is -1", "use a whole number from 0 to 86400"),
        ([{"type": "rfc2136", "ttl": 1.5}], "challenges[0].ttl: is 1.5", "use a whole number from 0 to 86400"),
        ([{"type": "rfc2136", "ttl": True}], "challenges[0].ttl: is true or false", "use a whole number from 0 to 86400"),
        (
            [{"type": "rfc2136", "server": "ns1.example.com:x"}], "challenges[0].server: contains 'ns1.example.com:x'",
            "use an address such as 192.0.2.53, 192.0.2.53:5353 or [2001:db8::53]:5353",
        ),
        (
            [{"type": "rfc2136", "resolvers": ["dns.example"]}], "challenges[0].resolvers: contains 'dns.example'",
            "use an address such as 192.0.2.53, 192.0.2.53:5353 or [2001:db8::53]:5353",
        ),
        (
            [{"type": "rfc2136", "zone": "a" * 501}], "challenges[0].zone: is too long, or not one line",
            "use a text of one line, at most 500 characters",
        ),
        ([{"type": "rfc2136", "keys": [7]}], "challenges[0].keys[0]: is a whole number", 'use an object such as {"secret": "tsig_key"}'),
        ([{"type": "rfc2136", "zone": "a..b"}], "challenges[0].zone: contains 'a..b'", "use a domain name"),
        (
            [{"type": "rfc2136", "keys": [{"secret": "other"}]}], "challenges[0]: secret other: is not given",
            "give the issuer the secret other as a file",
        ),
        (
            [{"type": "rfc2136", "keys": [{"secret": "api_token", "name": "k"}]}],
            "challenges[0]: secret api_token: is not a TSIG key of at least 16 bytes in base64",
            "tsig-keygen -a hmac-sha256 k > FILE",
        ),
        (
            [{"type": "rfc2136", "keys": [{"zone": "example.com"}]}],
            "challenges[0].keys[0].zone: is not a field of this type", "use 'zones'",
        ),
        ([{"type": "rfc2136", "keys": "x"}], "challenges[0].keys: is text", "use a list of at most 100 objects"),
        (
            [{"type": "command"}], "challenges[0].command: is not a command",
            "give the path of a program and its arguments, 1 to 50",
        ),
        (
            [{"type": "command", "command": "PROGRAM", "secrets": ["none"]}],
            "challenges[0].secrets: names none, which is not given", "give the issuer the secret none",
        ),
        (
            [{"type": "command", "command": "PROGRAM", "challenge": "tls-alpn-01"}],
            "challenges[0].challenge: is 'tls-alpn-01'", "use one of dns-01, http-01",
        ),
    ],
)  # fmt: skip
def test_a_mistake(entries: object, what: str, fix: str, program: str) -> None:
    given = json.loads(json.dumps(entries).replace("PROGRAM", program))
    with pytest.raises(ConfigError) as caught:
        check_challenges(given, SECRETS)
    assert (str(caught.value), caught.value.fix) == (what, fix)


def test_a_program_elsewhere(program: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_challenges([{"type": "command", "command": "/bin/sh"}], SECRETS)
    assert str(caught.value).startswith("challenges[0].command: '/bin/sh' is not a program that the control plane may")


def test_a_secret_that_is_gone(program: str, memory: SqliteDatabase) -> None:
    plane = plane_on(memory)
    parts = parts_of(plane, memory)
    for entry in ({"type": "rfc2136"}, {"type": "command", "command": program, "secrets": ["api_token"]}):
        with pytest.raises(ConfigError, match="is not given"):
            make_solver(parts, check_challenges([entry], SECRETS), {})


def test_the_library_is_missing(monkeypatch: pytest.MonkeyPatch, forget_modules: Callable[..., None]) -> None:
    forget_modules("certctrl.plane.challenges")
    monkeypatch.setitem(sys.modules, "dns", None)
    from certctrl.plane.challenges.making import check_challenges

    assert check_challenges([{"type": "plane-http"}], {})
    with pytest.raises(ConfigError, match="challenges of type rfc2136 need the Python package dnspython") as caught:
        check_challenges([{"type": "rfc2136"}], {})
    assert caught.value.fix == "pip install 'certctrl[plane]'"


def test_a_plane_loads_the_dns_library_only_for_entries_that_need_it() -> None:
    check = "import certctrl.plane.serve, sys; sys.exit('dns' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
    check = "import certctrl.plane.challenges.rfc2136_entry, sys; sys.exit('dns' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 1
