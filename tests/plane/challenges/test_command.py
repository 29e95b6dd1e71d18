"""Challenges through programs of the plane's host: what they get, how they end, and what is said."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from fake_dns import PRIMARY, RESOLVER, FakeDns
from shared_solver import shared

from certctrl.plane.challenges.command import CommandKind, CommandSolver
from certctrl.plane.challenges.dns_lookup import DnsLookup
from certctrl.plane.challenges.solver import Proof, dns_record_value
from certctrl.plane.commands import DIRECTORIES_VARIABLE
from certctrl.plane.issuers.issuer import IssuerError
from certctrl.plane.setting_hooks import to_store
from certctrl.plane.storage.sqlite import SqliteDatabase

NAME = "_acme-challenge.www.example.com"
Make = Callable[..., CommandSolver]


def proof(identifier: str = "www.example.com", token: str = "t1", kind: str = "dns-01") -> Proof:
    return Proof(kind=kind, identifier=identifier, token=token, key_authorization=f"{token}.account")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of the programs that the plane may run."""
    directory = tmp_path / "commands"
    directory.mkdir(mode=0o755)
    monkeypatch.setenv(DIRECTORIES_VARIABLE, str(directory))
    monkeypatch.setenv("SECRET_OF_THE_PLANE", "x")
    return directory


@pytest.fixture
def dns() -> FakeDns:
    return FakeDns().zone("example.com", PRIMARY)


@pytest.fixture
def make(place: Path, dns: FakeDns) -> Make:
    """Return ``make(script, fields…)``: a solver whose program is a shell script that knows its directory as HERE."""

    def build(script: str, *, given: dict[str, bytes] | None = None, **more: object) -> CommandSolver:
        path = place / "hook"
        path.write_text(f"#!/bin/sh\nHERE={place}\n{script}\n")
        path.chmod(0o755)
        entry = {"command": [str(path), "own"], "propagation": "none"} | more
        kind, given = CommandKind(), given or {}
        made = kind.make(to_store(kind.check(entry, "challenges[0]", given)), given, None)  # type: ignore[arg-type]
        return CommandSolver(made._settings, made._secrets, DnsLookup(dns, [RESOLVER]))

    return build


RECORD = 'echo "$@" >> $HERE/calls; env | sort > $HERE/env; cat > $HERE/stdin'


async def test_arguments_and_environment(make: Make, place: Path) -> None:
    """As lego's exec provider and certbot's hooks."""
    solver, proofs = make(RECORD), [proof(), proof("example.com", "t2")]
    await solver.present(proofs)
    value = dns_record_value(proofs[1])
    assert (place / "calls").read_text().splitlines() == [
        f"own present {NAME}. {dns_record_value(proofs[0])}",
        f"own present _acme-challenge.example.com. {value}",
    ]
    environment = dict(line.partition("=")[::2] for line in (place / "env").read_text().splitlines())
    assert {name: text for name, text in environment.items() if name.startswith(("CERT", "SECRET"))} == {
        "CERTCTRL_ACTION": "present", "CERTCTRL_CHALLENGE": "dns-01", "CERTBOT_DOMAIN": "example.com",
        "CERTBOT_VALIDATION": value, "CERTBOT_TOKEN": "t2", "CERTBOT_REMAINING_CHALLENGES": "0",
        "CERTBOT_ALL_DOMAINS": "www.example.com,example.com",
    }  # fmt: skip
    assert (place / "stdin").read_bytes() == b""
    await solver.clean_up(proofs[:1])
    assert (place / "calls").read_text().splitlines()[2] == f"own cleanup {NAME}. {dns_record_value(proofs[0])}"


async def test_a_pair_of_hooks_without_arguments(make: Make, place: Path) -> None:
    other = place / "cleanup"
    other.write_text(f'#!/bin/sh\necho "cleanup $#" >> {place}/calls\n')
    other.chmod(0o755)
    solver = make(RECORD, arguments="none", cleanup_command=str(other))
    await solver.present([proof()])
    await solver.clean_up([proof()])
    assert (place / "calls").read_text().splitlines() == ["own", "cleanup 0"]


