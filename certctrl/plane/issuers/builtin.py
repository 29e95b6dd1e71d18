"""The plane's own CA as an issuer of certificate signing requests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from certctrl.errors import ConfigError
from certctrl.plane.ca.issuer import BuiltinCa
from certctrl.plane.errors import CSR_REFUSED, ErrorResponse
from certctrl.plane.issuers.issuer import (
    CertificateRequest,
    IssuedChain,
    Issuer,
    IssuerContext,
    IssuerError,
    RenewalWindow,
)


class BuiltinIssuer:
    """Signs requests with the plane's own CA."""

    def __init__(self, ca: BuiltinCa) -> None:
        self._ca = ca

    async def issue(self, request: CertificateRequest) -> IssuedChain:
        """Return a certificate for the request's key and names."""
        try:
            issued = await self._ca.sign_csr(
                request.csr_der,
                request.names,
                validity_seconds=request.validity_seconds,
                must_staple=request.must_staple,
            )
        except ErrorResponse as error:
            about_request = error.key == CSR_REFUSED
            raise IssuerError(error.what, is_permanent=True, about_request=about_request) from None
        return IssuedChain(certificate_pem=issued.certificate_pem, chain_pem=issued.chain_pem)

    async def revoke(self, certificate_pem: str, chain_pem: str, reason: str) -> None:
        """Do nothing: the plane itself records revocations of its CA."""

    async def renewal_window(self, certificate_pem: str, chain_pem: str) -> RenewalWindow | None:
        """Return None: the built-in CA suggests no window."""
        return None

    async def check(self) -> dict[str, str]:
        """Return the fingerprint of the root."""
        return {"root_sha256": self._ca.root_fingerprint}


class BuiltinKind:
    """The kind of the plane's own CA; it has no settings."""

    def check_settings(self, settings: Mapping[str, Any], secrets: Mapping[str, bytes]) -> dict[str, Any]:
        """Return no settings; ConfigError for any."""
        for name in (*settings, *secrets):
            raise ConfigError("the control plane's own CA has no settings", path=name, fix=f"remove {name}")
        return {}

    def make(self, settings: Mapping[str, Any], secrets: Mapping[str, bytes], context: IssuerContext) -> Issuer:
        """Return the issuer; ConfigError without a CA."""
        if context.ca is None:
            raise ConfigError("there is no CA to issue with")
        return BuiltinIssuer(context.ca)


KIND = BuiltinKind()
