"""Authenticate requests by bearer token or operator key; read addresses and ``If-None-Match``."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from typing import Any, Generic, NamedTuple, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from certctrl.errors import CertctrlError
from certctrl.plane.access.roles import Caller
from certctrl.plane.audit.acts import Act, Trial, acting
from certctrl.plane.audit.subjects import KIND_OF_FIELD
from certctrl.plane.core import Plane
from certctrl.plane.devices.sessions import DeviceSession
from certctrl.plane.errors import ErrorResponse, bad_request, forbidden
from certctrl.plane.http.answers import data_answer
from certctrl.plane.http.permissions import NEVER_TRIED, Permission, permission_of
from certctrl.plane.http.reading import bearer_token
from certctrl.plane.http.routing import METHOD, OPERATOR, ROUTE, Endpoint, is_dry_run
from certctrl.plane.http.scopes import Within, within
from certctrl.plane.limits import plain_address
from certctrl.plane.token_scope import TokenScope, whole_fleet

CONNECTION = "certctrl.connection"
"""Key of the `UnauthenticatedConnection` in the state of an ASGI scope."""
A = TypeVar("A")
T = TypeVar("T")
_ETAG = re.compile(r'(?:W/)?"?([^"]*)"?')


class ForDevices(Generic[A, T]):
    """A read or change for the requests of several devices in one unit of work; one statement authenticates all of them."""

    def __init__(
        self,
        plane: Plane,
        function: Callable[[Sequence[tuple[DeviceSession, A]]], Sequence[T | CertctrlError]],
        run: Callable[..., Awaitable[Any]],
    ) -> None:
        """``function`` returns a result or an error for each session and item, in order; it changes nothing for the latter.

        ``run`` is the plane's ``read_alike``, ``read_alone`` or ``change_alike``.
        """
        self._sessions = plane.sessions
        self._function = function
        self._run = run

    async def found(self, token: str, item: A | ErrorResponse) -> _Found[T]:
        """Return the session and the result for a token and an item; ErrorResponse 401 or 403 for a token that is refused."""
        found: _Found[T] = await self._run(self, (token, item))
        return found

    def __call__(self, items: Sequence[tuple[str, A | ErrorResponse]]) -> list[ErrorResponse | _Found[T]]:
        """Return for each token and item the session with the result, or the refusal of the token."""
        sessions = self._sessions.authenticate_many([token for token, _ in items])
        good: list[tuple[DeviceSession, A]] = []
        found: list[ErrorResponse | _Found[T] | None] = []
        for session, (_, item) in zip(sessions, items, strict=True):
            if isinstance(session, ErrorResponse):
                found.append(session)
            elif isinstance(item, ErrorResponse):
                found.append(_Found(session, item))
            else:
                good.append((session, item))
                found.append(None)
        results = iter(self._function(good) if good else ())
        devices = iter(good)
        return [each or _Found(next(devices)[0], next(results)) for each in found]


class _Found(NamedTuple, Generic[T]):
    session: DeviceSession
    result: T | CertctrlError


class Authenticator:
    """Authenticates devices and operators."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane
        self._scope = TokenScope(plane.database)

    async def as_device(self, request: Request, function: Callable[[DeviceSession], T], *, long: bool = False) -> T:
        """Authenticate the calling device and call a function with its session, in one unit of work, perhaps a long one.

        The function should raise its own ErrorResponses before it changes anything (``Gathering.work``). ErrorResponse 401
        or 403 for other callers.
        """
        token, known = bearer_token(request), False

        def unit() -> T:
            nonlocal known
            session = self._plane.sessions.authenticate(token)
            known = True
            return function(session)

        try:
            return await (self._plane.work_long(unit) if long else self._plane.work_together(unit))
        finally:
            if known:
                note_authenticated(request)

    async def as_device_alike(
        self, request: Request, function: ForDevices[A, T], item: A | ErrorResponse
    ) -> tuple[DeviceSession, T]:
        """Authenticate the calling device, and return its session and what a function returns for its item.

        The unit of work may be shared with like requests. ErrorResponse 401 or 403 for other callers, then that of ``item``.
        """
        found = await function.found(bearer_token(request), item)
        note_authenticated(request)
        if isinstance(found.result, CertctrlError):
            raise found.result
        return found.session, found.result

    def claimed_device(self, request: Request) -> int:
        """Return the device that the token is for, without reading the database; ErrorResponse 401."""
        return self._plane.sessions.claimed_device(bearer_token(request))

    def is_operator(self, request: Request) -> bool:
        """Return whether an endpoint of ``operators_or_devices`` was called by an operator."""
        return OPERATOR in request.scope

    async def require_operator(self, request: Request, *, if_away: bool = False, scoped: bool = False) -> Caller:
        """Return the operator who sends a request; ErrorResponse 403 for a device, 401 for other callers.

        ``if_away`` as in `OperatorAccess.authenticate`. Without ``scoped``, 403 for a token with a scope.
        """
        token = bearer_token(request)
        if token.count(".") == 2:
            await self._plane.work(self._plane.sessions.authenticate, token)
            raise forbidden("Only operators may do this")
        caller = await self._plane.access.authenticate(token, plain_address(address_of(request)), if_away=if_away)
        note_authenticated(request)
        if caller.tags and not scoped:
            raise whole_fleet(caller)
        return caller

    def operators_only(self, endpoint: Endpoint) -> Endpoint:
        """Return the endpoint, restricted to operators with the role that ``permissions`` names; its change is recorded."""

        async def guarded(request: Request) -> Response:
            permission = permission_of(request.scope[METHOD], request.scope[ROUTE])
            caller = await self.require_operator(request, if_away=permission.if_away, scoped=True)
            if caller.tags:
                await self._require_scope(request, caller, permission)
            if permission.action and is_dry_run(request):
                return await self._tried(request, caller, permission, endpoint)
            with self.allowed(request, caller, permission):
                return await endpoint(request)

        return guarded

    async def _require_scope(self, request: Request, caller: Caller, permission: Permission) -> None:
        """Raise ErrorResponse unless the route is for tokens with a scope, and what its path names is within that."""
        place = within(request)
        if place is Within.NOTHING:
            raise whole_fleet(caller)
        caller.require(permission.role)
        named = {KIND_OF_FIELD[field]: text for field, text in request.path_params.items() if field in KIND_OF_FIELD}
        unit = partial(self._scope.require, caller, list(named.items()), whole=place is Within.WHOLE)
        await self._plane.database.work_read(unit)

    def _keep_within(self, act: Act, request: Request) -> None:
        """Have an act refuse objects outside the scope of its caller, in the unit of work that would change them."""
        caller: Caller = request.scope[OPERATOR]
        if caller.tags:
            act.check = partial(self._scope.require, caller, whole=within(request) is Within.WHOLE)

    async def _tried(self, request: Request, caller: Caller, permission: Permission, endpoint: Endpoint) -> Response:
        """Run an endpoint, roll back its changes, and return what they were. ErrorResponse as from the endpoint.

        An endpoint with a preview of its own answers with that, and with ``dry_run``.
        """
        caller.require(permission.role)
        if (request.scope[METHOD], request.scope[ROUTE]) in NEVER_TRIED:
            raise bad_request("This request has no dry run: it does not change the database only", field="dry_run")
        request.scope[OPERATOR] = caller
        trial = Trial(self._plane.audit, caller, permission.action, permission.kinds)
        self._keep_within(trial, request)
        _note_path(trial, request, permission)
        with acting(trial):
            response = await endpoint(request)
        if _is_preview(bytes(response.body)):
            return response
        changes = trial.changes if not caller.tags else _without_others(trial.changes)
        return data_answer({"dry_run": True, "action": permission.action, "changes": changes})

    def operators_or_devices(self, endpoint: Endpoint) -> Endpoint:
        """Return the endpoint, which authenticates devices itself; other callers are treated as by ``operators_only``.

        ErrorResponse 403 for the dry run of a change by a device: the endpoint would carry it out.
        """
        guarded = self.operators_only(endpoint)

        async def shared(request: Request) -> Response:
            if bearer_token(request).count(".") != 2:
                return await guarded(request)
            if permission_of(request.scope[METHOD], request.scope[ROUTE]).action and is_dry_run(request):
                raise forbidden("Only operators have dry runs")
            return await endpoint(request)

        return shared

    @contextlib.contextmanager
    def allowed(self, request: Request, caller: Caller, permission: Permission) -> Iterator[None]:
        """Check the role of an operator, and record what the block changes; ErrorResponse 403."""
        caller.require(permission.role)
        request.scope[OPERATOR] = caller
        if not permission.action:
            yield
            return
        act = Act(self._plane.audit, caller, permission.action, permission.kinds)
        self._keep_within(act, request)
        _note_path(act, request, permission)
        with acting(act):
            yield


