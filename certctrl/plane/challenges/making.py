"""Check the list ``challenges`` of an issuer's settings, and make its solver.

The first entry whose ``domains`` cover a name proves it; ``type`` selects the solver. The modules of a type are imported
only if an entry uses it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from secrets import token_hex
from typing import Any

import attrs

from certctrl.errors import ConfigError, install_extra
from certctrl.plane.challenges.chosen import Rule
from certctrl.plane.challenges.entry import EXAMPLE
from certctrl.plane.challenges.shared import SharedSolver
from certctrl.plane.challenges.solver import HTTP_01, TLS_ALPN_01
from certctrl.plane.challenges.solver_kind import SolverKind, SolverParts
from certctrl.plane.issuers.issuer import CertificateRequest
from certctrl.plane.setting_hooks import Unfit, choice, field_error, to_store
from certctrl.text import kind_of, one_line

MAX_ENTRIES = 50
TYPES = ("rfc2136", "command", "plane-http", "agent-http", "agent-tls-alpn")


def kind_named(name: str) -> SolverKind:
    """Return the kind of solver of one of ``TYPES``. Raises ConfigError if its library is not installed."""
    try:
        return _kind(name)
    except ModuleNotFoundError as error:
        if error.name != "dns":
            raise
        what = f"challenges of type {name} need the Python package dnspython"
        raise ConfigError(what, fix=install_extra("plane")) from None


def _kind(name: str) -> SolverKind:
    match name:
        case "rfc2136":
            from certctrl.plane.challenges.rfc2136_entry import Rfc2136Kind

            return Rfc2136Kind()
        case "command":
            from certctrl.plane.challenges.command import CommandKind

            return CommandKind()
        case "plane-http":
            from certctrl.plane.challenges.plane_http import PlaneHttpKind

            return PlaneHttpKind()
        case "agent-http" | "agent-tls-alpn":
            from certctrl.plane.challenges.at_hosts_entry import HostKind

            return HostKind(HTTP_01 if name == "agent-http" else TLS_ALPN_01)
    raise ConfigError(f"{one_line(name)!r} is not a type of challenges", fix=f"use one of {', '.join(TYPES)}")


def check_challenges(challenges: Any, secrets: Mapping[str, bytes]) -> list[dict[str, Any]]:
    """Return the entries in full. Raises ConfigError with the field and the fix."""
    if not isinstance(challenges, list) or not challenges:
        what = "is empty" if challenges == [] else f"is {kind_of(challenges)}"
        fix = 'use a list such as [{"type": "plane-http"}]'
        raise ConfigError(what, path="challenges", fix=fix)
    if len(challenges) > MAX_ENTRIES:
        raise ConfigError(f"has more than {MAX_ENTRIES} entries", path="challenges", fix="use fewer")
    return [_check_entry(entry, f"challenges[{index}]", secrets) for index, entry in enumerate(challenges)]


def make_solver(
    parts: SolverParts,
    challenges: Sequence[Mapping[str, Any]],
    secrets: Mapping[str, bytes],
    request: CertificateRequest | None = None,
) -> SharedSolver:
    """Return the solver of entries of ``check_challenges``, for an order's request or to take proofs back.

    Raises ConfigError if a secret is missing or invalid.
    """
    rules, holder = [], ""
    if request is not None:
        parts = attrs.evolve(parts, user_id=request.user_id)
        holder = f"order {request.order_id or token_hex(8)}"  # a request without an order shares with no other
    for entry in challenges:
        solver = kind_named(entry["type"]).make(entry, secrets, parts)
        rules.append(Rule(entry["type"], tuple(entry["domains"]), solver))
    return SharedSolver(rules, parts.database, parts.published, issuer=parts.issuer, holder=holder)


def _check_entry(entry: Any, path: str, secrets: Mapping[str, bytes]) -> dict[str, Any]:
    if not isinstance(entry, Mapping):
        raise ConfigError(f"is {kind_of(entry)}", path=path, fix=f"use an object such as {EXAMPLE}")
    try:
        name = choice(TYPES)(entry.get("type", ""), str)
    except Unfit as unfit:
        raise field_error(path, "type", unfit.what, unfit.fix) from None
    return to_store(kind_named(name).check(entry, path, secrets))
