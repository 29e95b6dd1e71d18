"""http-01 answered by the plane itself, for names that lead to the plane or to a proxy in front of it.

The answers are in the database, so any plane of a fleet answers. ``answer_challenges`` is a tiny listener of plain HTTP
that serves these answers and nothing else; the plane's listener without TLS serves them, too.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import trio

from certctrl.errors import CertctrlError
from certctrl.net.challenge_listener import answer_http01
from certctrl.plane.challenges.entry import Entry, entry_class
from certctrl.plane.challenges.solver import HTTP_01, Failures, Proof
from certctrl.plane.challenges.solver_kind import SolverParts
from certctrl.plane.storage.database import Database

log = logging.getLogger("certctrl.Plane")

ANSWER_SECONDS = 86_400.0
"""Lifetime of an answer that is never withdrawn."""
CONNECTIONS = 128
CONNECTIONS_PER_ADDRESS = 64
_TOKEN = re.compile(r"[A-Za-z0-9_-]{1,200}", re.ASCII)


class PlaneHttpSolver:
    """Answers http-01 from the plane's database."""

    kinds: tuple[str, ...] = (HTTP_01,)

    def __init__(
        self,
        database: Database,
        wall_now: Callable[[], float],
        explain: Callable[[Proof], Awaitable[str]],
    ) -> None:
        """``explain``: asks as a CA does."""
        self._db = database
        self._wall_now = wall_now
        self._explain = explain

    def solves(self, kind: str, identifier: str, wildcard: bool) -> bool:
        """Return whether it is http-01 for a name; http-01 cannot prove wildcards."""
        return kind == HTTP_01 and not wildcard

    async def present(self, proofs: Sequence[Proof]) -> None:
        """Store the answers; every plane on the database serves them from now on."""
        await self._db.work(self._store, proofs)

    async def clean_up(self, proofs: Sequence[Proof]) -> Failures:
        """Delete the answers."""
        await self._db.work(self._delete, proofs)
        return {}

    async def explain(self, proof: Proof) -> str:
        """Return what each address of the name answers."""
        return await self._explain(proof)

    def _store(self, proofs: Sequence[Proof]) -> None:
        for proof in proofs:
            self._db.run(
                "INSERT INTO http_challenges (token, key_authorization, identifier, expires_at) VALUES (?, ?, ?, ?)"
                " ON CONFLICT (token) DO UPDATE SET key_authorization = excluded.key_authorization,"
                " identifier = excluded.identifier, expires_at = excluded.expires_at",
                proof.token,
                proof.key_authorization,
                proof.identifier,
                self._wall_now() + ANSWER_SECONDS,
            )

    def _delete(self, proofs: Sequence[Proof]) -> None:
        for proof in proofs:
            self._db.run("DELETE FROM http_challenges WHERE token = ?", proof.token)


_ENTRY = entry_class(Entry, {})


class PlaneHttpKind:
    """Checks entries of ``"type": "plane-http"`` and makes their solver."""

    def check(self, given: Mapping[str, Any], path: str, secrets: Mapping[str, bytes]) -> Entry:
        """Return the entry, which has no fields of its own. Raises ConfigError."""
        return _ENTRY.given(given, path)

    def make(self, settings: Mapping[str, Any], secrets: Mapping[str, bytes], parts: SolverParts) -> PlaneHttpSolver:
        """Return the solver."""
        return PlaneHttpSolver(parts.database, parts.wall_now, _explain)


async def _explain(proof: Proof) -> str:
    from certctrl.plane.challenges.dns_lookup import DnsLookup  # only refusals need the DNS library
    from certctrl.plane.challenges.dns_network import RealDnsNetwork
    from certctrl.plane.challenges.explain_http import explain_http

    return await explain_http(DnsLookup(RealDnsNetwork()), proof)


def is_token(text: str) -> bool:
    """Return whether text can be the token of a challenge."""
    return _TOKEN.fullmatch(text) is not None


def stored_answer(database: Database, token: str, now: float) -> str:
    """Return the key authorization of a token; empty: there is none, or it has expired. Runs in a unit of work."""
    row = database.one("SELECT key_authorization, expires_at FROM http_challenges WHERE token = ?", token)
    return "" if row is None or row["expires_at"] <= now else str(row["key_authorization"])


def delete_expired(database: Database, now: float) -> None:
    """Delete expired answers, which were never withdrawn. Runs in a unit of work."""
    database.run("DELETE FROM http_challenges WHERE expires_at <= ?", now)


async def answer_challenges(
    listeners: Sequence[trio.SocketListener], database: Database, wall_now: Callable[[], float]
) -> None:
    """Answer CAs at some listeners until cancelled."""

    async def respond(token: str) -> tuple[int, bytes]:
        token = token.partition("?")[0]
        if not is_token(token):
            return 404, b""
        try:
            answer = await database.work(stored_answer, database, token, wall_now())
        except CertctrlError:  # the database is away; a CA asks again
            return 503, b""
        except Exception:  # isolate failing requests
            log.exception("a request failed")
            return 500, b""
        return (200, answer.encode("ascii")) if answer else (404, b"")

    await answer_http01(listeners, respond, connections=CONNECTIONS, per_address=CONNECTIONS_PER_ADDRESS)
