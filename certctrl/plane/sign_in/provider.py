"""An OpenID provider: where to send browsers, and who comes back (OpenID Connect Core 1.0, §3.1; RFC 7636).

The ID token comes from the provider itself, over TLS, and is checked nevertheless: signature, issuer, audience, times,
nonce. Its keys are kept for an hour, and fetched again for an unknown one, at most twice a minute.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import math
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeGuard
from urllib.parse import quote, urlencode

import attrs
import jwt
import trio

from certctrl import lean
from certctrl.plane.access.roles import Role
from certctrl.plane.settings import OidcSettings
from certctrl.plane.sign_in.http import ProviderError, ProviderHttp, check_url
from certctrl.text import one_line

ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
"""Only with public keys: no token can be signed with the client secret or a public key as if it were one."""
MAX_KEYS = 50
_KEPT_SECONDS = 3600.0
_AGAIN_SECONDS = 30.0
"""Least seconds between two fetches of the keys."""
_LEEWAY = 60.0
_MAX_TOKEN = 32 * 1024
_MAX_CODE = 4096
_REQUIRED = ("exp", "iat", "iss", "aud", "sub")


class Http(Protocol):
    """Requests to the provider; both methods raise ProviderError."""

    async def get(self, url: str) -> dict[str, Any]:
        """Return the JSON object at a URL."""

    async def post(self, url: str, form: Mapping[str, str], headers: Mapping[str, str]) -> dict[str, Any]:
        """Return the JSON object that answers a form."""


@lean.frozen(kw_only=True)
class Attempt:
    """One sign-in, from the redirect to the provider until the browser is back."""

    state: str
    nonce: str
    verifier: str = attrs.field(repr=False)

    @classmethod
    def new(cls) -> Attempt:
        """Return a new attempt."""
        return cls(state=secrets.token_urlsafe(24), nonce=secrets.token_urlsafe(24), verifier=secrets.token_urlsafe(48))


@lean.frozen(kw_only=True)
class Person:
    """Who has signed in at the provider."""

    subject: str
    """The provider's lasting name for them: issuer and ``sub``."""
    name: str
    role: Role | None
    """None: none of the claims grants a role."""


