"""Operator endpoints for issuers, their rules, and orders (docs/protocol.md)."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import trio
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from certctrl.plane.access.roles import Caller, Role
from certctrl.plane.audit.acts import done_elsewhere
from certctrl.plane.core import Plane
from certctrl.plane.errors import ErrorResponse, bad_request
from certctrl.plane.http import operator_bodies
from certctrl.plane.http.answers import data_answer, empty_answer
from certctrl.plane.http.authentication import Authenticator
from certctrl.plane.http.bodies import read_as
from certctrl.plane.http.listing import listed
from certctrl.plane.http.reading import LARGE_BODY_CAP
from certctrl.plane.http.routing import OPERATOR, USER, Endpoint, number, routes_of
from certctrl.plane.http.scopes import tags_of
from certctrl.plane.issuers.issuer import AccountHolder
from certctrl.plane.issuers.registry import NewIssuer

CHECK_SECONDS = 20.0
"""Time limit for the check of an issuer; shorter than the client's."""
_ISSUERS = "/apiv1/issuers"
_RULES = "/apiv1/issuer-rules"
_ORDER = f"{USER}/orders/{{oid}}"


class IssuingApi:
    """The endpoints, one method each."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane
        self._authenticator = Authenticator(plane)

    def routes(self) -> list[Route]:
        """Return the routes."""
        guarded: list[tuple[str, str, Endpoint]] = [
            ("GET", _ISSUERS, self.issuers), ("POST", _ISSUERS, self.put_issuer),
            ("GET", f"{_ISSUERS}/{{name}}", self.issuer), ("DELETE", f"{_ISSUERS}/{{name}}", self.remove_issuer),
            ("POST", f"{_ISSUERS}/{{name}}/check", self.check_issuer),
            ("POST", f"{_ISSUERS}/{{name}}/change-key", self.change_key),
            ("POST", f"{_ISSUERS}/{{name}}/deactivate", self.deactivate),
            ("GET", _RULES, self.rules), ("POST", _RULES, self.put_rule), ("DELETE", _RULES, self.remove_rule),
            ("GET", f"{USER}/orders", self.orders), ("GET", _ORDER, self.order),
            ("POST", f"{_ORDER}/retry", self.retry), ("POST", f"{_ORDER}/cancel", self.cancel),
        ]  # fmt: skip
        only = self._authenticator.operators_only
        return routes_of([(method, path, only(endpoint)) for method, path, endpoint in guarded])

    # --- issuers ----------------------------------------------------------------------------------------------

    async def issuers(self, request: Request) -> Response:
        """Return the issuers; with ``?check=1`` each is checked, which adds ``ok`` and ``facts``, except for viewers.

        A check runs programs and asks CAs.
        """
        rows = await self._plane.work(self._plane.issuers.show_all)
        caller: Caller = request.scope[OPERATOR]
        if request.query_params.get("check") == "1" and caller.role.includes(Role.OPERATOR):
            async with trio.open_nursery() as nursery:
                for index, row in enumerate(rows):
                    nursery.start_soon(self._check_one, rows, index, row["name"])
        return data_answer(rows)

    async def put_issuer(self, request: Request) -> Response:
        """Add an issuer: ``{"name", "kind", "settings"?, "secrets"? (base64), "replace"?}``."""
        body = await read_as(operator_bodies.NewIssuer, request, LARGE_BODY_CAP)
        new = NewIssuer(
            name=body.name,
            kind=body.kind,
            settings=body.settings,
            secrets={name: _decoded(name, value) for name, value in body.secrets.items()},
            replace=body.replace,
        )
        return data_answer(await self._plane.work(self._plane.issuers.put, new), 201)

    async def issuer(self, request: Request) -> Response:
        """Return one issuer."""
        return data_answer(await self._plane.work(self._plane.issuers.show, request.path_params["name"]))

    async def remove_issuer(self, request: Request) -> Response:
        """Remove an issuer that nothing uses."""
        await self._plane.work(self._plane.issuers.remove, request.path_params["name"])
        return empty_answer()

    async def check_issuer(self, request: Request) -> Response:
        """Check an issuer, at its CA if possible."""
        return data_answer(await self._checked(request.path_params["name"]))

    async def change_key(self, request: Request) -> Response:
        """Replace the key of an issuer's account at its CA."""
        return await self._change_account(request, lambda holder: holder.change_key())

    async def deactivate(self, request: Request) -> Response:
        """End an issuer's account at its CA."""
        return await self._change_account(request, lambda holder: holder.deactivate())

    async def _change_account(self, request: Request, change: Callable[[AccountHolder], Awaitable[None]]) -> Response:
        shown = await self._plane.issuers.change_account(request.path_params["name"], change)
        if shown["ok"]:
            await done_elsewhere(self._plane.database)
        return data_answer(shown)

    async def _check_one(self, rows: list[dict[str, Any]], index: int, name: str) -> None:
        try:
            rows[index] = await self._checked(name)
        except ErrorResponse as error:  # it has been removed since
            rows[index] |= {"ok": False, "facts": {}, "problem": error.what, "fix": ""}

    async def _checked(self, name: str) -> dict[str, Any]:
        with trio.move_on_after(CHECK_SECONDS):
            return await self._plane.issuers.check(name)
        shown = await self._plane.work(self._plane.issuers.show, name)
        return shown | {"ok": False, "facts": {}, "problem": f"does not answer within {CHECK_SECONDS:.0f} s"}

    # --- rules ------------------------------------------------------------------------------------------------

    async def rules(self, request: Request) -> Response:
        """Return the rules that choose issuers."""
        return data_answer(await self._plane.work(self._plane.issuers.rules))

    async def put_rule(self, request: Request) -> Response:
        """Set the issuer for a domain: ``{"domain", "issuer"}``."""
        body = await read_as(operator_bodies.IssuerRule, request)
        return data_answer(await self._plane.work(self._plane.issuers.put_rule, body.domain, body.issuer), 201)

    async def remove_rule(self, request: Request) -> Response:
        """Remove the rule for ``?domain=``."""
        await self._plane.work(self._plane.issuers.remove_rule, request.query_params.get("domain", ""))
        return empty_answer()

    # --- orders -----------------------------------------------------------------------------------------------

    async def orders(self, request: Request) -> Response:
        """Return a user's orders, with ``?open=1`` those that have not ended; ``?after_id=&limit=`` for a page."""
        only_open = request.query_params.get("open") == "1"
        page_of = partial(self._plane.orders.page_of_user, scope=tags_of(request), only_open=only_open)
        return await listed(self._plane, request, page_of)

    async def order(self, request: Request) -> Response:
        """Return one order."""
        ids = number(request, "uid"), number(request, "oid")
        return data_answer(await self._plane.work(self._plane.orders.show, *ids, tags_of(request)))

    async def retry(self, request: Request) -> Response:
        """Make an open order due now, or repeat a failed one."""
        ids = number(request, "uid"), number(request, "oid")
        return data_answer(await self._plane.work(self._plane.orders.retry, *ids), 202)

    async def cancel(self, request: Request) -> Response:
        """End an open order; the certificate in use stays."""
        ids = number(request, "uid"), number(request, "oid")
        return data_answer(await self._plane.work(self._plane.orders.cancel, *ids))


def _decoded(name: str, value: object) -> bytes:
    try:
        return base64.b64decode(value if isinstance(value, str) else "?", validate=True)
    except (binascii.Error, ValueError):
        raise bad_request(f"secrets.{name[:100]}: expected base64", field="secrets") from None
