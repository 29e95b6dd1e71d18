"""CommandSolver: prove names with a program on the plane's host, like the hooks of other ACME clients.

The program runs once per proof (docs/challenges.md). Its own arguments are followed by ``present`` or ``cleanup``, the
name of the record or the token, and the value; the environment has the same, under the names of certbot's hooks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from certctrl import lean
from certctrl.errors import CertctrlError, ConfigError
from certctrl.plane.challenges.dns_lookup import DnsLookup, name_of
from certctrl.plane.challenges.dns_network import DnsServer
from certctrl.plane.challenges.entry import entry_class
from certctrl.plane.challenges.explain import explain_dns
from certctrl.plane.challenges.explain_http import explain_http
from certctrl.plane.challenges.propagation import wait_until_published
from certctrl.plane.challenges.rfc2136_entry import WAITING_HOOKS, WaitingEntry
from certctrl.plane.challenges.solver import DNS_01, HTTP_01, Failures, Proof, dns_record_name, dns_record_value
from certctrl.plane.challenges.solver_kind import SolverParts
from certctrl.plane.commands import check_program, check_secret_name, run_program
from certctrl.plane.issuers.issuer import IssuerError
from certctrl.plane.setting_hooks import choice, field_error, number, texts
from certctrl.text import one_line

DEFAULT_SECONDS = 120
MAX_SECONDS = 3600
_MAX_ARGUMENTS = 50
_PERMANENT = frozenset({64, 65, 77, 78})


@lean.frozen(kw_only=True)
class CommandSettings:
    """The program and how it is called."""

    kind: str
    """The type of challenge that it answers: dns-01 or http-01."""
    argv: tuple[str, ...]
    cleanup_argv: tuple[str, ...] = ()
    """A separate program that removes the answers, run without further arguments; empty: the same program."""
    hook: bool = False
    """Whether programs get only the environment and no further arguments, like certbot's hooks."""
    seconds: float = DEFAULT_SECONDS
    waits: bool = True
    """Whether to wait until all authoritative servers have the record before the CA validates."""
    authoritative: tuple[DnsServer, ...] = ()
    propagation_seconds: float = 120.0


class CommandSolver:
    """Answers one type of challenge by a program."""

    def __init__(self, settings: CommandSettings, secrets: Mapping[str, bytes], lookup: DnsLookup) -> None:
        self.kinds: tuple[str, ...] = (settings.kind,)
        self._settings = settings
        self._secrets = dict(secrets)
        self._lookup = lookup

    def __repr__(self) -> str:
        return f"CommandSolver({self._settings.argv[0]})"

    def solves(self, kind: str, identifier: str, wildcard: bool) -> bool:
        """Return whether it is the type of challenge that the program answers."""
        return kind == self._settings.kind

    async def present(self, proofs: Sequence[Proof]) -> None:
        """Run the program for each proof, then wait for the DNS. Raises IssuerError."""
        for left, proof in zip(range(len(proofs) - 1, -1, -1), proofs, strict=True):
            await self._run("present", proof, proofs, left)
        if self._settings.kind == DNS_01 and self._settings.waits:
            await self._wait(proofs)

    async def clean_up(self, proofs: Sequence[Proof]) -> Failures:
        """Run the program for each proof; return its failures."""
        failures: dict[Proof, CertctrlError] = {}
        for left, proof in zip(range(len(proofs) - 1, -1, -1), proofs, strict=True):
            try:
                await self._run("cleanup", proof, proofs, left)
            except IssuerError as error:
                failures[proof] = error
        return failures

    async def explain(self, proof: Proof) -> str:
        """Return what a CA finds for a proof."""
        if proof.kind == DNS_01:
            return await explain_dns(self._lookup, proof, self._settings.authoritative)
        return await explain_http(self._lookup, proof)

    async def _wait(self, proofs: Sequence[Proof]) -> None:
        for proof in dict.fromkeys(proofs):
            target = (await self._lookup.follow(name_of(dns_record_name(proof.identifier)))).target
            servers: Sequence[DnsServer] = self._settings.authoritative
            if not servers:
                zone = await self._lookup.zone_of(target)
                servers = await self._lookup.servers_of(zone.name) if zone is not None else ()
            wanted = {target: [dns_record_value(proof)]}
            await wait_until_published(self._lookup.network, servers, wanted, self._settings.propagation_seconds)

    async def _run(self, action: str, proof: Proof, proofs: Sequence[Proof], left: int) -> None:
        """Run the program for one proof. Raises IssuerError."""
        settings = self._settings
        own = settings.cleanup_argv if action == "cleanup" and settings.cleanup_argv else settings.argv
        argv = [*own, *(() if settings.hook else arguments(action, proof))]
        try:
            done = await run_program(
                argv,
                seconds=settings.seconds,
                environment=environment(action, proof, proofs, left),
                secrets=self._secrets,
            )
        except CertctrlError as error:
            raise IssuerError(error.what, fix=error.fix) from None
        if done.status == 0 and not done.timed_out:
            return
        what = f"{own[0]} {action} for {proof.identifier} {done.ending}"
        fix = f"run it by hand on the control plane's host: {' '.join((own[0], *arguments(action, proof)))}"
        if done.timed_out:
            fix = f"raise timeout_seconds of the entry, now {settings.seconds:g}"
        raise IssuerError(what, fix=one_line(fix, 400), is_permanent=done.status in _PERMANENT and not done.timed_out)


