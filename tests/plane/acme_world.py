"""An ACME issuer in a plane in memory, with the solver and the wall clock of the test."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

import attrs
import pytest
import trio
from cryptography import x509
from scripted_ca import DIRECTORY_URL, Reply, ScriptedCa, new_csr

from certctrl.plane.ca.issuer import inline
from certctrl.plane.challenges.solver import Failures, Proof, Solver
from certctrl.plane.core import Plane
from certctrl.plane.issuers import acme
from certctrl.plane.issuers.acme import KIND, AcmeIssuer
from certctrl.plane.issuers.issuer import CertificateRequest, IssuedChain, IssuerContext, IssuerError

CHALLENGES = [{"type": "plane-http"}]
NAME = "le"


class CrashError(Exception):
    """The process ends here."""


@attrs.define
class RecordingSolver:
    """A solver that only records; ``troubles`` are raised, one for each call of a method."""

    kinds: tuple[str, ...] = ("dns-01", "http-01", "tls-alpn-01")
    log: list[tuple[str, tuple[str, ...]]] = attrs.field(factory=list)
    published: set[str] = attrs.field(factory=set)
    """Tokens."""
    troubles: dict[str, list[IssuerError]] = attrs.field(factory=dict)
    refused: frozenset[str] = frozenset()
    """Names that it cannot prove."""
    hangs: bool = False
    """Whether taking proofs back never ends."""
    dead: bool = False
    """Whether the process has ended, so that nothing is done any more."""

    def solves(self, kind: str, identifier: str, wildcard: bool) -> bool:
        return kind in self.kinds and identifier not in self.refused

    async def present(self, proofs: Sequence[Proof]) -> None:
        self._note("present", proofs)
        self.published |= {one.token for one in proofs}

    async def clean_up(self, proofs: Sequence[Proof]) -> Failures:
        self._note("clean_up", proofs)
        if self.hangs:
            await trio.sleep_forever()
        self.published -= {one.token for one in proofs}
        return {}

    async def explain(self, proof: Proof) -> str:
        self._note("explain", [proof])
        return f"asked {proof.identifier}, nothing came"

    def _note(self, word: str, proofs: Sequence[Proof]) -> None:
        if self.dead:
            raise CrashError
        self.log.append((word, tuple(f"{one.kind} {one.identifier}" for one in proofs)))
        if self.troubles.get(word):
            raise self.troubles[word].pop(0)


@attrs.define
class AcmeWorld:
    """A plane, and the means to make ACME issuers in it."""

    plane: Plane
    wall_now: Callable[[], float]
    solver: RecordingSolver = attrs.field(factory=RecordingSolver)
    real_solver: Solver | None = None
    """Used instead if it is given."""
    memos: list[str] = attrs.field(factory=list)

    def issuer(self, secrets: Mapping[str, bytes] | None = None, **settings: object) -> AcmeIssuer:
        """Return an issuer, as a process makes it that has just started."""
        given = {"directory_url": DIRECTORY_URL, "terms_agreed": True, "challenges": CHALLENGES} | settings
        checked = KIND.check_settings(given, secrets or {})
        context = IssuerContext(
            NAME,
            database=self.plane.database,
            keyring=self.plane.keyring,
            settings=self.plane.settings,
            wall_now=self.wall_now,
            offload=inline,
            solvers=lambda challenges, secrets, request: self.real_solver or self.solver,
        )
        return KIND.make(checked, secrets or {}, context)

    def request(self, *names: str, csr_der: bytes = b"", memo: str = "", **more: Any) -> CertificateRequest:
        """Return a request whose memos are recorded."""

        async def remember(memo: str) -> None:
            await trio.lowlevel.checkpoint()
            if self.solver.dead:
                raise CrashError
            self.memos.append(memo)

        return CertificateRequest(
            names=names, csr_der=csr_der or new_csr(names), validity_seconds=0, memo=memo, remember=remember, **more
        )


def make_world(wall_now: Callable[[], float], plane: Plane | None = None) -> AcmeWorld:
    """Return a world, in a new plane by default; close its plane."""
    plane = plane or Plane.open(wall_now=wall_now)
    with plane.database.transaction():
        plane.database.run(
            "INSERT INTO issuers (name, kind, created_at, updated_at) VALUES (?, 'acme', 0, 0)"
            " ON CONFLICT (name) DO NOTHING",
            NAME,
        )
    return AcmeWorld(plane, wall_now)


async def refused(world: AcmeWorld, *names: str, issuer: AcmeIssuer | None = None, **more: Any) -> IssuerError:
    """Return the error of an order."""
    with pytest.raises(IssuerError) as caught:
        await (issuer or world.issuer()).issue(world.request(*(names or ("a.test",)), **more))
    assert str(caught.value).isprintable() and caught.value.fix
    return caught.value


def names_of(issued: IssuedChain) -> set[str]:
    found = x509.load_pem_x509_certificate(issued.certificate_pem.encode())
    sans = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return {*sans.get_values_for_type(x509.DNSName), *map(str, sans.get_values_for_type(x509.IPAddress))}


def once(path: str, reply: Reply) -> Callable[[str, str, Any], Reply | None]:
    """Return a hook that replaces the first answer to a path."""
    left = [reply]
    return lambda method, asked, payload: left.pop() if asked.startswith(path) and left else None


def always(path: str, reply: Reply) -> Callable[[str, str, Any], Reply | None]:
    return lambda method, asked, payload: reply if asked.startswith(path) else None


def connect_to(ca: ScriptedCa, patch: pytest.MonkeyPatch) -> ScriptedCa:
    """Make ACME issuers connect to a scripted CA."""

    @contextlib.asynccontextmanager
    async def connected(*args: object) -> AsyncIterator[ScriptedCa]:
        yield ca

    patch.setattr(acme, "connected", connected)
    return ca
