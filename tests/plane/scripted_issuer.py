"""An issuer for tests, of the kind ``scripted``: it issues from a CA of its own, or does what the test tells it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
from cryptography import x509

from certctrl.errors import ConfigError
from certctrl.plane.ca.domains import is_address
from certctrl.plane.ca.x509 import Authority, new_intermediate, new_root, pem_of, sign_leaf
from certctrl.plane.issuers.builtin import KIND as BUILTIN
from certctrl.plane.issuers.issuer import CertificateRequest, IssuedChain, IssuerContext, RenewalWindow

WALL = 1_790_000_000.0
Act = Callable[[CertificateRequest], Awaitable[IssuedChain]]


class ScriptedCa:
    """A CA that takes its next answer from ``script``, and issues if there is none."""

    def __init__(self, now: Callable[[], float] = lambda: WALL) -> None:
        self.now = now
        root = new_root("scripted root", not_before=WALL - 86_400, not_after=WALL + 1e9)
        self.root = root.pem
        self.authority = new_intermediate(root, "scripted CA", not_before=WALL - 86_400, not_after=WALL + 1e9)
        self.script: list[Act | Exception] = []
        self.requests: list[CertificateRequest] = []
        self.revocations: list[tuple[str, str, str]] = []
        self.revoke_script: list[Exception] = []
        self.facts: dict[str, str] = {"orders_left": "50"}

    async def issue(self, request: CertificateRequest) -> IssuedChain:
        """Do what the script says."""
        self.requests.append(request)
        step = self.script.pop(0) if self.script else self.sign
        if isinstance(step, Exception):
            raise step
        return await step(request)

    async def sign(self, request: CertificateRequest) -> IssuedChain:
        """Issue what is requested."""
        return self.signed(request)

    def signed(
        self, request: CertificateRequest, *, names: tuple[str, ...] = (), by: Authority | None = None, **more: object
    ) -> IssuedChain:
        """Return a chain for a request, or with something else in it."""
        csr, by = x509.load_der_x509_csr(request.csr_der), by or self.authority
        now = self.now()
        times = {"not_before": now - 60, "not_after": now + request.validity_seconds} | more
        leaf = sign_leaf(by, csr.public_key(), names or request.names, **times)  # type: ignore[arg-type]
        return IssuedChain(certificate_pem=pem_of(leaf), chain_pem=self.authority.pem)

    async def revoke(self, certificate_pem: str, chain_pem: str, reason: str) -> None:
        """Note it, or fail as the script says."""
        self.revocations.append((certificate_pem, chain_pem, reason))
        if self.revoke_script:
            raise self.revoke_script.pop(0)

    async def renewal_window(self, certificate_pem: str, chain_pem: str) -> RenewalWindow | None:
        """Return None."""
        return None

    async def check(self) -> dict[str, str]:
        """Return the facts."""
        return self.facts


class ScriptedKind:
    """The kind; it counts the issuers that it makes."""

    def __init__(self, ca: ScriptedCa) -> None:
        self.ca = ca
        self.made: list[tuple[Mapping[str, Any], Mapping[str, bytes], IssuerContext]] = []

    def check_settings(self, settings: Mapping[str, Any], secrets: Mapping[str, bytes]) -> dict[str, Any]:
        """Return the settings; only ``url`` is allowed."""
        for name in set(settings) - {"url"}:
            raise ConfigError("is unknown", path=name, fix="remove it")
        return {"url": "https://ca.example"} | dict(settings)

    def make(self, settings: Mapping[str, Any], secrets: Mapping[str, bytes], context: IssuerContext) -> ScriptedCa:
        """Return the CA."""
        self.made.append((settings, secrets, context))
        return self.ca


@contextmanager
def scripted(now: Callable[[], float] = lambda: WALL) -> Iterator[ScriptedKind]:
    """Install the kind for the block."""
    kind = ScriptedKind(ScriptedCa(now))
    with pytest.MonkeyPatch.context() as patch:
        kinds = {"builtin": BUILTIN, "scripted": kind}
        patch.setattr("certctrl.plane.issuers.registry.installed_kinds", lambda: kinds)
        yield kind


def is_for(pem: str, names: tuple[str, ...]) -> bool:
    """Return whether a certificate is for exactly these names."""
    found = x509.load_pem_x509_certificate(pem.encode()).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    texts = [*found.value.get_values_for_type(x509.DNSName), *map(str, found.value.get_values_for_type(x509.IPAddress))]
    return sorted(texts) == sorted(names) and all(
        is_address(name) == (name not in found.value.get_values_for_type(x509.DNSName)) for name in names
    )
