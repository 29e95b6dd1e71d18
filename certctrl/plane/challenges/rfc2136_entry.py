"""The fields of ``"type": "rfc2136"``, and its solver."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from certctrl.errors import ConfigError
from certctrl.plane.challenges.dns_lookup import DnsLookup, name_of
from certctrl.plane.challenges.dns_network import DnsServer, RealDnsNetwork, server_of
from certctrl.plane.challenges.fields import Fields
from certctrl.plane.challenges.rfc2136 import Rfc2136Settings, Rfc2136Solver
from certctrl.plane.challenges.solver_kind import SolverParts
from certctrl.plane.challenges.tsig_keys import TsigKey, read_key
from certctrl.text import is_name, one_line

DEFAULT_KEY = "tsig_key"
"""The secret to use if ``keys`` is not set."""
_MAX_PORT = 65_535
PROPAGATION_SECONDS = 120


class Rfc2136Kind:
    """Checks the fields and makes the solver."""

    def check(self, fields: Fields, secrets: Mapping[str, bytes]) -> dict[str, Any]:
        """Return the fields in full. Raises ConfigError."""
        checked: dict[str, Any] = {
            "server": _server(fields),
            "zone": _zone(fields, "zone", fields.text("zone")),
            "keys": [_check_key(entry) for entry in fields.objects("keys")],
            "ttl": fields.whole("ttl", 60, 0, 86_400),
            **check_waiting(fields),
        }
        fields.finish()
        if not checked["keys"] and DEFAULT_KEY in secrets:
            checked["keys"] = [{"secret": DEFAULT_KEY, "name": "", "algorithm": "", "zones": []}]
        try:
            read_keys(checked["keys"], secrets)
        except ConfigError as error:
            raise ConfigError(error.reason, path=f"{fields.path}: secret {error.path}", fix=error.fix) from None
        return checked

    def make(self, settings: Mapping[str, Any], secrets: Mapping[str, bytes], parts: SolverParts) -> Rfc2136Solver:
        """Return the solver."""
        chosen = Rfc2136Settings(
            server=settings["server"],
            zone=settings["zone"],
            authoritative=authoritative_of(settings),
            ttl=settings["ttl"],
            propagation_seconds=settings["propagation_seconds"],
        )
        return Rfc2136Solver(chosen, read_keys(settings["keys"], secrets), make_lookup(settings))


def check_waiting(fields: Fields) -> dict[str, Any]:
    """Return the fields of the propagation check: which servers are asked, and for how long."""
    return {
        "resolvers": _servers(fields, "resolvers"),
        "authoritative": _servers(fields, "authoritative"),
        "port": fields.whole("port", 53, 1, _MAX_PORT),
        "propagation_seconds": fields.number("propagation_seconds", PROPAGATION_SECONDS, 1, 3600),
    }


def make_lookup(settings: Mapping[str, Any]) -> DnsLookup:
    """Return the lookup of fields of ``check_waiting``."""
    return DnsLookup(RealDnsNetwork(), tuple(map(server_of, settings["resolvers"])), settings["port"])


def authoritative_of(settings: Mapping[str, Any]) -> tuple[DnsServer, ...]:
    """Return the servers of fields of ``check_waiting`` that must have a record."""
    return tuple(map(server_of, settings["authoritative"]))


def read_keys(entries: list[dict[str, Any]], secrets: Mapping[str, bytes]) -> list[TsigKey]:
    """Return the keys. Raises ConfigError if a secret is missing or not a key."""
    keys = []
    for entry in entries:
        name = entry["secret"]
        if name not in secrets:
            raise ConfigError("is not given", path=name, fix=f"give the issuer the secret {name} as a file")
        key = read_key(
            secrets[name], secret_name=name, name=entry["name"], algorithm=entry["algorithm"], zones=entry["zones"]
        )
        keys.append(key)
    return keys


def _check_key(fields: Fields) -> dict[str, Any]:
    found: dict[str, Any] = {
        "secret": fields.text("secret", DEFAULT_KEY),
        "name": _zone(fields, "name", fields.text("name")),
        "algorithm": fields.text("algorithm"),
        "zones": [_zone(fields, "zones", zone) for zone in fields.texts("zones")],
    }
    fields.finish()
    return found


def _server(fields: Fields) -> str:
    """Return the primary: an address with or without a port, or a host name."""
    text = fields.text("server")
    if not text or is_name(text):
        return text
    return _servers(Fields({"server": [text]}, fields.path), "server")[0]


def _servers(fields: Fields, field: str) -> list[str]:
    found = fields.texts(field)
    for text in found:
        try:
            server_of(text)
        except ValueError:
            fix = "use an address such as 192.0.2.53, 192.0.2.53:5353 or [2001:db8::53]:5353"
            raise fields.error(field, f"contains {one_line(text, 60)!r}", fix) from None
    return found


def _zone(fields: Fields, field: str, text: str) -> str:
    """Return a domain name in lower case. Raises ConfigError."""
    plain = text.rstrip(".").lower().removeprefix("*.")
    try:
        if plain:
            name_of(plain)
    except ValueError:
        raise fields.error(field, f"contains {one_line(text, 60)!r}", "use a domain name") from None
    return plain
