"""Visits: who looks at a page of the console or posts one of its forms, and what the browser is answered otherwise.

A browser that is not signed in is sent to the sign-in of the approval page, and comes back. The session's cookie is not sent
with links from other sites, such as a chat: such a browser gets a page that leads to itself.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Iterator
from urllib.parse import quote

import attrs
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from certctrl.errors import CertctrlError
from certctrl.plane.audit.acts import Act, acting
from certctrl.plane.clock import rfc3339
from certctrl.plane.core import Plane
from certctrl.plane.devices.devices import FIRST_USER
from certctrl.plane.errors import ErrorResponse, not_found
from certctrl.plane.http.authentication import address_of, note_authenticated
from certctrl.plane.http.console.frame import CONSOLE_HEADERS, HOME, Viewer, head, shell
from certctrl.plane.http.console.parts import anchor, clock
from certctrl.plane.http.middleware import error_response_of
from certctrl.plane.http.pages.approval import SESSION, checked_form, set_cookie
from certctrl.plane.http.pages.html import FORM_CAP, Html, fill, page, redirect
from certctrl.plane.http.permissions import Permission
from certctrl.plane.http.reading import whole_number
from certctrl.plane.limits import plain_address

USER = "__Host-certctrl-user"
"""The cookie with the user whose devices are shown, where there are several."""
_USER_SECONDS = 30 * 86_400

Page = Callable[[Request, Viewer], Awaitable[Response]]


class Visits:
    """Admits browsers to the pages."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane
        self._operators = plane.operators

    def page(self, endpoint: Page) -> Callable[[Request], Awaitable[Response]]:
        """Return the endpoint for those who are signed in; its errors are pages, too."""

        async def admitted(request: Request) -> Response:
            viewer = None
            try:
                viewer = await self._viewer(request)
                if viewer is None:
                    return _to_sign_in(request)
                answer = await endpoint(request, viewer)
            except CertctrlError as error:
                return self._problem(error, viewer)
            if "user" in request.query_params:
                set_cookie(answer, USER, str(viewer.user_id), _USER_SECONDS)
            return answer

        return admitted

    async def _viewer(self, request: Request) -> Viewer | None:
        session = request.cookies.get(SESSION, "")
        if not self._operators.may_be_session(session):
            return None
        caller, users = await self._plane.work_long(
            lambda: (self._operators.caller_of(session), self._plane.devices.users())
        )
        if caller is None:
            return None
        note_authenticated(request)
        asked = request.query_params.get("user", "")
        known = [user["id"] for user in users]
        chosen = whole_number(asked, "user", 1) if asked else _remembered(request)
        user_id = chosen if chosen in known else FIRST_USER
        names = {user["id"]: user["name"] for user in users}
        return Viewer(
            caller=attrs.evolve(caller, address=plain_address(address_of(request))),
            csrf=self._operators.csrf_token(session),
            user_id=user_id,
            user=str(names.get(user_id, "")) if len(users) > 1 else "",
            users=users,
        )

    async def form(self, request: Request, cap: int = FORM_CAP) -> dict[str, str]:
        """Return a posted form; ErrorResponse 403 unless it was made for this browser."""
        return await checked_form(self._operators, request, SESSION, cap)

    @contextlib.contextmanager
    def acting(self, viewer: Viewer, permission: Permission, **fields: object) -> Iterator[None]:
        """Check the role of a viewer, and record what the block changes, as the API does; ErrorResponse 403."""
        caller = viewer.caller
        caller.require(permission.role)
        via = f"console, {caller.via}" if caller.via else "console"
        act = Act(self._plane.audit, attrs.evolve(caller, via=via), permission.action, permission.kinds)
        act.note_fields({"uid": viewer.user_id, **fields})
        with acting(act):
            yield

    def _problem(self, error: CertctrlError, viewer: Viewer | None) -> Response:
        if not isinstance(error, ErrorResponse):
            self._plane.storage_check.note_failure(error)
            error = error_response_of(error)
        title = {403: "Not allowed", 404: "Not found", 503: "Not now"}.get(error.status or 500, "That did not work")
        said = fill('<p role="alert">{what}.</p>', what=error.what.rstrip("."))
        if error.status == 503:
            said = fill(
                "{said}<p>Hosts are not affected: they serve on. This page was asked for at {now}; load it again.</p>",
                said=said,
                now=clock(rfc3339(self._plane.wall_now())),
            )
        body = fill(
            '<section class="need">{said}<p>{home}</p></section>', said=said, home=anchor("Overview", HOME, "button")
        )
        if viewer is None:
            return page(title, fill("<h1>{title}</h1>{body}", title=title, body=body), status=error.status or 500)
        return shell(title, fill("{head}{body}", head=head(Html(title)), body=body), viewer, status=error.status or 500)


class UnknownPages:
    """Answers whatever else is below the console's path with its own page."""

    def __init__(self, plane: Plane) -> None:
        self._visits = Visits(plane)

    def routes(self) -> list[Route]:
        """Return the route, which the router must try last."""
        return [Route(f"{HOME}/{{rest:path}}", self._visits.page(self.unknown), methods=["GET", "POST"])]

    async def unknown(self, request: Request, viewer: Viewer) -> Response:
        """Raise ErrorResponse 404."""
        raise not_found("There is no such page")


def _remembered(request: Request) -> int:
    text = request.cookies.get(USER, "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 16 else FIRST_USER


def _to_sign_in(request: Request) -> Response:
    here = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    if request.method not in ("GET", "HEAD"):
        return redirect(f"/device?next={quote(HOME)}")
    if SESSION not in request.cookies and request.headers.get("sec-fetch-site") == "cross-site":
        body = fill("<h1>The fleet</h1><p>{link}</p>", link=anchor("Continue", here, "button"))
        return page(
            "The fleet", body, headers={"refresh": f"0; url={quote(here, safe='/?&=,.:*%+-_~')}"} | CONSOLE_HEADERS
        )
    return redirect(f"/device?next={quote(here)}")