async def test_http_01_by_a_program(make: Make, place: Path) -> None:
    one = proof(kind="http-01")
    solver = make(RECORD, challenge="http-01")
    assert (
        solver.kinds == ("http-01",)
        and solver.solves("http-01", "x", False)
        and not solver.solves("dns-01", "x", False)
    )
    await solver.present([one])
    assert (place / "calls").read_text() == "own present t1 t1.account\n"


async def test_secrets_are_files(make: Make, place: Path) -> None:
    script = 'cat $CERTCTRL_SECRET_API_TOKEN > $HERE/seen; echo "failed with t0k3n" >&2; exit 1'
    solver = make(script, given={"api_token": b"t0k3n", "other": b"x"}, secrets=["api_token"])
    with pytest.raises(IssuerError) as caught:
        await solver.present([proof()])
    assert (place / "seen").read_bytes() == b"t0k3n"
    assert "t0k3n" not in f"{caught.value} {caught.value.fix} {solver!r}"
    assert str(caught.value).endswith("hook present for www.example.com ended with status 1: failed with ***")


@pytest.mark.parametrize(
    ("script", "what", "fix", "permanent"),
    [
        ("echo no such zone >&2; exit 3", "ended with status 3: no such zone", "run it by hand", False),
        ("exit 78", "ended with status 78", "run it by hand", True),
        ("kill -9 $$", "was ended by signal 9", "run it by hand", False),
        ("sleep 600 & sleep 600", "did not end in time", "raise timeout_seconds of the entry, now 1", False),
        ("yes", "wrote more than 1048576 bytes", "run it by hand", False),
        ("exec /does/not/exist", "ended with status 127: ", "run it by hand", False),
    ],
)
async def test_a_program_that_fails(make: Make, script: str, what: str, fix: str, permanent: bool) -> None:
    solver = make(script, timeout_seconds=1 if "sleep" in script else 60)
    with pytest.raises(IssuerError) as caught:
        await solver.present([proof()])
    assert f"hook present for www.example.com {what}" in str(caught.value) and "\n" not in str(caught.value)
    assert caught.value.fix and caught.value.fix.startswith(fix) and caught.value.is_permanent is permanent


async def test_a_program_that_is_gone_or_unsafe(make: Make, place: Path) -> None:
    solver = make("exit 0")
    (place / "hook").chmod(0o777)
    with pytest.raises(IssuerError, match="can be changed by other users"):
        await solver.present([proof()])
    (place / "hook").unlink()
    with pytest.raises(IssuerError, match="No such file"):
        await solver.present([proof()])


async def test_cleaning_up_goes_on_after_failures_and_returns_them(make: Make, place: Path) -> None:
    solver = make('echo "$3" >> $HERE/calls; exit 5')
    failures = await solver.clean_up([proof(), proof("example.com")])
    assert {*failures} == {proof(), proof("example.com")}
    assert "cleanup for example.com" in str(failures[proof("example.com")])
    assert len((place / "calls").read_text().splitlines()) == 2


async def test_two_orders_share_a_proof(make: Make, place: Path) -> None:
    with closing(SqliteDatabase(None)) as memory:
        first, second = (shared(make(RECORD), memory, lambda: 1e9) for _ in range(2))
        for solver in (first, second):
            await solver.present([proof()])
        await first.clean_up([proof()])
        assert "cleanup" not in (place / "calls").read_text()
        await second.clean_up([proof()])
    assert (place / "calls").read_text().count("cleanup") == 1


async def test_the_dns_is_asked_before_the_ca(make: Make, dns: FakeDns, place: Path) -> None:
    solver = make("exit 0", propagation="authoritative", propagation_seconds=1)
    with pytest.raises(IssuerError, match=f"TXT {NAME} is not on every authoritative server after 1 s"):
        await solver.present([proof()])
    dns.records[NAME, "CNAME"] = ["x.example.com."]
    dns.records["x.example.com", "TXT"] = [f'"{dns_record_value(proof())}"']
    await solver.present([proof()])
    assert "with this value now" in await solver.explain(proof())


async def test_given_servers_are_asked(make: Make, dns: FakeDns) -> None:
    dns.own["192.0.2.77"] = {(NAME, "TXT"): [f'"{dns_record_value(proof())}"']}
    solver = make("exit 0", propagation="authoritative", authoritative=["192.0.2.77"])
    await solver.present([proof()])
    assert ("192.0.2.77", NAME, "TXT") in dns.asked