def arguments(action: str, proof: Proof) -> tuple[str, str, str]:
    """Return the last arguments of a program: the action, the name of the record or the token, and the value."""
    if proof.kind == DNS_01:
        return action, f"{dns_record_name(proof.identifier)}.", dns_record_value(proof)
    return action, proof.token, proof.key_authorization


def environment(action: str, proof: Proof, proofs: Sequence[Proof], left: int) -> dict[str, str]:
    """Return the environment of a program; ``left`` proofs follow this one."""
    value = arguments(action, proof)[2]
    return {
        "CERTCTRL_ACTION": action,
        "CERTCTRL_CHALLENGE": proof.kind,
        "CERTBOT_DOMAIN": proof.identifier,
        "CERTBOT_VALIDATION": value,
        "CERTBOT_TOKEN": proof.token,
        "CERTBOT_REMAINING_CHALLENGES": str(left),
        "CERTBOT_ALL_DOMAINS": ",".join(dict.fromkeys(one.identifier for one in proofs)),
    }


@lean.frozen(kw_only=True)
class CommandEntry(WaitingEntry):
    """An entry with a program."""

    challenge: str = DNS_01
    command: tuple[str, ...] = ()
    cleanup_command: tuple[str, ...] = ()
    arguments: str = "append"
    timeout_seconds: float = DEFAULT_SECONDS
    secrets: tuple[str, ...] = ()
    propagation: str = "authoritative"


_ENTRY = entry_class(
    CommandEntry,
    {
        "challenge": choice((DNS_01, HTTP_01)),
        "command": texts,
        "cleanup_command": texts,
        "arguments": choice(("append", "none")),
        "timeout_seconds": number(1, MAX_SECONDS),
        "secrets": texts,
        "propagation": choice(("authoritative", "none")),
        **WAITING_HOOKS,
    },
)


class CommandKind:
    """Checks entries of ``"type": "command"`` and makes their solver."""

    def check(self, given: Mapping[str, Any], path: str, secrets: Mapping[str, bytes]) -> CommandEntry:
        """Return the entry. Raises ConfigError."""
        entry = _ENTRY.given(given, path)
        _check_program(entry.command, path, "command")
        if entry.cleanup_command:
            _check_program(entry.cleanup_command, path, "cleanup_command")
        for name in entry.secrets:
            check_secret_name(name)
            if name not in secrets:
                what, fix = f"names {name}, which is not given", f"give the issuer the secret {name}"
                raise field_error(path, "secrets", what, fix)
        return entry

    def make(self, settings: Mapping[str, Any], secrets: Mapping[str, bytes], parts: SolverParts) -> CommandSolver:
        """Return the solver. Raises ConfigError if a secret is missing."""
        entry = _ENTRY.stored(settings)
        missing = [name for name in entry.secrets if name not in secrets]
        if missing:
            raise ConfigError("is not given", path=missing[0], fix=f"give the issuer the secret {missing[0]}")
        chosen = CommandSettings(
            kind=entry.challenge,
            argv=entry.command,
            cleanup_argv=entry.cleanup_command,
            hook=entry.arguments == "none",
            seconds=entry.timeout_seconds,
            waits=entry.propagation == "authoritative",
            authoritative=entry.authoritative_servers,
            propagation_seconds=entry.propagation_seconds,
        )
        return CommandSolver(chosen, {name: secrets[name] for name in entry.secrets}, entry.lookup)


def _check_program(argv: Sequence[str], path: str, field: str) -> None:
    if not 0 < len(argv) <= _MAX_ARGUMENTS:
        fix = f"give the path of a program and its arguments, 1 to {_MAX_ARGUMENTS}"
        raise field_error(path, field, "is not a command", fix)
    try:
        check_program(argv[0])
    except ConfigError as error:
        raise field_error(path, field, error.reason, error.fix or "install the program") from None
