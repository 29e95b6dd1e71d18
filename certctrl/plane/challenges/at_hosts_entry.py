"""The fields of ``"type": "agent-http"`` and ``"agent-tls-alpn"``, and their solver."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from certctrl import lean
from certctrl.plane.challenges.at_hosts import WAIT_SECONDS, HostSolver
from certctrl.plane.challenges.entry import Entry, entry_class
from certctrl.plane.challenges.solver import HTTP_01, Proof
from certctrl.plane.challenges.solver_kind import SolverParts
from certctrl.plane.setting_hooks import number, texts

MAX_WAIT = 3600.0


@lean.frozen(kw_only=True)
class HostEntry(Entry):
    """An entry that agents answer."""

    devices: tuple[str, ...] = ()
    """Names or ids of the devices that are asked; empty: those that the certificate is assigned to."""
    wait_seconds: float = WAIT_SECONDS


_ENTRY = entry_class(HostEntry, {"devices": texts, "wait_seconds": number(1, MAX_WAIT)})


class HostKind:
    """Checks entries of ``agent-http`` and ``agent-tls-alpn``, and makes their solver."""

    def __init__(self, kind: str) -> None:
        self._kind = kind

    def check(self, given: Mapping[str, Any], path: str, secrets: Mapping[str, bytes]) -> HostEntry:
        """Return the entry. Raises ConfigError."""
        return _ENTRY.given(given, path)

    def make(self, settings: Mapping[str, Any], secrets: Mapping[str, bytes], parts: SolverParts) -> HostSolver:
        """Return the solver."""
        entry = _ENTRY.stored(settings)
        return HostSolver(
            self._kind,
            parts.database,
            parts.stream,
            parts.wall_now,
            user_id=parts.user_id,
            devices=entry.devices,
            wait_seconds=entry.wait_seconds,
            explain=_explain if self._kind == HTTP_01 else None,
        )


async def _explain(proof: Proof) -> str:
    from certctrl.plane.challenges.dns_lookup import DnsLookup  # only refusals need the DNS library
    from certctrl.plane.challenges.dns_network import RealDnsNetwork
    from certctrl.plane.challenges.explain_http import explain_http

    return await explain_http(DnsLookup(RealDnsNetwork()), proof)
