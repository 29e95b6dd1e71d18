"""The approval page: sign in with the operator key, enter the code, check the device, approve or deny (RFC 8628 §3.3).

A browser has one of two cookies, neither readable by scripts nor sent over plain HTTP or to other sites: the session
after signing in, before that a random value that binds the sign-in form. Each form that changes something contains a
token for that cookie.
"""

from __future__ import annotations

import contextlib
import logging
import re
import secrets
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from urllib.parse import quote

import attrs
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from certctrl.plane.access.roles import BY_KEY, Caller
from certctrl.plane.audit.acts import Act, acting, dismiss
from certctrl.plane.core import Plane
from certctrl.plane.devices.devices import FIRST_USER
from certctrl.plane.errors import ErrorResponse, bad_request, forbidden
from certctrl.plane.http import permissions
from certctrl.plane.http.authentication import address_of, note_authenticated
from certctrl.plane.http.pages import views
from certctrl.plane.http.pages.html import FORM_CAP, asset, page, read_form, redirect
from certctrl.plane.http.permissions import Permission
from certctrl.plane.http.reading import whole_number
from certctrl.plane.limits import caller_of, plain_address
from certctrl.plane.operators import Operators
from certctrl.text import counted

SESSION = "__Host-certctrl-operator"
SIGN_IN = "__Host-certctrl-form"
_MAX_CODE = 20
_MAX_PATH = 500
_CONSOLE = re.compile(r"/fleet(?:[/?][\x21-\x5b\x5d-\x7e]*)?", re.ASCII)

log = logging.getLogger("certctrl.Plane")


