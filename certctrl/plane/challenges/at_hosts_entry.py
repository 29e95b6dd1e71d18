"""The fields of ``"type": "agent-http"`` and ``"agent-tls-alpn"``, and their solver."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from certctrl.plane.challenges.at_hosts import WAIT_SECONDS, HostSolver
from certctrl.plane.challenges.fields import Fields
from certctrl.plane.challenges.solver import HTTP_01, Proof
from certctrl.plane.challenges.solver_kind import SolverParts

LONGEST_WAIT = 3600.0


class HostKind:
    """Checks the fields of ``agent-http`` and ``agent-tls-alpn``, and makes the solver."""

    def __init__(self, kind: str) -> None:
        self._kind = kind

    def check(self, fields: Fields, secrets: Mapping[str, bytes]) -> dict[str, Any]:
        """Return the fields in full. Raises ConfigError."""
        found = {
            "devices": fields.texts("devices"),
            "wait_seconds": fields.number("wait_seconds", WAIT_SECONDS, 1, LONGEST_WAIT),
        }
        fields.finish()
        return found

    def make(self, settings: Mapping[str, Any], secrets: Mapping[str, bytes], parts: SolverParts) -> HostSolver:
        """Return the solver."""
        return HostSolver(
            self._kind,
            parts.database,
            parts.stream,
            parts.wall_now,
            user_id=parts.user_id,
            devices=settings["devices"],
            wait_seconds=settings["wait_seconds"],
            explain=_explain if self._kind == HTTP_01 else None,
        )


async def _explain(proof: Proof) -> str:
    from certctrl.plane.challenges.dns_lookup import DnsLookup  # only refusals need the DNS library
    from certctrl.plane.challenges.dns_network import RealDnsNetwork
    from certctrl.plane.challenges.explain_http import explain_http

    return await explain_http(DnsLookup(RealDnsNetwork()), proof)
