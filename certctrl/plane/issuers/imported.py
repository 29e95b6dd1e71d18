"""The kind ``import``: certificates that operators import; it issues nothing (``certctrl/plane/certificates/imports.py``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from certctrl.errors import ConfigError
from certctrl.plane.issuers.issuer import CertificateRequest, IssuedChain, IssuerContext, IssuerError, RenewalWindow


class ImportIssuer:
    """Refuses to issue and to revoke: only the owner of a certificate can."""

    async def issue(self, request: CertificateRequest) -> IssuedChain:
        """Raise IssuerError: the owner imports the next certificate."""
        fix = "get a new one from its CA, then cert-ctrl plane import"
        raise IssuerError(f"{request.names[0]} was imported", fix=fix, is_permanent=True)

    async def revoke(self, certificate_pem: str, chain_pem: str, reason: str) -> None:
        """Raise IssuerError: the owner revokes a certificate at its CA."""
        raise IssuerError("an imported certificate is revoked at its CA", fix="revoke it there", is_permanent=True)

    async def renewal_window(self, certificate_pem: str, chain_pem: str) -> RenewalWindow | None:
        """Return None."""
        return None

    async def check(self) -> dict[str, str]:
        """Return nothing: there is nothing to check."""
        return {}


class ImportKind:
    """The entry point ``import``."""

    def check_settings(self, settings: Mapping[str, Any], secrets: Mapping[str, bytes]) -> dict[str, Any]:
        """Return no settings; ConfigError for any."""
        for name in (*settings, *secrets):
            raise ConfigError("is not a setting of this kind", path=name, fix="leave it out")
        return {}

    def make(self, settings: Mapping[str, Any], secrets: Mapping[str, bytes], context: IssuerContext) -> ImportIssuer:
        """Return the issuer."""
        return ImportIssuer()


KIND = ImportKind()