class ApprovalPage:
    """The endpoints of the page, one public method each."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane
        self._operators = plane.operators

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            Route("/device", shown(self.show)),
            Route("/device/sign-in", shown(self.sign_in), methods=["POST"]),
            Route("/device/sign-out", shown(self.sign_out), methods=["POST"]),
            Route("/device/decide", shown(self.decide), methods=["POST"]),
            Route("/device/style.css", self.style),
            Route("/device/icon.svg", self.icon),
        ]

    async def show(self, request: Request) -> Response:
        """Show the sign-in form, the code form, or the device with the code."""
        user_code = request.query_params.get("user_code", "").strip()[:_MAX_CODE]
        return await self._plane.work(
            self._show, request, user_code, console_path(request.query_params.get("next", ""))
        )

    def _show(self, request: Request, user_code: str, following: str) -> Response:
        session = self._session(request)
        if session is None:
            return self._sign_in_page(request, user_code, following)
        if following:
            return redirect(following)
        csrf = self._operators.csrf_token(session)
        if not user_code:
            return page("Approve a device", views.enter_code(csrf=csrf))
        self._operators.check_codes(session)
        try:
            grant = self._plane.grants.show(user_code)
            if grant["status"] != "pending":
                raise bad_request("This request was already decided.")
        except ErrorResponse as error:
            self._operators.wrong_code(session)
            body = views.enter_code(csrf=csrf, user_code=user_code, error=error.what)
            return page("Approve a device", body, status=error.status)
        body = views.decide(
            grant,
            csrf=csrf,
            now=self._plane.wall_now(),
            known=self._plane.devices.similar(grant["device_public_id"], grant["name"]),
            users=self._plane.devices.users(),
        )
        return page("Approve this device?", body)

    async def sign_in(self, request: Request) -> Response:
        """Start a session for the right key."""
        form = await self._form(request, SIGN_IN)
        user_code, following = form.get("user_code", "")[:_MAX_CODE], console_path(form.get("next", ""))
        caller = caller_of(address_of(request))
        key = form.get("key", "").strip()
        try:
            who = await self._operators.who_has(key, caller)
            with self._acting(request, who, permissions.SIGN_IN):
                session = await self._operators.start_session(key, caller)
        except ErrorResponse as error:
            log.warning("sign-in from %s failed: %s", caller, error)
            return self._sign_in_page(request, user_code, following, error)
        log.info("%s signed in from %s", "operator" if who.who == BY_KEY else who.who, caller)
        answer = redirect(target_of(user_code, following))
        set_cookie(answer, SESSION, session, self._plane.settings.page_session_seconds)
        set_cookie(answer, SIGN_IN, "", 0)
        return answer

    async def sign_out(self, request: Request) -> Response:
        """End the session."""
        await self._form(request, SESSION)
        session = request.cookies[SESSION]
        who = await self._plane.work(self._operators.caller_of, session)
        if who is not None:
            with self._acting(request, who, permissions.SIGN_OUT):
                await self._plane.work(self._operators.sign_out, session)
        answer = redirect("/device")
        set_cookie(answer, SESSION, "", 0)
        return answer

    async def decide(self, request: Request) -> Response:
        """Approve or deny the device with the code."""
        form = await self._form(request, SESSION)
        who = await self._plane.work(self._operators.caller_of, request.cookies[SESSION])
        if who is None:
            return redirect("/device")
        who.require(permissions.DECIDE_GRANT.role)
        with self._acting(request, who, permissions.DECIDE_GRANT, user_code=form.get("user_code", "")[:_MAX_CODE]):
            return await self._plane.work(self._decide, request, form)

    def _decide(self, request: Request, form: dict[str, str]) -> Response:
        session = self._session(request)
        if session is None:
            return redirect("/device")
        decision = form.get("decision", "")
        if decision not in ("approve", "deny"):
            raise bad_request("Choose Approve or Deny.")
        self._operators.check_codes(session)
        user_id = whole_number(form.get("user_id", str(FIRST_USER)), "user_id", 1)
        self._plane.devices.require_user(user_id)
        approve = decision == "approve"
        try:
            grant = self._plane.grants.decide(form.get("user_code", ""), approve=approve, user_id=user_id)
        except ErrorResponse as error:
            dismiss()
            self._operators.wrong_code(session)
            return _problem(error)
        log.info("device grant %s: %s by page", grant["user_code"], "approved" if approve else "denied")
        csrf = self._operators.csrf_token(session)
        return page("Done", views.decided(grant, approved=approve, csrf=csrf))

    @contextlib.contextmanager
    def _acting(self, request: Request, who: Caller, permission: Permission, **fields: str) -> Iterator[None]:
        """Record what the block changes."""
        caller = attrs.evolve(
            who, via=f"page, {who.via}" if who.via else "page", address=plain_address(address_of(request))
        )
        act = Act(self._plane.audit, caller, permission.action)
        act.note_fields(fields)
        with acting(act):
            yield

    async def style(self, request: Request) -> Response:
        """Return the style sheet."""
        return asset("style.css", "text/css; charset=utf-8")

    async def icon(self, request: Request) -> Response:
        """Return the icon."""
        return asset("icon.svg", "image/svg+xml")

    def _session(self, request: Request) -> str | None:
        session = request.cookies.get(SESSION, "")
        if not session or not self._operators.is_signed_in(session):
            return None
        self._plane.database.after_commit(partial(note_authenticated, request))
        return session

    def _sign_in_page(
        self, request: Request, user_code: str, following: str, error: ErrorResponse | None = None
    ) -> Response:
        cookie = request.cookies.get(SIGN_IN) or secrets.token_urlsafe(24)
        alert, status, headers = "", 200, {}
        if error is not None:
            alert, status = f"{error.what}.", error.status
            if error.retry_after is not None:
                alert = f"{error.what}. Try again in {counted(round(error.retry_after / 60) or 1, 'minute')}."
                headers = {"retry-after": str(int(error.retry_after))}
        body = views.sign_in(
            csrf=self._operators.csrf_token(cookie),
            user_code=user_code,
            following=following,
            error=alert,
            provider=self._provider_label(),
        )
        answer = page("Sign in", body, status=status, headers=headers)
        set_cookie(answer, SIGN_IN, cookie, 3600)
        return answer

    def _provider_label(self) -> str:
        return "" if self._plane.provider is None else self._plane.provider.label

    async def _form(self, request: Request, cookie: str) -> dict[str, str]:
        return await checked_form(self._operators, request, cookie)


async def checked_form(operators: Operators, request: Request, cookie: str, cap: int = FORM_CAP) -> dict[str, str]:
    """Return a posted form; ErrorResponse 403 unless the plane made it for the browser with this cookie."""
    if request.headers.get("sec-fetch-site", "same-origin") != "same-origin":
        raise forbidden("This form was sent from another site.")
    form = await read_form(request, cap)
    value = request.cookies.get(cookie, "")
    if not value or not operators.is_csrf_token(value, form.get("csrf", "")):
        raise forbidden("This form is no longer valid.")
    return form


def console_path(text: str) -> str:
    """Return a path of the console to go to after signing in; empty for anything else."""
    return text if len(text) <= _MAX_PATH and _CONSOLE.fullmatch(text) else ""


def target_of(user_code: str, following: str) -> str:
    """Return where a browser goes after signing in."""
    if following:
        return following
    return f"/device?user_code={quote(user_code)}" if user_code else "/device"


def shown(endpoint: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
    """Return the endpoint, with error responses as pages."""

    async def as_page(request: Request) -> Response:
        try:
            return await endpoint(request)
        except ErrorResponse as error:
            return _problem(error)

    return as_page


def _problem(error: ErrorResponse) -> Response:
    headers = {} if error.retry_after is None else {"retry-after": str(int(error.retry_after))}
    return page("Error", views.problem("Request failed", error.what), status=error.status, headers=headers)


def set_cookie(answer: Response, name: str, value: str, seconds: int) -> None:
    """Set a cookie for this site alone, which no script can read; 0 seconds: remove it."""
    answer.set_cookie(name, value, max_age=seconds, path="/", secure=True, httponly=True, samesite="strict")
