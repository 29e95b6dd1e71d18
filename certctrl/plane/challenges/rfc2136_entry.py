"""The fields of ``"type": "rfc2136"``, and its solver."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from certctrl import lean
from certctrl.errors import ConfigError
from certctrl.plane.challenges.dns_lookup import DnsLookup, name_of
from certctrl.plane.challenges.dns_network import DnsServer, RealDnsNetwork, server_of
from certctrl.plane.challenges.entry import Entry, entry_class
from certctrl.plane.challenges.rfc2136 import Rfc2136Settings, Rfc2136Solver
from certctrl.plane.challenges.solver_kind import SolverParts
from certctrl.plane.challenges.tsig_keys import TsigKey, read_key
from certctrl.plane.setting_hooks import Hook, SettingsClass, line, number, text_like, texts_like, whole
from certctrl.text import is_name

DEFAULT_KEY = "tsig_key"
"""The secret to use if ``keys`` is not set."""
_MAX_PORT = 65_535
PROPAGATION_SECONDS = 120


@lean.frozen(kw_only=True)
class WaitingEntry(Entry):
    """The fields of the propagation check: which servers are asked, and for how long."""

    resolvers: tuple[str, ...] = ()
    authoritative: tuple[str, ...] = ()
    """The servers that must have a record; empty: those of the zone."""
    port: int = 53
    propagation_seconds: float = PROPAGATION_SECONDS

    @property
    def lookup(self) -> DnsLookup:
        """The lookup through its resolvers."""
        return DnsLookup(RealDnsNetwork(), tuple(map(server_of, self.resolvers)), self.port)

    @property
    def authoritative_servers(self) -> tuple[DnsServer, ...]:
        """The servers that must have a record, parsed."""
        return tuple(map(server_of, self.authoritative))


@lean.frozen(kw_only=True)
class KeyEntry:
    """One of ``keys``."""

    secret: str = DEFAULT_KEY
    name: str = ""
    algorithm: str = ""
    zones: tuple[str, ...] = ()


@lean.frozen(kw_only=True)
class Rfc2136Entry(WaitingEntry):
    """An entry whose records are made by DNS updates."""

    server: str = ""
    zone: str = ""
    keys: tuple[KeyEntry, ...] = ()
    ttl: int = 60


class Rfc2136Kind:
    """Checks entries and makes their solver."""

    def check(self, given: Mapping[str, Any], path: str, secrets: Mapping[str, bytes]) -> Rfc2136Entry:
        """Return the entry. Raises ConfigError."""
        entry = _ENTRY.given(given, path)
        if not entry.keys and DEFAULT_KEY in secrets:
            entry = attrs.evolve(entry, keys=(KeyEntry(),))
        try:
            read_keys(entry.keys, secrets)
        except ConfigError as error:
            raise ConfigError(error.reason, path=f"{path}: secret {error.path}", fix=error.fix) from None
        return entry

    def make(self, settings: Mapping[str, Any], secrets: Mapping[str, bytes], parts: SolverParts) -> Rfc2136Solver:
        """Return the solver."""
        entry = _ENTRY.stored(settings)
        chosen = Rfc2136Settings(
            server=entry.server,
            zone=entry.zone,
            authoritative=entry.authoritative_servers,
            ttl=entry.ttl,
            propagation_seconds=entry.propagation_seconds,
        )
        return Rfc2136Solver(chosen, read_keys(entry.keys, secrets), entry.lookup)


def read_keys(entries: Sequence[KeyEntry], secrets: Mapping[str, bytes]) -> list[TsigKey]:
    """Return the keys. Raises ConfigError if a secret is missing or not a key."""
    keys = []
    for entry in entries:
        name = entry.secret
        if name not in secrets:
            raise ConfigError("is not given", path=name, fix=f"give the issuer the secret {name} as a file")
        key = read_key(secrets[name], secret_name=name, name=entry.name, algorithm=entry.algorithm, zones=entry.zones)
        keys.append(key)
    return keys


# --- hooks ---------------------------------------------------------------------------------------------------------


def _server(text: str) -> str:
    server_of(text)
    return text


def _primary(text: str) -> str:
    """Return an address with or without a port, or a host name."""
    return text if not text or is_name(text) else _server(text)


def _zone(text: str) -> str:
    """Return a domain name in lower case."""
    plain = text.rstrip(".").lower().removeprefix("*.")
    if plain:
        name_of(plain)
    return plain


def _line_like(check: Any, fix: str) -> Hook:
    return lambda value, _: text_like(check, fix, line()(value, str))


_ADDRESS = "use an address such as 192.0.2.53, 192.0.2.53:5353 or [2001:db8::53]:5353"
_NAME = "use a domain name"
WAITING_HOOKS: Mapping[str, Hook] = {
    "resolvers": texts_like(_server, _ADDRESS),
    "authoritative": texts_like(_server, _ADDRESS),
    "port": whole(1, _MAX_PORT),
    "propagation_seconds": number(1, 3600),
}
_KEY = SettingsClass(
    KeyEntry,
    {"secret": line(), "name": _line_like(_zone, _NAME), "algorithm": line(), "zones": texts_like(_zone, _NAME)},
    unknown="is not a field of this type",
    example='{"secret": "tsig_key"}',
)
_ENTRY = entry_class(
    Rfc2136Entry,
    {
        "server": _line_like(_primary, _ADDRESS),
        "zone": _line_like(_zone, _NAME),
        "ttl": whole(0, 86_400),
        **WAITING_HOOKS,
    },
)