class Provider:
    """The provider of the settings."""

    def __init__(self, settings: OidcSettings, http: Http, wall_now: Callable[[], float]) -> None:
        self._settings = settings
        self._http = http
        self._wall_now = wall_now
        self._metadata: tuple[float, dict[str, Any]] = (-math.inf, {})
        self._keys: dict[str, jwt.PyJWK] = {}
        self._keys_at = -math.inf

    @property
    def label(self) -> str:
        """What the sign-in page calls it."""
        return self._settings.label

    async def authorization_url(self, attempt: Attempt, redirect_uri: str) -> str:
        """Return the URL at which a person signs in; raises ProviderError."""
        endpoint = await self._endpoint("authorization_endpoint")
        challenge = base64.urlsafe_b64encode(hashlib.sha256(attempt.verifier.encode()).digest()).rstrip(b"=").decode()
        query = {
            "response_type": "code",
            "client_id": self._settings.client_id,
            "redirect_uri": redirect_uri,
            "scope": " ".join(self._settings.scopes),
            "state": attempt.state,
            "nonce": attempt.nonce,
            "code_challenge": challenge,
            "code_challenge_method": "S256",
        }
        return f"{endpoint}{'&' if '?' in endpoint else '?'}{urlencode(query)}"

    async def person(self, code: str, attempt: Attempt, redirect_uri: str) -> Person:
        """Redeem the code with which a browser came back; raises ProviderError."""
        form = {
            "grant_type": "authorization_code",
            "code": code[:_MAX_CODE],
            "redirect_uri": redirect_uri,
            "code_verifier": attempt.verifier,
        }
        login = f"{quote(self._settings.client_id, safe='')}:{quote(self._settings.client_secret, safe='')}"
        basic = {"authorization": f"Basic {base64.b64encode(login.encode()).decode()}"}
        answer = await self._http.post(await self._endpoint("token_endpoint"), form, basic)
        token = answer.get("id_token")
        if not isinstance(token, str) or len(token) > _MAX_TOKEN:
            raise ProviderError("the provider sent no ID token")
        return self._person(await self._claims(token, attempt.nonce))

    def _person(self, claims: Mapping[str, Any]) -> Person:
        settings = self._settings
        subject, name = claims.get("sub"), claims.get(settings.name_claim)
        if (
            not isinstance(subject, str)
            or not 0 < len(subject) <= 255
            or not (subject.isascii() and subject.isprintable())
        ):
            raise ProviderError("the ID token names nobody (sub)")
        if not isinstance(name, str) or not name:
            raise ProviderError(f"the ID token has no text in the claim {settings.name_claim}")
        if settings.name_claim == "email" and claims.get("email_verified") is False:
            raise ProviderError("the address of this account is not verified")
        found = claims.get(settings.role_claim)
        values = [found] if isinstance(found, str) else found if isinstance(found, list) else []
        granted = [
            Role(settings.roles[value]) for value in values if isinstance(value, str) and value in settings.roles
        ]
        role = max(granted, key=list(Role).index, default=None)
        return Person(subject=f"{settings.issuer} {subject}", name=name.lower(), role=role)

    # --- the ID token ---------------------------------------------------------------------------------------------

    async def _claims(self, token: str, nonce: str) -> dict[str, Any]:
        """Return the claims of an ID token that is valid now; raises ProviderError."""
        try:
            header = jwt.get_unverified_header(token)
            algorithm, key_id = header.get("alg"), header.get("kid", "")
            if algorithm not in ALGORITHMS:
                raise ProviderError(
                    f"the ID token is signed with {one_line(str(algorithm), 20)}, which is not accepted"
                )
            key = await self._key(str(key_id))
            claims: dict[str, Any] = jwt.decode(
                token,
                key.key,
                algorithms=[algorithm],
                audience=self._settings.client_id,
                issuer=self._settings.issuer,
                options={"require": list(_REQUIRED), "verify_exp": False, "verify_iat": False, "verify_nbf": False},
            )
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError) as error:
            raise ProviderError(f"the ID token is not valid: {one_line(str(error), 100)}") from None
        self._check(claims, nonce)
        return claims

    def _check(self, claims: Mapping[str, Any], nonce: str) -> None:
        """Check what the library does not: times by the plane's clock, the nonce, the party it was made for."""
        now, sent = self._wall_now(), claims.get("nonce")
        if not isinstance(sent, str) or not hmac.compare_digest(sent.encode("utf-8", "replace"), nonce.encode()):
            raise ProviderError("the ID token is for another sign-in")
        expires, issued, begins = (claims.get(name) for name in ("exp", "iat", "nbf"))
        fits = (
            _is_number(expires) and expires > now - _LEEWAY,
            _is_number(issued) and issued <= now + _LEEWAY,
            begins is None or (_is_number(begins) and begins <= now + _LEEWAY),
        )
        if not all(fits):
            raise ProviderError("the ID token is not valid at this time; check the clocks")
        parties = claims.get("aud")
        if isinstance(parties, list) and len(parties) > 1 and claims.get("azp") != self._settings.client_id:
            raise ProviderError("the ID token is for another client")

    async def _key(self, key_id: str) -> jwt.PyJWK:
        now = trio.current_time()
        is_old = now >= self._keys_at + _KEPT_SECONDS
        if is_old or (key_id and key_id not in self._keys and now >= self._keys_at + _AGAIN_SECONDS):
            self._keys, self._keys_at = await self._fetch_keys(), now
        if not key_id and len(self._keys) == 1:  # it need not be named then
            return next(iter(self._keys.values()))
        if key_id not in self._keys:
            raise ProviderError("the ID token is signed with a key that the provider does not publish")
        return self._keys[key_id]

    async def _fetch_keys(self) -> dict[str, jwt.PyJWK]:
        """Return the provider's keys by their id; those that cannot be used are left out."""
        listed = (await self._http.get(await self._endpoint("jwks_uri"))).get("keys")
        found: dict[str, jwt.PyJWK] = {}
        for data in listed[:MAX_KEYS] if isinstance(listed, list) else ():
            if isinstance(data, dict) and data.get("use", "sig") == "sig" and data.get("kty") in ("RSA", "EC", "OKP"):
                data = {name: value for name, value in data.items() if name != "d"}  # the public half, if it is a pair
                try:
                    found[str(data.get("kid", ""))] = jwt.PyJWK.from_dict(data)
                except (jwt.PyJWTError, ValueError, TypeError, KeyError):
                    continue
        return found

    async def _endpoint(self, name: str) -> str:
        """Return a URL of the provider's metadata; raises ProviderError."""
        fetched_at, metadata = self._metadata
        if trio.current_time() >= fetched_at + _KEPT_SECONDS:
            metadata = await self._http.get(f"{self._settings.issuer.rstrip('/')}/.well-known/openid-configuration")
            if metadata.get("issuer") != self._settings.issuer:
                shown = one_line(str(metadata.get("issuer")), 100)
                raise ProviderError(f"the provider calls itself {shown}; set issuer to exactly that")
            self._metadata = trio.current_time(), metadata
        return check_url(str(metadata.get(name, "")), tls_only=self._settings.issuer.lower().startswith("https:"))


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def provider_of(settings: OidcSettings, wall_now: Callable[[], float]) -> Provider:
    """Return the provider of the settings, over the network. Raises ConfigError if its CA does not load."""
    return Provider(settings, ProviderHttp(Path(settings.ca_file) if settings.ca_file else None), wall_now)
