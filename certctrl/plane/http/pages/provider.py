"""Sign-in to the pages at an OpenID provider: to it, and back (RFC 9700 §2.1).

Until the browser is back, a cookie has the attempt, sealed. It is lax, because the provider sends the browser; the
session's is strict, so the browser gets a page that leads on, which counts as this site's own.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import json
import logging

import attrs
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from certctrl.errors import ConfigError
from certctrl.plane.access.roles import Caller, Role
from certctrl.plane.audit.acts import Act, acting
from certctrl.plane.core import Plane
from certctrl.plane.errors import ErrorResponse, bad_request, forbidden, not_found, unavailable
from certctrl.plane.http import permissions
from certctrl.plane.http.authentication import address_of
from certctrl.plane.http.pages import views
from certctrl.plane.http.pages.approval import SESSION, console_path, set_cookie, shown, target_of
from certctrl.plane.http.pages.html import page, redirect
from certctrl.plane.http.reading import clean_line
from certctrl.plane.limits import caller_of, plain_address
from certctrl.plane.sign_in.http import ProviderError
from certctrl.plane.sign_in.provider import Attempt, Person, Provider

COOKIE = "__Host-certctrl-provider"
START, BACK = "/device/oidc", "/device/oidc/callback"
_PURPOSE = "sign-in at the provider"
_SECONDS = 600
_MAX_COOKIE = 2000
_MAX_CODE = 20

log = logging.getLogger("certctrl.Plane")


class ProviderPage:
    """The endpoints, one public method each."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane
        self._operators = plane.operators

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [Route(START, shown(self.start)), Route(BACK, shown(self.back))]

    async def start(self, request: Request) -> Response:
        """Send the browser to the provider."""
        provider = self._provider()
        await self._operators.check_attempts(caller_of(address_of(request)))
        attempt = Attempt.new()
        try:
            answer = redirect(await provider.authorization_url(attempt, self._back(request)))
        except ProviderError as error:
            raise _failed(error) from None
        user_code = request.query_params.get("user_code", "").strip()[:_MAX_CODE]
        following = console_path(request.query_params.get("next", ""))
        kept = attrs.asdict(attempt) | {
            "user_code": user_code,
            "next": following,
            "until": self._plane.wall_now() + _SECONDS,
        }
        sealed = self._plane.keyring.seal(_PURPOSE, json.dumps(kept).encode())
        _set_lax_cookie(answer, base64.urlsafe_b64encode(sealed).decode(), _SECONDS)
        return answer

    async def back(self, request: Request) -> Response:
        """Start a session for the person who comes back with a code."""
        provider, caller = self._provider(), caller_of(address_of(request))
        await self._operators.check_attempts(caller)
        attempt, user_code, following = self._attempt(
            request
        )  # not counted: any site can send a browser here without one
        try:
            person = await self._person(provider, request, attempt)
            session, name = await self._session(request, person)
        except ErrorResponse as error:
            log.warning("sign-in from %s at the provider failed: %s", caller, error)
            if error.status != 503:
                await self._operators.note_failure(caller)
            raise
        log.info("%s signed in from %s at the provider", name, caller)
        target = target_of(user_code, following)
        answer = page("Signed in", views.signed_in(name=name, target=target), headers={"refresh": f"0; url={target}"})
        set_cookie(answer, SESSION, session, self._plane.settings.page_session_seconds)
        _set_lax_cookie(answer, "", 0)
        return answer

    async def _person(self, provider: Provider, request: Request, attempt: Attempt) -> Person:
        refused = clean_line(request.query_params.get("error", ""), 60)
        if refused:
            raise bad_request(f"The provider refused: {refused}")
        code = request.query_params.get("code", "")
        if not code:
            raise bad_request("The provider sent no code")
        try:
            return await provider.person(code, attempt, self._back(request))
        except ProviderError as error:
            raise _failed(error) from None

    async def _session(self, request: Request, person: Person) -> tuple[str, str]:
        """Return a new session, and the name of its operator."""
        name = await self._plane.work(self._plane.access.accounts.name_of, person.subject) or person.name
        address = plain_address(address_of(request))
        who = Caller(who=name, role=person.role or Role.VIEWER, via="page, single sign-on", address=address)
        act = Act(self._plane.audit, who, permissions.SIGN_IN.action)
        act.note_fields({"operator": name})
        with acting(act):
            return await self._operators.open_provider_session(person), name

    def _attempt(self, request: Request) -> tuple[Attempt, str, str]:
        """Return the attempt of this browser, its user code, and the page that it asked for.

        ErrorResponse 400 if it is not the one that comes back.
        """
        text = request.cookies.get(COOKIE, "")
        try:
            sealed = base64.urlsafe_b64decode(text[:_MAX_COOKIE])
            kept = json.loads(self._plane.keyring.unseal(_PURPOSE, sealed))
        except (ConfigError, binascii.Error, ValueError):
            raise bad_request("This browser has no sign-in under way. Start again.") from None
        state = request.query_params.get("state", "")
        if not hmac.compare_digest(state.encode("utf-8", "replace"), kept["state"].encode()):
            raise bad_request("This is the answer to another sign-in. Start again.")
        if kept["until"] < self._plane.wall_now():
            raise bad_request("The sign-in took too long. Start again.")
        attempt = Attempt(state=kept["state"], nonce=kept["nonce"], verifier=kept["verifier"])
        return attempt, kept["user_code"], kept.get("next", "")  # absent: begun before an update

    def _back(self, request: Request) -> str:
        """Return the URL to which the provider sends browsers."""
        return (self._plane.settings.public_url or str(request.base_url)).rstrip("/") + BACK

    def _provider(self) -> Provider:
        if self._plane.provider is None:
            raise not_found("No provider is set up")
        return self._plane.provider


def _failed(error: ProviderError) -> ErrorResponse:
    what = f"The sign-in at the provider failed: {error}"
    return unavailable(what, 5) if error.is_away else forbidden(what)


def _set_lax_cookie(answer: Response, value: str, seconds: int) -> None:
    answer.set_cookie(COOKIE, value, max_age=seconds, path="/", secure=True, httponly=True, samesite="lax")
