"""Operator endpoints for operators, tokens and the operator key (docs/protocol.md)."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from certctrl.plane.access.roles import Caller
from certctrl.plane.core import Plane
from certctrl.plane.devices.tags import checked_tags
from certctrl.plane.errors import bad_request
from certctrl.plane.http import operator_bodies
from certctrl.plane.http.answers import data_answer, empty_answer
from certctrl.plane.http.authentication import Authenticator
from certctrl.plane.http.bodies import read_as
from certctrl.plane.http.routing import OPERATOR, Endpoint, number, routes_of

_OPERATORS, _TOKENS = "/apiv1/operators", "/apiv1/operator-tokens"
_OPERATOR, _KEY = f"{_OPERATORS}/{{operator}}", "/apiv1/plane/operator-key"


class AccessApi:
    """The endpoints, one method each."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane
        self._access = plane.access
        self._authenticator = Authenticator(plane)

    def routes(self) -> list[Route]:
        """Return the routes."""
        guarded: list[tuple[str, str, Endpoint]] = [
            ("GET", _OPERATORS, self.operators), ("POST", _OPERATORS, self.add_operator),
            ("PATCH", _OPERATOR, self.change_operator), ("DELETE", _OPERATOR, self.delete_operator),
            ("GET", _TOKENS, self.tokens), ("POST", _TOKENS, self.create_token),
            ("DELETE", f"{_TOKENS}/{{ktid}}", self.revoke_token),
            ("GET", _KEY, self.key), ("DELETE", _KEY, self.turn_key_off), ("GET", "/apiv1/whoami", self.whoami),
        ]  # fmt: skip
        only = self._authenticator.operators_only
        return routes_of([(method, path, only(endpoint)) for method, path, endpoint in guarded])

    async def whoami(self, request: Request) -> Response:
        """Return the operator who asks, and the role; also that requests may have a dry run."""
        caller: Caller = request.scope[OPERATOR]
        who = {"who": caller.who, "role": str(caller.role), "via": caller.via, "address": caller.address}
        return data_answer(who | {"tags": list(caller.tags), "dry_run": True, "dry_run_paths": True})

    # --- operators ------------------------------------------------------------------------------------------------

    async def operators(self, request: Request) -> Response:
        """Return the operators."""
        return data_answer(await self._plane.work_long(self._access.accounts.show_all))

    async def add_operator(self, request: Request) -> Response:
        """Add an operator: ``{"name", "role"}``."""
        body = await read_as(operator_bodies.NewOperator, request)
        return data_answer(await self._plane.work(self._access.accounts.add, body.name, body.role), 201)

    async def change_operator(self, request: Request) -> Response:
        """Change an operator: ``{"role"?, "disabled"?}``."""
        body = await read_as(operator_bodies.OperatorChange, request)
        if body.role is None and body.disabled is None:
            raise bad_request("Send role or disabled")
        name = request.path_params["operator"]
        return data_answer(await self._plane.work(self._access.accounts.change, name, body.role, body.disabled))

    async def delete_operator(self, request: Request) -> Response:
        """Delete an operator."""
        await self._plane.work(self._access.accounts.delete, request.path_params["operator"])
        return empty_answer()

    # --- tokens ---------------------------------------------------------------------------------------------------

    async def tokens(self, request: Request) -> Response:
        """Return the tokens without their texts; ``?operator=`` those of one."""
        operator = request.query_params.get("operator", "")
        return data_answer(await self._plane.work_long(self._access.accounts.tokens, operator))

    async def create_token(self, request: Request) -> Response:
        """Create a token: ``{"operator", "name", "expires_in", "role"?, "tags"?}``; only this response has its text."""
        body = await read_as(operator_bodies.NewToken, request)
        create = self._access.accounts.create_token
        tags = checked_tags(body.tags, "tags")
        made = await self._plane.work(create, body.operator, body.name, body.role, body.expires_in, tags)
        return data_answer(made, 201)

    async def revoke_token(self, request: Request) -> Response:
        """End a token."""
        return data_answer(await self._plane.work(self._access.accounts.revoke_token, number(request, "ktid")))

    # --- the operator key -----------------------------------------------------------------------------------------

    async def key(self, request: Request) -> Response:
        """Return whether the operator key is on."""
        return data_answer(await self._plane.work(self._shown_key))

    async def turn_key_off(self, request: Request) -> Response:
        """Turn the operator key off."""
        await self._plane.work(self._access.accounts.turn_key_off)
        return data_answer(await self._plane.work(self._shown_key))

    def _shown_key(self) -> dict[str, Any]:
        return {"state": "off" if self._access.key.is_off() else "on"}