def _without_others(changes: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the changes of a dry run without the devices of certificates, some of which the caller may not see."""
    hidden = ("certificate", "devices")
    return [
        change
        | {
            side: {name: value for name, value in change[side].items() if (change["kind"], name) != hidden}
            for side in ("before", "after")
        }
        for change in changes
    ]


def _is_preview(body: bytes) -> bool:
    data = json.loads(body).get("data") if b'"dry_run"' in body else None
    return isinstance(data, dict) and data.get("dry_run") is True


def _note_path(act: Act, request: Request, permission: Permission) -> None:
    asked = request.query_params
    act.note_fields({field: asked[field] for field in permission.kinds if field in asked} | request.path_params)


def note_authenticated(request: Request) -> None:
    """Stop counting the connection of a request as one that has not authenticated."""
    connection = request.scope.get("state", {}).get(CONNECTION)
    if connection is not None:
        connection.leave()


def address_of(request: Request) -> str:
    """Return the client's address; empty if unknown."""
    return request.client.host if request.client is not None else ""


def etag_of(request: Request) -> str:
    """Return the entity tag in ``If-None-Match``, quoted, weak or bare; empty if absent or ``*``."""
    match = _ETAG.fullmatch(request.headers.get("if-none-match", "").strip())
    return match[1] if match is not None and match[1] != "*" else ""
